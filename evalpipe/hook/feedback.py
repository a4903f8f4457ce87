"""What users said, on its way to the queue: bounded, the oldest make room."""

from __future__ import annotations

import json
import math
import threading
import time
from collections import deque
from itertools import islice
from typing import Any, Final

from evalpipe.hook.redaction import Redactor

SCHEMA: Final = 1
"""Version of the feedback message."""
MAX_WAITING: Final = 1000
MAX_ITEMS: Final = 100
"""In one message."""
MAX_MESSAGES: Final = 1 + MAX_WAITING // MAX_ITEMS
"""At one time: all that can wait, so that a flood cannot keep the meter, or whoever flushes, waiting."""
MAX_CHARS: Final = 4000
"""Of a comment; what is longer is cut, as are the other texts."""
MAX_LABEL_CHARS: Final = 200
MAX_ID_CHARS: Final = 512

_LONGEST_WORD: Final = 64
"""Of a label where no text may leave."""
_TEXTS: Final = {
    "feedback_id": MAX_ID_CHARS,
    "service": MAX_ID_CHARS,
    "trace_id": MAX_ID_CHARS,
    "record_id": MAX_ID_CHARS,
    "label": MAX_LABEL_CHARS,
    "comment": MAX_CHARS,
    "user_id": MAX_ID_CHARS,
}


class FeedbackBuffer:
    """Feedback that waits to be shipped.

    Attributes:
        given, enqueued, shed: counts since the process began; while nothing waits, ``given = enqueued + shed``.
    """

    __slots__ = ("_lock", "_waiting", "enqueued", "given", "shed")

    def __init__(self) -> None:
        self.given = self.enqueued = self.shed = 0
        self._waiting: deque[dict[str, Any]] = deque()
        self._lock = threading.RLock()

    def put(self, **fields: Any) -> None:
        """Add feedback: the fields of ``Hook.feedback``, and the service. What waits is as small as what leaves."""
        item: dict[str, Any] = {name: _cut(fields.get(name), most) for name, most in _TEXTS.items()}
        item["value"] = _number(fields.get("value"))
        item["at"] = time.time()
        with self._lock:
            self.given += 1
            if len(self._waiting) >= MAX_WAITING:
                self._waiting.popleft()
                self.shed += 1
            self._waiting.append(item)

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def changes(self) -> int:
        """Grows with every change of the counts."""
        return self.given + self.enqueued + self.shed

    def next(self) -> list[dict[str, Any]]:
        """The oldest that wait, at most a message full; they wait until ``settle``."""
        with self._lock:
            return list(islice(self._waiting, MAX_ITEMS))

    def settle(self, items: list[dict[str, Any]], *, accepted: bool) -> None:
        """These have been enqueued, or are shed. One that had to make room in the meantime was counted as shed."""
        gone = set(map(id, items))
        with self._lock:
            left = deque(item for item in self._waiting if id(item) not in gone)
            count = len(self._waiting) - len(left)
            self._waiting = left
            if accepted:
                self.enqueued += count
            else:
                self.shed += count

    def give_up(self) -> None:
        """Nothing is sent any more: what still waits is shed."""
        with self._lock:
            self.shed += len(self._waiting)
            self._waiting.clear()


def encoded(
    items: list[dict[str, Any]], redact: Redactor, *, metadata_only: bool
) -> tuple[list[str], list[dict[str, Any]], str]:
    """The texts of those that can be sent; those that cannot; and what was raised last by one of these, if any.

    One that cannot be sent today cannot be sent tomorrow either, and all others would wait behind it.
    """
    texts, failed, why = [], [], ""
    for item in items:
        try:
            wire = _wire(item, redact, metadata_only=metadata_only)
            texts.append(json.dumps(wire, ensure_ascii=False, separators=(",", ":")))
        except BaseException as error:  # noqa: BLE001 - the application's redaction raises what it likes
            failed.append(item)
            why = type(error).__name__  # not what it says, which may be what the user said
    return texts, failed, why


def message(texts: list[str], *, process: str, sent_at: float) -> str:
    """The text of a feedback message, from those of its items."""
    header = json.dumps({"schema": SCHEMA, "process": process, "sent_at": sent_at}, separators=(",", ":"))
    return f'{header[:-1]},"items":[{",".join(texts)}]}}'


def _wire(item: dict[str, Any], redact: Redactor, *, metadata_only: bool) -> dict[str, Any]:
    wire = {**item, "label": _redacted(item["label"], redact)}
    if metadata_only:
        word = 0 < len(wire["label"]) <= _LONGEST_WORD and not any(c.isspace() for c in wire["label"])
        return {**wire, "label": wire["label"] if word else "", "comment": ""}
    return {**wire, "comment": _redacted(item["comment"], redact)}


def _redacted(text: str, redact: Redactor) -> str:
    if not text:
        return text
    redacted: Any = redact(text)
    if not isinstance(redacted, str):
        raise TypeError("redaction must return a text")
    return redacted


def _cut(value: Any, most: int) -> str:
    """The beginning of a text; "" of what cannot be read."""
    if value is None:
        return ""
    try:
        return str(value)[:most].replace("\x00", "\ufffd")
    except Exception:  # noqa: BLE001 - the application's objects may do anything
        return ""


def _number(value: Any) -> float | None:
    """None of what is no number, or of one that no float holds."""
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except Exception:  # noqa: BLE001 - too large; or the application's own kind of number
        return None
    return number if math.isfinite(number) else None
