"""Judged criteria on the command line: the configured judge, many calls in flight, no database."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from evalpipe.score import Score, failed, skipped
from evalpipe.scorecard.criterion import Criterion
from evalpipe.scorecard.testing import Grader as Grades
from evalpipe.scorecard.testing import Work

if TYPE_CHECKING:
    from evalpipe.scorers.grader import Grader
    from evalpipe.wiring import Wiring

Graded = tuple[int, Score]


def configured_grader(criteria: Iterable[Criterion]) -> Grades | None:
    """A grader with the judges that ``criteria`` name, or None where none of them is configured.

    Raises:
        ConfigError: a setting has a wrong value.
    """
    from evalpipe.wiring import Wiring

    wiring = Wiring()
    return grade if any(c.judge is not None and wiring.has_judge(c.judge) for c in criteria) else None


def grade(work: Sequence[Work]) -> Iterator[Graded]:
    """Grade all of ``work``; yields in the order in which the judge answers.

    Raises:
        ConfigError: a judge cannot be opened, for example because its provider is unknown.
    """
    answers: queue.SimpleQueue[Graded | BaseException | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            asyncio.run(_grade_all(work, answers))
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that reads
            answers.put(error)
        answers.put(None)

    threading.Thread(target=run, name="evalpipe-grading", daemon=True).start()
    while (answer := answers.get()) is not None:
        if isinstance(answer, BaseException):
            raise answer
        yield answer


async def _grade_all(work: Sequence[Work], answers: queue.SimpleQueue[Graded | BaseException | None]) -> None:
    from evalpipe.scorers.grader import Grader
    from evalpipe.wiring import Wiring

    wiring = Wiring()
    grader = Grader(wiring.desk)
    left = iter(enumerate(work))

    async def worker() -> None:
        for place, item in left:
            answers.put((place, await _grade(wiring, grader, item)))

    try:
        for criterion in {criterion.name: criterion for criterion, _ in work}.values():
            for model in criterion.judge.models if criterion.judge and wiring.has_judge(criterion.judge) else ():
                wiring.desk.judge(model)  # here a wrong setting is one error, and not one of a group
        async with asyncio.TaskGroup() as group:
            for _ in range(min(wiring.settings.judge_concurrency, len(work))):
                group.create_task(worker())
    finally:
        await wiring.close_judges()


async def _grade(wiring: Wiring, grader: Grader, item: Work) -> Score:
    from evalpipe.errors import EvalpipeError
    from evalpipe.scorers.judged import skip_reason

    criterion, record = item
    spec = criterion.judge
    if spec is None or not wiring.has_judge(spec):
        return skipped("no judge configured")
    if reason := skip_reason(spec, record):
        return skipped(reason)
    try:
        given = (await grader.grade(spec, record)).grade
    except EvalpipeError as error:
        return failed(str(error))
    return Score(given.status, given.value, given.label, given.explanation)
