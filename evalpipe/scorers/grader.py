"""The one way in which records are graded: by one judge or several, again where the first is unsure.

A *plan* says which calls one record needs for one criterion (or several that share a call). Running it asks the
judges, reads what they say, and makes one grade of it for each criterion. What is known already is not asked again, and
what two records have in common is asked once.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from evalpipe.errors import EvalpipeError, GradeInvalid, JudgeRejected, JudgeUnavailable, PermanentError
from evalpipe.judges.base import Answer, Grade, Judge, Prompt
from evalpipe.judges.fence import neutral
from evalpipe.judges.panel import combined, pair
from evalpipe.record import Record
from evalpipe.score import Status
from evalpipe.scorecard.model import JudgeSpec
from evalpipe.scorers.calls import Graded, Grades, Outcome, Plan, Planned, Role, Vote
from evalpipe.scorers.judged import Question, Specs, build_prompt, values
from evalpipe.scorers.reading import EXPLANATION_CHARS, parse_all, storable_text

UNSURE_BELOW = 0.8
"""A grade whose likeliest word has less than this probability is unsure."""


class Asks(Protocol):
    """Who carries questions to judges: the desk."""

    def judge(self, model: str) -> Judge:
        """The judge that a scorecard's word means."""
        ...

    async def ask(self, model: str, prompt: Prompt) -> Answer:
        """Its answer."""
        ...

    def unread(self, answer: Answer) -> None:
        """Say that there is no grade in it."""
        ...


