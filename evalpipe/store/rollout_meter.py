"""What the meters count of a rollout's arms: all of their calls, from the message that told of them to the fold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import orjson
from sqlalchemy import and_, delete, or_, select, update

from evalpipe.record import Release
from evalpipe.rollout.inputs import MeterReading
from evalpipe.scorecard.model import Match
from evalpipe.stats.matching import Arm
from evalpipe.store.meter_minutes import Grown
from evalpipe.store.rollouts import LIVE, STATELESS, UNVERIFIED
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import rollout_readings, rollouts

SHADOW_VARIANT = "shadow"
"""Of what hooks run beside served calls."""


@dataclass(slots=True)
class _Sum:
    calls: int = 0
    latency: Counter[int] = field(default_factory=Counter)
    ttft: Counter[int] = field(default_factory=Counter)


def add(tx: Transaction, grown: Sequence[Grown], releases: Iterable[Release], now: datetime) -> bool:
    """Keep the growth of a meter message that belongs to rollouts, until they fold it; whether there was any.

    In the transaction, and under the lock, in which that growth is found out: so nothing counts twice.
    """
    called = [g for g in grown if g.growth["calls"]]
    if not called:
        return False
    by_id = {release.release_id: release for release in releases}
    services = sorted({by_id[g.row.release_id].service for g in called})
    watched = or_(rollouts.c.phase.in_(LIVE), rollouts.c.verified.in_(UNVERIFIED))
    query = select(*STATELESS).where(and_(rollouts.c.service.in_(services), watched)).order_by(rollouts.c.rollout_id)
    kept = False
    for row in tx.connection.execute(query):
        mine = [(g, arm) for g in called if (arm := arm_of(row, by_id[g.row.release_id], g.row.feature)) is not None]
        if mine and row.phase in LIVE:
            _keep(tx, row.rollout_id, mine, now)
            kept = True
        elif mine:
            _note_canary(tx, row, [g for g, arm in mine if arm == "canary"], now)
    return kept


def arm_of(row: Any, release: Release, feature: str) -> Arm | None:
    """The arm of a rollout that calls of a release and feature belong to; None if to none.

    In the shadow phase the canary is what runs beside the served calls.
    """
    if release.environment != row.environment or not in_scope(row, release, feature):
        return None
    if release.variant == row.baseline:
        return "baseline"
    if shadowing(row):
        return "canary" if release.variant == SHADOW_VARIANT else None
    if release.variant == row.canary and row.canary_release_id in {"", release.release_id}:
        return "canary"
    return None


def shadowing(row: Any) -> bool:
    """Whether the canary of a live rollout answers beside the served calls, and no user gets its answers."""
    return row.phase in LIVE and row.percent == 0.0


def in_scope(row: Any, release: Release, feature: str) -> bool:
    """Whether a rollout compares such traffic."""
    scope = row.scope or {}
    features = scope.get("features") or ()
    if features and feature not in features:
        return False
    place = SimpleNamespace(
        service=release.service, feature=feature, environment=release.environment, variant=release.variant
    )
    match = scope.get("match")
    return not match or _match(orjson.dumps(match)).fits_place(place)


def waiting(tx: Transaction, rollout_id: str, now: datetime) -> tuple[tuple[MeterReading, ...], list[Any]]:
    """What waits to be folded, merged to one reading an arm; and its rows, to be forgotten in the same transaction."""
    rows = tx.connection.execute(select(rollout_readings).where(rollout_readings.c.rollout_id == rollout_id)).all()
    sums: dict[Arm, _Sum] = {}
    for row in rows:
        arm: Arm = "canary" if row.arm == "canary" else "baseline"
        found = sums.setdefault(arm, _Sum())
        found.calls += row.calls
        found.latency.update({int(key): n for key, n in row.latency.items()})
        found.ttft.update({int(key): n for key, n in row.ttft.items()})
    until = {arm: max(min(row.at, now) for row in rows if row.arm == arm) for arm in sums}
    merged = (
        MeterReading(until[arm], arm, s.calls, dict(sorted(s.latency.items())), dict(sorted(s.ttft.items())))
        for arm, s in sorted(sums.items())
    )
    return tuple(merged), list(rows)


def forget(tx: Transaction, rows: Sequence[Any]) -> None:
    """They are folded."""
    for row in rows:
        key = (column == getattr(row, column.name) for column in rollout_readings.primary_key)
        tx.connection.execute(delete(rollout_readings).where(*key))


@lru_cache(maxsize=256)
def _match(written: bytes) -> Match:
    """Read once: it is asked for each record and rollout."""
    return Match.model_validate(orjson.loads(written))


def _keep(tx: Transaction, rollout_id: str, mine: Sequence[tuple[Grown, Arm]], now: datetime) -> None:
    sums: dict[Arm, _Sum] = {}
    for grown, arm in mine:
        found = sums.setdefault(arm, _Sum())
        found.calls += grown.growth["calls"]
        found.latency.update(grown.growth["latency"].bins)
        found.ttft.update(grown.growth["ttft"].bins)
    first = mine[0][0].row
    rows = [
        {
            "rollout_id": rollout_id,
            "process_id": first.process_id,
            "sequence": first.sequence,
            "arm": arm,
            "at": min(first.sent_at, now),
            "calls": s.calls,
            "latency": {str(key): n for key, n in s.latency.items()},
            "ttft": {str(key): n for key, n in s.ttft.items()},
        }
        for arm, s in sums.items()
    ]
    tx.insert_new(rollout_readings, rows)


def _note_canary(tx: Transaction, row: Any, canary: Sequence[Grown], now: datetime) -> None:
    """Calls of a canary that was rolled back, and whether they began after they had to have ended."""
    if not canary:
        return
    deadline = row.rolled_back_at + timedelta(seconds=row.plan["verify_within"])
    # By this clock or by the hook's, whichever makes them the earlier: a message may have waited, and clocks differ.
    late = [g for g in canary if min(g.start, now - (g.row.sent_at - g.start)) >= deadline]
    values = {"canary_seen_at": now, **({"canary_late_at": now} if late else {})}
    tx.connection.execute(update(rollouts).where(rollouts.c.rollout_id == row.rollout_id).values(**values))
