"""Work: judge calls that are owed. Claimed under a lease, committed under a fencing number.

A worker that lost its lease (it stalled, and another took over) finds that the fence has moved on, and its grades
change nothing. So each work ends once, however often it was tried.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, func, or_, select, update

from evalpipe.store.purse import THINNED
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import grades, records, work


@dataclass(frozen=True, slots=True)
class Work:
    """One judge call that is owed: a criterion of a scorecard version, for a record.

    Attributes:
        weight: of the score to come.
        priority: lower goes first.
        origin: ``ingest`` or ``rescore``.
        lane: ``now``, or ``batch`` for what may wait for a provider's batch.
        fence, attempts: as of the claim.
    """

    record_id: str
    scorecard: str
    scorecard_version: str
    criterion: str
    service: str
    captured_at: datetime
    weight: float
    priority: int
    origin: str = "ingest"
    lane: str = "now"
    fence: int = 0
    attempts: int = 0

    @property
    def work_id(self) -> str:
        """The same for the same debt, so that redelivery owes nothing twice."""
        key = f"{self.record_id}\x1f{self.scorecard_version}\x1f{self.criterion}"
        return hashlib.sha256(key.encode()).hexdigest()[:32]


def add_work(tx: Transaction, owed: Sequence[Work], now: datetime) -> int:
    """Owe these judge calls; those already owed stay as they are. Returns how many are new."""
    rows = [
        {
            "work_id": w.work_id,
            **{name: getattr(w, name) for name in _COPIED},
            "due_at": now,
            "created_at": now,
        }
        for w in owed
    ]
    return len(tx.insert_new(work, rows))


def claim(
    tx: Transaction,
    limit: int,
    now: datetime,
    lease: timedelta,
    *,
    lane: str = "now",
    work_ids: Collection[str] | None = None,
) -> list[Work]:
    """Take up to ``limit`` works of a lane that are due and not under another's lease, most urgent first.

    Works of one record stand together. With ``work_ids`` these are taken, due or not.
    """
    # A common table expression runs once; PostgreSQL may run a subquery again for each row, past the limit.
    due = (
        select(work.c.work_id)
        .where(
            *_free(lane, now),
            work.c.due_at <= now if work_ids is None else work.c.work_id.in_(work_ids),
        )
        .order_by(work.c.priority, work.c.due_at, work.c.record_id)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    statement = (
        update(work)
        .where(work.c.work_id.in_(select(due.c.work_id)))
        .values(lease_until=now + lease, fence=work.c.fence + 1, attempts=work.c.attempts + 1)
        .returning(*(work.c[name] for name in _OF_A_CLAIM))
    )
    found = [Work(**row) for row in tx.connection.execute(statement).mappings()]
    return sorted(found, key=lambda w: (w.priority, w.captured_at, w.record_id))


def put_off(
    tx: Transaction, version: str, criteria: Collection[str], due_at: datetime, reason: str, now: datetime, lane: str
) -> int:
    """Have up to ``MOST_PUT_OFF`` works wait that are due, of these criteria of a scorecard version; returns how many.

    What nobody can be asked for now would else be claimed and given back again and again, before all that is less
    urgent.
    """
    due = (
        select(work.c.work_id)
        .where(
            *_free(lane, now),
            work.c.due_at <= now,
            work.c.scorecard_version == version,
            work.c.criterion.in_(criteria),
        )
        .order_by(work.c.priority, work.c.due_at)
        .limit(MOST_PUT_OFF)
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    statement = update(work).where(work.c.work_id.in_(select(due.c.work_id)))
    return tx.connection.execute(statement.values(due_at=due_at, reason=reason)).rowcount


def call_up(tx: Transaction, reason: str, now: datetime) -> int:
    """Have works that nobody has be due now whose reason begins so; returns how many.

    For what waits until a time that means nothing any more.
    """
    waits = (
        select(work.c.work_id)
        .where(
            work.c.state == "pending",
            _has_no_lease(now),
            work.c.due_at > now,
            work.c.reason.startswith(reason, autoescape=True),
        )
        .with_for_update(skip_locked=True)
        .cte("waits")
    )
    statement = update(work).where(work.c.work_id.in_(select(waits.c.work_id)))
    return tx.connection.execute(statement.values(due_at=now, reason="")).rowcount


def renew(tx: Transaction, held: Iterable[Work], now: datetime, lease: timedelta) -> set[str]:
    """Extend the leases still held; returns the ids of those."""
    return _where_held(tx, held, {"lease_until": now + lease})


def finish(tx: Transaction, done: Iterable[Work]) -> set[str]:
    """Mark works as done; returns the ids of those whose fence still held: only their grades count."""
    return _where_held(tx, done, {"state": "done", "lease_until": None, "reason": ""})


def send(tx: Transaction, items: Iterable[Work], batch_id: str) -> set[str]:
    """Have works wait for a provider's batch; returns the ids of those that were still ours.

    They keep their fence and what they hold of the caps, and need no lease: it is the batch that is looked after.
    """
    held, values = list(items), {"state": "batched", "lease_until": None, "batch_id": batch_id}
    some = [held[start : start + SENT_AT_ONCE] for start in range(0, len(held), SENT_AT_ONCE)]
    return {work_id for part in some for work_id in _where_held(tx, part, values)}


def in_batch(tx: Transaction, batch_id: str, work_ids: Sequence[str] | None, limit: int) -> list[Work]:
    """Works that wait for a batch, locked: all, or these with all others of their records; at most ``limit``."""
    waits = and_(work.c.batch_id == batch_id, work.c.state == "batched")
    query = select(*(work.c[name] for name in _OF_A_CLAIM)).where(waits)
    if work_ids is not None:
        mine = select(work.c.record_id).where(work.c.work_id.in_(work_ids))
        query = query.where(work.c.record_id.in_(mine))
    found = tx.connection.execute(query.order_by(work.c.work_id).limit(limit).with_for_update())
    return [Work(**row) for row in found.mappings()]


def gathered(tx: Transaction, now: datetime, most: int) -> tuple[int, datetime | None]:
    """How many works could be claimed for a batch now, counted up to ``most``, and since when the oldest is due."""
    due = (
        select(work.c.due_at)
        .where(
            work.c.state == "pending",
            work.c.lane == "batch",
            work.c.due_at <= now,
            _has_no_lease(now),
        )
        .order_by(work.c.priority, work.c.due_at)
        .limit(most)
    )
    found = list(tx.connection.scalars(due))
    return len(found), min(found, default=None)


def postpone(
    tx: Transaction, item: Work, due_at: datetime, reason: str, *, refund: bool = False, lane: str = ""
) -> set[str]:
    """Give a work back, to be tried again at ``due_at``; returns its id if it was still ours.

    Args:
        tx: the transaction.
        item: as claimed.
        due_at: aware UTC.
        reason: kept with the work.
        refund: the attempt does not count, for example because the worker shuts down.
        lane: that it goes to; "" for the one that it is in.
    """
    values: dict[str, Any] = {"state": "pending", "due_at": due_at, "lease_until": None, "reason": reason}
    if lane:
        values["lane"] = lane
    if refund:
        values["attempts"] = work.c.attempts - 1
    return _where_held(tx, [item], values)


def shed(tx: Transaction, dropped: Iterable[Work], reason: str) -> set[str]:
    """Leave works undone for want of money, keeping the reason; they can be re-driven, one by one."""
    return _where_held(tx, dropped, {"state": "shed", "lease_until": None, "reason": reason})


def bury(tx: Transaction, dead: Iterable[Work], reason: str) -> set[str]:
    """Give up on works, keeping the reason; they can be re-driven."""
    return _where_held(tx, dead, {"state": "dead", "lease_until": None, "reason": reason})


def lock_dead(tx: Transaction, work_ids: Sequence[str] | None, *, after: str, limit: int) -> list[Work]:
    """The next works that were given up, in the order of their ids, locked for this transaction.

    All dead ones; or these, also where they were shed. Not what chance left out: others weigh more in its stead.
    """
    columns = [work.c[name] for name in _OF_A_CLAIM]
    query = select(*columns).where(work.c.work_id > after)
    if work_ids is None:
        query = query.where(work.c.state == "dead")
    else:
        shed = and_(work.c.state == "shed", work.c.reason.not_like(f"{THINNED}%"))
        query = query.where(work.c.work_id.in_(work_ids), or_(work.c.state == "dead", shed))
    found = tx.connection.execute(query.order_by(work.c.work_id).limit(limit).with_for_update())
    return [Work(**row) for row in found.mappings()]


def dig_up(tx: Transaction, dead: Sequence[Work], now: datetime) -> None:
    """Owe works again that were given up, with all their attempts; votes that were errors are to be cast anew."""
    ids = [w.work_id for w in dead]
    tx.connection.execute(delete(grades).where(grades.c.work_id.in_(ids), grades.c.status == "error"))
    statement = update(work).where(work.c.state.in_(("dead", "shed")), work.c.work_id.in_(ids))
    tx.connection.execute(statement.values(state="pending", due_at=now, attempts=0, reason=""))


def list_dead(tx: Transaction, limit: int) -> list[dict[str, Any]]:
    """Works that were given up, newest first."""
    query = select(work).where(work.c.state == "dead").order_by(work.c.created_at.desc()).limit(limit)
    return [dict(row) for row in tx.connection.execute(query).mappings()]


def pending_of(tx: Transaction, record_ids: Sequence[str]) -> dict[tuple[str, str, str], int]:
    """How many works are still owed, by record, scorecard version and origin.

    Locks the records first, in order: of two transactions that end the last two works of one record, the second must
    see what the first did, or nobody would close the record.
    """
    lock = select(records.c.record_id).where(records.c.record_id.in_(record_ids)).order_by(records.c.record_id)
    tx.connection.execute(lock.with_for_update()).all()
    query = (
        select(work.c.record_id, work.c.scorecard_version, work.c.origin, func.count())
        .where(work.c.record_id.in_(record_ids), work.c.state.in_(OWED))
        .group_by(work.c.record_id, work.c.scorecard_version, work.c.origin)
    )
    return {(record, version, origin): n for record, version, origin, n in tx.connection.execute(query)}


SENT_AT_ONCE = 200
"""SQLite takes no condition of a thousand parts."""
OWED = ("pending", "batched")
"""States of works that have not ended."""
MOST_PUT_OFF = 5_000
"""Works that are put off at once: a transaction of a tenth of a second."""
_COPIED = (
    "record_id", "scorecard", "scorecard_version", "criterion", "service", "captured_at", "weight", "priority",
    "origin", "lane",
)  # fmt: skip
_OF_A_CLAIM = (*_COPIED, "fence", "attempts")


def _free(lane: str, now: datetime) -> tuple[ColumnElement[bool], ...]:
    """Works of a lane that nobody has."""
    return work.c.state == "pending", work.c.lane == lane, _has_no_lease(now)


def _has_no_lease(now: datetime) -> ColumnElement[bool]:
    return or_(work.c.lease_until.is_(None), work.c.lease_until < now)


def _where_held(tx: Transaction, items: Iterable[Work], values: dict[str, Any]) -> set[str]:
    """Change the works that are still held as claimed; their ids."""
    # By fence, of which there are few: a statement that is always the same, and quick to build.
    by_fence: dict[int, list[str]] = {}
    # Whatever becomes of them, the batch that they waited for is over.
    values = {"batch_id": "", **values}
    for item in items:
        by_fence.setdefault(item.fence, []).append(item.work_id)
    changed: set[str] = set()
    for fence, ids in sorted(by_fence.items()):
        held = work.c.state.in_(OWED), work.c.fence == fence, work.c.work_id.in_(sorted(ids))
        changed.update(tx.connection.scalars(update(work).where(*held).values(**values).returning(work.c.work_id)))
    return changed
