"""Questions that may never be answered, such as one to a database that is gone; nobody waits for ever."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Probe(Generic[T]):
    """Asks in a thread of its own, one question at a time; who asks meanwhile, or soon after, shares the answer.

    So a server that hangs costs one thread however often it is asked after, and an open path cannot be used to load it.

    Args:
        question: is called without arguments; its exceptions are answers too.
        timeout_s: how long one who asks waits.
        fresh_s: how long an answer is given again.
    """

    def __init__(self, question: Callable[[], T], *, timeout_s: float, fresh_s: float) -> None:
        self._question = question
        self._timeout_s = timeout_s
        self._fresh_s = fresh_s
        self._lock = threading.Lock()
        self._answer: Future[tuple[T | None, Exception | None]] | None = None
        self._answered_at = 0.0

    async def ask(self) -> T:
        """The answer.

        Raises:
            TimeoutError: there was none in time; the question stays asked.
            Exception: whatever the question raises.
        """
        waiting = asyncio.wrap_future(self._current())
        await asyncio.wait([waiting], timeout=self._timeout_s)
        if not waiting.done():
            waiting.cancel()
            raise TimeoutError(f"no answer within {self._timeout_s:g} s")
        value, error = waiting.result()
        if error is not None:
            raise error
        return value  # type: ignore[return-value]  # it is None only where T allows that

    def _current(self) -> Future[tuple[T | None, Exception | None]]:
        with self._lock:
            answer = self._answer
            if answer is None or (answer.done() and time.monotonic() - self._answered_at >= self._fresh_s):
                answer = self._answer = Future()
                answer.set_running_or_notify_cancel()  # from here on no waiter can cancel it
                # A daemon: a server that hangs must not keep this process from ending.
                threading.Thread(target=self._run, args=(answer,), name="evalpipe-probe", daemon=True).start()
            return answer

    def _run(self, answer: Future[tuple[T | None, Exception | None]]) -> None:
        value: T | None = None
        error: Exception | None = None
        try:
            value = self._question()
        except Exception as raised:  # noqa: BLE001 - handed to whoever asked
            error = raised
        self._answered_at = time.monotonic()
        answer.set_result((value, error))
