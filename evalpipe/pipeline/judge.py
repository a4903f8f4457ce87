"""Store → judges → store: drain the work that is owed with a sliding window of calls in flight.

One long-lived event loop per worker process. A task that ends is replaced at once, so one slow call idles nothing; what
ended is committed in small batches, under the fencing number of its claim.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from evalpipe.errors import EvalpipeError, JudgeRejected, JudgeUnavailable, RetryableError
from evalpipe.hook.call import suppressed
from evalpipe.judges.base import Grade
from evalpipe.judges.desk import Call, Desk
from evalpipe.pipeline.budget import Budget, paid
from evalpipe.pipeline.findings import entry
from evalpipe.pipeline.judging import LOOK_AGAIN, Ended, Shed, Task, Tasks
from evalpipe.score import Score, Status
from evalpipe.scorers.grader import Graded, Grader, Outcome, Vote
from evalpipe.scorers.plan import epoch_of
from evalpipe.store import intake, judge_states, ledgers, purse, series, works
from evalpipe.store.ledgers import hour_of, label
from evalpipe.store.sql import Store, Transaction, storable
from evalpipe.store.works import Cast, Work

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
        self._store.patiently(lambda tx: self._settle(tx, ended, calls, now))
        for e in ended:
            if e.outcome.graded:
                drained.graded += len(e.task.works)
            elif self._is_final(e):
                drained.dead += len(e.task.works)
            else:
                drained.postponed += len(e.task.works)

    def _settle(self, tx: Transaction, ended: Sequence[Ended], calls: Sequence[Call], now: datetime) -> None:
        ours: set[str] = set()
        buried: list[Work] = []
        for e in ended:
            if e.outcome.graded:
                continue
            if self._is_final(e):
                end = works.shed if isinstance(e.outcome.error, Shed) else works.bury
                gone = [item for item in e.task.works if end(tx, [item], reason_of(e.outcome.error))]
                buried += gone
                ours.update(item.work_id for item in gone)
                continue
            due_at, reason = self._again(e, now)
            for item in e.task.works:
                ours |= works.postpone(tx, item, due_at, reason, refund=_is_refunded(e))
        graded = [(e, item) for e in ended if e.outcome.graded for item in e.task.works]
        ours |= works.finish(tx, [item for _, item in graded])
        done = [(e, item) for e, item in graded if item.work_id in ours]
        kept = intake.lock_kept(tx, sorted({e.task.works[0].record_id for e in ended}))
        casts = [cast for e in ended for cast in _casts(e, e.task.works[0].record_id in kept)]
        works.add_grades(tx, [cast for cast in casts if cast.work.work_id in ours], now)
        series.add_scores(tx, [self._entry(e, item, item.record_id in kept) for e, item in done], now)
        close_records(tx, [*(item for _, item in done), *buried])
        purse.settle(tx, paid(ended), ours, now)
        judge_states.add_calls(tx, calls, now)

    def _again(self, e: Ended, now: datetime) -> tuple[datetime, str]:
        """When to try again, and why."""
        if e.task.wait is not None:
            return e.task.wait
        return now + backoff(e), reason_of(e.outcome.error)

    def _entry(self, e: Ended, item: Work, kept: bool) -> series.Entry:
        assert e.task.record is not None
        card = self._tasks.cards[item.scorecard_version]
        graded = e.outcome.graded[item.criterion]
        costs = [v.grade.answer.cost_usd for v in e.outcome.votes
                 if v.criterion == item.criterion and v.grade.answer is not None]  # fmt: skip
        found = entry(
            e.task.record,
            card,
            item.criterion,
            score_of(_told(graded.grade, kept)),
            epoch=epoch_of(card.criterion(item.criterion), graded.version),
            weight=item.weight,
            scorer=graded.version,
        )
        return replace(
            found,
            cost_usd=sum(cost or 0.0 for cost in costs),
            step=graded.step,
            escalated=graded.escalated,
            disagreement=graded.disagreement,
        )

    def _is_final(self, e: Ended) -> bool:
        error = e.outcome.error
        if _is_refunded(e):
            return False
        return not isinstance(error, RetryableError) or e.task.works[0].attempts >= self._attempts


def close_records(tx: Transaction, ended: Sequence[Work]) -> None:
    """Book the records whose last owed work has just ended."""
    if not ended:
        return
    ids = sorted({w.record_id for w in ended})
    pending = works.pending_of(tx, ids)
    cards = {(w.record_id, w.scorecard_version, w.origin): w for w in ended}
    closed = {key: w for key, w in cards.items() if key not in pending}
    outcomes = ledgers.outcomes(tx, [(record_id, version) for record_id, version, _ in closed])
    counts: Counter[tuple[datetime, str, str, str]] = Counter()
    for (record_id, version, origin), w in closed.items():
        name = label(w.scorecard, version, origin)
        counts[hour_of(w.captured_at), w.service, name, outcomes[record_id, version]] += 1
    owing = {record_id for record_id, _, origin in pending if origin == "ingest"}
    whole = {w.record_id: w for w in ended if w.origin == "ingest" and w.record_id not in owing}
    changed = ledgers.outcomes_of_records(tx, sorted(whole))
    for record_id, outcome in changed.items():
        w = whole[record_id]
        counts[hour_of(w.captured_at), w.service, "", outcome] += 1
    ledgers.set_outcomes(tx, changed)
    ledgers.count(tx, counts)


def reopen_records(tx: Transaction, dead: Sequence[Work]) -> None:
    """Take back what the ledger said of records whose dead work is about to be owed again.

    Only those were booked as dead that owe nothing else: the others are in flight, and booked when that has ended.
    """
    pending = works.pending_of(tx, sorted({w.record_id for w in dead}))
    cards = {(w.record_id, w.scorecard_version, w.origin): w for w in dead}
    counts: Counter[tuple[datetime, str, str, str]] = Counter()
    for key, w in cards.items():
        if key not in pending:
            counts[hour_of(w.captured_at), w.service, label(w.scorecard, w.scorecard_version, w.origin), "dead"] -= 1
    owing = {record_id for record_id, _, origin in pending if origin == "ingest"}
    whole = {w.record_id: w for w in dead if w.origin == "ingest" and w.record_id not in owing}
    for w in whole.values():
        counts[hour_of(w.captured_at), w.service, "", "dead"] -= 1
    ledgers.set_outcomes(tx, dict.fromkeys(whole, "in_flight"))
    ledgers.count(tx, counts)


def score_of(grade: Grade) -> Score:
    """The score that a grade stands for."""
    explanation = grade.explanation
    if grade.status is Status.ERROR and not explanation:
        explanation = "the judge's answer was not a grade"
    return Score(grade.status, grade.value, grade.label, explanation)


def reason_of(error: Exception | None) -> str:
    """Why an attempt ended, in one line, whatever a provider put into it."""
    text = str(error) if isinstance(error, EvalpipeError | Shed) else f"{type(error).__name__}: {error}"
    return storable(text)[: intake.REASON_CHARS]


def backoff(e: Ended) -> timedelta:
    """When to try again: as the judge asked, else 2, 8, 32, 128 ... s with jitter; soon where the judge rejects us."""
    error = e.outcome.error
    if isinstance(error, JudgeRejected):
        return LOOK_AGAIN
    asked = error.retry_after_s if isinstance(error, RetryableError) else None
    seconds = asked if asked is not None else min(300.0, 2.0 * 4.0 ** (e.task.works[0].attempts - 1))
    return timedelta(seconds=seconds * random.uniform(1.0, 1.5))  # noqa: S311 - jitter, not a secret


def _is_refunded(e: Ended) -> bool:
    """Whether the attempt does not count: nothing was asked, or nobody could have been."""
    error = e.outcome.error
    paused = isinstance(error, JudgeUnavailable) and error.cause == "paused"
    return e.task.wait is not None or paused or isinstance(error, JudgeRejected)


def _casts(e: Ended, kept: bool) -> list[Cast]:
    """The votes as rows, without what they quote of a record that was erased while the judge read it."""
    owner = {item.criterion: item for item in e.task.works}
    # A call that several criteria share asks for all of them, also where the record owes only some.
    return [_cast(owner[vote.criterion], vote, kept) for vote in e.outcome.votes if vote.criterion in owner]


def _cast(item: Work, vote: Vote, kept: bool) -> Cast:
    call = vote.call
    return Cast(item, call.version, _told(vote.grade, kept), call.vote, call.role, call.key, vote.reused)


def _told(grade: Grade, kept: bool) -> Grade:
    return grade if kept else replace(grade, explanation="", quotation="", raw="")


__all__ = ("Drained", "Graded", "JudgeStage", "backoff", "close_records", "reason_of", "reopen_records", "score_of")
