"""The alert's state machine keeps Prometheus's promises, over restarts too."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from evalpipe.alerts.rules import Life
from evalpipe.alerts.state import AlertState, advance, holds, standing
from evalpipe.detectors.base import Finding
from evalpipe.detectors.view import Place

START = datetime(2026, 11, 22, 2, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
YES, NO, UNKNOWN = (Finding(violated, 0.7, 100, "the mean is 0.7") for violated in (True, False, None))
OF = {"x": YES, ".": NO, "?": UNKNOWN}


def life(**changes):
    """Fires after two minutes, and is kept firing for one."""
    return Life(**({"name": "faithful-low", "for_": 2 * MINUTE, "keep_firing_for": MINUTE} | changes))


def play(a_life, marks, state=None):
    """One evaluation a minute: x holds, . does not, ? cannot tell, ! failed. The phases, and the transitions."""
    state, phases, transitions = state or AlertState(), [], []
    for i, mark in enumerate(marks):
        state, transition = advance(a_life, state, OF.get(mark, UNKNOWN), START + i * MINUTE, failed=mark == "!")
        phases.append(state.phase)
        transitions += [transition] if transition else []
    return phases, transitions


def test_the_life_of_an_alert():
    """Pending at the first violation, firing after ``for``, kept firing, resolved, then pending again."""
    phases, transitions = play(life(), ".xxxx...x")
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
    assert firing.reason == "the mean is 0.7; faithful-low is firing (for 2m)"


def test_one_good_evaluation_starts_the_wait_over():
    """``for`` needs every evaluation true; a pending alert that clears is forgotten."""
    assert play(life(), "xx.xxx")[0] == ["pending", "pending", "inactive", "pending", "pending", "firing"]


def test_a_hit_while_it_is_kept_firing_starts_that_wait_over():
    """``keep_firing_for`` is an unbroken stretch; a flapping series gives one episode."""
    phases, transitions = play(life(), "xxx.x.x..")
    assert phases[2:] == ["firing"] * 6 + ["resolved"]
    assert [t.after for t in transitions] == ["pending", "firing", "resolved"]


def test_without_for_it_fires_at_once_and_without_keep_it_resolves_at_once():
    """Both default to zero."""
    phases, transitions = play(Life("now"), "x.")
    assert phases == ["firing", "resolved"]
    assert [t.before for t in transitions] == ["inactive", "firing"]


@pytest.mark.parametrize(
    ("policy", "phases"),
    [
        ("keep", ["inactive", "pending", "pending", "firing", "firing", "firing"]),
        ("ok", ["inactive", "pending", "inactive", "pending", "pending", "inactive"]),
        ("firing", ["pending", "pending", "firing", "firing", "firing", "firing"]),
    ],
)
@pytest.mark.parametrize(("mark", "field"), [("?", "no_data"), ("!", "on_error")])
def test_what_cannot_be_told_and_what_failed_follow_the_policy_of_the_rule(mark, field, policy, phases):
    """Neither is good or bad by itself, and each has a policy of its own."""
    assert play(life(**{field: policy}), "?x?xx?".replace("?", mark))[0] == phases


def test_a_failed_evaluation_never_counts_as_what_was_found():
    """Even a finding that holds: the error's policy decides."""
    assert holds(life(on_error="ok"), YES, failed=True) is False
    assert holds(life(no_data="firing"), UNKNOWN, failed=True) is None


def test_an_evaluation_out_of_order_is_ignored():
    """Two schedulers, or a clock that went back, do no harm."""
    state, _ = advance(life(), AlertState(), YES, START)
    assert advance(life(), state, NO, START) == (state, None)
    assert advance(life(), state, NO, START - MINUTE) == (state, None)


def test_the_words_of_a_firing_alert_that_is_clear_say_when_it_resolves():
    """So that nobody looks for what is over."""
    a_life = life(keep_firing_for=10 * MINUTE, for_=timedelta(0))
    state, _ = advance(a_life, AlertState(), YES, START)
    state, _ = advance(a_life, state, NO, START + MINUTE)
    assert standing(a_life, state, NO, START + MINUTE).reason.endswith(
        "clear since 02:01:00 UTC, it resolves if that lasts"
    )


