"""Store → judges → store: drain the work that is owed with a sliding window of calls in flight.

One long-lived event loop per worker process. A call that ends is replaced at once, so one slow call idles nothing; what
ended is committed in small batches, under the fencing number of its claim.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from evalpipe.errors import EvalpipeError, JudgeRejected, PermanentError, RetryableError
from evalpipe.hook.call import suppressed
from evalpipe.judges.base import Grade, Judge
from evalpipe.pipeline.findings import entry
from evalpipe.record import Record
from evalpipe.score import Score, Status
from evalpipe.scorecard.model import JudgeSpec, Scorecard
from evalpipe.scorers.judged import grade as ask
from evalpipe.scorers.judged import judge_version
from evalpipe.scorers.plan import epoch_of
from evalpipe.store import intake, ledgers, series, works
from evalpipe.store.ledgers import hour_of, label
from evalpipe.store.sql import Store, Transaction, storable
from evalpipe.store.works import Work

COMMIT_EVERY_S = 0.25
COMMIT_SIZE = 32
PAUSE = timedelta(seconds=60)
"""A judge that rejects us (bad key, no credit) is not asked again for so long; no work loses an attempt by it."""


@dataclass(frozen=True, slots=True)
class Graded:
    """A work that ended: with a grade, or with the error that ended the attempt."""

    work: Work
    record: Record | None = None
    version: str = ""
    grade: Grade | None = None
    error: Exception | None = None


@dataclass(slots=True)
class Drained:
    """What one drain did."""

    graded: int = 0
    postponed: int = 0
    dead: int = 0


class JudgeStage:
    """The stage, with what it needs; one per worker process.

    Args:
        store: where work is claimed and grades are committed.
        judge_for: the judge that a criterion names, or None where none is configured.
        concurrency: calls in flight at the most.
        lease: how long claimed work is ours without a renewal.
        attempts: how often work is tried.
        clock: aware UTC.
    """

    def __init__(
        self,
        store: Store,
        judge_for: Callable[[JudgeSpec], Judge | None],
        *,
        concurrency: int,
        lease: timedelta,
        attempts: int,
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._judge_for = judge_for
        self._concurrency = concurrency
        self._lease = lease
        self._attempts = attempts
        self._clock = clock
        self._cards: dict[str, Scorecard] = {}
        self._paused_until = clock()

    async def drain(self, seconds: float, on_commit: Callable[[], None]) -> Drained:
        """Grade what is owed until nothing is, or until ``seconds`` have passed and the calls in flight have ended.

        Args:
            seconds: no new work is claimed after this long.
            on_commit: is called after each commit, so that decisions follow the evidence.
        """
        drained = Drained()
        held: dict[asyncio.Task[Graded], Work] = {}
        try:
            await self._window(drained, held, time.monotonic() + seconds, on_commit)
        finally:
            for task in held:
                task.cancel()
        return drained

    async def _window(
        self, drained: Drained, held: dict[asyncio.Task[Graded], Work], deadline: float, on_commit: Callable[[], None]
    ) -> None:
        ended: list[Graded] = []
        committed_at = renewed_at = time.monotonic()
        empty_at = float("-inf")
        while True:
            now = time.monotonic()
            free = self._concurrency - len(held)
            # Found empty, it is asked again soon: one slow call must not keep what came meanwhile waiting.
            exhausted = now - empty_at < COMMIT_EVERY_S
            if not exhausted and now < deadline and free >= max(1, self._concurrency // 8):
                claimed = await asyncio.to_thread(self._claim, free)
                for item, record in claimed:
                    held[asyncio.create_task(self._grade(item, record))] = item
                if exhausted := not claimed:
                    empty_at = time.monotonic()
            if held:
                done, _ = await asyncio.wait(held, timeout=COMMIT_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    held.pop(task)
                    ended.append(task.result())
            now = time.monotonic()
            if ended and (len(ended) >= COMMIT_SIZE or now - committed_at > COMMIT_EVERY_S or not held):
                await asyncio.to_thread(self._commit, ended, drained)
                on_commit()
                # What was just committed may have made room for work that others owed meanwhile.
                ended, committed_at, exhausted, empty_at = [], time.monotonic(), False, float("-inf")
            if held and now - renewed_at > self._lease.total_seconds() / 3:
                await asyncio.to_thread(self._renew, list(held.values()))
                renewed_at = time.monotonic()
            if not held and not ended and (exhausted or time.monotonic() >= deadline):
                return

    def _claim(self, limit: int) -> list[tuple[Work, Record | None]]:
        if self._clock() < self._paused_until:
            return []

        def run(tx: Transaction) -> list[tuple[Work, Record | None]]:
            claimed = works.claim(tx, limit, self._clock(), self._lease)
            for version in sorted({w.scorecard_version for w in claimed} - self._cards.keys()):
                self._read_card(tx, version)
            found = intake.payloads(tx, sorted({w.record_id for w in claimed}))
            return [(w, found.get(w.record_id)) for w in claimed]

        return self._store.patiently(run)

    def _read_card(self, tx: Transaction, version: str) -> None:
        body = intake.scorecard_body(tx, version)
        # One that an older code wrote and this one cannot read must not stop the work of all others.
        with suppress(ValueError):
            self._cards[version] = Scorecard.from_body(body or {})

    async def _grade(self, item: Work, record: Record | None) -> Graded:
        try:
            if item.attempts > self._attempts:
                reason = f"started {item.attempts} times and never ended: its workers died, or lost their lease"
                return Graded(item, error=PermanentError(reason))
            card = self._cards.get(item.scorecard_version)
            if card is None:
                reason = f"this code cannot read scorecard {item.scorecard}@{item.scorecard_version}"
                return Graded(item, error=PermanentError(reason))
            if record is None:
                return Graded(item, error=PermanentError("the record's payload has been erased or cannot be read"))
            spec = card.criterion(item.criterion).judge
            assert spec is not None
            judge = self._judge_for(spec)
            if judge is None:
                reason = f"no judge is configured for model {spec.model!r}: set EVALPIPE_JUDGE"
                return Graded(item, record, error=PermanentError(reason))
            with suppressed():
                grade = await ask(judge, spec, record, item.work_id)
            return Graded(item, record, judge_version(judge, spec), grade)
        except Exception as error:  # noqa: BLE001 - whatever a provider throws, the work must end with its reason
            return Graded(item, record, error=error)

    def _renew(self, held: Sequence[Work]) -> None:
        self._store.patiently(lambda tx: works.renew(tx, held, self._clock(), self._lease))

    def _commit(self, ended: Sequence[Graded], drained: Drained) -> None:
        now = self._clock()
        self._store.patiently(lambda tx: self._settle(tx, ended, now))
        if any(isinstance(g.error, JudgeRejected) for g in ended):
            self._paused_until = now + PAUSE
        drained.graded += sum(g.grade is not None for g in ended)
        drained.dead += sum(g.grade is None and self._is_final(g) for g in ended)
        drained.postponed += sum(g.grade is None and not self._is_final(g) for g in ended)

    def _settle(self, tx: Transaction, ended: Sequence[Graded], now: datetime) -> None:
        for g in ended:
            if g.grade is None and not self._is_final(g):
                rejected = isinstance(g.error, JudgeRejected)
                works.postpone(tx, g.work, now + backoff(g), reason_of(g.error), refund=rejected)
        hopeless = [g for g in ended if g.grade is None and self._is_final(g)]
        closed = [g for g in hopeless if works.bury(tx, [g.work], reason_of(g.error))]
        with_grade = [g for g in ended if g.grade is not None]
        ids = works.finish(tx, [g.work for g in with_grade])
        kept = intake.lock_kept(tx, sorted({g.work.record_id for g in (*with_grade, *closed)}))
        finished = [_told(g, g.work.record_id in kept) for g in with_grade if g.work.work_id in ids]
        works.add_grades(tx, [(g.work, g.version, g.grade) for g in finished if g.grade is not None], now)
        series.add_scores(tx, [self._entry(g) for g in finished], now)
        close_records(tx, [g.work for g in (*finished, *closed)])

    def _entry(self, g: Graded) -> series.Entry:
        assert g.record is not None
        assert g.grade is not None
        card = self._cards[g.work.scorecard_version]
        cost = g.grade.answer.cost_usd if g.grade.answer is not None else None
        found = entry(
            g.record,
            card,
            g.work.criterion,
            score_of(g.grade),
            epoch=epoch_of(card.criterion(g.work.criterion), g.version),
            weight=g.work.weight,
            scorer=g.version,
        )
        return replace(found, cost_usd=cost or 0.0)

    def _is_final(self, g: Graded) -> bool:
        if isinstance(g.error, JudgeRejected):
            return False
        return not isinstance(g.error, RetryableError) or g.work.attempts >= self._attempts


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


def _told(g: Graded, kept: bool) -> Graded:
    """``g``, without what its grade quotes of a record that was erased while the judge read it."""
    if kept or g.grade is None:
        return g
    return replace(g, grade=replace(g.grade, explanation="", quotation="", raw=""))


def score_of(grade: Grade) -> Score:
    """The score that a grade stands for."""
    explanation = grade.explanation
    if grade.status is Status.ERROR and not explanation:
        explanation = "the judge's answer was not a grade"
    return Score(grade.status, grade.value, grade.label, explanation)


def reason_of(error: Exception | None) -> str:
    """Why an attempt ended, in one line, whatever a provider put into it."""
    text = str(error) if isinstance(error, EvalpipeError) else f"{type(error).__name__}: {error}"
    return storable(text)[: intake.REASON_CHARS]


def backoff(g: Graded) -> timedelta:
    """When to try again: as the judge asked, else 2, 8, 32, 128 ... s with jitter; a rejected judge needs a human."""
    if isinstance(g.error, JudgeRejected):
        return PAUSE
    asked = g.error.retry_after_s if isinstance(g.error, RetryableError) else None
    seconds = asked if asked is not None else min(300.0, 2.0 * 4.0 ** (g.work.attempts - 1))
    return timedelta(seconds=seconds * random.uniform(1.0, 1.5))  # noqa: S311 - jitter, not a secret
