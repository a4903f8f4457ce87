"""Sums since midnight (UTC) for counters, and means of the last minutes, as the database has them.

A counter that starts again every midnight costs one day of rows however old the database is, and ``rate()`` and
``increase()`` understand it as they understand a restart. Money is added up as whole billionths of a dollar: sums of
floats depend on their order, and a counter that seems to fall by 1e-17 would count as a restart.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, Column, ColumnElement, cast, func, select

from evalpipe.hook.meter import LEFT
from evalpipe.hook.row import SHED
from evalpipe.rollup import Rollup
from evalpipe.store.rollouts import LIVE
from evalpipe.store.series import read_rollups
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import decisions, meters, outbox, releases, rollouts, rollups, series

WINDOW = timedelta(minutes=10)
"""Of means and latencies."""
NANO = 1e9

PLACE = ("service", "environment", "variant")
CRITERION = (*PLACE, "scorecard", "criterion")
CALLS = ("calls", "errors", "sampled", "not_sampled", "enqueued", "input_tokens", "output_tokens", "cached_tokens",
         "screened", "refusals")  # fmt: skip
BLOCKED = ("kill_switch", "budget")
"""Why a call was refused before it was made."""


def midnight(now: datetime) -> datetime:
    """The start of the UTC day."""
    return now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def calls_since(tx: Transaction, since: datetime) -> Sequence[Any]:
    """What hooks counted on all calls, by place: ``CALLS``, ``shed_REASON``, ``blocked_REASON`` and ``nano_usd``."""
    sums = [func.sum(meters.c[name]).label(name) for name in CALLS]
    sums += [
        func.sum(func.coalesce(meters.c.shed_by_reason[reason].as_integer(), 0)).label(f"shed_{reason}")
        for reason in (*SHED, LEFT)
    ]
    sums += [
        func.sum(func.coalesce(meters.c.blocked[reason].as_integer(), 0)).label(f"blocked_{reason}")
        for reason in BLOCKED
    ]
    place = [releases.c[name] for name in PLACE]
    query = (
        select(*place, *sums, _nano(meters.c.cost_usd))
        .join(releases, releases.c.release_id == meters.c.release_id)
        .where(meters.c.hour_at >= since)
        .group_by(*place)
    )
    return tx.connection.execute(query).all()


def scores_since(tx: Transaction, since: datetime) -> Sequence[Any]:
    """Scores of records captured since then by criterion: counts by status and ``nano_usd``."""
    keys = [series.c[name] for name in CRITERION]
    counts = [func.sum(rollups.c[name]).label(name) for name in ("n_scored", "n_skipped", "n_abstained", "n_error")]
    query = (
        select(*keys, *counts, _nano(rollups.c.cost_usd))
        .join(series, series.c.series_id == rollups.c.series_id)
        .where(rollups.c.bucket_at >= since)
        .group_by(*keys)
    )
    return tx.connection.execute(query).all()


def decisions_made(tx: Transaction) -> Sequence[Any]:
    """All decisions ever: (service, action, n). They are never removed."""
    query = (
        select(rollouts.c.service, decisions.c.action, func.count().label("n"))
        .join(rollouts, rollouts.c.rollout_id == decisions.c.rollout_id)
        .group_by(rollouts.c.service, decisions.c.action)
    )
    return tx.connection.execute(query).all()


def phases(tx: Transaction, since: datetime) -> Sequence[Any]:
    """Rollouts that take evidence, or changed since then: (rollout_id, service, environment, phase)."""
    names = ("rollout_id", "service", "environment", "phase")
    query = select(*(rollouts.c[name] for name in names))
    return tx.connection.execute(query.where(rollouts.c.phase.in_(LIVE) | (rollouts.c.updated_at >= since))).all()


def undeliverable(tx: Transaction) -> int:
    """Notifications that were given up."""
    return tx.connection.scalar(select(func.count()).where(outbox.c.state == "dead")) or 0


@dataclass(frozen=True, slots=True)
class Mean:
    """A criterion's scores in the window, by place; only of the newest epoch, which began at ``epoch_at``."""

    labels: tuple[str, ...]
    rollup: Rollup
    epoch_at: datetime


def means(tx: Transaction, now: datetime) -> list[Mean]:
    """One mean for each criterion and place: the newest epoch's, because epochs cannot be compared."""
    newest: dict[tuple[str, ...], str] = {}
    found: dict[tuple[tuple[str, ...], str], Rollup] = {}
    for _, s, rollup in read_rollups(tx, since=now - WINDOW):
        labels = tuple(getattr(s, name) for name in CRITERION)
        if rollup.n_scored:
            newest[labels] = s.epoch
            found.setdefault((labels, s.epoch), Rollup()).merge(rollup)
    began = _began(tx, set(newest.values()))
    return [Mean(labels, found[labels, epoch], began[*labels, epoch]) for labels, epoch in newest.items()]


def _began(tx: Transaction, epochs: Collection[str]) -> dict[tuple[str, ...], datetime]:
    """When the first score of an epoch came, by criterion, place and epoch."""
    of = [series.c[name] for name in (*CRITERION, "epoch")]
    first = func.min(series.c.first_seen_at, type_=series.c.first_seen_at.type)
    rows = tx.connection.execute(select(*of, first).where(series.c.epoch.in_(epochs)).group_by(*of))
    return {tuple(row[:-1]): row[-1] for row in rows}


def _nano(column: Column[float]) -> ColumnElement[int]:
    # PostgreSQL adds whole numbers up to a decimal, which is no float: cast, so that both databases give an int.
    return cast(func.sum(cast(func.round(column * NANO), BigInteger)), BigInteger).label("nano_usd")
