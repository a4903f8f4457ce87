"""What each commit of scores added to each series, queued until alert rules are evaluated: each score is given once."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import delete, insert

from evalpipe.rollup import Rollup
from evalpipe.store.levels import rollup_of, stored
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import growths

KEPT: Final = timedelta(days=1)
"""What nobody evaluates for so long is dropped: alert rules are about now."""

log = logging.getLogger("evalpipe")


@dataclass(slots=True)
class Growth:
    """Scores of one series.

    Attributes:
        since, until: when the first and the last of them were captured, aware UTC.
    """

    series_id: str
    since: datetime
    until: datetime
    rollup: Rollup

    def take_in(self, at: datetime) -> None:
        """Widen the period to ``at``."""
        self.since, self.until = min(self.since, at), max(self.until, at)


def add(tx: Transaction, found: Iterable[Growth], now: datetime) -> None:
    """Queue growth, in the transaction that writes the scores."""
    rows: list[dict[str, Any]] = [
        {
            "growth_id": uuid4().hex,
            "series_id": g.series_id,
            "since_at": g.since,
            "until_at": g.until,
            "at": now,
            **stored(g.rollup),
        }
        for g in found
    ]
    if rows:
        tx.connection.execute(insert(growths), rows)


def take(tx: Transaction) -> list[Growth]:
    """All growth that was committed, oldest first, one for each series; gone from the queue when ``tx`` commits."""
    rows = tx.connection.execute(delete(growths).returning(growths)).mappings()
    found: dict[str, Growth] = {}
    for row in sorted(rows, key=lambda row: (row["at"], row["growth_id"])):
        of = row["series_id"]
        grown = found.setdefault(of, Growth(of, row["since_at"], row["until_at"], Rollup()))
        grown.rollup.merge(rollup_of(row))
        grown.take_in(row["since_at"])
        grown.take_in(row["until_at"])
    return list(found.values())


def drop_old(tx: Transaction, now: datetime) -> int:
    """Drop what nobody evaluated, with a line in the log; returns how many rows."""
    dropped = tx.connection.execute(delete(growths).where(growths.c.at < now - KEPT)).rowcount
    if dropped:
        log.warning("%d rows of growth waited for a day and are dropped: no worker evaluates alert rules", dropped)
    return dropped
