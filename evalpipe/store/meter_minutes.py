"""What the meters grew by, minute by minute: cost, errors, refusals and latencies of 100 % of the calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
_KEYS = ("minute_at", "process_id", "release_id", "feature")


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


def add(tx: Transaction, rows: Sequence[MeterRow]) -> None:
    """Add what ``rows`` count beyond what the same process told before, in the minute they were sent.

    Call it before the rows themselves are stored, with the process's row locked: then no growth is added twice,
    whichever worker takes which message. What a lost message would have told is in the next one's growth.
    """
    if not rows:
        return
    first = rows[0]
    query = select(meters).where(
        meters.c.process_id == first.process_id, meters.c.hour_at.in_({row.hour_at for row in rows})
    )
    known = {(row.release_id, row.feature, row.hour_at): row for row in tx.connection.execute(query)}
    grown: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        before = known.get((row.release_id, row.feature, row.hour_at))
        if before is None or row.sequence > before.sequence:
            _grow(grown.setdefault((row.release_id, row.feature), _nothing()), row, before)
    minute_at = first.sent_at.replace(second=0, microsecond=0)
    for (release_id, feature), growth in sorted(grown.items()):
        if growth["calls"] or growth["blocked"]:
            _store(tx, dict(zip(_KEYS, (minute_at, first.process_id, release_id, feature), strict=True)), growth)


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
    since = (now - window).replace(second=0, microsecond=0)
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


def _grow(growth: dict[str, Any], row: MeterRow, before: Any) -> None:
    now, then = _sums(row), _sums(before) if before is not None else dict.fromkeys(SUMS, 0)
    for name in SUMS:
        growth[name] += max(0, now[name] - then[name])
    for name in SKETCHES:
        if wire := getattr(row, name):
            sketch = Sketch.from_wire(wire)
            earlier = getattr(before, name) if before is not None else None
            growth[name].merge(sketch.since(Sketch.from_wire(earlier)) if earlier else sketch)


def _sums(row: Any) -> dict[str, float]:
    return {
        **{name: getattr(row, name) for name in ("calls", "errors", "cost_usd", "screened", "refusals")},
        "tokens": row.input_tokens + row.output_tokens,
        "blocked": sum(row.blocked.values()),
    }


def _store(tx: Transaction, key: Mapping[str, Any], growth: dict[str, Any]) -> None:
    # Only the process itself has this row, and its messages are taken in one after the other.
    same = [meter_minutes.c[name] == value for name, value in key.items()]
    there = tx.connection.execute(select(meter_minutes).where(*same)).one_or_none()
    if there is not None:
        for name in SUMS:
            growth[name] += getattr(there, name)
        for name in SKETCHES:
            growth[name].merge(Sketch.from_wire(getattr(there, name)))
    row = {**key, **growth, **{name: growth[name].to_wire() for name in SKETCHES}}
    insert = (postgresql.insert if tx.is_postgresql else sqlite.insert)(meter_minutes)
    values = {name: insert.excluded[name] for name in (*SUMS, *SKETCHES)}
    tx.connection.execute(insert.on_conflict_do_update(index_elements=list(_KEYS), set_=values), row)
