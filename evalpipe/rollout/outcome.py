"""What follows from the state of a rollout. Precedence: rollback, then hold, then advance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from evalpipe.rollout.gates.base import Obstacle, Standing
from evalpipe.rollout.plan import Gate, RolloutPlan
from evalpipe.rollout.state import PAIRED, RolloutState
from evalpipe.stats.matching import Arm

Action = Literal["advance", "hold", "rollback"]
Cause = Literal[
    "harm_proven",
    "catastrophic_harm",
    "confirmed_flag",
    "override",
    "judge_outage",
    "judge_suspect",
    "epochs_differ",
    "missing_scores",
    "no_data",
    "insufficient_evidence",
    "unequal_weights",
    "unconfirmed_flag",
    "sample_ratio",
    "signal_harmed",
    "segment_harmed",
    "baking",
    "frozen",
    "no_harm_seen",
    "no_harm_proven",
    "expired",
    "aborted",
    "resumed",
]
COMPARING: Final = frozenset({"quality", "rate", "cost", "latency"})
"""Kinds whose harm is a change of something; of flags and of the arms' shares it is that they are there."""
Gates = list[tuple[Gate, Standing]]
ARMS: Final[tuple[Arm, Arm]] = ("canary", "baseline")


@dataclass(frozen=True, slots=True)
class Outcome:
    """An action, its cause, and the gate that it is due to ("" if it is due to none alone)."""

    action: Action
    cause: Cause
    gate: str = ""


def assess(plan: RolloutPlan, state: RolloutState, at: datetime) -> Outcome:
    """What follows at time ``at`` while evidence is folded.

    Any guardrail's harm first; then the end of a rollout's time; then the first cause to hold, in the order of
    ``_hold``; only then the next step. A plan without steps that has advanced is only watched for harm.
    """
    if (harm := _harm(plan, state, at)) is not None:
        return harm
    late = at >= state.began_at + plan.max_duration
    if late:
        return Outcome("advance" if state.watching else "hold", "expired")
    if state.watching:
        return Outcome("hold", "frozen") if state.phase == "paused" else Outcome("advance", "no_harm_proven")
    return _hold(plan, state, at) or Outcome(
        "advance", "no_harm_proven" if proof_asked(plan, state) else "no_harm_seen"
    )


def acting(plan: RolloutPlan, state: RolloutState) -> Iterator[tuple[Gate, Standing]]:
    """The gates of this phase that act, with where they stand; a dry run is computed and told, and acts on nothing."""
    for gate in plan.gates:
        standing = state.standings.get(gate.name)
        if standing is not None and not gate.dry_run:
            yield gate, standing


def harm_cause(gate: Gate, standing: Standing) -> Cause:
    """Why a gate is harmed: what it says itself, else by whether it waited for the evidence asked for."""
    if standing.cause:
        return standing.cause
    early = gate.kind in COMPARING and standing.seen < gate.min_canary and not standing.detail
    return "catastrophic_harm" if early else "harm_proven"


def _harm(plan: RolloutPlan, state: RolloutState, at: datetime) -> Outcome | None:
    guardrails = [(gate, standing) for gate, standing in acting(plan, state) if gate.role == "guardrail"]
    for gate, standing in guardrails:
        if standing.harmed:
            return Outcome("rollback", harm_cause(gate, standing), gate.name)
    for gate, standing in guardrails:
        if gate.no_data == "rollback" and _canary_died(plan, state, gate, standing, at):
            return Outcome("rollback", "no_data", gate.name)
    return None


def _canary_died(plan: RolloutPlan, state: RolloutState, gate: Gate, standing: Standing, at: datetime) -> bool:
    """The canary has been heard and gives nothing any more, while the baseline does and nothing else explains it."""
    return (
        state.health.judge == "ok"
        and not standing.obstacle
        and standing.seen >= gate.min_canary
        and heard(state, gate) == ARMS
        and silent_arms(plan, state, gate, at) == ("canary",)
    )


def _hold(plan: RolloutPlan, state: RolloutState, at: datetime) -> Outcome | None:
    """The first cause to hold: what makes the evidence doubtful, then what it has found, then what time will solve."""
    gates = list(acting(plan, state))
    found = _doubtful(plan, state, gates, at) or _found(state, gates)
    if found is not None:
        return found
    if at < bakes_until(plan, state):
        return Outcome("hold", "baking")
    return None if _enough(plan, state, at) else Outcome("hold", "insufficient_evidence")


