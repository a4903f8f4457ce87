"""Upkeep: what is older than its retention goes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import orjson
from sqlalchemy import delete, select, tuple_, update

from evalpipe.store import (
    alerting,
    anchors,
    baselines,
    exports,
    feedback,
    growths,
    intake,
    judge_states,
    labels,
    levels,
    meter_minutes,
    meter_slots,
    meter_users,
    notices,
    prints,
    profiles,
    purse,
    works,
)
from evalpipe.store.queue import Queue
from evalpipe.store.rollouts import LIVE
from evalpipe.store.sql import Store, Transaction
from evalpipe.store.tables import (
    changes,
    deliveries,
    evidence,
    grades,
    outbox,
    records,
    rollout_inputs,
    rollout_orders,
    rollout_readings,
    rollouts,
    scores,
    work,
)

log = logging.getLogger("evalpipe")

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
    evidence: int = 0
    feedback: int = 0


class Maintain:
    """The stage: quarantine becomes dead letters, and rows past their retention go; ledger and decisions stay.

    Args:
        store: where.
        queue: the Redis with the quarantine.
        retention: of records, scores, grades, work, feedback and dead letters. Records stay until nothing is owed
            for them.
        caps: US dollars a UTC day by scope of the purse: its share of less urgent work is kept up to date here.
        rollups: how long rollups are kept, by the name of their level, and the meter's hours with those of hours; a
            level that is not there is kept for ever.
    """

    def __init__(
        self,
        store: Store,
        queue: Queue,
        retention: timedelta,
        caps: Mapping[str, float] | None = None,
        *,
        rollups: Mapping[str, timedelta] | None = None,
    ) -> None:
        self._store = store
        self._queue = queue
        self._retention = retention
        self._caps = caps or {}
        self._rollups = rollups or {}

    def __call__(self, now: datetime) -> Removed:
        """Do both, in batches."""
        self._bury_quarantined(now)
        self._store.patiently(lambda tx: meter_slots.roll(tx, now))
        for level in (meter_minutes, meter_slots, meter_users):
            self._store.patiently(partial(level.remove, now=now))
        self._store.patiently(lambda tx: judge_states.clean(tx, now - judge_states.KEPT))
        self._store.patiently(lambda tx: growths.drop_old(tx, now))
        for width in levels.LEVELS:
            if (kept := self._rollups.get(width.name)) is not None:
                remove = partial(levels.remove, level=width, before=now - kept)
                while self._store.patiently(remove):
                    pass
        if (kept := self._rollups.get(levels.HOUR.name)) is not None:
            self._store.patiently(lambda tx: meter_slots.remove_hours(tx, now - kept))
        if gone := self._store.patiently(lambda tx: exports.give_up(tx, now)):
            log.warning("%d scores were owed to an OpenTelemetry endpoint for %s and are given up", gone, exports.KEPT)
        if self._caps:
            self._store.patiently(lambda tx: purse.recount(tx, now))
            self._store.patiently(lambda tx: purse.pace(tx, self._caps, now))
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
        message = orjson.loads(raw)
    except ValueError:
        return {}
    headers = message.get("headers") if isinstance(message, dict) else None
    return headers if isinstance(headers, dict) else {}


def erase_user(tx: Transaction, user_id: str) -> int:
    """Remove a user's payloads and feedback, and what grades, scores and comments quote; returns how many had one.

    Counts, values and labels stay, so that series and ledger still add up. Nothing of what the user said remains in the
    database; a dead letter with a record of theirs is emptied as a whole, and stays dead. What still waits in Redis is
    not seen: erase again when it has arrived.

    Raises:
        ConfigError: there is no user without a key; it would be everybody who has none.
    """
    feedback.erase(tx, user_id)  # first: it refuses what names nobody
    anchors.erase(tx, user_id)  # while the records still say whose they are
    meter_users.forget(tx, user_id)
    mine = select(records.c.record_id).where(records.c.user_id == user_id)
    # Work before records, as judging locks them. An error that a judge's provider sent may quote what it was sent.
    tx.connection.execute(update(work).where(work.c.record_id.in_(mine)).values(reason=""))
    # The user's key goes too: a record that can be found by it is not erased.
    erased = update(records).where(records.c.user_id == user_id)
    blank = {"payload": None, "user_id": "", "session_id": "", "unit": records.c.record_id}
    ids = list(tx.connection.scalars(erased.values(**blank).returning(records.c.record_id)))
    # Only now, with the records locked: a grade that was being committed is there, and a later one quotes nothing.
    for start in range(0, len(ids), BATCH):
        some = ids[start : start + BATCH]
        for table, values in (
            (grades, {"explanation": "", "quotation": "", "raw": ""}),
            (scores, {"explanation": ""}),
            (evidence, {"unit": evidence.c.record_id}),
        ):
            tx.connection.execute(update(table).where(table.c.record_id.in_(some)).values(**values))
        labels.forget(tx, some)
        profiles.remove(tx, some)
        baselines.forget(tx, some)
    alerting.forget(tx, ids)
    intake.empty_dead_letters(tx, user_id)
    return len(ids)


def _remove(tx: Transaction, before: datetime) -> Removed:
    owing = select(work.c.work_id).where(work.c.record_id == records.c.record_id, work.c.state.in_(works.OWED)).exists()
    old = (
        select(records.c.record_id)
        .where(records.c.captured_at < before, records.c.outcome != "in_flight", ~owing)
        .limit(BATCH)
    )
    ids = list(tx.connection.scalars(old))
    labels.forget(tx, ids)  # what people said of them stays
    profiles.remove(tx, ids)
    profiles.forget_places(tx, before)
    counts = [
        tx.connection.execute(delete(table).where(table.c.record_id.in_(ids))).rowcount
        for table in (records, scores, grades, work)
    ]
    counts.append(intake.remove_dead_letters(tx, before, BATCH))
    counts.append(_remove_inputs(tx, before))
    counts.append(feedback.remove_old(tx, before, BATCH))
    told = select(outbox.c.event_id).where(outbox.c.created_at < before, outbox.c.state != "pending")
    tx.connection.execute(delete(deliveries).where(deliveries.c.event_id.in_(told)))
    tx.connection.execute(delete(outbox).where(outbox.c.created_at < before, outbox.c.state != "pending"))
    tx.connection.execute(delete(changes).where(changes.c.at < before))
    notices.remove_old(tx, before)
    prints.remove_old(tx, before)
    alerting.remove_old(tx, before)
    return Removed(*counts)


def _remove_inputs(tx: Transaction, before: datetime) -> int:
    """Evidence, log and orders of rollouts that ended before; rows of the table with the most. Decisions stay."""
    over = rollouts.c.phase.not_in(LIVE)
    ended = list(tx.connection.scalars(select(rollouts.c.rollout_id).where(over, rollouts.c.updated_at < before)))
    removed = [0]
    for table in (evidence, rollout_inputs, rollout_orders, rollout_readings):
        keys = tuple(table.primary_key)
        past = select(*keys).where(table.c.rollout_id.in_(ended)).limit(BATCH)
        removed.append(tx.connection.execute(delete(table).where(tuple_(*keys).in_(past))).rowcount if ended else 0)
    return max(removed)


def _tuple(removed: Removed) -> tuple[int, ...]:
    return astuple(removed)
