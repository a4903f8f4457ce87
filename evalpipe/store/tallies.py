"""Scores added up in bulk, to the same bits as ``Rollup.add`` and ``Rollup.merge`` would one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Integer, cast, func, select

from evalpipe.rollup import BINS, SUMS, TO_GRID, TO_SQUARES, TO_USD
from evalpipe.score import Status
from evalpipe.store.levels import CELLS, DAY, EMPTY, HOUR, MINUTE, Key
from evalpipe.store.series import SERIES, Series
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import scores, series

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Rows = dict[Key, tuple[Any, ...]]
"""Buckets as they are stored."""

MINUTES: Final = 60
"""Of an hour."""
COUNTS: Final = 4
"""The first so many of ``SUMS`` are counts, of these statuses."""
_STATUSES: Final = tuple(status.value for status in (Status.SCORED, Status.SKIPPED, Status.ABSTAINED, Status.ERROR))
_BATCH: Final = 20_000


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums by cell; a cell stands for a series, or for a series and a minute.

    Attributes:
        cells: their numbers, ascending.
        sums: ``SUMS`` of each.
        bins: the histogram of each.
        n: scores.
    """

    cells: Ints
    sums: Floats
    bins: Ints
    n: int = 0

    @classmethod
    def of(cls, cell: Ints, status: Ints, value: Floats, weight: Floats, cost_usd: Floats) -> Self:
        """Of scores: each with its cell, its status by number, and NaN for no value."""
        cells, at = np.unique(cell, return_inverse=True)
        sums = np.zeros((len(cells), len(SUMS)))
        sums[:, SUMS.index("cost_usd")] = np.bincount(at, (cost_usd + TO_USD) - TO_USD, len(cells))
        weighs = weight != 0.0
        for which in range(1, COUNTS):
            sums[:, which] = np.bincount(at[weighs & (status == which)], minlength=len(cells))
        drawn = weighs & (status == 0) & ~np.isnan(value)
        at, w, x = at[drawn], weight[drawn], value[drawn]
        wx = w * x
        terms = {"sum_w": w, "sum_wx": wx, "sum_wx2": wx * x, "sum_w2": w * w, "sum_w2x": w * wx, "sum_w2x2": wx * wx}
        for name, term in terms.items():
            to = TO_SQUARES if name.startswith("sum_w2") else TO_GRID
            sums[:, SUMS.index(name)] = np.bincount(at, (term + to) - to, len(cells))
        sums[:, 0] = np.bincount(at, minlength=len(cells))
        index = np.where(x == 0.0, 0, 1 + (x * BINS).astype(np.int64))
        bins = np.bincount(at * CELLS + index, minlength=len(cells) * CELLS).reshape(-1, CELLS)
        return cls(cells, sums, bins, len(cell))

    @classmethod
    def merged(cls, tallies: Iterable[Tally], width: int = 1) -> Self:
        """The sum of several, with each ``width`` cells taken as one."""
        found = [t for t in tallies if len(t.cells)]
        if not found:
            return cls(np.zeros(0, np.int64), np.zeros((0, len(SUMS))), np.zeros((0, CELLS), np.int64))
        cells = np.concatenate([t.cells for t in found]) // width
        order = np.argsort(cells, kind="stable")
        cells, first = np.unique(cells[order], return_index=True)
        sums = np.add.reduceat(np.concatenate([t.sums for t in found])[order], first)
        bins = np.add.reduceat(np.concatenate([t.bins for t in found])[order], first)
        return cls(cells, sums, bins, sum(t.n for t in found))

    def rows(self, keys: Sequence[Key]) -> Rows:
        """As they are stored, with the key of each."""
        counts = self.sums[:, :COUNTS].astype(np.int64).tolist()
        floats = self.sums[:, COUNTS:].tolist()
        bins = written(self.bins)
        return {
            key: (*key, *mine, *others, packed)
            for key, mine, others, packed in zip(keys, counts, floats, bins, strict=True)
        }


