"""The guarantee behind every decision: no bet has a positive expectation under the null."""

from __future__ import annotations

import random

import pytest

from evalpipe.stats.betting import WEIGHTS, Bets, block_factors
from evalpipe.stats.matching import Block

TAUS = (-0.05, 0.0, 0.02, 0.05, 0.15)


def test_no_bet_wins_on_average_under_any_of_120000_random_nulls():
    """E[F] <= 1 exactly: a factor is affine in each independent score, so its expectation is its value at the means."""
    rng = random.Random(20)
    worst, n = 0.0, 0
    while n < 120_000:
        direction, tau, hi = rng.choice((-1, 1)), rng.choice(TAUS), rng.choice((1.0, 1.0, 1.0, 10.0))
        t = 1 + direction * tau
        mean_x = hi * rng.random() ** rng.choice((0.2, 1.0, 3.0))
        limit = t * mean_x
        if direction < 0:
            if limit > hi:
                continue
            mean_y = limit if rng.random() < 0.5 else rng.uniform(limit, hi)
        else:
            limit = min(limit, hi)
            mean_y = limit if rng.random() < 0.5 else rng.uniform(0, limit)
        centre = hi * min(1.0, max(1e-3, rng.choice((rng.random(), mean_x / hi + rng.gauss(0, 0.02)))))
        variance = hi * hi * max(1e-6, rng.choice((rng.random() * 0.25, rng.random() * 0.01)))
        block = Block([mean_x] * rng.choice((1, 1, 2, 5, 9, 20)), mean_y, rng.choice((1, 1, 1, 4)))
        worst = max(worst, *(f - 1.0 for f in block_factors(block, centre, variance, direction, tau, hi)))
        n += 1
    assert worst <= 1e-9


def test_no_bet_can_lose_more_than_it_has():
    """Factors stay positive at the extreme scores, which is where an affine function has its minimum."""
    rng = random.Random(21)
    for _ in range(20_000):
        direction, tau = rng.choice((-1, 1)), rng.choice(TAUS)
        block = Block([rng.choice((0.0, 1.0)) for _ in range(rng.randint(1, 9))], rng.choice((0.0, 1.0)), 1)
        factors = block_factors(block, max(1e-3, rng.random()), rng.choice((1e-6, 0.01, 0.25)), direction, tau)
        assert min(factors) > 0.0


def test_the_e_value_is_the_weighted_sum_of_the_products():
    """Three blocks by hand."""
    bets, products = Bets(), [1.0] * 4
    for block in (Block([0.75], 0.5, 1), Block([1.0, 0.5], 0.25, 1), Block([0.75], 1.0, 3)):
        bets.update(block, 0.8, 0.05)
        products = [p * f for p, f in zip(products, block_factors(block, 0.8, 0.05, -1, 0.0), strict=True)]
        assert bets.e_value == pytest.approx(sum(w * p for w, p in zip(WEIGHTS, products, strict=True)))


def test_a_restart_keeps_losses_and_gives_up_wins():
    """Wealth after a restart is at most 1 and at most what it was."""
    rich, poor = Bets(), Bets()
    for _ in range(30):
        rich.update(Block([1.0], 0.0, 1), 0.85, 0.06)
        poor.update(Block([0.0], 1.0, 1), 0.85, 0.06)
    poor_before = poor.e_value
    assert rich.fired(0.01)
    rich.restart()
    poor.restart()
    assert (rich.e_value, rich.max_e_value, rich.fired(0.01)) == (1.0, 1.0, False)
    assert poor.e_value == poor_before < 1.0


def test_wealth_never_leaves_the_floats():
    """Hopeless canaries for very long: the e-value stops growing and stays JSON-safe."""
    bets = Bets()
    for _ in range(20_000):
        bets.update(Block([1.0], 0.0, 1), 0.95, 1e-6)
    assert 1e299 < bets.e_value <= 1e300


@pytest.mark.parametrize(("direction", "tau", "hi"), [(0, 0.0, 1.0), (-1, 1.0, 1.0), (1, -1.5, 1.0), (-1, 0.0, 0.0)])
def test_a_hypothesis_that_makes_no_sense_is_refused(direction, tau, hi):
    """With a message that says which value."""
    with pytest.raises(ValueError, match=r"direction|tau|hi"):
        Bets(direction, tau, hi)
