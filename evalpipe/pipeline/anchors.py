"""Anchors → judges → store: grade the frozen records again, and test whether a judge still grades as it did at first.

A judge or prompt that was never tested is due at once, any other by the clock. The calls go through the desk, like all
calls of judges, but never through the grades that are known already: the question is what the judge says today.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from evalpipe.errors import ConfigError, EvalpipeError
from evalpipe.hook.call import suppressed
from evalpipe.judges.base import Grade, Prompt
from evalpipe.judges.desk import Call, Desk
from evalpipe.record import Record
from evalpipe.score import Status
from evalpipe.scorecard.model import Criterion, Scorecard
from evalpipe.scorers.grader import Grader
from evalpipe.scorers.judged import Question, skip_reason
from evalpipe.stats.judge_shift import REFERENCE_RUNS, JudgeShift
from evalpipe.store import anchors, judge_states, judge_watch, purse
from evalpipe.store.anchors import Anchor, Key
from evalpipe.store.sql import Store, Transaction

PER_RUN: Final = 50
"""Anchors of a criterion that a run grades at the most, once there is a reference of all; drawn anew for each run."""
LEASE: Final = timedelta(minutes=30)
"""For so long a run is ours: a worker that died keeps the others away no longer."""
PAUSE: Final = timedelta(minutes=5)
"""After a run in which nobody answered, or fewer than half of those who did before."""
KEPT: Final = timedelta(days=90)
"""How long the single grades are kept."""
CONCURRENCY: Final = 8

log = logging.getLogger("evalpipe")


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of one criterion's anchors.

    Attributes:
        scorecard, criterion, judge: what was tested; ``judge`` is the version of judge and prompt.
        state: ``unknown``, ``healthy`` or ``suspect`` after it.
        reason: why, for people.
        runs: made now; several at the start, for the reference.
        n: anchors that answered in the last of them.
        failed: calls that gave no grade: no evidence.
        cost_usd: of all; None where a price is unknown.
        changed: whether the state is another than before.
    """

    scorecard: str
    criterion: str
    judge: str
    state: str
    reason: str
    runs: int
    n: int
    failed: int
    cost_usd: float | None
    changed: bool


@dataclass(frozen=True, slots=True)
class _Due:
    """A test to be made, and what it needs."""

    key: Key
    question: Question
    criterion: Criterion
    anchors: Sequence[Anchor]
    until: datetime
    before: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Run:
    at: datetime
    grades: Mapping[str, Grade]
    failed: int