def written(bins: Ints) -> list[bytes]:
    """Histograms as ``levels.write_bins`` makes them."""
    found = [EMPTY] * len(bins)
    most = bins.max(axis=1, initial=0)
    for width in (1, 2, 4, 8):
        those = np.flatnonzero((most > 0) & (most >= 256 ** (width // 2) * (width > 1)) & (most < 256.0**width))
        packed, size = bins[those].astype(f"<u{width}").tobytes(), CELLS * width
        for number, of in enumerate(those.tolist()):
            found[of] = packed[number * size : (number + 1) * size]
    return found


def read(rows: Sequence[bytes]) -> Ints:
    """Stored histograms, a row each."""
    bins = np.zeros((len(rows), CELLS), np.int64)
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    for length in np.unique(lengths).tolist():
        if length:
            those = np.flatnonzero(lengths == length)
            packed = rows if len(those) == len(rows) else [rows[i] for i in those.tolist()]
            bins[those] = np.frombuffer(b"".join(packed), f"<u{length // CELLS}").reshape(-1, CELLS)
    return bins


class Day:
    """Scores of one UTC day, read by the hour; series that are not known are registered.

    Attributes:
        ids: of the series, by their number.
    """

    def __init__(self, tx: Transaction, day: datetime) -> None:
        self._tx = tx
        mine = scores.c.captured_at >= day, scores.c.captured_at < day + DAY.width
        columns = [scores.c[name] for name in SERIES]
        first = func.min(scores.c.captured_at, type_=scores.c.captured_at.type)
        found = tx.connection.execute(select(*columns, first).where(*mine).group_by(*columns))
        seen = sorted(((Series(*row[:-1]), row[-1]) for row in found), key=lambda item: item[0].series_id)
        self._series = [of for of, _ in seen]
        self.ids = [of.series_id for of in self._series]
        named = [{name: getattr(of, name) for name in SERIES} for of in self._series]
        tx.insert_new(
            series,
            [
                {"series_id": of.series_id, **names, "first_seen_at": at}
                for (of, at), names in zip(seen, named, strict=True)
            ],
        )

    def hour(self, start: datetime) -> Tally:
        """What was captured in an hour, by the number of the series x 60 + the minute."""
        blocks = self._copied(start) if self._tx.is_postgresql else self._fetched(start)
        return Tally.merged(Tally.of(*block) for block in blocks)

    def _fetched(self, start: datetime) -> Iterator[tuple[Any, ...]]:
        c = scores.c
        numbers = {tuple(getattr(of, name) for name in SERIES): MINUTES * i for i, of in enumerate(self._series)}
        statuses = {status: i for i, status in enumerate(_STATUSES)}
        minute = cast(func.strftime("%M", c.captured_at), Integer)
        query = select(minute, c.status, c.value, c.weight, c.cost_usd, *(c[name] for name in SERIES))
        mine = c.captured_at >= start, c.captured_at < start + HOUR.width
        for rows in self._tx.connection.execute(query.where(*mine)).partitions(_BATCH):
            cell = np.array([numbers[tuple(row[5:])] + row[0] for row in rows], np.int64)
            status = np.array([statuses[row[1]] for row in rows], np.int64)
            yield cell, status, *(np.array([row[i] for row in rows], np.float64) for i in (2, 3, 4))  # None is NaN

    def _copied(self, start: datetime) -> Iterator[tuple[Any, ...]]:
        """PostgreSQL's binary format: rows of one length, which numpy takes as they are."""
        names, arrays = ", ".join(SERIES), ", ".join(f"CAST(%({name})s AS text[])" for name in SERIES)
        joined = " AND ".join(f"k.{name} = s.{name}" for name in SERIES)
        statuses = " ".join(f"WHEN '{status}' THEN {i}" for i, status in enumerate(_STATUSES))
        statement = (
            f"COPY (SELECT s.captured_at, k.number, CAST(CASE s.status {statuses} END AS bigint), "  # noqa: S608 - names of our own
            "coalesce(s.value, 'NaN'), s.weight, s.cost_usd "
            f"FROM scores s JOIN unnest({arrays}) WITH ORDINALITY AS k ({names}, number) ON {joined} "
            "WHERE s.captured_at >= %(start)s AND s.captured_at < %(until)s) TO STDOUT (FORMAT binary)"
        )
        values: dict[str, Any] = {name: [getattr(of, name) for of in self._series] for name in SERIES}
        values |= {"start": start, "until": start + HOUR.width}
        begins = (start - _POSTGRES_EPOCH) // MINUTE.width
        with self._tx.driver(statement) as cursor, cursor.copy(statement, values) as copied:
            messages = map(bytes, copied)
            left = next(messages)[_HEADER:]
            while some := list(islice(messages, _BATCH)):
                whole = b"".join([left, *some])
                n = len(whole) // _ROW.itemsize
                rows, left = np.frombuffer(whole, _ROW, n), whole[n * _ROW.itemsize :]
                at, number, status, value, weight, cost_usd = (rows[name].astype(kind) for name, kind in _KINDS)
                yield MINUTES * (number - 1) + at // _MINUTE_US - begins, status, value, weight, cost_usd


_POSTGRES_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MINUTE_US: Final = 60_000_000
_HEADER: Final = 19
"""Bytes before the first row."""
_KINDS: Final = (("at", "i8"), ("number", "i8"), ("status", "i8"), ("value", "f8"), ("weight", "f8"), ("cost", "f8"))
_ROW: Final = np.dtype([("", ">i2"), *(field for name, kind in _KINDS for field in (("", ">i4"), (name, f">{kind}")))])
"""The number of fields, and each with its length before it."""
