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
MAX_CHARS: Final = 4000
"""Of a comment; what is longer is cut."""
MAX_ITEMS: Final = 100
"""In one message."""


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

    def put(self, **item: Any) -> None:
        """Add feedback: the fields of ``Hook.feedback``, and the service."""
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

    def next(self) -> list[dict[str, Any]]:
        """The oldest that wait, at most a message full; they wait until ``settle``."""
        with self._lock:
            return list(islice(self._waiting, MAX_ITEMS))

    def settle(self, items: list[dict[str, Any]], *, accepted: bool) -> None:
        """These have been enqueued, or the queue is full and they are shed."""
        with self._lock:
            for item in items:
                # One that had to make room in the meantime was counted as shed.
                if self._waiting and self._waiting[0] is item:
                    self._waiting.popleft()
                    self.enqueued += accepted
                    self.shed += not accepted


def message(items: list[dict[str, Any]], redact: Redactor, *, metadata_only: bool, process: str, sent_at: float) -> str:
    """The text of a feedback message."""
    wires = [_wire(item, redact, metadata_only=metadata_only) for item in items]
    body = {"schema": SCHEMA, "process": process, "sent_at": sent_at, "items": wires}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


def _wire(item: dict[str, Any], redact: Redactor, *, metadata_only: bool) -> dict[str, Any]:
    value = item["value"]
    known = isinstance(value, int | float) and math.isfinite(value)
    wire = {name: str(item[name]).replace("\x00", "\ufffd") for name in _TEXTS}
    wire["comment"] = "" if metadata_only else redact(wire["comment"][:MAX_CHARS])
    return {**wire, "value": float(value) if known else None, "at": item["at"]}


_TEXTS: Final = ("feedback_id", "service", "trace_id", "record_id", "label", "comment", "user_id")
