"""Rollouts, what people ordered of them, and the decisions made."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import and_, delete, func, or_, select, update

from evalpipe.controls import check_who
from evalpipe.errors import ConfigError
from evalpipe.rollout.inputs import Override
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import decisions, rollout_orders, rollout_readings, rollouts

LIVE: Final = ("shadow", "running", "paused")
"""Phases of a rollout that takes evidence."""
ROLLED_BACK: Final = "rolled_back"
SUPERSEDED: Final = "superseded"
AFTER_THE_END: Final[Mapping[str, str]] = {ROLLED_BACK: "resume", "complete": "rollback"}
"""What can still be ordered of a rollout in a phase that takes no evidence."""
NEGLECTED: Final = timedelta(seconds=60)
"""A rollout that waits so long for an evaluation gets none: no worker evaluates, or it cannot."""
UNVERIFIED: Final = ("waiting", "ineffective")
"""Rollbacks of which the meters have yet to show that they took effect."""
STATELESS: Final = tuple(column for column in rollouts.c if column.name != "state")
"""Columns of a rollout but for the large one."""


def running(tx: Transaction, service: str, environment: str) -> list[Any]:
    """The rollouts that take evidence, without their states: a rollback is latched, and needs none."""
    place = rollouts.c.service == service, rollouts.c.environment == environment
    query = select(*STATELESS).where(*place, rollouts.c.phase.in_(LIVE))
    return list(tx.connection.execute(query.order_by(rollouts.c.rollout_id)))


def get(tx: Transaction, rollout_id: str) -> dict[str, Any] | None:
    """A rollout, with ``n_orders``, how many orders wait; None if there is none of that id."""
    row = tx.connection.execute(select(rollouts).where(rollouts.c.rollout_id == rollout_id)).mappings().first()
    return None if row is None else {**row, "n_orders": len(orders(tx, rollout_id))}


def listing(
    tx: Transaction,
    *,
    service: str = "",
    environment: str | None = None,
    phase: str = "",
    live: bool = False,
    limit: int = 100,
) -> list[dict[str, Any]]:
    """The newest rollouts, newest first, without their states."""
    query = select(*STATELESS)
    if service:
        query = query.where(rollouts.c.service == service)
    if environment is not None:
        query = query.where(rollouts.c.environment == environment)
    if phase:
        query = query.where(rollouts.c.phase == phase)
    if live:
        query = query.where(rollouts.c.phase.in_(LIVE))
    query = query.order_by(rollouts.c.started_at.desc(), rollouts.c.rollout_id).limit(limit)
    return [dict(row) for row in tx.connection.execute(query).mappings()]


def known_release(tx: Transaction, release_id: str, **place: str) -> bool:
    """Whether this canary release has, or had, a rollout at a place (columns by name)."""
    same = [rollouts.c[name] == value for name, value in place.items()]
    query = select(rollouts.c.rollout_id).where(*same, rollouts.c.canary_release_id == release_id).limit(1)
    return tx.connection.execute(query).first() is not None


def open_rollout(tx: Transaction, values: Mapping[str, Any]) -> tuple[bool, tuple[str, ...]]:
    """Start a rollout unless it is there: whether it was started now, and the rollouts that it supersedes.

    These are the live ones of the same service, environment and scorecard: a new canary has replaced theirs. That
    calls of this canary must have ended, since it was rolled back before, is no longer asked.
    """
    if not tx.insert_new(rollouts, [values]):
        return False, ()
    same = [rollouts.c[name] == values.get(name, "") for name in ("service", "environment", "scorecard")]
    older = update(rollouts).where(*same, rollouts.c.rollout_id != values["rollout_id"], rollouts.c.phase.in_(LIVE))
    ended = older.values(phase=SUPERSEDED, updated_at=values["updated_at"]).returning(rollouts.c.rollout_id)
    superseded = tuple(sorted(tx.connection.scalars(ended)))
    if superseded:
        tx.connection.execute(delete(rollout_readings).where(rollout_readings.c.rollout_id.in_(superseded)))
    release_id = values.get("canary_release_id", "")
    again = [rollouts.c[name] == values.get(name, "") for name in ("service", "environment", "canary")]
    again += [rollouts.c.canary_release_id == release_id] if release_id else []
    unsure = update(rollouts).where(*again, rollouts.c.verified.in_(UNVERIFIED))
    tx.connection.execute(unsure.values(verified="unknown"))
    return True, superseded


def bind_release(tx: Transaction, rollout_id: str, release_id: str) -> None:
    """From now on the canary is this release; the first that is seen, where nobody named one."""
    mine = rollouts.c.rollout_id == rollout_id, rollouts.c.canary_release_id == ""
    tx.connection.execute(update(rollouts).where(*mine).values(canary_release_id=release_id))


def due(tx: Transaction, now: datetime) -> list[str]:
    """Rollouts that may have something to fold: new evidence or readings, orders, or their time has come."""
    news = rollouts.c.evidence_seq > rollouts.c.folded_seq
    measured = rollouts.c.rollout_id.in_(select(rollout_readings.c.rollout_id))
    live = and_(rollouts.c.phase.in_(LIVE), or_(news, rollouts.c.due_at <= now, measured))
    waiting = select(rollout_orders.c.rollout_id).where(rollout_orders.c.folded_at.is_(None))
    query = select(rollouts.c.rollout_id).where(or_(live, rollouts.c.rollout_id.in_(waiting)))
    return list(tx.connection.scalars(query.order_by(rollouts.c.rollout_id)))


def unattended(tx: Transaction, now: datetime) -> list[str]:
    """Rollouts that somebody should have looked at ``NEGLECTED`` ago: by their time, or for an order."""
    before = now - NEGLECTED
    live = select(rollouts.c.rollout_id).where(rollouts.c.phase.in_(LIVE), rollouts.c.due_at < before)
    given = rollout_orders.c.folded_at.is_(None), rollout_orders.c.at < before
    return sorted(tx.connection.scalars(live.union(select(rollout_orders.c.rollout_id).where(*given))))


def unattended_words(rollout_ids: Sequence[str]) -> str:
    """What is to be said of those that are."""
    more = f" and {len(rollout_ids) - 1} more" if len(rollout_ids) > 1 else ""
    return (
        f"rollout {rollout_ids[0]!r}{more} has waited {NEGLECTED.total_seconds():.0f} s for an evaluation, with its "
        "evidence and orders: does a worker serve 'evaluate', and what does its log say?"
    )


def lock(tx: Transaction, rollout_id: str) -> Any | None:
    """The rollout, for this evaluator alone until the transaction ends; None if another has it.

    The row itself is not locked: it is what gives evidence its order, so ingest would stand still, and under load keep
    every evaluator out.
    """
    if tx.is_postgresql:
        key = func.hashtextextended(f"evalpipe.rollout:{rollout_id}", 0)
        if not tx.connection.scalar(select(func.pg_try_advisory_xact_lock(key))):
            return None
    return tx.connection.execute(select(rollouts).where(rollouts.c.rollout_id == rollout_id)).first()


def save(tx: Transaction, row: Any, values: Mapping[str, Any], now: datetime) -> bool:
    """Write the state of a rollout that this transaction has locked; False if it was superseded meanwhile."""
    mine = rollouts.c.rollout_id == row.rollout_id, rollouts.c.phase == row.phase
    return tx.connection.execute(update(rollouts).where(*mine).values(updated_at=now, **values)).rowcount == 1


def put_off(tx: Transaction, rollout_id: str, due_at: datetime) -> None:
    """Nothing changed: look again then."""
    tx.connection.execute(update(rollouts).where(rollouts.c.rollout_id == rollout_id).values(due_at=due_at))


def order(tx: Transaction, rollout_id: str, override: Override, *, order_id: str = "") -> str:
    """Have an order wait for the next evaluation, which makes it a decision; returns its id.

    Args:
        tx: the transaction.
        rollout_id: of what.
        override: the order.
        order_id: one that was given already changes nothing; by default it follows from the order and its time.

    Raises:
        ConfigError: there is no such rollout, it takes no such order any more, another has taken its place, or actor or
            reason is missing.
    """
    where = f"rollout {rollout_id!r}"
    actor, reason = check_who(where, override.actor, override.reason, needs_reason=True)
    row = tx.connection.execute(select(*STATELESS).where(rollouts.c.rollout_id == rollout_id)).first()
    if row is None:
        raise ConfigError(f"{where}: there is none; 'evalpipe rollout list' shows those that there are")
    phase = row.phase
    if phase not in LIVE and override.action != AFTER_THE_END.get(phase):
        advice = "only 'resume' leaves a rollback" if phase == ROLLED_BACK else "it has ended: start a new one"
        raise ConfigError(f"{where} is {phase.replace('_', ' ')} and takes no {override.action!r}; {advice}")
    if phase not in LIVE and (heir := _heir(tx, row)):
        raise ConfigError(
            f"{where} is {phase.replace('_', ' ')}, and rollout {heir!r} has taken its place: order it of that one"
        )
    parts = rollout_id, override.action, actor, reason, override.at.isoformat()
    order_id = order_id or "ord_" + hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:20]
    values = {
        "order_id": order_id,
        "rollout_id": rollout_id,
        "action": override.action,
        "actor": actor,
        "reason": reason,
        "at": override.at,
        "expires_at": override.expires_at,
    }
    tx.insert_new(rollout_orders, [values])
    return order_id


def _heir(tx: Transaction, row: Any) -> str:
    """The live rollout of the same scorecard, or that moves the same weights, since this one ended; "" for none."""
    weights = row.plan["weights"]
    for other in running(tx, row.service, row.environment):
        if other.scorecard == row.scorecard or (weights and other.plan["weights"] == weights):
            return str(other.rollout_id)
    return ""


def orders(tx: Transaction, rollout_id: str, *, waiting: bool = True) -> list[dict[str, Any]]:
    """What was ordered of a rollout, oldest first; only what waits to be folded, or all."""
    query = select(rollout_orders).where(rollout_orders.c.rollout_id == rollout_id)
    if waiting:
        query = query.where(rollout_orders.c.folded_at.is_(None))
    query = query.order_by(rollout_orders.c.at, rollout_orders.c.order_id)
    return [dict(row) for row in tx.connection.execute(query).mappings()]


def close_orders(tx: Transaction, order_ids: Sequence[str], now: datetime) -> None:
    """They are folded, or void because their rollout has ended."""
    if order_ids:
        statement = update(rollout_orders).where(rollout_orders.c.order_id.in_(order_ids))
        tx.connection.execute(statement.values(folded_at=now))


def to_verify(tx: Transaction) -> list[Any]:
    """Rollouts whose rollback the meters have yet to show."""
    query = select(*STATELESS).where(rollouts.c.verified.in_(UNVERIFIED))
    return list(tx.connection.execute(query.order_by(rollouts.c.rollout_id)))


def set_verified(tx: Transaction, row: Any, verified: str, at: datetime | None = None) -> bool:
    """Note whether a rollback took effect; False if another has changed it, or a human has resumed the rollout."""
    mine = (
        rollouts.c.rollout_id == row.rollout_id,
        rollouts.c.verified == row.verified,
        rollouts.c.rolled_back_at == row.rolled_back_at,
    )
    changed = update(rollouts).where(*mine).values(verified=verified, verified_at=at)
    return tx.connection.execute(changed).rowcount == 1


def add_decision(tx: Transaction, values: Mapping[str, Any]) -> bool:
    """Append a decision; False if it is already there."""
    return bool(tx.insert_new(decisions, [values]))


def list_decisions(tx: Transaction, *, rollout_id: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
    """The newest decisions, oldest of them first."""
    query = select(decisions).order_by(decisions.c.decided_at.desc(), decisions.c.seq.desc()).limit(limit)
    if rollout_id is not None:
        query = query.where(decisions.c.rollout_id == rollout_id)
    return [dict(row) for row in tx.connection.execute(query).mappings()][::-1]
