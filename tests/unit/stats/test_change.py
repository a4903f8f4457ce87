"""The change detector: no bet gains where nothing has changed, false alarms are rare, drops are found."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalpipe.stats.change import (
    OVER,
    Limits,
    Run,
    fold,
    limits,
    mean_bets,
    settle,
    share_bets,
    share_limits,
)

sys.path.append(str(Path(__file__).parents[3] / "bench" / "detection"))

from stream_play import Scenario, Sums, made

RUBRIC = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
BASE = np.array([0.0202, 0.0398, 0.0887, 0.2224, 0.6289])
MEAN, VARIANCE = float(BASE @ RUBRIC), float(BASE @ RUBRIC**2 - (BASE @ RUBRIC) ** 2)


def tilted(mean):
    """The law on the rubric with that mean that is hardest to tell from ``BASE``."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        weights = BASE * np.exp(middle * RUBRIC)
        low, high = (middle, high) if weights @ RUBRIC / weights.sum() < mean else (low, middle)
    return weights / weights.sum()


def factors(bets, values):
    """F of each bet at each value."""
    return np.array([[1.0 + bet.stake * (value - bet.centre) for bet in bets] for value in values])


def alarms(bets, law, values, *, threshold, runs, n, seed):
    """Scores until each alarm, in many runs side by side that begin anew at each alarm: the total length over it."""
    rng, table = np.random.default_rng(seed), factors(bets, values)
    weights = np.array([bet.weight for bet in bets])
    sums, found = np.zeros((runs, len(bets))), 0
    for _ in range(n):
        sums = (sums + weights) * table[rng.choice(len(values), size=runs, p=law)]
        fired = sums.sum(axis=1) >= threshold
        found += int(fired.sum())
        sums[fired] = 0.0
    return runs * n / max(found, 1)


def first_alarms(bets, law, values, *, threshold, runs, seed, n=4000):
    """Scores until the first alarm of each run, all of them after the change."""
    rng, table = np.random.default_rng(seed), factors(bets, values)
    weights = np.array([bet.weight for bet in bets])
    sums, at = np.zeros((runs, len(bets))), np.full(runs, n)
    for i in range(n):
        sums = (sums + weights) * table[rng.choice(len(values), size=runs, p=law)]
        at = np.where((at == n) & (sums.sum(axis=1) >= threshold), i + 1, at)
    return at


def test_no_bet_gains_on_the_average_where_nothing_has_changed():
    """100,000 random laws in [0, 1], each with its mean in the limits of random bets: E[F] <= 1, exactly."""
    rng = random.Random(1)
    worst, least, nulls = 0.0, 1.0, 0
    draws = np.random.default_rng(2)
    for _ in range(2000):
        mean = rng.uniform(0.001, 0.999)
        variance = rng.uniform(0.0001, mean * (1 - mean))
        if rng.random() < 0.5:
            within = limits(mean, variance, rng.choice([None, 1000, 3000]), rng.choice([0.0, 0.01, 0.1]))
            bets = mean_bets(mean, variance, within, rng.choice(["down", "up", "both"]))
        else:
            within = share_limits(mean, rng.choice([None, 1000, 3000]), rng.choice([0.0, 0.1]))
            bets = share_bets(within, rng.choice(["down", "up", "both"]))
        stakes, centres = (np.array([getattr(bet, name) for bet in bets]) for name in ("stake", "centre"))
        values = draws.random((50, 6))
        values[:, 0], values[:, 1] = 0.0, 1.0
        law = draws.dirichlet(np.full(6, 0.4), 50)
        aim = within.low + (within.high - within.low) * draws.random(50)
        now = (law * values).sum(axis=1)
        toward = np.where(now > aim, 1.0 - aim / np.maximum(now, 1e-12), (aim - now) / np.maximum(1.0 - now, 1e-12))
        law *= (1.0 - toward)[:, None]
        law[:, 0] += np.where(now > aim, toward, 0.0)
        law[:, 1] += np.where(now > aim, 0.0, toward)
        f = 1.0 + stakes * (values[:, :, None] - centres)
        worst = max(worst, float((law[:, :, None] * f).sum(axis=1).max()))
        least = min(least, float(f.min()))
        nulls += 50
    assert nulls >= 100_000
    assert worst <= 1.0 + 1e-9
    assert least >= 0.05 - 1e-9


