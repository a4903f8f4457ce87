"""Calls of judges as the grader plans them, and what comes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from evalpipe.errors import JudgeUnavailable
from evalpipe.judges.base import Grade, Prompt
from evalpipe.record import Record
from evalpipe.scorers.judged import Question, Specs

Role = Literal["first", "swapped", "escalated"]
Grades = Mapping[str, Grade]
"""By the criterion's name."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One call to come.

    Attributes:
        model: as the scorecard writes it.
        vote: number of the call among those of this judge.
        role: why it is made.
        version: the judge's and the prompt's.
        key: equal for equal questions: this judge, this prompt, this record's content, this vote.
    """

    model: str
    vote: int
    role: Role
    prompt: Prompt
    version: str
    key: str

    @property
    def judge(self) -> str:
        """The judge's version, without the prompt's."""
        return self.version.rpartition("/")[0]


@dataclass(frozen=True, slots=True)
class Plan:
    """The calls that one record needs.

    Attributes:
        question: what is asked of every record.
        record: what is graded.
        step: of the ladder.
        version: of all who grade at this step: the scorer of the scores.
        calls: are made in any case.
        second: is made where the first ones are unsure, or the stake is high.
        away: why the second cannot be asked now; None where it can. The first ones are asked all the same.
    """

    question: Question
    record: Record
    step: int
    version: str
    calls: tuple[Planned, ...]
    second: Planned | None = None
    away: JudgeUnavailable | None = None

    @property
    def specs(self) -> Specs:
        """The criteria by name."""
        return self.question.specs

    @property
    def all_calls(self) -> tuple[Planned, ...]:
        """Every call that may be made."""
        return self.calls if self.second is None else (*self.calls, self.second)


@dataclass(frozen=True, slots=True)
class Vote:
    """What one call said of one criterion; ``reused`` if it was known, and cost nothing."""

    criterion: str
    call: Planned
    grade: Grade
    reused: bool = False


@dataclass(frozen=True, slots=True)
class Graded:
    """The grade of one criterion.

    Attributes:
        grade: of all votes together.
        version: the scorer of the score.
        step: of the ladder.
        escalated: the second judge was asked.
        disagreement: mean distance of two votes of the first judges in [0, 1]; None for one vote.
    """

    grade: Grade
    version: str
    step: int = 0
    escalated: bool = False
    disagreement: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a plan.

    Attributes:
        graded: the grade of each criterion.
        votes: all that were cast.
        error: why there is no grade.
        failed: calls that brought no answer, each with why; of a second question, after an answer that was no grade,
            the call has the second prompt.
    """

    graded: Mapping[str, Graded] = field(default_factory=dict)
    votes: Sequence[Vote] = ()
    error: Exception | None = None
    failed: Sequence[tuple[Planned, Exception]] = ()
