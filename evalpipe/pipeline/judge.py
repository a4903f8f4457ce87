"""Store → judges → store: drain the work that is owed with a sliding window of calls in flight.

One long-lived event loop per worker process. A task that ends is replaced at once, so one slow call idles nothing; what
ended is committed in small batches, under the fencing number of its claim.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from evalpipe.hook.call import suppressed
from evalpipe.judges.desk import Desk
from evalpipe.pipeline.budget import Budget
from evalpipe.pipeline.judging import Ended, Task, Tasks
from evalpipe.pipeline.settling import Settling
from evalpipe.scorers.grader import Grader, Outcome
from evalpipe.store import works
from evalpipe.store.sql import Store, Transaction
from evalpipe.store.works import Work

COMMIT_EVERY_S = 0.25
COMMIT_SIZE = 32


@dataclass(slots=True)
class Drained:
    """What one drain did, in works."""

    graded: int = 0
    postponed: int = 0
    dead: int = 0


class JudgeStage:
    """The stage, with what it needs; one per worker process.

    Args:
        store: where work is claimed and grades are committed.
        desk: who asks the judges.
        concurrency: tasks in flight at the most.
        lease: how long claimed work is ours without a renewal.
        attempts: how often work is tried.
        clock: aware UTC.
        budget: the caps that hold.
    """

    def __init__(
        self,
        store: Store,
        desk: Desk,
        *,
        concurrency: int,
        lease: timedelta,
        attempts: int,
        clock: Callable[[], datetime],
        budget: Budget | None = None,
    ) -> None:
        self._store = store
        self._desk = desk
        self._grader = Grader(desk)
        self._tasks = Tasks(desk, self._grader, attempts=attempts)
        self._settling = Settling(self._tasks, attempts=attempts)
        self._concurrency = concurrency
        self._lease = lease
        self._attempts = attempts
        self._clock = clock
        self._budget = budget or Budget()
        self._under_way: Counter[str] = Counter()

    async def drain(self, seconds: float, on_commit: Callable[[], None]) -> Drained:
        """Grade what is owed until nothing is, or until ``seconds`` have passed and the calls in flight have ended.

        Args:
            seconds: no new work is claimed after this long.
            on_commit: is called after each commit, so that decisions follow the evidence.
        """
        drained = Drained()
        held: dict[asyncio.Task[Ended], Task] = {}
        self._under_way.clear()
        try:
            await self._window(drained, held, time.monotonic() + seconds, on_commit)
        finally:
            for task in held:
                task.cancel()
        return drained

    async def _window(
        self, drained: Drained, held: dict[asyncio.Task[Ended], Task], deadline: float, on_commit: Callable[[], None]
    ) -> None:
        ended: list[Ended] = []
        committed_at = renewed_at = time.monotonic()
        empty_at = float("-inf")
        while True:
            now = time.monotonic()
            free = self._concurrency - len(held)
            # Found empty, it is asked again soon: one slow call must not keep what came meanwhile waiting.
            exhausted = now - empty_at < COMMIT_EVERY_S
            if not exhausted and now < deadline and free >= max(1, self._concurrency // 8):
                claimed = await asyncio.to_thread(self._claim, free)
                for task in claimed:
                    self._under_way.update(task.judges)
                    held[asyncio.create_task(self._run(task))] = task
                if exhausted := not claimed:
                    empty_at = time.monotonic()
            if held:
                done, _ = await asyncio.wait(held, timeout=COMMIT_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
                for finished in done:
                    self._under_way.subtract(held.pop(finished).judges)
                    ended.append(finished.result())
            now = time.monotonic()
            if ended and (len(ended) >= COMMIT_SIZE or now - committed_at > COMMIT_EVERY_S or not held):
                await asyncio.to_thread(self._commit, ended, drained)
                on_commit()
                # What was just committed may have made room for work that others owed meanwhile.
                ended, committed_at, exhausted, empty_at = [], time.monotonic(), False, float("-inf")
            if held and now - renewed_at > self._lease.total_seconds() / 3:
                await asyncio.to_thread(self._renew, [item for task in held.values() for item in task.works])
                renewed_at = time.monotonic()
            if not held and not ended and (exhausted or time.monotonic() >= deadline):
                return

    def _claim(self, limit: int) -> list[Task]:
        def run(tx: Transaction) -> list[Task]:
            now = self._clock()
            claimed = works.claim(tx, limit, now, self._lease)
            claimed += self._tasks.siblings(tx, claimed, now, self._lease)
            tasks = self._tasks.make(tx, claimed, now, self._under_way) if claimed else []
            return self._budget.admit(tx, tasks, now)

        return self._store.patiently(run)

    async def _run(self, task: Task) -> Ended:
        if task.plan is None:
            return Ended(task, Outcome(error=task.error))
        left = self._attempts - task.works[0].attempts + 1
        try:
            with suppressed():
                return Ended(task, await self._grader.run(task.plan, task.known, attempts_left=left))
        except Exception as error:  # noqa: BLE001 - whatever a provider throws, the work must end with its reason
            return Ended(task, Outcome(error=error))

    def _renew(self, held: Sequence[Work]) -> None:
        self._store.patiently(lambda tx: works.renew(tx, held, self._clock(), self._lease))

    def _commit(self, ended: Sequence[Ended], drained: Drained) -> None:
        now = self._clock()
        calls = self._desk.take_calls()
        self._store.patiently(lambda tx: self._settling.settle(tx, ended, calls, now))
        for e in ended:
            if e.outcome.graded:
                drained.graded += len(e.task.works)
            elif self._settling.is_final(e):
                drained.dead += len(e.task.works)
            else:
                drained.postponed += len(e.task.works)