class Anchors:
    """The stage, with what it needs.

    Args:
        store: where.
        scorecards: whose judged criteria may have anchors.
        desk: who asks the judges.
        every: how often each judge is tested.
        clock: aware UTC.
        per_run: see ``PER_RUN``.
        caps: US dollars a day by scope of the purse: a run that could exceed one is put off.
        worst_case: what one call can cost at the most; may raise ConfigError.
    """

    def __init__(
        self,
        store: Store,
        scorecards: Sequence[Scorecard],
        desk: Desk,
        *,
        every: timedelta,
        clock: Callable[[], datetime],
        per_run: int = PER_RUN,
        caps: Mapping[str, float] | None = None,
        worst_case: Callable[[str, Prompt], float] = lambda _model, _prompt: 0.0,
    ) -> None:
        self._store = store
        self._scorecards = scorecards
        self._desk = desk
        self._every = every
        self._clock = clock
        self._per_run = per_run
        self._caps = caps or {}
        self._worst_case = worst_case

    async def __call__(self, *, scorecard: str = "", criterion: str = "", force: bool = False) -> list[Ran]:
        """Test every judge that is due; ``force``: also those that are not, as far as nobody else does.

        Args:
            scorecard: only of this one.
            criterion: only of this one.
            force: do not wait for the clock.
        """
        with self._store.read() as tx:
            counts = anchors.counts(tx)
        done = []
        for card in self._scorecards:
            for found in card.criteria:
                wanted = scorecard in {"", card.name} and criterion in {"", found.name}
                if wanted and (card.name, found.name) in counts and found.judge is not None:
                    due = await asyncio.to_thread(self._claim, card, found, force)
                    if due is not None:
                        done.append(await self._test(due))
        return done

    def _claim(self, card: Scorecard, criterion: Criterion, force: bool) -> _Due | None:
        question = Question({c.name: c.judge for c in card.together(criterion.name) if c.judge is not None})
        if question.spec.kind == "pairwise":
            return None  # a pair needs its partner, which is no part of an anchor
        try:
            version = Grader(self._desk).version(question)
            judges = [self._desk.judge(model).version for model in question.spec.ladder[0]]
        except ConfigError as error:
            log.warning("anchors of %s/%s: %s", card.name, criterion.name, error)
            return None
        key, now = Key(card.name, criterion.name, version), self._clock()

        def run(tx: Transaction) -> _Due | None:
            states = judge_states.read(tx)
            if any(j in states and not judge_states.usable(states[j], now) for j in judges):
                return None
            found = anchors.active(tx, card.name, criterion.name)
            before = anchors.claim(tx, key, now, until=now + LEASE, every=self._every, force=force) if found else None
            if before is None:
                return None
            due = _Due(key, question, criterion, found, now + LEASE, before)
            if self._caps and (scope := self._unpaid(tx, due, now)):
                log.warning("anchors of %s/%s wait: the cap of %s leaves too little", card.name, criterion.name, scope)
                anchors.settle(tx, key, due.until, {"lease_until": now + PAUSE})
                return None
            return due

        return self._store.patiently(run)

    def _unpaid(self, tx: Transaction, due: _Due, now: datetime) -> str:
        """A scope whose cap the run could exceed; "" if there is none."""
        test, _ = _restored(due)
        grader, usd = Grader(self._desk), dict[str, float]()
        for anchor in due.anchors:
            for call in grader.plan(due.question, anchor.record, anchor.anchor_id).all_calls:
                judge = call.version.rpartition("/")[0]
                usd[judge] = usd.get(judge, 0.0) + self._worst_case(call.model, call.prompt)
        runs = max(1.0, REFERENCE_RUNS - test.comparisons - bool(test.reference))
        share = runs if runs > 1 else min(1.0, self._per_run / len(due.anchors))
        spent = judge_watch.spending(tx, now)
        for scope, worst in purse.scopes(due.key.scorecard, usd).items():
            if scope in self._caps and spent.get(scope, 0.0) + share * worst > self._caps[scope]:
                return scope
        return ""

    async def _test(self, due: _Due) -> Ran:
        test, panel = _restored(due)
        labels = {anchor.anchor_id: anchor.value for anchor in due.anchors}
        runs: list[_Run] = []
        while True:
            # Runs that are made at once have times of their own, also by a clock that stands.
            at = self._clock() + len(runs) * timedelta(microseconds=1)
            drawn = _drawn(due, test, panel, self._per_run, at)
            run = await self._run(due, at, drawn)
            runs.append(run)
            said = {i: g.value for i, g in run.grades.items() if g.status is not Status.ERROR}
            if 2 * len(said) < sum(anchor.anchor_id in test.reference for anchor in drawn):
                # What fails may have to do with the anchor: those that are left need not be like all.
                said, runs[-1] = {}, _Run(at, {}, run.failed)
            test.update(said, labels)
            if not said or test.comparisons >= REFERENCE_RUNS - 1 or len(runs) >= REFERENCE_RUNS:
                break
        calls = self._desk.take_calls()
        return await asyncio.to_thread(self._commit, due, test, panel, runs, calls)

    async def _run(self, due: _Due, at: datetime, drawn: Sequence[Anchor]) -> _Run:
        slots = asyncio.Semaphore(CONCURRENCY)

        async def one(anchor: Anchor) -> Grade | None:
            async with slots:
                return await self._grade(due, anchor)

        given = await asyncio.gather(*(one(anchor) for anchor in drawn))
        grades = {a.anchor_id: g for a, g in zip(drawn, given, strict=True) if g is not None}
        errors = sum(g is None or g.status is Status.ERROR for g in given)
        return _Run(at, grades, errors)

    async def _grade(self, due: _Due, anchor: Anchor) -> Grade | None:
        """What the judge says of an anchor now; None where it says nothing."""
        record: Record = anchor.record
        if any(skip_reason(spec, record) for spec in due.question.specs.values()):
            return None
        grader = Grader(self._desk)  # one for each call: a grader asks what is under way only once
        try:
            with suppressed():
                plan = grader.plan(due.question, record, anchor.anchor_id, account=due.key.scorecard)
                outcome = await grader.run(plan, attempts_left=2)
        except EvalpipeError as error:
            log.warning("anchor %s of %s: %s", anchor.anchor_id, due.key.judge, error)
            return None
        graded = outcome.graded.get(due.criterion.name)
        return graded.grade if graded is not None else None

    def _commit(
        self, due: _Due, test: JudgeShift, panel: Sequence[str], runs: Sequence[_Run], calls: Sequence[Call]
    ) -> Ran:
        now = self._clock()
        answered = any(g.status is not Status.ERROR for run in runs for g in run.grades.values())
        complete = test.comparisons >= REFERENCE_RUNS - 1
        last = runs[-1]
        n = sum(g.status is not Status.ERROR for g in last.grades.values())
        state, reason = due.before["state"], f"too few answered ({last.failed} calls gave no grade): no evidence"
        if answered:
            state, reason = _told(test, due, n, complete=complete)
        changed = state != due.before["state"]
        # Without an answer, or without a reference of all, it is tried again soon.
        values: dict[str, Any] = {"lease_until": None if answered and complete else now + min(self._every, PAUSE)}
        if answered:
            values |= {
                "state": state,
                "reason": reason,
                "test": {"panel": list(panel), "shift": test.to_state()},
                "n": n,
                "since_at": now if changed else due.before["since_at"],
                "tested_at": runs[0].at if complete else None,
                "stale_at": runs[0].at + 2 * self._every + PAUSE,
            }

        def write(tx: Transaction) -> None:
            if anchors.settle(tx, due.key, due.until, values):
                anchors.add_grades(tx, [row for run in runs for row in _rows(due, run)])
            anchors.remove_old(tx, now - KEPT)
            if paid := _paid(due, calls):
                purse.settle(tx, {f"anchors {due.key.scorecard}/{due.key.criterion}": paid}, (), now)
            judge_states.add_calls(tx, calls, now)

        self._store.patiently(write)
        costs = [c.answer.cost_usd for c in calls if c.answer is not None]
        total = None if None in costs else sum(cost for cost in costs if cost is not None)
        key, failed = due.key, sum(run.failed for run in runs)
        return Ran(key.scorecard, key.criterion, key.judge, state, reason, len(runs), n, failed, total, changed)


