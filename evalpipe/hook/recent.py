"""The latest calls that were not captured, in case a user says something of one: then there is something to read.

Such a record weighs nothing in estimates: that it got feedback has to do with how good it was. Only where the sampling
keeps feedback; bounded by number, age and bytes, in each process. Feedback that comes to another process, or later,
still joins the records that were captured by their rate.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from operator import attrgetter
from typing import Any, Final, NamedTuple

from evalpipe.hook.call import Call
from evalpipe.hook.freezing import freeze

MAX_CALLS: Final = 256
MAX_BYTES: Final = 2 << 20
MAX_CALL_BYTES: Final = 64 << 10
MAX_AGE_S: Final = 540.0
"""Less than the meter keeps a row after its hour."""
_OVERHEAD: Final = 1024


_SLOTS: Final = tuple(name for name in Call.__slots__ if name not in {"__dict__", "_token", "kept", "output"})
_values = attrgetter(*_SLOTS)


class _Kept(NamedTuple):
    """What a call was when it ended."""

    trace_id: str
    at: float
    latency_ms: float | None
    size: int
    values: tuple[Any, ...]
    kept: dict[str, tuple[Any, int]]
    output: Any
    more: dict[str, Any]

    def call(self) -> Call:
        """A call that is as that one was."""
        call = Call.__new__(Call)
        for name, value in zip(_SLOTS, self.values, strict=True):
            setattr(call, name, value)
        call.kept, call.output, call._token = self.kept, self.output, None  # noqa: SLF001 - it is the call's twin
        call.__dict__.update(self.more)
        return call


class Recent:
    """Calls by record id, the oldest first."""

    __slots__ = ("_bytes", "_calls", "_lock")

    def __init__(self) -> None:
        self._calls: OrderedDict[str, _Kept] = OrderedDict()
        self._bytes = 0
        self._lock = threading.RLock()

    def put(self, call: Call, now: float, latency_ms: float | None, error: BaseException | None = None) -> None:
        """Remember a call that ended now, and was not kept. Copied: the application goes on with what it gave."""
        try:
            if error is not None and not call.error:
                call.error = f"{type(error).__name__}: {error}"
            kept = _copied(call, now, latency_ms)
        except Exception:  # noqa: BLE001 - too large, or the application's own containers
            return
        with self._lock:
            known = self._calls.pop(call.record_id, None)
            self._calls[call.record_id] = kept
            self._bytes += kept.size - (known.size if known else 0)
            while len(self._calls) > MAX_CALLS or self._bytes > MAX_BYTES:
                self._bytes -= self._calls.popitem(last=False)[1].size

    def take(self, trace_id: str, record_id: str, now: float) -> list[tuple[Call, float, float | None]]:
        """The calls of a trace, or the one of a record id, with when they ended and their latency.

        They are forgotten here. Where both ids are given, both must be right.
        """
        with self._lock:
            if record_id:
                found = [record_id] if record_id in self._calls else []
            else:
                found = [key for key, kept in self._calls.items() if kept.trace_id == trace_id]
            taken = []
            for key in found:
                kept = self._calls[key]
                if trace_id in {"", None, kept.trace_id} and now - kept.at < MAX_AGE_S:
                    del self._calls[key]
                    self._bytes -= kept.size
                    taken.append((kept.call(), kept.at, kept.latency_ms))
            return taken


def _copied(call: Call, now: float, latency_ms: float | None) -> _Kept:
    """A copy that nothing changes.

    Raises:
        Exception: it is too large, or cannot be copied.
    """
    left = MAX_CALL_BYTES - _OVERHEAD
    output, took = freeze(call.output, left)
    left -= took
    kept = {}
    for name, (value, _) in call.kept.items():
        kept[name] = frozen = freeze(value, left)
        left -= frozen[1]
    more = call.__dict__.copy()
    if attributes := more.get("own_attributes"):
        more["own_attributes"], took = freeze(attributes, left)
        left -= took
    return _Kept(call.trace_id, now, latency_ms, MAX_CALL_BYTES - left, _values(call), kept, output, more)
