"""Rollouts begin here: by a person, by a change event, or by the first record of a canary.

Rollout, control and everything else that follows is one transaction; whoever commits it publishes the control document
afterwards, where the rollout is steered.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from redis import RedisError

from evalpipe.controls import EVALPIPE
from evalpipe.errors import ConfigError
from evalpipe.hook.message import task_message
from evalpipe.pipeline.steering import give_back, steer
from evalpipe.rollout.from_policy import plan_of
from evalpipe.rollout.plan import RolloutPlan
from evalpipe.rollout.state import RolloutState
from evalpipe.scorecard.default_gates import policy_of
from evalpipe.scorecard.model import Match, Scorecard
from evalpipe.store import controls, rollouts
from evalpipe.store.baseline import calibrated
from evalpipe.store.queue import Queue
from evalpipe.store.sql import Transaction

EVALUATE: Final = "evaluate"
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,199}")

log = logging.getLogger("evalpipe")


@dataclass(frozen=True, slots=True)
class Started:
    """What came of a start.

    Attributes:
        new: False where this rollout was there already, and nothing changed.
        superseded: rollouts that it ended.
        steered: the service's control document changed: publish it after the commit.
    """

    rollout_id: str
    new: bool = True
    superseded: tuple[str, ...] = ()
    steered: bool = False


def start(
    tx: Transaction,
    plan: RolloutPlan,
    *,
    scorecard: str,
    scorecard_version: str = "",
    environment: str = "",
    canary_release_id: str = "",
    features: Sequence[str] = (),
    match: Match | None = None,
    actor: str = EVALPIPE,
    reason: str = "",
    now: datetime,
) -> Started:
    """Start a rollout, unless one of this id was started before.

    It ends the live ones of the same service, environment and scorecard, and its gates learn what is known of the
    baseline. Where its plan has weights, they are set as its first step wants them; that a canary of this name was
    rolled back before no longer holds: this is another one.

    Args:
        tx: the transaction.
        plan: of the rollout.
        scorecard: whose scores are its evidence.
        scorecard_version: as of now.
        environment: of both releases.
        canary_release_id: the exact canary; "" for the first release of that variant that is seen.
        features: only calls of these are compared, and get the canary; all, if empty.
        match: which traffic the scorecard applies to; all by default.
        actor: who starts it.
        reason: why.
        now: aware UTC.

    Raises:
        ConfigError: the id cannot be used, or another live rollout moves these weights.
        ControlError: the weights' name or a variant cannot be used.
    """
    if not _ID.fullmatch(plan.rollout_id):
        raise ConfigError(
            f"rollout {plan.rollout_id!r}: an id is letters, digits and '._:@-', begins with a letter or digit, and is "
            "no longer than 200: it is part of URLs"
        )
    plan = calibrated(tx, plan, environment, scorecard, now)
    state = RolloutState.start(plan, now)
    scope = {"match": {} if match is None else match.model_dump(mode="json"), "features": list(features)}
    new, superseded = rollouts.open_rollout(
        tx,
        {
            "rollout_id": plan.rollout_id,
            "service": plan.service,
            "environment": environment,
            "scorecard": scorecard,
            "scorecard_version": scorecard_version,
            "baseline": plan.baseline,
            "canary": plan.canary,
            "canary_release_id": canary_release_id,
            "phase": state.phase,
            "scope": scope,
            "percent": state.percent(plan),
            "plan": plan.to_dict(),
            "actor": actor,
            "reason": reason,
            "started_at": now,
            "updated_at": now,
            "due_at": now,
        },
    )
    if not new:
        return Started(plan.rollout_id, new=False)
    why = f"rollout {plan.rollout_id} starts" + (f": {reason}" if reason else "")
    left = _give_back(tx, superseded, plan, why, now)
    if not plan.weights:
        return Started(plan.rollout_id, superseded=superseded, steered=left)
    controls.unlatch(tx, plan.service, environment, plan.canary, actor=actor, reason=why, now=now)
    _check_alone(tx, plan, environment)  # with the lock of the service's controls: of two at once one sees the other
    steer(tx, plan, state, environment, reason=why, now=now, more={"features": list(features)} if features else {})
    return Started(plan.rollout_id, superseded=superseded, steered=True)


def id_of(name: str, last: str) -> str:
    """An id that can be used, of a name as people write them and what makes it unique."""
    usable = re.sub(r"[^A-Za-z0-9._:@-]", "-", name)[:150].lstrip("._:@-")
    return f"{usable or 'rollout'}-{last}"


def start_from_card(
    tx: Transaction,
    card: Scorecard,
    *,
    service: str,
    environment: str,
    release_id: str,
    reason: str,
    now: datetime,
) -> Started | None:
    """Start the rollout that a scorecard declares; None if it declares none, or this release has or had one.

    Its canary serves users already, as others decide: evalpipe does not move the traffic.

    Args:
        tx: the transaction.
        card: the scorecard.
        service: of both releases.
        environment: of both.
        release_id: of the canary.
        reason: why.
        now: aware UTC.

    Raises:
        ConfigError, ControlError: as ``start``.
        ValueError: the policy's alphas cannot be split.
    """
    if card.rollout is None:
        return None
    place = {"service": service, "environment": environment, "scorecard": card.name}
    if rollouts.known_release(tx, release_id, **place):
        return None
    policy = policy_of(card)
    named = id_of(f"{service}-{policy.canary}-{card.name}", release_id[:8])
    plan = plan_of(policy, rollout_id=named, service=service, steps=False)
    return start(
        tx,
        replace(plan, shadow=None),
        scorecard=card.name,
        scorecard_version=card.version,
        environment=environment,
        canary_release_id=release_id,
        match=card.match,
        reason=reason,
        now=now,
    )


def ask(queue: Queue) -> None:
    """Ask for an evaluation now, after the commit of what it is to see. The beat is the backstop, so Redis may fail."""
    try:
        if queue.nudge(EVALUATE):
            name = f"evalpipe.{EVALUATE}"
            message = task_message(
                name, None, message_id=str(uuid.uuid4()), origin="evalpipe", summary="()", headers={}
            )
            queue.push([message])
    except RedisError as error:
        log.warning("no nudge for %s: %s", EVALUATE, error)


def _give_back(tx: Transaction, superseded: Sequence[str], plan: RolloutPlan, why: str, now: datetime) -> bool:
    """Nobody watches the canary of a superseded rollout: unless this one moves its weights, it gets no more traffic."""
    rows = [row for rollout_id in superseded if (row := rollouts.get(tx, rollout_id)) is not None]
    left = [row for row in rows if row["plan"]["weights"] not in {"", plan.weights}]
    for row in left:
        give_back(tx, row, reason=f"superseded: {why}", now=now)
    return bool(left)


def _check_alone(tx: Transaction, plan: RolloutPlan, environment: str) -> None:
    """Of two rollouts that move the same weights, each would undo what the other does."""
    others: list[Any] = [
        row.rollout_id
        for row in rollouts.running(tx, plan.service, environment)
        if row.rollout_id != plan.rollout_id and row.plan["weights"] == plan.weights
    ]
    if others:
        raise ConfigError(
            f"rollout {plan.rollout_id!r}: the weights {plan.weights!r} of {plan.service!r} are moved by rollout "
            f"{others[0]!r}, which is under way: end it ('evalpipe rollout abort {others[0]}'), or name other weights"
        )
