"""Carrying out what follows: phases, steps and the log. The only place where a rollout's phase changes."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from evalpipe.rollout.decision import Decision, describe
from evalpipe.rollout.inputs import Override
from evalpipe.rollout.outcome import Outcome, acting, assess, silent_arms, wakes_at
from evalpipe.rollout.plan import RolloutPlan
from evalpipe.rollout.state import RolloutState

QUIET = ("baking", "insufficient_evidence")
"""Holds that only wait: they go without saying before the first evidence, and ``baking`` right after an advance."""
ORDERED = ("frozen", "resumed")
"""Holds that people order: their end is told at once."""
CALM = timedelta(minutes=5)
"""What was in the way has to be gone for so long before the log says that it is: it comes back more often than not."""


def turn(plan: RolloutPlan, state: RolloutState, at: datetime, log: list[Decision]) -> None:
    """See what follows at ``at`` and carry it out; log it if it is another outcome than before."""
    state.clock = at = max(at, state.clock)
    if state.frozen_until is not None and at >= state.frozen_until:
        unfreeze(state)
    if state.share_at is not None and at >= state.share_at:
        state.settle_share(plan)
    state.look()
    outcome = assess(plan, state, at)
    if outcome.cause not in QUIET:
        state.calm_at = None
    if not _said(state, outcome) and not _calming(state, outcome, at):
        carry_out(plan, state, outcome, at, log)
        if outcome.action == "advance" and not state.ended:
            turn(plan, state, at, log)
            return
    state.due = wakes_at(plan, state, at)
    state.silent = frozenset(
        (gate.criterion, arm) for gate, _ in acting(plan, state) for arm in silent_arms(plan, state, gate, at)
    )


def carry_out(
    plan: RolloutPlan,
    state: RolloutState,
    outcome: Outcome,
    at: datetime,
    log: list[Decision],
    order: Override | None = None,
    said: str = "",
) -> None:
    """Log a decision and do what it says."""
    state.decision_seq += 1
    decision = describe(plan, state, outcome, at, order, said)
    state.outcome, state.calm_at = (outcome.action, outcome.cause, outcome.gate), None
    state.decided_at = decision.decided_at
    if outcome.action == "rollback":
        state.phase = "rolled_back"
    elif outcome.cause == "expired":
        state.phase = "complete" if outcome.action == "advance" else "expired"
    elif outcome.cause == "aborted":
        state.phase = "aborted"
    elif outcome.cause == "resumed":
        _resume(plan, state, at)
    elif outcome.action == "advance":
        _advance(plan, state, at)
    log.append(replace(decision, phase=state.phase, to_percent=state.percent(plan)))


def remark(
    plan: RolloutPlan, state: RolloutState, outcome: Outcome, at: datetime, order: Override, said: str
) -> Decision:
    """A decision that changes nothing and leaves the one before standing: an order that was not followed."""
    state.decision_seq += 1
    decision = describe(plan, state, outcome, at, order, said)
    state.decided_at = decision.decided_at
    return decision


def unfreeze(state: RolloutState) -> None:
    """Go on where the freeze began."""
    state.frozen_until = None
    if state.phase == "paused":
        state.phase = state.began


def _said(state: RolloutState, outcome: Outcome) -> bool:
    """Whether the log says so already; each step is news, also where its cause is that of the step before."""
    if outcome.action == "advance":
        return state.watching and state.outcome[0] == "advance" and outcome.cause != "expired"
    if (outcome.action, outcome.cause, outcome.gate) == state.outcome:
        return True
    if state.evidence_seq < 0 and not state.outcome[0]:
        return outcome.cause in QUIET
    return outcome.cause == "baking" and state.outcome[0] == "advance"


def _calming(state: RolloutState, outcome: Outcome, at: datetime) -> bool:
    """Bad news is told at once and its end a while later, so that a judge that comes and goes fills no log."""
    action, cause, _ = state.outcome
    if outcome.cause not in QUIET or action != "hold" or cause in QUIET or cause in ORDERED:
        return False
    if state.calm_at is None:
        state.calm_at = at + CALM
    return at < state.calm_at


def _advance(plan: RolloutPlan, state: RolloutState, at: datetime) -> None:
    if state.shadowing:
        state.begin(plan, "running", at)
    elif not plan.steps:
        state.watching = True
    elif state.step + 1 < len(plan.steps):
        state.enter_step(plan, state.step + 1, at)
    else:
        state.phase = "complete"


def _resume(plan: RolloutPlan, state: RolloutState, at: datetime) -> None:
    """End a freeze; or begin a phase anew that a rollback has ended."""
    if state.phase == "paused":
        unfreeze(state)
        return
    state.began_at = at
    state.begin(plan, state.began, at)