@pytest.mark.parametrize("direction", ["down", "both"])
def test_false_alarms_are_as_rare_as_promised(direction):
    """1.6 million scores with an alarm wanted in 4,000 at the least: about a third rarer."""
    bets = mean_bets(MEAN, VARIANCE, Limits(MEAN, MEAN), direction)
    length = alarms(bets, BASE, RUBRIC, threshold=4000, runs=400, n=4000, seed=3)
    assert 3800 <= length <= 7500


def test_false_alarms_on_a_share_are_as_rare_as_promised():
    """A share of 2 %, in both directions."""
    bets = share_bets(Limits(0.02, 0.02), "both")
    length = alarms(bets, [0.98, 0.02], [0.0, 1.0], threshold=4000, runs=400, n=4000, seed=4)
    assert 3800 <= length <= 9000


@pytest.mark.parametrize(("drop", "most"), [(0.05, 530), (0.10, 170), (0.20, 55)])
def test_drops_are_found_nearly_as_fast_as_by_a_test_tuned_to_them(drop, most):
    """Mean scores until the alarm, from the first score on, for a false one in 100,000; the bench has the CUSUM's."""
    bets = mean_bets(MEAN, VARIANCE, Limits(MEAN, MEAN), "down")
    law = tilted(MEAN * (1.0 - drop))
    found = first_alarms(bets, law, RUBRIC, threshold=100_000, runs=300, seed=5, n=2500)
    assert found.mean() <= most


@pytest.mark.parametrize("passes", [1.0, 0.999])
@pytest.mark.parametrize(("broken", "most"), [(0.05, 350), (0.20, 60)])
def test_answers_that_break_are_found_where_all_were_alike(passes, broken, most):
    """Stakes made for scores that vary little would be lost on those that stay: 5 % broken were found in 20,000."""
    variance = passes * (1.0 - passes)
    bets = mean_bets(passes, variance, limits(passes, variance, 3000, 0.01), "down")
    share = passes * (1.0 - broken)
    found = first_alarms(bets, [1.0 - share, share], [0.0, 1.0], threshold=100_000, runs=200, seed=8, n=4 * most)
    assert found.mean() <= most


def test_scores_that_lie_close_together_and_all_move_are_found_nearly_as_soon_as_ever():
    """The bets on broken ones have less than half of the weight: that costs half a score of twelve."""
    bets = mean_bets(0.8, 0.0025, limits(0.8, 0.0025, 3000, 0.01), "down")
    found = first_alarms(bets, [0.5, 0.5], [0.71, 0.81], threshold=100_000, runs=200, seed=9, n=500)
    assert found.mean() <= 125


def test_a_batch_is_worth_what_its_scores_are_worth_one_by_one():
    """Up to where in the batch the sums began: the batch counts all of them for all of it."""
    bets = mean_bets(MEAN, VARIANCE, Limits(MEAN, MEAN), "down")
    whole = fold([1.0, 2.0, 3.0], bets, [(0.5, 2), (1.0, 1)])
    product = [math.prod(1.0 + bet.stake * (x - bet.centre) for x in (0.5, 0.5, 1.0)) for bet in bets]
    expected = [(old + 3 * bet.weight) * f for old, bet, f in zip([1.0, 2.0, 3.0], bets, product, strict=True)]
    assert whole == pytest.approx(expected)
    assert fold([], bets, []) == [0.0, 0.0, 0.0]


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 10**6)), max_size=20), st.floats(1, 50))
@settings(max_examples=200)
def test_sums_stay_finite_and_small_json(counts, effect):
    """However large the batch: they are cut to the threshold, in proportion."""
    bets = mean_bets(MEAN, VARIANCE, limits(MEAN, VARIANCE, 3000, 0.01), "both")
    sums, changed = settle(fold([5e4, 3e4, 1.0, 0.0, 0.0, 9e4], bets, counts, effect), 1e5, False)
    assert all(0.0 <= each < math.inf for each in sums)
    assert sum(sums) <= 1e5 * (1 + 1e-9)
    assert json.loads(json.dumps(sums)) == sums
    assert isinstance(changed, bool)


