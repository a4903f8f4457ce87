"""An interval for the mean of a series, for people to read: terminal and dashboard.

It holds for one look at a fixed number of scores and says nothing about a series that is watched until it moves; rules
and decisions never use it (``matched_block`` is for that).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist


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


def mean_interval(
    n: int,
    sum_w: float,
    sum_wx: float,
    sum_wx2: float,
    sum_w2: float | None = None,
    *,
    level: float = 0.95,
    hi: float = 1.0,
) -> MeanInterval | None:
    """Wilson's interval, carried to weighted scores in [0, hi]; None where nothing was scored (n = 0).

    Wilson (1927) solves ``|mean - mu| <= z sqrt(phi mu (hi - mu) / n_eff)`` with phi = 1 for pass and fail. Here phi
    is the observed variance as a share of ``mean (hi - mean)``, the largest variance a score with that mean can have,
    drawn towards 1 with the force of z^2 scores; so a handful of perfect scores still leaves room below.
    ``n_eff = (sum w)^2 / sum w^2`` (Kish); without ``sum_w2`` the weights are taken as equal.

    Assumes independent scores (one for each user or conversation) and weights that are 1 / inclusion probability.

    Args:
        n: scored records.
        sum_w: sum of their weights.
        sum_wx: weighted sum of the scores.
        sum_wx2: weighted sum of their squares.
        sum_w2: sum of squared weights.
        level: two-sided confidence, in (0, 1).
        hi: the largest possible score.
    """
    if n <= 0 or sum_w <= 0.0:
        return None
    z2 = NormalDist().inv_cdf(0.5 + level / 2) ** 2
    n_eff = n if not sum_w2 else min(float(n), sum_w * sum_w / sum_w2)
    mean = min(max(sum_wx / sum_w / hi, 0.0), 1.0)
    variance = max(sum_wx2 / sum_w / (hi * hi) - mean * mean, 0.0)
    centre = (n_eff * mean + z2 / 2) / (n_eff + z2)
    prior = z2 * centre * (1.0 - centre)
    phi = min(1.0, (n_eff * variance + prior) / (n_eff * mean * (1.0 - mean) + prior))
    n_phi = n_eff / phi
    middle = (n_phi * mean + z2 / 2) / (n_phi + z2)
    half = sqrt(z2 * n_phi * mean * (1.0 - mean) + z2 * z2 / 4) / (n_phi + z2)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return MeanInterval(mean * hi, min(low, mean) * hi, max(high, mean) * hi, n_eff, level)
