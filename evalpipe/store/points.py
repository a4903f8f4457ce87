"""Points of charts: rollups over steps of time, added up by the database, and their histograms by numpy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import BigInteger, ColumnElement, LargeBinary, Select, cast, extract, func, literal, select

from evalpipe.rollup import BINS, SUMS, Rollup
from evalpipe.store.levels import CELLS, Level, spans
from evalpipe.store.series import SERVED
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import series
from evalpipe.store.tallies import COUNTS, Tally

Key = tuple[str, ...]

_WIDTHS: Final = (1, 2, 4, 8)
"""Of a count of a histogram, in bytes."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_VALUES: Final = np.clip((np.arange(CELLS) - 0.5) / BINS, 0.0, 1.0)
"""What a value in each bin counts as."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart: its points in order of time.

    Attributes:
        key: what tells it from the others.
        starts: of each point, aware UTC.
        sums: ``SUMS`` of each.
        bins: the histogram of each.
    """

    key: Key
    starts: list[datetime]
    sums: NDArray[np.float64]
    bins: NDArray[np.int64]

    def rollups(self) -> list[Rollup]:
        """The sums of each point, without histograms."""
        counts = self.sums[:, :COUNTS].astype(np.int64).tolist()
        return [Rollup(*mine, *others) for mine, others in zip(counts, self.sums[:, COUNTS:].tolist(), strict=True)]

    def quantile(self, q: float) -> list[float | None]:
        """The ``q`` quantile of each point, as ``Rollup.quantile`` has it."""
        seen = self.bins.cumsum(axis=1)
        at = (seen >= np.maximum(q * seen[:, -1:], 1)).argmax(axis=1)
        some = (seen[:, -1] > 0).tolist()
        return [value if any_ else None for value, any_ in zip(_VALUES[at].tolist(), some, strict=True)]


def points(
    tx: Transaction, since: datetime, until: datetime | None, width: timedelta, by: Sequence[str], **where: str
) -> list[Line]:
    """Rollups over points of time, series of a kind taken together: lines by their first point and key.

    Args:
        tx: a transaction.
        since: from the first minute that starts here or later.
        until: minutes that start before it; None for all.
        width: of a point, in whole minutes; points begin at multiples of it since 1970.
        by: columns of ``Series`` that tell lines apart.
        where: columns of ``Series`` to compare; the arm is ``served`` if it is not given.
    """
    numbers: dict[Key, int] = {}
    tallies = []
    for level, first, last in spans(since, until, width=width):
        rows = tx.connection.execute(_query(tx, level, first, last, width, by, where)).all()
        tallies.append(_tally(tx, rows, len(by), numbers))
    whole = Tally.merged(tallies)
    at, number = whole.cells & _MINUTES, whole.cells >> _SHIFT
    found = []
    for key, mine in zip(numbers, np.split(np.arange(len(number)), np.flatnonzero(np.diff(number)) + 1), strict=False):
        starts = [_EPOCH + timedelta(minutes=minute) for minute in at[mine].tolist()]
        found.append(Line(key, starts, whole.sums[mine], whole.bins[mine]))
    return sorted(found, key=lambda line: (line.starts[0], line.key))


_SHIFT: Final = 32
_MINUTES: Final = (1 << _SHIFT) - 1


def _query(
    tx: Transaction,
    level: Level,
    first: datetime | None,
    last: datetime | None,
    width: timedelta,
    by: Sequence[str],
    where: dict[str, str],
) -> Select[Any]:
    """A row for each line and point: its key and minute, the sums, and the histograms, joined, of each width."""
    t = level.table.c
    key = [series.c[name] for name in by]
    start = _start(tx, t.bucket_at, width)
    sums = (func.sum(t[name]) for name in SUMS[:COUNTS]), (func.sum(t[name]) for name in SUMS[COUNTS:])
    bins = (_joined(tx, t.bins, CELLS * wide) for wide in _WIDTHS)
    query = select(*key, start.label("start"), *sums[0], *sums[1], *bins).group_by(*key, "start")
    fits = (series.c[name] == value for name, value in {"arm": SERVED, **where}.items())
    query = query.join_from(level.table, series, t.series_id == series.c.series_id).where(*fits)
    if first is not None:
        query = query.where(t.bucket_at >= first)
    return query if last is None else query.where(t.bucket_at < last)


def _start(tx: Transaction, at: ColumnElement[datetime], width: timedelta) -> ColumnElement[int]:
    """The minute since 1970 that the point begins with."""
    if tx.is_postgresql:
        return cast(extract("epoch", func.date_bin(width, at, _EPOCH)) / 60, BigInteger)
    minutes = width // timedelta(minutes=1)
    return cast(func.unixepoch(at), BigInteger) / (60 * minutes) * minutes


def _joined(tx: Transaction, bins: ColumnElement[bytes], length: int) -> ColumnElement[Any]:
    """Histograms of one length, one behind the other; SQLite can join but text."""
    if tx.is_postgresql:
        return func.string_agg(bins, literal(b"", LargeBinary)).filter(func.octet_length(bins) == length)
    return func.group_concat(func.hex(bins), "").filter(func.length(bins) == length)


def _tally(tx: Transaction, rows: Sequence[Any], keys: int, numbers: dict[Key, int]) -> Tally:
    """Rows by the number of the line and the minute of the point."""
    cells = [numbers.setdefault(tuple(row[:keys]), len(numbers)) << _SHIFT | row[keys] for row in rows]
    first_bins = keys + 1 + len(SUMS)
    sums = np.array([row[keys + 1 : first_bins] for row in rows], np.float64).reshape(-1, len(SUMS))
    found = Tally(np.array(cells, np.int64), sums, np.zeros((len(rows), CELLS), np.int64))
    for number, wide in enumerate(_WIDTHS):
        those = [(i, row[first_bins + number]) for i, row in enumerate(rows) if row[first_bins + number]]
        for i, counts in _counts(those, wide, from_hex=not tx.is_postgresql):
            found.bins[i] += counts
    return found


def _counts(
    joined: Sequence[tuple[int, Any]], wide: int, *, from_hex: bool
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The sums of histograms of one width, with the numbers of their rows."""
    if joined:
        blobs = [bytes.fromhex(blob) if from_hex else blob for _, blob in joined]
        sizes = np.array([len(blob) // (CELLS * wide) for blob in blobs])
        each = np.frombuffer(b"".join(blobs), f"<u{wide}").reshape(-1, CELLS)
        first = np.cumsum(sizes) - sizes
        yield np.array([i for i, _ in joined]), np.add.reduceat(each, first, axis=0, dtype=np.int64)
