"""What was given up is tried again, once a human has mended the cause.

Dead letters and dead work; work that was shed for want of money only where it is named, since it costs that money.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import orjson

from evalpipe.hook.message import task_message
from evalpipe.record import encode_batch
from evalpipe.store import intake, ledgers, works
from evalpipe.store.ledgers import hour_of, label
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
        ids: of dead letters and of works, dead or shed; None means all that are dead.
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
            _reopen_records(tx, dead)
            works.dig_up(tx, dead, now)
        return dead

    total, after = 0, ""
    while dead := store.patiently(partial(run, after=after)):
        total, after = total + len(dead), dead[-1].work_id
    return total


def _reopen_records(tx: Transaction, given_up: Sequence[Work]) -> None:
    """Take back what the ledger said of records whose work is about to be owed again.

    Only those were booked that owe nothing else: the others are in flight, and booked when that has ended.
    """
    pending = works.pending_of(tx, sorted({w.record_id for w in given_up}))
    cards = {(w.record_id, w.scorecard_version, w.origin): w for w in given_up}
    closed = {key: w for key, w in cards.items() if key not in pending}
    booked = ledgers.outcomes(tx, [(record_id, version) for record_id, version, _ in closed])
    counts: Counter[tuple[datetime, str, str, str]] = Counter()
    for (record_id, version, origin), w in closed.items():
        name = label(w.scorecard, version, origin)
        counts[hour_of(w.captured_at), w.service, name, booked[record_id, version]] -= 1
    owing = {record_id for record_id, _, origin in pending if origin == "ingest"}
    whole = {w.record_id: w for w in given_up if w.origin == "ingest" and w.record_id not in owing}
    for record_id, outcome in ledgers.outcomes_of_records(tx, sorted(whole)).items():
        w = whole[record_id]
        counts[hour_of(w.captured_at), w.service, "", outcome] -= 1
    ledgers.set_outcomes(tx, dict.fromkeys(whole, "in_flight"))
    ledgers.count(tx, counts)


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
