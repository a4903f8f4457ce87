"""Meter → store: what the hooks count on 100 % of the calls."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from evalpipe.errors import RecordError
from evalpipe.record import OLDEST_SCHEMA, SCHEMA, Release
from evalpipe.store import counters, intake, meter_minutes
from evalpipe.store.counters import MeterRow, ProcessRow
from evalpipe.store.intake import DeadLetter
from evalpipe.store.sql import Store, Transaction, storable


class Measure:
    """The stage: replaces each process's cumulative counters by newer ones."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __call__(self, blob: str, now: datetime) -> int:
        """Take one meter message in; returns its rows, 0 for one that became a dead letter."""
        try:
            rows, releases, process = decode_meter(blob)
        except (RecordError, ValueError, KeyError, TypeError, AttributeError, OverflowError, OSError) as error:
            payload = blob.encode("utf-8", "surrogatepass")
            key = hashlib.sha256(payload).hexdigest()
            letter = DeadLetter("meter", key, f"{type(error).__name__}: {error}", payload, n_records=0)
            self._store.patiently(lambda tx: intake.add_dead_letters(tx, [letter], now))
            return 0

        def run(tx: Transaction) -> None:
            intake.add_releases(tx, releases, now)
            counters.seen(tx, process)  # first: it locks the process against a message taken in beside this one
            meter_minutes.add(tx, rows)
            counters.upsert(tx, rows)

        self._store.patiently(run)
        return len(rows)


def decode_meter(blob: str) -> tuple[list[MeterRow], set[Release], ProcessRow]:
    """The rows of a meter message, the releases that they name, and the process that counted them.

    Raises:
        RecordError: a schema that this code does not read.
        KeyError, TypeError, ValueError, AttributeError, OverflowError, OSError: not a meter message.
    """
    body = orjson.loads(blob)
    schema = body["schema"]
    if not isinstance(schema, int) or not OLDEST_SCHEMA <= schema <= SCHEMA:
        raise RecordError(f"the meter message has schema {schema!r}; this worker reads {OLDEST_SCHEMA} to {SCHEMA}")
    rows, releases = [], set()
    for wire in body["rows"]:
        # As in records, what a newer hook adds to a release is not known here and ignored.
        told = {"service": wire["service"], **wire["release"]}
        release = Release(**{name: storable(str(told[name])) for name in Release.__slots__ if name in told})
        releases.add(release)
        rows.append(_row(body, wire, release))
    return rows, releases, _process(body)


def _process(body: Mapping[str, Any]) -> ProcessRow:
    sent_at = datetime.fromtimestamp(body["sent_at"], UTC)
    return ProcessRow(
        process_id=str(body["process"]),
        service=storable(str(body.get("service", ""))),
        hook_version=storable(str(body.get("hook", ""))),
        started_at=datetime.fromtimestamp(body.get("started_at", body["sent_at"]), UTC),
        sent_at=sent_at,
        sequence=int(body["seq"]),
        messages=1,
        ended_at=sent_at if body.get("ended") else None,
        feedback=_counts(body, "feedback"),
    )


def _counts(wire: Mapping[str, Any], name: str) -> dict[str, int]:
    return {storable(str(reason)): int(n) for reason, n in (wire.get(name) or {}).items()}


def _row(body: Mapping[str, Any], wire: Mapping[str, Any], release: Release) -> MeterRow:
    shed = _counts(wire, "shed")
    return MeterRow(
        process_id=str(body["process"]),
        release_id=release.release_id,
        feature=storable(str(wire.get("feature", ""))),
        hour_at=datetime.fromtimestamp(wire["hour"], UTC),
        service=release.service,
        sequence=int(body["seq"]),
        sent_at=datetime.fromtimestamp(body["sent_at"], UTC),
        calls=int(wire["calls"]),
        errors=int(wire.get("errors", 0)),
        sampled=int(wire["sampled"]),
        not_sampled=int(wire["not_sampled"]),
        enqueued=int(wire["enqueued"]),
        shed=sum(shed.values()),
        shed_by_reason=shed,
        input_tokens=int(wire.get("input_tokens", 0)),
        output_tokens=int(wire.get("output_tokens", 0)),
        cost_usd=float(wire.get("cost_usd", 0.0)),
        cached_tokens=int(wire.get("cached_tokens", 0)),
        screened=int(wire.get("screened", 0)),
        refusals=int(wire.get("refusals", 0)),
        blocked=_counts(wire, "blocked"),
        finish_reasons=_counts(wire, "finish_reasons"),
        latency=wire.get("latency"),
        ttft=wire.get("ttft"),
        tpot=wire.get("tpot"),
    )
