"""What the meters grew by, minute by minute: cost, errors, refusals and latencies of 100 % of the calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite

from evalpipe.sketch import Sketch
from evalpipe.store.counters import MeterRow
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import meter_minutes, meters, releases

KEPT = timedelta(days=2)
SUMS = ("calls", "errors", "tokens", "cost_usd", "screened", "refusals", "blocked")
SKETCHES = ("latency", "ttft")
MINUTE = timedelta(minutes=1)
_KEYS = ("minute_at", "process_id", "release_id", "feature")
_Key = tuple[datetime, str, str, str]


@dataclass(slots=True)
class Recent:
    """The meters of one place over a window.

    Attributes:
        minutes: how long the window is, by the meter's clock.
        sums: ``SUMS`` by name.
        sketches: ``SKETCHES`` by name, in ms.
    """

    minutes: float = 0.0
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUMS, 0.0))
    sketches: Mapping[str, Sketch] = field(default_factory=lambda: {name: Sketch() for name in SKETCHES})

    @property
    def calls(self) -> int:
        """Calls in the window."""
        return int(self.sums["calls"])

    def size(self, meter: str) -> int:
        """How many calls the value is of; those that were refused before they were made are calls that were wanted."""
        return self.calls + (int(self.sums["blocked"]) if meter == "blocked_per_minute" else 0)

    def value(self, meter: str) -> float | None:
        """The value of one of ``VALUES``; None where there is nothing to take it of."""
        return VALUES[meter](self)


def _ratio(part: str, whole: str) -> Callable[[Recent], float | None]:
    return lambda seen: seen.sums[part] / seen.sums[whole] if seen.sums[whole] else None


def _a_minute(name: str) -> Callable[[Recent], float | None]:
    return lambda seen: seen.sums[name] / seen.minutes if seen.minutes else None


def _p99(name: str) -> Callable[[Recent], float | None]:
    return lambda seen: seen.sketches[name].quantile(0.99)


VALUES: Mapping[str, Callable[[Recent], float | None]] = {
    "error_rate": _ratio("errors", "calls"),
    "refusal_rate": _ratio("refusals", "screened"),
    "latency_p99_ms": _p99("latency"),
    "ttft_p99_ms": _p99("ttft"),
    "cost_usd_per_minute": _a_minute("cost_usd"),
    "tokens_per_minute": _a_minute("tokens"),
    "calls_per_minute": _a_minute("calls"),
    "blocked_per_minute": _a_minute("blocked"),
}
"""What an alert rule can watch on all calls, by name."""


@dataclass(frozen=True, slots=True)
class Grown:
    """What a row counts beyond what its process told before, and from when to when that happened."""

    row: MeterRow
    growth: Mapping[str, Any]
    start: datetime
    end: datetime


def add(tx: Transaction, rows: Sequence[MeterRow], since: datetime) -> list[Grown]:
    """Add what ``rows`` count beyond what the same process told before, in the minutes in which it happened.

    Call it before the rows themselves are stored, with the process's row locked: then no growth is added twice,
    whichever worker takes which message. What a lost message would have told is in the next one's growth. That growth
    is spread evenly over the time since the process's last message, as far as it lies in the row's hour: after an
    outage of Redis an hour's cost is not the cost of one minute. Latencies are not split: all are in the last minute.

    Args:
        tx: a transaction.
        rows: of one message.
        since: when the process sent the message before it, or began.

    Returns:
        The growth of the rows that grew.
    """
    if not rows:
        return []
    first = rows[0]
    query = select(meters).where(
        meters.c.process_id == first.process_id, meters.c.hour_at.in_({row.hour_at for row in rows})
    )
    known = {(row.release_id, row.feature, row.hour_at): row for row in tx.connection.execute(query)}
    grown: dict[_Key, dict[str, Any]] = {}
    told: list[Grown] = []
    for row in rows:
        before = known.get((row.release_id, row.feature, row.hour_at))
        if before is None or row.sequence > before.sequence:
            growth = _growth(row, before)
            if growth["calls"] or growth["blocked"]:
                start, end = _span(row, since)
                told.append(Grown(row, growth, start, end))
                for minute_at, part in _spread(growth, start, end):
                    key = minute_at, row.process_id, row.release_id, row.feature
                    _add(grown.setdefault(key, _nothing()), part)
    _store(tx, first.process_id, grown)
    return told


def read(
    tx: Transaction, now: datetime, window: timedelta, fits: Callable[[Any], bool]
) -> dict[tuple[str, str, str], Recent]:
    """The window of each service, environment and variant, over all processes and the features that fit.

    Args:
        tx: a transaction.
        now: the end of the window.
        window: how far back it reaches, to the whole minute.
        fits: of a row with service, environment, variant and feature: whether it belongs.
    """
    since = _minute(now - window)
    place = ("service", "environment", "variant")
    query = (
        select(meter_minutes, *(releases.c[name] for name in place))
        .join(releases, releases.c.release_id == meter_minutes.c.release_id)
        .where(meter_minutes.c.minute_at >= since)
    )
    found: dict[tuple[str, str, str], Recent] = {}
    for row in tx.connection.execute(query):
        if fits(row):
            seen = found.setdefault(
                (row.service, row.environment, row.variant), Recent((now - since).total_seconds() / 60)
            )
            for name in SUMS:
                seen.sums[name] += getattr(row, name)
            for name, sketch in seen.sketches.items():
                sketch.merge(Sketch.from_wire(getattr(row, name)))
    return found


def remove(tx: Transaction, now: datetime) -> None:
    """Delete what no rule looks at any more."""
    tx.connection.execute(delete(meter_minutes).where(meter_minutes.c.minute_at < now - KEPT))


def _nothing() -> dict[str, Any]:
    return {**dict.fromkeys(SUMS, 0), **{name: Sketch() for name in SKETCHES}}


def _growth(row: MeterRow, before: Any) -> dict[str, Any]:
    growth = _nothing()
    now, then = _sums(row), _sums(before) if before is not None else dict.fromkeys(SUMS, 0)
    for name in SUMS:
        growth[name] = max(0, now[name] - then[name])
    for name in SKETCHES:
        if wire := getattr(row, name):
            sketch = Sketch.from_wire(wire)
            earlier = getattr(before, name) if before is not None else None
            growth[name] = sketch.since(Sketch.from_wire(earlier)) if earlier else sketch
    return growth


def _sums(row: Any) -> dict[str, float]:
    return {
        **{name: getattr(row, name) for name in ("calls", "errors", "cost_usd", "screened", "refusals")},
        "tokens": row.input_tokens + row.output_tokens,
        "blocked": sum(row.blocked.values()),
    }


def _span(row: MeterRow, since: datetime) -> tuple[datetime, datetime]:
    """When the growth of a row happened: after the last message, in the row's hour, and no longer ago than is kept."""
    start = max(since, row.hour_at, row.sent_at - KEPT)
    end = min(row.sent_at, row.hour_at + timedelta(hours=1))
    # What was reported late, or by a clock that was set back, counts when it was told.
    return (start, end) if start < end else (row.sent_at, row.sent_at)


