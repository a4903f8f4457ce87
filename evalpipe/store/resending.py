"""Letters about alerts: sent again to a channel whose other side forgets, and given up where a newer one arrived."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy import func, or_, select, update

from evalpipe.notification import ALERT_FIRING, ALERT_RESOLVED
from evalpipe.store.outbox import ALERTS, Letter, settle
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import deliveries, outbox


def resend(tx: Transaction, after: Mapping[str, timedelta], now: datetime) -> int:
    """Owe the newest notice of each group that fires again, to these channels; returns how many letters.

    One that could not be delivered is tried at this pace too: its schedule would end after three days, and an alert may
    fire for longer.

    Args:
        tx: the transaction.
        after: by channel, how long after its last attempt a letter is sent again.
        now: aware UTC.
    """
    return sum(_resend(tx, channel, now - wait, now) for channel, wait in after.items())


def outlived(tx: Transaction, letter: Letter, *, by_episode: bool = False) -> bool:
    """Before an attempt: give an alert's letter up if a newer one of its group was delivered.

    It waited for its next attempt while that one went out: the other side would take what is over for what fires, or,
    unless it tells episodes apart, what fires for what is over.
    """
    if letter.type != ALERT_FIRING and (by_episode or letter.type != ALERT_RESOLVED):
        return False
    query = (
        select(outbox.c.event_id)
        .where(outbox.c.channel == letter.channel, outbox.c.subject == letter.subject, outbox.c.type.in_(ALERTS))
        .where(outbox.c.created_at > letter.created_at, outbox.c.state == "delivered")
        .limit(1)
    )
    found = tx.connection.scalar(query)
    if found is not None:
        values = {"state": "overtaken", "lease_until": None, "reason": f"overtaken by {found} of the same alerts"}
        settle(tx, letter, {**values, "attempts": letter.attempts - 1})
    return found is not None


def _resend(tx: Transaction, channel: str, before: datetime, now: datetime) -> int:
    newest = (
        select(
            outbox.c.event_id,
            outbox.c.type,
            func.row_number()
            .over(partition_by=outbox.c.subject, order_by=(outbox.c.created_at.desc(), outbox.c.type.desc()))
            .label("place"),
        )
        .where(outbox.c.channel == channel, outbox.c.type.in_(ALERTS))
        .subquery()
    )
    last = (
        select(func.max(deliveries.c.at, type_=deliveries.c.at.type))
        .where(deliveries.c.event_id == outbox.c.event_id)
        .scalar_subquery()
    )
    statement = (
        update(outbox)
        .where(
            outbox.c.event_id.in_(select(newest.c.event_id).where(newest.c.place == 1, newest.c.type == ALERT_FIRING)),
            last <= before,
            outbox.c.state != "overtaken",
            or_(outbox.c.lease_until.is_(None), outbox.c.lease_until < now),
        )
        .values(state="pending", next_attempt_at=now, lease_until=None, schedule_start=outbox.c.attempts)
        .returning(outbox.c.event_id)
    )
    return len(tx.connection.execute(statement).all())