def test_scores_that_hang_together_do_not_raise_alarms():
    """Every score five times: without the design effect there are several times more alarms than promised."""
    bets = mean_bets(MEAN, VARIANCE, Limits(MEAN, MEAN), "down")
    law, rng = np.cumsum(BASE), np.random.default_rng(6)
    found = {1.0: 0, 5.0: 0}
    values = RUBRIC[np.searchsorted(law / law[-1], rng.random(30_000))]
    for effect in found:
        sums = []
        for value in values:
            sums, changed = settle(fold(sums, bets, [(float(value), 5)], effect), 3000, False)
            if changed:
                found[effect] += 1
                sums = []
    assert found[5.0] <= 60
    assert found[1.0] >= 200


def test_a_change_is_over_when_the_evidence_has_fallen_to_a_thousandth():
    """Not before; then the sums begin anew."""
    assert settle([60.0, 60.0], 100.0, False) == ([50.0, 50.0], True)
    assert settle([50.0, 0.0], 100.0, True) == ([50.0, 0.0], True)
    assert settle([OVER * 50.0, OVER * 49.0], 100.0, True) == ([0.0, 0.0], False)
    assert settle([OVER * 50.0, OVER * 49.0], 100.0, False)[1] is False


def test_a_run_has_the_mean_since_the_change():
    """It begins where the evidence of a change begins, and ends where there is none."""
    bet = mean_bets(MEAN, VARIANCE, Limits(MEAN, MEAN), "down")[0]
    run = Run()
    for _ in range(50):
        run = run.after(bet, [(1.0, 5)])
    assert run == Run()
    assert run.mean is None
    for _ in range(50):
        run = run.after(bet, [(0.5, 1), (0.75, 1)])
    assert (run.n, run.mean) == (100, 0.625)


def test_a_baseline_is_as_good_as_it_is_large():
    """The margin is the tolerance, or the baseline's own error where that is more; for shares by Wilson."""
    assert limits(0.85, 0.05, None, 0.01) == pytest.approx((0.8415, 0.8585))
    assert limits(0.85, 0.05, 3000, 0.01) == pytest.approx((0.8415, 0.8585))
    assert limits(0.85, 0.05, 500, 0.01).low < 0.836
    assert share_limits(0.0, 3000, 0.1) == pytest.approx((0.0, 0.0009), abs=1e-5)
    assert share_limits(0.02, 10**7, 0.1) == pytest.approx((0.018, 0.022))


@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_a_baseline_at_the_end_of_the_scale_gives_bets_that_hold(mean):
    """All 0 or all 1: the bets stay finite and no factor is negative."""
    for bets in (
        mean_bets(mean, 0.0, limits(mean, 0.0, 1000, 0.01), "both"),
        share_bets(share_limits(mean, 1000, 0.1), "both"),
    ):
        assert (factors(bets, [0.0, 1.0]) >= 0.0499).all()
        assert np.isfinite(fold([], bets, [(0.0, 100), (1.0, 100)])).all()


def test_the_bench_plays_what_is_shipped():
    """The same sums, for one stream among many, score by score and in batches."""
    scenario = Scenario("drop", 1, "rubric", -0.1, tolerance=0.01, effect=2.0)
    law = scenario.usual
    mean, variance = float(law @ RUBRIC), float(law @ (RUBRIC - law @ RUBRIC) ** 2)
    bets = mean_bets(mean, variance, limits(mean, variance, None, 0.01), "down")
    played = Sums(*made(scenario, law, None), 1e5)
    symbols = np.random.default_rng(7).choice(5, size=(60, 3), p=law)
    state, shipped = played.start(3), []
    for size in (1, 1, 8, 50):
        state, _ = played.step(state, symbols[:size], size, None)
        shipped = fold(shipped, bets, [(float(x), 1) for x in RUBRIC[symbols[:size, 1]]], 2.0)
        assert state[1] == pytest.approx(shipped)
