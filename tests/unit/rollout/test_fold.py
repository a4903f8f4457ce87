"""Decisions are a pure fold: batches, restarts and redelivery change nothing."""

from __future__ import annotations

import json
import random
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evalpipe.errors import ConfigError
from evalpipe.rollout.fold import replay, step
from evalpipe.rollout.plan import Gate, RolloutPlan
from evalpipe.rollout.state import RolloutState
from evalpipe.score import Status

TWO_GATES = RolloutPlan(
    "r-2", "support-bot", "v1", "v2", (Gate("quality", "faithful"), Gate("tone", "polite", alpha=0.01, min_canary=5))
)


def mixed(evidence, seed, n, drop):
    """Evidence of two criteria with errors, repeated users, two epochs and now and then a suspect judge."""
    rng = random.Random(seed)
    items = []
    for seq in range(n):
        epoch = "e2" if seq > n * 0.7 or rng.random() < 0.02 else "e1"
        for criterion in ("faithful", "polite", "of no gate"):
            lost = rng.random() < 0.05
            mean = 0.9 * (1 - drop) if seq % 2 and criterion == "faithful" else 0.9
            items.append(
                evidence(
                    seq,
                    None if lost else float(rng.random() < mean),
                    criterion=criterion,
                    status=rng.choice((Status.ERROR, Status.ABSTAINED, Status.SKIPPED)) if lost else Status.SCORED,
                    unit=f"user-{rng.randrange(2 * n)}",
                    epoch=epoch,
                    suspect=rng.random() < 0.02,
                )
            )
    return items


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(0, 120),
    drop=st.sampled_from([0.0, 0.3, 0.8]),
    cuts=st.lists(st.integers(0, 360), max_size=12),
)
def test_decisions_do_not_depend_on_batches_restarts_or_redelivery(evidence, start, seed, n, drop, cuts):
    """Any partition, the state through JSON between batches, each batch handed in twice: the same log."""
    items = mixed(evidence, seed, n, drop)
    _, expected = replay(TWO_GATES, start, items)
    state, log = RolloutState.start(TWO_GATES, start), []
    edges = sorted({0, len(items), *(min(cut, len(items)) for cut in cuts)})
    for low, high in pairwise(edges):
        for batch in (items[low:high], items[max(0, low - 5) : high]):
            state, decisions = step(TWO_GATES, state, batch, items[high - 1].at)
            log.extend(decisions)
            text = json.dumps(state.to_state(TWO_GATES), allow_nan=False)
            state = RolloutState.from_state(TWO_GATES, json.loads(text))
    assert log == list(expected)


def test_holds_by_the_clock_leave_the_hash_of_a_rollback_alone(plan, pairs, start):
    """Evidence alone reproduces the rollback; only its number counts the holds that the clock had caused before."""
    items = pairs([1.0] * 60, [0.0] * 60)
    state, _ = step(plan, RolloutState.start(plan, start), items[:6], start)
    state, (silent,) = step(plan, state, [], start + timedelta(hours=1))
    state, decisions = step(plan, state, items[6:], start + timedelta(hours=1))
    assert (silent.cause, decisions[0].cause) == ("no_data", "insufficient_evidence")
    alone = replay(plan, start, items)[1][-1]
    assert (decisions[-1].action, decisions[-1].evidence_seq) == (alone.action, alone.evidence_seq)
    assert decisions[-1].inputs_hash == alone.inputs_hash
    assert decisions[-1].seq == alone.seq + 2


def test_a_batch_may_arrive_shuffled_within_itself(evidence, start):
    """Order is that of seq and criterion, not of the list."""
    items = mixed(evidence, 3, 100, 0.8)
    shuffled = items.copy()
    random.Random(1).shuffle(shuffled)
    assert replay(TWO_GATES, start, shuffled)[1] == replay(TWO_GATES, start, items)[1]


def test_the_hash_tells_other_inputs_from_the_same(plan, pairs, start):
    """One value changed before the decision, or the plan: another hash. Evidence after it: the same."""
    items = pairs([1.0] * 60, [0.0] * 60)
    rolled_back = replay(plan, start, items)[1][-1]
    assert rolled_back.action == "rollback"
    assert replay(plan, start, items[: rolled_back.evidence_seq + 1])[1][-1] == rolled_back
    other = pairs([1.0] * 60, [0.25] + [0.0] * 59)
    assert replay(plan, start, other)[1][-1].inputs_hash != rolled_back.inputs_hash
    stricter = RolloutPlan("r-1", "support-bot", "v1", "v2", (Gate("quality", "faithful", margin=0.06),))
    assert replay(stricter, start, items)[1][-1].inputs_hash != rolled_back.inputs_hash


def test_step_leaves_the_state_it_was_given_alone(plan, pairs, start):
    """The caller may retry with the old one."""
    before = RolloutState.start(plan, start)
    saved = before.to_state(plan)
    step(plan, before, pairs([1.0] * 20, [0.0] * 20), start)
    assert before.to_state(plan) == saved


def test_the_log_holds_turns_and_not_ticks(plan, pairs, start):
    """Two hundred pieces of evidence and fifty empty steps: one hold at the start."""
    state, log = RolloutState.start(plan, start), []
    items = pairs([0.75, 1.0] * 50, [1.0, 0.75] * 50)
    for item in items:
        for batch in ([item], []):
            state, decisions = step(plan, state, batch, item.at)
            log.extend(decisions)
    assert [(d.seq, d.action, d.cause, d.evidence_seq) for d in log] == [(1, "hold", "insufficient_evidence", 0)]


def test_a_plan_that_changed_under_a_running_rollout_is_refused(plan, start):
    """The message says to start another."""
    saved = RolloutState.start(plan, start).to_state(plan)
    changed = RolloutPlan("r-1", "support-bot", "v1", "v2", (Gate("quality", "faithful", alpha=0.01),))
    with pytest.raises(ConfigError, match="new rollout_id"):
        RolloutState.from_state(changed, saved)
    with pytest.raises(ConfigError, match="version"):
        RolloutState.from_state(plan, saved | {"version": 0})


def test_a_decision_is_plain_json(plan, pairs, start):
    """No NaN, no infinity, nothing that a strict parser refuses."""
    for decision in replay(plan, start, pairs([1.0] * 60, [0.0] * 60))[1]:
        back = json.loads(json.dumps(decision.to_dict(), allow_nan=False))
        assert back["decided_at"].endswith("+00:00")
        assert back["evidence"]["gates"]["quality"]["threshold"] == 400.0


@pytest.mark.parametrize(
    "bad",
    [
        {"gates": ()},
        {"gates": (Gate("a", "x"), Gate("a", "y"))},
        {"canary": "v1"},
        {"no_data_after": timedelta(0)},
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(bad):
    """With the rollout's name in the message."""
    good = {"rollout_id": "r-9", "service": "s", "baseline": "v1", "canary": "v2", "gates": (Gate("a", "x"),)}
    with pytest.raises(ValueError, match="r-9"):
        RolloutPlan(**(good | bad))


@pytest.mark.parametrize(
    "bad",
    [
        {"margin": 0.0},
        {"alpha": 1.0},
        {"promote_alpha": 0.0},
        {"max_missing": 1.0},
        {"estimate_share": 1.1},
        {"min_canary": 0},
        {"max_weights": (0.0, 1.0)},
    ],
)
def test_a_gate_that_makes_no_sense_is_refused(bad):
    """With the gate's name and the key in the message."""
    with pytest.raises(ValueError, match=rf"'quality'.*{next(iter(bad))}"):
        Gate("quality", "faithful", **bad)
