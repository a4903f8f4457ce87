"""The engine: its false alarms, its speed of detection, and that a restart changes nothing."""

from __future__ import annotations

import json
import math
import random
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalpipe.stats.matched_block import MatchedBlock
from evalpipe.stats.moments import Calibration

KNOWN = Calibration(mean=0.85, variance=0.056, count=300)


def fires_at(engine, arrivals, alpha=0.01):
    """Number of scores until the engine fires, looking after every score; None if it never does."""
    for n, (arm, value) in enumerate(arrivals, 1):
        if engine.add(arm, value) and engine.fired(alpha):
            return n
    return None


def test_the_engine_is_the_formula():
    """A transcription of the formulas in logarithms, for 1:1 arrivals, gives the same e-value and estimate."""
    rng = random.Random(5)
    engine = MatchedBlock(calibration=KNOWN)
    logs, m, s2, count, sums = [0.0] * 4, 0.85, 0.056, 300, [0.0, 0.0]
    told, due = (m, s2), 0
    for _ in range(700):
        x, y = rng.choice((0.5, 0.75, 1.0)), rng.choice((0.25, 0.5, 0.75, 1.0))
        engine.add("baseline", x)
        engine.add("canary", y)
        for i, f in enumerate((0.04, 0.06, 0.10, 0.20)):
            delta = f * told[0]
            pooled = told[0] - delta / 2
            lam = delta / 2 / (told[1] * pooled * (1 - pooled) / (told[0] * (1 - told[0])))
            lam = min(lam, 0.95 / (1 - pooled), 0.95 / pooled)
            logs[i] += math.log1p(-lam * (y - pooled)) + math.log1p(lam * (x - pooled))
        count, error = count + 1, x - m
        m, s2 = m + max(0.002, 1 / count) * error, s2 + max(0.001, 1 / count) * (error**2 - s2)
        if count >= due:
            told, due = (m, s2), count + min(count // 16, 32)
        sums = [sums[0] + x, sums[1] + y]
    expected = sum(w * math.exp(log) for w, log in zip((0.15, 0.50, 0.27, 0.08), logs, strict=True))
    assert engine.e_value == pytest.approx(expected, rel=1e-9)
    assert engine.drop == pytest.approx(1 - sums[1] / sums[0])
    assert engine.counts == engine.matched == (700, 700)
    assert engine.p_value == 1 / engine.max_e_value


@pytest.mark.parametrize(("every", "n", "runs"), [(2, 3000, 150), (10, 6000, 150)])
def test_equal_arms_seldom_fire_however_often_one_looks(scores, every, n, runs):
    """Nominal 1 %; more than six of 150 would happen in one of 700 such tests."""
    fired = sum(fires_at(MatchedBlock(calibration=KNOWN), scores(s, every, n)) is not None for s in range(runs))
    assert fired <= 6


@pytest.mark.parametrize(
    ("every", "drop", "low", "high"),
    [(2, 0.05, 1000, 1500), (10, 0.05, 2600, 3900), (2, 0.2, 110, 170), (10, 0.2, 310, 460)],
)
def test_a_drop_is_found_about_as_fast_as_can_be_known(scores, every, drop, low, high):
    """Median scores to detection; the limits ln(100)/KL are 1,320 and 3,550 for 5 %, 113 and 288 for 20 %."""
    found = [fires_at(MatchedBlock(calibration=KNOWN), scores(s, every, 20_000, drop)) for s in range(1000, 1120)]
    assert None not in found
    assert low <= median(found) <= high


def test_promotion_is_proven_for_an_equal_canary_and_not_for_one_at_the_margin(scores):
    """Against "worse by 5 % or more": median about 1,070 scores at 1:1 for an equal one; at exactly 5 % nominal 1 %."""
    equal = [fires_at(MatchedBlock(1, -0.05, calibration=KNOWN), scores(s, 2, 20_000)) for s in range(60)]
    worse = [fires_at(MatchedBlock(1, -0.05, calibration=KNOWN), scores(s, 2, 3_000, 0.05)) for s in range(80)]
    assert None not in equal
    assert 750 <= median(equal) <= 1450
    assert sum(n is not None for n in worse) <= 5


def test_a_ramp_with_drift_in_both_arms_fools_neither_test_nor_estimate():
    """Canary share 2 to 50 % while quality of both arms falls from .9 to .7: no false alarm, estimate near zero."""
    fired, estimates, pooled = 0, [], []
    for seed in range(30):
        rng = random.Random(seed)
        engine = MatchedBlock(calibration=KNOWN)
        n = 6000
        for i in range(n):
            arm = "canary" if rng.random() < (0.02, 0.1, 0.25, 0.5)[4 * i // n] else "baseline"
            engine.add(arm, float(rng.random() < 0.9 - 0.2 * i / n))
        fired += engine.fired(0.01)
        estimates.append(engine.drop)
        baseline, canary = engine.means
        pooled.append(1 - canary / baseline)
    assert fired <= 3
    assert abs(median(estimates)) < 0.02
    assert median(pooled) > 0.04, "the overall means do mislead here, or the test would show nothing"


def test_random_arrivals_cost_little(scores):
    """5 % drop at 1:1 with random order of arms: within a third more than evenly interleaved (1,268)."""
    found = []
    for seed in range(80):
        baselines = (v for arm, v in scores(seed, 2, 12_000, 0.05) if arm == "baseline")
        canaries = (v for arm, v in scores(seed + 500, 2, 12_000, 0.05) if arm == "canary")
        order = random.Random(seed).choices((("baseline", baselines), ("canary", canaries)), k=9_000)
        arrivals = ((arm, next(values, 1.0)) for arm, values in order)
        found.append(fires_at(MatchedBlock(calibration=KNOWN), arrivals) or 9_000)
    assert median(found) <= 1700


arrival = st.tuples(st.sampled_from(["baseline", "canary"]), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))


@settings(max_examples=60, deadline=None)
@given(st.lists(arrival, max_size=150), st.sampled_from([(-1, 0.0), (1, -0.05), (-1, 0.05)]), st.data())
def test_an_interrupted_run_ends_bit_by_bit_as_an_uninterrupted_one(arrivals, hypothesis, data):
    """The state goes through JSON text at arbitrary places."""
    whole, parts = MatchedBlock(*hypothesis), MatchedBlock(*hypothesis)
    cuts = data.draw(st.sets(st.integers(0, max(0, len(arrivals) - 1))))
    for i, (arm, value) in enumerate(arrivals):
        assert whole.add(arm, value) == parts.add(arm, value)
        if i in cuts:
            parts = MatchedBlock.from_state(json.loads(json.dumps(parts.to_state(), allow_nan=False)))
    assert whole.to_state() == parts.to_state()


def test_the_evidence_latches(scores):
    """A canary that recovers does not take back what was proven; the current e-value may fall."""
    engine = MatchedBlock()
    assert fires_at(engine, scores(1, 2, 2000, 0.3)) is not None
    at_fire = engine.max_e_value
    for i in range(600):
        engine.add("baseline", 0.5 + 0.25 * (i % 2))
        engine.add("canary", 1.0)
    assert engine.e_value < 1.0
    assert engine.max_e_value >= at_fire
    assert engine.fired(0.01)


def test_the_state_stays_small(scores):
    """After 5,000 scores: about thirty numbers and those that wait."""
    engine = MatchedBlock()
    fires_at(engine, scores(2, 10, 5_000), alpha=1e-12)
    assert len(json.dumps(engine.to_state())) < 1500


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_score_outside_its_range_is_refused(value):
    """And nothing of it stays behind."""
    engine = MatchedBlock()
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        engine.add("canary", value)
    assert engine.to_state() == MatchedBlock().to_state()


def test_nothing_is_claimed_before_there_is_evidence():
    """Unknown is None, and no evidence is 1."""
    engine = MatchedBlock()
    assert (engine.drop, engine.means, engine.e_value, engine.p_value) == (None, (None, None), 1.0, 1.0)


@pytest.mark.parametrize("bad", [{"mean": 0.0}, {"variance": 0.0}, {"count": 0}])
def test_a_calibration_that_makes_no_sense_is_refused(bad):
    """The message shows it."""
    with pytest.raises(ValueError, match="calibration"):
        Calibration(**bad)


def test_a_wrong_calibration_is_soon_outweighed(scores):
    """A prior of .3 instead of .85 delays detection of a 20 % drop, but by less than a factor of two."""
    wrong = Calibration(mean=0.3, variance=0.2)
    found = [fires_at(MatchedBlock(calibration=wrong), scores(s, 2, 5_000, 0.2)) for s in range(60)]
    assert None not in found
    assert median(found) < 2 * 146
