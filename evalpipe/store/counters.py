"""What the hooks count on 100 % of the calls: cumulative rows, so that a repeated or lost message changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import case, select, update
from sqlalchemy.dialects import postgresql, sqlite

from evalpipe.store.sql import Transaction
from evalpipe.store.tables import meters, processes

AT_ONCE = timedelta(seconds=30)
"""Within it a hook that reaches its queue tells what it counted."""
_LATEST = ("service", "hook_version", "sent_at", "sequence", "ended_at", "feedback")


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
    unpriced: int
    screened: int
    refusals: int
    blocked: dict[str, int]
    finish_reasons: dict[str, int]
    latency: dict[str, Any] | None
    ttft: dict[str, Any] | None
    tpot: dict[str, Any] | None
    cost_squares: float = 0.0
    users: dict[str, list[float]] | None = None


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


def seen(tx: Transaction, row: ProcessRow) -> datetime:
    """Note a message of a process; returns since when the calls were made that only this message tells.

    A process counts up with each attempt to send, and tries as soon as it has something to tell: after a gap in the
    numbers it may be what happened since the message before the gap, else it has just happened.

    Only a message with a greater number than all before it counts and changes something: one that was delivered twice
    cannot be told from one that was overtaken, so an overtaken one stays among the missing.
    """
    insert = (postgresql.insert if tx.is_postgresql else sqlite.insert)(processes)
    new = insert.on_conflict_do_nothing(index_elements=["process_id"]).returning(processes.c.process_id)
    if tx.connection.execute(new, asdict(row)).first() is not None:
        return _since(row, row.started_at, 0)
    mine = processes.c.process_id == row.process_id
    before = tx.connection.execute(select(processes).where(mine).with_for_update()).one()
    if row.sequence > before.sequence:
        values = {name: getattr(row, name) for name in _LATEST}
        tx.connection.execute(update(processes).where(mine).values(**values, messages=before.messages + 1))
    return _since(row, before.sent_at, before.sequence)


def _since(row: ProcessRow, last_at: datetime, last: int) -> datetime:
    return last_at if row.sequence > last + 1 else max(last_at, row.sent_at - AT_ONCE)
