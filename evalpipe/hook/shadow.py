"""The canary beside the served call: on the same input, off the critical path, with a budget of its own.

Loaded by the first ``hook.shadow()``. What runs here is the application's own function; whatever it does, the served
call neither waits for it nor hears of it.
"""

from __future__ import annotations

import contextvars
import inspect
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from evalpipe.errors import CallRefused
from evalpipe.hook.document import SHADOW
from evalpipe.hook.logs import log
from evalpipe.hook.sampling import SPAN, position

if TYPE_CHECKING:
    import asyncio

    from evalpipe.hook.call import Call
    from evalpipe.hook.client import Hook

MAX_UNDER_WAY: Final = 32
"""Shadows that wait or run, in a process; more are dropped."""
MAX_THREADS: Final = 2
"""Shadows of plain functions that run at once."""
BURST: Final = 0.1
"""Share of a minute's budget that may start at once."""
DROPPED: Final = ("budget", "busy", "refused", "failed")
"""Why a shadow that was drawn did not run: its budget was used up, too many were under way, a kill switch or budget
refused its call, or it could not be started."""

_DEEPEST: Final = 24


class ShadowStats(NamedTuple):
    """What became of the shadows of this process: ``asked = not_drawn + under_way + done + failed + sum(dropped)``.

    Attributes:
        asked: how often a shadow was asked for while the control plane had one.
        not_drawn: the trace is not in the share that is shadowed.
        under_way: wait or run.
        done, failed: returned, or raised.
        dropped: did not run, by reason (``DROPPED``).
    """

    asked: int
    not_drawn: int
    under_way: int
    done: int
    failed: int
    dropped: Mapping[str, int]


class _Job(NamedTuple):
    """One shadow; ``loop`` is the one that the served call runs in, if any."""

    trace_id: str
    attributes: Mapping[str, str]
    context: contextvars.Context
    loop: asyncio.AbstractEventLoop | None
    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]


