"""One reading of queue and database for ``GET /metrics``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from redis import RedisError
from sqlalchemy.exc import SQLAlchemyError

from evalpipe.api import totals
from evalpipe.api.health import Probes, Stored, Waiting, look_at_queue
from evalpipe.api.queries import reading
from evalpipe.store import alert_totals, judge_states, ledgers
from evalpipe.store.alert_totals import Around
from evalpipe.store.judge_states import JudgeState
from evalpipe.store.latencies import Latencies, Sketches
from evalpipe.store.ledgers import Line
from evalpipe.store.sql import Transaction

RECENT = timedelta(days=1)
"""Rollouts that changed longer ago and do not run are left out, or there would be more of them for ever."""

log = logging.getLogger("evalpipe.api")


@dataclass(slots=True)
class Seen:
    """Everything of one scrape; what could not be read is None or empty, and ``database`` or ``redis`` says so."""

    at: datetime
    database: bool = False
    redis: bool = False
    stored: Stored | None = None
    waiting: Waiting | None = None
    lines: Sequence[Line] = ()
    calls: Sequence[Any] = ()
    scores: Sequence[Any] = ()
    means: Sequence[totals.Mean] = ()
    phases: Sequence[Any] = ()
    decisions: Sequence[Any] = ()
    undeliverable: int | None = None
    around: Around | None = None
    latencies: Mapping[tuple[str, ...], Sketches] = field(default_factory=dict)
    judge_calls: Sequence[Any] = ()
    judges: Mapping[str, JudgeState] = field(default_factory=dict)


def see(probes: Probes, latencies: Latencies, at: datetime) -> Seen:
    """Read the queue, then the database: what goes from one to the other meanwhile is seen twice, not missed."""
    seen = Seen(at)
    queued = None
    try:
        seen.waiting = look_at_queue(probes.queue, at)
        queued = probes.queue.queued()
        seen.redis = True
    except (RedisError, OSError) as error:
        log.warning("metrics without Redis: %s", error)
    try:
        _see_store(seen, probes, latencies, queued)
    except (SQLAlchemyError, OSError) as error:
        log.warning("metrics without the database: %s", error)
    return seen


def _see_store(seen: Seen, probes: Probes, latencies: Latencies, queued: ledgers.Queued | None) -> None:
    seen.stored = probes.look_at_store(seen.at)
    if not seen.stored.unmigrated:
        with reading(probes.store) as tx:
            _see_tables(seen, tx, queued)
            seen.latencies = latencies.read(tx, seen.at)
    seen.database = True


def _see_tables(seen: Seen, tx: Transaction, queued: ledgers.Queued | None) -> None:
    today = totals.midnight(seen.at)
    if queued is not None:  # without it, what waits in Redis would count as lost
        seen.lines = ledgers.read(tx, queued, seen.at, since=ledgers.hour_of(seen.at) - timedelta(hours=1))
    seen.calls = totals.calls_since(tx, today)
    seen.scores = totals.scores_since(tx, today)
    seen.means = totals.means(tx, seen.at)
    seen.around = alert_totals.read(tx, today, seen.at)
    seen.phases = totals.phases(tx, seen.at - RECENT)
    seen.decisions = totals.decisions_made(tx)
    seen.undeliverable = totals.undeliverable(tx)
    seen.judge_calls = judge_states.calls_since(tx, today)
    seen.judges = judge_states.read(tx)
