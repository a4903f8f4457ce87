"""Stored history in one piece: what alert rules would have seen, for a backtest."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from sqlalchemy import Column, Table, func, select

from evalpipe.alerts.history import CallLine, Floats, History, ScoreLine
from evalpipe.detectors.view import CALL_SKETCHES, CALL_SUMS, Normal, Place, Scope, Spender
from evalpipe.rollup import SUMS
from evalpipe.sketch import Sketch
from evalpipe.store import baselines, prints, profiles, series
from evalpipe.store.levels import HOUR, MINUTE, Level
from evalpipe.store.normal import Normals
from evalpipe.store.series import Series
from evalpipe.store.shelf import Shelf
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import meter_hours, meter_minutes, meter_users, releases
from evalpipe.store.windows import values_of

MOST_PROFILES: Final = 200_000
"""An even choice of so many is played."""
Tell = Callable[[str], None]
"""Is told what is being read."""


@dataclass(slots=True)
class Kept:
    """From when on history is there, and how finely; times are aware UTC, None for nothing at all.

    Attributes:
        scores, scores_by_minute: the first scores, and those that are kept by the minute.
        calls, calls_by_minute: the same of the meter.
        users, profiles: the first ones.
    """

    scores: datetime | None = None
    scores_by_minute: datetime | None = None
    calls: datetime | None = None
    calls_by_minute: datetime | None = None
    users: datetime | None = None
    profiles: datetime | None = None


def read(
    tx: Transaction, scopes: Collection[Scope], since: datetime, until: datetime, *, sketches: bool, tell: Tell
) -> tuple[History, Kept]:
    """What rules of these scopes would have seen.

    Args:
        tx: a transaction.
        scopes: of the rules.
        since: aware UTC.
        until: aware UTC.
        sketches: whether latencies are read: they are most of the meter.
        tell: is told what is being read.
    """
    found, kept = History(), Kept()
    inputs = {name for scope in scopes for name in scope.inputs}
    if inputs & {"growth", "scores"}:
        wanted = {(scope.scorecard, criterion) for scope in scopes for criterion in scope.criteria}
        found.scores = _scores(tx, wanted, since, until, kept, tell)
    if inputs & {"calls", "users"}:
        tell("reading the meter")
        found.calls = _calls(tx, since, until, kept, sketches=sketches)
        found.calls_by_minute = kept.calls_by_minute
    if "users" in inputs:
        found.users = _users(tx, since, until)
        kept.users = min((at for at, _, _ in found.users), default=None)
    if "profiles" in inputs:
        tell("reading profiles")
        for place in profiles.places_since(tx, since):
            mine = profiles.profiles_between(tx, place, since, until, MOST_PROFILES)
            found.profiles += [(place, profile) for profile in mine]
        kept.profiles = min((profile.captured_at for _, profile in found.profiles), default=None)
    for name in [row["name"] for row in prints.listing(tx)] if "prints" in inputs else ():
        if (whole := prints.place_of(tx, name)) is not None:
            found.prints[name] = whole, prints.prints_since(tx, name, datetime.min.replace(tzinfo=UTC))
    return found, kept


def _scores(
    tx: Transaction, wanted: Iterable[tuple[str, str]], since: datetime, until: datetime, kept: Kept, tell: Tell
) -> list[ScoreLine]:
    """Minutes where they are kept, and the hours before."""
    border = _border(tx, MINUTE.table.c.bucket_at, HOUR.table.c.bucket_at, since, until)
    lines = []
    for scorecard, criterion in sorted(wanted):
        tell(f"reading scores of {criterion}")
        parts: dict[str, list[tuple[Any, Floats]]] = {}
        for level, start, end in ((HOUR, since, border), (MINUTE, border, until)):
            for series_id, minutes, values in _rows(tx, level, scorecard, criterion, start, end):
                parts.setdefault(series_id, []).append((minutes, values))
                at = datetime.fromtimestamp(int(minutes[0]) * 60, UTC)
                kept.scores = min(at, kept.scores or at)
                if level is MINUTE:
                    kept.scores_by_minute = min(at, kept.scores_by_minute or at)
        known = series.by_id(tx, parts)
        for series_id, mine in sorted(parts.items()):
            of = known[series_id][0]
            minutes, values = (np.concatenate(each) for each in zip(*mine, strict=True))
            lines.append(ScoreLine(scorecard, criterion, _place(of), of.epoch, minutes, values))
    return lines


def _border(
    tx: Transaction, minute: Column[datetime], hour: Column[datetime], since: datetime, until: datetime
) -> datetime:
    """From when on minutes are played, and hours before: of the hour in which the first minute is, the rest is gone.

    Unless no hour is kept from before it: then nothing is gone, and all there is may be in that hour.
    """
    first, hours = (tx.connection.scalar(select(func.min(column))) for column in (minute, hour))
    if first is None:
        return until
    begins = HOUR.floor(first)
    return min(max(since, begins if hours is None or hours >= begins else HOUR.ceil(first)), until)


def _rows(
    tx: Transaction, level: Level, scorecard: str, criterion: str, since: datetime, until: datetime
) -> Iterable[tuple[str, Any, Floats]]:
    """By series: the last minute of each bucket, and its values."""
    if since >= until:
        return
    t, where = level.table.c, {"scorecard": scorecard, "criterion": criterion}
    query = select(t.series_id, t.bucket_at, t.bins, *(t[name] for name in SUMS)).order_by(t.series_id, t.bucket_at)
    rows = tx.connection.execute(series.joined(query, level.table, since, until, where)).all()
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or rows[end][0] != rows[start][0]:
            those = rows[start:end]
            late = int(level.width.total_seconds()) // 60 - 1
            minutes = np.array([int(row[1].timestamp()) // 60 + late for row in those], dtype=np.int64)
            yield rows[start][0], minutes, values_of(those)
            start = end


def _calls(tx: Transaction, since: datetime, until: datetime, kept: Kept, *, sketches: bool) -> list[CallLine]:
    border = _border(tx, meter_minutes.c.minute_at, meter_hours.c.hour_at, since, until)
    found: dict[Place, list[tuple[int, int, list[float], Mapping[str, Sketch]]]] = {}
    for table, at, minutes, start, end in (
        (meter_hours, "hour_at", 60, HOUR.floor(since), border),
        (meter_minutes, "minute_at", 1, border, until),
    ):
        rows = list(_metered(tx, table, at, start, end, sketches=sketches))
        times = [row[1] for row in rows]
        kept.calls = min([*times, *([kept.calls] if kept.calls else [])], default=None)
        if minutes == 1:
            kept.calls_by_minute = min(times, default=None)
        for place, begins, sums, seen in rows:
            found.setdefault(place, []).append((int(begins.timestamp()) // 60, minutes, sums, seen))
    return [
        CallLine(
            place,
            np.array([row[0] for row in mine], dtype=np.int64),
            np.array([row[1] for row in mine], dtype=np.int64),
            np.array([row[2] for row in mine]),
            [row[3] for row in mine],
        )
        for place, mine in sorted(found.items())
    ]


def _metered(
    tx: Transaction, table: Table, at: str, since: datetime, until: datetime, *, sketches: bool
) -> Iterable[tuple[Place, datetime, list[float], Mapping[str, Sketch]]]:
    r, t = releases.c, table.c
    of_sketches = [t[name] for name in CALL_SKETCHES] if sketches else []
    place = r.service, r.environment, r.variant, t.feature, t.release_id
    query = (
        select(*place, t[at], *(t[name] for name in CALL_SUMS), *of_sketches)
        .join(releases, r.release_id == t.release_id)
        .where(t[at] >= since, t[at] < until)
        .order_by(t[at])
    )
    end = 6 + len(CALL_SUMS)
    for row in tx.connection.execute(query):
        seen = {name: Sketch.from_wire(wire) for name, wire in zip(CALL_SKETCHES, row[end:], strict=False) if wire}
        yield Place(*row[:5]), row[5], [float(n or 0) for n in row[6:end]], seen


def _users(tx: Transaction, since: datetime, until: datetime) -> list[tuple[datetime, Place, Spender]]:
    r, u = releases.c, meter_users.c
    place = r.service, r.environment, r.variant, u.feature, u.release_id
    query = (
        select(*place, u.minute_at, u.user_id, u.calls, u.tokens, u.cost_usd)
        .join(releases, r.release_id == u.release_id)
        .where(u.minute_at >= since, u.minute_at < until)
        .order_by(u.minute_at)
    )
    return [
        (row[5], Place(*row[:5]), Spender(row[6], float(row[7]), float(row[8]), float(row[9])))
        for row in tx.connection.execute(query)
    ]


def _place(of: Series) -> Place:
    return Place(of.service, of.environment, of.variant, of.feature, of.release_id)


class PastNormals:
    """The baselines of rules as they were at any time.

    Args:
        tx: the transaction; it must last as long as this is asked.
        history: tells when a new epoch began, by which another baseline may fit.
        of_now: take the baselines of now for all times.
        now: aware UTC.
    """

    def __init__(self, tx: Transaction, history: History, *, of_now: bool, now: datetime) -> None:
        self._tx, self._of_now, self._now = tx, of_now, now
        self._shelf = Shelf()
        times = {line.minutes[0] * 60 for line in history.scores if len(line.minutes)}
        for header in baselines.listing(tx):
            times |= {at.timestamp() for at in (header.captured_at, header.retired_at) if at is not None}
        self._times = sorted(times)
        self._normals: dict[int, Normals] = {}
        self._found: dict[tuple[Any, ...], Normal | None] = {}

    def __call__(self, scope: Scope, place: Place, at: datetime) -> Normal | None:
        """What a rule with a baseline compares with at a place."""
        if self._of_now:
            at = self._now
        stretch = bisect_right(self._times, at.timestamp())
        key = scope.scorecard, scope.inputs, scope.criteria, scope.fits, scope.by, scope.normal, scope.across_epochs
        of = stretch, key, place
        if of not in self._found:
            normals = self._normals.setdefault(stretch, Normals(self._tx, at, self._shelf))
            self._found[of] = normals.of(scope, place, at, at)
        return self._found[of]
