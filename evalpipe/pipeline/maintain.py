"""Upkeep: what is older than its retention goes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import delete, select, update

from evalpipe.store import intake
from evalpipe.store.queue import Queue
from evalpipe.store.sql import Store, Transaction
from evalpipe.store.tables import dead_letters, deliveries, evidence, grades, outbox, records, rollouts, scores, work

BATCH = 5_000
"""Rows in one transaction: upkeep holds no lock for long."""


@dataclass(frozen=True, slots=True)
class Removed:
    """Rows deleted, by what they were."""

    records: int = 0
    scores: int = 0
    grades: int = 0
    work: int = 0
    dead_letters: int = 0


class Maintain:
    """The stage: quarantine becomes dead letters, and rows past their retention go; rollups, ledger and decisions stay.

    Args:
        store: where.
        queue: the Redis with the quarantine.
        retention: of records, scores, grades, work and dead letters. Records in flight stay until they have ended.
    """

    def __init__(self, store: Store, queue: Queue, retention: timedelta) -> None:
        self._store = store
        self._queue = queue
        self._retention = retention

    def __call__(self, now: datetime) -> Removed:
        """Do both, in batches."""
        self._bury_quarantined(now)
        before = now - self._retention
        total = Removed()
        while True:
            found = self._store.patiently(lambda tx: _remove(tx, before))
            total = Removed(*(a + b for a, b in zip(_tuple(total), _tuple(found), strict=True)))
            if max(_tuple(found)) < BATCH:
                return total

    def _bury_quarantined(self, now: datetime) -> None:
        while found := self._queue.quarantined(100):
            letters = [
                letter
                for _, reason, raw in found
                for letter in intake.dead_message("envelope", raw, headers_of(raw), reason)
            ]
            self._store.patiently(partial(intake.add_dead_letters, letters=letters, now=now))
            self._queue.release(kept for kept, _, _ in found)


def headers_of(raw: bytes) -> dict[str, Any]:
    """The headers of a message as it was in Redis; none where it cannot be read."""
    try:
        message = json.loads(raw)
    except ValueError:
        return {}
    headers = message.get("headers") if isinstance(message, dict) else None
    return headers if isinstance(headers, dict) else {}


def erase_user(tx: Transaction, user_id: str) -> int:
    """Remove a user's payloads, and what grades and scores quote of them; returns how many records had one.

    Counts, values and labels stay, so that series and ledger still add up. Nothing of what the user said remains.
    """
    mine = select(records.c.record_id).where(records.c.user_id == user_id)
    tx.connection.execute(
        update(grades).where(grades.c.record_id.in_(mine)).values(explanation="", quotation="", raw="")
    )
    tx.connection.execute(update(scores).where(scores.c.record_id.in_(mine)).values(explanation=""))
    # The user's key goes too: a record that can be found by it is not erased.
    erased = update(records).where(records.c.user_id == user_id)
    blank = {"payload": None, "user_id": "", "session_id": "", "unit": records.c.record_id}
    return len(tx.connection.execute(erased.values(**blank).returning(records.c.record_id)).all())


def _remove(tx: Transaction, before: datetime) -> Removed:
    old = (
        select(records.c.record_id)
        .where(records.c.captured_at < before, records.c.outcome != "in_flight")
        .limit(BATCH)
        .scalar_subquery()
    )
    ids = list(tx.connection.scalars(select(records.c.record_id).where(records.c.record_id.in_(old))))
    counts = [
        tx.connection.execute(delete(table).where(table.c.record_id.in_(ids))).rowcount
        for table in (records, scores, grades, work)
    ]
    letters = delete(dead_letters).where(dead_letters.c.created_at < before)
    counts.append(tx.connection.execute(letters).rowcount)
    ended = select(rollouts.c.rollout_id).where(rollouts.c.updated_at < before)
    tx.connection.execute(delete(evidence).where(evidence.c.rollout_id.in_(ended)))
    told = select(outbox.c.event_id).where(outbox.c.created_at < before, outbox.c.state != "pending")
    tx.connection.execute(delete(deliveries).where(deliveries.c.event_id.in_(told)))
    tx.connection.execute(delete(outbox).where(outbox.c.created_at < before, outbox.c.state != "pending"))
    return Removed(*counts)


def _tuple(removed: Removed) -> tuple[int, ...]:
    return (removed.records, removed.scores, removed.grades, removed.work, removed.dead_letters)
