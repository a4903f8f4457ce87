"""McNemar's exact test."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.stats.paired import mcnemar_p


@pytest.mark.parametrize(
    ("lost", "won", "p"),
    [(0, 0, 1.0), (0, 1, 1.0), (0, 5, 0.0625), (1, 9, 0.021484375), (10, 10, 1.0), (6, 0, 0.03125)],
)
def test_p_is_the_binomial_tail_twice(lost, won, p) -> None:
    """Worked by hand: 2 * sum C(n, k) / 2^n, at most 1."""
    assert mcnemar_p(lost, won) == pytest.approx(p)


@given(st.integers(0, 300), st.integers(0, 300))
def test_it_does_not_matter_which_rater_is_the_first(a: int, b: int) -> None:
    """And p is a probability, also of many records."""
    assert mcnemar_p(a, b) == mcnemar_p(b, a)
    assert 0.0 <= mcnemar_p(a, b) <= 1.0
