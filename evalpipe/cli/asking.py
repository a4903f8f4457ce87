"""Many records graded from the command line, with votes, panels and explanations as in production, and no database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console

from evalpipe.errors import ConfigError, EvalpipeError, JudgeUnavailable
from evalpipe.record import Record
from evalpipe.scorecard.model import JudgeSpec

if TYPE_CHECKING:
    from evalpipe.scorers.grader import Graded, Grader
    from evalpipe.wiring import Wiring

ATTEMPTS = 3
"""Times that a record is asked for while the judge gives no answer."""
FIRST_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class ToGrade:
    """A record to grade by a criterion; ``work_id`` names the work."""

    spec: JudgeSpec
    record: Record
    work_id: str


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


def ask_all(
    questions: Sequence[ToGrade], *, step: Callable[[], None] = lambda: None
) -> tuple[list[Graded | JudgeUnavailable], list[str]]:
    """The grade of each question in its order, and the versions of the judges that were asked.

    Where a judge gives no answer after three attempts, its error stands in the grade's place.

    Args:
        questions: what to ask.
        step: called after each one.

    Raises:
        ConfigError: a judge is not configured, or cannot be opened.
        JudgeRejected: a judge can answer nothing until a human acts.
    """
    return asyncio.run(_ask_all(questions, step))


async def _ask_all(
    questions: Sequence[ToGrade], step: Callable[[], None]
) -> tuple[list[Graded | JudgeUnavailable], list[str]]:
    from evalpipe.scorers.grader import Grader
    from evalpipe.wiring import Wiring

    wiring = Wiring()
    grader = Grader(wiring.desk)
    answers: list[Graded | JudgeUnavailable | None] = [None] * len(questions)
    left = iter(enumerate(questions))

    async def worker() -> None:
        for place, question in left:
            answers[place] = await _asked(grader, question)
            step()

    try:
        versions = _versions(wiring, questions)  # here a wrong setting is one error, and not one of a group
        async with asyncio.TaskGroup() as group:
            for _ in range(min(wiring.settings.judge_concurrency, len(questions))):
                group.create_task(worker())
    except BaseExceptionGroup as group_of:
        raise _first(group_of) from None
    finally:
        await wiring.close_judges()
    return [answer for answer in answers if answer is not None], versions


def _versions(wiring: Wiring, questions: Sequence[ToGrade]) -> list[str]:
    models = dict.fromkeys(model for question in questions for model in question.spec.models)
    return [wiring.desk.judge(model).version for model in models]


async def _asked(grader: Grader, question: ToGrade) -> Graded | JudgeUnavailable:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return await grader.grade(question.spec, question.record, work_id=question.work_id)
        except JudgeUnavailable as error:
            if attempt == ATTEMPTS:
                return error
            await asyncio.sleep(error.retry_after_s or FIRST_WAIT_S * 2 ** (attempt - 1))
    raise AssertionError  # the last attempt returns


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The mistake that a person can act on, if there is one."""
    found = [error for error in group.exceptions if isinstance(error, EvalpipeError)]
    return found[0] if found else group.exceptions[0]


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