def test_durations_must_not_be_negative():
    """They come from code here: files are checked before."""
    with pytest.raises(ValueError, match="must not be negative"):
        life(for_=-MINUTE)


def test_a_state_of_an_older_version_is_read():
    """A row that lacks what was added since, and has what went."""
    old = {"phase": "firing", "fired_at": START.isoformat(), "n": 3, "gone": 1}
    assert AlertState.from_state(old) == AlertState(phase="firing", fired_at=START, n=3)


findings = st.sampled_from([YES, NO, UNKNOWN])
evaluations = st.lists(st.tuples(st.integers(1, 90), findings, st.booleans()), max_size=60)
policies = st.sampled_from(["keep", "ok", "firing"])
seconds = st.integers(0, 150).map(lambda s: timedelta(seconds=s))
lives = st.builds(
    life, for_=seconds, keep_firing_for=seconds, fires_at_least=seconds, no_data=policies, on_error=policies
)


@settings(deadline=None)
@given(lives, evaluations)
def test_a_restart_between_any_two_evaluations_changes_nothing(a_life, sequence):
    """The state goes through JSON text each time."""
    place = Place("desk", "production", "canary", "chat", "rel")
    whole = parts = AlertState(rule="card/rule", place=place, detector={"m": [1.5, 2.0]}, detector_key="k")
    now = START
    for passed, finding, failed in sequence:
        now += timedelta(seconds=passed)
        whole, expected = advance(a_life, whole, finding, now, failed=failed)
        parts = AlertState.from_state(json.loads(json.dumps(parts.to_state())))
        parts, transition = advance(a_life, parts, finding, now, failed=failed)
        assert transition == expected
    assert whole == parts


class Model:
    """What the documentation says, with the whole history at hand: no state but lists of times."""

    def __init__(self, a_life) -> None:
        self.life, self.phase, self.fired_at = a_life, "inactive", None
        self.hits, self.clears = [], []

    def see(self, counts, now):
        """One evaluation; ``counts`` is None where it leaves all as it is."""
        if counts is None:
            return
        if counts:
            self.hits, self.clears = [*self.hits, now], []
        else:
            self.hits, self.clears = [], [*self.clears, now]
        if self.phase == "firing":
            old = now - self.fired_at >= self.life.fires_at_least
            if self.clears and old and now - self.clears[0] >= self.life.keep_firing_for:
                self.phase = "resolved"
        elif self.hits:
            due = now - self.hits[0] >= self.life.for_
            self.phase, self.fired_at = ("firing", now) if due else ("pending", self.fired_at)
        elif self.phase == "pending":
            self.phase = "inactive"


class Machine(RuleBasedStateMachine):
    """The state machine against that model."""

    @initialize(a_life=lives)
    def begin(self, a_life):
        """A rule's life."""
        self.life, self.state, self.now, self.told = a_life, AlertState(), START, []
        self.model = Model(a_life)

    @rule(passed=st.integers(1, 90), finding=findings, failed=st.booleans())
    def evaluate(self, passed, finding, failed):
        """Some time later."""
        self.now += timedelta(seconds=passed)
        before = self.state.phase
        self.state, transition = advance(self.life, self.state, finding, self.now, failed=failed)
        self.model.see(holds(self.life, finding, failed=failed), self.now)
        assert (transition is not None) == (self.state.phase != before)
        self.told += [transition.after] if transition and transition.after in {"firing", "resolved"} else []

    @invariant()
    def agrees(self):
        """In phase and in when it fired; and firing and resolved are told in turn."""
        assert (self.state.phase, self.state.fired_at) == (self.model.phase, self.model.fired_at)
        assert self.told == (["firing", "resolved"] * len(self.told))[: len(self.told)]


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_states_are_the_same_whatever_an_evaluation_saw():
    """Only then they are written."""
    state, _ = advance(life(), AlertState(), NO, START)
    again, _ = advance(life(), state, replace(NO, value=0.9, n=7), START + MINUTE)
    assert again.same_as(state)
    assert not again.same_as(replace(state, clear_since=START))
