"""A decision: an outcome with its number, its reason and the evidence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Any, Final

from evalpipe.alerts.rules import Severity
from evalpipe.rollout.inputs import Override
from evalpipe.rollout.outcome import Action, Cause, Outcome, assess
from evalpipe.rollout.plan import RolloutPlan
from evalpipe.rollout.reason import reason
from evalpipe.rollout.state import Phase, RolloutState

MACHINE: Final = "evalpipe"
"""Actor of the decisions that no person ordered."""
ORDERED_SEVERITY: Final[Severity] = "SEV3"
"""Of a rollback that a person ordered: somebody is at it already."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One entry of a rollout's decision log.

    Attributes:
        rollout_id, service: what it is about.
        seq: 1, 2, 3 ... within the rollout; a consumer ignores a number below one that it has seen.
        action: advance, hold or rollback. After a rollback only what people order is logged, until one resumes.
        cause: the kind of reason, for programs.
        gate: the gate it is due to; "" if it is due to none alone.
        severity: of the incident that a rollback opens.
        phase: of the rollout from now on.
        from_percent, to_percent: share of units that got the canary, and that should get it from now on; None where
            others split the traffic.
        actor: ``evalpipe``, or the person whose order it is.
        expires_at: of that order; None without one.
        reason: one sentence for people, with the numbers and the key of the configuration.
        evidence: JSON-safe; the numbers of the deciding gate on top and all gates under ``gates``.
        inputs_hash: over the plan and everything folded so far: the same inputs give the same hash. Decisions that
            time caused share it with others, so it is not an identifier; ``decision_id`` is.
        evidence_seq: the newest piece of evidence folded; -1 if there was none yet.
        decided_at: capture time of the evidence that decided, or the clock where something else did; never before
            that of the decision before; aware UTC.
    """

    rollout_id: str
    service: str
    seq: int
    action: Action
    cause: Cause
    gate: str
    severity: Severity
    phase: Phase
    from_percent: float | None
    to_percent: float | None
    actor: str
    expires_at: datetime | None
    reason: str
    evidence: dict[str, Any]
    inputs_hash: str
    evidence_seq: int
    decided_at: datetime

    @property
    def decision_id(self) -> str:
        """Unique, and the same however often it is folded."""
        return f"dec_{self.rollout_id}_{self.seq}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return asdict(self) | {
            "decision_id": self.decision_id,
            "expires_at": None if self.expires_at is None else self.expires_at.isoformat(),
            "decided_at": self.decided_at.isoformat(),
        }


def decide(plan: RolloutPlan, state: RolloutState, at: datetime) -> Decision:
    """The decision that stands at time ``at``; its ``seq`` is that of the newest one in the log.

    After the end it is what ended the rollout.
    """
    action, cause, gate = state.outcome
    outcome = Outcome(action, cause, gate) if state.ended else assess(plan, state, at)  # type: ignore[arg-type]
    return describe(plan, state, outcome, at)


def describe(
    plan: RolloutPlan,
    state: RolloutState,
    outcome: Outcome,
    at: datetime,
    order: Override | None = None,
    said: str = "",
) -> Decision:
    """Put an outcome into words and numbers, before it is carried out: phase and percent are those of now.

    ``order`` is what a person ordered, ``said`` what became of it.
    """
    gates = {name: gate.numbers() for name, gate in state.gates.items()}
    shown = next((gate for gate in plan.gates if gate.name == outcome.gate), plan.gates[0])
    digest = blake2b(f"{plan.plan_hash}|{state.chain.digest()}".encode(), digest_size=16).hexdigest()
    percent = state.percent(plan)
    return Decision(
        rollout_id=plan.rollout_id,
        service=plan.service,
        seq=state.decision_seq,
        action=outcome.action,
        cause=outcome.cause,
        gate=outcome.gate,
        severity=shown.severity if order is None else ORDERED_SEVERITY,
        phase=state.phase,
        from_percent=percent,
        to_percent=percent,
        actor=MACHINE if order is None else order.actor,
        expires_at=None if order is None else order.expires_at,
        reason=said or reason(plan, state, outcome, shown, gates, at),
        evidence={
            "baseline": plan.baseline,
            "canary": plan.canary,
            **gates.get(shown.name, {}),
            "gates": gates,
        },
        inputs_hash=digest,
        evidence_seq=state.evidence_seq,
        decided_at=max(at, state.decided_at),
    )
