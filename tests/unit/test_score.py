"""A score has a value exactly where something was scored."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.score import Score, Status, abstained, failed, scored, skipped


@given(st.floats(0, 1))
def test_every_value_from_0_to_1_is_a_score(value: float):
    """Both ends included."""
    assert scored(value, "label", "why") == Score(Status.SCORED, value, "label", "why")


@given(st.floats(max_value=0, exclude_max=True) | st.floats(min_value=1, exclude_min=True) | st.just(math.nan))
def test_a_value_outside_is_refused(value: float):
    """NaN too: unknown is a status, not a number."""
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        scored(value)


def test_a_scored_criterion_must_have_a_value():
    """None is for the other statuses."""
    with pytest.raises(ValueError, match="not None"):
        Score(Status.SCORED)


@pytest.mark.parametrize("status", [s for s in Status if s is not Status.SCORED])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_no_other_status_has_a_value(status: Status, value: float):
    """An error is not a failure, and a skip is not a zero."""
    with pytest.raises(ValueError, match="has no value"):
        Score(status, value)


@pytest.mark.parametrize(
    ("made", "status"),
    [(skipped("why"), Status.SKIPPED), (failed("why"), Status.ERROR), (abstained("why"), Status.ABSTAINED)],
)
def test_a_score_without_a_value_says_why(made: Score, status: Status):
    """The reason is the explanation."""
    assert (made.status, made.value, made.explanation) == (status, None, "why")


def test_statuses_are_the_words_of_the_database():
    """They are stored as they are."""
    assert [str(s) for s in Status] == ["scored", "skipped", "error", "abstained"]
