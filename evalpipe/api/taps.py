"""The API's own hooks: what comes over HTTP is metered, sampled, redacted and shipped by the very code of the hook.

One hook for each service, so that each obeys the control document of its service.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final

from redis import RedisError

from evalpipe.hook import Hook
from evalpipe.hook.feedback import MAX_WAITING
from evalpipe.record import Release
from evalpipe.settings import Settings
from evalpipe.store.queue import Queue

OTHERS: Final = "evalpipe-api"
"""Service of the hook that further services share."""
MAX_SERVICES: Final = 32
"""With a hook of their own: each has its threads and its buffer."""
OUTCOMES: Final = ("call", "attached", "ignored", "rejected")
"""Of spans: a model call, told with one, of no interest, not usable."""
BUFFER_SIZE: Final = 2048
MAX_BUFFER_BYTES: Final = 8 << 20
MAX_MESSAGES: Final = 10_000
"""In the queue; as the hook's own bound."""
MAX_RELEASES: Final = 1000
"""That are kept as one object each, which is quicker to count by."""
REMEMBERED_S: Final = 900
"""A request that is sent again within this time counts nothing twice."""
DOWN_S: Final = 1.0
"""So long after Redis failed nobody waits for it again."""
SHUTDOWN_S: Final = 4.0
_MARK: Final = "evalpipe.taken:"


class Busy(Exception):  # noqa: N818 - the name says the state
    """Nothing was taken: the queue cannot be written, or too much waits for it."""


@dataclass(frozen=True, slots=True)
class Reported:
    """A call that happened elsewhere.

    Attributes:
        record_id: the sender's, or "": then a retry cannot be recognised.
        arguments: of ``Hook.report``.
    """

    release: Release
    record_id: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of calls: metered now, of these captured, and known from an earlier request."""

    accepted: int = 0
    sampled: int = 0
    duplicates: int = 0


class _Tap:
    """A hook, and the lock under which its counts are compared."""

    def __init__(self, service: str, settings: Settings) -> None:
        self.lock = Lock()
        self.hook = Hook(
            service,
            Release(service=service),
            redis_url=settings.redis_url,
            enabled=True,
            max_record_bytes=settings.max_record_bytes,
            buffer_size=BUFFER_SIZE,
            max_buffer_bytes=MAX_BUFFER_BYTES,
            queue_max_messages=MAX_MESSAGES,
        )

    def is_full(self) -> bool:
        """Whether more than half of what may wait does."""
        stats = self.hook.stats()
        many = stats.buffered > BUFFER_SIZE // 2 or len(self.hook._process.feedback) > MAX_WAITING // 2  # noqa: SLF001
        return many or stats.buffered_bytes > MAX_BUFFER_BYTES // 2


class Taps:
    """The hooks of this process.

    Attributes:
        spans: OpenTelemetry's, since the process began, by outcome.

    Args:
        settings: of the API; the sample rate and the like are the hook's own EVALPIPE_ variables.
        queue: to see that it can be written, and what was taken before.

    Raises:
        ConfigError: one of the hook's variables cannot work.
    """

    def __init__(self, settings: Settings, queue: Queue) -> None:
        self._settings = settings
        self._queue = queue
        self._others = _Tap(OTHERS, settings)
        self._taps: dict[str, _Tap] = {}
        self._releases: dict[Release, Release] = {}
        self._lock = Lock()
        self._down_until = 0.0
        self.spans = Counter(dict.fromkeys(OUTCOMES, 0))

    def take(self, calls: Sequence[Reported]) -> Taken:
        """Meter all of them, and capture those that are sampled.

        Raises:
            Busy: nothing was taken; the same may be sent again.
        """
        known = self._known([call.record_id for call in calls])
        by_tap: dict[_Tap, list[Reported]] = {}
        seen, duplicates = set(known), 0
        for call in calls:
            if call.record_id in seen:
                duplicates += 1
                continue
            if call.record_id:
                seen.add(call.record_id)
            by_tap.setdefault(self._tap(call.release.service), []).append(call)
        if any(tap.is_full() for tap in by_tap):
            raise Busy("too much waits in memory for the queue")
        sampled = sum(self._report(tap, found) for tap, found in by_tap.items())
        self._remember(seen - known)
        return Taken(len(calls) - duplicates, sampled, duplicates)

    def count_spans(self, **found: int) -> None:
        """Add to ``spans``."""
        with self._lock:
            self.spans.update(found)

    def feedback(self, items: Sequence[Mapping[str, Any]]) -> None:
        """Pass feedback on: each is the arguments of ``Hook.feedback``, and the ``service``.

        Raises:
            Busy: nothing was taken.
        """
        self._known([])
        found = [(self._tap(item["service"]), item) for item in items]
        taps = {tap for tap, _ in found}
        if any(tap.is_full() for tap in taps):
            raise Busy("too much waits in memory for the queue")
        for tap, item in found:
            tap.hook.feedback(**{name: value for name, value in item.items() if name != "service"})
        for tap in taps:
            tap.hook.flush(2.0)

    def close(self) -> None:
        """Ship what waits, for some seconds at the most."""
        deadline = time.monotonic() + SHUTDOWN_S
        for tap in (self._others, *self._taps.values()):
            tap.hook.shutdown(max(0.1, deadline - time.monotonic()))

    def _report(self, tap: _Tap, calls: Sequence[Reported]) -> int:
        """Report calls to one hook; returns how many were captured."""
        with tap.lock:
            before = tap.hook.stats().sampled
            for number, call in enumerate(calls, 1):
                release = self._releases.setdefault(call.release, call.release)
                tap.hook.report(release=release, record_id=call.record_id or None, **call.arguments)
                if number % 64 == 0 and tap.is_full():
                    tap.hook.flush(2.0)
            if len(self._releases) > MAX_RELEASES:
                self._releases.clear()
            return tap.hook.stats().sampled - before

    def _tap(self, service: str) -> _Tap:
        with self._lock:
            tap = self._taps.get(service)
            if tap is None and len(self._taps) < MAX_SERVICES:
                tap = self._taps[service] = _Tap(service, self._settings)
            return tap or self._others

    def _known(self, record_ids: Sequence[str]) -> set[str]:
        """Those of the ids that were taken before; asking shows that Redis is there, and how long the queue is."""
        if time.monotonic() < self._down_until:
            raise Busy("redis does not answer")
        given = sorted({record_id for record_id in record_ids if record_id})
        try:
            pipe = self._queue.client.pipeline(transaction=False)
            pipe.llen("evalpipe.ingest")
            if given:
                pipe.mget([_mark(record_id) for record_id in given])
            length, *marks = pipe.execute()
        except RedisError as error:
            self._down_until = time.monotonic() + DOWN_S
            raise Busy(f"redis does not answer: {type(error).__name__}") from error
        if length >= MAX_MESSAGES:
            raise Busy(f"the queue is at its bound of {MAX_MESSAGES} messages")
        found = marks[0] if marks else []
        return {record_id for record_id, mark in zip(given, found, strict=bool(given)) if mark is not None}

    def _remember(self, record_ids: set[str]) -> None:
        try:
            pipe = self._queue.client.pipeline(transaction=False)
            for record_id in record_ids:
                pipe.set(_mark(record_id), b"", ex=REMEMBERED_S)
            pipe.execute()
        except RedisError:
            # They have been taken; a retry of them would be metered twice, and stored once.
            self._down_until = time.monotonic() + DOWN_S


def _mark(record_id: str) -> str:
    return _MARK + hashlib.sha256(record_id.encode("utf-8", "surrogatepass")).hexdigest()[:24]
