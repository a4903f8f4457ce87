"""Sums of scores over many windows of many places: each stretch of rollups is read once, and summed by prefix sums.

The sums are on a grid (see ``evalpipe.rollup``), so the difference of two prefix sums is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from evalpipe.rollup import SUMS, Rollup
from evalpipe.store import series as series_store
from evalpipe.store.levels import CELLS, DAY, HOUR, MINUTE, Level, spans
from evalpipe.store.series import Series
from evalpipe.store.sql import Transaction
from evalpipe.store.tallies import read

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_CHUNK: Final = {MINUTE: HOUR.width, HOUR: DAY.width, DAY: 32 * DAY.width}
"""How much of a level is read at a time: a window has at most two pieces of each level but the widest."""
_WIDE: Final = len(SUMS) + CELLS
_COUNTS: Final = 4
"""The first so many of ``SUMS`` are whole numbers."""
_SCORED: Final = SUMS.index("n_scored")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SHIFT: Final = 32


@dataclass(slots=True)
class Line:
    """The series of one criterion: what its scores of several releases, features and places are about.

    Attributes:
        series: by their number.
        first_seen: of each, in seconds.
        numbers: of each, by its id.
    """

    series: list[Series] = field(default_factory=list)
    first_seen: list[float] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sums:
    """A window of a line, by the number of the series.

    Attributes:
        values: ``SUMS`` and the histogram in each row.
        newest: the minute (since 1970) of the last bucket with a scored value, -1 for none.
    """

    values: Floats
    newest: Ints

    def rollup(self, numbers: Sequence[int]) -> Rollup:
        """The sum of some of the series."""
        return _rollup(self.values[list(numbers)].sum(axis=0))


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Buckets in the order of (series, time): a key has both; ``sums`` has a row more, the prefix sums."""

    numbers: Ints
    keys: Ints
    scored: Ints
    sums: Floats


