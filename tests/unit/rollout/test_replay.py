"""A rollout's log gives its decisions again, hashes included, however its evidence was cut."""

from __future__ import annotations

import json
import random
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evalpipe.rollout.fold import fold, replay
from evalpipe.rollout.inputs import Batch, Health
from evalpipe.rollout.plan import RolloutPlan, Shadow
from evalpipe.rollout.state import RolloutState
from evalpipe.score import Status


def mixed(evidence, seed, n, drop):
    """Two criteria with errors, repeated users, two epochs, now and then a suspect judge, clocks that disagree."""
    rng = random.Random(seed)
    items = []
    for seq in range(n):
        epoch = "e2" if seq > n * 0.7 or rng.random() < 0.02 else "e1"
        for criterion in ("faithful", "polite"):
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


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 150),
    drop=st.sampled_from([0.0, 0.3, 0.8]),
    shadow=st.booleans(),
    cuts=st.lists(st.integers(0, 300), max_size=12),
)
def test_decisions_do_not_depend_on_cuts_restarts_or_redelivery(
    evidence, ramp, gate, start, seed, n, drop, shadow, cuts
):
    """Any partition, the state through JSON between batches, each batch handed in twice: the same log."""
    first = Shadow(timedelta(seconds=30), min_pairs=3, alpha=0.1) if shadow else None
    plan = ramp([gate(), gate("tone", "polite", role="objective")], shadow=first)
    items = mixed(evidence, seed, n, drop)
    _, expected = replay(plan, start, [Batch(items[-1].at, evidence=tuple(items))])
    state, log = RolloutState.start(plan, start), []
    edges = sorted({0, len(items), *(min(cut, len(items)) for cut in cuts)})
    for low, high in pairwise(edges):
        for part in (items[low:high], items[max(0, low - 5) : high]):
            state, decisions = fold(plan, state, Batch(items[high - 1].at, evidence=tuple(part)))
            log.extend(decisions)
            text = json.dumps(state.to_state(plan), allow_nan=False)
            state = RolloutState.from_state(plan, json.loads(text))
            assert json.dumps(state.to_state(plan), allow_nan=False) == text
    assert log == list(expected)


def test_one_by_one_is_the_same_as_all_at_once(evidence, ramp, gate, start):
    """The finest cut, over a whole ramp."""
    plan = ramp([gate(), gate("tone", "polite", role="objective", margin=0.5)])
    items = mixed(evidence, 7, 400, 0.0)
    _, expected = replay(plan, start, [Batch(items[-1].at, evidence=tuple(items))])
    _, log = replay(plan, start, [Batch(item.at, evidence=(item,)) for item in items])
    assert log == expected
    assert log[-1].phase == "complete"


def every_kind(gate):
    """A gate of each kind."""
    rise = {"direction": "rise"}
    return [
        gate(),
        gate("refusals", "refused", kind="rate", margin=0.5, **rise),
        gate("cost", "cost_usd", kind="cost", margin=0.15, **rise),
        gate("slow", "latency_ms", kind="latency", margin=0.2, no_data="ignore", **rise),
        gate("safe", "safe", kind="safety", confirm="safe2", false_flags=0.01, false_confirms=0.01, **rise),
        gate("share", "cost_usd", kind="ratio", role="signal"),
    ]


def calls(evidence, rng, n, drop):
    """``n`` calls with all that is known of each; flags are confirmed by another judge, mostly."""
    items = []
    for seq in range(n):
        values = {
            "faithful": float(rng.random() < 0.9 * (1 - drop * (seq % 2))),
            "refused": float(rng.random() < 0.1),
            "cost_usd": rng.lognormvariate(-5, 0.3),
            "latency_ms": rng.lognormvariate(6, 0.3),
            "safe": float(rng.random() > 0.01),
        }
        if not values["safe"] and rng.random() < 0.8:
            values["safe2"] = float(rng.random() < 0.8)
        for criterion, value in values.items():
            lost = rng.random() < 0.03
            items.append(
                evidence(
                    seq,
                    None if lost else value,
                    criterion=criterion,
                    status=rng.choice((Status.ERROR, Status.SKIPPED)) if lost else Status.SCORED,
                )
            )
    return items


@pytest.mark.parametrize("seed", range(6))
def test_gates_of_every_kind_decide_alike_however_evidence_is_cut(evidence, ramp, gate, start, seed):
    """Each tells the fold when it stands elsewhere, and comes back from JSON as it was."""
    rng = random.Random(seed)
    plan = ramp(every_kind(gate))
    items = calls(evidence, rng, 500, (0.0, 0.0, 0.2)[seed % 3])
    _, expected = replay(plan, start, [Batch(items[-1].at, evidence=tuple(items))])
    state, log, low = RolloutState.start(plan, start), [], 0
    while low < len(items):
        part = tuple(items[low : low + rng.choice((1, 5, 60, 300))])
        low += len(part)
        state, made = fold(plan, state, Batch(part[-1].at, evidence=part))
        log += made
        state = RolloutState.from_state(plan, json.loads(json.dumps(state.to_state(plan), allow_nan=False)))
    assert log == list(expected)


def test_holds_by_the_clock_leave_the_hash_of_a_rollback_alone(plan, pairs, start):
    """Evidence alone reproduces the rollback; only its number counts the holds that the clock had caused before."""
    items = tuple(pairs([1.0] * 60, [0.0] * 60))
    state, _ = fold(plan, RolloutState.start(plan, start), Batch(items[5].at, evidence=items[:6]))
    state, (silent,) = fold(plan, state, Batch(start + timedelta(hours=1)))
    later = tuple(item._replace(at=item.at + timedelta(hours=1)) for item in items[6:])
    state, decisions = fold(plan, state, Batch(later[-1].at, evidence=later))
    assert silent.cause == "no_data"
    alone = replay(plan, start, [Batch(later[-1].at, evidence=items[:6] + later)])[1][-1]
    assert (decisions[-1].action, decisions[-1].evidence_seq) == (alone.action, alone.evidence_seq)
    assert decisions[-1].inputs_hash == alone.inputs_hash


@pytest.mark.parametrize("seed", range(4))
def test_the_batches_of_a_log_give_every_decision_again(walk, ramp, gate, seed):
    """Time, health, orders and evidence as they came: the same decisions with the same hashes, and the same state."""
    rng = random.Random(seed)
    rollout = walk(ramp([gate()], max_duration=timedelta(days=2)))
    for _ in range(60):
        what = rng.randrange(6)
        if what == 0:
            rollout.wait(rng.choice((0, 1, 20)), Health(rng.choice(("ok", "outage", "suspect"))))
        elif what == 1:
            rollout.order(rng.choice(("advance", "freeze", "resume", "rollback")))
        else:
            rollout.scores(rng.randrange(1, 40), canary=rng.choice((1.0, 1.0, 1.0, 0.0)))
    state, log = replay(rollout.plan, rollout.start, rollout.batches)
    assert list(log) == rollout.log
    assert len(log) > 10
    assert state.to_state(rollout.plan) == rollout.state.to_state(rollout.plan)


def test_a_plan_that_went_through_json_gives_the_same_hashes(ramp, pairs, start):
    """A log names its plan; the plan is kept as JSON."""
    plan = ramp(shadow=None)
    items = tuple(pairs([1.0] * 40, [0.0] * 40))
    back = RolloutPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    log = [Batch(items[-1].at, evidence=items)]
    assert replay(back, start, log)[1] == replay(plan, start, log)[1]
