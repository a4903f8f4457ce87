"""How much of the traffic is really evaluated, place by place: hooks' counters, what waits, and how judges fare."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import func, select

from evalpipe.detectors.view import Coverage, Place
from evalpipe.store.meter_minutes import floor
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import judge_calls, meters, processes, records, releases, rollups, series, work

ANSWERED: Final = "answered"
_HOUR: Final = timedelta(hours=1)


def coverage_between(
    tx: Transaction, since: datetime, until: datetime, now: datetime, scorecard: str = ""
) -> dict[Place, Coverage]:
    """The coverage of a window by service, environment, variant and feature.

    What hooks count is kept by the hour, so it is of whole hours from that of ``since`` on. Judges are asked for a
    scorecard and not for a place: their calls are told at each place.

    Args:
        tx: a transaction.
        since: aware UTC.
        until: aware UTC.
        now: ages are as of now.
        scorecard: whose judge calls are counted; "" for those of all.
    """
    graded, judge_errors = _judged(tx, since, until, scorecard)
    heard = dict(_heard(tx))
    found: dict[Place, Coverage] = {}
    for place, part in (*_counted(tx, since, until), *_scored(tx, since, until, scorecard), *_waiting(tx, now)):
        found[place] = found.get(place, Coverage()).plus(part)
    judged = Coverage(graded=graded, judge_errors=judge_errors)
    return {place: c.plus(judged).plus(Coverage(heard_at=heard.get(place.service))) for place, c in found.items()}


def _counted(tx: Transaction, since: datetime, until: datetime) -> Iterator[tuple[Place, Coverage]]:
    place = releases.c.service, releases.c.environment, releases.c.variant, meters.c.feature
    sums = (func.sum(meters.c[name]) for name in ("calls", "sampled", "shed"))
    query = (
        select(*place, *sums)
        .join(releases, releases.c.release_id == meters.c.release_id)
        .where(meters.c.hour_at >= floor(since, _HOUR), meters.c.hour_at < until)
        .group_by(*place)
    )
    for *where, observed, sampled, shed in tx.connection.execute(query):
        yield Place(*where), Coverage(observed=int(observed), sampled=int(sampled), shed=int(shed))


def _scored(tx: Transaction, since: datetime, until: datetime, scorecard: str) -> Iterator[tuple[Place, Coverage]]:
    place = series.c.service, series.c.environment, series.c.variant, series.c.feature
    query = (
        select(*place, func.sum(rollups.c.n_scored))
        .join(rollups, rollups.c.series_id == series.c.series_id)
        .where(rollups.c.bucket_at >= since, rollups.c.bucket_at < until)
        .group_by(*place)
    )
    if scorecard:
        query = query.where(series.c.scorecard == scorecard)
    for *where, n in tx.connection.execute(query):
        yield Place(*where), Coverage(scored=int(n))


def _waiting(tx: Transaction, now: datetime) -> Iterator[tuple[Place, Coverage]]:
    """Records that reached the store and wait; a rescored one has its scores already."""
    owed = select(work.c.work_id).where(
        work.c.record_id == records.c.record_id, work.c.state == "batched", work.c.lane == "batch"
    )
    place: Any = records.c.service, records.c.environment, records.c.variant, records.c.feature
    query = select(*place, func.count(), func.min(records.c.captured_at)).where(records.c.outcome == "in_flight")
    # A batch takes hours by its nature: what is in one is under way.
    for *where, n, oldest in tx.connection.execute(query.where(~owed.exists()).group_by(*place)):
        yield Place(*where), Coverage(in_flight=int(n), oldest_s=max(0.0, (now - oldest).total_seconds()))


def _judged(tx: Transaction, since: datetime, until: datetime, scorecard: str) -> tuple[int, int]:
    query = select(judge_calls.c.outcome, func.sum(judge_calls.c.n)).where(
        judge_calls.c.minute_at >= since, judge_calls.c.minute_at < until
    )
    if scorecard:
        query = query.where(judge_calls.c.scorecard == scorecard)
    found = {outcome: int(n) for outcome, n in tx.connection.execute(query.group_by(judge_calls.c.outcome))}
    return sum(found.values()), sum(n for outcome, n in found.items() if outcome != ANSWERED)


def _heard(tx: Transaction) -> Iterator[tuple[str, datetime]]:
    """When each service was last heard of; one whose processes all said goodbye is at rest, not silent."""
    query = select(processes.c.service, func.max(processes.c.sent_at)).where(processes.c.ended_at.is_(None))
    yield from ((service, at) for service, at in tx.connection.execute(query.group_by(processes.c.service)))
