"""What follows from the state of a rollout. Precedence: rollback, then hold, then advance."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from evalpipe.rollout.plan import RolloutPlan
from evalpipe.rollout.state import RolloutState
from evalpipe.stats.matching import Arm

Action = Literal["advance", "hold", "rollback"]
Cause = Literal[
    "harm_proven",
    "judge_outage",
    "judge_suspect",
    "epochs_differ",
    "missing_scores",
    "no_data",
    "insufficient_evidence",
    "unequal_weights",
    "no_harm_proven",
]
Phase = Literal["successful", "failed", "inconclusive", "error"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """An action, its cause, and the gate that it is due to ("" if it is due to none alone)."""

    action: Action
    cause: Cause
    gate: str = ""


def assess(plan: RolloutPlan, state: RolloutState, at: datetime) -> Outcome:
    """What follows at time ``at``: any gate's proven harm first, then any cause to hold, then proof by all gates."""
    if state.rolled_back:
        return Outcome("rollback", "harm_proven", state.outcome[2])
    for gate in plan.gates:
        if state.gates[gate.name].harmed(gate):
            return Outcome("rollback", "harm_proven", gate.name)
    return _hold(plan, state, at) or Outcome("advance", "no_harm_proven")


def _hold(plan: RolloutPlan, state: RolloutState, at: datetime) -> Outcome | None:
    if state.health.judge != "ok":
        return Outcome("hold", "judge_outage" if state.health.judge == "outage" else "judge_suspect")
    gates = [(gate, state.gates[gate.name]) for gate in plan.gates]
    for gate, gate_state in gates:
        if gate_state.epochs_differ or gate_state.starved:
            return Outcome("hold", "epochs_differ" if gate_state.epochs_differ else "missing_scores", gate.name)
    if silent_arm(plan, state, at) is not None:
        return Outcome("hold", "no_data")
    if not all(gate_state.proven_safe(gate) for gate, gate_state in gates):
        return Outcome("hold", "insufficient_evidence")
    for gate, gate_state in gates:
        if gate_state.weights_unusable(gate):
            return Outcome("hold", "unequal_weights", gate.name)
    return None


def silent_arm(plan: RolloutPlan, state: RolloutState, at: datetime) -> Arm | None:
    """An arm that has given no score for ``no_data_after``, the canary first."""
    arms: tuple[Arm, Arm] = ("canary", "baseline")
    for arm in arms:
        if at - state.last_at.get(arm, state.started_at) > plan.no_data_after:
            return arm
    return None


def phase(plan: RolloutPlan, state: RolloutState, at: datetime) -> Phase:
    """The analysis in one word: ``inconclusive`` while neither is proven, ``error`` while it cannot be known."""
    outcome = assess(plan, state, at)
    if outcome.action == "rollback":
        return "failed"
    if outcome.action == "advance":
        return "successful"
    return "inconclusive" if outcome.cause == "insufficient_evidence" else "error"
