"""The guarantee behind every decision: no bet has a positive expectation under the null."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from evalpipe.stats.betting import EFFECTS, RARE_EFFECTS, WEIGHTS, Bets, Residuals, rarer
from evalpipe.stats.matching import Block

N = 160_000
FAMILIES = (EFFECTS, (0.08, 0.15, 0.30, 0.60), RARE_EFFECTS, (0.004, 0.008, 0.016, 0.04), (0.3, 0.6, 0.9, 2.0))
UNITS = ("mean", "one", "rare")


def nulls(rng):
    """``N`` random hypotheses with a pair of means on or inside the null, block sizes, and bets' centre and spread."""
    d = rng.choice([-1, 1], N)
    tau = rng.uniform(-0.05, 0.15, N) * rng.choice([0, 1, 1], N)
    shift = rng.uniform(-0.2, 0.2, N) * rng.choice([0, 0, 1], N)
    hi = rng.choice([1.0, 1.0, 1.2, 10.0], N)
    kb, kc = rng.choice([1, 1, 2, 5, 9, 20, 99], N), rng.choice([1, 1, 1, 4, 30], N)
    t = 1.0 + d * tau
    mean_x = hi * rng.random(N) ** rng.choice([0.2, 1.0, 3.0], N)
    edge = t * mean_x - shift  # the canary's mean where the null begins
    inside = np.where(d < 0, edge + (hi - edge) * rng.random(N), edge * rng.random(N))
    mean_y = np.where(rng.random(N) < 0.6, edge, inside)
    m = np.clip(np.where(rng.random(N) < 0.5, rng.random(N) * hi, mean_x * rng.normal(1, 0.05, N)), 1e-3 * hi, hi)
    s2 = hi * hi * np.maximum(1e-6, rng.random(N) * rng.choice([0.25, 0.01], N))
    family, unit = rng.integers(0, len(FAMILIES), N), rng.integers(0, len(UNITS), N)
    slack = np.stack([rng.random(N) * rng.choice([0, 1], N) for _ in range(4)])
    possible = (mean_y >= 0.0) & (mean_y <= hi)
    values = (d, tau, shift, hi, kb, kc, mean_x, mean_y, m, s2, family, unit)
    return [value[possible] for value in values], slack[:, possible]


def designs(d, tau, shift, hi, kb, kc, m, s2, family, unit, slack):
    """The formulas of the module for all at once: (4, n) arrays A, L, B, S."""
    t = 1.0 + d * tau
    up_y, down_y, up_x, down_x = slack
    share = m / hi
    scale = np.choose(unit, [m, np.ones_like(m), np.clip(np.minimum(share, 1 - share), 0.002, 0.1) * hi])
    effects = np.array(FAMILIES)[family].T
    canary = t * m - shift
    delta = np.maximum(np.minimum(effects * scale, 0.98 * np.where(d < 0, canary, hi - canary)), 0.0)
    size = 1.0 / (kb + t * t * kc)
    b = np.clip(m + d * delta * t * kc * size, 1e-3 * hi, (1 - 1e-3) * hi)
    c = t * b - shift
    gap = delta * kb * size
    v = s2 * np.maximum(c * (hi - c) / np.maximum(m * (hi - m), 1e-3 * hi * hi), 0.1)
    lam = gap / (v / kc + gap * gap * (1 - 1 / kc))
    c_y = np.where(d < 0, np.maximum(hi - c + up_y, down_y), np.maximum(c + down_y, up_y))
    c_x = np.where(d < 0, np.maximum(b + down_x, up_x), np.maximum(hi - b + up_x, down_x))
    lam = np.where(lam * c_y > 0.95, 0.95 / np.where(c_y > 0, c_y, 1.0), lam)
    lam = np.where(lam * t * c_x > 0.95 * kb, 0.95 * kb / (t * c_x), lam)
    stake, part = d * lam, -d * lam * t / kb
    return 1.0 - stake * c, stake, 1.0 - part * b, part


def bets_of(d, tau, shift, hi, family, unit):
    """The shipped bets of one hypothesis."""
    return Bets(int(d), float(tau), float(hi), effects=FAMILIES[family], unit=UNITS[unit], shift=float(shift))


def test_no_bet_wins_on_average_under_any_of_100000_random_nulls():
    """E[F] <= 1 exactly: F is affine in each independent score, so its expectation is its value at the means."""
    values, slack = nulls(np.random.default_rng(20))
    d, tau, shift, hi, kb, kc, mean_x, mean_y, m, s2, family, unit = values
    assert len(d) >= 100_000
    a, stake, b, part = designs(d, tau, shift, hi, kb, kc, m, s2, family, unit, slack)
    expected = (a + stake * mean_y) * (b + part * mean_x) ** kb
    assert expected.max() <= 1.0 + 1e-9
    assert (expected > 1.0 - 1e-6).any(), "the bound is met with equality somewhere, or the test would show nothing"
    for i in range(2_000):
        bets = bets_of(d[i], tau[i], shift[i], hi[i], family[i], unit[i])
        shipped = bets.design(int(kb[i]), int(kc[i]), float(m[i]), float(s2[i]), tuple(slack[:, i].tolist()))
        ours = [(a[j, i], stake[j, i], b[j, i], part[j, i]) for j in range(4)]
        assert np.allclose(shipped, ours, rtol=1e-9, atol=1e-12)


