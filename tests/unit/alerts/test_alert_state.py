"""The alert's state machine keeps Prometheus's promises, over restarts too."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalpipe.alerts.rules import Observation, ThresholdRule
from evalpipe.alerts.state import AlertState, advance

START = datetime(2026, 11, 22, 2, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def rule(**changes):
    """Mean faithfulness under .8 for two minutes, kept firing for one."""
    options = {
        "name": "faithful-low",
        "criterion": "faithful",
        "comparison": "below",
        "threshold": 0.8,
        "window": 5 * MINUTE,
        "min_sample": 30,
        "for_": 2 * MINUTE,
        "keep_firing_for": MINUTE,
    }
    return ThresholdRule(**(options | changes))


def play(a_rule, values, state=None):
    """One evaluation a minute; a value, or None for too few scores. The phases, and the transitions."""
    state, phases, transitions = state or AlertState(), [], []
    for i, value in enumerate(values):
        now = START + i * MINUTE
        observation = Observation(value, 5 if value is None else 100, now)
        state, transition = advance(a_rule, state, observation, now)
        phases.append(state.phase)
        transitions += [transition] if transition else []
    return phases, transitions


def test_the_life_of_an_alert():
    """Pending at the first violation, firing after ``for``, kept firing, resolved, then pending again."""
    phases, transitions = play(rule(), [0.9, 0.7, 0.7, 0.7, 0.7, 0.9, 0.9, 0.9, 0.7])
    assert phases == ["inactive", "pending", "pending", "firing", "firing", "firing", "resolved", "resolved", "pending"]
    assert [(t.before, t.after) for t in transitions] == [
        ("inactive", "pending"),
        ("pending", "firing"),
        ("firing", "resolved"),
        ("resolved", "pending"),
    ]
    firing = transitions[1]
    assert firing.active_at == START + MINUTE
    assert firing.fired_at == START + 3 * MINUTE
    assert firing.reason == (
        "mean of faithful over 0:05:00 is 0.700 of 100 scores; faithful-low is firing (below 0.8 for 0:02:00)"
    )


def test_one_good_evaluation_starts_the_wait_over():
    """``for`` needs every evaluation true; a pending alert that clears is forgotten."""
    phases, _ = play(rule(), [0.7, 0.7, 0.9, 0.7, 0.7, 0.7])
    assert phases == ["pending", "pending", "inactive", "pending", "pending", "firing"]


def test_a_hit_while_it_is_kept_firing_starts_that_wait_over():
    """``keep_firing_for`` is an unbroken stretch; a flapping series gives one episode."""
    phases, transitions = play(rule(), [0.7, 0.7, 0.7, 0.9, 0.7, 0.9, 0.7, 0.9, 0.9])
    assert phases[2:] == ["firing"] * 6 + ["resolved"]
    assert [t.after for t in transitions] == ["pending", "firing", "resolved"]


def test_without_for_it_fires_at_once_and_without_keep_it_resolves_at_once():
    """Both default to zero."""
    phases, transitions = play(rule(for_=timedelta(0), keep_firing_for=timedelta(0)), [0.7, 0.9])
    assert phases == ["firing", "resolved"]
    assert [t.before for t in transitions] == ["inactive", "firing"]


def test_the_threshold_itself_is_not_a_violation():
    """Strictly below, strictly above."""
    above = rule(comparison="above", threshold=0.2)
    assert rule().violated(Observation(0.8, 100, START)) is False
    assert above.violated(Observation(0.2, 100, START)) is False
    assert above.violated(Observation(0.21, 100, START)) is True


@pytest.mark.parametrize(
    ("policy", "phases"),
    [
        ("keep", ["inactive", "pending", "pending", "firing", "firing", "firing"]),
        ("ok", ["inactive", "pending", "inactive", "pending", "pending", "inactive"]),
        ("firing", ["pending", "pending", "firing", "firing", "firing", "firing"]),
    ],
)
def test_too_few_scores_follow_the_policy_of_the_rule(policy, phases):
    """Not enough data is neither good nor bad; no policy reads the value behind it."""
    assert play(rule(no_data=policy), [None, 0.7, None, 0.7, 0.7, None])[0] == phases


def test_an_evaluation_out_of_order_is_ignored():
    """Two schedulers, or a clock that went back, do no harm."""
    state, _ = advance(rule(), AlertState(), Observation(0.7, 100, START), START)
    assert advance(rule(), state, Observation(0.9, 100, START), START) == (state, None)
    assert advance(rule(), state, Observation(0.9, 100, START), START - MINUTE) == (state, None)


evaluations = st.lists(
    st.tuples(st.integers(1, 90), st.sampled_from([0.5, 0.9, None]), st.sampled_from([5, 100])), max_size=60
)
rules = st.builds(
    rule,
    for_=st.integers(0, 150).map(lambda s: timedelta(seconds=s)),
    keep_firing_for=st.integers(0, 150).map(lambda s: timedelta(seconds=s)),
    no_data=st.sampled_from(["keep", "ok", "firing"]),
)


@settings(deadline=None)
@given(rules, evaluations)
def test_a_restart_between_any_two_evaluations_changes_nothing(a_rule, sequence):
    """The state goes through JSON text each time."""
    whole = parts = AlertState()
    now = START
    for seconds, value, n in sequence:
        now += timedelta(seconds=seconds)
        whole, expected = advance(a_rule, whole, Observation(value, n, now), now)
        parts = AlertState.from_state(json.loads(json.dumps(parts.to_state())))
        parts, transition = advance(a_rule, parts, Observation(value, n, now), now)
        assert transition == expected
    assert whole == parts


@settings(deadline=None, max_examples=200)
@given(rules, evaluations)
def test_what_always_holds(a_rule, sequence):
    """No firing before ``for``; one firing and one resolution an episode; resolved only after ``keep_firing_for``."""
    state, now, hits_since, clear_since, episodes = AlertState(), START, None, None, []
    for seconds, value, n in sequence:
        now += timedelta(seconds=seconds)
        violated = a_rule.violated(Observation(value, n, now))
        before = state
        state, transition = advance(a_rule, state, Observation(value, n, now), now)
        if violated is not None:
            hits_since = (hits_since or now) if violated else None
            clear_since = None if violated else (clear_since or now)
        else:
            assert state.phase == before.phase
        if transition is not None:
            assert transition.before == before.phase != transition.after == state.phase
            episodes += [transition.after] if transition.after in {"firing", "resolved"} else []
        if state.phase == "firing" != before.phase:
            assert violated
            assert now - hits_since >= a_rule.for_
            assert transition.fired_at == now
        if state.phase == "resolved" != before.phase:
            assert before.phase == "firing"
            assert now - clear_since >= a_rule.keep_firing_for
        if state.phase == "pending":
            assert hits_since is not None
            assert state.active_at == hits_since
    assert episodes == [("firing", "resolved")[i % 2] for i in range(len(episodes))]


@pytest.mark.parametrize(
    "bad", [{"window": timedelta(0)}, {"for_": -MINUTE}, {"keep_firing_for": -MINUTE}, {"min_sample": 0}]
)
def test_a_rule_that_makes_no_sense_is_refused(bad):
    """With the rule's name in the message."""
    with pytest.raises(ValueError, match="faithful-low"):
        rule(**bad)


def test_a_firing_is_not_taken_back_within_its_least_time():
    """Whoever evaluates with each score sees a young mean cross its line to and fro: that is one firing."""
    a_rule = rule(for_=timedelta(0), keep_firing_for=timedelta(0), fires_at_least=2 * MINUTE)
    phases, transitions = play(a_rule, [0.5, 0.9, 0.5, 0.9, 0.5])[:2]
    assert phases == ["firing", "firing", "firing", "resolved", "firing"]
    assert [t.after for t in transitions] == ["firing", "resolved", "firing"]
