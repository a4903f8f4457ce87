"""A policy over recorded scores: the fold that decides in production, on evidence that somebody kept."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice
from operator import attrgetter
from typing import Any, Final

from evalpipe.rollout.decision import Decision, decide
from evalpipe.rollout.fold import fold_into
from evalpipe.rollout.inputs import Batch, Evidence
from evalpipe.rollout.plan import RolloutPlan, Shadow
from evalpipe.rollout.state import RolloutState

CHUNK: Final = 20_000
"""Pieces of evidence folded at once: it changes no decision, and bounds the memory."""
_AT: Final = attrgetter("at")
FOREVER: Final = timedelta(days=36_500)


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What a plan decides on some evidence.

    Attributes:
        decision: rollback if it ever came to that, else the one that stands at the end.
        log: all decisions in their order.
        stale: pieces of evidence of a phase that was over, or that had not begun: no gate took them.
    """

    decision: Decision
    log: tuple[Decision, ...]
    stale: int

    @property
    def numbers(self) -> dict[str, Any]:
        """The numbers of the gate that the decision is due to, or of the first gate."""
        gates: dict[str, dict[str, Any]] = self.decision.evidence["gates"]
        return gates.get(self.decision.gate) or next(iter(gates.values()), {})


def rehearse(plan: RolloutPlan, evidence: Iterator[Evidence], started_at: datetime) -> Rehearsed:
    """Fold all evidence, in the order in which it comes, and say what was decided."""
    state = RolloutState.start(plan, started_at)
    log: list[Decision] = []
    while (chunk := tuple(islice(evidence, CHUNK))) and not state.ended:
        log += fold_into(plan, state, Batch(now=max(map(_AT, chunk)), evidence=chunk))
    return Rehearsed(_standing(plan, state, log), tuple(log), state.stale)


def _standing(plan: RolloutPlan, state: RolloutState, log: Sequence[Decision]) -> Decision:
    """A hold as it is at the end; anything else as it was decided.

    An advance stands where nothing was compared after it: so it does where all the evidence was that of a shadow phase.
    """
    for decision in log:
        if decision.action == "rollback":
            return decision
    advances = [decision for decision in log if decision.action == "advance"]
    if advances and (advances[-1] is log[-1] or not any(standing.seen for standing in state.standings.values())):
        return advances[-1]
    return decide(plan, state, state.clock)


def untimed(plan: RolloutPlan) -> RolloutPlan:
    """The plan where nobody knows the time of anything: nothing has a least duration."""
    steps = tuple(replace(step, bake=timedelta(0)) for step in plan.steps)
    return replace(plan, steps=steps, shadow=plan.shadow and replace(plan.shadow, min_duration=timedelta(0)))


def comparison(plan: RolloutPlan, criteria: Collection[str], *, pairs: bool, expires: bool) -> RolloutPlan | None:
    """The part of a plan that can be judged by evidence of these criteria; None if no gate is left.

    Args:
        plan: as the policy has it.
        criteria: of which there is evidence. Gates on others are left out, and so is a sample ratio that
            nobody expects; it is counted by the first of those that the gates read, if not by its own.
        pairs: whether the evidence has inputs that both arms answered: then, and only then, there is a shadow phase,
            without a least duration where the plan has none.
        expires: whether the rollout ends at its ``max_duration``.
    """
    gates = [gate for gate in plan.gates if gate.criterion in criteria and gate.kind != "ratio"]
    counted = next((gate.criterion for gate in gates), "")
    expected = [gate for gate in plan.gates if gate.kind == "ratio" and (plan.steps or gate.split is not None)]
    ratios = expected if counted else []
    gates += [gate if gate.criterion in criteria else replace(gate, criterion=counted) for gate in ratios]
    if not gates:
        return None
    gates = [gate if gate.control in criteria else replace(gate, control="") for gate in gates]
    shadow = (plan.shadow or Shadow(min_duration=timedelta(0))) if pairs else None
    return replace(plan, gates=tuple(gates), shadow=shadow, max_duration=plan.max_duration if expires else FOREVER)
