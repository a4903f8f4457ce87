"""The fold of a rollout: ordered evidence in, decisions out.

One piece of evidence at a time, so that decisions do not depend on how it was cut into batches: the same ordered
evidence gives the same decisions, at the same place, with the same ``inputs_hash``. Only holds that time or health
caused (and the numbers ``seq`` after them) come from ``now`` and ``health``; to replay those too, call ``step`` with
the same values at the same places.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from evalpipe.rollout.analysis import Evidence
from evalpipe.rollout.decision import Decision, describe
from evalpipe.rollout.outcome import assess
from evalpipe.rollout.plan import Gate, RolloutPlan
from evalpipe.rollout.state import HEALTHY, Health, RolloutState


def step(
    plan: RolloutPlan,
    state: RolloutState,
    batch: Iterable[Evidence],
    now: datetime,
    health: Health = HEALTHY,
) -> tuple[RolloutState, tuple[Decision, ...]]:
    """Fold a batch (possibly empty) and return the new state and the decisions to be logged, in order.

    A decision is returned only where action, cause or gate changes, so the log holds turns and not ticks. Evidence at
    or before the newest folded ``(seq, criterion)`` is skipped and counted: handing the same batch in twice changes
    nothing. So the caller must release evidence in order, behind a watermark. After a rollback nothing is folded.

    Health applies to the batch that it comes with: what a suspect judge scored is set aside, so it can neither roll
    back nor advance; an outage only keeps from advancing.
    """
    state = RolloutState.from_state(plan, state.to_state(plan))
    decisions: list[Decision] = []
    if health != state.health and not state.rolled_back:
        state.health = health
        _turn(plan, state, now, decisions, quiet_start=True)
    by_criterion: dict[str, list[Gate]] = {}
    for gate in plan.gates:
        by_criterion.setdefault(gate.criterion, []).append(gate)
    for evidence in sorted(batch, key=lambda e: (e.seq, e.criterion)):
        if state.rolled_back:
            break
        gates = by_criterion.get(evidence.criterion)
        if gates and _fold(state, gates, evidence):
            _turn(plan, state, evidence.at, decisions)
    if not state.rolled_back:
        _turn(plan, state, now, decisions, quiet_start=True)
    return state, tuple(decisions)


def replay(
    plan: RolloutPlan, started_at: datetime, evidence: Iterable[Evidence]
) -> tuple[RolloutState, tuple[Decision, ...]]:
    """Every decision that the evidence alone leads to, from the start."""
    ordered = sorted(evidence, key=lambda e: (e.seq, e.criterion))
    now = ordered[-1].at if ordered else started_at
    return step(plan, RolloutState.start(plan, started_at), ordered, now)


def _fold(state: RolloutState, gates: list[Gate], evidence: Evidence) -> bool:
    """Take one piece of evidence; False if it was folded before."""
    if (evidence.seq, evidence.criterion) <= (state.last_seq, state.last_criterion):
        state.repeated += 1
        return False
    state.last_seq, state.last_criterion = evidence.seq, evidence.criterion
    if state.health.judge == "suspect":
        evidence = replace(evidence, suspect=True)
    state.link(evidence.line())
    if evidence.value is not None:
        newest = state.last_at.get(evidence.arm, evidence.at)
        state.last_at[evidence.arm] = max(newest, evidence.at)
    for gate in gates:
        state.gates[gate.name].add(gate, evidence)
    return True


def _turn(
    plan: RolloutPlan, state: RolloutState, at: datetime, decisions: list[Decision], *, quiet_start: bool = False
) -> None:
    """Log a decision if the outcome is another than before; ``quiet_start``: not for a plain start without evidence."""
    outcome = assess(plan, state, at)
    mark = (outcome.action, outcome.cause, outcome.gate)
    if mark == state.outcome or (quiet_start and not state.decision_seq and outcome.cause == "insufficient_evidence"):
        return
    state.outcome = mark
    state.decision_seq += 1
    state.rolled_back = outcome.action == "rollback"
    decisions.append(describe(plan, state, outcome, at))
