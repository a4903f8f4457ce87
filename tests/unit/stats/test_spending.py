"""The test on sums of costs: as rare as it says where nothing changed, and not to be led by one dear call."""

from __future__ import annotations

from math import exp, inf, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.stats.spending import RATIOS, Spread, fold, log_chance


@pytest.mark.parametrize("mean", [0.5, 3.0, 20.0])
def test_with_lumps_of_one_size_each_bet_is_fair(mean):
    """E F = 1 for a Poisson number of lumps of the unit, so the statistic grows by its weight a stretch."""
    counts = np.random.default_rng(5).poisson(mean, 40_000)
    for i, ratio in enumerate(RATIOS[:2]):
        factors = [fold([0.0] * 4, float(n), inf, mean, 1.0, 1e300)[i] * len(RATIOS) for n in counts]
        assert np.mean(factors) == pytest.approx(1.0, abs=4 * np.std(factors) / 200 + 1e-9), ratio


def test_one_stretch_alone_is_no_alarm_and_two_are():
    """However much is spent in it; and the statistic goes no higher than twice the threshold."""
    sums = fold([], 1e9, inf, 1.0, 1.0, 1e6)
    assert sum(sums) < 1e6
    sums = fold(sums, 1e9, inf, 1.0, 1.0, 1e6)
    assert 1e6 <= sum(sums) <= 2e6 * (1 + 1e-9)


def test_a_dear_call_is_one_lump_however_dear():
    """What speaks for more is bounded by the number of lumps."""
    assert sum(fold([0.25] * 4, 1e9, 1.0, 0.0, 1.0, 1e6)) <= 2.0 * exp(1.0)


@given(st.floats(0.0, 1e6), st.floats(1e-3, 1e6), st.floats(1e-3, 1e3))
def test_the_bound_of_a_window_is_a_chance(spent, expected, unit):
    """At most 1, and falling with what is spent."""
    assert log_chance(spent, expected, unit) <= 0.0
    assert log_chance(2 * spent + 1.0, expected, unit) <= log_chance(spent, expected, unit)


def test_the_bound_of_a_window_holds_for_a_poisson_number():
    """Against simulated tails."""
    counts = np.random.default_rng(7).poisson(10.0, 200_000)
    for seen in (15, 20, 25):
        assert np.mean(counts >= seen) <= exp(log_chance(float(seen), 10.0, 1.0))
    assert (log_chance(1.0, 0.0, 1.0), log_chance(0.0, 0.0, 1.0)) == (-inf, 0.0)
    assert log_chance(20.0, 10.0, 1.0) == pytest.approx(-(20 * log(2) - 10))


def test_bursts_make_the_unit_larger():
    """Variance over mean is what a burst costs."""
    rng, spread = np.random.default_rng(9), Spread()
    assert spread.lump == 0.0
    for _ in range(3_000):
        spread = spread.add(10.0 * rng.poisson(3.0), 1_000.0)
    assert spread.lump == pytest.approx(10.0, rel=0.2)


def test_the_rise_and_fall_of_a_day_are_no_bursts():
    """Five-second sums of calls of one cost that come twice as often at noon as at night; the unit stays a call."""
    rng, spread = np.random.default_rng(10), Spread()
    for slot in range(17_280):
        spread = spread.add(float(rng.poisson(100.0 * (1.5 + 0.5 * np.sin(2 * np.pi * slot / 17_280)))), 1_000.0)
    assert spread.lump == pytest.approx(1.0, rel=0.2)


def test_an_hour_without_hooks_is_no_burst_where_a_step_counts_for_so_much_at_the_most():
    """Sums of five minutes with a silence: the unit stays near a call, and is many calls without the limit."""
    rng = np.random.default_rng(11)
    free = bounded = Spread()
    for number in range(100):
        spent = 0.0 if 80 <= number < 92 else float(rng.poisson(3_000.0))
        free, bounded = free.add(spent, 60.0), bounded.add(spent, 60.0, 16.0)
    assert bounded.lump < 3.0
    assert free.lump > 30.0


def test_sessions_that_begin_are_bursts_all_the_same():
    """What goes on for hours is no single step: 40 calls come together from then on."""
    rng, spread = np.random.default_rng(12), Spread()
    for number in range(300):
        size = 1 if number < 100 else 40
        spread = spread.add(float(size * rng.poisson(3_000.0 / size)), 60.0, 16.0)
    assert spread.lump == pytest.approx(40.0, rel=0.4)
