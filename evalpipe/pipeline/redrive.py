"""What was given up is tried again, once a human has mended the cause."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from evalpipe.hook.message import task_message
from evalpipe.pipeline.judge import reopen_records
from evalpipe.record import encode_batch
from evalpipe.store import intake, works
from evalpipe.store.queue import Queue
from evalpipe.store.sql import Store, Transaction


@dataclass(frozen=True, slots=True)
class Redriven:
    """How much is under way again."""

    messages: int
    work: int


def redrive(store: Store, queue: Queue, ids: Sequence[str] | None, now: datetime) -> Redriven:
    """Put dead letters back into the queue and owe dead work again.

    Args:
        store: where they are.
        queue: where the messages go.
        ids: of dead letters and of works; None means all.
        now: aware UTC.
    """

    def run(tx: Transaction) -> Redriven:
        letters = intake.take_dead_letters(tx, ids, now)
        owed = works.dig_up(tx, now, ids)
        reopen_records(tx, owed)
        # Inside the transaction: if Redis refuses, the letters stay. If the commit fails, the messages come twice, and
        # the second time changes nothing.
        sent = {letter["payload"]: _message(letter, now) for letter in letters}
        return Redriven(queue.push(sent.values()), len(owed))

    return store.patiently(run)


def _message(letter: Mapping[str, Any], now: datetime) -> bytes:
    payload: bytes = letter["payload"]
    if letter["kind"] == "envelope":
        return payload
    if letter["kind"] == "record":
        wire = orjson.loads(payload)
        text = encode_batch(
            [wire], process_id=letter["process_id"], sequence=0, sent_at=now.timestamp(), hook_version="redrive"
        )
    else:
        text = payload.decode("utf-8", "surrogatepass")
    hours = (
        {f"{letter['service']}|{int(letter['hour_at'].timestamp())}": letter["n_records"]} if letter["hour_at"] else {}
    )
    return task_message(
        "evalpipe.measure" if letter["kind"] == "meter" else "evalpipe.ingest",
        text,
        message_id=str(uuid.uuid4()),
        origin=letter["process_id"],
        summary=letter["dead_letter_id"],
        headers={"evalpipe_records": letter["n_records"], "evalpipe_hours": hours},
    )