def _spread(growth: dict[str, Any], start: datetime, end: datetime) -> Iterator[tuple[datetime, dict[str, Any]]]:
    """``growth`` by the minutes from ``start`` to ``end``, in proportion to the time in each; its parts add up."""
    minute_at, given = _minute(start), dict.fromkeys(SUMS, 0.0)
    while (after := minute_at + MINUTE) < end:
        share = (after - start) / (end - start)
        # Of whole numbers, what is due by the end of this minute and not given yet.
        due = {n: growth[n] * share if isinstance(growth[n], float) else int(growth[n] * share) for n in SUMS}
        part = {name: due[name] - given[name] for name in SUMS}
        given = due
        if any(part.values()):
            yield minute_at, part
        minute_at = after
    yield minute_at, {**growth, **{name: growth[name] - given[name] for name in SUMS}}


def _minute(at: datetime) -> datetime:
    return at.replace(second=0, microsecond=0)


def _add(to: dict[str, Any], part: Mapping[str, Any]) -> None:
    for name in SUMS:
        to[name] += part[name]
    for name in SKETCHES:
        if name in part:
            to[name].merge(part[name])


def _store(tx: Transaction, process_id: str, grown: Mapping[_Key, dict[str, Any]]) -> None:
    if not grown:
        return
    # Only the process itself has these rows, and its messages are taken in one after the other.
    at = meter_minutes.c.minute_at
    query = select(meter_minutes).where(
        meter_minutes.c.process_id == process_id, at >= min(grown)[0], at <= max(grown)[0]
    )
    for there in tx.connection.execute(query).mappings():
        if (growth := grown.get(_key(there))) is not None:
            _add(growth, {**there, **{name: Sketch.from_wire(there[name]) for name in SKETCHES}})
    rows = [
        {**dict(zip(_KEYS, key, strict=True)), **growth, **{name: growth[name].to_wire() for name in SKETCHES}}
        for key, growth in sorted(grown.items(), key=lambda item: item[0])
    ]
    insert = (postgresql.insert if tx.is_postgresql else sqlite.insert)(meter_minutes)
    values = {name: insert.excluded[name] for name in (*SUMS, *SKETCHES)}
    tx.connection.execute(insert.on_conflict_do_update(index_elements=list(_KEYS), set_=values), rows)


def _key(row: Any) -> _Key:
    return row["minute_at"], row["process_id"], row["release_id"], row["feature"]
