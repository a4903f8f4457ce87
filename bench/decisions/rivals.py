"""What others do, in their own words, looking after every score: where each first says "worse", by run.

All read overall means of the two arms, as these methods do. None has the engine's second key.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from decisions.laws import normal_quantile

NEVER = -1


class Sums:
    """Running counts, means and variances of both arms after each score: columns are runs."""

    def __init__(self, canary: Any, values: Any) -> None:
        self.total = np.arange(1, len(canary) + 1)[:, None]
        self.n_c = np.cumsum(canary)[:, None]
        self.n_b = self.total - self.n_c
        with np.errstate(divide="ignore", invalid="ignore"):
            self.mean_b, self.var_b = self._arm(values, ~canary, self.n_b)
            self.mean_c, self.var_c = self._arm(values, canary, self.n_c)

    @staticmethod
    def _arm(values, mine, n):
        kept = values * mine[:, None]
        mean = np.cumsum(kept, axis=0) / n
        kept *= values
        var = (np.cumsum(kept, axis=0) / n - mean * mean) * n / np.maximum(n - 1, 1)
        return mean, var

    def least(self, n: int) -> Any:
        """Whether both arms have so many scores."""
        return (self.n_b >= n) & (self.n_c >= n)


def first(says: Any) -> Any:
    """The first row in which it is so, by column; NEVER."""
    return np.where(says.any(axis=0), says.argmax(axis=0), NEVER)


def naive(canary, values, *, least: int = 30, drop: float = 0.05, **_):
    """The point rule: the canary's mean is more than 5 % below the baseline's, with some scores in each arm."""
    sums = Sums(canary, values)
    return first((sums.mean_c < (1.0 - drop) * sums.mean_b) & sums.least(least))


def welch(canary, values, *, alpha: float = 0.01, least: int = 30, **_):
    """Welch's t-test at every score (normal quantile, corrected to first order for the degrees of freedom)."""
    sums = Sums(canary, values)
    z = normal_quantile(1.0 - alpha)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (sums.mean_c - sums.mean_b) / np.sqrt(sums.var_b / sums.n_b + sums.var_c / sums.n_c)
        needed = z + (z**3 + z) / (4 * np.maximum(np.minimum(sums.n_b, sums.n_c) - 1, 1))
    return first((t < -needed) & sums.least(least))


def mann_whitney(canary, values, *, level: float = 0.98, least: int = 50, effect: float = 0.05, **_):
    """Kayenta's way: Mann-Whitney at 98 %, with ties, and a ratio of the means beyond the effect size."""
    sums = Sums(canary, values)
    n_b, n_c, total = (x.astype(float) for x in (sums.n_b, sums.n_c, sums.total))
    u = ties = below = 0.0
    for level_value in np.unique(values[: min(len(values), 2000)]):
        mine = values == level_value
        b = np.cumsum(mine & ~canary[:, None], axis=0)
        c = np.cumsum(mine & canary[:, None], axis=0)
        u = u + c * (below + 0.5 * b)
        below = below + b
        t = (b + c).astype(float)
        ties = ties + (t**3 - t)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.sqrt(n_b * n_c / 12.0 * (total + 1.0 - ties / (total * (total - 1.0))))
        z = (u - n_b * n_c / 2.0) / spread
    worse = sums.mean_c <= (1.0 - effect) * sums.mean_b
    return first((z < -normal_quantile(0.5 + level / 2)) & worse & sums.least(least))


def group_sequential(canary, values, *, alpha: float = 0.01, looks: int = 10, **_):
    """O'Brien and Fleming (1979), one-sided, so many equally spaced looks over the horizon."""
    n = len(canary)
    rows = np.array([n * (k + 1) // looks - 1 for k in range(looks)])
    sums = Sums(canary, values)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.sqrt(sums.var_b[rows] / sums.n_b[rows] + sums.var_c[rows] / sums.n_c[rows])
        z = (sums.mean_c[rows] - sums.mean_b[rows]) / spread
    bound = obrien_fleming(alpha, looks) * np.sqrt(looks / np.arange(1, looks + 1))
    found = first(z < -bound[:, None])
    return np.where(found >= 0, rows[found], NEVER)


def confidence_sequence(canary, values, *, alpha: float = 0.01, tuned: float = 5000.0, least: int = 30, **_):
    """GrowthBook's mSPRT: the one-sided asymptotic confidence sequence of Waudby-Smith et al. (eq. 134)."""
    sums = Sums(canary, values)
    n = sums.total.astype(float)
    inner = -2.0 * math.log(2.0 * alpha)
    r2 = (inner + math.log(inner + 1.0)) / tuned
    with np.errstate(divide="ignore", invalid="ignore"):
        s2 = n * (sums.var_b / sums.n_b + sums.var_c / sums.n_c)
        width = np.sqrt(2.0 * (n * r2 + 1.0) / (n * n * r2) * np.log1p(np.sqrt(n * r2 + 1.0) / (2.0 * alpha)))
        says = sums.mean_c - sums.mean_b + np.sqrt(s2) * width < 0.0
    return first(says & sums.least(least) & (s2 > 0.0))


@lru_cache
def obrien_fleming(alpha: float, looks: int) -> float:
    """C such that a Brownian motion seen at k = 1 ... looks crosses C sqrt(looks) with probability alpha.

    By the recursion of Armitage, McPherson and Rowe (1969): the density of what has not crossed, look after look.
    """
    low, high = 1.0, 6.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _crossing(middle * math.sqrt(looks), looks) > alpha else (low, middle)
    return (low + high) / 2


def _crossing(height: float, looks: int) -> float:
    grid = np.linspace(-8.0 * math.sqrt(looks), height, 1601)
    step = grid[1] - grid[0]
    weights = np.full(len(grid), step)
    weights[[0, -1]] = step / 2
    kernel = np.exp(-0.5 * (grid[:, None] - grid[None, :]) ** 2) / math.sqrt(2.0 * math.pi)
    density = np.exp(-0.5 * grid**2) / math.sqrt(2.0 * math.pi)
    for _ in range(looks - 1):
        density = kernel @ (weights * density)
    return 1.0 - float(weights @ density)


METHODS = {
    "naive": naive,
    "welch": welch,
    "mann_whitney": mann_whitney,
    "group_sequential": group_sequential,
    "confidence_sequence": confidence_sequence,
}
