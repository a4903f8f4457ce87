"""A second engine, written from the formulas alone, decides as the shipped fold does: score by score, at the same one.

It shares no code with ``evalpipe.stats``: a mistake would have to be made twice in the same way.
"""

from __future__ import annotations

import itertools
import math
from datetime import UTC, datetime

import numpy as np
import pytest

from evalpipe.rollout.backtest import rehearse
from evalpipe.rollout.inputs import Evidence
from evalpipe.rollout.plan import Gate, RolloutPlan
from evalpipe.stats.betting import Bets
from evalpipe.stats.matching import Block
from evalpipe.stats.moments import Calibration

START = datetime(2026, 1, 1, tzinfo=UTC)
RUBRIC = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
WEIGHTS = (0.15, 0.50, 0.27, 0.08)
EFFECTS = (0.8, 1.2, 2.0, 4.0)


def drawn(n):
    """The n-th number of SplitMix64 with seed 0, in [0, 1)."""
    state = n * 0x9E3779B97F4A7C15 % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ state >> shift) * factor % 2**64
    return (state ^ state >> 31) / 2**64


class Second:
    """Matching, moments, bets, estimate and both keys of one quality gate, in the words of the docstrings."""

    def __init__(self, gate) -> None:
        self.gate = gate
        self.sign = -1 if gate.direction == "drop" else 1
        known = gate.calibration
        self.mean, self.variance, self.count = (known.mean, known.variance, known.count) if known else (0.85, 0.1, 10)
        self.told, self.due = (self.mean, self.variance), 0
        self.waiting, self.arrivals, self.share = {"baseline": [], "canary": []}, 0, 0.5
        self.harm, self.safe = np.ones(4), np.ones(4)
        self.most_harm = self.most_safe = 1.0
        self.sums, self.n_canary, self.units = [0.0, 0.0, 0.0], 0, set()

    def block_of(self, arm, score, weight):
        """Who is compared now: baselines and canaries; None while somebody has to wait."""
        self.arrivals += 1
        most = (self.gate.max_weights or (weight, weight))[arm == "canary"]
        if weight < most and drawn(self.arrivals) >= weight / most:
            return None
        self.waiting[arm] = [*self.waiting[arm], score][-256:]
        gain = 0.005 if self.arrivals > 198 else 1 / (self.arrivals + 2)
        self.share += gain * ((arm == "canary") - self.share)
        few, many = ("canary", "baseline") if self.share <= 0.5 else ("baseline", "canary")
        minority = min(self.share, 1 - self.share)
        wanted = max(1, math.floor(0.7 * (1 - minority) / minority))
        if not self.waiting[few] or len(self.waiting[many]) < wanted:
            return None
        taken = len(self.waiting[many]) if len(self.waiting[few]) == 1 else wanted
        sides = {few: self.waiting[few][:1], many: self.waiting[many][:taken]}
        self.waiting = {few: self.waiting[few][1:], many: self.waiting[many][taken:]}
        return np.array(sides["baseline"]), np.array(sides["canary"])

    def factors(self, sign, ratio, shift, xs, ys):
        """F of the four bets on the null sign (mean(y) - ratio mean(x) + shift) <= 0."""
        (m, s2), kb, kc = self.told, len(xs), len(ys)
        unit = m if self.gate.relative else 1.0
        room = ratio * m - shift if sign < 0 else 1.0 - ratio * m + shift
        effects = np.clip(np.array(EFFECTS) * self.gate.margin * unit, 0.0, max(0.98 * room, 0.0))
        b = np.clip(m + sign * effects * ratio * kc / (kb + ratio**2 * kc), 1e-3, 1 - 1e-3)
        c = ratio * b - shift
        gap = effects * kb / (kb + ratio**2 * kc)
        spread = s2 * np.maximum(c * (1 - c) / max(m * (1 - m), 1e-3), 0.1)
        bet = gap / (spread / kc + gap**2 * (1 - 1 / kc))
        risk_y, risk_x = (1 - c, b) if sign < 0 else (c, 1 - b)
        bet = np.where(bet * risk_y > 0.95, 0.95 / np.where(risk_y > 0, risk_y, 1.0), bet)
        bet = np.minimum(bet, 0.95 * kb / (ratio * risk_x))
        return (1 + sign * bet * (ys.mean() - c)) * np.prod(
            1 - sign * ratio * bet[:, None] / kb * (xs[None, :] - b[:, None]), axis=1
        )

    def learn(self, xs):
        """Mean and variance of the baselines so far; they are told after every sixteenth more."""
        for x in xs:
            self.count += 1
            error = x - self.mean
            self.mean += error * max(1 / self.count, 0.002)
            self.variance += (error**2 - self.variance) * max(1 / self.count, 0.001)
        if self.count >= self.due:
            self.due = self.count + min(max(self.count // 16, 1), 32)
            self.told = min(max(self.mean, 1e-3), 1.0), max(self.variance, 1e-6)

    def add(self, arm, score, weight, unit):
        """``harmed`` or ``proven`` if it is so with this score, else ""."""
        if unit in self.units:
            return ""
        self.units.add(unit)
        block = self.block_of(arm, score, weight)
        if block is None:
            return ""
        (xs, ys), margin = block, self.gate.margin
        relative, sign = self.gate.relative, self.sign
        beyond = (1 + sign * margin, 0.0) if relative else (1.0, -sign * margin)
        self.harm = self.harm * self.factors(sign, 1.0, 0.0, xs, ys)
        self.safe = self.safe * self.factors(-sign, *beyond, xs, ys)
        self.most_harm = max(self.most_harm, float(self.harm @ WEIGHTS))
        self.most_safe = max(self.most_safe, float(self.safe @ WEIGHTS))
        weight = 1 / (1 / len(xs) + 1 / len(ys))
        self.sums = [s + weight * v for s, v in zip(self.sums, (xs.mean(), ys.mean(), 1.0), strict=True)]
        self.n_canary += len(ys)
        self.learn(xs)
        return self.where()

    def where(self):
        """Harm needs evidence and an estimate, and 30 canaries unless it is four margins."""
        baseline, canary, weight = self.sums
        unit = baseline if self.gate.relative else weight
        margins = self.sign * (canary - baseline) / unit / self.gate.margin + 1e-9 if unit else -math.inf
        enough = 0.75 if self.n_canary >= 30 else 4.0 if self.n_canary >= 5 else math.inf
        if self.most_harm >= 1 / self.gate.alpha and margins >= enough:
            return "harmed"
        return "proven" if self.most_safe >= 1 / self.gate.advance_alpha and self.n_canary >= 30 else ""


def decided(gate, stream):
    """By the second engine: rollback and its place if it comes to that, else the first advance, else a hold."""
    engine, advanced = Second(gate), None
    for place, piece in enumerate(stream):
        found = engine.add(piece.arm, piece.value, piece.weight, piece.unit)
        if found == "harmed":
            return "rollback", place
        if found == "proven" and advanced is None:
            advanced = place
    return ("hold", None) if advanced is None else ("advance", advanced)


def streams():
    """Rubric and binary scores, five splits, drift, users with several scores, unequal weights, drops and rises."""
    shares = (0.5, 0.1, 0.02, 0.9, (0.02, 0.1, 0.5, 0.9))
    for seed, (share, drop) in enumerate(itertools.product(shares * 3, (0.0, 0.03, 0.06, 0.12, 0.25, -0.1))):
        rng = np.random.default_rng([31, seed])
        n, binary = 1_200, seed % 2 == 0
        canary = rng.random(n) < (np.repeat(share, n // 4) if isinstance(share, tuple) else share)
        mean = (0.9 - 0.1 * (seed % 3 == 0) * np.arange(n) / n) * np.where(canary, 1.0 - drop, 1.0)
        scores = rng.random(n) < mean if binary else RUBRIC[rng.binomial(4, np.minimum(mean, 1.0))]
        units = rng.integers(0, 800, n) if seed % 4 == 1 else np.arange(n)
        weights = np.where(rng.random(n) < 0.5, 1.0, 3.0) if seed % 5 == 2 else np.ones(n)
        yield (
            Gate(
                "quality",
                "quality",
                direction="rise" if drop < 0.0 else "drop",
                margin=(0.05, 0.1)[seed % 7 == 0],
                relative=seed % 3 != 1,
                alpha=(0.0025, 0.1)[seed % 2],
                advance_alpha=0.1,
                calibration=Calibration(0.9, 0.06, 300) if seed % 6 < 2 else None,
                max_weights=(3.0, 3.0) if seed % 5 == 2 else None,
            ),
            [
                Evidence(i, START, "canary" if c else "baseline", f"user {u}", "quality", float(y), float(w))
                for i, (c, u, y, w) in enumerate(zip(canary, units, scores, weights, strict=True))
            ],
        )


def test_the_shipped_fold_decides_as_a_second_engine_does_at_the_same_score():
    """Ninety random rollouts, of which many are rolled back, many advance and some do neither."""
    found = {"rollback": 0, "advance": 0, "hold": 0}
    for gate, stream in streams():
        plan = RolloutPlan("r", "s", "baseline", "canary", (gate,))
        shipped = rehearse(plan, iter(stream), START).decision
        action, place = decided(gate, stream)
        assert (shipped.action, shipped.evidence_seq if place is not None else None) == (action, place)
        found[action] += 1
    assert min(found.values()) >= 10


def two_points(rng, mean, hi):
    """A law on [0, hi] with this mean: two scores with their probabilities."""
    low, high = mean * rng.choice([0.0, rng.random()]), hi - (hi - mean) * rng.choice([0.0, rng.random()])
    up = (mean - low) / (high - low) if high > low else 1.0
    return (low, 1.0 - up), (high, up)


def a_null(rng, hi):
    """A hypothesis and means of both arms at its edge or inside it; None where there are none."""
    sign, tau, shift = int(rng.choice([-1, 1])), rng.choice([0, -0.05, 0.15]), hi * rng.choice([0, 0, 0.02, -0.02])
    mean_x = hi * rng.choice([rng.random(), rng.random() ** 6, 1 - rng.random() ** 6])
    edge = (1 + sign * tau) * mean_x - shift
    if not 0.0 <= edge <= hi:
        return None
    mean_y = edge if rng.random() < 0.7 else rng.uniform(edge, hi) if sign < 0 else rng.uniform(0, edge)
    bets = Bets(sign, float(tau), hi, unit=str(rng.choice(["mean", "one", "rare"])), shift=float(shift))
    return bets, mean_x, mean_y


@pytest.mark.parametrize("hi", [1.0, 0.3, 250.0])
def test_no_factor_wins_on_average_over_all_outcomes_of_two_point_laws(hi):
    """All outcomes of a block are enumerated, whatever laws its scores have and wherever the bets are centred."""
    rng = np.random.default_rng(33)
    worst, least, tight = -1.0, 1.0, 0
    for found in (a_null(rng, hi) for _ in range(500)):
        if found is None:
            continue
        (bets, mean_x, mean_y), kb, kc = found, int(rng.integers(1, 4)), int(rng.integers(1, 3))
        laws = [two_points(rng, mean, hi) for mean in [mean_x] * kb + [mean_y] * kc]
        centre, spread = max(1e-3, rng.random()) * hi, rng.choice([1e-6, 0.02, 0.25]) * hi * hi
        expected = np.zeros(4)
        for outcome in itertools.product(*laws):
            scores = [float(score) for score, _ in outcome]
            factors = bets.factors(Block(scores[:kb], sum(scores[kb:]) / kc, kc), centre, spread)
            least = min(least, *factors)
            expected += math.prod(chance for _, chance in outcome) * np.array(factors)
        worst, tight = max(worst, float(expected.max()) - 1.0), tight + (expected.max() > 1.0 - 1e-9)
    assert worst <= 1e-12
    assert least > 0.0
    assert tight > 10, "the bound is met with equality somewhere, or the test would show nothing"
