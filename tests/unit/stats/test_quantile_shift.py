"""The sequential quantile test: p99 of two arms, call by call or by whole readings."""

from __future__ import annotations

import json
import math
import random
from statistics import median

import pytest
from gate_streams import P99_SCORE, calls, exceedance_bound, readings

from evalpipe.sketch import Sketch, bin_of
from evalpipe.stats.quantile_shift import QuantileShift

P99 = math.exp(6.0 + 0.8 * P99_SCORE)


def fires_at(test, stream, alpha=0.0025, bets="harm"):
    """Calls until a test fires; infinite if it never does."""
    for n, (arm, value) in enumerate(stream, 1):
        if test.add(arm, value) and getattr(test, bets).fired(alpha):
            return n
    return math.inf


def readings_until(test, stream, alpha=0.0025, bets="harm"):
    """Calls until a test fires, in readings; infinite if it never does."""
    for arm, bins in stream:
        if test.add_bins(arm, bins) and getattr(test, bets).fired(alpha):
            return sum(test.seen)
    return math.inf


@pytest.mark.parametrize(("rise", "every", "runs"), [(1.5, 10, 61), (1.5, 2, 61), (1.2, 10, 21), (1.2, 2, 21)])
def test_a_slower_canary_is_found_nearly_as_fast_as_can_be(rise, every, runs):
    """The bench has the figures; few runs here, so within their noise."""
    bound = exceedance_bound(rise, 1 / every, 0.0025)
    found = [
        readings_until(QuantileShift(known=P99), readings(s, int(5 * bound), every, rise, size=20 * every))
        for s in range(runs)
    ]
    assert median(found) <= 1.3 * bound


def test_without_anything_known_it_bets_after_500_baseline_calls():
    """A rise is then found about as fast, and not before."""
    test = QuantileShift()
    at = fires_at(test, calls(1, 30_000, 2, 1.5))
    assert 1000 < at < 8000
    assert test.threshold == pytest.approx(P99, rel=0.25)
    assert 0.25 < test.change < 0.9


def test_equal_arms_seldom_fire_while_traffic_ramps_and_drifts():
    """Both arms slow down by day while the canary's share grows: pooled quantiles would differ, matched ones do not."""
    fired = 0
    for seed in range(40):
        test = QuantileShift()
        for step in range(100):
            every = max(2, 50 - step // 2)
            for arm, bins in readings(1000 * seed + step, 200, every, size=200):
                test.add_bins(arm, {key + step // 2: count for key, count in bins.items()})
        fired += test.harm.fired(0.01)
    assert fired <= 3


def test_an_equal_canary_is_proven_safe_and_one_beyond_the_margin_is_not():
    """Safe means: its p99 is below the baseline's x 1.2."""
    safe = QuantileShift(known=P99)
    assert readings_until(safe, readings(2, 60_000), 0.01, "safe") < 60_000
    worse = [readings_until(QuantileShift(known=P99), readings(s, 20_000, rise=1.2), 0.01, "safe") for s in range(40)]
    assert sum(at < math.inf for at in worse) <= 3


def test_readings_and_single_calls_tell_the_same():
    """A reading is many calls at once: same counts, same estimate; wealth differs by how blocks are cut only."""
    stream = calls(3, 12_000, 10, 1.5)
    single, whole = QuantileShift(known=P99), QuantileShift(known=P99)
    for first in range(0, len(stream), 500):
        sketches = {"baseline": Sketch(), "canary": Sketch()}
        for arm, value in stream[first : first + 500]:
            single.add(arm, value)
            sketches[arm].add(value)
        for arm, sketch in sketches.items():
            whole.add_bins(arm, sketch.bins)
    assert whole.n_matched == [10_800, 1200]
    assert whole.change == pytest.approx(single.change, rel=0.05)
    assert math.log(whole.harm.max_e_value) == pytest.approx(math.log(single.harm.max_e_value), rel=0.3)


def test_a_margin_in_milliseconds_moves_with_the_baseline():
    """A rise of 300 ms beyond a margin of 200 is not safe, one of 10 ms is."""
    for rise, proven in ((10.0, True), (300.0, False)):
        rng, test = random.Random(5), QuantileShift(0.95, 200.0, relative=False)
        for i in range(20_000):
            value = rng.lognormvariate(6.0, 0.3)
            test.add(*(("canary", value + rise) if i % 2 else ("baseline", value)))
        assert test.safe.fired(0.01) is proven


def test_bets_scale_with_the_quantile():
    """At p50 half of the calls exceed; a rise of 10 % is seen within a few hundred."""
    test = QuantileShift(0.5, 0.1, known=math.exp(6.0))
    assert fires_at(test, calls(6, 5000, 2, 1.2, 0.4)) < 1500


def test_a_new_step_of_the_ramp_is_compared_with_itself():
    """What waits is settled; the estimate goes on."""
    test = QuantileShift(known=P99)
    for _ in range(9):
        test.add("baseline", 500.0)
    test.split_changed()
    assert test.n_blocks == 0
    test.add("canary", 500.0)
    test.add("baseline", 500.0)
    assert test.n_matched == [1, 1]


def test_memory_is_bounded_by_the_tail():
    """Bins far below the quantile are kept as one; the estimate does not change."""
    test = QuantileShift()
    for arm, value in calls(7, 20_000, 2, sigma=2.0):
        test.add(arm, value)
    exact = sorted(v for arm, v in calls(7, 20_000, 2, sigma=2.0) if arm == "baseline")[9900]
    assert test.quantiles[0] == pytest.approx(exact, rel=0.03)
    assert all(len(arm.bins) < 700 for arm in test.arms)


def test_it_goes_on_bit_by_bit_after_a_restart():
    """State is JSON-safe and complete, in the middle of a block too."""
    first, second = QuantileShift(), QuantileShift()
    for i, (arm, value) in enumerate(calls(9, 6000, 10, 1.3)):
        assert first.add(arm, value) is second.add(arm, value)
        if i % 211 == 0:
            state = json.loads(json.dumps(second.to_state(), allow_nan=False))
            second = QuantileShift()
            second.load(state)
    assert first.to_state() == second.to_state()
    assert first.quantiles == second.quantiles


def test_what_makes_no_sense_is_refused():
    """A quantile outside (0, 1), a margin of nothing, a value that is no number; an empty reading is none."""
    for quantile, margin in ((1.0, 0.2), (0.99, 0.0)):
        with pytest.raises(ValueError, match="must be"):
            QuantileShift(quantile, margin)
    with pytest.raises(ValueError, match=r"NaN|nan"):
        QuantileShift().add("canary", math.nan)
    assert not QuantileShift().add_bins("canary", {})


def test_bins_keep_the_order_of_values():
    """Zero and less are in one bin below all others, huge values in one above."""
    values = (-1.0, 0.0, 1e-6, 2e-6, 1.0, 1.02, 5e9, 1e12)
    bins = [bin_of(value) for value in values]
    assert bins == sorted(bins)
    assert bins[0] == bins[2] < bins[3]


def test_a_quantile_of_another_time_of_day_proves_nothing():
    """What was known is a third of today's p99: q is a p87, and a canary of which 3 % of calls hang passes there."""
    for seed in range(6):
        rng, test = random.Random(seed), QuantileShift(known=P99 / 3.0)
        for arm, value in calls(seed, 8_000):
            hangs = arm == "canary" and rng.random() < 0.03  # its p99 is 39 % up, its p87 4 %
            test.add(arm, value * 5.0 if hangs else value)
            assert not test.safe.fired(0.01)
        assert test.threshold == pytest.approx(P99, rel=0.25), "and it is taken anew before the usual 5,000 calls"
