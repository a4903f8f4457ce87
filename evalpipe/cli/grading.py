"""Judged criteria on the command line: the configured judge, many calls in flight, no database."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from evalpipe.cli.asking import grade_all
from evalpipe.errors import EvalpipeError
from evalpipe.score import Score, failed, skipped
from evalpipe.scorecard.criterion import Criterion
from evalpipe.scorecard.testing import Grader as Grades
from evalpipe.scorecard.testing import Work

if TYPE_CHECKING:
    from evalpipe.judges.desk import Desk
    from evalpipe.scorers.judged import Question
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
    from evalpipe.cli.asking import usable
    from evalpipe.scorers.judged import Question
    from evalpipe.wiring import Wiring

    wiring = Wiring()
    calls: dict[tuple[int, tuple[tuple[str, str], ...]], list[int]] = {}
    for place, item in enumerate(work):
        if (score := _without_a_call(wiring, item)) is not None:
            answers.put((place, score))
            continue
        together = tuple((c.name, c.definition_hash) for c in item.together)
        calls.setdefault((id(item.record), together), []).append(place)
    asked = {together: work[places[0]].together for (_, together), places in calls.items()}
    questions = {key: Question({c.name: c.judge for c in of if c.judge is not None}) for key, of in asked.items()}
    left = iter(calls.items())

    async def worker() -> None:
        for (_, together), places in left:
            for place, score in await _grade(wiring.desk, questions[together], work, places):
                answers.put((place, score))

    try:
        for model in dict.fromkeys(model for question in questions.values() for model in question.spec.models):
            usable(model)  # here a wrong setting is one error, and not one of a group
        async with asyncio.TaskGroup() as group:
            for _ in range(min(wiring.settings.judge_concurrency, len(calls))):
                group.create_task(worker())
    finally:
        await wiring.close_judges()


def _without_a_call(wiring: Wiring, item: Work) -> Score | None:
    """The score of what no judge is asked about; None where one is."""
    from evalpipe.scorers.judged import skip_reason

    spec = item.criterion.judge
    if spec is None or not wiring.has_judge(spec):
        return skipped("no judge configured")
    reason = skip_reason(spec, item.record)
    return skipped(reason) if reason else None


async def _grade(desk: Desk, question: Question, work: Sequence[Work], places: Sequence[int]) -> list[Graded]:
    """The scores of one record by criteria that share a call."""
    record = work[places[0]].record
    try:
        graded = await grade_all(desk, question, record, record.record_id)
    except EvalpipeError as error:
        return [(place, failed(str(error))) for place in places]
    grades = [(place, graded[work[place].criterion.name].grade) for place in places]
    return [(place, Score(given.status, given.value, given.label, given.explanation)) for place, given in grades]