def _doubtful(plan: RolloutPlan, state: RolloutState, gates: Gates, at: datetime) -> Outcome | None:
    if state.health.judge != "ok":
        return Outcome("hold", "judge_outage" if state.health.judge == "outage" else "judge_suspect")
    if (found := _obstacle(gates, ("epochs_differ", "missing_scores", "unconfirmed_flag"))) is not None:
        return found
    for gate, standing in gates:
        if gate.kind == "ratio" and standing.harmed:
            return Outcome("hold", "sample_ratio", gate.name)
    for gate, _ in gates:
        if gate.no_data != "ignore" and silent_arms(plan, state, gate, at):
            return Outcome("hold", "no_data", gate.name)
    return None


def _found(state: RolloutState, gates: Gates) -> Outcome | None:
    if state.phase == "paused":
        return Outcome("hold", "frozen")
    for gate, standing in gates:
        if standing.harmed:
            return Outcome("hold", "signal_harmed", gate.name)
    return _obstacle(gates, ("segment_harmed", "unequal_weights"))


def _obstacle(gates: Gates, obstacles: tuple[Obstacle, ...]) -> Outcome | None:
    """The first of these obstacles that is in the way of any gate."""
    for obstacle in obstacles:
        for gate, standing in gates:
            if obstacle and standing.obstacle == obstacle:
                return Outcome("hold", obstacle, gate.name)
    return None


def bakes_until(plan: RolloutPlan, state: RolloutState) -> datetime:
    """When the least time of the shadow phase or of this step is over."""
    if plan.shadow is not None and state.shadowing:
        return state.phase_at + plan.shadow.min_duration
    return state.step_at + (plan.steps[state.step].bake if plan.steps else timedelta(0))


def proof_asked(plan: RolloutPlan, state: RolloutState) -> bool:
    """Whether harm must be excluded before the next step, or it is enough that none was seen."""
    return state.shadowing or not plan.steps or plan.steps[state.step].enough == "non_inferior"


def evidence_asked(plan: RolloutPlan, state: RolloutState) -> int:
    """Pairs, or canary values of this step, that each gate must have compared; an advance without any is none."""
    if plan.shadow is not None and state.shadowing:
        return max(1, plan.shadow.min_pairs)
    return max(1, plan.steps[state.step].min_canary) if plan.steps else 1


def asked(plan: RolloutPlan, state: RolloutState, at: datetime) -> list[tuple[Gate, Standing]]:
    """The gates whose evidence an advance waits for.

    Guardrails and objectives; in the shadow phase those that compare pairs, since the others may see nothing of an
    answer that no user waits for; and none whose silence the plan says to ignore.
    """
    gates = [
        (gate, standing)
        for gate, standing in acting(plan, state)
        if gate.role != "signal"
        and gate.kind != "ratio"
        and not (gate.no_data == "ignore" and silent_arms(plan, state, gate, at))
    ]
    pairs = [(gate, standing) for gate, standing in gates if gate.kind in PAIRED]
    return pairs if state.shadowing and pairs else gates


def _enough(plan: RolloutPlan, state: RolloutState, at: datetime) -> bool:
    gates, least = asked(plan, state, at), evidence_asked(plan, state)
    proof = proof_asked(plan, state)
    return bool(gates) and all(
        seen_in_step(state, gate, standing) >= least and (standing.proven or not proof) for gate, standing in gates
    )


def seen_in_step(state: RolloutState, gate: Gate, standing: Standing) -> int:
    """Canary values that a gate has compared since the step began."""
    return standing.seen - state.step_seen.get(gate.name, 0)


def silent_arms(plan: RolloutPlan, state: RolloutState, gate: Gate, at: datetime) -> tuple[Arm, ...]:
    """The arms that have given a gate no value for ``no_data_after``, the canary first."""
    return tuple(arm for arm in heard(state, gate) if at >= silent_from(plan, state, gate, arm))


def heard(state: RolloutState, gate: Gate) -> tuple[Arm, ...]:
    """The arms that a gate must hear of: not for shares; in the shadow phase only where pairs are compared."""
    if gate.kind == "ratio" or (state.shadowing and gate.kind not in PAIRED):
        return ()
    return ("canary",) if gate.pairwise else ARMS


def silent_from(plan: RolloutPlan, state: RolloutState, gate: Gate, arm: Arm) -> datetime:
    """From when on an arm that gives a gate nothing more is silent."""
    track = state.tracks.get(gate.criterion)
    heard = state.phase_at if track is None else track.at.get(arm, state.phase_at)
    return max(heard, state.phase_at) + plan.no_data_after


def wakes_at(plan: RolloutPlan, state: RolloutState, at: datetime) -> datetime:
    """The first time after ``at`` at which time alone may change the outcome."""
    end = state.began_at + plan.max_duration
    times = [bakes_until(plan, state), state.share_at, state.frozen_until, state.calm_at]
    times += [silent_from(plan, state, gate, arm) for gate, _ in acting(plan, state) for arm in heard(state, gate)]
    return min([end, *(time for time in times if time is not None and time > at)])
