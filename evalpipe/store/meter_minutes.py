"""What the meters grew by, minute by minute: cost, errors, refusals and latencies of 100 % of the calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite

from evalpipe.detectors.view import CALL_SKETCHES, CALL_SUMS
from evalpipe.sketch import Sketch
from evalpipe.store.counters import MeterRow
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import meter_minutes, meters

KEPT = timedelta(days=2)
SUMS, SKETCHES = CALL_SUMS, CALL_SKETCHES
_SAME = tuple(name for name in SUMS if name not in {"tokens", "blocked"})
MINUTE = timedelta(minutes=1)
_KEYS = ("minute_at", "process_id", "release_id", "feature")
_Key = tuple[datetime, str, str, str]
Known = Mapping[tuple[str, str, datetime], Any]
"""What a process told before, by release, feature and hour."""


@dataclass(frozen=True, slots=True)
class Grown:
    """What a row counts beyond what its process told before, and from when to when that happened."""

    row: MeterRow
    growth: Mapping[str, Any]
    start: datetime
    end: datetime


def known(tx: Transaction, rows: Sequence[MeterRow]) -> Known:
    """What the process of ``rows`` told before of their hours."""
    if not rows:
        return {}
    hours = {row.hour_at for row in rows}
    query = select(meters).where(meters.c.process_id == rows[0].process_id, meters.c.hour_at.in_(hours))
    return {(row.release_id, row.feature, row.hour_at): row for row in tx.connection.execute(query)}


def add(tx: Transaction, rows: Sequence[MeterRow], since: datetime, known: Known) -> list[Grown]:
    """Add what ``rows`` count beyond what the same process told before, in the minutes in which it happened.

    Call it before the rows themselves are stored, with the process's row locked: then no growth is added twice,
    whichever worker takes which message. What a lost message would have told is in the next one's growth. That growth
    is spread evenly over the time since the process's last message, as far as it lies in the row's hour: after an
    outage of Redis an hour's cost is not the cost of one minute. Latencies are not split: all are in the last minute.

    Args:
        tx: a transaction.
        rows: of one message.
        since: when the process sent the message before it, or began.
        known: see ``known``.

    Returns:
        The growth of the rows that grew.
    """
    if not rows:
        return []
    grown: dict[_Key, dict[str, Any]] = {}
    told: list[Grown] = []
    for row in rows:
        before = known.get((row.release_id, row.feature, row.hour_at))
        if before is None or row.sequence > before.sequence:
            growth = _growth(row, before)
            if growth["calls"] or growth["blocked"]:
                start, end = _span(row, since)
                told.append(Grown(row, growth, start, end))
                for minute_at, part in spread(growth, start, end, MINUTE):
                    key = minute_at, row.process_id, row.release_id, row.feature
                    _add(grown.setdefault(key, _nothing()), part)
    _store(tx, rows[0].process_id, grown)
    return told


def remove(tx: Transaction, now: datetime) -> None:
    """Delete what no rule looks at any more."""
    tx.connection.execute(delete(meter_minutes).where(meter_minutes.c.minute_at < now - KEPT))


def _nothing() -> dict[str, Any]:
    return {**dict.fromkeys(SUMS, 0), **{name: Sketch() for name in SKETCHES}}


def _growth(row: MeterRow, before: Any) -> dict[str, Any]:
    growth = _nothing()
    now, then = sums_of(row), sums_of(before) if before is not None else dict.fromkeys(SUMS, 0)
    for name in SUMS:
        growth[name] = max(0, now[name] - then[name])
    for name in SKETCHES:
        if wire := getattr(row, name):
            sketch = Sketch.from_wire(wire)
            earlier = getattr(before, name) if before is not None else None
            growth[name] = sketch.since(Sketch.from_wire(earlier)) if earlier else sketch
    return growth


def sums_of(row: Any) -> dict[str, float]:
    """``SUMS`` of a row as its process counted it."""
    return {
        **{name: getattr(row, name) for name in _SAME},
        "tokens": row.input_tokens + row.output_tokens,
        "blocked": sum(row.blocked.values()),
    }


def _span(row: MeterRow, since: datetime) -> tuple[datetime, datetime]:
    """When the growth of a row happened: after the last message, in the row's hour, and no longer ago than is kept."""
    start = max(since, row.hour_at, row.sent_at - KEPT)
    end = min(row.sent_at, row.hour_at + timedelta(hours=1))
    # What was reported late, or by a clock that was set back, counts when it was told.
    return (start, end) if start < end else (row.sent_at, row.sent_at)


def spread(
    growth: Mapping[str, Any], start: datetime, end: datetime, step: timedelta
) -> Iterator[tuple[datetime, dict[str, Any]]]:
    """``growth`` by the steps (minutes, slots) from ``start`` to ``end``, in proportion to the time in each.

    Its parts add up exactly; sketches are in the last one.
    """
    begin, given = floor(start, step), dict.fromkeys(SUMS, 0.0)
    while (after := begin + step) < end:
        share = (after - start) / (end - start)
        # Of whole numbers, what is due by the end of this step and not given yet.
        due = {n: growth[n] * share if isinstance(growth[n], float) else int(growth[n] * share) for n in SUMS}
        part = {name: due[name] - given[name] for name in SUMS}
        given = due
        if any(part.values()):
            yield begin, part
        begin = after
    yield begin, {**growth, **{name: growth[name] - given[name] for name in SUMS}}


def floor(at: datetime, step: timedelta) -> datetime:
    """When the step (of so many whole seconds of an hour) began that ``at`` lies in."""
    seconds = int(step.total_seconds())
    into = (at.minute * 60 + at.second) % seconds
    return at - timedelta(seconds=into, microseconds=at.microsecond)


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
