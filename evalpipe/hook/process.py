"""What belongs to one process: the buffer, the meter, the thread that ships; and what a fork and the end do to them."""

from __future__ import annotations

import atexit
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from evalpipe.hook.buffer import Buffer
from evalpipe.hook.control import Control
from evalpipe.hook.feedback import FeedbackBuffer
from evalpipe.hook.meter import Meter
from evalpipe.hook.options import Options
from evalpipe.hook.recent import Recent
from evalpipe.hook.shipping import Shipper

if TYPE_CHECKING:
    from evalpipe.hook.client import Hook
    from evalpipe.hook.shadow import Shadow

EXIT_TIMEOUT_S: Final = 1.5
"""How long the end of the process may wait for what is still to be shipped."""


class Process:
    """The part of a hook that a forked child does not share with its parent.

    Attributes:
        meter, buffer, feedback: counts of all calls; captured records, and what users said, that wait.
        recent: the latest calls that were not captured.
        control: what the control plane says, as far as it is known here.
        next_id: makes ids of 32 hex digits, unique over all processes; not secret.
        running: whether the shipping thread has been started.
    """

    def __init__(self, options: Options, version: str) -> None:
        self._options = options
        self._version = version
        self._begin()
        _processes.add(self)

    def _begin(self, known: Control | None = None) -> None:
        self.next_id = _ids()
        self.control = Control(self._options, known)
        self.control.on_rates(self._options.sampler.override)
        self.meter = Meter(self.control.cost, self._options.release)
        self.feedback = FeedbackBuffer()
        self.recent = Recent()
        self.buffer = Buffer(self._options.buffer_size, self._options.max_buffer_bytes, self._wake)
        self.running = False
        self._shipper = Shipper(self._options, self._version, self.buffer, self.meter, self.feedback, self.control.cost)
        self._shadow: Shadow | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def start(self) -> None:
        """Start the threads that ship and that pull the control document, unless another thread is doing that now.

        Raises:
            RuntimeError: the system gives no thread.
        """
        if self._starting.acquire(blocking=False):
            try:
                if self._thread is None:
                    thread = threading.Thread(target=self._shipper.run, name="evalpipe-hook", daemon=True)
                    thread.start()
                    self._thread = thread
                if not self.running:
                    self.control.start()
                    self.running = True
            finally:
                self._starting.release()

    @property
    def started(self) -> bool:
        """Whether there is a thread to wait for."""
        return self._thread is not None

    def flush(self, timeout_s: float) -> bool:
        """Whether all that waited is in the queue, after at most ``timeout_s``."""
        done = threading.Event()
        self._shipper.wake.put(done)
        return done.wait(max(0.0, timeout_s)) and self.empty

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        return len(self.buffer) == 0 and len(self.feedback) == 0

    def stop(self, timeout_s: float) -> bool:
        """Ship a last time, give leases back and end the threads; False if something is left after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        self._shipper.stopping = True
        self._wake()
        self.control.stop(0.0)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(max(0.0, timeout_s))
        self.control.stop(deadline - time.monotonic())
        return self.empty

    def shadow(self, hook: Hook) -> Shadow:
        """What runs shadows in this process; made when it is first asked for."""
        from evalpipe.hook.shadow import Shadow

        with self._starting:
            if self._shadow is None:
                self._shadow = Shadow(hook)
            return self._shadow

    def shadows(self) -> dict[str, int]:
        """What became of the shadows of this process; nothing where there are none."""
        if self._shadow is None:
            return {}
        stats = self._shadow.stats()
        dropped = {f"dropped_{why}": n for why, n in stats.dropped.items()}
        return {"under_way": stats.under_way, "done": stats.done, "failed": stats.failed, **dropped}

    def begin_again(self) -> None:
        """Be the state of a child that was just forked: the parent ships what the parent's calls left."""
        # Kept, not freed: a thread that the child does not have may hold their locks, and the socket is the parent's.
        held = (self.buffer, self.meter, self.feedback, self.recent, self.control)
        _abandoned.append((self._shipper, self._shadow, held))
        self._begin(self.control)

    def _wake(self) -> None:
        self._shipper.wake.put(None)


_processes: weakref.WeakSet[Process] = weakref.WeakSet()
_abandoned: list[Any] = []


def _ids() -> Callable[[], str]:
    """Ids of 64 random bits, drawn once, and a count: to draw random bits for each id would cost thrice as much."""
    return map(os.urandom(8).hex().__add__, map(str, itertools.count(10**15))).__next__


def _after_fork() -> None:
    for process in list(_processes):
        process.begin_again()


def _at_exit() -> None:
    deadline = time.monotonic() + EXIT_TIMEOUT_S
    for process in list(_processes):
        if process.started:
            process.stop(deadline - time.monotonic())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
