"""The hook: what an application makes once and uses around its model calls."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from evalpipe.hook.call import INERT, Call, current
from evalpipe.hook.capture import capture
from evalpipe.hook.meter import MAX_PENDING, SHED
from evalpipe.hook.observing import observed
from evalpipe.hook.options import resolve
from evalpipe.hook.process import Process
from evalpipe.hook.redaction import Redactor
from evalpipe.record import Release

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

VERSION: Final = "0.1.0"

log = logging.getLogger("evalpipe")


@dataclass(frozen=True, slots=True)
class Stats:
    """What a hook has counted in this process.

    While nothing is under way: ``calls = sampled + not_sampled`` and ``sampled = enqueued + sum(shed) + buffered``.

    Attributes:
        calls: all of them.
        sampled, not_sampled: captured or only metered.
        enqueued: records in messages that the queue accepted.
        shed: captured and dropped, by reason: ``buffer`` (full), ``queue`` (at its bound), ``oversized``, ``failed``.
        buffered: captured and not yet enqueued.
        buffered_bytes: estimated memory of those not yet in a message.
    """

    calls: int
    sampled: int
    not_sampled: int
    enqueued: int
    shed: Mapping[str, int]
    buffered: int
    buffered_bytes: int


class Hook:
    """The tap of one service in one process. Make it once, at start-up; it is safe in threads, tasks and after a fork.

    Args:
        service: the service's name; or EVALPIPE_SERVICE.
        release: variant and versions that are running; what it leaves at the default comes from EVALPIPE_RELEASE (a
            variant, or a JSON object of versions) and EVALPIPE_ENVIRONMENT.
        redis_url: the queue; or EVALPIPE_REDIS_URL. Without one the hook is off.
        sample_rate: share of traces that is captured, or one for each variant; or EVALPIPE_SAMPLE_RATE; default 0.05.
        enabled: False turns everything into a no-op; or EVALPIPE_ENABLED.
        capture: ``full``, or ``metadata`` for records without any text; or EVALPIPE_CAPTURE.
        redact: True for the built-in rules; a function from text to text runs after them; False for none.
        buffer_size, max_buffer_bytes: bounds of what waits in memory; at either the oldest records are shed.
        max_record_bytes: a record that takes more memory is shed.
        flush_interval_s: seconds between messages while fewer than 64 records wait; or EVALPIPE_FLUSH_INTERVAL_S.
        queue_max_messages: bound of the queue in Redis, over all processes; at it records are shed.

    Raises:
        ConfigError: an option cannot work. After that, nothing here raises into the application.
    """

    def __init__(
        self,
        service: str = "",
        release: Release | None = None,
        *,
        redis_url: str | None = None,
        sample_rate: float | Mapping[str, float] | None = None,
        enabled: bool | None = None,
        capture: str | None = None,
        redact: bool | Redactor = True,
        buffer_size: int = 2048,
        max_buffer_bytes: int = 8 << 20,
        max_record_bytes: int = 256 << 10,
        flush_interval_s: float | None = None,
        queue_max_messages: int = 10_000,
    ) -> None:
        self._options = resolve(
            service=service,
            release=release,
            redis_url=redis_url,
            sample_rate=sample_rate,
            enabled=enabled,
            capture=capture,
            redact=redact,
            flush_interval_s=flush_interval_s,
            buffer_size=buffer_size,
            max_buffer_bytes=max_buffer_bytes,
            max_record_bytes=max_record_bytes,
            queue_max_messages=queue_max_messages,
        )
        self.release = self._options.release
        self.max_record_bytes = max_record_bytes
        self._sampler = self._options.sampler
        self._open = self._options.enabled
        if self._options.debug:
            _log_to_stderr()
        if not self._open:
            log.info("evalpipe: the hook is off (%s)", "no redis_url" if not self._options.redis_url else "not enabled")
        self._process = Process(self._options, VERSION)

    @property
    def enabled(self) -> bool:
        """Whether calls are metered and sampled."""
        return self._open

    def call(
        self,
        feature: str | None = None,
        *,
        trace_id: str | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
        unit: str | None = None,
        release: Release | None = None,
    ) -> Call:
        """A call to be used as ``with hook.call(feature="refunds") as call: ...``.

        What is not given is inherited from the call around this one; a trace id that nobody gave is made up.
        """
        outer = current()
        if not self._open or (outer is not None and outer.inert):
            return INERT
        try:
            if outer is None:
                call = Call(self, release or self.release, feature or "", trace_id or self._process.next_id())
            else:
                call = self._inside(outer, feature, trace_id, release)
            if type(call.feature) is not str or type(call.trace_id) is not str:
                call.feature, call.trace_id = str(call.feature), str(call.trace_id)
            if session_id is not None:
                call.session_id = session_id
            if user_id is not None:
                call.user_id = user_id
            if unit is not None:
                call.unit = unit
            sampled, probability = self._sampler.decide(call.release.variant, call.trace_id)
            if sampled:
                call.sampled = True
                call.probability = probability
                call.record_id = self._process.next_id()
                call.kept = {}
        except Exception as problem:  # noqa: BLE001 - whatever was passed, the application goes on
            log.debug("evalpipe: a call could not be observed: %r", problem)
            return INERT
        return call

    def context(
        self,
        feature: str | None = None,
        *,
        trace_id: str | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
        unit: str | None = None,
        release: Release | None = None,
    ) -> Call:
        """As ``call``, but without a record of its own: what is given here is inherited by the calls inside.

        For a request's handler: ``with hook.context(session_id=session): client.chat.completions.create(...)``.
        """
        call = self.call(feature, trace_id=trace_id, session_id=session_id, user_id=user_id, unit=unit, release=release)
        if call.recorded:
            call.recorded = call.sampled = False
        return call

    def current_call(self) -> Call:
        """The call that this code runs inside of, to set what a decorator cannot know; outside of any, an inert one."""
        call = current()
        return INERT if call is None else call

    def observe(self, function: F | None = None, *, feature: str | None = None) -> Any:
        """A decorator that records each call of a function: ``@hook.observe(feature="refunds")``.

        The argument named ``messages``, else the first text, is the input; what the function returns is the output.
        """
        if function is None:
            return lambda function: self.observe(function, feature=feature)
        return observed(self, function, feature) if self._open else function

    def wrap(self, client: T, *, feature: str | None = None) -> T:
        """``client`` itself, an OpenAI or Anthropic client, with its calls recorded. The class is not touched.

        Chat completions, responses and messages, synchronous or not. Streams are counted and pass through untouched.

        Raises:
            ConfigError: it is no client that the hook knows.
        """
        from evalpipe.hook.integrations import instrument

        instrument(self, client, feature)
        return client

    def stats(self) -> Stats:
        """What this process has counted so far; exact while nothing is under way."""
        process = self._process
        totals = process.meter.totals()
        return Stats(
            calls=totals["calls"],
            sampled=totals["sampled"],
            not_sampled=totals["calls"] - totals["sampled"],
            enqueued=totals["enqueued"],
            shed={why: totals[why] for why in SHED},
            buffered=len(process.buffer),
            buffered_bytes=process.buffer.bytes,
        )

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until all that waits is in the queue; False if it is not after ``timeout_s``."""
        if not self._open:
            return len(self._process.buffer) == 0
        try:
            self._process.start()
        except RuntimeError:  # no thread is to be had: nothing is lost, it waits
            return False
        return self._process.flush(timeout_s)

    def shutdown(self, timeout_s: float = 2.0) -> bool:
        """Ship what waits, for at most ``timeout_s``, and turn the hook off; False if something was left behind."""
        self._open = False
        return self._process.stop(timeout_s)

    def _inside(self, outer: Call, feature: str | None, trace_id: str | None, release: Release | None) -> Call:
        call = Call(
            self,
            release or outer.release,
            outer.feature if feature is None else feature,
            trace_id or outer.trace_id,
        )
        call.session_id, call.user_id, call.unit = outer.session_id, outer.user_id, outer.unit
        if outer.recorded:
            call.parent_id = outer.record_id
        return call

    def finish(self, call: Call, latency_ms: float | None, error: BaseException | None) -> None:
        """Meter a call that ended, and buffer its record if it is sampled. Never raises."""
        try:
            now = time.time()
            process = self._process
            meter = process.meter
            meter.pending.append(
                (
                    call.release,
                    call.feature,
                    now,
                    call.sampled,
                    latency_ms,
                    error is not None or call.error != "",
                    call.input_tokens,
                    call.output_tokens,
                    call.cost_usd,
                )
            )
            if len(meter.pending) > MAX_PENDING:
                meter.help()
            if call.sampled:
                entry, why = capture(call, latency_ms, error, now, self.max_record_bytes)
                if why:
                    meter.shed(entry, why)
                else:
                    for shed in process.buffer.put(entry):
                        meter.shed(shed, "buffer")
            if not process.running and self._open:
                process.start()
        except Exception as problem:  # noqa: BLE001 - the application must not feel it
            log.debug("evalpipe: a call could not be counted: %r", problem)


def _log_to_stderr() -> None:
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
    log.setLevel(logging.DEBUG)
