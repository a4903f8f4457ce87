"""Whether evaluation gets on: the age of the oldest thing that waits, not whether a process is up."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select

from evalpipe.store.sql import Transaction
from evalpipe.store.tables import dead_letters, outbox, records, work


@dataclass(frozen=True, slots=True)
class Progress:
    """What waits, and for how long.

    Attributes:
        oldest_unscored_s: age of the oldest record that still owes a score; 0 if none does.
        owed: judge calls.
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
        oldest_unscored_s=age(scalar(select(func.min(records.c.captured_at)).where(records.c.outcome == "in_flight"))),
        owed=scalar(select(func.count()).where(work.c.state == "pending")) or 0,
        dead_work=scalar(select(func.count()).where(work.c.state == "dead")) or 0,
        dead_letters=scalar(select(func.count()).where(dead_letters.c.redriven_at.is_(None))) or 0,
        undelivered=scalar(select(func.count()).where(pending)) or 0,
        oldest_undelivered_s=age(scalar(select(func.min(outbox.c.created_at)).where(pending))),
        newest_record_s=None if newest is None else age(newest),
    )
