"""Meter → store: what the hooks count on 100 % of the calls."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import accumulate, islice
from typing import Any, NamedTuple

import orjson

from evalpipe.errors import RecordError
from evalpipe.record import MAX_NAME, OLDEST_SCHEMA, SCHEMA, Release
from evalpipe.sketch import Sketch
from evalpipe.store import counters, intake, meter_minutes, meter_slots, meter_users, rollout_meter
from evalpipe.store.counters import MeterRow, ProcessRow
from evalpipe.store.intake import DeadLetter
from evalpipe.store.sql import Store, Transaction, storable

MOST = float(1 << 53)
"""No count or sum is greater: all of them are exact, and a few of them together fit into the database's columns."""
MOST_USERS = 64
"""A hook tells of no more in a row."""
MOST_BINS = 10_000
"""A sketch's bins lie between minus this and this, by far."""
UNREADABLE = (RecordError, ValueError, KeyError, TypeError, AttributeError, OverflowError, OSError, RecursionError)


class Measured(NamedTuple):
    """What one message brought.

    Attributes:
        rows: taken; 0 for a message that became a dead letter.
        compared: a live rollout has new calls to compare.
    """

    rows: int = 0
    compared: bool = False


class Measure:
    """The stage: replaces each process's cumulative counters by newer ones."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __call__(self, blob: str, now: datetime) -> Measured:
        """Take one meter message in.

        A row that cannot be read costs no other: it alone is kept as a dead letter, once for each process and reason.
        """
        payload = blob.encode("utf-8", "surrogatepass")
        try:
            rows, releases, process, bad = decode_meter(blob)
        except UNREADABLE as error:
            self._bury(hashlib.sha256(payload).hexdigest(), reason_of(error), payload, now)
            return Measured()
        if bad:
            # Counters are cumulative: the next message has the same row, and its letter is this one.
            told = "; ".join(sorted(set(bad)))
            key = hashlib.sha256(f"{process.process_id}\x1f{told}".encode()).hexdigest()
            self._bury(key, f"{len(bad)} of {len(bad) + len(rows)} rows: {told}", payload, now)

        def run(tx: Transaction) -> bool:
            intake.add_releases(tx, releases, now)
            # First: it locks the process against a message taken in beside this one.
            since = counters.seen(tx, process)
            known = meter_minutes.known(tx, rows)
            grown = meter_minutes.add(tx, rows, since, known)
            meter_slots.add(tx, grown, now)
            kept = rollout_meter.add(tx, grown, releases, now)
            counters.upsert(tx, meter_users.add(tx, rows, known, now))
            return kept

        return Measured(len(rows), self._store.patiently(run))

    def _bury(self, key: str, reason: str, payload: bytes, now: datetime) -> None:
        letter = DeadLetter("meter", key, reason, payload, n_records=0)
        self._store.patiently(lambda tx: intake.add_dead_letters(tx, [letter], now))


class Decoded(NamedTuple):
    """A meter message.

    Attributes:
        releases: that its rows name.
        process: that counted them.
        bad: why rows were left out.
    """

    rows: list[MeterRow]
    releases: set[Release]
    process: ProcessRow
    bad: list[str]


def decode_meter(blob: str) -> Decoded:
    """What is in a meter message, without the rows that cannot be read.

    Raises:
        RecordError: a schema that this code does not read, or no row that it can read.
        KeyError, TypeError, ValueError, AttributeError, OverflowError, OSError, RecursionError: no meter message.
    """
    body = _parsed(blob)
    schema = body["schema"]
    if not isinstance(schema, int) or not OLDEST_SCHEMA <= schema <= SCHEMA:
        raise RecordError(f"the meter message has schema {schema!r}; this worker reads {OLDEST_SCHEMA} to {SCHEMA}")
    process = _process(body)
    rows, releases, bad = [], set(), []
    for wire in body["rows"]:
        try:
            release = _release(wire)
            rows.append(_row(process, wire, release))
            releases.add(release)
        except UNREADABLE as error:
            bad.append(reason_of(error))
    if bad and not rows:
        raise RecordError(f"no row can be read: {bad[0]}")
    return Decoded(rows, releases, process, bad)


def reason_of(error: Exception) -> str:
    """Why something could not be read."""
    return f"{type(error).__name__}: {error}"[:200]


def _parsed(blob: str) -> Any:
    try:
        return orjson.loads(blob)
    except ValueError:
        # The standard library reads what it wrote: infinity and halves of surrogate pairs, which cost one row.
        return json.loads(blob)


def _release(wire: Mapping[str, Any]) -> Release:
    # As in records, what a newer hook adds to a release is not known here and ignored.
    told = {"service": wire["service"], **wire["release"]}
    return Release(**{name: _key(told, name, MAX_NAME) for name in Release.__slots__ if name in told})


def _process(body: Mapping[str, Any]) -> ProcessRow:
    _need(body, "process", "seq", "sent_at")
    sent_at = datetime.fromtimestamp(body["sent_at"], UTC)
    return ProcessRow(
        process_id=_key(body, "process", MAX_NAME),
        service=_key(body, "service", MAX_NAME),
        hook_version=storable(str(body.get("hook", "")))[:MAX_NAME],
        started_at=datetime.fromtimestamp(body.get("started_at", body["sent_at"]), UTC),
        sent_at=sent_at,
        sequence=_count(body, "seq"),
        messages=1,
        ended_at=sent_at if body.get("ended") else None,
        feedback=_counts(body, "feedback"),
    )


def _need(wire: Mapping[str, Any], *names: str) -> None:
    if missing := [name for name in names if name not in wire]:
        raise RecordError(f"{missing[0]!r} is missing")


def _key(wire: Mapping[str, Any], name: str, most: int) -> str:
    found = storable(str(wire.get(name, "")))
    if len(found) > most:
        # Cut, it would be the key of another row, and replace its counts.
        raise RecordError(f"{name!r} has {len(found)} characters, more than {most}")
    return found


def _amount(wire: Mapping[str, Any], name: str) -> float:
    found = wire.get(name, 0.0)
    if not isinstance(found, int | float) or not 0 <= found < MOST:
        raise RecordError(f"{name!r} must be a number from 0 to {MOST:.0e}, not {str(found)[:40]!r}")
    return float(found)


def _count(wire: Mapping[str, Any], name: str) -> int:
    return int(_amount(wire, name))


def _counts(wire: Mapping[str, Any], name: str) -> dict[str, int]:
    given = wire.get(name) or {}
    return {storable(str(reason)): _count(given, reason) for reason in given}


def _sketch(wire: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    if wire.get(name) is None:
        return None
    found = Sketch.from_wire(wire[name]).to_wire()
    if not all(0 <= n < MOST for n in (found["total"], found["low"], found["high"], found["zeros"], *found["counts"])):
        raise RecordError(f"{name!r} holds what is no amount")
    if any(not -MOST_BINS <= key <= MOST_BINS for key in accumulate(found["keys"])):
        raise RecordError(f"{name!r} has bins of other values than a sketch holds")
    return found


def _row(process: ProcessRow, wire: Mapping[str, Any], release: Release) -> MeterRow:
    _need(wire, "hour", "calls", "sampled", "not_sampled", "enqueued")
    shed = _counts(wire, "shed")
    return MeterRow(
        process_id=process.process_id,
        release_id=release.release_id,
        feature=_key(wire, "feature", MAX_NAME),
        hour_at=datetime.fromtimestamp(wire["hour"], UTC),
        service=release.service,
        sequence=process.sequence,
        sent_at=process.sent_at,
        shed=sum(shed.values()),
        shed_by_reason=shed,
        cost_usd=_amount(wire, "cost_usd"),
        calls=_count(wire, "calls"),
        errors=_count(wire, "errors"),
        sampled=_count(wire, "sampled"),
        not_sampled=_count(wire, "not_sampled"),
        enqueued=_count(wire, "enqueued"),
        input_tokens=_count(wire, "input_tokens"),
        output_tokens=_count(wire, "output_tokens"),
        cached_tokens=_count(wire, "cached_tokens"),
        unpriced=_count(wire, "unpriced"),
        screened=_count(wire, "screened"),
        refusals=_count(wire, "refusals"),
        blocked=_counts(wire, "blocked"),
        finish_reasons=_counts(wire, "finish_reasons"),
        latency=_sketch(wire, "latency"),
        ttft=_sketch(wire, "ttft"),
        tpot=_sketch(wire, "tpot"),
        cost_squares=_amount(wire, "cost_squares"),
        users=_users(wire),
    )


def _users(wire: Mapping[str, Any]) -> dict[str, list[float]] | None:
    """The heaviest users; None where an older hook tells of none."""
    told = {name: counts for name, counts in (wire.get("users") or {}).items() if len(name) <= MAX_NAME}
    found = {
        storable(name): [_amount({"users": value}, "users") for value in counts]
        for name, counts in islice(told.items(), MOST_USERS)
        if len(counts) == meter_users.COUNTS
    }
    return found or None
