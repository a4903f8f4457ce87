"""A rollout as people and programs are shown it, and how one is begun and ordered about: for the doors, all alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from evalpipe.errors import ConfigError
from evalpipe.pipeline.canary_answer import BACK, state_of
from evalpipe.pipeline.start_rollout import Started, id_of, start
from evalpipe.release import Release
from evalpipe.rollout.from_policy import plan_of
from evalpipe.rollout.inputs import Override, OverrideAction
from evalpipe.rollout.plan import RolloutPlan
from evalpipe.scorecard.default_gates import policy_of
from evalpipe.scorecard.model import Scorecard
from evalpipe.scorecard.rollout import RolloutPolicy
from evalpipe.store import canaries, rollouts
from evalpipe.store.sql import Transaction

ACTIONS: Final[tuple[OverrideAction, ...]] = ("advance", "rollback", "freeze", "resume", "abort")
HOLDS_FOR: Final = timedelta(hours=1)
"""How long an order waits to be folded, and how long a freeze lasts, unless somebody says otherwise."""
LONGEST: Final = timedelta(days=30)
_SHOWN: Final = (
    "rollout_id", "service", "environment", "scorecard", "scorecard_version", "baseline", "canary",
    "canary_release_id", "phase", "step", "percent", "plan", "actor", "reason", "evidence_seq", "folded_seq",
    "decision_seq", "started_at", "updated_at", "rolled_back_at", "verified", "verified_at",
)  # fmt: skip


def listed(tx: Transaction, rows: Sequence[Mapping[Any, Any]]) -> list[dict[str, Any]]:
    """Rows of rollouts, each with its newest decision under ``decision``, None before the first."""
    newest = canaries.newest_decisions(tx, [row["rollout_id"] for row in rows])
    return [{name: row[name] for name in _SHOWN} | {"decision": newest.get(row["rollout_id"])} for row in rows]


def view(tx: Transaction, rollout_id: str, *, decisions: int = 100) -> dict[str, Any] | None:
    """All that is known of a rollout; None if there is none of that id.

    Beside the row there are ``gates``, where each stands by now; ``steps`` of the ramp, each ``done``, ``now``,
    ``ended`` (there, before it went back to the baseline) or ``ahead``; ``decisions`` and ``orders``,
    newest first; and ``frozen_until``.
    """
    row = rollouts.get(tx, rollout_id)
    if row is None:
        return None
    plan = RolloutPlan.from_dict(row["plan"])
    state, _ = state_of(row, plan)
    log = rollouts.list_decisions(tx, rollout_id=rollout_id, limit=decisions)
    (base,) = listed(tx, [row])
    return base | {
        "frozen_until": None if state is None else state.frozen_until,
        "gates": [] if state is None else [gate.numbers() for gate in state.gates.values()],
        "steps": _steps(row, plan),
        "decisions": sorted(log, key=lambda decision: -decision["seq"]),
        "orders": rollouts.orders(tx, rollout_id, waiting=False)[::-1],
    }


def begin(
    tx: Transaction,
    card: Scorecard,
    *,
    policy: RolloutPolicy | None = None,
    service: str,
    environment: str = "",
    canary_release_id: str = "",
    rollout_id: str = "",
    actor: str,
    reason: str,
    now: datetime,
) -> tuple[Started, RolloutPlan]:
    """Start a rollout that somebody wants, by the scorecard's own policy or another one.

    Raises:
        ConfigError: the scorecard has no rollout and no policy is given, its alphas cannot be split, another rollout
            moves the same weights, or as ``environment_of``.
        ControlError: the weights' name or a variant cannot be used.
    """
    plan = planned(card, policy, service=service, canary_release_id=canary_release_id, rollout_id=rollout_id, now=now)
    started = start(
        tx,
        plan,
        scorecard=card.name,
        scorecard_version=card.version,
        environment=environment_of(tx, service, environment),
        canary_release_id=canary_release_id,
        match=card.match,
        actor=actor,
        reason=reason,
        now=now,
    )
    return started, plan


def environment_of(tx: Transaction, service: str, given: str = "") -> str:
    """Where a rollout of a service is to be: as given, else where its traffic comes from, else what hooks say unasked.

    Raises:
        ConfigError: its traffic comes from several environments, and none is given.
    """
    there = [given] if given else canaries.environments(tx, service) or [Release().environment]
    if len(there) > 1:
        named = ", ".join(map(repr, there))
        raise ConfigError(f"service {service!r} has traffic in several environments ({named}): say which one you mean")
    return there[0]


def planned(
    card: Scorecard,
    policy: RolloutPolicy | None = None,
    *,
    service: str,
    canary_release_id: str = "",
    rollout_id: str = "",
    now: datetime,
) -> RolloutPlan:
    """The plan of a rollout that is to begin now.

    Raises:
        ConfigError: as ``begin``.
    """
    used = card.model_copy(update={"rollout": policy}) if policy is not None else card
    if used.rollout is None:
        raise ConfigError(
            f"scorecard {card.name!r} declares no rollout: write 'rollout:' into it, or give a policy of its own"
        )
    begun = getattr(policy, "name", "") or f"{service}-{used.rollout.canary}-{card.name}"
    named = rollout_id or id_of(begun, canary_release_id[:8] or f"{now:%Y%m%d-%H%M%S}")
    try:
        return plan_of(policy_of(used), rollout_id=named, service=service)
    except ValueError as error:
        raise ConfigError(f"rollout {named!r}: {error}") from None


def ordered(
    tx: Transaction,
    rollout_id: str,
    action: OverrideAction,
    *,
    actor: str,
    reason: str,
    holds_for: timedelta = HOLDS_FOR,
    order_id: str = "",
    now: datetime,
) -> dict[str, Any]:
    """Store what somebody orders; the next evaluation makes it a decision.

    Raises:
        ConfigError: there is no such rollout, it takes no such order, actor or reason is missing, or the order would
            hold for no time or for longer than ``LONGEST``.
    """
    if not timedelta(0) < holds_for <= LONGEST:
        raise ConfigError(f"an order holds for more than 0 s and at most {LONGEST.days} days, not {holds_for}")
    override = Override(action, actor, reason, now, now + holds_for)
    order_id = rollouts.order(tx, rollout_id, override, order_id=order_id)
    return next(o for o in rollouts.orders(tx, rollout_id, waiting=False) if o["order_id"] == order_id)


def _steps(row: Mapping[str, Any], plan: RolloutPlan) -> list[dict[str, Any]]:
    """The ramp, with 100 % as its end."""
    if not plan.steps:
        return []
    at = {"complete": len(plan.steps), "shadow": -1}.get(row["phase"], row["step"])
    found: list[dict[str, Any]] = [
        {"percent": step.percent, "bake_s": step.bake.total_seconds(), "min_canary": step.min_canary,
         "enough": step.enough}
        for step in plan.steps
    ]  # fmt: skip
    found.append({"percent": 100.0, "bake_s": None, "min_canary": None, "enough": None})
    here = "ended" if row["phase"] in BACK else "now"
    return [{**step, "state": "done" if i < at else here if i == at else "ahead"} for i, step in enumerate(found)]
