"""The interval for a mean, for people."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.stats.mean_interval import Squares, mean_interval, student


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


def of_units(units, **options):
    """The interval of units, each a list of (weight, value)."""
    flat = [pair for unit in units for pair in unit]
    sums = [(sum(w for w, _ in unit), sum(w * x for w, x in unit)) for unit in units]
    return mean_interval(
        len(flat),
        sum(w for w, _ in flat),
        sum(w * x for w, x in flat),
        sum(w * x * x for w, x in flat),
        sum(w * w for w, _ in flat),
        Squares.of(sums),
        **options,
    )


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.floats(0.5, 0.999))
def test_with_equal_weights_the_squares_of_records_change_nothing(values, level):
    """The linearised variance of a plain sample is its variance."""
    plain, squared = of(values, level=level), of_units([[(1.0, x)] for x in values], level=level)
    assert squared.low == pytest.approx(plain.low, abs=1e-6)
    assert squared.high == pytest.approx(plain.high, abs=1e-6)


def test_weights_that_go_with_the_scores_are_taken_for_what_they_are():
    """Errors always kept at weight 1, the rest at 50: Kish's number makes it a tenth too wide, the squares cover."""
    rng = random.Random(5)
    inside, width, by_kish = 0, 0.0, 0.0
    for _ in range(800):
        kept = []
        for _ in range(3000):
            if rng.random() < 0.15:
                kept.append((1.0, 0.0))
            elif rng.random() < 0.02:
                kept.append((50.0, rng.choice((0.25, 0.75, 1.0, 1.0))))
        truth = 0.85 * 0.75
        found = of_units([[pair] for pair in kept])
        inside += found.low <= truth <= found.high
        kish = of([x for _, x in kept], [w for w, _ in kept])
        width += found.high - found.low
        by_kish += kish.high - kish.low
    assert by_kish > 1.1 * width
    assert 0.93 <= inside / 800 <= 0.97


def test_scores_that_go_together_are_not_independent():
    """40 conversations of one to nine alike answers: over records 95 % means less than 85 %, over units 93 to 97 %."""
    rng = random.Random(11)
    inside, over_records = 0, 0
    for _ in range(800):
        units = []
        for _ in range(40):
            share = rng.choice((0.5, 0.95))
            units.append([(20.0, float(rng.random() < share)) for _ in range(rng.randint(1, 9))])
        found, apart = of_units(units), of_units([[pair] for unit in units for pair in unit])
        inside += found.low <= 0.725 <= found.high
        over_records += apart.low <= 0.725 <= apart.high
    assert over_records / 800 < 0.85
    assert 0.93 <= inside / 800 <= 0.97


@given(
    st.lists(st.lists(st.tuples(st.floats(1, 50), st.floats(0, 1)), min_size=1, max_size=4), min_size=1, max_size=20),
    st.floats(0.5, 0.999),
)
def test_units_of_any_size_and_weight_give_an_interval_around_the_mean(units, level):
    """In range, even for one unit."""
    found = of_units(units, level=level)
    assert 0.0 <= found.low <= found.mean + 1e-12
    assert found.mean - 1e-12 <= found.high <= 1.0


def test_records_that_weigh_nothing_have_no_interval():
    """They are there to be read."""
    assert of([1.0, 0.0], [0.0, 0.0]) is None


@pytest.mark.parametrize(("degrees", "wide"), [(3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (1000, 1.962)])
def test_quantiles_of_student_are_those_of_the_tables(degrees, wide):
    """At 97.5 %, to one per cent."""
    assert student(1.959964, degrees) == pytest.approx(wide, rel=0.01)
