"""Feedback → store: what users said of answers, however long after them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from evalpipe.errors import RecordError
from evalpipe.store import feedback, intake
from evalpipe.store.feedback import Feedback
from evalpipe.store.intake import DeadLetter
from evalpipe.store.sql import Store, Transaction, storable

SCHEMA = 1
"""The newest feedback message that this code reads."""
TEXTS = ("feedback_id", "service", "trace_id", "record_id", "label", "comment", "user_id")


@dataclass(frozen=True, slots=True)
class Received:
    """What one message brought.

    Attributes:
        new: rows stored now; a replay brings 0.
        dead: dead letters kept now.
    """

    new: int = 0
    dead: int = 0


class FeedbackStage:
    """The stage: stores each item once; what cannot be read becomes a dead letter, and its neighbours are kept."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __call__(self, blob: str, now: datetime) -> Received:
        """Take one message in."""
        try:
            items, letters = decode_feedback(blob)
        except RecordError as error:
            items, letters = [], [_letter(blob.encode("utf-8", "surrogatepass"), str(error))]

        def run(tx: Transaction) -> Received:
            dead = intake.add_dead_letters(tx, letters, now)
            return Received(new=feedback.add(tx, items, now), dead=len(dead))

        return self._store.patiently(run)


def decode_feedback(blob: str) -> tuple[list[Feedback], list[DeadLetter]]:
    """The items of a feedback message, and letters of those that cannot be read.

    Raises:
        RecordError: it is no feedback message, or of a schema that this code does not read.
    """
    try:
        body = orjson.loads(blob)
    except ValueError as error:
        raise RecordError(f"the feedback message is not JSON: {error}") from error
    if not isinstance(body, dict) or not isinstance(body.get("items"), list):
        raise RecordError("the feedback message has no list 'items'")
    schema = body.get("schema")
    if not isinstance(schema, int) or not 1 <= schema <= SCHEMA:
        raise RecordError(f"the feedback message has schema {schema!r}; this worker reads up to {SCHEMA}")
    items, letters = [], []
    for wire in body["items"]:
        try:
            items.append(_item(wire))
        except RecordError as error:
            # A whole message of one item, so that it can be re-driven as it is.
            letters.append(_letter(orjson.dumps({**body, "items": [wire]}), str(error)))
    return items, letters


def _item(wire: Any) -> Feedback:
    if not isinstance(wire, dict):
        raise RecordError(f"feedback must be an object, not {type(wire).__name__}")
    texts = {name: _text(wire, name) for name in TEXTS}
    if not texts["feedback_id"]:
        raise RecordError("feedback field 'feedback_id' is missing")
    if not texts["trace_id"] and not texts["record_id"]:
        raise RecordError("feedback names neither 'trace_id' nor 'record_id', so nobody knows what it is about")
    value, at = wire.get("value"), wire.get("at")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value)):
        raise RecordError(f"feedback field 'value' must be a number or null, not {value!r}")
    try:
        instant = datetime.fromtimestamp(at, UTC)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, OSError) as error:
        raise RecordError(f"feedback field 'at' must be seconds since 1970, not {at!r}") from error
    return Feedback(**texts, value=None if value is None else float(value), at=instant)


def _text(wire: Mapping[str, Any], name: str) -> str:
    value = wire.get(name, "")
    if not isinstance(value, str):
        raise RecordError(f"feedback field {name!r} must be a text, not {type(value).__name__}")
    return storable(value)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _letter(payload: bytes, reason: str) -> DeadLetter:
    # No record is lost with it, so the ledger does not count it.
    return DeadLetter("feedback", hashlib.sha256(payload).hexdigest(), reason, payload, n_records=0)
