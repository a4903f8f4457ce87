"""What the hooks count on 100 % of the calls: cumulative rows, so that a repeated or lost message changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import case
from sqlalchemy.dialects import postgresql, sqlite

from evalpipe.store.sql import Transaction
from evalpipe.store.tables import meters, processes


@dataclass(frozen=True, slots=True)
class MeterRow:
    """The counters of one hook process for one release, feature and hour, since the process started."""

    process_id: str
    release_id: str
    feature: str
    hour_at: datetime
    service: str
    sequence: int
    sent_at: datetime
    calls: int
    errors: int
    sampled: int
    not_sampled: int
    enqueued: int
    shed: int
    shed_by_reason: dict[str, int]
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost_usd: float
    screened: int
    refusals: int
    blocked: dict[str, int]
    finish_reasons: dict[str, int]
    latency: dict[str, Any] | None
    ttft: dict[str, Any] | None
    tpot: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class ProcessRow:
    """A process that a hook runs in, as its latest meter message tells it."""

    process_id: str
    service: str
    hook_version: str
    started_at: datetime
    sent_at: datetime
    sequence: int
    messages: int
    ended_at: datetime | None
    feedback: dict[str, int]


def upsert(tx: Transaction, rows: Sequence[MeterRow]) -> None:
    """Replace the counters that are older (by sequence) than these."""
    if not rows:
        return
    insert = postgresql.insert(meters) if tx.is_postgresql else sqlite.insert(meters)
    keys = [c.name for c in meters.primary_key]
    values: dict[str, Any] = {c.name: insert.excluded[c.name] for c in meters.c if c.name not in keys}
    # When the count of what was enqueued last changed: hooks repeat past hours, and those must come to rest.
    grew = insert.excluded.enqueued > meters.c.enqueued
    values["sent_at"] = case((grew, insert.excluded.sent_at), else_=meters.c.sent_at)
    statement = insert.on_conflict_do_update(
        index_elements=keys, set_=values, where=insert.excluded.sequence >= meters.c.sequence
    )
    ordered = sorted(rows, key=lambda r: (r.process_id, r.release_id, r.feature, r.hour_at))
    tx.connection.execute(statement, [asdict(row) for row in ordered])


def seen(tx: Transaction, row: ProcessRow) -> None:
    """Note a message of a process; one that comes late adds to the count and changes nothing else."""
    insert = postgresql.insert(processes) if tx.is_postgresql else sqlite.insert(processes)
    newer = insert.excluded.sequence > processes.c.sequence
    values: dict[str, Any] = {
        name: case((newer, insert.excluded[name]), else_=processes.c[name])
        for name in ("service", "hook_version", "sent_at", "sequence", "ended_at", "feedback")
    }
    values["messages"] = processes.c.messages + case((insert.excluded.sequence != processes.c.sequence, 1), else_=0)
    statement = insert.on_conflict_do_update(index_elements=["process_id"], set_=values)
    tx.connection.execute(statement, asdict(row))
