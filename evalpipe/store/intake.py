"""Records as they arrive: releases, payloads, receipts, and what could not be read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy import select, update

from evalpipe.record import Record, Release, from_wire
from evalpipe.store.ledgers import hour_of
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import dead_letters, receipts, records, releases, scorecards


@dataclass(frozen=True, slots=True)
class Arrival:
    """A record with its stored form and what became of it at ingest."""

    record: Record
    payload: bytes
    outcome: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Bytes that could not be read, with the reason.

    Attributes:
        kind: ``envelope`` (a whole message as it was in Redis), ``message`` (a batch's text), ``record`` (one of a
            batch) or ``meter``.
        key: names the letter, so that a redelivered message adds no second one.
        service, hour_at: where its records belong in the ledger, as far as the message's headers tell.
    """

    kind: str
    key: str
    reason: str
    payload: bytes
    n_records: int = 1
    process_id: str = ""
    service: str = ""
    hour_at: datetime | None = None

    @property
    def dead_letter_id(self) -> str:
        """Stable over redelivery."""
        return hashlib.sha256(f"{self.kind}\x1f{self.key}".encode()).hexdigest()[:24]


def add_releases(tx: Transaction, found: Iterable[Release], now: datetime) -> None:
    """Remember releases not seen before."""
    rows = [
        {"release_id": r.release_id, **{name: getattr(r, name) for name in _RELEASE}, "first_seen_at": now}
        for r in found
    ]
    tx.insert_new(releases, rows)


def add_scorecard(tx: Transaction, version: str, name: str, body: Mapping[str, Any], now: datetime) -> None:
    """Remember a scorecard version, so that its work can be judged after the file has changed."""
    known = tx.connection.execute(select(scorecards.c.version).where(scorecards.c.version == version)).first()
    if known is None:
        row = {"version": version, "name": name, "body": dict(body), "first_seen_at": now}
        tx.insert_new(scorecards, [row])


def scorecard_body(tx: Transaction, version: str) -> dict[str, Any] | None:
    """The scorecard of that version as it was, or None."""
    row = tx.connection.execute(select(scorecards.c.body).where(scorecards.c.version == version)).first()
    return dict(row.body) if row else None


def add_records(tx: Transaction, arrivals: Sequence[Arrival], now: datetime) -> set[str]:
    """Store the records not stored before and return their ids."""
    rows = [_row(arrival, now) for arrival in arrivals]
    return {key for (key,) in tx.insert_new(records, rows)}


def payloads(tx: Transaction, record_ids: Sequence[str]) -> dict[str, Record]:
    """The records of these ids whose payload is still kept."""
    rows = tx.connection.execute(
        select(records.c.record_id, records.c.payload).where(
            records.c.record_id.in_(record_ids), records.c.payload.is_not(None)
        )
    )
    return {record_id: from_wire(orjson.loads(payload)) for record_id, payload in rows}


def add_receipts(tx: Transaction, process_id: str, counts: Mapping[tuple[str, datetime], int]) -> None:
    """Count records that arrived from one hook process, by service and hour."""
    tx.add_up(
        receipts,
        [
            {"process_id": process_id, "service": service, "hour_at": hour_at, "n": n}
            for (service, hour_at), n in counts.items()
        ],
        ["n"],
    )


def add_dead_letters(tx: Transaction, letters: Sequence[DeadLetter], now: datetime) -> set[str]:
    """Keep what could not be read; returns the ids of the new ones."""
    rows = [
        {
            "dead_letter_id": letter.dead_letter_id,
            "kind": letter.kind,
            "process_id": letter.process_id,
            "service": letter.service,
            "hour_at": letter.hour_at,
            "n_records": letter.n_records,
            "reason": letter.reason,
            "payload": letter.payload,
            "created_at": now,
        }
        for letter in letters
    ]
    return {key for (key,) in tx.insert_new(dead_letters, rows)}


def list_dead_letters(tx: Transaction, *, limit: int, redriven: bool = False) -> list[dict[str, Any]]:
    """The newest dead letters, first those that wait."""
    query = select(dead_letters).order_by(dead_letters.c.created_at.desc()).limit(limit)
    if not redriven:
        query = query.where(dead_letters.c.redriven_at.is_(None))
    return [dict(row) for row in tx.connection.execute(query).mappings()]


def take_dead_letters(tx: Transaction, ids: Sequence[str] | None, now: datetime) -> list[dict[str, Any]]:
    """Mark dead letters (all that wait, or these) as re-driven and return them."""
    statement = update(dead_letters).where(dead_letters.c.redriven_at.is_(None)).values(redriven_at=now)
    if ids is not None:
        statement = statement.where(dead_letters.c.dead_letter_id.in_(ids))
    return [dict(row) for row in tx.connection.execute(statement.returning(*dead_letters.c)).mappings()]


def dead_message(kind: str, payload: bytes, headers: Mapping[str, Any], reason: str) -> list[DeadLetter]:
    """A whole message that cannot be read, booked where its headers say that its records belong.

    Args:
        kind: ``message`` (the hook's text) or ``envelope`` (all that was in Redis).
        payload: the bytes.
        headers: of the message, as far as they can be read.
        reason: why it cannot be read.
    """
    key = hashlib.sha256(payload).hexdigest()
    process_id = str(headers.get("origin") or "")
    hours = headers.get("evalpipe_hours")
    places = [(name.rpartition("|"), n) for name, n in hours.items()] if isinstance(hours, dict) else []
    found = [
        DeadLetter(kind, f"{key}|{service}|{hour}", reason, payload, int(n), process_id, service, _hour(hour))
        for (service, _, hour), n in places
        if hour.isdigit()
    ]
    return found or [DeadLetter(kind, key, reason, payload, 1, process_id)]


_RELEASE = (
    "service", "variant", "environment", "model", "prompt", "retrieval", "index", "tool_schema", "data_pipeline",
)  # fmt: skip


def _row(arrival: Arrival, now: datetime) -> dict[str, Any]:
    record = arrival.record
    return {
        "record_id": record.record_id,
        "trace_id": record.trace_id,
        "service": record.release.service,
        "feature": record.feature,
        "environment": record.release.environment,
        "variant": record.release.variant,
        "release_id": record.release.release_id,
        "session_id": record.session_id,
        "user_id": record.user_id,
        "unit": record.unit or record.session_id or record.user_id or record.trace_id,
        "captured_at": record.captured_at,
        "ingested_at": now,
        "probability": record.probability,
        "stratum": record.stratum,
        "reason": record.reason,
        "latency_ms": record.latency_ms,
        "cost_usd": record.cost_usd,
        "outcome": arrival.outcome,
        "payload": arrival.payload,
    }


def _hour(seconds: str) -> datetime:
    return hour_of(datetime.fromtimestamp(int(seconds), UTC))
