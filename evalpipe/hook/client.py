"""The hook: what an application makes once and uses around its model calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import time
from typing import Any, Final, NamedTuple, TypeVar

from evalpipe.batch import AFTERTHOUGHT, LEAST_PROBABILITY
from evalpipe.hook.call import CURRENT, INERT, Call, current
from evalpipe.hook.control import BASELINE
from evalpipe.hook.logs import load, log, to_stderr
from evalpipe.hook.options import resolve
from evalpipe.hook.process import Process
from evalpipe.hook.redaction import Redaction, Redactor
from evalpipe.hook.releases import Releases
from evalpipe.hook.row import SHED
from evalpipe.hook.sampling import Sampling
from evalpipe.hook.tap import Tap
from evalpipe.release import Release

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

VERSION: Final = "0.1.0"
REPORTED: Final = frozenset(
    {"messages", "context", "tools", "tool_calls", "parameters", "output", "model", "finish_reason", "error",
     "input_tokens", "output_tokens", "cached_tokens", "cost_usd", "ttft_ms", "attributes"}
)  # fmt: skip
"""What ``Hook.report`` sets on the call."""


class Stats(NamedTuple):
    """What a hook has counted in this process.

    While nothing is under way: ``calls = sampled + not_sampled`` and ``sampled = enqueued + sum(shed) + buffered``.

    Attributes:
        calls: all of them.
        sampled, not_sampled: captured or only metered.
        enqueued: records in messages that the queue accepted.
        shed: captured and dropped, by reason: ``buffer`` (full), ``queue`` (at its bound), ``oversized``, ``failed``.
        buffered: captured and not yet enqueued.
        buffered_bytes: estimated memory of those not yet in a message.
        shadow: what became of shadows: ``done``, ``failed``, ``under_way``, and ``dropped_`` and why.
    """

    calls: int
    sampled: int
    not_sampled: int
    enqueued: int
    shed: Mapping[str, int]
    buffered: int
    buffered_bytes: int
    shadow: Mapping[str, int]


class Hook(Tap):
    """The tap of one service in one process. Make it once, at start-up; it is safe in threads, tasks and after a fork.

    Args:
        service: the service's name; or EVALPIPE_SERVICE.
        release: variant and versions that are running; what it leaves at the default comes from EVALPIPE_RELEASE (a
            variant, or a JSON object of versions) and EVALPIPE_ENVIRONMENT.
        redis_url: the queue; or EVALPIPE_REDIS_URL. Without one the hook is off.
        sample_rate: share of traces that is captured, or one for each variant; or EVALPIPE_SAMPLE_RATE; default 0.05.
        sampling: more than a rate: rates for features and segments, floors, what is always kept.
        enabled: False turns everything into a no-op; or EVALPIPE_ENABLED.
        capture: ``full``, or ``metadata`` for records without any text; or EVALPIPE_CAPTURE.
        redact: True for the built-in rules; a function from text to text that runs after them; a ``Redaction`` for
            rules and fields of your own; False for none.
        enforce: whether kill switches and budgets stop calls, by ``KillSwitchEngaged`` and ``BudgetExceeded``; each
            call may say otherwise.
        fail: whether enforced calls pass ("open") or are refused ("closed") until the control plane is first heard of.
        prices: USD for a million input, output and perhaps cached input tokens, by model; they win over the control
            plane's.
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
        sampling: Sampling | None = None,
        enabled: bool | None = None,
        capture: str | None = None,
        redact: bool | Redactor | Redaction = True,
        enforce: bool = False,
        fail: str = "open",
        prices: Mapping[str, Sequence[float]] | None = None,
        buffer_size: int = 2048,
        max_buffer_bytes: int = 6 << 20,
        max_record_bytes: int = 256 << 10,
        flush_interval_s: float | None = None,
        queue_max_messages: int = 10_000,
    ) -> None:
        self._options = resolve(
            service=service,
            release=release,
            redis_url=redis_url,
            sample_rate=sample_rate,
            sampling=sampling,
            enabled=enabled,
            capture=capture,
            redact=redact,
            enforce=enforce,
            fail=fail,
            prices=prices,
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
        load()
        if self._options.debug:
            to_stderr()
        if not self._open:
            log.info("evalpipe: the hook is off (%s)", "no redis_url" if not self._options.redis_url else "not enabled")
        self._enforce = enforce
        self._releases = Releases()
        self._process = Process(self._options, VERSION)
        if self._open and enforce:
            self.start()  # so that the first call knows what is refused, also in children of a prefork master

    @property
    def enabled(self) -> bool:
        """Whether calls are metered and sampled."""
        return self._open

    def call(  # noqa: C901, PLR0912 - the hot path: a step that does not apply costs one comparison
        self,
        feature: str | None = None,
        trace_id: str | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
        unit: str | None = None,
        segment: str | None = None,
        release: Release | Mapping[str, str] | None = None,
        enforce: bool | None = None,
    ) -> Call:
        """A call to be used as ``with hook.call(feature="refunds") as call: ...``.

        What is not given is inherited from the call around this one; a trace id that nobody gave is made up.

        Args:
            feature: what the call is for.
            trace_id: of the application's trace; whole traces are captured or not.
            session_id: the conversation.
            user_id: the application's key for its user.
            unit: what an experiment assigns; session, else user, else trace.
            segment: the application's own class of traffic: a plan, a language, a tenant.
            release: another release, or only what differs: ``{"variant": "canary", "prompt": "v8"}``.
            enforce: whether kill switches and budgets stop this call; the hook's ``enforce`` by default.

        Raises:
            KillSwitchEngaged, BudgetExceeded: the call must not be made; only if enforced.
        """
        outer = CURRENT.get()
        if not self._open or (outer is not None and outer.inert):
            return INERT
        process = self._process
        try:
            if type(feature) is not str and feature is not None:
                feature = str(feature)
            if type(trace_id) is not str and trace_id is not None:
                trace_id = str(trace_id)
            if outer is None:
                call = Call(self, self.release, feature or "", trace_id or process.next_id())
                if self._enforce:
                    call.enforced = True
            else:
                call = self.inside(outer, feature, trace_id)
            if release is not None:
                call.release = self.other(release, call.release)
            if session_id is not None:
                call.session_id = session_id if type(session_id) is str else str(session_id)
            if user_id is not None:
                call.user_id = user_id
            if unit is not None:
                call.unit = unit
            if segment is not None:
                call.segment = segment if type(segment) is str else str(segment)
            if enforce is not None:
                call.enforced = enforce
            self._sampler.decide(call)
            if call.capturing:
                call.record_id = process.next_id()
                call.kept = {}
            if not process.running:
                self.start()
        except Exception as problem:  # noqa: BLE001 - whatever was passed, the application goes on
            log.debug("evalpipe: a call could not be observed: %r", problem)
            return INERT
        if process.control.active and call.enforced:
            self.check(call)
        return call

    def context(
        self,
        feature: str | None = None,
        *,
        trace_id: str | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
        unit: str | None = None,
        segment: str | None = None,
        release: Release | Mapping[str, str] | None = None,
        enforce: bool | None = None,
    ) -> Call:
        """As ``call``, but without a record of its own: what is given here is inherited by the calls inside.

        For a request's handler: ``with hook.context(session_id=session): client.chat.completions.create(...)``. It is
        never refused itself; ``enforce`` is for the calls inside.
        """
        call = self.call(
            feature,
            trace_id=trace_id,
            session_id=session_id,
            user_id=user_id,
            unit=unit,
            segment=segment,
            release=release,
            enforce=False,
        )
        if call.recorded:
            call.recorded = call.sampled = call.capturing = False
            self._sampler.uncount(call)
            outer = current()
            call.enforced = (self._enforce if outer is None else outer.enforced) if enforce is None else enforce
        return call

    def report(
        self,
        feature: str | None = None,
        *,
        trace_id: str | None = None,
        session_id: str | None = None,
        user_id: str | None = None,
        unit: str | None = None,
        segment: str | None = None,
        release: Release | Mapping[str, str] | None = None,
        record_id: str | None = None,
        at: float | None = None,
        latency_ms: float | None = None,
        probability: float | None = None,
        **fields: Any,
    ) -> None:
        """Take in a call that happened already: for callbacks, and for what comes from other telemetry.

        Args:
            feature: as in ``call``, like the next six.
            trace_id: of the trace.
            session_id: the conversation.
            user_id: the user.
            unit: of assignment.
            segment: class of traffic.
            release: or what differs from the hook's.
            record_id: names the record; the same call reported twice under one id is recorded once.
            at: when it ended, in seconds since 1970; now by default.
            latency_ms: how long it took.
            probability: given by whoever sampled it already: then it is captured.
            **fields: further fields of ``Call``; what it does not have becomes an attribute.
        """
        call = self.call(
            feature,
            trace_id=trace_id,
            session_id=session_id,
            user_id=user_id,
            unit=unit,
            segment=segment,
            release=release,
            enforce=False,
        )
        if not call.recorded:
            return
        if isinstance(probability, int | float) and LEAST_PROBABILITY <= probability <= 1.0:
            call.sampled = call.capturing = call.decided = True
            call.probability = float(probability)
            call.stratum, call.reason = "", "rate"
            call.kept = {}
        if call.capturing:
            call.record_id = record_id or call.record_id or self._process.next_id()
        for name, value in fields.items():
            if name in REPORTED:
                setattr(call, name, value)
            else:
                call.attributes[name] = value
        call.at = at
        call.latency_ms = latency_ms
        call.end()

    def feedback(
        self,
        trace_id: str,
        value: float | None = None,
        *,
        label: str = "",
        comment: str = "",
        user_id: str = "",
        record_id: str = "",
        feedback_id: str = "",
    ) -> None:
        """What a user said of an answer; it joins the answer's record, however late it comes. Never raises.

        Args:
            trace_id: of the answer.
            value: from 0 (bad) to 1 (good).
            label: for example ``thumbs_down``.
            comment: in the user's words; it is redacted like everything else.
            user_id: who said it.
            record_id: the record meant, where the trace has several.
            feedback_id: the same one given twice counts once; made up by default.
        """
        if not self._open:
            return
        try:
            process = self._process
            around = current()
            if around is not None and around.trace_id == trace_id:
                around.flag("feedback")
            for call, at, latency_ms in process.recent.take(trace_id, record_id, time()):
                call.sampled = True
                call.probability = 1.0
                call.stratum = call.reason = AFTERTHOUGHT
                process.meter.kept(call.release, call.feature, at)
                self.capture(call, at, latency_ms, None)
            process.feedback.put(
                service=self.release.service,
                trace_id=trace_id,
                value=value,
                label=label,
                comment=comment,
                user_id=user_id,
                record_id=record_id,
                feedback_id=feedback_id or process.next_id(),
            )
            if not process.running:
                self.start()
        except Exception as problem:  # noqa: BLE001 - the application must not feel it
            log.debug("evalpipe: feedback was not taken: %r", problem)

    def variant(self, name: str, unit: str) -> str:
        """The arm of a unit in the rollout ``name``: ``canary`` or ``baseline``, always the same for the same weights.

        The weights come from the control plane in the background. Without them everybody is in the ``baseline``; as the
        canary's weight grows, nobody leaves it. Give the arm to the calls: ``hook.call(release={"variant": arm})``.

        Args:
            name: of the rollout.
            unit: what is assigned: a user, a session, a tenant.
        """
        if not self._open:
            return BASELINE
        try:
            if not self._process.running:
                self.start()
            return self._process.control.variant(name, unit, self.release.environment)
        except Exception as problem:  # noqa: BLE001 - the application must not feel it
            log.debug("evalpipe: no arm for %r: %r", unit, problem)
            return BASELINE

    def shadow(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Run ``function`` beside the call that is being served, in the background, as the shadow of rollout ``name``.

        It runs for the share of traces, and at most as often a minute, as the control plane says for this rollout; what
        it calls is recorded with the variant ``shadow`` in the same trace. Its result is thrown away, and so is what it
        raises. A coroutine function runs in the event loop of the served call; outside of any, in one of its own.
        """
        if not self._open:
            return
        try:
            if not self._process.running:
                self.start()
            if found := self._process.control.shadow(name, self.release.environment):
                rate, per_minute = found
                self._process.shadow(self).submit(name, current(), rate, per_minute, function, args, kwargs)
        except Exception as problem:  # noqa: BLE001 - the application must not feel it
            log.debug("evalpipe: no shadow for %r: %r", name, problem)

    def current_call(self) -> Call:
        """The call that this code runs inside of, to set what a decorator cannot know; outside of any, an inert one."""
        call = current()
        return INERT if call is None else call

    def observe(
        self,
        function: F | None = None,
        *,
        feature: str | None = None,
        kind: str = "call",
        enforce: bool | None = None,
    ) -> Any:
        """A decorator that records each call of a function: ``@hook.observe(feature="refunds")``.

        The argument named ``messages``, else the first text, is the input; what the function returns is the output. A
        generator is recorded from its call to its end. ``kind="tool"`` or ``"retrieval"`` adds to the call around it.
        """
        from evalpipe.hook.observing import observed  # loads inspect

        if function is None:
            return lambda function: self.observe(function, feature=feature, kind=kind, enforce=enforce)
        return observed(self, function, feature, kind=kind, enforce=enforce) if self._open else function

    def wrap(self, client: T, *, feature: str | None = None, enforce: bool | None = None) -> T:
        """``client`` itself, an OpenAI or Anthropic client, with its calls recorded. The class is not touched.

        Chat and text completions, responses and messages, synchronous or not, streamed or not; copies by
        ``with_options`` too.

        Raises:
            ConfigError: it is no client that the hook knows.
        """
        from evalpipe.hook.integrations import instrument

        instrument(self, client, feature, enforce)
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
            shadow=process.shadows(),
        )

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until all that waits is in the queue; False if it is not after ``timeout_s``."""
        if not self._open:
            return self._process.empty
        try:
            self._process.start()
        except RuntimeError:  # no thread is to be had: nothing is lost, it waits
            return False
        return self._process.flush(timeout_s)

    def shutdown(self, timeout_s: float = 2.0) -> bool:
        """Ship what waits, for at most ``timeout_s``, and turn the hook off; False if something was left behind."""
        self._open = False
        return self._process.stop(timeout_s)
