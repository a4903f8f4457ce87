"""The mergeable bucket of a series: counts, weighted moments, cost and a histogram.

Merging is associative and commutative to the last bit, so the store adds deltas in the same transaction as the scores
and can recompute any bucket, hour or day from them, in any order. Floating-point sums alone are not: so every term is
first rounded to a grid, a multiple of a power of two, and sums of multiples are exact as long as they fit into 53 bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from evalpipe.score import Score, Status

BINS = 50
"""Equal bins between 0 and 1, which have one each: a quantile is exact to half a bin, 0.01, and there wholly."""

GRID = 2.0**-24
"""Terms of ``sum_w``, ``sum_wx`` and ``sum_wx2`` are multiples of it: 3e-8 of a call is the most that one is off.

Their sums are exact up to 2^29: a bucket that stands for half a billion calls.
"""
SQUARE_GRID = 2.0**-16
"""Of terms with a squared weight; their sums are exact up to 2^37, or 1.4e11.

That is a day of 137,000 scores of one series that stand for 1,000 calls each. Beyond, a sum is rounded as any other of
floats: its last digit (of 16) depends on the order, and a rebuild may call the bucket changed.
"""
USD_GRID = 2.0**-30
"""Of costs, about 1e-9 US dollars; their sums are exact up to 8 million dollars."""
DIGITS = 7
"""Of a mean: what is behind them is the grid's, and a mean of nothing but 0.8 is not below 0.8."""
TO_GRID, TO_SQUARES, TO_USD = (1.5 * 2.0**52 * grid for grid in (GRID, SQUARE_GRID, USD_GRID))
"""Adding one of these and taking it away again leaves the nearest multiple: there a float's last bit is the grid."""


@dataclass(slots=True)
class Rollup:
    """A bucket of scores of one series.

    Attributes:
        n_scored, n_skipped, n_abstained, n_error: counts by status.
        sum_w, sum_w2, sum_wx, sum_wx2, sum_w2x, sum_w2x2: sums over scored values x with weight w = 1 / inclusion
            probability, each term on its grid.
        cost_usd: what the grades behind the scores cost.
        bins: scored values by bin of [0, 1], unweighted.
    """

    n_scored: int = 0
    n_skipped: int = 0
    n_abstained: int = 0
    n_error: int = 0
    sum_w: float = 0.0
    sum_w2: float = 0.0
    sum_wx: float = 0.0
    sum_wx2: float = 0.0
    sum_w2x: float = 0.0
    sum_w2x2: float = 0.0
    cost_usd: float = 0.0
    bins: dict[int, int] = field(default_factory=dict)

    def add(self, score: Score, weight: float = 1.0, cost_usd: float = 0.0) -> None:
        """Count one score; one that weighs nothing costs money and is no part of any estimate."""
        self.cost_usd += (cost_usd + TO_USD) - TO_USD
        if weight == 0.0:
            return
        if score.status is Status.SKIPPED:
            self.n_skipped += 1
        elif score.status is Status.ABSTAINED:
            self.n_abstained += 1
        elif score.status is Status.ERROR:
            self.n_error += 1
        elif score.value is not None:
            self.n_scored += 1
            x, wx = score.value, weight * score.value
            self.sum_w += (weight + TO_GRID) - TO_GRID
            self.sum_wx += (wx + TO_GRID) - TO_GRID
            self.sum_wx2 += (wx * x + TO_GRID) - TO_GRID
            self.sum_w2 += (weight * weight + TO_SQUARES) - TO_SQUARES
            self.sum_w2x += (weight * wx + TO_SQUARES) - TO_SQUARES
            self.sum_w2x2 += (wx * wx + TO_SQUARES) - TO_SQUARES
            index = bin_of(x)
            self.bins[index] = self.bins.get(index, 0) + 1

    def merge(self, other: Rollup) -> None:
        """Add ``other`` into this one."""
        self.n_scored += other.n_scored
        self.n_skipped += other.n_skipped
        self.n_abstained += other.n_abstained
        self.n_error += other.n_error
        self.sum_w += other.sum_w
        self.sum_w2 += other.sum_w2
        self.sum_wx += other.sum_wx
        self.sum_wx2 += other.sum_wx2
        self.sum_w2x += other.sum_w2x
        self.sum_w2x2 += other.sum_w2x2
        self.cost_usd += other.cost_usd
        for index, count in other.bins.items():
            self.bins[index] = self.bins.get(index, 0) + count

    @property
    def mean(self) -> float | None:
        """Weighted mean of the scored values, or None where nothing was scored."""
        return round(self.sum_wx / self.sum_w, DIGITS) if self.sum_w > 0 else None

    def quantile(self, q: float) -> float | None:
        """The ``q`` quantile to half a bin, or None where nothing was scored."""
        total, seen = sum(self.bins.values()), 0
        for index in sorted(self.bins):
            seen += self.bins[index]
            if seen >= q * total:
                return min(max((index - 0.5) / BINS, 0.0), 1.0)
        return None


SUMS = ("n_scored", "n_skipped", "n_abstained", "n_error", "sum_w", "sum_w2", "sum_wx", "sum_wx2", "sum_w2x",
        "sum_w2x2", "cost_usd")  # fmt: skip
"""Names of the fields that add up."""


def bin_of(value: float) -> int:
    """The bin of a value in [0, 1]; exactly 0 and exactly 1 have their own, so that pass and fail stay exact."""
    return 0 if value == 0.0 else 1 + int(value * BINS)


def merged(rollups: Iterable[Rollup]) -> Rollup:
    """The sum of many."""
    total = Rollup()
    for rollup in rollups:
        total.merge(rollup)
    return total
