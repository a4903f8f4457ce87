"""The tests that a scorecard carries: records with the scores that they must get."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from evalpipe.record import Record
from evalpipe.score import Score, Status, failed
from evalpipe.scorecard.criterion import Criterion
from evalpipe.scorecard.load import Names, Scorer, scorer_of
from evalpipe.scorecard.model import Expectation, Scorecard

TOLERANCE = 1e-6
"""How near a score must be to an expected ``value``."""


class Work(NamedTuple):
    """A judged criterion and the record to grade on it; ``together`` are all that are graded in the same call."""

    criterion: Criterion
    record: Record
    together: Sequence[Criterion]


Grader = Callable[[Sequence[Work]], Iterator[tuple[int, Score]]]
"""Grades work with a judge, as the caller has one: yields each work's place and score as they come, in any order."""


@dataclass(frozen=True, slots=True)
class TestResult:
    """What came of one test and one criterion.

    Attributes:
        scorecard, test, criterion: names.
        outcome: ``skipped`` where a judged criterion had no judge.
        message: what was expected and what came, or why it was skipped; "" where it passed.
    """

    __test__ = False  # pytest collects classes of this name

    scorecard: str
    test: str
    criterion: str
    outcome: Literal["passed", "failed", "skipped"]
    message: str = ""


def run_tests(scorecard: Scorecard, heuristics: Names, grader: Grader | None = None) -> Iterator[TestResult]:
    """The results of a scorecard's tests, one for each expectation, in the order of the file.

    Args:
        scorecard: checked, as ``load_scorecards`` returns it.
        heuristics: the registry of heuristics.
        grader: grades judged criteria; without it they are skipped.
    """
    scorers = {c.name: scorer_of(c, heuristics) for c in scorecard.criteria if not c.is_judged}
    records = [(test, test.record.record(test.name)) for test in scorecard.tests]
    asked = [(test, record, name) for test, record in records for name in test.expect]
    judged = [place for place, (_, _, name) in enumerate(asked) if name not in scorers]
    grades: dict[int, Score] = {}
    if grader is not None and judged:
        work = [
            Work(scorecard.criterion(name), record, scorecard.together(name))
            for _, record, name in (asked[place] for place in judged)
        ]
        grades = {judged[index]: score for index, score in grader(work)}
    for place, (test, record, name) in enumerate(asked):
        if name in scorers:
            message = mismatch(test.expect[name], _score(scorers[name], record))
        elif place in grades:
            message = mismatch(test.expect[name], grades[place])
        else:
            yield TestResult(scorecard.name, test.name, name, "skipped", "no judge configured")
            continue
        yield TestResult(scorecard.name, test.name, name, "failed" if message else "passed", message)


def mismatch(expected: Expectation, score: Score) -> str:
    """How ``score`` differs from what is expected, or ""."""
    problems: list[str] = []
    status = expected.status or Status.SCORED.value
    if score.status.value != status:
        problems.append(f"status {status!r}, but it is {score.status.value!r}")
    if score.value is not None:
        if expected.value is not None and abs(score.value - expected.value) > TOLERANCE:
            problems.append(f"value {expected.value:g}, but it is {score.value:g}")
        if expected.at_least is not None and score.value < expected.at_least - TOLERANCE:
            problems.append(f"at least {expected.at_least:g}, but it is {score.value:g}")
        if expected.at_most is not None and score.value > expected.at_most + TOLERANCE:
            problems.append(f"at most {expected.at_most:g}, but it is {score.value:g}")
    if expected.label is not None and score.label != expected.label:
        problems.append(f"label {expected.label!r}, but it is {score.label!r}")
    if not problems:
        return ""
    return f"expected {'; '.join(problems)}" + (f" ({score.explanation})" if score.explanation else "")


def _score(scorer: Scorer, record: Record) -> Score:
    try:
        return scorer.score(record)
    except Exception as error:  # noqa: BLE001 - a scorer's bug is a failed expectation, not the end of the run
        return failed(f"{type(error).__name__}: {error}")
