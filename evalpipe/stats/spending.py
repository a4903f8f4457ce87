"""Whether money runs away: a sequential test on sums of what single calls cost, and a bound for one window.

Calls come as a Poisson process and each costs what it costs, so a sum S over a stretch in which m is expected is
compound Poisson. With lumps of at most u, E exp(S ln(r) / u) <= exp(m (r - 1) / u) by convexity, for every r > 1: so

    F_r = exp((S ln(r) - m (r - 1)) / u)

is an e-value against "no more than m is spent", for which S is the only thing to be counted; it grows fastest where r
times m is spent. The e-SR statistic M_r <- (M_r + w_r) F_r has mean at most the number of stretches (Shin, Ramdas,
Rinaldo: E-detectors, arXiv 2203.03532), so sum_r M_r >= A comes once in A stretches at the most.

Costs have no largest lump. The unit is ``SAFETY`` times the mean lump as a dollar sees it, E[c^2] / E[c], or the
variance of the sums over their mean, whichever is greater: that is what calls that come in bursts look like, too. And
what speaks for more is no more than ``A_LUMP`` for each of the lumps that the stretch is worth, (sum c)^2 / sum c^2:
one dear call is one lump, however dear.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, inf, log
from typing import Final, NamedTuple

RATIOS: Final = (1.25, 2.5, 8.0, 30.0)
"""Of the bets: how many times the tolerated is spent."""
_LOGS: Final = tuple(log(r) for r in RATIOS)
_WEIGHT: Final = 1.0 / len(RATIOS)
SAFETY: Final = 2.0
"""Costs are skewed: a bound for lumps of one size is not one for lumps of that mean."""
A_LUMP: Final = 1.0
_FEWEST: Final = 5
"""Stretches from which a variance means something."""


def fold(sums: Sequence[float], spent: float, lumps: float, expected: float, unit: float, most: float) -> list[float]:
    """The statistics after one more stretch.

    Args:
        sums: M by bet; empty at first.
        spent: in the stretch.
        lumps: that this is worth; infinite if unknown.
        expected: in the stretch, with all that is tolerated; known before it.
        unit: see the module's text; known before it.
        most: at which there is an alarm. Twice as much is never exceeded, so that it comes down again; and no stretch
            alone makes so much of nothing: two are needed.
    """
    limit = 0.75 * log(most)
    grown = []
    for i, ratio in enumerate(RATIOS):
        more = min(spent * _LOGS[i] / unit, A_LUMP * lumps) - expected * (ratio - 1.0) / unit
        grown.append(((sums[i] if sums else 0.0) + _WEIGHT) * exp(max(-700.0, min(more, limit))))
    total = sum(grown)
    return grown if total <= 2.0 * most else [m * 2.0 * most / total for m in grown]


def log_chance(spent: float, expected: float, unit: float) -> float:
    """The greatest logarithm of the chance that so much is spent where ``expected`` is, in lumps of ``unit``."""
    if expected <= 0.0:
        return -inf if spent > 0.0 else 0.0
    if spent <= expected:
        return 0.0
    return -(spent * log(spent / expected) - spent + expected) / unit


class Spread(NamedTuple):
    """Decaying moments of sums over stretches of one length: how bursty spending is.

    The variance is that of one stretch against the one before (von Neumann, Annals of Math. Statistics 12, 1941): the
    rise of the morning and the fall of the night are no bursts.

    Attributes:
        n: stretches, but the first.
        mean: of the sums.
        variance: half the mean square of their steps.
        last: the newest sum; None before the first.
    """

    n: float = 0.0
    mean: float = 0.0
    variance: float = 0.0
    last: float | None = None

    def add(self, spent: float, memory: float, most: float = inf) -> Spread:
        """With one more stretch; those before ``memory`` stretches ago hardly count.

        One step counts for ``most`` times the variance: where stretches are few, an hour without hooks is no burst.
        """
        if self.last is None:
            return Spread(0.0, spent, 0.0, spent)
        n = min(self.n + 1.0, memory)
        gain, square = 1.0 / n, (spent - self.last) ** 2 / 2.0
        if n > _FEWEST and self.variance > 0.0:
            square = min(square, most * self.variance)
        return Spread(
            n,
            self.mean + gain * (spent - self.mean),
            self.variance + gain * (square - self.variance),
            float(f"{spent:.6g}"),
        )

    @property
    def lump(self) -> float:
        """Variance over mean; 0 if it is not known."""
        return self.variance / self.mean if self.n >= _FEWEST and self.mean > 0.0 else 0.0
