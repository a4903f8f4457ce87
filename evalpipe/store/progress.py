"""Whether evaluation gets on: the age of the oldest thing that waits, not whether a process is up."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import ColumnElement, Select, and_, func, or_, select

from evalpipe.store.sql import Transaction
from evalpipe.store.tables import dead_letters, outbox, records, work

GATHERING: Final = timedelta(hours=1)
"""Work for a batch is sent within minutes: what is due for longer than this waits for nothing."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What waits, and for how long.

    Attributes:
        oldest_unscored_s: age of the oldest record that still owes a score; 0 if none does. One whose judge calls wait
            for a batch, as they may for a day, does not count.
        owed: judge calls, those in batches too.
        dead_work: judge calls given up.
        dead_letters: kept and not re-driven.
        undelivered: notifications that wait.
        oldest_undelivered_s: age of the oldest of these.
        newest_record_s: how long ago the newest record was stored; None if there is none.
    """

    oldest_unscored_s: float
    owed: int
    dead_work: int
    dead_letters: int
    undelivered: int
    oldest_undelivered_s: float
    newest_record_s: float | None


def read(tx: Transaction, now: datetime) -> Progress:
    """Look at what waits."""

    def age(value: datetime | None) -> float:
        return max(0.0, (now - value).total_seconds()) if value is not None else 0.0

    scalar = tx.connection.scalar
    newest = scalar(select(func.max(records.c.ingested_at)))
    pending = outbox.c.state == "pending"
    return Progress(
        oldest_unscored_s=age(scalar(_unscored(now))),
        owed=sum(scalar(select(func.count()).where(state)) or 0 for state in (_PENDING, _BATCHED)),
        dead_work=scalar(select(func.count()).where(work.c.state == "dead")) or 0,
        dead_letters=scalar(select(func.count()).where(dead_letters.c.redriven_at.is_(None))) or 0,
        undelivered=scalar(select(func.count()).where(pending)) or 0,
        oldest_undelivered_s=age(scalar(select(func.min(outbox.c.created_at)).where(pending))),
        newest_record_s=None if newest is None else age(newest),
    )


_PENDING = work.c.state == "pending"
_BATCHED = and_(work.c.state == "batched", work.c.batch_id != "")


def _unscored(now: datetime) -> Select[datetime]:
    """When the oldest record was captured that owes a score and does not wait for a batch alone."""

    def owes(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
        return select(work.c.work_id).where(work.c.record_id == records.c.record_id, *conditions).exists()

    gathering = and_(_PENDING, work.c.lane == "batch", work.c.due_at > now - GATHERING)
    waits = or_(work.c.state == "batched", gathering)
    counts = or_(owes(_PENDING, ~gathering), ~owes(waits))
    query = select(records.c.captured_at).where(records.c.outcome == "in_flight", counts)
    return query.order_by(records.c.captured_at).limit(1)
