"""The outbox: what is owed to the outside, committed with the decision or alert that it tells of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, and_, exists, literal_column, or_, select, update

from evalpipe.notification import ALERT_FIRING, ALERT_RESOLVED, ROLLBACK, Notification
from evalpipe.store.sql import Transaction, storable
from evalpipe.store.tables import deliveries, endpoints, outbox

# Written out: with a parameter SQLite does not see that an index is for these alone.
_PENDING: Final[ColumnElement[str]] = literal_column("'pending'")
ALERTS: Final = (ALERT_FIRING, ALERT_RESOLVED)
"""The letters that tell of alerts."""
_URGENT: Final[ColumnElement[bool]] = outbox.c.urgent == literal_column("1")


class Lane(NamedTuple):
    """The letters of one channel that are sent one after another; what is urgent has a lane of its own."""

    channel: str
    urgent: bool


@dataclass(frozen=True, slots=True)
class Letter:
    """One notification for one channel; every attempt sends the same bytes under the same id.

    Attributes:
        seq: of a decision, its number in the rollout; None of anything else.
        urgent: 1 if it takes a canary out of traffic, else 0.
        attempts: made so far, this one included.
        schedule_start: attempts before the present schedule; more than 0 after a redelivery by hand.
    """

    event_id: str
    type: str
    subject: str
    channel: str
    body: bytes
    seq: int | None
    urgent: int
    attempts: int
    schedule_start: int
    fence: int
    created_at: datetime


def post(tx: Transaction, notification: Notification, channel: str, body: bytes) -> None:
    """Owe a notification to a channel; the same one a second time changes nothing, and neither does an empty body."""
    if not body:
        return
    seq = notification.data.get("seq")
    row = {
        "event_id": notification.event_id,
        "type": notification.type,
        "subject": notification.subject,
        "channel": channel,
        "body": body,
        "seq": seq if isinstance(seq, int) else None,
        "urgent": int(notification.urgent),
        "next_attempt_at": notification.at,
        "created_at": notification.at,
    }
    if tx.insert_new(outbox, [row]) and notification.type in ALERTS:
        # What still waits of the same alerts goes first, so that the other side hears of them in their order.
        tx.connection.execute(
            update(outbox)
            .where(outbox.c.channel == channel, outbox.c.subject == notification.subject)
            .where(outbox.c.state == _PENDING, outbox.c.type.in_(ALERTS))
            .where(outbox.c.next_attempt_at > notification.at)
            .values(next_attempt_at=notification.at)
        )


def due(tx: Transaction, now: datetime) -> list[Lane]:
    """Where a letter waits to be sent now; what is urgent first."""
    query = select(outbox.c.channel, outbox.c.urgent).where(*_sendable(now)).distinct()
    found = [Lane(channel, bool(urgent)) for channel, urgent in tx.connection.execute(query)]
    return sorted(found, key=lambda lane: (not lane.urgent, lane.channel))


def claim(tx: Transaction, lane: Lane, now: datetime, lease: timedelta) -> Letter | None:
    """Take the oldest letter of a lane that is due and not under another's lease.

    Beside what is urgent a channel has one letter under way at a time, whoever sends: so those of one subject keep
    their order, and a receiver that hangs holds up one deliverer and not all.
    """
    found = (
        select(outbox.c.event_id)
        .where(
            outbox.c.channel == lane.channel,
            outbox.c.urgent == int(lane.urgent),
            *(() if lane.urgent else _in_turn(now)),
            *_sendable(now),
        )
        .order_by(outbox.c.created_at, outbox.c.seq)
        .limit(1)
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    columns = [outbox.c[name] for name in Letter.__slots__]
    statement = (
        update(outbox)
        .where(outbox.c.event_id.in_(select(found.c.event_id)))
        .values(lease_until=now + lease, fence=outbox.c.fence + 1, attempts=outbox.c.attempts + 1)
        .returning(*columns)
    )
    row = tx.connection.execute(statement).mappings().first()
    return Letter(**row) if row is not None else None


def record_attempt(tx: Transaction, letter: Letter, at: datetime, delivery: Any, next_at: datetime | None) -> None:
    """Log an attempt and settle the letter: delivered, to be tried at ``next_at``, or dead with the reason."""
    error = storable(delivery.error)
    row = {
        "event_id": letter.event_id,
        "attempt": letter.attempts,
        "at": at,
        "status": delivery.status,
        "ok": int(delivery.ok),
        "error": error,
        "elapsed_ms": delivery.elapsed_ms,
    }
    tx.insert_new(deliveries, [row])
    values: dict[str, Any] = {"lease_until": None, "reason": error}
    if delivery.ok:
        values |= {"state": "delivered", "delivered_at": at}
    elif next_at is None:
        values |= {"state": "dead"}
    else:
        values |= {"next_attempt_at": next_at}
    settle(tx, letter, values)


def withdraw(tx: Transaction, letter: Letter, now: datetime) -> bool:
    """Before an attempt: give the letter up as overtaken if one that counts more is owed, or was sent."""
    newest = _newest(tx, letter)
    if newest is None:
        return False
    settle(tx, letter, {**_overtaken(newest), "attempts": letter.attempts - 1})
    if letter.attempts > 1:  # whoever made the earlier attempt may have died in the midst of it
        _renew(tx, newest, now)
    return True


def make_up(tx: Transaction, letter: Letter, delivery: Any, now: datetime) -> None:
    """After an attempt: if a letter that overtakes this one came in meanwhile, that one has the last word.

    What an attempt did, or may still do, can come after what the newer letter did: so the newer one is sent once more,
    and this one is not tried again.
    """
    newest = _newest(tx, letter)
    if newest is None:
        return
    if not delivery.ok:
        settle(tx, letter, _overtaken(newest))
    _renew(tx, newest, now)


def bury(tx: Transaction, now: datetime) -> int:
    """Give up what waits for channels that are disabled, redeliveries by hand aside; returns how many letters."""
    statement = (
        update(outbox)
        .where(outbox.c.state == _PENDING, outbox.c.by_hand == 0, _free(now), _is_disabled())
        .values(
            state="dead",
            reason="not sent, because the channel is disabled: 'evalpipe deliveries endpoints' says why",
        )
        .returning(outbox.c.event_id)
    )
    return len(tx.connection.execute(statement).all())


def redeliver(tx: Transaction, event_ids: Sequence[str], now: datetime) -> int:
    """Owe these notifications again, from the first attempt's schedule, to a channel that is disabled too."""
    statement = (
        update(outbox)
        .where(outbox.c.event_id.in_(event_ids))
        .values(state="pending", next_attempt_at=now, lease_until=None, schedule_start=outbox.c.attempts, by_hand=1)
        .returning(outbox.c.event_id)
    )
    return len(tx.connection.execute(statement).all())