class Windows:
    """Reads in one transaction; nothing that it has read is read again."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._lines: dict[tuple[str, str], Line] = {}
        self._chunks: dict[tuple[str, str, Level, datetime], _Chunk] = {}
        self._sums: dict[tuple[str, str, datetime, datetime], Sums] = {}

    def line(self, scorecard: str, criterion: str) -> Line:
        """The series that have been met so far; their numbers never change."""
        return self._lines.setdefault((scorecard, criterion), Line())

    def sums(self, scorecard: str, criterion: str, since: datetime, until: datetime) -> Sums:
        """A window of every series of a criterion: the minutes that start in it."""
        since, until = MINUTE.ceil(since), MINUTE.ceil(until)
        key = scorecard, criterion, since, until
        if (known := self._sums.get(key)) is None:
            known = self._sums[key] = self._read(scorecard, criterion, since, until)
        return known

    def _read(self, scorecard: str, criterion: str, since: datetime, until: datetime) -> Sums:
        pieces: list[tuple[_Chunk, Floats, Ints]] = []
        for level, first, last in spans(since, until):
            assert first is not None
            assert last is not None
            for chunk in self._load(scorecard, criterion, level, first, last):
                sums, last_scored = _piece(chunk, _minute(first), _minute(last))
                pieces.append((chunk, sums, last_scored))
        n = len(self.line(scorecard, criterion).series)
        values, newest = np.zeros((n, _WIDE)), np.full(n, -1, dtype=np.int64)
        for chunk, sums, last_scored in pieces:
            values[chunk.numbers] += sums
            newest[chunk.numbers] = np.maximum(newest[chunk.numbers], last_scored)
        return Sums(values, newest)

    def _load(self, scorecard: str, criterion: str, level: Level, first: datetime, last: datetime) -> list[_Chunk]:
        """The chunks that [first, last) touches; those that are missing are read at once, side by side."""
        width = _CHUNK[level]
        start = _EPOCH + (first - _EPOCH) // width * width
        starts = [start + i * width for i in range(-((start - last) // width))]
        missing = [at for at in starts if (scorecard, criterion, level, at) not in self._chunks]
        if missing:
            rows = self._rows(scorecard, criterion, level, missing[0], missing[-1] + width)
            by_start: dict[datetime, list[Any]] = {at: [] for at in missing}
            for row in rows:
                at = _EPOCH + (row.bucket_at - _EPOCH) // width * width
                if at in by_start:
                    by_start[at].append(row)
            for at, mine in by_start.items():
                self._chunks[scorecard, criterion, level, at] = self._chunk(scorecard, criterion, mine)
        return [self._chunks[scorecard, criterion, level, at] for at in starts]

    def _rows(self, scorecard: str, criterion: str, level: Level, first: datetime, last: datetime) -> Sequence[Any]:
        """As ``values_of`` takes them."""
        table, where = level.table, {"scorecard": scorecard, "criterion": criterion}
        query = select(table.c.series_id, table.c.bucket_at, table.c.bins, *(table.c[name] for name in SUMS))
        return self._tx.connection.execute(series_store.joined(query, table, first, last, where)).all()

    def _chunk(self, scorecard: str, criterion: str, rows: Sequence[Any]) -> _Chunk:
        line = self.line(scorecard, criterion)
        self._register(line, {row.series_id for row in rows})
        minutes = np.fromiter((_minute(row.bucket_at) for row in rows), np.int64, len(rows))
        numbers = np.fromiter((line.numbers[row.series_id] for row in rows), np.int64, len(rows))
        values = values_of(rows)
        order = np.lexsort((minutes, numbers))
        minutes, numbers, values = minutes[order], numbers[order], values[order]
        keys = numbers << _SHIFT | minutes
        scored = np.maximum.accumulate(np.where(values[:, _SCORED] > 0, keys, -1)) if len(rows) else keys
        sums = np.zeros((len(rows) + 1, _WIDE))
        np.cumsum(values, axis=0, out=sums[1:])
        return _Chunk(np.unique(numbers), keys, scored, sums)

    def _register(self, line: Line, ids: set[str]) -> None:
        new = ids - line.numbers.keys()
        if new:
            found = series_store.by_id(self._tx, new)
            for series_id in sorted(new):
                of, first_seen = found[series_id]
                line.numbers[series_id] = len(line.series)
                line.series.append(of)
                line.first_seen.append(first_seen.timestamp())


def _piece(chunk: _Chunk, first: int, last: int) -> tuple[Floats, Ints]:
    """The sums of each series of the chunk over [first, last), and the last minute with a scored value."""
    lows = chunk.numbers << _SHIFT | first
    low = np.searchsorted(chunk.keys, lows)
    high = np.searchsorted(chunk.keys, chunk.numbers << _SHIFT | last)
    newest = np.full(len(chunk.numbers), -1, dtype=np.int64)
    some = high > low
    latest = chunk.scored[high[some] - 1]
    newest[some] = np.where(latest >= lows[some], latest & ((1 << _SHIFT) - 1), -1)
    return chunk.sums[high] - chunk.sums[low], newest


def values_of(rows: Sequence[Any]) -> Floats:
    """``SUMS`` and the histogram of rows that begin with series, time and histogram."""
    values = np.zeros((len(rows), _WIDE))
    if rows:
        values[:, : len(SUMS)] = [row[3:] for row in rows]
        values[:, len(SUMS) :] = read([row[2] for row in rows])
    return values


def _minute(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(minutes=1)


def instant(minute: int) -> datetime:
    """When a minute since 1970 starts, aware UTC."""
    return _EPOCH + timedelta(minutes=minute)


def _rollup(values: Floats) -> Rollup:
    named: dict[str, Any] = {
        name: int(value) if i < _COUNTS else value
        for i, (name, value) in enumerate(zip(SUMS, values.tolist(), strict=False))
    }
    bins = values[len(SUMS) :]
    some = np.flatnonzero(bins)
    return Rollup(**named, bins=dict(zip(some.tolist(), bins[some].astype(np.int64).tolist(), strict=True)))


def has_scores(values: Floats) -> NDArray[np.bool_]:
    """Of rows of ``Sums.values``: whether there is any score, of whatever status."""
    found: NDArray[np.bool_] = values[..., :_COUNTS].sum(axis=-1) > 0
    return found
