"""The outbox: what is owed to the outside, committed with the decision or alert that it tells of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import or_, select, update

from evalpipe.notification import ROLLBACK, Notification
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import deliveries, outbox


@dataclass(frozen=True, slots=True)
class Letter:
    """One notification for one channel; every attempt sends the same bytes under the same id.

    Attributes:
        attempts: made so far, this one included.
        schedule_start: attempts before the present schedule; more than 0 after a redelivery by hand.
    """

    event_id: str
    type: str
    subject: str
    channel: str
    body: bytes
    attempts: int
    schedule_start: int
    fence: int
    created_at: datetime


def post(tx: Transaction, notification: Notification, channel: str, body: bytes) -> None:
    """Owe a notification to a channel; the same one a second time changes nothing."""
    row = {
        "event_id": notification.event_id,
        "type": notification.type,
        "subject": notification.subject,
        "channel": channel,
        "body": body,
        "next_attempt_at": notification.at,
        "created_at": notification.at,
    }
    tx.insert_new(outbox, [row])


def claim(tx: Transaction, limit: int, now: datetime, lease: timedelta) -> list[Letter]:
    """Take letters that are due and not under another's lease: rollbacks first, then the oldest."""
    due = (
        select(outbox.c.event_id)
        .where(
            outbox.c.state == "pending",
            outbox.c.next_attempt_at <= now,
            or_(outbox.c.lease_until.is_(None), outbox.c.lease_until < now),
        )
        .order_by(outbox.c.type != ROLLBACK, outbox.c.created_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    columns = [outbox.c[name] for name in Letter.__slots__]
    statement = (
        update(outbox)
        .where(outbox.c.event_id.in_(select(due.c.event_id)))
        .values(lease_until=now + lease, fence=outbox.c.fence + 1, attempts=outbox.c.attempts + 1)
        .returning(*columns)
    )
    found = [Letter(**row) for row in tx.connection.execute(statement).mappings()]
    return sorted(found, key=lambda letter: (letter.type != ROLLBACK, letter.created_at))


def record_attempt(tx: Transaction, letter: Letter, at: datetime, delivery: Any, next_at: datetime | None) -> None:
    """Log an attempt and settle the letter: delivered, to be tried at ``next_at``, or dead with the reason."""
    row = {
        "event_id": letter.event_id,
        "attempt": letter.attempts,
        "at": at,
        "status": delivery.status,
        "ok": int(delivery.ok),
        "error": delivery.error,
        "elapsed_ms": delivery.elapsed_ms,
    }
    tx.insert_new(deliveries, [row])
    values: dict[str, Any] = {"lease_until": None, "reason": delivery.error}
    if delivery.ok:
        values |= {"state": "delivered", "delivered_at": at}
    elif next_at is None:
        values |= {"state": "dead"}
    else:
        values |= {"next_attempt_at": next_at}
    tx.connection.execute(
        update(outbox).where(outbox.c.event_id == letter.event_id, outbox.c.fence == letter.fence).values(**values)
    )


def redeliver(tx: Transaction, event_ids: Sequence[str], now: datetime) -> int:
    """Owe these notifications again, from the first attempt's schedule."""
    statement = (
        update(outbox)
        .where(outbox.c.event_id.in_(event_ids))
        .values(state="pending", next_attempt_at=now, lease_until=None, schedule_start=outbox.c.attempts)
        .returning(outbox.c.event_id)
    )
    return len(tx.connection.execute(statement).all())


def listing(tx: Transaction, limit: int = 50) -> list[dict[str, Any]]:
    """The newest letters with their attempts, without the bodies."""
    columns = [c for c in outbox.c if c.name not in {"body", "fence", "lease_until"}]
    query = select(*columns).order_by(outbox.c.created_at.desc()).limit(limit)
    return [dict(row) for row in tx.connection.execute(query).mappings()]
