"""Several grades of one thing made into one: votes, panels, and the two orders of a pair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Literal

from evalpipe.judges.base import Grade
from evalpipe.score import Status


def combined(grades: Sequence[Grade], how: Literal["majority", "mean"]) -> tuple[Grade, float | None]:
    """One grade for all, and how far they disagree.

    Args:
        grades: at least one. Errors do not vote; if they are half or more, the whole is an error.
        how: ``majority``: the most frequent grade, abstentions included; a tie abstains. ``mean``: the mean of the
            values, with the label of the grade that is nearest to it; more than half abstaining abstains.

    Returns:
        The grade, with explanation and quotation of a vote that said it; and the mean distance of two votes in [0, 1]
        (an abstention is 0.5 away from every value), None for a single vote.
    """
    if len(grades) == 1:
        return grades[0], None
    voting = [grade for grade in grades if grade.status is not Status.ERROR]
    if 2 * len(voting) <= len(grades):
        error = next(grade for grade in grades if grade.status is Status.ERROR)
        return replace(error, answer=None, explanation=f"{_of(grades, error.status)} failed: {error.explanation}"), None
    disagreement = _disagreement(voting)
    return (_majority(voting) if how == "majority" else _mean(voting)), disagreement


def pair(first: Grade, swapped: Grade) -> tuple[Grade, float | None]:
    """One grade for the two orders in which a pair was shown; both are from the record's point of view.

    The value is the mean of both: a judge that always takes the first answer comes out as a tie.
    """
    for grade in (first, swapped):
        if grade.value is None:
            return replace(grade, answer=None), None
    assert first.value is not None
    assert swapped.value is not None
    value = (first.value + swapped.value) / 2.0
    label = "better" if value > 0.5 else "worse" if value < 0.5 else "tie"
    explanation = first.explanation
    if first.value != swapped.value:
        explanation = f"in one order: {first.explanation}; in the other: {swapped.explanation}"
    quotation = (first.quotation or swapped.quotation) if value < 0.5 else ""
    return Grade(Status.SCORED, value, label, explanation, quotation), abs(first.value - swapped.value)


def _majority(voting: Sequence[Grade]) -> Grade:
    counts = Counter((grade.status, grade.label) for grade in voting).most_common()
    if len(counts) > 1 and counts[0][1] == counts[1][1]:
        split = ", ".join(f"{n} x {label}" for (_, label), n in counts)
        return Grade(Status.ABSTAINED, label="split", explanation=f"the votes are split: {split}")
    winner = next(grade for grade in voting if (grade.status, grade.label) == counts[0][0])
    if winner.reading == "expected":
        same = [grade.value for grade in voting if grade.label == winner.label and grade.value is not None]
        return replace(winner, answer=None, value=sum(same) / len(same))
    return replace(winner, answer=None)


def _mean(voting: Sequence[Grade]) -> Grade:
    found = [(grade.value, grade) for grade in voting if grade.value is not None]
    if 2 * len(found) < len(voting) or not found:
        return replace(next(grade for grade in voting if grade.value is None), answer=None)
    mean = sum(value for value, _ in found) / len(found)
    _, nearest = min(found, key=lambda pair: abs(pair[0] - mean))
    return replace(nearest, answer=None, value=mean)


def _disagreement(voting: Sequence[Grade]) -> float | None:
    places = [0.5 if grade.value is None else grade.value for grade in voting]
    unlike = [grade.value is None for grade in voting]
    distances = [
        0.5 if unlike[a] != unlike[b] else abs(places[a] - places[b]) for a, b in combinations(range(len(voting)), 2)
    ]
    return sum(distances) / len(distances) if distances else None


def _of(grades: Sequence[Grade], status: Status) -> str:
    return f"{sum(grade.status is status for grade in grades)} of {len(grades)} votes"
