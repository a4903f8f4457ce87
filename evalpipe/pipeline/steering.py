"""What a rollout's state means for the weights that hooks and flagd split the traffic by."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from evalpipe.rollout.plan import RolloutPlan
from evalpipe.rollout.state import RolloutState
from evalpipe.store import controls
from evalpipe.store.sql import Transaction

UNITS: Final = 10_000
"""All weights together, whatever the split: so units of 0.01 %, and who has the canary keeps it while it grows."""


def weights_of(plan: RolloutPlan, state: RolloutState) -> dict[str, Any]:
    """The weights control of a state: canary first, whole numbers."""
    canary = round((state.percent(plan) or 0.0) * UNITS / 100.0)
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
