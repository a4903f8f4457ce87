"""Scores and the rollups made of them, always in one transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import Select, Table, case, func, select

from evalpipe.rollup import SUMS, Rollup
from evalpipe.score import Score
from evalpipe.store import exports, growths, levels
from evalpipe.store.growths import Growth
from evalpipe.store.levels import MINUTE, Level, rollup_of
from evalpipe.store.sql import Transaction, storable
from evalpipe.store.tables import scores, series

SERVED: Final = "served"
SHADOW: Final = "shadow"
"""The arm of answers that nobody saw: they are no part of what is reported, unless it is asked for."""


@dataclass(frozen=True, slots=True)
class Series:
    """What a stretch of scores is about: comparisons never cross an epoch silently, and shadows are apart."""

    service: str
    feature: str
    environment: str
    variant: str
    release_id: str
    scorecard: str
    criterion: str
    epoch: str
    arm: str = SERVED

    @property
    def series_id(self) -> str:
        """Sixteen hex digits that name the series."""
        return _series_id(self)


@lru_cache(maxsize=16_384)
def _series_id(of: Series) -> str:
    values = (getattr(of, name) for name in SERIES)
    return hashlib.sha256("\x1f".join(values).encode("utf-8", "surrogatepass")).hexdigest()[:16]


SERIES = ("service", "feature", "environment", "variant", "release_id", "scorecard", "criterion", "epoch", "arm")


@dataclass(frozen=True, slots=True)
class Entry:
    """One score with its keys, as it goes into the store.

    Attributes:
        weight: 1 / inclusion probability, the judge's share included.
        scorer: ``heuristic:name@version`` or the judge's version.
        cost_usd: what its grades cost.
        step: of the judges' ladder.
        escalated: the stronger judge of a cascade was asked.
        disagreement: mean distance of two votes; None for one.
        grown: what it weighs in the growth that alert rules fold, 0 for nothing; as ``weight`` if None.
    """

    record_id: str
    scorecard_version: str
    series: Series
    captured_at: datetime
    score: Score
    weight: float
    scorer: str
    cost_usd: float = 0.0
    step: int = 0
    escalated: bool = False
    disagreement: float | None = None
    grown: float | None = None


def add_scores(tx: Transaction, entries: Sequence[Entry], now: datetime) -> int:
    """Store the scores not stored before, and count just those into their rollups and the growth of their series."""
    inserted = tx.insert_new(scores, [_row(entry, now) for entry in entries])
    fresh = [e for e in entries if (e.record_id, e.series.criterion, e.scorecard_version, e.series.epoch) in inserted]
    if fresh:
        minutes, growth = _deltas(fresh)
        _register(tx, {s.series_id: s for _, s in minutes}, now)
        levels.add(tx, {(at, s.series_id): delta for (at, s), delta in minutes.items()})
        growths.add(tx, growth, now)
        if tx.exports:
            exports.owe(tx, inserted, now)
    return len(fresh)


def _register(tx: Transaction, found: Mapping[str, Series], now: datetime) -> None:
    known = set(tx.connection.scalars(select(series.c.series_id).where(series.c.series_id.in_(found))))
    tx.insert_new(
        series,
        [
            {"series_id": i, **{name: getattr(s, name) for name in SERIES}, "first_seen_at": now}
            for i, s in sorted(found.items())
            if i not in known
        ],
    )


def _deltas(entries: Iterable[Entry]) -> tuple[dict[tuple[datetime, Series], Rollup], list[Growth]]:
    """What the scores add to each minute, and to the growth of each series.

    Most scores weigh the same in both, so the growth is made of the minutes but for those where one does not.
    """
    cells: dict[tuple[datetime, Series], list[Entry]] = {}
    minutes: dict[tuple[datetime, Series], Rollup] = {}
    for e in entries:
        key = e.captured_at.replace(second=0, microsecond=0), e.series
        if (cell := cells.get(key)) is None:
            cell = cells[key] = []
            minutes[key] = Rollup()
        minutes[key].add(e.score, e.weight, e.cost_usd)
        cell.append(e)
    found: dict[Series, Growth] = {}
    for key, cell in cells.items():
        drawn = [e for e in cell if e.grown != 0.0 and e.weight != 0.0] if key[1].arm == SERVED else []
        if not drawn:
            continue
        times = [e.captured_at for e in drawn]
        growth = found.get(key[1])
        if growth is None:
            growth = found[key[1]] = Growth(key[1].series_id, times[0], times[0], Rollup())
        growth.take_in(min(times))
        growth.take_in(max(times))
        if len(drawn) == len(cell) and all(e.grown is None or e.grown == e.weight for e in cell):
            growth.rollup.merge(minutes[key])
        else:
            for e in drawn:
                growth.rollup.add(e.score, e.weight if e.grown is None else e.grown, e.cost_usd)
    return minutes, list(found.values())


def by_id(tx: Transaction, ids: Iterable[str]) -> dict[str, tuple[Series, datetime]]:
    """Series by their ids, with when each was first seen."""
    wanted = sorted(ids)
    columns = [series.c[name] for name in (*SERIES, "series_id", "first_seen_at")]
    found: dict[str, tuple[Series, datetime]] = {}
    for start in range(0, len(wanted), _BATCH):
        query = select(*columns).where(series.c.series_id.in_(wanted[start : start + _BATCH]))
        for row in tx.connection.execute(query):
            found[row.series_id] = Series(*row[: len(SERIES)]), row.first_seen_at
    return found


def read_rollups(
    tx: Transaction,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    width: timedelta = MINUTE.width,
    **where: str,
) -> list[tuple[datetime, Series, Rollup]]:
    """Rollups in order of time.

    Args:
        tx: a transaction.
        since: minutes that start here or later.
        until: minutes that start before it.
        width: of the points that they are joined to: hours and days are read where none straddles two points. By
            default everything is by the minute.
        where: columns of ``Series`` to compare; the arm is ``served`` if it is not given.
    """
    found: list[tuple[datetime, str, Rollup]] = []
    for level, first, last in levels.spans(since, until, width=width):
        table = level.table
        query = joined(select(table), table, first, last, where).order_by(table.c.bucket_at)
        rows = tx.connection.execute(query).mappings()
        found += [(row["bucket_at"], row["series_id"], rollup_of(row)) for row in rows]
    known = by_id(tx, {series_id for _, series_id, _ in found})
    return [(at, known[series_id][0], rollup) for at, series_id, rollup in found]


def read_sums(
    tx: Transaction, since: datetime, until: datetime | None = None, **where: str
) -> list[tuple[datetime | None, Series, Rollup]]:
    """Each series' sums since then, without histograms, and its newest bucket with a scored value; newest last.

    The newest bucket is a minute in the current hour, and else the hour or the day; ``where`` as in ``read_rollups``.
    """
    found: dict[str, tuple[list[datetime], Rollup]] = {}
    for level, first, last in levels.spans(since, until):
        for row in tx.connection.execute(_summed(level, first, last, where)).mappings():
            times, whole = found.setdefault(row["series_id"], ([], Rollup()))
            times.extend([row["newest_at"]] if row["newest_at"] is not None else [])
            whole.merge(Rollup(**{n: _number(row[n]) for n in SUMS}))
    known = by_id(tx, found)

    def order(item: tuple[str, tuple[list[datetime], Rollup]]) -> tuple[Any, ...]:
        times = item[1][0]
        return bool(times), max(times, default=None) or 0, known[item[0]][1], item[0]

    ordered = sorted(found.items(), key=order)
    return [(max(times, default=None), known[of][0], whole) for of, (times, whole) in ordered]


def _summed(level: Level, first: datetime | None, last: datetime | None, where: Mapping[str, str]) -> Select[Any]:
    table = level.table
    newest = func.max(case((table.c.n_scored > 0, table.c.bucket_at)), type_=table.c.bucket_at.type)
    sums = (func.sum(table.c[name]).label(name) for name in SUMS)
    query = select(table.c.series_id, *sums, newest.label("newest_at")).group_by(table.c.series_id)
    return joined(query, table, first, last, where)


def joined(
    query: Select[Any], table: Table, first: datetime | None, last: datetime | None, where: Mapping[str, str]
) -> Select[Any]:
    """Only buckets in [first, last) of series that ``where`` fits."""
    fits = (series.c[name] == value for name, value in {"arm": SERVED, **where}.items())
    query = query.where(table.c.series_id.in_(select(series.c.series_id).where(*fits)))
    if first is not None:
        query = query.where(table.c.bucket_at >= first)
    return query if last is None else query.where(table.c.bucket_at < last)


_BATCH: Final = 1_000


def query_scores(
    *, since: datetime | None = None, until: datetime | None = None, limit: int | None = None, **where: str
) -> Select[Any]:
    """Select scores, newest last; ``where`` compares columns of the table."""
    query = select(scores)
    if since is not None:
        query = query.where(scores.c.captured_at >= since)
    if until is not None:
        query = query.where(scores.c.captured_at < until)
    for name, value in where.items():
        query = query.where(scores.c[name] == value)
    if limit is None:
        return query.order_by(scores.c.captured_at, scores.c.record_id, scores.c.criterion)
    newest = query.order_by(scores.c.captured_at.desc(), scores.c.record_id).limit(limit).subquery()
    return select(newest).order_by(newest.c.captured_at, newest.c.record_id, newest.c.criterion)


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, Decimal) else value  # a sum of whole numbers on PostgreSQL


def _row(entry: Entry, now: datetime) -> dict[str, Any]:
    s, score = entry.series, entry.score
    return {
        "record_id": entry.record_id,
        "criterion": s.criterion,
        "scorecard_version": entry.scorecard_version,
        "epoch": s.epoch,
        "scorecard": s.scorecard,
        "service": s.service,
        "feature": s.feature,
        "environment": s.environment,
        "variant": s.variant,
        "release_id": s.release_id,
        "captured_at": entry.captured_at,
        "scored_at": now,
        "status": score.status.value,
        "value": score.value,
        "label": storable(score.label),
        "explanation": storable(score.explanation),
        "weight": entry.weight,
        "scorer": entry.scorer,
        "cost_usd": entry.cost_usd,
        "step": entry.step,
        "escalated": int(entry.escalated),
        "disagreement": entry.disagreement,
        "arm": s.arm,
    }