def _restored(due: _Due) -> tuple[JudgeShift, list[str]]:
    """The test and the ids of its anchors; begun anew where some came or went, unless the judge is suspect."""
    panel, kept = [anchor.anchor_id for anchor in due.anchors], due.before["test"]
    test = JudgeShift.from_state(kept.get("shift", {}))
    if test.suspect or kept.get("panel") == panel:
        return test, kept["panel"]
    return JudgeShift(), panel


def _drawn(due: _Due, test: JudgeShift, panel: Sequence[str], most: int, at: datetime) -> list[Anchor]:
    """The anchors of one run: all for the reference, then as many as are allowed, in an order of the run's own."""
    members = frozenset(panel)
    found = [anchor for anchor in due.anchors if anchor.anchor_id in members]
    random.Random(f"{due.key}{at.isoformat()}").shuffle(found)  # noqa: S311 - draws anchors, guards nothing
    return found if test.comparisons < REFERENCE_RUNS - 1 else found[:most]


def _told(test: JudgeShift, due: _Due, n: int, *, complete: bool) -> tuple[str, str]:
    """The state, and why, after a run that graded ``n`` anchors."""
    accepted = due.before["accepted"]
    then = f"when it was accepted on {accepted[-1]['at'][:10]}" if accepted else "at first"
    with_people = ""
    if test.agreement is not None:
        since = f"since it was accepted on {accepted[-1]['at'][:10]}" if accepted else "at first"
        with_people = f"; it agreed with people on {test.agreement:.0%} of them {since}"
    if test.suspect:
        drift = test.drift
        runs = f"its latest {drift.runs} runs" if drift.runs > 1 else "its latest run"
        return "suspect", (
            f"in {runs} {drift.share:.0%} of {drift.n} grades of its {len(test.reference)} anchors differ from those "
            f"{then}, and their mean value {_changed(drift.shift, test.movement.direction)}{with_people}"
        )
    if not complete:
        return "unknown", f"{test.comparisons + bool(test.reference)} of {REFERENCE_RUNS} reference runs are made"
    graded = f"{n} of {len(test.reference)} graded in the latest run"
    return "healthy", f"it grades its anchors as {then} ({graded}){with_people}"


def _changed(shift: float, direction: str) -> str:
    """A change of the mean value in words; the direction is told by the runs just before, so the two may differ."""
    found = "is the same" if abs(shift) < 0.005 else f"is {abs(shift):.2f} {'higher' if shift > 0 else 'lower'}"
    agrees = {"stricter": shift <= -0.005, "more lenient": shift >= 0.005}.get(direction, True)
    return f"{found} ({direction}{'' if agrees else ' than in the runs before it moved'})"


def _rows(due: _Due, run: _Run) -> list[dict[str, Any]]:
    return [
        {
            "anchor_id": anchor_id,
            "judge_version": due.key.judge,
            "at": run.at,
            "status": grade.status.value,
            "value": grade.value,
            "label": grade.label,
            "cost_usd": grade.answer.cost_usd if grade.answer is not None else None,
        }
        for anchor_id, grade in run.grades.items()
    ]


def _paid(due: _Due, calls: Sequence[Call]) -> dict[str, float]:
    """What the calls cost, by the purse's scopes."""
    usd: dict[str, float] = {}
    for call in calls:
        if call.answer is not None and call.answer.cost_usd:
            usd[call.judge] = usd.get(call.judge, 0.0) + call.answer.cost_usd
    return purse.scopes(due.key.scorecard, usd) if usd else {}
