"""The sample ratio: exact under the expected split, whatever it is and however it changes."""

from __future__ import annotations

import json
import math
import random

import pytest

from evalpipe.stats.sample_ratio import ODDS, SampleRatio, _steps


def fires_at(seed, share, true, n=4000, alpha=0.0025):
    """Units until a wrong split is proven; infinite if it never is."""
    rng, test = random.Random(seed), SampleRatio()
    for i in range(n):
        arm = "canary" if rng.random() < true(i) else "baseline"
        if test.add(arm, share(i)) and test.fired(alpha):
            return i + 1
    return math.inf


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_every_bet_is_exactly_fair(share):
    """E[F] = 1 for each odds ratio at the expected share."""
    baseline, canary = _steps(share)
    for no, yes in zip(baseline, canary, strict=True):
        assert share * math.exp(yes) + (1 - share) * math.exp(no) == pytest.approx(1.0, abs=1e-12)
    assert len(baseline) == len(ODDS)


def test_the_expected_split_seldom_fires_also_while_it_changes():
    """Nominal 1 %, over a ramp from 1 to 50 %; more than five of 100 would happen in one of 1,800 such tests."""
    ramp = lambda i: (0.01, 0.05, 0.2, 0.5)[min(3, i // 500)]  # noqa: E731
    assert sum(fires_at(seed, ramp, ramp, 2500, alpha=0.01) < math.inf for seed in range(100)) <= 5


@pytest.mark.parametrize(
    ("share", "true", "most"), [(0.5, 0.55, 2500), (0.1, 0.13, 2500), (0.5, 0.4, 700), (0.5, 1, 40)]
)
def test_a_wrong_split_is_found(share, true, most):
    """Over and under, by little and by all."""
    found = sorted(fires_at(seed, lambda _: share, lambda _: true) for seed in range(9))
    assert found[4] <= most


def test_a_few_units_too_many_after_a_long_even_time_are_no_proof():
    """The mixture looks at the whole; it fires when the whole says so."""
    test = SampleRatio()
    for i in range(2000):
        test.add("canary" if i % 2 else "baseline", 0.5)
    for _ in range(20):
        test.add("canary", 0.5)
    assert not test.fired(0.0025)
    assert test.shares == pytest.approx((0.5, 1020 / 2020))


def test_units_of_no_known_share_are_counted_and_not_tested():
    """Where others split the traffic nobody knows what to expect."""
    test = SampleRatio()
    assert not any(test.add("canary", None) for _ in range(50))
    assert (test.counts, test.tested, test.e_value, test.shares) == ([0, 50], [0, 0], 1.0, (None, None))


def test_it_goes_on_bit_by_bit_after_a_restart():
    """State is JSON-safe and complete; the ceiling keeps it finite."""
    first, second = SampleRatio(), SampleRatio()
    for i in range(3000):
        arm = "canary" if i % 3 else "baseline"
        first.add(arm, 0.2)
        second.add(arm, 0.2)
        if i % 100 == 0:
            second = SampleRatio.from_state(json.loads(json.dumps(second.to_state(), allow_nan=False)))
    assert first.to_state() == second.to_state()
    assert math.isfinite(first.e_value)


@pytest.mark.parametrize(("arm", "share"), [("both", 0.5), ("canary", 0.0), ("canary", 1.0), ("baseline", math.nan)])
def test_what_makes_no_sense_is_refused(arm, share):
    """With a message that has the value."""
    with pytest.raises(ValueError, match="must be"):
        SampleRatio().add(arm, share)
