"""Store → a provider's batch → store: judge work that is not urgent, at half the price, within a day.

A batch is in the store before the provider is asked, so that a crash in between is found and nothing is paid twice
where that can be known. Answers are committed as the judge stage commits them; what a batch brought no grade for is
sent once more, and then judged at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from evalpipe.errors import ConfigError, EvalpipeError, JudgeRejected, JudgeUnavailable
from evalpipe.hook.call import suppressed
from evalpipe.judges.base import Answer
from evalpipe.judges.batches import Batcher, Result
from evalpipe.judges.breaker import FORBIDDEN
from evalpipe.judges.desk import REASON_CHARS, Call, Desk
from evalpipe.pipeline.batching import HANDS, Batching, Outgoing, is_same_question, work_of
from evalpipe.pipeline.budget import Budget
from evalpipe.pipeline.judging import LOOK_AGAIN, Again, Ended, Task, Tasks
from evalpipe.pipeline.settling import Settling, reason_of
from evalpipe.scorers.calls import Outcome
from evalpipe.scorers.grader import Grader
from evalpipe.store import judge_batches, works
from evalpipe.store.judge_batches import Batch
from evalpipe.store.sql import Store, Transaction, storable
from evalpipe.store.works import Work

log = logging.getLogger("evalpipe")

CLAIMS_A_RUN: Final = 4
"""Claims of one run: the worker has other stages too, and the next run is seconds away."""
TRIES: Final = 2
"""A work that so many batches brought no grade for is judged at once."""
OLDEST: Final = timedelta(hours=26)
"""A batch that is older is given up: providers promise an end within 24 hours."""
SOONEST, LATEST = timedelta(seconds=30), timedelta(minutes=10)
"""Between two looks at a batch: a tenth of its age, within these bounds."""
UNSURE: Final = timedelta(minutes=1)
"""When a batch is looked for of which nobody knows whether the provider has it."""
ONCE_MORE: Final = timedelta(minutes=5)
"""When works are sent again: what is wrong with a provider may pass."""
BUSY: Final = timedelta(minutes=10)
"""When works are sent again whose batch the provider had no room for."""
KEPT: Final = timedelta(days=40)
"""Batches that ended are listed for so long."""
CHUNK: Final = 200
"""Works in one commit."""


@dataclass(slots=True)
class Ran:
    """What one run did: requests handed in; works that a batch graded; works that one brought no grade for."""

    sent: int = 0
    graded: int = 0
    returned: int = 0


class BatchStage:
    """The stage, with what it needs; one per worker process.

    Args:
        store: where work is claimed and grades are committed.
        desk: has the judges.
        attempts: how often work is tried.
        clock: aware UTC.
        budget: the caps that hold.
    """

    def __init__(
        self, store: Store, desk: Desk, *, attempts: int, clock: Callable[[], datetime], budget: Budget | None = None
    ) -> None:
        self._store = store
        self._desk = desk
        self._attempts = attempts
        self._clock = clock
        self._grader = Grader(desk)
        self._tasks = Tasks(desk, self._grader, attempts=attempts)
        self._settling = Settling(self._tasks, attempts=attempts)
        self._batching = Batching(desk, self._tasks, budget or Budget())

    async def run(self, on_commit: Callable[[], None]) -> Ran:
        """Look after the batches that are due, then send what has gathered.

        Args:
            on_commit: is called after each commit of grades, so that decisions follow the evidence.
        """
        ran = Ran()
        with suppressed():
            while (batch := await asyncio.to_thread(self._take)) is not None:
                await self._look_after(batch, ran, on_commit)
            for _ in range(CLAIMS_A_RUN):
                if not await self._send(ran, on_commit):
                    break
        return ran

    def _take(self) -> Batch | None:
        def run(tx: Transaction) -> Batch | None:
            now = self._clock()
            judge_batches.clean(tx, now - KEPT)
            return judge_batches.take_due(tx, now, now + HANDS)

        return self._store.patiently(run)

    async def _send(self, ran: Ran, on_commit: Callable[[], None]) -> bool:
        """Send what has gathered; whether there may be more to send."""
        found = await asyncio.to_thread(self._store.patiently, lambda tx: self._batching.claim(tx, self._clock()))
        if found is None:
            return False
        first = [await self._ask(task) for task in found.first]
        self._batching.asked |= {judge for e in first if e.outcome.graded for judge in e.task.judges}
        ended = [*found.ended, *first, *[await self._ask(task) for task in found.known]]
        for start in range(0, len(ended), CHUNK):
            some, calls = ended[start : start + CHUNK], self._desk.take_calls()
            await asyncio.to_thread(self._settle, some, calls)
            on_commit()
        for outgoing in found.outgoing:
            await self._submit(outgoing, ran)
        return all(e.outcome.graded for e in first)

    async def _ask(self, task: Task) -> Ended:
        assert task.plan is not None
        return Ended(task, await self._grader.run(task.plan, task.known))

    def _settle(self, ended: Sequence[Ended], calls: Sequence[Call]) -> None:
        try:
            self._store.patiently(lambda tx: self._settling.settle(tx, ended, calls, self._clock()))
        except Exception:
            self._desk.put_back(calls)
            raise

    async def _submit(self, out: Outgoing, ran: Ran) -> None:
        batch = out.batch
        if not await self._look_again(batch, HANDS):
            return  # what came before took so long that its works were given back
        try:
            provider_id = await out.batcher.submit(batch.batch_id, out.lines)
        except JudgeRejected as error:
            if error.cause == "gone":
                self._batching.has_none(out.judge, reason_of(error))
                await self._give_back(batch, "failed", reason_of(error), ran, lane="now")
                return
            call = Call(self._clock(), batch.judge, "", error.cause, None, 0.0, str(error)[:REASON_CHARS])
            refund = LOOK_AGAIN if error.cause != FORBIDDEN else None  # that may concern these requests only
            await self._give_back(batch, "failed", reason_of(error), ran, refund=refund, calls=[call])
        except JudgeUnavailable as error:
            if error.cause == "throttled":
                wait = timedelta(seconds=error.retry_after_s) if error.retry_after_s is not None else BUSY
                await self._give_back(batch, "failed", reason_of(error), ran, refund=wait)
            else:
                await self._look_again(batch, UNSURE, reason_of(error))
        except EvalpipeError as error:
            await self._give_back(batch, "failed", reason_of(error), ran)
        else:
            ran.sent += batch.n
            until = self._clock() + SOONEST
            if not await asyncio.to_thread(
                self._store.patiently, lambda tx: judge_batches.submitted(tx, batch.batch_id, provider_id, until)
            ):
                await self._cancel(out.batcher, provider_id)  # it took so long that its works were given back

    async def _look_after(self, batch: Batch, ran: Ran, on_commit: Callable[[], None]) -> None:
        """See how far a batch is, and commit what it brought."""
        age = self._clock() - batch.submitted_at
        try:
            judge = self._desk.judge(batch.model)
        except ConfigError as error:
            await self._give_back(batch, "abandoned", reason_of(error), ran, refund=LOOK_AGAIN)
            return
        batcher = self._batching.batcher(judge)
        if judge.version != batch.judge or batcher is None:
            why = f"{batch.model!r} is {judge.version} by now, and the batch was sent to {batch.judge}"
            await self._give_back(batch, "abandoned", why, ran, refund=LOOK_AGAIN)
            return
        if age > OLDEST:
            if batch.provider_id:
                await self._cancel(batcher, batch.provider_id)
            why = f"the batch had not ended after {OLDEST.total_seconds() / 3600:.0f} hours"
            await self._give_back(batch, "abandoned", why, ran, lane="now")
            return
        try:
            found = await self._found(batch, batcher, ran)
            if found is not None:
                await self._pick_up(found, batcher, ran, on_commit)
        except JudgeRejected as error:
            if error.cause == "gone":
                await self._give_back(batch, "failed", f"the provider has lost the batch: {error}", ran)
            else:
                await self._look_again(batch, LATEST, reason_of(error))
        except EvalpipeError as error:
            await self._look_again(batch, _pause(age), reason_of(error))

    async def _found(self, batch: Batch, batcher: Batcher, ran: Ran) -> Batch | None:
        """The batch with the provider's name for it; None where the provider does not have it."""
        if batch.provider_id:
            return batch
        others = await asyncio.to_thread(
            self._store.patiently, lambda tx: judge_batches.provider_ids(tx, batch.judge, batch.submitted_at - OLDEST)
        )
        provider_id = await batcher.find(batch.batch_id, batch.n, batch.submitted_at, others)
        now = self._clock()
        if provider_id:
            await asyncio.to_thread(
                self._store.patiently,
                lambda tx: judge_batches.submitted(tx, batch.batch_id, provider_id, now + HANDS),
            )
            return replace(batch, provider_id=provider_id, state="submitted")
        if now - batch.submitted_at < HANDS:
            await self._look_again(batch, UNSURE)  # it may be on its way still, or not be listed yet
        else:
            why = "the batch was never handed in: its worker died, or could not reach the provider"
            await self._give_back(batch, "failed", why, ran, refund=LOOK_AGAIN)
        return None

    async def _pick_up(self, batch: Batch, batcher: Batcher, ran: Ran, on_commit: Callable[[], None]) -> None:
        progress = await batcher.look(batch.provider_id)
        if progress.state == "running":
            await self._look_again(batch, _pause(self._clock() - batch.submitted_at), "")
        elif progress.state == "failed":
            wait = BUSY if progress.passing else None
            await self._give_back(batch, "failed", progress.reason, ran, refund=wait)
        else:
            results = await batcher.results(batch.provider_id)
            for start in range(0, len(results), CHUNK):
                await asyncio.to_thread(self._book, batch, results[start : start + CHUNK], ran)
                on_commit()
            await self._give_back(batch, "ended", progress.reason or "the batch has no answer for it", ran)

    def _book(self, batch: Batch, results: Sequence[Result], ran: Ran) -> None:
        """Commit what came of some requests. A second time it changes nothing: the works wait no longer."""
        by_work = {work_of(result.custom_id): result for result in results}

        def run(tx: Transaction) -> tuple[int, int]:
            now = self._clock()
            waiting = works.in_batch(tx, batch.batch_id, sorted(by_work), CHUNK * 100)
            ended, calls, usd = [], [], 0.0
            for task in self._tasks.make(tx, waiting, now, Counter(), model=batch.model):
                result = next((by_work[w.work_id] for w in task.works if w.work_id in by_work), None)
                if result is None:
                    continue  # the same record, another question: its answer comes with others
                ended.append(self._ended(task, result, batch, now))
                if result.answer is not None:
                    calls.append(_call(batch, task, result.answer, ended[-1], now))
                    usd += result.answer.cost_usd or 0.0
            self._settling.settle(tx, ended, calls, now)
            graded = sum(len(e.task.works) for e in ended if e.outcome.graded)
            returned = sum(len(e.task.works) for e in ended) - graded
            judge_batches.tally(tx, batch.batch_id, graded, returned, usd)
            judge_batches.look_again(tx, batch.batch_id, now + HANDS)
            return graded, returned

        graded, returned = self._store.patiently(run)
        ran.graded += graded
        ran.returned += returned

    def _ended(self, task: Task, result: Result, batch: Batch, now: datetime) -> Ended:
        """What one result comes to: grades, the end, or another try."""
        if result.answer is None:
            return Ended(task, Outcome(), self._again(task.works, result.reason, now))
        wasted = {batch.judge: result.answer.cost_usd or 0.0}
        if task.plan is None:
            return Ended(task, Outcome(error=task.error), wasted=wasted)
        if not is_same_question(result.custom_id, task):
            again = self._again(task.works, "what was sent is not what this code asks", now)
            return Ended(task, Outcome(), again, wasted)
        outcome = self._grader.read(task.plan, result.answer)
        wrong = next((vote.grade for vote in outcome.votes if vote.grade.cause == "malformed"), None)
        if wrong is not None:
            return Ended(task, Outcome(), self._again(task.works, wrong.explanation, now), wasted)
        return Ended(task, outcome)

    def _again(self, tried: Sequence[Work], reason: str, now: datetime) -> Again:
        """How works are tried again that a batch brought no grade for: in a batch, and then at once."""
        attempts = max(item.attempts for item in tried)
        reason = storable(reason)[:REASON_CHARS]
        if attempts < min(TRIES, self._attempts):
            return Again(now + ONCE_MORE, reason)
        # Whatever the limit is, there is one attempt left: in the other lane they may be graded.
        return Again(now, reason, refund=attempts >= self._attempts, lane="now")

    async def _give_back(
        self,
        batch: Batch,
        state: str,
        reason: str,
        ran: Ran,
        *,
        refund: timedelta | None = None,
        lane: str = "",
        calls: Sequence[Call] = (),
    ) -> None:
        """End a batch; the works that still wait for it are owed again.

        Args:
            batch: the batch.
            state: in which it ends.
            reason: is kept with both.
            ran: counts them.
            refund: the attempt does not count, and the next one begins after so long.
            lane: that they go to; "" for a batch again, or for ``now`` after the last.
            calls: to be counted.
        """

        def run(tx: Transaction) -> int:
            now = self._clock()
            waiting = works.in_batch(tx, batch.batch_id, None, CHUNK)
            ended = []
            for item in waiting:
                again = self._again([item], reason, now)
                if refund is not None or lane:
                    again = Again(now + (refund or timedelta()), again.reason, refund=True, lane=lane)
                ended.append(Ended(Task((item,)), Outcome(), again))
            self._settling.settle(tx, ended, calls, now)
            judge_batches.tally(tx, batch.batch_id, 0, len(waiting), 0.0)
            if len(waiting) < CHUNK:
                judge_batches.close(tx, batch.batch_id, state, reason if waiting else "", now)
            return len(waiting)

        while True:
            n, calls = await asyncio.to_thread(self._store.patiently, run), ()
            ran.returned += n
            if n < CHUNK:
                break
        if state != "ended":
            log.warning("batch %s of judge %s %s: %s", batch.batch_id, batch.judge, state, reason)

    async def _look_again(self, batch: Batch, after: timedelta, reason: str | None = None) -> bool:
        at = self._clock() + after
        return await asyncio.to_thread(
            self._store.patiently, lambda tx: judge_batches.look_again(tx, batch.batch_id, at, reason)
        )

    async def _cancel(self, batcher: Batcher, provider_id: str) -> None:
        with suppress(EvalpipeError):  # it may have ended; its answers are not asked for
            await batcher.cancel(provider_id)


def _pause(age: timedelta) -> timedelta:
    return min(LATEST, max(SOONEST, age / 10))


def _call(batch: Batch, task: Task, answer: Answer, ended: Ended, now: datetime) -> Call:
    outcome: str = "answered" if answer.finish == "complete" else answer.finish
    if ended.again is not None and answer.finish == "complete":
        outcome = "malformed"
    return Call(now, batch.judge, task.works[0].scorecard, outcome, answer, 0.0)
