"""Rollups made anew from the scores that they came from: the same bytes, unless something was wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import delete, func, select, text

from evalpipe.rollup import SUMS
from evalpipe.store.levels import DAY, HOUR, LEVELS, MINUTE, Level
from evalpipe.store.sql import Store, Transaction
from evalpipe.store.tables import rollup_days, scores
from evalpipe.store.tallies import MINUTES, Day, Rows, Tally


@dataclass(slots=True)
class Rebuilt:
    """What a rebuild did.

    Attributes:
        since: the first day that was made anew, aware UTC; None if there was none.
        scores: that were added up.
        buckets: that there are now.
        changed: those of them that were not there, or not the same, and those that should not have been there.
    """

    since: datetime | None = None
    scores: int = 0
    buckets: int = 0
    changed: int = 0


def rebuild(
    store: Store,
    *,
    since: datetime | None,
    now: datetime,
    retention: timedelta,
    level: Level | None = None,
    kept: Callable[[Level], datetime | None] = lambda _: None,
    progress: Callable[[datetime], None] = lambda _: None,
) -> Rebuilt:
    """Make rollups anew, day by day, each in a transaction that writers wait for.

    Days whose scores are past their retention, in whole or in part, are left alone: their rollups are all there is.

    Args:
        store: where.
        since: from the UTC day that this lies in; None for all days that can be.
        now: the clock, aware UTC.
        retention: of scores.
        level: only this one; None for all.
        kept: of a level: buckets that start before are past its retention, and not made; None for no bound.
        progress: is told each day that is done.
    """
    with store.read() as tx:
        first = _first_whole_day(tx, now - retention)
    done = Rebuilt()
    if first is None:
        return done
    day = first if since is None else max(first, DAY.floor(since))
    done.since = day
    wanted = [level] if level is not None else list(LEVELS)
    while day <= now + DAY.width:  # clocks of applications may be ahead
        found = store.patiently(partial(_day, day=day, wanted=wanted, kept=kept))
        done.scores += found.scores
        done.buckets += found.buckets
        done.changed += found.changed
        progress(day)
        day += DAY.width
    return done


def _first_whole_day(tx: Transaction, kept_from: datetime) -> datetime | None:
    """The first day of which all scores are there."""
    oldest = tx.connection.scalar(select(func.min(scores.c.captured_at)))
    if oldest is None:
        return None
    before = tx.connection.scalar(select(func.min(rollup_days.c.bucket_at)))
    # Rollups from before the oldest score tell of scores that are gone, perhaps some of that day's too.
    cut = before is not None and before < DAY.floor(oldest)
    first = DAY.ceil(oldest) if cut else DAY.floor(oldest)
    return first if oldest >= kept_from and not cut else max(first, DAY.ceil(kept_from))


def _day(
    tx: Transaction, *, day: datetime, wanted: Sequence[Level], kept: Callable[[Level], datetime | None]
) -> Rebuilt:
    if tx.is_postgresql:
        # Whoever writes scores waits at their rollups; what they committed before is seen from here on.
        names = ", ".join(f'"{level.table.name}"' for level in LEVELS)
        tx.connection.execute(text(f"LOCK TABLE {names} IN SHARE ROW EXCLUSIVE MODE"))
    done = Rebuilt(day)
    read, hours = Day(tx, day), list[Tally]()
    rows: Rows = {}
    for number in range(24):
        start = day + number * HOUR.width
        tally = read.hour(start)
        done.scores += tally.n
        if MINUTE in wanted:
            keys = [(start + c % MINUTES * MINUTE.width, read.ids[c // MINUTES]) for c in tally.cells.tolist()]
            _write(tx, MINUTE, start, HOUR.width, tally.rows(keys), kept(MINUTE), done)
        hours.append(Tally.merged([tally], MINUTES))
        rows |= hours[-1].rows([(start, read.ids[c]) for c in hours[-1].cells.tolist()])
    if HOUR in wanted:
        _write(tx, HOUR, day, DAY.width, rows, kept(HOUR), done)
    if DAY in wanted:
        whole = Tally.merged(hours)
        _write(tx, DAY, day, DAY.width, whole.rows([(day, read.ids[c]) for c in whole.cells.tolist()]), kept(DAY), done)
    return done


def _write(
    tx: Transaction,
    level: Level,
    start: datetime,
    length: timedelta,
    made: Rows,
    kept_from: datetime | None,
    done: Rebuilt,
) -> None:
    """Put these buckets in the place of those that are there."""
    table = level.table
    mine = table.c.bucket_at >= start, table.c.bucket_at < start + length
    names = ("bucket_at", "series_id", *SUMS, "bins")
    there = {
        row[:2]: row for row in map(tuple, tx.connection.execute(select(*(table.c[n] for n in names)).where(*mine)))
    }
    rows = {key: row for key, row in made.items() if kept_from is None or key[0] >= kept_from}
    done.buckets += len(rows)
    if there != rows:
        done.changed += sum(there.get(key) != rows.get(key) for key in there.keys() | rows.keys())
        tx.connection.execute(delete(table).where(*mine))
        tx.insert_new(table, [dict(zip(names, row, strict=True)) for row in rows.values()])
