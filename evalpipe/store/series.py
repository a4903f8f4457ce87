"""Scores and the rollups made of them, always in one transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import orjson
from sqlalchemy import Select, bindparam, case, func, select, update

from evalpipe.rollup import SUMS, Rollup
from evalpipe.score import Score
from evalpipe.store.sql import Transaction, storable
from evalpipe.store.tables import rollups, scores, series


@dataclass(frozen=True, slots=True)
class Series:
    """What a stretch of scores is about: comparisons never cross an epoch silently."""

    service: str
    feature: str
    environment: str
    variant: str
    release_id: str
    scorecard: str
    criterion: str
    epoch: str

    @property
    def series_id(self) -> str:
        """Sixteen hex digits that name the series."""
        values = (getattr(self, name) for name in SERIES)
        return hashlib.sha256("\x1f".join(values).encode()).hexdigest()[:16]


SERIES = ("service", "feature", "environment", "variant", "release_id", "scorecard", "criterion", "epoch")


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


def add_scores(tx: Transaction, entries: Sequence[Entry], now: datetime) -> int:
    """Store the scores not stored before, and count just those into their minute rollups."""
    inserted = tx.insert_new(scores, [_row(entry, now) for entry in entries])
    fresh = [e for e in entries if (e.record_id, e.series.criterion, e.scorecard_version, e.series.epoch) in inserted]
    _add_rollups(tx, fresh, now)
    return len(fresh)


def _add_rollups(tx: Transaction, entries: Iterable[Entry], now: datetime) -> None:
    deltas: dict[tuple[datetime, Series], Rollup] = {}
    for entry in entries:
        key = entry.captured_at.replace(second=0, microsecond=0), entry.series
        deltas.setdefault(key, Rollup()).add(entry.score, entry.weight, entry.cost_usd)
    if not deltas:
        return
    ids = {key: key[1].series_id for key in deltas}
    found = {s: i for (_, s), i in ids.items()}
    known = set(tx.connection.scalars(select(series.c.series_id).where(series.c.series_id.in_(found.values()))))
    tx.insert_new(
        series,
        [
            {"series_id": i, **{name: getattr(s, name) for name in SERIES}, "first_seen_at": now}
            for s, i in sorted(found.items(), key=lambda pair: pair[1])
            if i not in known
        ],
    )
    rows = [
        {"bucket_at": key[0], "series_id": ids[key], **{name: getattr(delta, name) for name in SUMS}}
        for key, delta in deltas.items()
    ]
    # The upsert locks each bucket, so the histogram that it returns cannot change before it is written back.
    current = {
        (bucket_at, series_id): bins
        for bucket_at, series_id, bins in tx.add_up(rollups, rows, SUMS, ["bucket_at", "series_id", "bins"])
    }
    changed = []
    for key, delta in deltas.items():
        if delta.bins:
            merged = read_bins(current[key[0], ids[key]])
            for index, count in delta.bins.items():
                merged[index] = merged.get(index, 0) + count
            changed.append({"at": key[0], "of": ids[key], "merged": write_bins(merged)})
    if changed:
        bucket = rollups.c.bucket_at == bindparam("at"), rollups.c.series_id == bindparam("of")
        tx.connection.execute(update(rollups).where(*bucket).values(bins=bindparam("merged")), changed)


def read_bins(text: str) -> dict[int, int]:
    """A stored histogram."""
    return {int(index): count for index, count in orjson.loads(text).items()}


def write_bins(bins: dict[int, int]) -> str:
    """A histogram as stored: the same bytes for the same counts."""
    return orjson.dumps({str(index): bins[index] for index in sorted(bins)}).decode()


def read_rollups(
    tx: Transaction, *, since: datetime | None = None, until: datetime | None = None, **where: str
) -> list[tuple[datetime, Series, Rollup]]:
    """Minute rollups in order of time; ``where`` compares columns of ``Series``."""
    query = (
        select(rollups, *(series.c[name] for name in SERIES))
        .join(series, series.c.series_id == rollups.c.series_id)
        .order_by(rollups.c.bucket_at)
    )
    if since is not None:
        query = query.where(rollups.c.bucket_at >= since)
    if until is not None:
        query = query.where(rollups.c.bucket_at < until)
    for name, value in where.items():
        query = query.where(series.c[name] == value)
    return [_rollup(row) for row in tx.connection.execute(query).mappings()]


def read_sums(tx: Transaction, since: datetime, **where: str) -> list[tuple[datetime | None, Series, Rollup]]:
    """Each series' sums since then, without histograms, and its newest bucket with a scored value; newest last."""
    newest = func.max(case((rollups.c.n_scored > 0, rollups.c.bucket_at)), type_=rollups.c.bucket_at.type)
    query = (
        select(
            *(series.c[name] for name in SERIES),
            *(func.sum(rollups.c[name]).label(name) for name in SUMS),
            newest.label("newest_at"),
        )
        .join(series, series.c.series_id == rollups.c.series_id)
        .where(rollups.c.bucket_at >= since, *(series.c[name] == value for name, value in where.items()))
        .group_by(series.c.series_id)
        .order_by(newest, series.c.first_seen_at, series.c.series_id)
    )
    return [
        (row["newest_at"], Series(*(row[n] for n in SERIES)), Rollup(**{n: _number(row[n]) for n in SUMS}))
        for row in tx.connection.execute(query).mappings()
    ]


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


def _rollup(row: Any) -> tuple[datetime, Series, Rollup]:
    sums = {name: row[name] for name in SUMS}
    return row["bucket_at"], Series(*(row[n] for n in SERIES)), Rollup(**sums, bins=read_bins(row["bins"]))


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
    }