def test_the_factors_of_a_block_are_the_design_at_its_scores():
    """The shipped scalar code at the means of random nulls: never above 1 either."""
    values, _ = nulls(np.random.default_rng(22))
    for d, tau, shift, hi, kb, kc, mean_x, mean_y, m, s2, family, unit in zip(
        *(v[:3_000] for v in values), strict=True
    ):
        bets = bets_of(d, tau, shift, hi, family, unit)
        block = Block([float(mean_x)] * int(kb), float(mean_y), int(kc))
        factors = bets.factors(block, float(m), float(s2))
        assert max(factors) <= 1.0 + 1e-9
        design = bets.design(int(kb), int(kc), float(m), float(s2))
        assert factors == pytest.approx([(a + s * mean_y) * (b + p * mean_x) ** kb for a, s, b, p in design])


def test_no_bet_wins_on_average_with_a_control_variate():
    """The moved scores and the rests are independent: E is the product at their means, which add up to the scores'."""
    rng = random.Random(23)
    worst = 0.0
    for _ in range(20_000):
        d, tau = rng.choice((-1, 1)), rng.choice((-0.05, 0.0, 0.1))
        t, b, p_x, p_y = 1 + d * tau, rng.random(), rng.random(), rng.random()
        mean_x, k, kc = rng.random(), rng.choice((1, 2, 9)), rng.choice((1, 4))
        edge = min(t * mean_x, 1.0)
        mean_y = edge if rng.random() < 0.6 else (rng.uniform(edge, 1.0) if d < 0 else rng.uniform(0.0, edge))
        if d < 0 and t * mean_x > 1.0:
            continue
        rest_x, rest_y = b * (rng.random() - p_x), b * (rng.random() - p_y)  # mean of b (g - p): any signal mean
        slack = (b * p_y, b * (1 - p_y), b * p_x, b * (1 - p_x))
        block = Block([mean_x - rest_x] * k, mean_y - rest_y, kc)
        factors = Bets(d, tau).controlled_factors(
            block, max(1e-3, rng.random()), rng.choice((1e-4, 0.02, 0.25)), Residuals(rest_y, [rest_x] * k, slack)
        )
        worst = max(worst, *(f - 1.0 for f in factors))
    assert worst <= 1e-9


def test_no_bet_can_lose_more_than_it_has():
    """Factors stay positive at the extreme scores, which is where an affine function has its minimum."""
    rng = random.Random(21)
    for _ in range(10_000):
        d, shift = rng.choice((-1, 1)), rng.choice((0.0, 0.0, 0.05, -0.1))
        bets = Bets(
            d, rng.choice((-0.05, 0.0, 0.15)), effects=rng.choice(FAMILIES), unit=rng.choice(UNITS), shift=shift
        )
        mean = rng.uniform(0.11, 0.89)
        block = Block(
            [rng.choice((0.0, 1.0)) for _ in range(rng.randint(1, 9))], rng.choice((0.0, 1.0)), rng.choice((1, 3))
        )
        assert min(bets.factors(block, mean, rng.choice((1e-6, 0.01, 0.25)))) > 0.0


def test_for_zero_one_scores_a_bet_is_the_likelihood_ratio():
    """1:1, baseline .9, canary .72: against the pooled .81, the nearest of all pairs of equal means."""
    (*_, (a, stake, b, part)) = Bets().design(1, 1, 0.9, 0.09)
    assert [a, a + stake] == pytest.approx([0.28 / 0.19, 0.72 / 0.81])
    assert [b, b + part] == pytest.approx([0.10 / 0.19, 0.90 / 0.81])


def test_the_e_value_is_the_weighted_sum_of_the_products():
    """Three blocks by hand."""
    bets, products = Bets(), [1.0] * 4
    for block in (Block([0.75], 0.5, 1), Block([1.0, 0.5], 0.25, 1), Block([0.75], 1.0, 3)):
        bets.update(block, 0.8, 0.05)
        products = [p * f for p, f in zip(products, Bets().factors(block, 0.8, 0.05), strict=True)]
        assert bets.e_value == pytest.approx(sum(w * p for w, p in zip(WEIGHTS, products, strict=True)))


def test_bets_go_on_from_their_state():
    """Absolute margin, other effects and weights: JSON between every two blocks changes nothing."""
    whole = Bets(1, effects=RARE_EFFECTS, weights=(0.25,) * 4, unit="rare", shift=0.05)
    parts, rng = Bets.from_state(json.loads(json.dumps(whole.to_state()))), random.Random(4)
    for _ in range(50):
        block, mean = Block([rng.random(), rng.random()], rng.random(), 1), 0.1 + 0.1 * rng.random()
        whole.update(block, mean, 0.05)
        parts.update(block, mean, 0.05)
        parts = Bets.from_state(json.loads(json.dumps(parts.to_state())))
    assert whole.to_state() == parts.to_state()


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
    assert 1e298 < bets.e_value <= 1e300


def test_effects_on_a_rate_are_multiples_of_the_rarer_outcome():
    """And points once it is common."""
    assert [rarer(rate) for rate in (0.0, 0.02, 0.5, 0.97, 1.0)] == pytest.approx([0.002, 0.02, 0.1, 0.03, 0.002])


@pytest.mark.parametrize(
    ("positional", "named"),
    [
        ((0, 0.0, 1.0), {}),
        ((-1, 1.0, 1.0), {}),
        ((1, -1.5, 1.0), {}),
        ((-1, 0.0, 0.0), {}),
        ((), {"effects": (0.1, 0.2, 0.3, 0.0)}),
        ((), {"weights": (0.5, 0.5, 0.5, 0.0)}),
    ],
)
def test_a_hypothesis_that_makes_no_sense_is_refused(positional, named):
    """With a message that says which value."""
    with pytest.raises(ValueError, match=r"direction|tau|hi|effects|weights"):
        Bets(*positional, **named)
