"""Decisions are a pure fold: order, redelivery, what it leaves alone, and what it remembers."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from evalpipe.errors import ConfigError
from evalpipe.rollout.fold import fold, fold_into, replay
from evalpipe.rollout.inputs import Batch, Health, MeterReading, Override
from evalpipe.rollout.plan import Gate, RolloutPlan
from evalpipe.rollout.state import RolloutState


def batch(items, **changes):
    """All of them at once, at the time of the newest."""
    return Batch(items[-1].at, evidence=tuple(items), **changes)


def test_fold_leaves_the_state_it_was_given_alone(ramp, pairs, start):
    """The caller may retry with the old one; ``fold_into`` is for who need not."""
    plan = ramp()
    before = RolloutState.start(plan, start)
    saved = before.to_state(plan)
    order = Override("freeze", "ada", "why", start, start + timedelta(hours=1))
    after, made = fold(plan, before, batch(pairs([1.0] * 20, [0.0] * 20), overrides=(order,)))
    assert before.to_state(plan) == saved
    assert fold_into(plan, before, batch(pairs([1.0] * 20, [0.0] * 20), overrides=(order,))) == made
    assert before.to_state(plan) == after.to_state(plan)


def test_each_criterion_has_its_own_order(ramp, gate, evidence, start):
    """A heuristic that is ahead does not make a judge's scores old; what was folded is skipped and counted."""
    plan = ramp([gate(), gate("tone", "polite")])
    ahead = [evidence(seq, 1.0, criterion="polite") for seq in range(20)]
    behind = [evidence(seq, 1.0, at=ahead[-1].at) for seq in range(10)]
    state, _ = replay(plan, start, [batch(ahead), batch(behind)])
    assert state.last_seq == {"faithful": 9, "polite": 19}
    assert state.gates["quality"].numbers()["n_canary"] == 5
    assert state.repeated == 0
    state, made = fold(plan, state, batch(behind))
    assert (state.repeated, made) == (10, ())
    assert state.gates["quality"].numbers()["n_canary"] == 5


def test_evidence_of_no_gate_is_nothing(ramp, evidence, start):
    """Neither counted nor hashed."""
    plan = ramp()
    state, _ = replay(plan, start, [batch([evidence(0, 1.0, criterion="of no gate")])])
    assert state.evidence_seq == -1
    assert state.chain.digest() == ""


def test_a_clock_of_an_application_that_is_ahead_cannot_bake(ramp, pairs, start):
    """Time is the batch's at most."""
    plan = ramp()
    items = pairs([1.0] * 20, [1.0] * 20, at=start + timedelta(days=20))
    state, made = replay(plan, start, [Batch(start + timedelta(seconds=40), evidence=tuple(items))])
    assert [d.cause for d in made] == ["baking"]
    assert state.clock == start + timedelta(seconds=40)


def test_evidence_that_comes_late_is_not_taken_for_silence(ramp, pairs, start):
    """An hour of evidence in one batch is looked at as of its own time."""
    plan = ramp()
    items = pairs([1.0] * 20, [1.0] * 20)
    _, made = replay(plan, start, [Batch(items[-1].at + timedelta(minutes=14), evidence=tuple(items))])
    assert [d.cause for d in made] == ["baking", "no_harm_seen"]


def test_all_inputs_are_in_the_hash(ramp, pairs, start):
    """Evidence, health, readings, orders and the plan: one that differs before a decision gives another hash."""
    plan, items = ramp(), pairs([1.0] * 40, [0.0] * 40)
    at = items[4].at

    def hashed(plan=plan, first=items[:4], **changes):
        decision = replay(plan, start, [batch(first), batch(items[4:], **changes)])[1][-1]
        assert decision.action == "rollback"
        return decision.inputs_hash

    found = [
        hashed(),
        hashed(health=Health("outage", "9 of 10 calls failed")),
        hashed(meter=(MeterReading(at, "canary", 5, {3: 5}),)),
        hashed(overrides=(Override("advance", "ada", "why", at, at + timedelta(hours=1)),)),
        hashed(ramp([Gate("quality", "faithful", margin=0.31, alpha=0.05, min_canary=5)])),
    ]
    for field, value in (("value", 0.5), ("unit", "u"), ("weight", 2.0), ("epoch", "e"), ("at", start)):
        first = [items[0], items[1]._replace(**{field: value}), *items[2:4]]
        found += [hashed(first=first), hashed(first=first, health=Health("outage"))]
    assert len(set(found)) == len(found)
    assert hashed() == found[0]


def test_evidence_after_a_rollback_is_not_in_its_hash(ramp, pairs, start):
    """The same decision, whatever comes later; numbers of either kind of zero are one."""
    plan = ramp()
    items = pairs([1.0] * 60, [0.0] * 60)
    decided = replay(plan, start, [batch(items)])[1][-1]
    shorter = items[: decided.evidence_seq + 1]
    assert replay(plan, start, [batch(shorter)])[1][-1] == decided
    whole = [e._replace(value=int(e.value), weight=1) for e in shorter]
    assert replay(plan, start, [batch(whole)])[1][-1].inputs_hash == decided.inputs_hash


def test_a_plan_that_changed_under_a_running_rollout_is_refused(plan, start):
    """The message says to start another."""
    saved = RolloutState.start(plan, start).to_state(plan)
    changed = RolloutPlan("r-1", "support-bot", "v1", "v2", (Gate("quality", "faithful", alpha=0.01),))
    with pytest.raises(ConfigError, match="new rollout_id"):
        RolloutState.from_state(changed, saved)
    with pytest.raises(ConfigError, match="version"):
        RolloutState.from_state(plan, saved | {"version": 0})


def test_a_decision_is_plain_json(ramp, pairs, start):
    """No NaN, no infinity, nothing that a strict parser refuses."""
    for decision in replay(ramp(), start, [batch(pairs([1.0] * 60, [0.0] * 60))])[1]:
        back = json.loads(json.dumps(decision.to_dict(), allow_nan=False))
        assert back["decided_at"].endswith("+00:00")
        assert back["decision_id"] == f"dec_r-1_{decision.seq}"
        assert back["evidence"]["gates"]["quality"]["threshold"] == 20.0


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
        {"advance_alpha": 0.0},
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
