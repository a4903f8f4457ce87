"""Many records graded from the command line as production asks: votes, panels, shared calls; and no database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from evalpipe.errors import ConfigError, EvalpipeError, JudgeRejected, JudgeUnavailable
from evalpipe.record import Record
from evalpipe.scorecard.model import JudgeSpec, Scorecard

if TYPE_CHECKING:
    from evalpipe.judges.desk import Desk
    from evalpipe.scorers.calls import Graded
    from evalpipe.scorers.judged import Question
    from evalpipe.wiring import Wiring

ATTEMPTS = 3
"""Times that a record is asked for while the judge gives no answer."""
FIRST_WAIT_S = 1.0
MISSES = 8
"""Calls in a row without an answer, after which no more is asked."""


@dataclass(frozen=True, slots=True)
class ToGrade:
    """A record to grade by a criterion.

    Attributes:
        question: what is asked; of one record, what has one question is asked in one call.
        criterion: its name in the question.
        record: what is graded.
        work_id: names the work.
    """

    question: Question
    criterion: str
    record: Record
    work_id: str


class Questions:
    """What production asks for the criteria of a scorecard: those that share a call are one question.

    Args:
        card: checked already.
        judge: grades all of them alone; "" for their own judges.
    """

    def __init__(self, card: Scorecard, judge: str = "") -> None:
        self._card = card
        self._judge = judge
        self._known: dict[str, Question] = {}

    def of(self, criterion: str) -> Question:
        """The question of a judged criterion; its epoch is that of all who are in it.

        Raises:
            ConfigError: the judge is no ``provider:model``.
        """
        from evalpipe.scorers.judged import Question

        together = self._card.together(criterion)
        if (first := together[0].name) not in self._known:
            specs = {c.name: by(c.judge, self._judge) for c in together if c.judge is not None}
            self._known[first] = Question(specs)
        return self._known[first]


def by(spec: JudgeSpec, judge: str) -> JudgeSpec:
    """The criterion, graded by ``judge`` alone; as it is where that is "".

    Raises:
        ConfigError: ``judge`` is no ``provider:model``.
    """
    if not judge:
        return spec
    given = {"model": judge, "panel": [], "votes": 1, "escalate": None, "fallback": []}
    try:
        return JudgeSpec.model_validate({**spec.model_dump(exclude_defaults=True), **given})
    except ValueError as error:
        raise ConfigError(f"--judge {judge!r} is not provider:model, such as openai:gpt-4.1-mini") from error


class Asking:
    """Asks many questions, and stops where nobody answers: one dead judge is not asked a thousand times.

    Attributes:
        stopped: why no more is asked; "" while it goes on.
    """

    def __init__(self) -> None:
        self.stopped = ""
        self._missed = 0

    def ask_all(
        self, questions: Sequence[ToGrade], *, step: Callable[[], None] = lambda: None
    ) -> tuple[list[Graded | JudgeUnavailable | None], list[str]]:
        """The grade of each question in its order, and the versions of the judges that were asked.

        Where a judge gives no answer after three attempts, its error stands in the grade's place; None stands for what
        was not asked, since ``MISSES`` calls in a row had no answer, or a judge refused us. That is said on stderr
        once. Criteria that share a call do so here if they are asked for together.

        Args:
            questions: what to ask.
            step: called after each of them.

        Raises:
            ConfigError: a judge is not configured, cannot be opened, or has no known price.
        """
        went_on = not self.stopped
        answers, versions = asyncio.run(self._ask_all(questions, step))
        if went_on and self.stopped:
            typer.echo(f"evalpipe: {self.stopped}", err=True)
        return answers, versions

    async def _ask_all(
        self, questions: Sequence[ToGrade], step: Callable[[], None]
    ) -> tuple[list[Graded | JudgeUnavailable | None], list[str]]:
        from evalpipe.wiring import Wiring

        wiring = Wiring()
        answers: list[Graded | JudgeUnavailable | None] = [None] * len(questions)
        calls: dict[tuple[int, int, str], list[int]] = {}
        for place, asked in enumerate(questions):
            calls.setdefault((id(asked.question), id(asked.record), asked.work_id), []).append(place)
        left = iter(calls.values())

        async def worker() -> None:
            for places in left:
                graded = await self._asked(wiring.desk, questions[places[0]])
                for place in places:
                    answers[place] = (
                        graded if isinstance(graded, JudgeUnavailable) else graded[questions[place].criterion]
                    )
                    step()

        try:
            versions = _versions(wiring, questions)  # here a wrong setting is one error, and not one of a group
            if not self.stopped:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(wiring.settings.judge_concurrency, len(calls))):
                        group.create_task(worker())
        except BaseExceptionGroup as group_of:
            self.stopped = _why_stopped(group_of)
        finally:
            await wiring.close_judges()
        return answers, versions

    async def _asked(self, desk: Desk, asked: ToGrade) -> Mapping[str, Graded] | JudgeUnavailable:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                graded = await grade_all(desk, asked.question, asked.record, asked.work_id)
            except JudgeUnavailable as error:
                # A judge that throttles is not dead: it counts once it is given up.
                self._missed += error.cause not in {"throttled", "paused"} or attempt == ATTEMPTS
                if self._missed >= MISSES:
                    raise
                if attempt == ATTEMPTS:
                    return error
                await asyncio.sleep(error.retry_after_s or FIRST_WAIT_S * 2 ** (attempt - 1))
            else:
                self._missed = 0
                return graded
        raise AssertionError  # the last attempt returns


def _why_stopped(group: BaseExceptionGroup[BaseException]) -> str:
    """Why asking ended before its end; what is no trouble of a judge is raised."""
    first = next((error for error in group.exceptions if isinstance(error, EvalpipeError)), group.exceptions[0])
    if isinstance(first, JudgeUnavailable):
        return f"stopped asking: {MISSES} calls in a row without an answer, the last: {first}"
    if isinstance(first, JudgeRejected):
        return f"stopped asking: {first}"
    raise first from None


def _versions(wiring: Wiring, questions: Sequence[ToGrade]) -> list[str]:
    models = dict.fromkeys(model for asked in questions for model in asked.question.spec.models)
    for model in models:
        usable(model)
    return [wiring.desk.judge(model).version for model in models]


async def grade_all(desk: Desk, question: Question, record: Record, work_id: str) -> Mapping[str, Graded]:
    """The grade of each criterion of a question, asked for now, whatever is known.

    Raises:
        EvalpipeError: no judge is configured, or it gave no answer; see ``Judge.ask``.
    """
    from evalpipe.scorers.grader import Grader

    grader = Grader(desk)  # one for all would ask equal records once, of which each is to count
    outcome = await grader.run(grader.plan(question, record, work_id), attempts_left=2)
    if outcome.error is not None:
        raise outcome.error
    return outcome.graded


def usable(model: str) -> None:
    """Look at a judge as scorecards write it, without asking it.

    Raises:
        ConfigError: it cannot be opened, or has no known price: without one no cap could be kept.
    """
    from evalpipe.judges.config import judge_config, open_judge
    from evalpipe.judges.prices import require_price
    from evalpipe.settings import Settings

    config = judge_config(Settings.from_env(), model)
    open_judge(config)
    require_price(config)


@contextmanager
def progress(what: str, total: int, *, quiet: bool) -> Iterator[Callable[[], None]]:
    """A bar on stderr, where somebody looks."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
