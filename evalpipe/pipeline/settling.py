"""The end of tasks: grades, scores, rollups, ledger, calls and money in one transaction.

Shared by the stage that judges now and the one that picks batches up.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from evalpipe.errors import EvalpipeError, JudgeRejected, JudgeUnavailable, RetryableError
from evalpipe.judges.base import Grade
from evalpipe.judges.breaker import ANSWERS, FORBIDDEN
from evalpipe.judges.desk import Call
from evalpipe.pipeline.budget import paid
from evalpipe.pipeline.findings import entry, follow_up
from evalpipe.pipeline.judging import LOOK_AGAIN, Again, Ended, Shed, Tasks
from evalpipe.record import Record
from evalpipe.score import Score, Status
from evalpipe.scorecard.model import Scorecard
from evalpipe.scorers.calls import Vote
from evalpipe.scorers.plan import epoch_of
from evalpipe.store import intake, judge_states, ledgers, purse, series, votes, works
from evalpipe.store.ledgers import hour_of, label
from evalpipe.store.sql import Transaction, storable
from evalpipe.store.votes import Cast
from evalpipe.store.works import Work


class Settling:
    """Ends tasks in the store.

    Args:
        tasks: has the scorecards of their works.
        attempts: how often work is tried.
    """

    def __init__(self, tasks: Tasks, *, attempts: int) -> None:
        self._tasks = tasks
        self._attempts = attempts

    def settle(self, tx: Transaction, ended: Sequence[Ended], calls: Sequence[Call], now: datetime) -> list[Ended]:
        """Commit what came of tasks; of works that are another worker's by now only what they cost.

        Args:
            tx: the transaction.
            ended: the tasks.
            calls: of judges, that ended since the last commit.
            now: aware UTC.

        Returns:
            The tasks that brought no grade and are not tried again.
        """
        ours: set[str] = set()
        buried: list[Work] = []
        final: list[Ended] = []
        answering = _answering(tx, ended, calls, now)
        for e in ended:
            if e.outcome.graded:
                continue
            refund = _is_refunded(e, answering)
            if not refund and self._is_final(e):
                final.append(e)
                end = works.shed if isinstance(e.outcome.error, Shed) else works.bury
                gone = [item for item in e.task.works if end(tx, [item], reason_of(e.outcome.error))]
                buried += gone
                ours.update(item.work_id for item in gone)
                continue
            again = _again(e, now, refund)
            for item in e.task.works:
                ours |= works.postpone(tx, item, again.due_at, again.reason, refund=again.refund, lane=again.lane)
        graded = [(e, item) for e in ended if e.outcome.graded for item in e.task.works]
        ours |= works.finish(tx, [item for _, item in graded])
        done = [(e, item) for e, item in graded if item.work_id in ours]
        kept = intake.lock_kept(tx, sorted({e.task.works[0].record_id for e in ended}))
        casts = [cast for e in ended for cast in _casts(e, e.task.works[0].record_id in kept)]
        votes.add_grades(tx, [cast for cast in casts if cast.work.work_id in ours], now)
        cost = votes.cost_usd(tx, [item.work_id for _, item in done])
        entries = [self._entry(e, item, item.record_id in kept, cost) for e, item in done]
        series.add_scores(tx, entries + follow_up(tx, self._followed(done, entries), now), now)
        close_records(tx, [*(item for _, item in done), *buried])
        purse.settle(tx, paid(ended), ours, now)
        judge_states.add_calls(tx, calls, now)
        return final

    def _entry(self, e: Ended, item: Work, kept: bool, cost: Mapping[str, float]) -> series.Entry:
        assert e.task.record is not None
        card = self._tasks.cards[item.scorecard_version]
        graded = e.outcome.graded[item.criterion]
        found = entry(
            e.task.record,
            card,
            item.criterion,
            score_of(_told(graded.grade, kept)),
            epoch=epoch_of(card, card.criterion(item.criterion), graded.version),
            weight=item.weight,
            scorer=graded.version,
            arrived=item.origin == "ingest",
        )
        return replace(
            found,
            cost_usd=cost.get(item.work_id, 0.0),
            step=graded.step,
            escalated=graded.escalated,
            disagreement=graded.disagreement,
        )

    def _followed(
        self, done: Sequence[tuple[Ended, Work]], entries: Sequence[series.Entry]
    ) -> list[tuple[Record, Scorecard, Work, Score]]:
        """What was graded, as ``follow_up`` takes it."""
        return [
            (e.task.record, self._tasks.cards[item.scorecard_version], item, made.score)
            for (e, item), made in zip(done, entries, strict=True)
            if e.task.record is not None
        ]

    def _is_final(self, e: Ended) -> bool:
        """Whether a task whose attempt counts is not tried again."""
        if e.again is not None:
            return False
        may_pass = isinstance(e.outcome.error, RetryableError | JudgeRejected)
        return not may_pass or e.task.works[0].attempts >= self._attempts


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


def _backoff(e: Ended, refund: bool) -> timedelta:
    """When to try again: as the judge asked, else 2, 8, 32, 128 ... s with jitter; soon where the judge rejects us."""
    error = e.outcome.error
    if isinstance(error, JudgeRejected) and refund:
        return LOOK_AGAIN
    asked = error.retry_after_s if isinstance(error, RetryableError) else None
    seconds = asked if asked is not None else min(300.0, 2.0 * 4.0 ** (e.task.works[0].attempts - 1))
    return timedelta(seconds=seconds * random.uniform(1.0, 1.5))  # noqa: S311 - jitter, not a secret


def _again(e: Ended, now: datetime, refund: bool) -> Again:
    """When to try again, and why."""
    if e.again is not None:
        return e.again
    if e.task.wait is not None:
        return Again(*e.task.wait, refund=True)
    return Again(now + _backoff(e, refund), reason_of(e.outcome.error), refund=refund)


def _is_refunded(e: Ended, answering: Collection[str]) -> bool:
    """Whether the attempt does not count: nothing was asked, or nobody could have been."""
    error = e.outcome.error
    paused = isinstance(error, JudgeUnavailable) and error.cause == "paused"
    rejected = isinstance(error, JudgeRejected) and _forbidding(e).isdisjoint(answering)
    return e.task.wait is not None or paused or rejected


def _forbidding(e: Ended) -> set[str]:
    """Judges that answered with HTTP 403."""
    failed = e.outcome.failed
    return {call.judge for call, error in failed if isinstance(error, JudgeRejected) and error.cause == FORBIDDEN}


def _answering(tx: Transaction, ended: Sequence[Ended], calls: Sequence[Call], now: datetime) -> set[str]:
    """Judges that forbade something though they may be asked, and answer others: it was that one request."""
    forbidding = {judge for e in ended for judge in _forbidding(e)}
    if not forbidding:
        return set()
    states = judge_states.read(tx)
    shut = {judge for judge in forbidding if judge in states and states[judge].state != "closed"}
    just_now = {call.judge for call in calls if call.outcome in ANSWERS}
    return (judge_states.answering(tx, sorted(forbidding), now) | just_now) & forbidding - shut


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