def missed(tx: Transaction, since: datetime, channel: str = "") -> list[str]:
    """The ids of what was given up, of notifications made from ``since`` on."""
    query = select(outbox.c.event_id).where(outbox.c.state == "dead", outbox.c.created_at >= since)
    if channel:
        query = query.where(outbox.c.channel == channel)
    return list(tx.connection.scalars(query.order_by(outbox.c.created_at, outbox.c.seq)))


class Unheard(NamedTuple):
    """Something urgent that ``channel`` has not delivered, nor any later decision of the rollout.

    Attributes:
        subject, seq: of the decision.
        at: when it was decided.
        disabled: the channel is.
        elsewhere: another channel has delivered it, or a later decision.
    """

    subject: str
    seq: int | None
    channel: str
    at: datetime
    disabled: bool
    elsewhere: bool


def undelivered(tx: Transaction, before: datetime, without: Iterable[str]) -> list[Unheard]:
    """What is urgent, was decided up to ``before``, and has not arrived; channels in ``without`` do not count."""
    heard = outbox.alias("heard")
    told = heard.c.subject == outbox.c.subject, heard.c.seq >= outbox.c.seq, heard.c.delivered_at.isnot(None)
    mine = exists().where(*told, heard.c.channel == outbox.c.channel)
    elsewhere = exists().where(*told, heard.c.channel != outbox.c.channel, heard.c.channel.not_in(list(without)))
    columns = [outbox.c[name] for name in ("subject", "seq", "channel")]
    query = (
        select(
            *columns, outbox.c.created_at.label("at"), _is_disabled().label("disabled"), elsewhere.label("elsewhere")
        )
        .where(_URGENT, outbox.c.delivered_at.is_(None), outbox.c.state != "overtaken")
        .where(outbox.c.created_at <= before, outbox.c.channel.not_in(list(without)), ~mine)
        .order_by(outbox.c.subject, outbox.c.seq, outbox.c.channel)
    )
    return [Unheard(**row) for row in tx.connection.execute(query).mappings()]


