"""Records as they arrive: releases, payloads, receipts, and what could not be read."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import delete, func, or_, select, update

from evalpipe.errors import RecordError
from evalpipe.record import Record, Release, from_wire
from evalpipe.store import ledgers
from evalpipe.store.ledgers import places
from evalpipe.store.sql import Transaction, storable
from evalpipe.store.tables import dead_letters, receipts, records, releases, scorecards

REASON_CHARS = 2_000
"""Characters kept of a reason."""


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
    """The records of these ids whose payload is still kept, and that this code can read."""
    rows = tx.connection.execute(
        select(records.c.record_id, records.c.payload).where(
            records.c.record_id.in_(record_ids), records.c.payload.is_not(None)
        )
    )
    found = {}
    for record_id, payload in rows:
        with suppress(RecordError):
            found[record_id] = from_wire(orjson.loads(payload))
    return found


def lock_kept(tx: Transaction, record_ids: Sequence[str]) -> set[str]:
    """Lock records, in order, and return the ids of those whose payload is kept: about others nothing may be quoted."""
    query = select(records.c.record_id, records.c.payload.is_not(None)).where(records.c.record_id.in_(record_ids))
    rows = tx.connection.execute(query.order_by(records.c.record_id).with_for_update())
    return {record_id for record_id, kept in rows if kept}


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
    """Keep what could not be read; returns the ids of those that were not waiting already.

    One that was re-driven and cannot be read again waits again.
    """
    if not letters:
        return set()
    rows = [
        {
            "dead_letter_id": letter.dead_letter_id,
            "kind": letter.kind,
            "process_id": storable(letter.process_id),
            "service": storable(letter.service),
            "hour_at": letter.hour_at,
            "n_records": letter.n_records,
            "reason": storable(letter.reason)[:REASON_CHARS],
            "payload": letter.payload,
            "created_at": now,
        }
        for letter in letters
    ]
    new = {key for (key,) in tx.insert_new(dead_letters, rows)}
    back = (
        update(dead_letters)
        .where(
            dead_letters.c.dead_letter_id.in_({row["dead_letter_id"] for row in rows} - new),
            dead_letters.c.redriven_at.is_not(None),
        )
        .values(redriven_at=None)
    )
    return new | set(tx.connection.scalars(back.returning(dead_letters.c.dead_letter_id)))


def list_dead_letters(tx: Transaction, *, limit: int, redriven: bool = False) -> list[dict[str, Any]]:
    """The newest dead letters, first those that wait."""
    query = select(dead_letters).order_by(dead_letters.c.created_at.desc()).limit(limit)
    if not redriven:
        query = query.where(dead_letters.c.redriven_at.is_(None))
    return [dict(row) for row in tx.connection.execute(query).mappings()]


def take_dead_letters(
    tx: Transaction, ids: Sequence[str] | None, now: datetime, *, after: str, limit: int
) -> list[dict[str, Any]]:
    """Mark the next dead letters (all that wait, or these) as re-driven and return them, in the order of their ids.

    A message with records of two hours is two letters: with one of them goes the other. What was erased stays dead.
    """
    letter_id = dead_letters.c.dead_letter_id
    chosen = select(letter_id).where(
        dead_letters.c.redriven_at.is_(None), func.length(dead_letters.c.payload) > 0, letter_id > after
    )
    if ids is not None:
        whole = select(dead_letters.c.payload).where(
            letter_id.in_(ids), dead_letters.c.kind.in_(("message", "envelope"))
        )
        chosen = chosen.where(or_(letter_id.in_(ids), dead_letters.c.payload.in_(whole)))
    due = chosen.order_by(letter_id).limit(limit).with_for_update().cte("due")
    statement = update(dead_letters).where(letter_id.in_(select(due.c.dead_letter_id))).values(redriven_at=now)
    found = tx.connection.execute(statement.returning(*dead_letters.c)).mappings()
    return sorted((dict(row) for row in found), key=lambda letter: str(letter["dead_letter_id"]))


def remove_dead_letters(tx: Transaction, before: datetime, limit: int) -> int:
    """Delete the oldest dead letters; those that waited stay dead in the ledger, by number."""
    old = select(dead_letters.c.dead_letter_id).where(dead_letters.c.created_at < before).limit(limit)
    gone = (
        delete(dead_letters)
        .where(dead_letters.c.dead_letter_id.in_(old))
        .returning(*(dead_letters.c[n] for n in _BOOKED))
    )
    rows = tx.connection.execute(gone).all()
    by_process: dict[str, Counter[tuple[str, datetime]]] = {}
    dead: Counter[tuple[datetime, str, str, str]] = Counter()
    for row in rows:
        if row.redriven_at is None and row.hour_at is not None:
            by_process.setdefault(row.process_id, Counter())[row.service, row.hour_at] += row.n_records
            dead[row.hour_at, row.service, "", "dead"] += row.n_records
    ledgers.count(tx, dead)
    for process_id, counts in sorted(by_process.items()):
        add_receipts(tx, process_id, counts)
    return len(rows)


def empty_dead_letters(tx: Transaction, user_id: str) -> None:
    """Empty the dead letters that hold a record of a user; they stay dead."""
    letter_id = dead_letters.c.dead_letter_id
    # As it is written in JSON, or in JSON inside JSON, with and without spaces and escapes: so compared without both.
    signs = {_bare(b'"user_id":' + json.dumps(user_id, ensure_ascii=ascii_).encode()) for ascii_ in (True, False)}
    after = ""
    query = select(letter_id, dead_letters.c.payload).order_by(letter_id).limit(_SCANNED)
    while rows := tx.connection.execute(query.where(letter_id > after)).all():
        after = rows[-1].dead_letter_id
        theirs = [row.dead_letter_id for row in rows if any(sign in _bare(row.payload) for sign in signs)]
        erased = {"payload": b"", "reason": "held a record of a user who was erased"}
        tx.connection.execute(update(dead_letters).where(letter_id.in_(theirs)).values(**erased))


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
    found = [
        DeadLetter(
            kind, f"{key}|{service}|{int(hour_at.timestamp())}", reason, payload, n, process_id, service, hour_at
        )
        for (service, hour_at), n in places(headers).items()
    ]
    return found or [DeadLetter(kind, key, reason, payload, 1, process_id)]


_SCANNED = 100
_BOOKED = ("process_id", "service", "hour_at", "n_records", "redriven_at")
_RELEASE = (
    "service", "variant", "environment", "model", "prompt", "retrieval", "index", "tool_schema", "data_pipeline",
)  # fmt: skip


def _bare(text: bytes) -> bytes:
    return text.translate(None, b"\\ ")


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
