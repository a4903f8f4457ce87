"""How few scores can do: ln(1/alpha) / I, which no test that keeps alpha under any stopping rule beats on average.

I is the information a score gives against the composite null: the least KL divergence of the true laws from any two
laws on [0, 1] that the null allows, each arm weighted by its share of the traffic (KL_inf; Honda and Takemura 2010). It
bounds the mean number of scores; a median may lie below it.
"""

from __future__ import annotations

import math

import numpy as np


def kl_up(values, probabilities, mean: float) -> float:
    """Least KL divergence from a law on [0, 1] to laws on [0, 1] with at least this mean."""
    if probabilities @ values >= mean:
        return 0.0
    return _sup(lambda bet: probabilities @ np.log1p(bet * (mean - values)), 1.0 / (1.0 - mean))


def kl_down(values, probabilities, mean: float) -> float:
    """The same to laws with at most this mean."""
    return kl_up(1.0 - values, probabilities, 1.0 - mean)


def two_arms(baseline, canary, share: float, t: float = 1.0, *, direction: int = -1) -> float:
    """Information of one score against "mean(canary) >= t mean(baseline)" (direction -1) or "<=" (+1).

    Args:
        baseline: values in [0, 1] and their probabilities.
        canary: the same of the other arm.
        share: of the scores that are the canary's.
        t: of the null, 1 - tau or 1 + tau.
        direction: of the evidence.
    """
    lower, upper = (kl_down, kl_up) if direction < 0 else (kl_up, kl_down)

    def information(mean: float) -> float:
        return (1.0 - share) * lower(*baseline, mean) + share * upper(*canary, t * mean)

    low, high = sorted((float(baseline[0] @ baseline[1]), float(canary[0] @ canary[1]) / t))
    for _ in range(80):
        one, two = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, two) if information(one) < information(two) else (one, high)
    return information((low + high) / 2)


def pairs(differences, probabilities, lowest: float = 1.0) -> float:
    """Information of a pair against "the mean difference is not above 0", differences in [-lowest, ...]."""
    return _sup(lambda bet: probabilities @ np.log1p(bet * differences), 1.0 / lowest)


def gaussian(variances: tuple[float, float], share: float, difference: float) -> float:
    """Information of one score against equal means, for normal arms with these variances (baseline, canary)."""
    return difference**2 / (2.0 * (variances[0] / (1.0 - share) + variances[1] / share))


def scores(information: float, alpha: float) -> float:
    """The bound, in scores (or pairs)."""
    return math.log(1.0 / alpha) / information if information > 1e-12 else math.inf


def _sup(function, end: float) -> float:
    """Greatest value of a concave function on [0, end), which may fall to -inf at its end."""
    low, high = 0.0, end * (1.0 - 1e-12)
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(120):
            one, two = low + (high - low) / 3, high - (high - low) / 3
            low, high = (low, two) if function(one) > function(two) else (one, high)
        return max(0.0, float(function((low + high) / 2)))
