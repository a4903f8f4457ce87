"""What people order: each order is a decision in the same log, also where it is refused."""

from __future__ import annotations

from datetime import datetime

from evalpipe.rollout.decision import Decision
from evalpipe.rollout.inputs import Override
from evalpipe.rollout.outcome import Outcome, acting
from evalpipe.rollout.plan import RolloutPlan
from evalpipe.rollout.state import RolloutState
from evalpipe.rollout.turn import carry_out, remark


def obey(plan: RolloutPlan, state: RolloutState, order: Override, now: datetime, log: list[Decision]) -> None:
    """Carry out an order, or say why not."""
    state.chain.add_line(_line(order))
    refusal = _refusal(plan, state, order, now)
    if refusal:
        log.append(remark(plan, state, Outcome("hold", "override"), now, order, _said(order, f"refused: {refusal}")))
    elif order.action == "freeze":
        _freeze(plan, state, order, now, log)
    else:
        outcome, done = _outcome(plan, state, order)
        carry_out(plan, state, outcome, now, log, order, _said(order, done))
    state.due = min(state.due, state.clock)


def _refusal(plan: RolloutPlan, state: RolloutState, order: Override, now: datetime) -> str:
    """Why an order is not followed; "" if it is."""
    if now >= order.expires_at:
        return f"it expired at {order.expires_at:%Y-%m-%d %H:%M:%S} UTC, before it was read"
    if order.action == "resume":
        return "" if state.phase in ("paused", "rolled_back") else f"nothing is frozen or rolled back ({state.phase})"
    if order.action == "rollback" and state.phase == "complete":
        return ""
    if state.ended:
        return f"the rollout is over ({state.phase}){'; resume it first' if state.rolled_back else ''}"
    return _not_further(plan, state) if order.action == "advance" else ""


def _not_further(plan: RolloutPlan, state: RolloutState) -> str:
    """What even a person cannot advance past: proven harm in what the plan guards or aims at."""
    if state.phase == "paused" and state.frozen_until is not None:
        return f"frozen until {state.frozen_until:%Y-%m-%d %H:%M:%S} UTC; resume it first"
    if state.watching:
        return "it has advanced already, and is watched for harm"
    for gate, standing in acting(plan, state):
        if standing.harmed and gate.role != "signal" and gate.kind != "ratio":
            return f"gate {gate.name} has proven harm (rollout.gates.{gate.name}); roll back or abort instead"
    return ""


def _outcome(plan: RolloutPlan, state: RolloutState, order: Override) -> tuple[Outcome, str]:
    if order.action == "rollback":
        return Outcome("rollback", "override"), "rolled back"
    if order.action == "abort":
        return Outcome("hold", "aborted"), f"aborted, all traffic goes back to {plan.baseline}"
    if order.action == "advance":
        return Outcome("advance", "override"), f"advanced past what is missing{_overlooked(plan, state)}"
    if state.phase == "paused":
        return Outcome("hold", "resumed"), "the freeze has ended"
    where = "the shadow phase" if state.began == "shadow" else "the first step"
    raised = state.began == "running" and bool(plan.steps)
    done = f"the rollback is lifted, the rollout begins {where} again without the evidence so far"
    return Outcome("advance" if raised else "hold", "resumed"), done


def _overlooked(plan: RolloutPlan, state: RolloutState) -> str:
    """The findings of signals that an order to advance passes over: they are said, not hidden."""
    found = [gate.name for gate, standing in acting(plan, state) if standing.harmed or standing.obstacle]
    return f" and past what {', '.join(found)} found" if found else ""


def _freeze(plan: RolloutPlan, state: RolloutState, order: Override, now: datetime, log: list[Decision]) -> None:
    state.phase, state.frozen_until = "paused", order.expires_at
    until = f"{order.expires_at:%Y-%m-%d %H:%M:%S} UTC"
    said = _said(order, f"frozen until {until}: nothing advances before, harm still rolls back")
    carry_out(plan, state, Outcome("hold", "frozen"), now, log, order, said)


def _said(order: Override, done: str) -> str:
    return f"{order.actor} ordered {order.action} ({order.reason}): {done}"


def _line(order: Override) -> str:
    times = f"{order.at.isoformat()}|{order.expires_at.isoformat()}"
    return f"override|{order.action}|{order.actor}|{order.reason}|{times}"
