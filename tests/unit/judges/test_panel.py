"""Several grades of one thing become one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.judges.base import Grade
from evalpipe.judges.panel import combined, pair
from evalpipe.score import Status

GRADES = {
    "pass": Grade(Status.SCORED, 1.0, "pass", "fine"),
    "fail": Grade(Status.SCORED, 0.0, "fail", "not fine", "these words"),
    "half": Grade(Status.SCORED, 0.5, "half", "so so"),
    "cannot_tell": Grade(Status.ABSTAINED, label="cannot_tell", explanation="too little"),
    "error": Grade(Status.ERROR, explanation="no JSON", raw="hm", cause="malformed"),
}


def votes(words: str) -> list[Grade]:
    """Grades by name."""
    return [GRADES[word] for word in words.split()]


@pytest.mark.parametrize(
    ("cast", "how", "status", "value", "label", "disagreement"),
    [
        ("pass", "majority", "scored", 1.0, "pass", None),
        ("pass pass fail", "majority", "scored", 1.0, "pass", 2 / 3),
        ("fail fail pass", "majority", "scored", 0.0, "fail", 2 / 3),
        ("pass fail", "majority", "abstained", None, "split", 1.0),
        ("pass cannot_tell cannot_tell", "majority", "abstained", None, "cannot_tell", 1 / 3),
        ("pass pass error", "majority", "scored", 1.0, "pass", 0.0),
        ("pass error", "majority", "error", None, "", None),
        ("pass pass fail", "mean", "scored", 2 / 3, "pass", 2 / 3),
        ("pass half", "mean", "scored", 0.75, "pass", 0.5),
        ("pass cannot_tell cannot_tell", "mean", "abstained", None, "cannot_tell", 1 / 3),
        ("error error", "mean", "error", None, "", None),
    ],
)
def test_votes_become_one_grade_and_their_disagreement(
    cast: str, how: str, status: str, value: float | None, label: str, disagreement: float | None
) -> None:
    """Errors do not vote, a tie abstains, and what was said by the winners is kept."""
    grade, apart = combined(votes(cast), how)
    assert (grade.status.value, grade.label) == (status, label)
    assert grade.value == pytest.approx(value)
    assert apart == pytest.approx(disagreement)


@given(st.lists(st.sampled_from(sorted(GRADES)), min_size=1, max_size=9), st.sampled_from(["majority", "mean"]))
def test_the_order_of_votes_changes_no_value(cast: list[str], how: str) -> None:
    """And a value is always within what was voted."""
    grade, apart = combined([GRADES[word] for word in cast], how)
    mirrored, apart_too = combined([GRADES[word] for word in reversed(cast)], how)
    assert (grade.status, apart) == (mirrored.status, pytest.approx(apart_too))
    assert grade.value == pytest.approx(mirrored.value)
    values = [GRADES[word].value for word in cast if GRADES[word].value is not None]
    assert grade.value is None or min(values) <= grade.value <= max(values)
    assert apart is None or 0.0 <= apart <= 1.0


@pytest.mark.parametrize(
    ("first", "swapped", "value", "label"),
    [(1.0, 1.0, 1.0, "better"), (1.0, 0.0, 0.5, "tie"), (0.5, 0.0, 0.25, "worse"), (0.5, 0.5, 0.5, "tie")],
)
def test_a_judge_that_always_takes_the_first_answer_finds_a_tie(
    first: float, swapped: float, value: float, label: str
) -> None:
    """Both orders count alike."""
    orders = [Grade(Status.SCORED, v, explanation=f"{v}") for v in (first, swapped)]
    grade, apart = pair(*orders)
    assert (grade.value, grade.label, apart) == (value, label, abs(first - swapped))


def test_a_pair_that_one_order_could_not_tell_has_no_value() -> None:
    """An abstention in one order is not outvoted by the other."""
    assert pair(GRADES["pass"], GRADES["cannot_tell"])[0].status is Status.ABSTAINED
    assert pair(GRADES["error"], GRADES["pass"])[0].status is Status.ERROR
