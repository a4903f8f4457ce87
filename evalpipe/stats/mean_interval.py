"""An interval for the mean of a series, for people to read: terminal and dashboard.

It holds for one look at a fixed number of scores and says nothing about a series that is watched until it moves; rules
and decisions never use it (``matched_block`` is for that).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

from evalpipe.rollup import Rollup


@dataclass(frozen=True, slots=True)
class MeanInterval:
    """Weighted mean with its interval.

    Attributes:
        mean, low, high: all in [0, hi].
        n_effective: scores that equal weights would need for the same precision (Kish).
        level: two-sided confidence.
    """

    mean: float
    low: float
    high: float
    n_effective: float
    level: float


class Squares(NamedTuple):
    """Second sums over the units of a sample: W is a unit's sum of weights w, X its sum of w x.

    A unit is what is independent of the others: a record, or all of a conversation's where these are sampled together.

    Attributes:
        w2: sum of W^2.
        wx: sum of W X.
        x2: sum of X^2.
    """

    w2: float
    wx: float
    x2: float

    @classmethod
    def of(cls, units: Iterable[tuple[float, float]]) -> Squares:
        """From W and X of each unit."""
        pairs = list(units)
        return cls(sum(w * w for w, _ in pairs), sum(w * x for w, x in pairs), sum(x * x for _, x in pairs))


def mean_interval(
    n: int,
    sum_w: float,
    sum_wx: float,
    sum_wx2: float,
    sum_w2: float | None = None,
    squares: Squares | None = None,
    *,
    level: float = 0.95,
    hi: float = 1.0,
) -> MeanInterval | None:
    """Wilson's interval, carried to weighted scores in [0, hi]; None where nothing was scored (n = 0, or no weight).

    Wilson (1927) solves ``|mean - mu| <= z sqrt(phi mu (hi - mu) / n_eff)`` with phi = 1 for pass and fail. Here phi
    is the observed variance as a share of ``mean (hi - mean)``, the variance of pass and fail with that mean, drawn
    towards 1 with the force of z^2 scores; so a handful of perfect scores still leaves room below.
    ``n_eff = (sum w)^2 / sum w^2`` (Kish 1965); without ``sum_w2`` the weights are taken as equal.

    That alone would need weights that have nothing to do with the scores. Where always-keep rules keep bad calls at
    weight 1 and others come at weight 50, the variance is that of a ratio of sums over independent units, linearised:
    ``sum (X - mean W)^2 / (sum w)^2`` (Cochran 1977, section 6.8; Särndal, Swensson and Wretman 1992, section 5.6);
    it follows from ``squares``. Where units hold several scores, Student's t stands for z, with one degree less than
    there are units, counted as Kish does.

    Assumes weights that are 1 / inclusion probability, and independent units: without ``squares``, or with those of
    records, the records are.

    Args:
        n: scored records.
        sum_w: sum of their weights.
        sum_wx: weighted sum of the scores.
        sum_wx2: weighted sum of their squares.
        sum_w2: sum of squared weights.
        squares: second sums over units.
        level: two-sided confidence, in (0, 1).
        hi: the largest possible score.
    """
    if n <= 0 or sum_w <= 0.0:
        return None
    z = NormalDist().inv_cdf(0.5 + level / 2)
    n_eff = n if not sum_w2 else min(float(n), sum_w * sum_w / sum_w2)
    mean = min(max(sum_wx / sum_w / hi, 0.0), 1.0)
    if squares is None:
        variance = min(max(sum_wx2 / sum_w / (hi * hi) - mean * mean, 0.0), mean * (1.0 - mean))
    else:
        spread = squares.x2 / (hi * hi) - mean * (2.0 * squares.wx / hi - mean * squares.w2)
        variance = n_eff * max(spread, 0.0) / (sum_w * sum_w)
        if squares.w2 > sum_w * sum_w / n_eff * (1.0 + 1e-9):
            z = student(z, max(sum_w * sum_w / squares.w2 - 1.0, 2.0))
    z2 = z * z
    centre = (n_eff * mean + z2 / 2) / (n_eff + z2)
    prior = z2 * centre * (1.0 - centre)
    phi = (n_eff * variance + prior) / (n_eff * mean * (1.0 - mean) + prior)
    n_phi = n_eff / phi
    middle = (n_phi * mean + z2 / 2) / (n_phi + z2)
    half = sqrt(z2 * n_phi * mean * (1.0 - mean) + z2 * z2 / 4) / (n_phi + z2)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return MeanInterval(mean * hi, min(low, mean) * hi, max(high, mean) * hi, n_eff, level)


def interval_of(rollup: Rollup) -> MeanInterval | None:
    """The interval of a rollup's mean, with records as independent; None where nothing was scored."""
    r = rollup
    return mean_interval(r.n_scored, r.sum_w, r.sum_wx, r.sum_wx2, r.sum_w2, Squares(r.sum_w2, r.sum_w2x, r.sum_w2x2))


def student(z: float, degrees: float) -> float:
    """The quantile of Student's t where the normal distribution has ``z`` (Abramowitz and Stegun 1964, 26.7.5)."""
    z3, z5, z7 = z**3, z**5, z**7
    return (
        z
        + (z3 + z) / (4 * degrees)
        + (5 * z5 + 16 * z3 + 3 * z) / (96 * degrees**2)
        + (3 * z7 + 19 * z5 + 17 * z3 - 15 * z) / (384 * degrees**3)
    )
