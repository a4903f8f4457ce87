"""The paired test: valid whatever the two answers have in common, and faster the more that is."""

from __future__ import annotations

import json
import random
from itertools import accumulate
from statistics import NormalDist, median

import pytest

from evalpipe.stats.paired_block import SHARES, PairedBlock

RUBRIC = (0.0, 0.25, 0.5, 0.75, 1.0)
BASE = (0.0202, 0.0398, 0.0887, 0.2224, 0.6289)
WORSE = (0.0300, 0.0533, 0.1067, 0.2416, 0.5684)
"""Means .85 and .8163; and .8075 after ``LOWER``."""
LOWER = (0.0332, 0.0571, 0.1116, 0.2452, 0.5529)
LATENT = {0.6: 0.70, 0.8: 0.88}
"""Correlations of the normal scores that give these of the rubric's."""


def pairs(seed, n, rho, law=LOWER):
    """Rubric scores of two answers, by a Gaussian copula."""
    rng, latent, normal = random.Random(seed), LATENT[rho], NormalDist()
    cuts = [[normal.inv_cdf(min(at, 1 - 1e-9)) for at in list(accumulate(p))[:-1]] for p in (BASE, law)]
    for _ in range(n):
        first = rng.gauss(0, 1)
        second = latent * first + (1 - latent**2) ** 0.5 * rng.gauss(0, 1)
        yield tuple(RUBRIC[sum(z > cut for cut in cut_at)] for z, cut_at in zip((first, second), cuts, strict=True))


def fires_at(test, stream, alpha=0.01):
    """Pairs until a test fires; a million if it never does."""
    for n, (x, y) in enumerate(stream, 1):
        test.add(x, y)
        if test.fired(alpha):
            return n
    return 10**6


def one_step(test, x, y):
    """Factors of one pair, from a test with some past: wealth is put at 1 before."""
    copy = PairedBlock(*test[0], **test[1])
    copy.load({**test[2], "products": [1.0] * len(SHARES), "e_value": 1.0})
    copy.add(x, y)
    return copy._products


def test_no_bet_wins_on_average_under_any_of_10000_random_joint_laws():
    """E[F] <= 1 exactly, over laws of any dependence with mean(y) on the null or inside; and no factor is below 0."""
    rng = random.Random(40)
    worst, least, n = -1.0, 1.0, 0
    while n < 10_000:
        direction, hi = rng.choice((-1, 1)), rng.choice((1.0, 4.0))
        reference = rng.choice((None, None, 0.5))
        points = [(hi * rng.random() ** 2, hi * rng.choice((0.0, 1.0, rng.random()))) for _ in range(5)]
        weights = [rng.expovariate(1.0) for _ in points]
        total = sum(weights)
        tau = rng.choice((0.0, 0.05, -0.05, -0.15))
        t = 1 + direction * tau
        gaps = [y - t * (x if reference is None else reference) for x, y in points]
        mean = sum(w * gap for w, gap in zip(weights, gaps, strict=True)) / total
        shift = mean + direction * rng.choice((0.0, rng.random()))
        made = (direction, tau), {"shift": shift, "hi": hi, "reference": reference, "effect": rng.choice((0.02, 0.3))}
        state = PairedBlock(*made[0], **made[1]).to_state()
        state |= {"variance": rng.random() ** 4, "mean": rng.random()}
        factors = [one_step((*made, state), x, y) for x, y in points]
        least = min(least, *map(min, factors))
        for i in range(len(SHARES)):
            worst = max(worst, sum(w * f[i] for w, f in zip(weights, factors, strict=True)) / total - 1)
            n += 1
    assert worst <= 1e-9
    assert least > 0.0


@pytest.mark.parametrize(("rho", "most"), [(0.6, 240), (0.8, 160)])
def test_a_drop_of_a_twentieth_takes_few_pairs(rho, most):
    """3,000 runs gave 236 and 151 pairs at alpha .01; here 300, so a margin of their noise."""
    found = [fires_at(PairedBlock(), pairs(seed, 1200, rho)) for seed in range(300)]
    assert median(found) <= most * 1.08
    assert sorted(found)[270] <= 3 * most


def test_equal_answers_seldom_fire():
    """Nominal 1 %; more than five of 100 would happen in one of 1,800 such tests."""
    assert sum(fires_at(PairedBlock(), pairs(s, 1200, 0.6, BASE)) < 10**6 for s in range(100)) <= 5


def test_no_harm_is_proven_for_equal_answers_and_not_for_a_drop_of_the_margin():
    """The other direction, with the margin as tau: relative, and as points."""
    for given in ({"tau": -0.05}, {"shift": -0.0425, "effect": 0.0425, "absolute": True}):
        equal = [fires_at(PairedBlock(1, **given), pairs(seed, 3000, 0.6, BASE)) for seed in range(20)]
        assert median(equal) < 600
        worse = [fires_at(PairedBlock(1, **given), pairs(seed, 1000, 0.6)) for seed in range(60)]
        assert sum(n < 10**6 for n in worse) <= 4


def test_comparisons_are_tested_against_a_tie():
    """Scores of 1, .5 and 0 of the canary's answer alone."""
    rng = random.Random(3)
    worse = [(0.0, rng.choices((0.0, 0.5, 1.0), (0.4, 0.4, 0.2))[0]) for _ in range(800)]
    even = [(0.0, rng.choices((0.0, 0.5, 1.0), (0.3, 0.4, 0.3))[0]) for _ in range(800)]
    assert fires_at(PairedBlock(reference=0.5), worse) < 500
    assert fires_at(PairedBlock(reference=0.5), even) == 10**6


def test_it_goes_on_bit_by_bit_after_a_restart():
    """State is JSON-safe and complete."""
    first, second = PairedBlock(), PairedBlock()
    for i, (x, y) in enumerate(pairs(1, 500, 0.6)):
        first.add(x, y)
        second.add(x, y)
        if i % 50 == 0:
            state = json.loads(json.dumps(second.to_state()))
            second = PairedBlock()
            second.load(state)
    assert first.to_state() == second.to_state()
    first.restart()
    assert first.e_value == first.max_e_value <= 1.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: PairedBlock(0),
        lambda: PairedBlock(1, -1.0),
        lambda: PairedBlock(effect=0.0),
        lambda: PairedBlock().add(0.5, 1.5),
    ],
)
def test_what_makes_no_sense_is_refused(call):
    """With a message that has the value."""
    with pytest.raises(ValueError, match=r"not|nothing"):
        call()
