"""Points of charts: rollups over steps of time, added up by the database, and their histograms by numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import BigInteger, ColumnElement, cast, func, select, text

from evalpipe.rollup import BINS, SUMS, Rollup
from evalpipe.store.levels import CELLS, MINUTE, Level, spans
from evalpipe.store.series import SERVED
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import series
from evalpipe.store.tallies import COUNTS, Tally, read

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
    fits = [series.c[name] == value for name, value in {"arm": SERVED, **where}.items()]
    found = tx.connection.execute(select(series.c.series_id, *(series.c[name] for name in by)).where(*fits))
    keys: dict[Key, int] = {}
    numbers = {of: keys.setdefault(tuple(key), len(keys)) for of, *key in found}
    read = _read_grouped if tx.is_postgresql else _read_joined
    whole = Tally.merged(
        read(tx, level, first, last, width, numbers, fits) for level, first, last in spans(since, until, width=width)
    )
    minutes, line_of, named = whole.cells & _MINUTES, whole.cells >> _SHIFT, list(keys)
    lines = []
    for number in np.unique(line_of).tolist():
        mine = line_of == number
        starts = [_EPOCH + timedelta(minutes=minute) for minute in minutes[mine].tolist()]
        lines.append(Line(named[number], starts, whole.sums[mine], whole.bins[mine]))
    return sorted(lines, key=lambda line: (line.starts[0], line.key))


_SHIFT: Final = 32
_MINUTES: Final = (1 << _SHIFT) - 1
_SUMMED: Final = ", ".join(f"CAST(sum(r.{name}) AS float8)" for name in SUMS)
"""Whole numbers too: PostgreSQL's sum of them is a decimal."""


def _read_grouped(
    tx: Transaction,
    level: Level,
    first: datetime | None,
    last: datetime | None,
    width: timedelta,
    numbers: Mapping[str, int],
    fits: Sequence[ColumnElement[bool]],
) -> Tally:
    """PostgreSQL adds up a point of a line, and joins its histograms, those of one width together."""
    del fits
    bins = ", ".join(
        f"string_agg(r.bins, CAST('' AS bytea)) FILTER (WHERE octet_length(r.bins) = {CELLS * wide})"
        for wide in _WIDTHS
    )
    query = (
        f"SELECT k.line, date_bin(:width, r.bucket_at, CAST(:epoch AS timestamptz)) AS start, {_SUMMED}, {bins} "  # noqa: S608 - names of our own
        f"FROM {level.table.name} r JOIN unnest(CAST(:ids AS text[]), CAST(:lines AS bigint[])) AS k (series_id, line) "
        "ON k.series_id = r.series_id "
        "WHERE r.bucket_at >= CAST(:first AS timestamptz) AND r.bucket_at < CAST(:last AS timestamptz) GROUP BY 1, 2"
    )
    values: dict[str, Any] = {"width": width, "epoch": _EPOCH, "ids": list(numbers), "lines": list(numbers.values())}
    values |= {"first": first or "-infinity", "last": last or "infinity"}
    rows = tx.connection.execute(text(query), values).all()
    cells = [row[0] << _SHIFT | (row[1] - _EPOCH) // MINUTE.width for row in rows]
    sums = np.array([row[2 : 2 + len(SUMS)] for row in rows], np.float64).reshape(-1, len(SUMS))
    counts = np.zeros((len(rows), CELLS), np.int64)
    for column, wide in enumerate(_WIDTHS, 2 + len(SUMS)):
        those = [(i, row[column]) for i, row in enumerate(rows) if row[column]]
        if those:
            each = np.frombuffer(b"".join([blob for _, blob in those]), f"<u{wide}").reshape(-1, CELLS)
            sizes = np.array([len(blob) // (CELLS * wide) for _, blob in those])
            counts[[i for i, _ in those]] += np.add.reduceat(each, np.cumsum(sizes) - sizes, axis=0, dtype=np.int64)
    return Tally(np.array(cells, np.int64), sums, counts)


def _read_joined(
    tx: Transaction,
    level: Level,
    first: datetime | None,
    last: datetime | None,
    width: timedelta,
    numbers: Mapping[str, int],
    fits: Sequence[ColumnElement[bool]],
) -> Tally:
    """SQLite gives each bucket: it joins no bytes."""
    t = level.table.c
    minute = cast(func.strftime("%s", t.bucket_at), BigInteger) // 60
    query = select(t.series_id, minute, t.bins, *(t[name] for name in SUMS))
    query = query.where(t.series_id.in_(select(series.c.series_id).where(*fits)))
    if first is not None:
        query = query.where(t.bucket_at >= first)
    if last is not None:
        query = query.where(t.bucket_at < last)
    rows = tx.connection.execute(query).all()
    minutes = width // MINUTE.width
    cells = [numbers[row[0]] << _SHIFT | row[1] // minutes * minutes for row in rows]
    sums = np.array([row[3:] for row in rows], np.float64).reshape(-1, len(SUMS))
    return Tally(np.array(cells, np.int64), sums, read([row[2] for row in rows]))
