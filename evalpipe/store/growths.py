"""What each commit of scores added to each series, queued until alert rules are evaluated: each score is given once."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import delete, insert, select

from evalpipe.rollup import Rollup
from evalpipe.store.levels import rollup_of, stored
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import growths

KEPT: Final = timedelta(days=1)
"""What nobody evaluates for so long is dropped: alert rules are about now."""
MOST: Final = 20_000
"""Rows that one evaluation takes: it must not be held up by an hour's."""

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
    """Growth that was committed, the oldest, one for each series; gone from the queue when ``tx`` commits.

    Of what gathered while nobody evaluated at most ``MOST`` rows at a time: the next evaluations go on.
    """
    oldest = select(growths.c.growth_id).order_by(growths.c.at, growths.c.growth_id).limit(MOST)
    mine = delete(growths).where(growths.c.growth_id.in_(oldest))
    rows = tx.connection.execute(mine.returning(growths)).mappings()
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
