"""Rollups by the minute, the hour and the day: how they are stored, added to, and read at the cheapest level."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Table, bindparam, delete, func, select, update

from evalpipe.rollup import BINS, SUMS, Rollup
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import rollup_days, rollup_hours, rollups

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
    deltas: Mapping[Key, Rollup] = minutes
    for level in LEVELS:
        deltas = minutes if level is MINUTE else wider(level, deltas)
        _add(tx, level.table, deltas)


def wider(level: Level, narrower: Mapping[Key, Rollup]) -> dict[Key, Rollup]:
    """The buckets of a level, of those of the one below it."""
    found: dict[Key, Rollup] = {}
    for (at, series_id), rollup in narrower.items():
        found.setdefault((level.floor(at), series_id), Rollup()).merge(rollup)
    return found


def _add(tx: Transaction, table: Table, deltas: Mapping[Key, Rollup]) -> None:
    rows = [row_of(key, delta) for key, delta in deltas.items()]
    # The upsert locks each bucket, so the histogram that it returns cannot change before it is written back.
    changed = []
    for at, series_id, n_scored, bins in tx.add_up(table, rows, SUMS, ["bucket_at", "series_id", "n_scored", "bins"]):
        delta = deltas[at, series_id]
        if not delta.bins or (n_scored == delta.n_scored and bins != EMPTY):
            continue  # nothing to add, or the bucket is new, and has it
        merged = read_bins(bins)
        for index, count in delta.bins.items():
            merged[index] = merged.get(index, 0) + count
        changed.append({"at": at, "of": series_id, "merged": write_bins(merged)})
    if changed:
        bucket = table.c.bucket_at == bindparam("at"), table.c.series_id == bindparam("of")
        tx.connection.execute(update(table).where(*bucket).values(bins=bindparam("merged")), changed)


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
