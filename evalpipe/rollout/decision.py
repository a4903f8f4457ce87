"""A decision: an outcome with its number, its reason and the evidence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Any

from evalpipe.alerts.rules import Severity
from evalpipe.rollout.analysis import GateState
from evalpipe.rollout.outcome import Action, Cause, Outcome, assess
from evalpipe.rollout.plan import Gate, RolloutPlan
from evalpipe.rollout.reason import reason
from evalpipe.rollout.state import RolloutState


@dataclass(frozen=True, slots=True)
class Decision:
    """One entry of a rollout's decision log.

    Attributes:
        rollout_id, service: what it is about.
        seq: 1, 2, 3 ... within the rollout; a consumer ignores a number below one that it has seen.
        action: advance, hold or rollback. Rollback is latched: no decision follows it.
        cause: the kind of reason, for programs.
        gate: the gate it is due to; "" if it is due to none alone.
        severity: of the incident that a rollback opens.
        reason: one sentence for people, with the numbers and the key of the configuration.
        evidence: JSON-safe; the numbers of the deciding gate on top and all gates under ``gates``.
        inputs_hash: over the plan and all evidence folded so far: the same inputs give the same hash. Decisions that
            time or health caused share it with others, so it is not an identifier; ``(rollout_id, seq)`` is.
        evidence_seq: the piece of evidence that decided; -1 if there was none yet.
        decided_at: capture time of that evidence, or the clock where time or health decided; aware UTC.
    """

    rollout_id: str
    service: str
    seq: int
    action: Action
    cause: Cause
    gate: str
    severity: Severity
    reason: str
    evidence: dict[str, Any]
    inputs_hash: str
    evidence_seq: int
    decided_at: datetime

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return asdict(self) | {"decided_at": self.decided_at.isoformat()}


def decide(plan: RolloutPlan, state: RolloutState, at: datetime) -> Decision:
    """The decision that stands at time ``at``; its ``seq`` is that of the newest one in the log."""
    return describe(plan, state, assess(plan, state, at), at)


def describe(plan: RolloutPlan, state: RolloutState, outcome: Outcome, at: datetime) -> Decision:
    """Put an outcome into words and numbers."""
    gates = {gate.name: gate_evidence(gate, state.gates[gate.name]) for gate in plan.gates}
    shown = next((gate for gate in plan.gates if gate.name == outcome.gate), plan.gates[0])
    digest = blake2b(f"{plan.plan_hash}|{state.chain}".encode(), digest_size=16).hexdigest()
    return Decision(
        rollout_id=plan.rollout_id,
        service=plan.service,
        seq=state.decision_seq,
        action=outcome.action,
        cause=outcome.cause,
        gate=outcome.gate,
        severity=shown.severity,
        reason=reason(plan, state, outcome, shown, at),
        evidence={
            "baseline": plan.baseline,
            "canary": plan.canary,
            **gates[shown.name],
            "gates": gates,
        },
        inputs_hash=digest,
        evidence_seq=state.last_seq,
        decided_at=at,
    )


def gate_evidence(gate: Gate, state: GateState) -> dict[str, Any]:
    """The numbers of one gate; changes are relative to the baseline, -.05 is five per cent lower."""
    mean_baseline, mean_canary = state.estimate.means
    drops = state.interval.read()
    return {
        "gate": gate.name,
        "criterion": gate.criterion,
        "direction": gate.direction,
        "margin": gate.sign * gate.margin,
        "estimate": state.change(),
        "interval": {
            "low": None if drops.high is None else 0.0 - drops.high,
            "high": None if drops.low is None else 0.0 - drops.low,
            "level": drops.level,
        },
        "e_value": state.harm.e_value,
        "max_e_value": state.harm.max_e_value,
        "threshold": 1.0 / gate.alpha,
        "safe_e_value": state.safe.e_value,
        "max_safe_e_value": state.safe.max_e_value,
        "safe_threshold": 1.0 / gate.promote_alpha,
        "mean_baseline": mean_baseline,
        "mean_canary": mean_canary,
        "matched_baseline": state.estimate.n_baseline,
        "matched_canary": state.estimate.n_canary,
        "n_baseline": state.baseline.scored,
        "n_canary": state.canary.scored,
        "epoch": state.epoch,
        "arms": {"baseline": state.baseline.to_state(), "canary": state.canary.to_state()},
    }
