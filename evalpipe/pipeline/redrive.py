"""What was given up is tried again, once a human has mended the cause."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import orjson

from evalpipe.hook.message import task_message
from evalpipe.pipeline.settling import reopen_records
from evalpipe.record import encode_batch
from evalpipe.store import intake, works
from evalpipe.store.queue import Queue
from evalpipe.store.sql import Store, Transaction
from evalpipe.store.works import Work

LETTERS = 200
"""Dead letters in one transaction; each may have some megabytes."""
WORKS = 2_000
"""Dead works in one transaction."""


@dataclass(frozen=True, slots=True)
class Redriven:
    """How much is under way again."""

    messages: int
    work: int


def redrive(store: Store, queue: Queue, ids: Sequence[str] | None, now: datetime) -> Redriven:
    """Put dead letters back into the queue and owe dead work again, in batches.

    Args:
        store: where they are.
        queue: where the messages go.
        ids: of dead letters and of works; None means all.
        now: aware UTC.
    """
    return Redriven(_redrive_letters(store, queue, ids, now), _redrive_work(store, ids, now))


def _redrive_letters(store: Store, queue: Queue, ids: Sequence[str] | None, now: datetime) -> int:
    def run(tx: Transaction, after: str) -> tuple[int, str]:
        letters = intake.take_dead_letters(tx, ids, now, after=after, limit=LETTERS)
        # Inside the transaction: if Redis refuses, the letters stay. If the commit fails, the messages come twice, and
        # the second time changes nothing.
        pushed = queue.push(_message(letter, now) for letter in letters)
        return pushed, letters[-1]["dead_letter_id"] if letters else ""

    total, after = 0, ""
    while True:
        # Onwards from the last id: one that fails again at once is left for the next time.
        n, after = store.patiently(partial(run, after=after))
        total += n
        if not after:
            return total


def _redrive_work(store: Store, ids: Sequence[str] | None, now: datetime) -> int:
    def run(tx: Transaction, after: str) -> list[Work]:
        dead = works.lock_dead(tx, ids, after=after, limit=WORKS)
        if dead:
            reopen_records(tx, dead)
            works.dig_up(tx, dead, now)
        return dead

    total, after = 0, ""
    while dead := store.patiently(partial(run, after=after)):
        total, after = total + len(dead), dead[-1].work_id
    return total


def _message(letter: Mapping[str, Any], now: datetime) -> bytes:
    payload: bytes = letter["payload"]
    if letter["kind"] == "envelope":
        return payload
    if letter["kind"] == "record":
        # A number of its own: if the record fails again, that is another dead letter.
        sequence = int(letter["dead_letter_id"][:12], 16) + int(now.timestamp())
        text = encode_batch(
            [orjson.loads(payload)],
            process_id=letter["process_id"],
            sequence=sequence,
            sent_at=now.timestamp(),
            hook_version="redrive",
        )
    else:
        text = payload.decode("utf-8", "surrogatepass")
    hours = (
        {f"{letter['service']}|{int(letter['hour_at'].timestamp())}": letter["n_records"]} if letter["hour_at"] else {}
    )
    return task_message(
        {"meter": "evalpipe.measure", "feedback": "evalpipe.feedback"}.get(letter["kind"], "evalpipe.ingest"),
        text,
        message_id=str(uuid.uuid4()),
        origin=letter["process_id"],
        summary=letter["dead_letter_id"],
        headers={"evalpipe_records": letter["n_records"], "evalpipe_hours": hours},
    )
