"""What a rollout's state means for the weights that hooks and flagd split the traffic by."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from evalpipe.controls import ControlError
from evalpipe.rollout.decision import Decision
from evalpipe.rollout.plan import RolloutPlan
from evalpipe.rollout.state import RolloutState
from evalpipe.store import controls
from evalpipe.store.sql import Transaction

UNITS: Final = 10_000
"""All weights together, whatever the split: so units of 0.01 %, and who has the canary keeps it while it grows."""

log = logging.getLogger("evalpipe")


class Before(NamedTuple):
    """What a fold may change of a rollout, and others have to follow."""

    phase: str
    percent: float | None
    shadowing: bool
    rolled_back: bool

    @classmethod
    def of(cls, plan: RolloutPlan, state: RolloutState) -> Before:
        """As it is now."""
        return cls(state.phase, state.percent(plan), state.shadowing, state.rolled_back)


def weights_of(plan: RolloutPlan, state: RolloutState) -> dict[str, Any]:
    """The weights control of a state: canary first, whole numbers; both arms of a step have at least one unit."""
    percent = state.percent(plan) or 0.0
    canary = min(max(round(percent * UNITS / 100.0), percent > 0.0), UNITS - (percent < 100.0))
    shadow = plan.shadow if state.shadowing else None
    return {
        "weights": {plan.canary: canary, plan.baseline: UNITS - canary},
        "baseline": plan.baseline,
        "sample": plan.sample,
        "shadow": None if shadow is None else {"rate": shadow.rate, "per_minute": shadow.per_minute},
    }


def steer(
    tx: Transaction,
    plan: RolloutPlan,
    state: RolloutState,
    environment: str,
    *,
    reason: str,
    now: datetime,
    more: Mapping[str, Any] | None = None,
) -> bool:
    """Set the plan's weights as the state wants them; whether anything changed. Nothing where others split the traffic.

    Raises:
        ControlError: the weights cannot be set.
    """
    if not plan.weights:
        return False
    given = {**weights_of(plan, state), **(more or {})}
    return controls.steer(tx, plan.service, environment, plan.weights, given, reason=reason, now=now)


def give_back(tx: Transaction, row: Any, *, reason: str, now: datetime) -> None:
    """Take all traffic from the canary of a rollout that nobody watches any more.

    Raises:
        ControlError: the weights cannot be set.
    """
    plan = row["plan"]
    given = {"weights": {plan["canary"]: 0, plan["baseline"]: UNITS}, "baseline": plan["baseline"], "shadow": None}
    controls.steer(tx, row["service"], row["environment"], plan["weights"], given, reason=reason, now=now)


def follow(
    tx: Transaction,
    row: Any,
    plan: RolloutPlan,
    before: Before,
    state: RolloutState,
    decisions: Sequence[Decision],
    now: datetime,
) -> bool:
    """Move the weights as the state wants them now; whether hooks have to hear of it."""
    steered = False
    if before.rolled_back and not state.rolled_back:
        by = next((d for d in decisions if d.cause == "resumed"), decisions[-1])
        place = row.service, row.environment, row.canary
        steered = controls.unlatch(tx, *place, actor=by.actor, reason=by.reason, now=now)
    if (before.percent, before.shadowing) != (state.percent(plan), state.shadowing):
        try:
            steered |= steer(tx, plan, state, row.environment, reason=decisions[-1].reason, now=now)
        except ControlError as error:
            # What is decided is decided: else one control that cannot be set would hold every later rollback back.
            log.error("rollout %s does not move its weights: %s", plan.rollout_id, error)  # noqa: TRY400
    if state.rolled_back and not before.rolled_back:
        reason = next(d.reason for d in reversed(decisions) if d.action == "rollback")
        controls.roll_back(tx, row.service, row.environment, row.canary, reason=reason, now=now)
        steered = True
    return steered
