"""Rollups by the minute, the hour and the day: how they are stored, added to, and read at the cheapest level."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Float,
    LargeBinary,
    Table,
    Text,
    TextClause,
    bindparam,
    delete,
    func,
    select,
    text,
    update,
)

from evalpipe.rollup import BINS, SUMS, Rollup
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import Instant, rollup_days, rollup_hours, rollups

Key = tuple[datetime, str]
"""A bucket: when it starts, and its series."""


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """One width of buckets."""

    name: str
    table: Table
    width: timedelta

    def floor(self, at: datetime) -> datetime:
        """The start of the bucket that ``at`` lies in; buckets begin with the UTC day."""
        at = at.astimezone(UTC)
        midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
        return midnight + (at - midnight) // self.width * self.width

    def ceil(self, at: datetime) -> datetime:
        """The start of the first bucket that is not before ``at``."""
        start = self.floor(at)
        return start if start == at else start + self.width


MINUTE: Final = Level("minute", rollups, timedelta(minutes=1))
HOUR: Final = Level("hour", rollup_hours, timedelta(hours=1))
DAY: Final = Level("day", rollup_days, timedelta(days=1))
LEVELS: Final = (MINUTE, HOUR, DAY)
Span = tuple[Level, datetime | None, datetime | None]
"""Buckets of a level that start in [since, until)."""


def spans(since: datetime | None, until: datetime | None, *, width: timedelta = DAY.width) -> list[Span]:
    """The fewest buckets that make up a window, in order of time: wide ones in the middle, minutes at the ends.

    Where minutes (or hours) are past their retention, a window that does not begin with a whole hour (or day) lacks
    what is before the first whole one.

    Args:
        since: from the first minute that starts here or later; None for all there is.
        until: minutes that start before it; None for all there is.
        width: no bucket straddles multiples of it: of points that are shown, say.
    """
    usable = [level for level in LEVELS if width % level.width == timedelta(0)]
    return _spans(since, until, usable[::-1] or [MINUTE])


def _spans(since: datetime | None, until: datetime | None, levels: list[Level]) -> list[Span]:
    level, finer = levels[0], levels[1:]
    if not finer:
        return [(level, since, until)]
    first = None if since is None else level.ceil(since)
    last = None if until is None else level.floor(MINUTE.ceil(until))
    if first is not None and last is not None and first >= last:
        return _spans(since, until, finer)
    found: list[Span] = []
    if since is not None and since != first:
        found += _spans(since, first, finer)
    found.append((level, first, last))
    if last is not None and until is not None and last < until:
        found += _spans(last, until, finer)
    return found


def add(tx: Transaction, minutes: Mapping[Key, Rollup]) -> None:
    """Add what minutes grew by to the buckets of every level."""
    hours = wider(HOUR, minutes)
    deltas = {MINUTE: minutes, HOUR: hours, DAY: wider(DAY, hours)}
    changed: dict[Level, list[dict[str, Any]]] = {level: [] for level in LEVELS}
    # The upsert locks each bucket, so the histogram that it returns cannot change before it is written back.
    for level, at, series_id, n_scored, bins in _add_sums(tx, deltas):
        delta = deltas[level][at, series_id]
        if not delta.bins or (n_scored == delta.n_scored and bins != EMPTY):
            continue  # nothing to add, or the bucket is new, and has it
        merged = read_bins(bins)
        for index, count in delta.bins.items():
            merged[index] = merged.get(index, 0) + count
        changed[level].append({"at": at, "of": series_id, "merged": write_bins(merged)})
    _write_bins(tx, {level: rows for level, rows in changed.items() if rows})


def _add_sums(
    tx: Transaction, deltas: Mapping[Level, Mapping[Key, Rollup]]
) -> Iterator[tuple[Level, datetime, str, int, bytes]]:
    """Add the sums, and insert what is new; the number of values and the histogram of each bucket, as they are then."""
    rows = {level: [row_of(key, delta) for key, delta in sorted(found.items())] for level, found in deltas.items()}
    if not tx.is_postgresql:
        for level, mine in rows.items():
            for row in tx.add_up(level.table, mine, SUMS, ["bucket_at", "series_id", "n_scored", "bins"]):
                yield level, *row
        return
    arrays = {f"{name}_{level.name}": [row[name] for row in mine] for level, mine in rows.items() for name in _COLUMNS}
    for number, *row in tx.connection.execute(_upserts(), arrays):
        yield LEVELS[number], *row


@cache
def _upserts() -> TextClause:
    """Of all levels in one statement, from an array for each column: their number would cost more than their rows."""
    parts, found = [], []
    for number, level in enumerate(LEVELS):
        table = level.table
        arrays = ", ".join(f"CAST(:{name}_{level.name} AS {_ARRAYS[type(table.c[name].type)]})" for name in _COLUMNS)
        sums = ", ".join(f'"{name}" = "{table.name}"."{name}" + excluded."{name}"' for name in SUMS)
        parts.append(
            f"{level.name}s AS (INSERT INTO {table.name} ({', '.join(_COLUMNS)}) SELECT * FROM unnest({arrays}) "  # noqa: S608 - names of our own
            f"ON CONFLICT (bucket_at, series_id) DO UPDATE SET {sums} "
            f"RETURNING {number} AS level, bucket_at, series_id, n_scored, bins)"
        )
        found.append(f"SELECT * FROM {level.name}s")  # noqa: S608 - names of our own
    return text(f"WITH {', '.join(parts)} {' UNION ALL '.join(found)}")


def _write_bins(tx: Transaction, changed: Mapping[Level, list[dict[str, Any]]]) -> None:
    if not tx.is_postgresql:
        for level, rows in changed.items():
            table = level.table
            bucket = table.c.bucket_at == bindparam("at"), table.c.series_id == bindparam("of")
            tx.connection.execute(update(table).where(*bucket).values(bins=bindparam("merged")), rows)
    elif changed:
        arrays = {
            f"{name}_{level.name}": [row[name] for row in rows]
            for level, rows in changed.items()
            for name in ("at", "of", "merged")
        }
        tx.connection.execute(_updates(tuple(changed)), arrays)


@cache
def _updates(levels: tuple[Level, ...]) -> TextClause:
    parts = [
        f"UPDATE {level.table.name} AS t SET bins = v.bins FROM unnest(CAST(:at_{level.name} AS timestamptz[]), "  # noqa: S608 - names of our own
        f"CAST(:of_{level.name} AS text[]), CAST(:merged_{level.name} AS bytea[])) AS v (at, series_id, bins) "
        "WHERE t.bucket_at = v.at AND t.series_id = v.series_id"
        for level in levels
    ]
    others = ", ".join(f"{level.name}s AS ({part})" for level, part in zip(levels, parts[:-1], strict=False))
    return text(f"WITH {others} {parts[-1]}" if others else parts[-1])


def wider(level: Level, narrower: Mapping[Key, Rollup]) -> dict[Key, Rollup]:
    """The buckets of a level, of those of the one below it."""
    found: dict[Key, Rollup] = {}
    for (at, series_id), rollup in narrower.items():
        found.setdefault((level.floor(at), series_id), Rollup()).merge(rollup)
    return found


def row_of(key: Key, rollup: Rollup) -> dict[str, Any]:
    """A bucket as it is stored: the same bytes for the same scores."""
    return {"bucket_at": key[0], "series_id": key[1], **stored(rollup)}


def stored(rollup: Rollup) -> dict[str, Any]:
    """The columns of a rollup."""
    return {**{name: getattr(rollup, name) for name in SUMS}, "bins": write_bins(rollup.bins)}


def rollup_of(row: Any) -> Rollup:
    """The rollup in a row that has its columns by name."""
    return Rollup(**{name: row[name] for name in SUMS}, bins=read_bins(row["bins"]))


def read_bins(packed: bytes) -> dict[int, int]:
    """A stored histogram."""
    if not packed:
        return {}
    counts = struct.unpack(f"<{CELLS}{_CODES[len(packed) // CELLS]}", packed)
    return {index: count for index, count in enumerate(counts) if count}


def write_bins(bins: Mapping[int, int]) -> bytes:
    """A histogram as stored: the same bytes for the same counts, little-endian and as narrow as they fit."""
    if not bins:
        return EMPTY
    counts = [0] * CELLS
    for index, count in bins.items():
        counts[index] = count
    most = max(counts)
    width = next(width for width in _CODES if most < 256**width)
    return struct.pack(f"<{CELLS}{_CODES[width]}", *counts)


CELLS: Final = BINS + 2
_CODES: Final = {1: "B", 2: "H", 4: "I", 8: "Q"}
"""Of ``struct``, by the width of a count in bytes."""
EMPTY: Final = b""
_COLUMNS: Final = ("bucket_at", "series_id", *SUMS, "bins")
_ARRAYS: Final = {Instant: "timestamptz[]", Text: "text[]", BigInteger: "bigint[]", Float: "float8[]",
                  LargeBinary: "bytea[]"}  # fmt: skip
"""PostgreSQL's arrays of the columns' types."""


def remove(tx: Transaction, level: Level, before: datetime) -> int:
    """Delete buckets of a level that are past their retention, an hour of minutes (or a day of hours) at a time.

    Returns:
        How many went; 0 when there are none left.
    """
    table = level.table
    first = tx.connection.scalar(select(func.min(table.c.bucket_at)))
    if first is None or first >= before:
        return 0
    until = min(before, first + 60 * level.width)
    return tx.connection.execute(delete(table).where(table.c.bucket_at < until)).rowcount