class Shadow:
    """Runs functions beside the calls of a hook, in one process. Its threads never hold the end of the process.

    A plain function runs in a thread. A coroutine function runs as a task of the event loop that the served call runs
    in, because the connections of an asynchronous client belong to that loop; outside of any, in a loop of its own.
    """

    def __init__(self, hook: Hook) -> None:
        self._hook = hook
        # Reentrant: a signal handler of the application may make a call while this thread is in here.
        self._lock = threading.RLock()
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._threads = self._plain = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._budgets: dict[str, _Budget] = {}
        self._counts = dict.fromkeys(("asked", "not_drawn", "under_way", "done", "failed"), 0)
        self._dropped = dict.fromkeys(DROPPED, 0)

    def stats(self) -> ShadowStats:
        """What became of the shadows so far."""
        with self._lock:
            return ShadowStats(**self._counts, dropped=dict(self._dropped))

    def submit(
        self,
        name: str,
        served: Call | None,
        rate: float,
        per_minute: float,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        """Run ``function`` beside the served call, or drop and count it. Never raises, never waits.

        Args:
            name: of the rollout.
            served: the call or context that this is asked in; None outside of any.
            rate: share of traces that are shadowed; those of a smaller share lie inside those of a larger one.
            per_minute: shadows of this name that may start in a minute, in this process.
            function: the canary: a function, a coroutine function, a method of a wrapped client. A stream that it
                returns is read to its end.
            args: its arguments; lists and dicts are copied now.
            kwargs: the same, by name.
        """
        trace_id = os.urandom(16).hex() if served is None else served.trace_id
        if not self._admit(name, trace_id, rate, per_minute):
            return
        try:
            self._start(
                _Job(
                    trace_id=trace_id,
                    attributes=_attributes(name, served),
                    context=contextvars.copy_context(),
                    loop=_running_loop(),
                    function=function,
                    args=_copied(list(args)),
                    kwargs=_copied(dict(kwargs)),
                )
            )
        except Exception as problem:  # noqa: BLE001 - the served call must not feel it
            log.debug("evalpipe: a shadow could not be started: %r", problem)
            self._settle(self._dropped, "failed")

    def _admit(self, name: str, trace_id: str, rate: float, per_minute: float) -> bool:
        """Whether a shadow may start now; then it is under way."""
        drawn = position(trace_id) < rate * SPAN
        with self._lock:
            self._counts["asked"] += 1
            if not drawn:
                self._counts["not_drawn"] += 1
            elif self._counts["under_way"] >= MAX_UNDER_WAY:
                self._dropped["busy"] += 1
            elif not self._budgets.setdefault(name, _Budget()).take(per_minute, time.monotonic()):
                self._dropped["budget"] += 1
            else:
                self._counts["under_way"] += 1
                return True
        return False

    def _settle(self, counts: dict[str, int], outcome: str) -> None:
        with self._lock:
            self._counts["under_way"] -= 1
            counts[outcome] += 1

    def _start(self, job: _Job) -> None:
        if not inspect.iscoroutinefunction(job.function):
            with self._lock:
                if self._threads < MAX_THREADS and self._threads <= self._plain:
                    threading.Thread(target=self._work, name="evalpipe-shadow", daemon=True).start()
                    self._threads += 1
                self._plain += 1
            self._jobs.put(job)
        elif job.loop is not None:
            self._start_task(job.loop, job)
        else:
            loop = self._own_loop()
            loop.call_soon_threadsafe(self._start_task, loop, job)

    def _hand_over(self, job: _Job, result: Awaitable[Any]) -> None:
        """Await in an event loop what a plain function returned in a thread."""
        loop = job.loop or self._own_loop()
        # With a copy of the context: this thread is still inside of the job's own.
        loop.call_soon_threadsafe(self._start_task, loop, job._replace(context=contextvars.copy_context()), result)

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                import asyncio

                loop = asyncio.new_event_loop()
                threading.Thread(target=loop.run_forever, name="evalpipe-shadow-loop", daemon=True).start()
                self._loop = loop
            return self._loop

    def _start_task(self, loop: asyncio.AbstractEventLoop, job: _Job, result: Awaitable[Any] | None = None) -> None:
        task = loop.create_task(self._run_task(job, result), context=job.context)
        self._tasks.add(task)  # the loop itself has only weak references
        task.add_done_callback(self._tasks.discard)

    def _work(self) -> None:
        """The body of a thread."""
        while True:
            job = self._jobs.get()
            with suppress(BaseException):  # the thread outlives whatever the function does
                job.context.run(self._run, job)
            with self._lock:
                self._plain -= 1

    def _run(self, job: _Job) -> None:
        with self._beside(job) as beside:
            result = job.function(*job.args, **job.kwargs)
            if inspect.isawaitable(result):  # a plain function around a coroutine function
                self._hand_over(job, result)
                beside.handed_over = True
                return
            if hasattr(result, "__next__"):
                for _ in result:
                    pass
            beside.result = result

    async def _run_task(self, job: _Job, result: Any = None) -> None:
        with self._beside(job) as beside:
            result = await (job.function(*job.args, **job.kwargs) if result is None else result)
            if hasattr(result, "__anext__"):
                async for _ in result:
                    pass
            beside.result = result

    @contextmanager
    def _beside(self, job: _Job) -> Iterator[_Ending]:
        """Where a shadow runs: in the served call's trace and session, under the variant ``shadow``."""
        ending = _Ending()
        started = time.perf_counter()
        error: BaseException | None = None
        with self._hook.context(trace_id=job.trace_id, release={"variant": SHADOW}, enforce=True) as context:
            context.attributes = job.attributes
            try:
                yield ending
            except BaseException as raised:  # noqa: BLE001 - the application must not hear of it
                log.debug("evalpipe: a shadow raised %r", raised)
                error = raised
            if ending.handed_over:
                return
            refused = isinstance(error, CallRefused)
            if not context.nested and not refused:  # the hook has seen no call: the shadow itself is one
                self._hook.report(
                    messages=_input(job),
                    output=ending.result if isinstance(ending.result, str | dict | list) else "",
                    error=f"{type(error).__name__}: {error}" if error is not None else "",
                    latency_ms=(time.perf_counter() - started) * 1000.0,
                )
        if refused:
            self._settle(self._dropped, "refused")
        else:
            self._settle(self._counts, "done" if error is None else "failed")
        if isinstance(error, KeyboardInterrupt):  # in an event loop it is somebody who stops the process
            raise error


class _Ending:
    """How a shadow ended: with a result, or by going on elsewhere."""

    result: Any = None
    handed_over: bool = False


class _Budget:
    """Starts a minute: a bucket that fills steadily, so that a burst spends little of it."""

    def __init__(self) -> None:
        self._filled = 1.0
        self._at: float | None = None

    def take(self, per_minute: float, now: float) -> bool:
        """Whether one more may start at ``now`` (seconds of a steady clock)."""
        most = max(1.0, per_minute * BURST)
        since = 60.0 if self._at is None else now - self._at
        self._at = now
        self._filled = min(most, self._filled + since * per_minute / 60.0)
        if per_minute <= 0.0 or self._filled < 1.0:
            return False
        self._filled -= 1.0
        return True


def _attributes(name: str, served: Call | None) -> dict[str, str]:
    if served is None or not served.recorded or not served.record_id:
        return {"shadow": name}
    return {"shadow": name, "shadow_of": served.record_id}


def _copied(value: Any, depth: int = 0) -> Any:
    """``value`` with lists and dicts of its own; what else is in them is shared."""
    kind = type(value)
    if depth < _DEEPEST:
        if kind is dict:
            return {key: _copied(item, depth + 1) for key, item in value.items()}
        if kind is list or kind is tuple:
            return kind(_copied(item, depth + 1) for item in value)
    return value


def _running_loop() -> asyncio.AbstractEventLoop | None:
    # Whoever has not imported asyncio runs no loop of it.
    asyncio = sys.modules.get("asyncio")
    try:
        return asyncio.get_running_loop() if asyncio is not None else None
    except RuntimeError:
        return None


def _input(job: _Job) -> Any:
    given = job.kwargs.get("messages")
    if given is not None:
        return given
    text = next((value for value in (*job.args, *job.kwargs.values()) if isinstance(value, str)), None)
    return [] if text is None else [{"role": "user", "content": text}]
