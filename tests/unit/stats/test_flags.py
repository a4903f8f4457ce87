"""Rates of flags: quick where they multiply, quiet where they do not."""

from __future__ import annotations

import json
import math
import random
from statistics import median

import pytest
from gate_streams import rate_bound

from evalpipe.stats.flags import FlagRates


def fires_at(seed, p_b, p_c, n, alpha=0.0025, test=None):
    """Records of both arms in turn until a higher rate is proven; infinite if it never is."""
    rng, test = random.Random(seed), test or FlagRates(p_b)
    for i in range(n):
        canary = i % 2 == 1
        flagged = rng.random() < (p_c if canary else p_b)
        if test.add("canary" if canary else "baseline", flagged) and test.fired(alpha):
            return i + 1
    return math.inf


@pytest.mark.parametrize("rate", [0.0005, 0.005, 0.05])
def test_equal_rates_seldom_fire(rate):
    """Nominal 1 %; more than four of 60 would happen in one of 3,000 such tests."""
    assert sum(fires_at(seed, rate, rate, 4000, alpha=0.01) < math.inf for seed in range(60)) <= 4


@pytest.mark.parametrize(("p_b", "p_c"), [(0.0005, 0.0205), (0.0005, 0.0505), (0.005, 0.055)])
def test_more_flags_are_found_nearly_as_fast_as_can_be(p_b, p_c):
    """Mixtures over rates unknown beforehand take about a quarter longer than the bound."""
    bound = rate_bound(p_b, p_c, 0.5, 0.0025)
    assert median(fires_at(seed, p_b, p_c, 20_000) for seed in range(61)) <= 1.45 * bound


def test_a_wrong_expectation_costs_speed_and_nothing_else():
    """The baseline's own rate takes over."""
    assert fires_at(1, 0.02, 0.02, 6000, test=FlagRates(0.0)) == math.inf
    assert fires_at(1, 0.001, 0.05, 6000, test=FlagRates(0.05)) < 3000


def test_an_advance_is_proven_below_the_margin_in_points():
    """Two points: after some hundred clean canary records; never where the canary is worse by two points."""
    clean = FlagRates(0.002, 0.02)
    assert fires_at(1, 0.002, 0.002, 2000, test=clean) == math.inf
    assert clean.safe.fired(0.01)
    proven = 0
    for seed in range(60):
        worse = FlagRates(0.002, 0.02)
        fires_at(seed, 0.002, 0.022, 1500, alpha=1e-9, test=worse)
        proven += worse.safe.fired(0.01)
    assert proven <= 4


def test_a_restart_gives_up_counts_and_wins():
    """Another version of the judge: rates begin anew."""
    test = FlagRates()
    fires_at(2, 0.001, 0.2, 300, test=test)
    test.restart()
    assert (test.e_value, test.rates, test.totals) == (1.0, (None, None), [0, 0, 0, 0])


def test_it_goes_on_bit_by_bit_after_a_restart():
    """State is JSON-safe and complete."""
    rng, first, second = random.Random(5), FlagRates(margin=0.01), FlagRates(margin=0.01)
    for i in range(2000):
        arm, flagged = rng.choice(("baseline", "canary")), rng.random() < 0.01
        assert first.add(arm, flagged) is second.add(arm, flagged)
        if i % 100 == 0:
            state = json.loads(json.dumps(second.to_state()))
            second = FlagRates(margin=0.01)
            second.load(state)
    assert first.to_state() == second.to_state()
    with pytest.raises(ValueError, match="must be in"):
        FlagRates(1.0)
