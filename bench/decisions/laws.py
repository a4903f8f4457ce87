"""Laws of scores: what the simulations draw from, and what the bounds are computed for.

A drop is the hardest one of its size to tell from none: the least-KL tilt of the law, unless it says otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

RUBRIC = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
BASE = np.array([0.0202, 0.0398, 0.0887, 0.2224, 0.6289])
"""A rubric of five points with mean .85 and standard deviation .237."""


class Law(Protocol):
    """Scores of one arm.

    Attributes:
        mean, variance: of a baseline's score.
        hi: the largest possible score.
    """

    mean: float
    variance: float
    hi: float

    def draw(self, rng: np.random.Generator, means: Any, runs: int) -> Any:
        """An independent score for each entry of ``means`` (its row) and each of ``runs`` (columns)."""
        ...


@dataclass(frozen=True)
class Rubric:
    """Five points; other means are exponential tilts of ``BASE``."""

    mean: float = 0.85
    variance: float = float(BASE @ RUBRIC**2 - (BASE @ RUBRIC) ** 2)
    hi: float = 1.0

    def draw(self, rng, means, runs):
        """See ``Law``."""
        return five_points(rng.random((len(means), runs)), np.cumsum(tilted(means), axis=1))

    def finite(self, mean: float):
        """Values and their probabilities."""
        return RUBRIC, tilted(np.array([mean]))[0]


@dataclass(frozen=True)
class Broken(Rubric):
    """Five points; a lower mean comes of answers that are worth nothing, the others are as before."""

    def draw(self, rng, means, runs):
        """See ``Law``."""
        kept = np.asarray(means)[:, None] / self.mean
        return super().draw(rng, np.full(len(means), self.mean), runs) * (rng.random((len(means), runs)) < kept)

    def finite(self, mean: float):
        """Values and their probabilities."""
        kept = mean / self.mean
        return RUBRIC, BASE * kept + np.array([1.0 - kept, 0, 0, 0, 0])


@dataclass(frozen=True)
class Binary:
    """Passed or not."""

    mean: float = 0.90
    hi: float = 1.0

    @property
    def variance(self) -> float:
        """Of the baseline."""
        return self.mean * (1.0 - self.mean)

    def draw(self, rng, means, runs):
        """See ``Law``."""
        return (rng.random((len(means), runs)) < np.asarray(means)[:, None]).astype(float)

    def finite(self, mean: float):
        """Values and their probabilities."""
        return np.array([0.0, 1.0]), np.array([1.0 - mean, mean])


@dataclass(frozen=True)
class Lognormal:
    """Costs (or latencies) with mean 1, which may be cut off at ``hi``; other means multiply."""

    sigma: float = 0.8
    hi: float = 10.0

    @property
    def mean(self) -> float:
        """Of the baseline; what is cut off beyond ``hi`` counts for little."""
        return self.moments(1.0)[0]

    @property
    def variance(self) -> float:
        """Of the baseline."""
        return self.moments(1.0)[1]

    def moments(self, scale: float) -> tuple[float, float]:
        """Mean and variance of min(scale * lognormal, hi)."""
        mu, s = math.log(scale) - self.sigma**2 / 2, self.sigma
        end = (math.log(self.hi) - mu) / s
        beyond = 1.0 - _normal(end)
        one = math.exp(mu + s * s / 2) * _normal(end - s) + self.hi * beyond
        two = math.exp(2 * mu + 2 * s * s) * _normal(end - 2 * s) + self.hi**2 * beyond
        return one, two - one * one

    def draw(self, rng, means, runs):
        """See ``Law``."""
        scales = np.asarray(means)[:, None] / self.mean
        values = np.exp(self.sigma * rng.standard_normal((len(means), runs)) - self.sigma**2 / 2)
        return np.minimum(values * scales, self.hi)

    def quantile(self, q: float) -> float:
        """Of the baseline."""
        return math.exp(self.sigma * normal_quantile(q) - self.sigma**2 / 2)

    def beyond(self, scale: float, value: float) -> float:
        """Probability that ``scale`` times a baseline's value is above ``value``."""
        return 1.0 - _normal((math.log(value / scale) + self.sigma**2 / 2) / self.sigma)


LAWS: dict[str, Any] = {"rubric": Rubric, "broken": Broken, "binary": Binary, "lognormal": Lognormal}


def law(spec: Any) -> Any:
    """A law by name, or by a mapping with ``name`` and its parameters."""
    if isinstance(spec, str):
        return LAWS[spec]()
    return LAWS[spec["name"]](**{key: value for key, value in spec.items() if key != "name"})


def five_points(u, cumulated):
    """Rubric values by inversion: ``u`` (n, runs) uniform, ``cumulated`` (n, 5)."""
    values = np.zeros(u.shape)
    for k in range(4):
        values += u >= cumulated[:, k : k + 1]
    return values * 0.25


def tilted(means):
    """Probabilities (n, 5) of the exponential tilts of ``BASE`` with these means."""
    means = np.asarray(means, dtype=float)
    unique, back = np.unique(means, return_inverse=True)
    low, high = np.full(len(unique), -60.0), np.full(len(unique), 60.0)
    for _ in range(70):
        middle = (low + high) / 2
        below = _tilt(middle) @ RUBRIC < unique
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(unique[:, None] == 0.85, BASE, _tilt((low + high) / 2))[back]


def _tilt(theta):
    weights = BASE * np.exp(theta[:, None] * (RUBRIC - 1.0))
    return weights / weights.sum(axis=1, keepdims=True)


def coupled(rng, n: int, runs: int, rho: float, kind: str = "copula"):
    """Two uniforms for each input, one an arm: with normal correlation ``rho``, or the same one with that share."""
    if kind == "shared":
        one, two = rng.random((n, runs)), rng.random((n, runs))
        return one, np.where(rng.random((n, runs)) < rho, one, two)
    z, other = rng.standard_normal((n, runs)), rng.standard_normal((n, runs))
    return normal_cdf(z), normal_cdf(rho * z + math.sqrt(1.0 - rho * rho) * other)


def normal_cdf(x):
    """Of an array: rational approximation to 1e-7 (Abramowitz and Stegun 26.2.17); no SciPy here."""
    k = 1.0 / (1.0 + 0.2316419 * np.abs(x))
    poly = k * (0.319381530 + k * (-0.356563782 + k * (1.781477937 + k * (-1.821255978 + k * 1.330274429))))
    tail = np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi) * poly
    return np.where(x > 0, 1.0 - tail, tail)


def normal_quantile(p: float) -> float:
    """Inverse of the normal distribution function, by bisection."""
    low, high = -40.0, 40.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _normal(middle) < p else (low, middle)
    return (low + high) / 2


def _normal(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2.0))
