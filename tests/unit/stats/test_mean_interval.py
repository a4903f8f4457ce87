"""The interval for a mean, for people."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.stats.mean_interval import mean_interval


def of(values, weights=None, **options):
    """The interval of a list."""
    weights = weights or [1.0] * len(values)
    return mean_interval(
        len(values),
        sum(weights),
        sum(w * x for w, x in zip(weights, values, strict=True)),
        sum(w * x * x for w, x in zip(weights, values, strict=True)),
        sum(w * w for w in weights),
        **options,
    )


def test_pass_and_fail_give_the_interval_of_wilson():
    """81 of 263 at 95 %: .2553 to .3662 (Newcombe 1998, table I, method 3)."""
    found = of([1.0] * 81 + [0.0] * 182)
    assert found.low == pytest.approx(0.2553, abs=5e-5)
    assert found.high == pytest.approx(0.3662, abs=5e-5)


def test_a_few_perfect_scores_are_not_certainty():
    """Five of five still leaves room for one failure in three; an empty series has no interval."""
    assert of([1.0] * 5).low < 0.67
    assert of([]) is None


@pytest.mark.parametrize(
    ("values", "shares"), [((0.0, 1.0), (1, 9)), ((0.0, 0.25, 0.5, 0.75, 1.0), (2, 4, 9, 22, 63)), ((0.7, 0.9), (1, 1))]
)
@pytest.mark.parametrize("n", [30, 300])
def test_the_mean_is_inside_about_as_often_as_stated(values, shares, n):
    """Coverage of 95 % intervals over 600 series is at least 92 %."""
    rng = random.Random(n)
    truth = sum(v * s for v, s in zip(values, shares, strict=True)) / sum(shares)
    inside = 0
    for _ in range(600):
        found = of(rng.choices(values, shares, k=n))
        inside += found.low <= truth <= found.high
    assert inside / 600 >= 0.92


def test_weights_cost_precision():
    """Weights 1 and 9: the effective number is Kish's, and the interval is wider than with equal weights."""
    values = [1.0, 0.0] * 50
    even, uneven = of(values), of(values, [1.0] * 50 + [9.0] * 50)
    assert uneven.n_effective == pytest.approx(500**2 / (50 + 50 * 81))
    assert uneven.high - uneven.low > even.high - even.low


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.floats(0.5, 0.999))
def test_the_ends_are_in_range_around_the_mean(values, level):
    """For any scores and level."""
    found = of(values, level=level)
    assert 0.0 <= found.low <= found.mean + 1e-12
    assert found.mean - 1e-12 <= found.high <= 1.0


def test_scores_of_another_range_scale():
    """Latency-like scores in [0, 10]: ten times the interval of their tenths."""
    small, large = of([0.1, 0.5, 0.9]), of([1.0, 5.0, 9.0], hi=10.0)
    assert large.low == pytest.approx(10 * small.low)
    assert large.high == pytest.approx(10 * small.high)
