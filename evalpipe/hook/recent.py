"""The latest calls that were not captured, in case a user says something of one: then there is something to read.

Such a record weighs nothing in estimates: that it got feedback has to do with how good it was. Only where the sampling
keeps feedback; bounded by number, age and bytes, in each process. Feedback that comes to another process, or later,
still joins the records that were captured by their rate.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, Final

from evalpipe.hook.call import Call

MAX_CALLS: Final = 256
MAX_BYTES: Final = 2 << 20
MAX_CALL_BYTES: Final = 64 << 10
MAX_AGE_S: Final = 540.0
"""Less than the meter keeps a row after its hour."""
_OVERHEAD: Final = 1024


class Recent:
    """Calls by record id, the oldest first."""

    __slots__ = ("_bytes", "_calls", "_lock")

    def __init__(self) -> None:
        self._calls: OrderedDict[str, tuple[Call, float, float | None, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.RLock()

    def put(self, call: Call, now: float, latency_ms: float | None) -> None:
        """Remember a call that ended now, and was not kept."""
        size = _size(call)
        if size > MAX_CALL_BYTES:
            return
        with self._lock:
            self._calls[call.record_id] = call, now, latency_ms, size
            self._bytes += size
            while len(self._calls) > MAX_CALLS or self._bytes > MAX_BYTES:
                self._bytes -= self._calls.popitem(last=False)[1][3]

    def take(self, trace_id: str, record_id: str, now: float) -> list[tuple[Call, float, float | None]]:
        """The calls of a trace, or one of them, with when they ended and their latency; they are forgotten here."""
        with self._lock:
            found = [
                key
                for key, (call, at, _, _) in self._calls.items()
                if call.trace_id == trace_id and record_id in {"", key} and now - at < MAX_AGE_S
            ]
            taken = []
            for key in found:
                call, at, latency_ms, size = self._calls.pop(key)
                self._bytes -= size
                taken.append((call, at, latency_ms))
            return taken


def _size(call: Call) -> int:
    """About how many bytes the call holds: it is measured in the calling thread, so only the long texts are."""
    size = _OVERHEAD + _length(call.output)
    for value, _ in call.kept.values():
        if type(value) is list:
            size += sum(128 + _length(item.get("content") if type(item) is dict else item) for item in value)
    return size


def _length(value: Any) -> int:
    if type(value) is str:
        return len(value)
    return 0 if value is None else _OVERHEAD
