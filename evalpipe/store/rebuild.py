"""Rollups made anew from the scores that they came from: the same bytes, unless something was wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from sqlalchemy import delete, func, select, text

from evalpipe.rollup import Rollup
from evalpipe.score import Score, Status
from evalpipe.store.levels import DAY, HOUR, LEVELS, MINUTE, Key, Level, row_of, wider
from evalpipe.store.series import SERIES, Series
from evalpipe.store.sql import Store, Transaction
from evalpipe.store.tables import rollup_days, scores, series

_COLUMNS: Final = ("captured_at", "status", "value", "weight", "cost_usd")
_FETCHED: Final = 20_000


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
    ids: dict[tuple[str, ...], str] = {}
    hours: dict[Key, Rollup] = {}
    for minutes, n in _hours(tx, day, ids):
        done.scores += n
        hours |= wider(HOUR, minutes)
        if MINUTE in wanted and minutes:
            _write(tx, MINUTE, HOUR.floor(min(minutes)[0]), HOUR.width, minutes, kept(MINUTE), done)
    if MINUTE in wanted:
        _drop_strays(tx, day, hours, done)
    if HOUR in wanted:
        _write(tx, HOUR, day, DAY.width, hours, kept(HOUR), done)
    if DAY in wanted:
        _write(tx, DAY, day, DAY.width, wider(DAY, hours), kept(DAY), done)
    return done


def _hours(tx: Transaction, day: datetime, ids: dict[tuple[str, ...], str]) -> Iterator[tuple[dict[Key, Rollup], int]]:
    """The minutes of one hour of the day after the other, with how many scores are in them."""
    columns = [scores.c[name] for name in (*_COLUMNS, *SERIES)]
    for hour in range(24):
        start = day + hour * HOUR.width
        query = select(*columns).where(scores.c.captured_at >= start, scores.c.captured_at < start + HOUR.width)
        minutes: dict[Key, Rollup] = {}
        n = 0
        for rows in tx.connection.execute(query).partitions(_FETCHED):
            for at, status, value, weight, cost_usd, *of in rows:
                key = at.replace(second=0, microsecond=0), _id(tx, ids, tuple(of), at)
                minutes.setdefault(key, Rollup()).add(Score(Status(status), value), weight, cost_usd)
                n += 1
        yield minutes, n


def _id(tx: Transaction, ids: dict[tuple[str, ...], str], of: tuple[str, ...], at: datetime) -> str:
    """The id of a series, which is registered if need be."""
    found = ids.get(of)
    if found is None:
        made = Series(*of)
        found = ids[of] = made.series_id
        row = {"series_id": found, **{name: getattr(made, name) for name in SERIES}, "first_seen_at": at}
        tx.insert_new(series, [row])
    return found


def _write(
    tx: Transaction,
    level: Level,
    start: datetime,
    length: timedelta,
    made: dict[Key, Rollup],
    kept_from: datetime | None,
    done: Rebuilt,
) -> None:
    """Put these buckets in the place of those that are there."""
    table = level.table
    mine = table.c.bucket_at >= start, table.c.bucket_at < start + length
    there = {_key(row): dict(row) for row in tx.connection.execute(select(table).where(*mine)).mappings()}
    rows = {key: row_of(key, rollup) for key, rollup in made.items() if kept_from is None or key[0] >= kept_from}
    differ = {key for key in there.keys() | rows.keys() if there.get(key) != rows.get(key)}
    done.buckets += len(rows)
    done.changed += len(differ)
    if differ:
        tx.connection.execute(delete(table).where(*mine))
        tx.insert_new(table, [rows[key] for key in sorted(rows)])


def _drop_strays(tx: Transaction, day: datetime, hours: dict[Key, Rollup], done: Rebuilt) -> None:
    """Minutes of hours that have no scores."""
    table = MINUTE.table
    full = {at for at, _ in hours}
    for hour in range(24):
        start = day + hour * HOUR.width
        if start not in full:
            gone = delete(table).where(table.c.bucket_at >= start, table.c.bucket_at < start + HOUR.width)
            done.changed += tx.connection.execute(gone).rowcount


def _key(row: Any) -> Key:
    return row["bucket_at"], row["series_id"]
