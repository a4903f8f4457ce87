"""A sliding window: what ends is replaced at once, while the next is claimed and what ended is committed."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, Generic, TypeVar

COMMIT_EVERY_S: Final = 0.25
"""What ends within so long is committed together."""
COMMIT_SIZE: Final = 256
"""Results in one commit at the most, roughly."""
AHEAD_S: Final = 1.0
"""How long what is claimed ahead waits, about."""
STRAGGLERS: Final = 0.1
"""Share of the width that may be left under way at the end of a drain."""

T = TypeVar("T")
E = TypeVar("E")
R = TypeVar("R")


class Window(Generic[T, E]):
    """Runs tasks, so many at a time; for one event loop, again and again.

    Claims, commits and renewals run on threads, each kind one at a time, and nothing in the window waits for them: as
    many tasks are claimed ahead as end in ``AHEAD_S``, the width at the most, for calls that take equally long end
    together. Where tasks take long, none are: what cannot start soon is left to other workers.

    Args:
        width: tasks under way at the most.
        claim: up to so many new tasks, beside these that are under way; none where nothing is to be done.
        run: does one; must not raise.
        commit: keeps what came of tasks that ended.
        renew: says that these tasks are still ours.
        renew_every_s: how often that must be said.
    """

    def __init__(
        self,
        width: int,
        *,
        claim: Callable[[int, Sequence[T]], Sequence[T]],
        run: Callable[[T], Awaitable[E]],
        commit: Callable[[Sequence[E]], None],
        renew: Callable[[Sequence[T]], None],
        renew_every_s: float,
    ) -> None:
        self._width = width
        self._claim, self._run, self._commit, self._renew = claim, run, commit, renew
        self._renew_every_s = renew_every_s
        self._ready: deque[T] = deque()
        self._lines: dict[asyncio.Task[None], T] = {}
        self._ended: list[E] = []
        self._batch: list[E] = []
        self._ahead = 0
        self._claiming: asyncio.Task[Sequence[T]] | None = None
        self._committing: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._committed_at = self._renewed_at = time.monotonic()
        self._ask_again_at = float("-inf")
        self._news = self._found = False
        self._wake: asyncio.Event

    async def drain(self, seconds: float) -> int:
        """Run tasks until there are none, or until ``seconds`` have passed.

        Then those under way have ended, but for few (``STRAGGLERS``) if the last claim found something: they are left
        as they are, and go on with the next drain on the same loop. So one slow task does not idle the width.

        Returns:
            How many are left under way.

        Raises:
            Exception: as ``claim``, ``commit`` and ``renew``; what is under way is given up then, and what ended is
                committed if that can be done.
        """
        self._wake = asyncio.Event()
        self._ask_again_at = float("-inf")
        deadline = time.monotonic() + seconds
        try:
            while self._go_on(deadline):
                with suppress(TimeoutError):
                    async with asyncio.timeout(COMMIT_EVERY_S / 4):
                        await self._wake.wait()
                self._wake.clear()
        except BaseException:
            for line in self._lines:
                line.cancel()
            self._lines.clear()
            self._ready.clear()
            await self._commit_the_last()
            raise
        finally:
            if left := {t for t in (self._claiming, self._committing, self._renewing) if t is not None}:
                await asyncio.wait(left)  # threads cannot be cancelled
            self._claiming = self._committing = self._renewing = None
        return len(self._lines)

    def _go_on(self, deadline: float) -> bool:
        """Start what is due; whether anything is under way."""
        now = time.monotonic()
        self._take_results(now)
        while self._ready and len(self._lines) < self._width:
            self._start(self._ready.popleft())
        if self._committing is None and self._ended and (self._is_full(now) or not self._lines):
            self._batch, self._ended = self._ended, []
            pace = len(self._batch) / max(COMMIT_EVERY_S, now - self._committed_at)
            self._ahead, self._committed_at, self._news = min(self._width, int(pace * AHEAD_S)), now, True
            self._committing = self._on_thread(self._commit, self._batch)
        if self._claiming is None and self._ask_again_at <= now < deadline and self._may_claim:
            self._news = False
            self._claiming = self._on_thread(self._claim, self._wanted, self._held)
        if self._renewing is None and now - self._renewed_at > self._renew_every_s:
            self._renewed_at = now
            self._renewing = self._on_thread(self._renew, self._held)
        few = now >= deadline and self._found and len(self._lines) <= STRAGGLERS * self._width
        lines = self._lines if not few else ()
        return bool(lines or self._ready or self._ended or self._claiming or self._committing or self._renewing)

    async def _commit_the_last(self) -> None:
        """Once more, what could not be committed; and what has ended since."""
        if self._committing is not None:
            await asyncio.wait([self._committing])  # threads cannot be cancelled
            if self._committing.exception() is None:
                self._batch = []
        last, self._batch, self._ended = [*self._batch, *self._ended], [], []
        if last:
            with suppress(Exception):  # the first error is the one to tell
                await asyncio.to_thread(self._commit, last)

    def _take_results(self, now: float) -> None:
        if self._claiming is not None and self._claiming.done():
            claimed, self._claiming = self._claiming.result(), None
            self._ready.extend(claimed)
            self._found = bool(claimed)
            # Asked again soon: one slow call must not keep what came meanwhile waiting. And at once after a commit,
            # which may have made room for work that others owed meanwhile.
            if not claimed and not self._news:
                self._ask_again_at = now + COMMIT_EVERY_S
        if self._committing is not None and self._committing.done():
            done, self._committing = self._committing, None
            done.result()
            self._batch = []
            self._news, self._ask_again_at = True, float("-inf")
        if self._renewing is not None and self._renewing.done():
            done, self._renewing = self._renewing, None
            done.result()

    @property
    def _held(self) -> list[T]:
        return [*self._lines.values(), *self._ready]

    @property
    def _wanted(self) -> int:
        return self._width + self._ahead - len(self._lines) - len(self._ready)

    @property
    def _may_claim(self) -> bool:
        # Where nothing else is under way, what is known of the judges is waited for.
        settled = bool(self._lines) or self._committing is None
        return settled and self._wanted >= max(1, self._ahead // 2)

    def _is_full(self, now: float) -> bool:
        return len(self._ended) >= COMMIT_SIZE or now - self._committed_at >= COMMIT_EVERY_S

    def _start(self, task: T) -> None:
        line = asyncio.create_task(self._line(task))
        self._lines[line] = task

    async def _line(self, task: T) -> None:
        """One task after another, for as long as some are ready."""
        line = asyncio.current_task()
        assert line is not None
        while True:
            ended = await self._run(task)
            self._ended.append(ended)  # not in one: the list may be another by now
            if not self._ready:
                break
            self._lines[line] = task = self._ready.popleft()
            if self._claiming is None and self._may_claim:
                self._wake.set()
        del self._lines[line]
        self._wake.set()

    def _on_thread(self, function: Callable[..., R], *arguments: object) -> asyncio.Task[R]:
        task = asyncio.create_task(asyncio.to_thread(function, *arguments))
        task.add_done_callback(lambda _: self._wake.set())
        return task