def listing(tx: Transaction, limit: int = 50, *, state: str = "", channel: str = "") -> list[dict[str, Any]]:
    """The newest letters with their attempts, without the bodies."""
    columns = [c for c in outbox.c if c.name not in {"body", "fence", "lease_until", "by_hand", "schedule_start"}]
    query = select(*columns).order_by(outbox.c.created_at.desc(), outbox.c.seq.desc()).limit(limit)
    for name, value in {"state": state, "channel": channel}.items():
        if value:
            query = query.where(outbox.c[name] == value)
    return [dict(row) for row in tx.connection.execute(query).mappings()]


def story(tx: Transaction, event_id: str) -> dict[str, Any] | None:
    """One letter with its body and every attempt; None if there is none of that id."""
    row = tx.connection.execute(select(outbox).where(outbox.c.event_id == event_id)).mappings().first()
    if row is None:
        return None
    query = select(deliveries).where(deliveries.c.event_id == event_id).order_by(deliveries.c.attempt)
    attempts = [
        {"attempt": a.attempt, "at": a.at, "ok": bool(a.ok), "status": a.status, "error": a.error,
         "elapsed_ms": a.elapsed_ms}
        for a in tx.connection.execute(query)
    ]  # fmt: skip
    told = {name: value for name, value in row.items() if name not in {"fence", "lease_until", "schedule_start"}}
    return {**told, "by_hand": bool(row["by_hand"]), "tried": attempts}


def _sendable(now: datetime) -> tuple[ColumnElement[bool], ...]:
    return (
        outbox.c.state == _PENDING,
        outbox.c.next_attempt_at <= now,
        _free(now),
        or_(outbox.c.by_hand == 1, ~_is_disabled()),
    )


def _free(now: datetime) -> ColumnElement[bool]:
    return or_(outbox.c.lease_until.is_(None), outbox.c.lease_until < now)


def _is_disabled() -> ColumnElement[bool]:
    return exists().where(endpoints.c.channel == outbox.c.channel, endpoints.c.disabled_at.isnot(None))


def _in_turn(now: datetime) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    other, older = outbox.alias("other"), outbox.alias("older")
    under_way = exists().where(
        other.c.channel == outbox.c.channel,
        other.c.state == _PENDING,
        other.c.urgent == 0,
        other.c.lease_until >= now,
    )
    # Two deliverers that look at the same moment do not see one another's lease, but both see the older letter.
    unnumbered = or_(older.c.seq.is_(None), outbox.c.seq.is_(None))
    before_it = exists().where(
        older.c.channel == outbox.c.channel,
        older.c.subject == outbox.c.subject,
        older.c.state == _PENDING,
        older.c.next_attempt_at <= now,
        or_(older.c.seq < outbox.c.seq, and_(unnumbered, older.c.created_at < outbox.c.created_at)),
    )
    return ~under_way, ~before_it


def _newest(tx: Transaction, letter: Letter) -> Any | None:
    """The newest letter that overtakes this one; None if there is none.

    A later decision of the rollout does. One of another rollout does so too, since a channel that acts has one flag;
    but no other rollout's step may cost a rollback.
    """
    if letter.seq is None:
        return None
    found = _last(tx, letter, outbox.c.subject == letter.subject, outbox.c.seq > letter.seq)
    if found is None and letter.type != ROLLBACK:
        found = _last(tx, letter, outbox.c.subject != letter.subject, outbox.c.created_at > letter.created_at)
    return found


def _last(tx: Transaction, letter: Letter, *where: ColumnElement[bool]) -> Any | None:
    query = (
        select(outbox.c.event_id, outbox.c.subject, outbox.c.seq)
        .where(outbox.c.channel == letter.channel, *where)
        .order_by(outbox.c.created_at.desc(), outbox.c.seq.desc())
        .limit(1)
    )
    return tx.connection.execute(query).first()


def _overtaken(newest: Any) -> dict[str, Any]:
    reason = f"overtaken by decision {newest.seq} of rollout {newest.subject}"
    return {"state": "overtaken", "lease_until": None, "reason": reason}


def _renew(tx: Transaction, newest: Any, now: datetime) -> None:
    """Send the newest letter once more, if it was sent already or is being sent."""
    tx.connection.execute(
        update(outbox)
        .where(outbox.c.event_id == newest.event_id, outbox.c.attempts > 0)
        .values(
            state="pending",
            next_attempt_at=now,
            lease_until=None,
            fence=outbox.c.fence + 1,  # whoever is sending it now does not settle it
            schedule_start=outbox.c.attempts,
        )
    )


def settle(tx: Transaction, letter: Letter, values: dict[str, Any]) -> None:
    """Write the outcome, unless somebody else has taken the letter since."""
    tx.connection.execute(
        update(outbox).where(outbox.c.event_id == letter.event_id, outbox.c.fence == letter.fence).values(**values)
    )
