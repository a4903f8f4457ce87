"""What the hook does around every call: it begins inside another, is refused, ends, is metered and captured."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from time import time
from typing import TYPE_CHECKING, Any, Final

from evalpipe.errors import CallRefused, KillSwitchEngaged
from evalpipe.hook.call import Call
from evalpipe.hook.capture import captured
from evalpipe.hook.logs import log
from evalpipe.hook.meter import MAX_PENDING, SCREENED_CHARS
from evalpipe.hook.row import MOST_CHARS
from evalpipe.release import Release

if TYPE_CHECKING:
    from evalpipe.hook.process import Process
    from evalpipe.hook.releases import Releases
    from evalpipe.hook.sampling import Sampler

OLDEST_S: Final = 7 * 86_400.0
NEWEST_S: Final = 3600.0
"""Calls may be reported so long after they ended, by clocks that are so far ahead."""


class Tap:
    """The part of a hook that applications do not call.

    Attributes:
        max_record_bytes: a record that takes more is shed.
    """

    _process: Process
    _releases: Releases
    _sampler: Sampler
    _told: bool = False
    release: Release
    max_record_bytes: int

    def inside(self, outer: Call, feature: str | None, trace_id: str | None) -> Call:
        """A call that inherits from the one around it."""
        call = Call(
            self,
            outer.release,
            outer.feature if feature is None else feature,
            trace_id or outer.trace_id,
        )
        call.session_id, call.user_id, call.unit = outer.session_id, outer.user_id, outer.unit
        call.segment = outer.segment
        call.enforced = outer.enforced
        outer.nested = True
        if outer.recorded:
            call.parent_id = outer.record_id
        elif outer.own_attributes:
            call.attributes = outer.own_attributes
        return call

    def other(self, given: Release | Mapping[str, str], inherited: Release) -> Release:
        """The release that a call was given; one that cannot be is told of once, and the inherited one stays."""
        try:
            return self._releases.of(given, inherited)
        except Exception as problem:  # noqa: BLE001 - the call itself goes on, counted and checked
            if not self._told:
                self._told = True
                log.warning("evalpipe: a call was given a release that cannot be, %r: %s", given, problem)
            return inherited

    def start(self) -> None:
        """Start the threads, if they can be. Never raises."""
        try:
            self._process.start()
        except Exception as problem:  # noqa: BLE001 - no thread is to be had: nothing is lost, it waits
            log.debug("evalpipe: the hook's threads could not be started: %r", problem)

    def check(self, call: Call) -> None:
        """Raise what refuses the call, if anything does."""
        refused = None
        try:
            refused = self._process.control.refuse(call)
            if refused is not None:
                why = "kill_switch" if isinstance(refused, KillSwitchEngaged) else "budget"
                meter = self._process.meter
                meter.blocked.append((call.release, call.feature, time(), why))
                if len(meter.blocked) > MAX_PENDING:
                    meter.help()
        except Exception as problem:  # noqa: BLE001 - the hook's own mistake must not stop a call
            log.debug("evalpipe: a call could not be checked: %r", problem)
        if refused is not None:
            raise refused

    def finish(  # noqa: C901 - the hot path: a step that does not apply costs one comparison
        self, call: Call, latency_ms: float | None, error: BaseException | None
    ) -> None:
        """Meter a call that ended, and buffer its record if it is kept. Never raises."""
        try:
            process = self._process
            now = time()
            if (at := call.at) is not None:
                now = _instant(at, now)
            release, feature = call.release, call.feature
            if type(release) is not Release or type(feature) is not str or len(feature) > MOST_CHARS:
                release, feature = self._mend(call)
            if error is not None and not isinstance(error, Exception):
                error, call.attributes["cancelled"] = None, True  # nobody waits for it any more: nothing failed
            # A refusal that passes through was counted where it was made, and nothing has failed.
            failed = error is not None and not isinstance(error, CallRefused)
            told = call.error
            if told is not None and (
                type(told) is not str or told != ""
            ):  # no question to an object of the application
                failed = True
            if latency_ms is None:
                latency_ms = call.latency_ms
            if process.control.active:
                process.control.settle(call)
            if call.capturing and self._sampler.tail and not call.decided:
                self._sampler.keep(call, failed, self._cost_of(call), latency_ms)
            pending = process.meter.pending
            output = call.output
            pending.append(
                (
                    release,
                    feature,
                    now,
                    call.sampled,
                    latency_ms,
                    failed,
                    call.input_tokens,
                    call.output_tokens,
                    call.cached_tokens,
                    call.cost_usd,
                    call.ttft_ms,
                    call.model,
                    call.finish_reason,
                    output[:SCREENED_CHARS] if type(output) is str else "",
                    call.user_id,
                )
            )
            if len(pending) > MAX_PENDING:
                process.meter.help()
            if call.sampled:
                self.capture(call, now, latency_ms, error)
            elif call.capturing and self._sampler.keeps_feedback:
                process.recent.put(call, now, latency_ms, error)
        except Exception as problem:  # noqa: BLE001 - the application must not feel it
            log.debug("evalpipe: a call could not be counted: %r", problem)

    def _mend(self, call: Call) -> tuple[Release, str]:
        """Give a call back what the meter counts it by, where the application has set something else."""
        release = call.release
        if type(release) is not Release:
            call.release = self.release
            if isinstance(release, Mapping):
                with suppress(Exception):
                    call.release = self._releases.of(release, self.release)
        try:
            call.feature = str(call.feature)[:MOST_CHARS]
        except Exception:  # noqa: BLE001 - the application's own object
            call.feature = f"[{type(call.feature).__qualname__}]"
        return call.release, call.feature

    def capture(self, call: Call, now: float, latency_ms: float | None, error: BaseException | None) -> None:
        """Buffer the record of a call."""
        process = self._process
        entry, why = captured(call, latency_ms, error, now, self.max_record_bytes)
        if why:
            process.meter.shed(entry, why)
        else:
            for shed in process.buffer.put(entry):
                process.meter.shed(shed, "buffer")

    def _cost_of(self, call: Call) -> float | None:
        if call.cost_usd is not None or not call.model:
            return call.cost_usd
        return self._process.control.cost(call.model, call.input_tokens, call.output_tokens, call.cached_tokens)


def _instant(at: Any, now: float) -> float:
    """When a reported call ended, if that can be; else now."""
    known = type(at) in {int, float} and now - OLDEST_S <= at <= now + NEWEST_S
    return float(at) if known else now