class Grader:
    """Makes plans and runs them.

    Args:
        desk: asks the judges.
        salt: a secret of the installation, for the fence.
    """

    def __init__(self, desk: Asks, *, salt: str = "") -> None:
        self._desk = desk
        self._salt = salt
        self._asking: dict[str, asyncio.Future[Grades]] = {}

    def plan(
        self,
        question: Question,
        record: Record,
        work_id: str,
        *,
        step: int = 0,
        partner: Record | None = None,
        account: str = "",
    ) -> Plan:
        """The calls for one record.

        Args:
            question: what is asked of every record.
            record: what is graded.
            work_id: names the work; the same id gives the same prompt.
            step: of the ladder.
            partner: the answer to compare with, for kind ``pairwise``.
            account: the scorecard that pays.

        Raises:
            ConfigError: a judge is not configured, or cannot be opened.
            PermanentError: kind ``pairwise`` without a partner.
        """
        spec = question.spec
        if spec.kind == "pairwise" and partner is None:
            raise PermanentError("there is no second answer to compare this one with")
        orders: list[tuple[Role, Prompt]] = []
        for role, swapped in _orders(spec):
            prompt = build_prompt(
                question, record, work_id, partner=partner, swapped=swapped, salt=self._salt, account=account
            )
            orders.append((role, prompt))
        cast: Counter[str] = Counter()
        calls = []
        for model in spec.ladder[step]:
            judge = self._desk.judge(model).version
            for role, prompt in orders:
                for _ in range(spec.votes):
                    calls.append(self._planned(model, cast[judge], role, prompt, question))
                    cast[judge] += 1
        stronger = self._second(spec, step)
        second = self._planned(stronger, 0, "escalated", orders[0][1], question) if stronger else None
        return Plan(question, record, step, self.version(question, step), tuple(calls), second)

    def version(self, question: Question, step: int = 0) -> str:
        """Names all who grade at this step, and the prompt: ``judge[+judge][*votes][>second]/prompt``.

        Raises:
            ConfigError: a judge is not configured, or cannot be opened.
        """
        spec = question.spec
        named = "+".join(self._desk.judge(model).version for model in spec.ladder[step])
        votes = f"*{spec.votes}" if spec.votes > 1 else ""
        stronger = self._second(spec, step)
        second = f">{self._desk.judge(stronger).version}" if stronger else ""
        return f"{named}{votes}{second}/{question.version}"

    def _second(self, spec: JudgeSpec, step: int) -> str:
        """The stronger judge as the scorecard writes it; "" for none, and where it is one that grades first."""
        if spec.escalate is None:
            return ""
        first = {self._desk.judge(model).version for model in spec.ladder[step]}
        return "" if self._desk.judge(spec.escalate.to).version in first else spec.escalate.to

    async def run(self, plan: Plan, known: Mapping[str, Grades] | None = None, *, attempts_left: int = 1) -> Outcome:
        """Ask, read, and make one grade for each criterion. Never raises, but for cancellation.

        Args:
            plan: what to ask.
            known: grades by key that need not be asked for.
            attempts_left: calls that one vote may take; with more than one, an answer that is no grade is asked for
                once more.
        """
        asking = _Asking(plan, known or {}, attempts_left)
        if len(plan.calls) == 1:
            found = [await self._vote(asking, plan.calls[0])]
        else:
            found = list(await asyncio.gather(*(self._vote(asking, call) for call in plan.calls)))
        votes = [vote for cast in found if not isinstance(cast, Exception) for vote in cast]
        errors = [cast for cast in found if isinstance(cast, Exception)]
        if errors:
            return Outcome(votes=votes, error=max(errors, key=_gravity), failed=asking.failed)
        of = {name: [vote for vote in votes if vote.criterion == name] for name in plan.specs}
        graded = {name: self._combine(plan, name, mine) for name, mine in of.items() if mine}
        unsure = [name for name in graded if _escalates(plan.specs[name], graded[name], of[name])]
        if plan.second is None or not unsure:
            return Outcome(graded, votes, failed=asking.failed)
        if plan.away is not None and plan.second.key not in asking.known:
            return Outcome(votes=votes, error=plan.away, failed=asking.failed)
        second = await self._vote(asking, plan.second)
        if isinstance(second, Exception):
            return Outcome(votes=votes, error=second, failed=asking.failed)
        for vote in second:
            if vote.criterion in unsure:
                graded[vote.criterion] = replace(graded[vote.criterion], grade=vote.grade, escalated=True)
        return Outcome(graded, [*votes, *second], failed=asking.failed)

    def read(self, plan: Plan, answer: Answer) -> Outcome:
        """What a plan of one call comes to whose answer came by another way than the desk."""
        votes = _votes(plan, plan.calls[0], parse_all(plan.specs, answer, plan.record.output))
        graded = {vote.criterion: self._combine(plan, vote.criterion, [vote]) for vote in votes}
        return Outcome(graded, votes)

    async def grade(
        self, spec: JudgeSpec, record: Record, *, work_id: str = "", partner: Record | None = None, account: str = ""
    ) -> Graded:
        """The grade of one record by one criterion, asked for now, whatever is known.

        Raises:
            EvalpipeError: no judge is configured, or it gave no answer; see ``Judge.ask``.
        """
        plan = self.plan(Question(spec), record, work_id or record.record_id, partner=partner, account=account)
        outcome = await Grader(self._desk, salt=self._salt).run(plan, attempts_left=2)
        if outcome.error is not None:
            raise outcome.error
        return outcome.graded[""]

    def _planned(self, model: str, vote: int, role: Role, prompt: Prompt, question: Question) -> Planned:
        version = f"{self._desk.judge(model).version}/{question.version}"
        # A second order is read the other way round, so it is another question even where both answers are the same.
        asked = f"{version}\x1f{prompt.key}\x1f{vote}{role if role == 'swapped' else ''}"
        key = hashlib.sha256(asked.encode()).hexdigest()[:32]
        return Planned(model, vote, role, prompt, version, key)

    async def _vote(self, asking: _Asking, call: Planned) -> list[Vote] | Exception:
        """The votes of one call, or why there is none."""
        plan = asking.plan
        if call.key in asking.known:
            return _votes(plan, call, asking.known[call.key], reused=True)
        if (other := self._asking.get(call.key)) is not None:
            grades = await asyncio.shield(other)  # who is cancelled while waiting does not take it from the others
            if all(_is_settled(grade) for grade in grades.values()):
                return _votes(plan, call, grades, reused=True)
        mine: asyncio.Future[Grades] = asyncio.get_running_loop().create_future()
        self._asking[call.key] = mine
        grades = {}
        try:
            grades = await self._ask(asking, call)
        except Exception as error:  # noqa: BLE001 - whatever it is: the votes beside it were paid for, and are kept
            asking.failed.append((call, error))
            return error
        else:
            return _votes(plan, call, grades)
        finally:
            if self._asking.get(call.key) is mine:
                del self._asking[call.key]
            mine.set_result(grades or {"": Grade(Status.ERROR)})

    async def _ask(self, asking: _Asking, call: Planned) -> Grades:
        plan = asking.plan
        try:
            answer = await self._desk.ask(call.model, call.prompt)
        except (JudgeRejected, GradeInvalid) as error:
            if isinstance(error, JudgeRejected):
                raise
            return _refused(plan.specs, error, error.cause, error.raw)
        except PermanentError as error:
            return _refused(plan.specs, error, "request", "")
        grades = parse_all(plan.specs, answer, plan.record.output)
        wrong = next((grade for grade in grades.values() if grade.cause == "malformed"), None)
        if wrong is not None:
            self._desk.unread(answer)
        if wrong is None or asking.attempts_left <= 1:
            return _turned(grades, call)
        mending = repaired(call.prompt, wrong.explanation)
        try:
            again = await self._desk.ask(call.model, mending)
        except EvalpipeError as error:
            asking.failed.append((replace(call, prompt=mending), error))
            return _turned(grades, call)  # the first answer was paid for, and is what there is
        grades = parse_all(plan.specs, added(answer, again), plan.record.output)
        if any(grade.cause == "malformed" for grade in grades.values()):
            self._desk.unread(again)
        return _turned(grades, call)

    def _combine(self, plan: Plan, name: str, mine: Sequence[Vote]) -> Graded:
        spec = plan.specs[name]
        if spec.kind == "pairwise":
            orders = {
                role: combined([v.grade for v in mine if v.call.role == role], spec.combine)[0]
                for role in ("first", "swapped")
            }
            grade, disagreement = pair(orders["first"], orders["swapped"])
        else:
            grade, disagreement = combined([vote.grade for vote in mine], spec.combine)
        return Graded(grade, plan.version, plan.step, disagreement=disagreement)


