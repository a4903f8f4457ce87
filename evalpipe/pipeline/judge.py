"""Store → judges → store: drain the work that is owed with a sliding window of calls in flight.

One long-lived event loop per worker process. A task that ends is replaced at once, so one slow call idles nothing; what
ended is committed in small batches, under the fencing number of its claim.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from evalpipe.hook.call import suppressed
from evalpipe.judges.desk import Desk
from evalpipe.pipeline.budget import Budget
from evalpipe.pipeline.judging import Ended, Task, Tasks
from evalpipe.pipeline.settling import Settling
from evalpipe.pipeline.window import Window
from evalpipe.scorers.calls import Outcome
from evalpipe.scorers.grader import Grader
from evalpipe.store import works
from evalpipe.store.sql import Store, Transaction


@dataclass(slots=True)
class Drained:
    """What one drain did, in works."""

    graded: int = 0
    postponed: int = 0
    dead: int = 0
    under_way: int = 0
    """Tasks that go on with the next drain."""


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
        self._drained = Drained()
        self._kept: Sequence[Ended] = ()
        self._on_commit: Callable[[], None] = lambda: None
        self._window = Window[Task, Ended](
            concurrency,
            claim=self._claim,
            run=self._run,
            commit=self._commit_ended,
            renew=self._renew,
            renew_every_s=lease.total_seconds() / 3,
        )

    async def drain(self, seconds: float, on_commit: Callable[[], None]) -> Drained:
        """Grade what is owed until nothing is, or until ``seconds`` have passed and most calls in flight have ended.

        Args:
            seconds: no new work is claimed after this long.
            on_commit: is called after each commit, on its thread, so that decisions follow the evidence.
        """
        self._drained = drained = Drained()
        self._on_commit = on_commit
        drained.under_way = await self._window.drain(seconds)
        return drained

    def _commit_ended(self, ended: Sequence[Ended]) -> None:
        # Told once more to keep what was kept, for whoever is told of it failed: its costs must not be booked twice.
        kept = {id(e) for e in self._kept}
        self._commit([e for e in ended if id(e) not in kept], self._drained)
        self._kept = ended
        self._on_commit()

    def _claim(self, limit: int, held: Sequence[Task] = ()) -> list[Task]:
        under_way = Counter(judge for task in held for judge in task.judges)

        def run(tx: Transaction) -> list[Task]:
            now = self._clock()
            claimed = works.claim(tx, limit, now, self._lease)
            claimed += self._tasks.siblings(tx, claimed, now, self._lease)
            tasks = self._tasks.make(tx, claimed, now, under_way) if claimed else []
            return self._budget.admit(tx, tasks, now)

        return self._store.patiently(run)

    async def _run(self, task: Task) -> Ended:
        if task.plan is None:
            return Ended(task, Outcome(error=task.error))
        left = self._attempts - task.works[0].attempts + 1
        try:
            with suppressed():
                outcome = await self._grader.run(task.plan, task.known, attempts_left=left)
        except Exception as error:  # noqa: BLE001 - whatever a provider throws, the work must end with its reason
            outcome = Outcome(error=error)
        return Ended(task, outcome, wasted=self._budget.lost(outcome))

    def _renew(self, held: Sequence[Task]) -> None:
        items = [item for task in held for item in task.works]
        self._store.patiently(lambda tx: works.renew(tx, items, self._clock(), self._lease))

    def _commit(self, ended: Sequence[Ended], drained: Drained) -> None:
        now = self._clock()
        calls = self._desk.take_calls()
        try:
            final = self._store.patiently(lambda tx: self._settling.settle(tx, ended, calls, now))
        except Exception:
            self._desk.put_back(calls)
            raise
        graded = sum(len(e.task.works) for e in ended if e.outcome.graded)
        dead = sum(len(e.task.works) for e in final)
        drained.graded += graded
        drained.dead += dead
        drained.postponed += sum(len(e.task.works) for e in ended) - graded - dead