@dataclass(frozen=True, slots=True)
class _Asking:
    """One run of a plan."""

    plan: Plan
    known: Mapping[str, Grades]
    attempts_left: int
    failed: list[tuple[Planned, Exception]] = field(default_factory=list)


def repaired(prompt: Prompt, problem: str) -> Prompt:
    """The same question again, with what was wrong with the last answer."""
    told = neutral(problem)[:300]
    return replace(prompt, user=f"{prompt.user}\nYour last answer was not a grade: {told}. Answer again. JSON only.")


def added(first: Answer, second: Answer) -> Answer:
    """The second answer, with what both took."""
    costs = (first.cost_usd, second.cost_usd)
    return replace(
        second,
        input_tokens=first.input_tokens + second.input_tokens,
        cached_tokens=first.cached_tokens + second.cached_tokens,
        output_tokens=first.output_tokens + second.output_tokens,
        cost_usd=None if None in costs else sum(cost for cost in costs if cost is not None),
        latency_ms=first.latency_ms + second.latency_ms,
        attempts=first.attempts + second.attempts,
    )


def _orders(spec: JudgeSpec) -> Sequence[tuple[Role, bool]]:
    return (("first", False), ("swapped", True)) if spec.kind == "pairwise" else (("first", False),)


def _escalates(spec: JudgeSpec, graded: Graded, votes: Sequence[Vote]) -> bool:
    if spec.escalate is None:
        return False
    grade, when = graded.grade, spec.escalate.when
    said = {(vote.grade.status, vote.grade.label) for vote in votes if vote.grade.status is not Status.ERROR}
    unsure = (
        grade.status is not Status.SCORED
        or len(said) > 1
        or (grade.confidence is not None and grade.confidence < UNSURE_BELOW)
    )
    # Weighted by probabilities no value is quite the best: there the word tells.
    worth = values(spec).get(grade.label) if grade.reading == "expected" else grade.value
    fails = worth is not None and worth < max(values(spec).values())
    return (unsure and "unsure" in when) or (fails and "fail" in when)


def _gravity(error: Exception) -> int:
    """Of several errors the one that tells most of the attempt: calls that were made count."""
    if isinstance(error, JudgeUnavailable):
        return 0 if error.cause == "paused" else 2
    return 1 if isinstance(error, JudgeRejected) else 3


def _is_settled(grade: Grade) -> bool:
    return grade.status in {Status.SCORED, Status.ABSTAINED}


def _votes(plan: Plan, call: Planned, grades: Grades, *, reused: bool = False) -> list[Vote]:
    # Alone in its call, a criterion's name is no part of the question: another's grade under another name fits.
    found = grades if len(plan.specs) > 1 else dict.fromkeys(plan.specs, next(iter(grades.values())))
    mine = {name: found[name] for name in plan.specs if name in found}
    return [Vote(name, call, replace(g, answer=None) if reused else g, reused) for name, g in mine.items()]


def _turned(grades: Grades, call: Planned) -> Grades:
    """Grades of a pair in the order in which the partner came first, from the record's point of view."""
    if call.role != "swapped":
        return grades
    return {
        name: replace(grade, value=1.0 - grade.value) if grade.value is not None else grade
        for name, grade in grades.items()
    }


def _refused(specs: Specs, error: Exception, cause: str, raw: str) -> Grades:
    explanation, raw = neutral(str(error))[:EXPLANATION_CHARS], storable_text(raw)
    return {name: Grade(Status.ERROR, explanation=explanation, raw=raw, cause=cause) for name in specs}
