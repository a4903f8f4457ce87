"""Has the mean of many numbers moved between two samples? One robust score test for all kinds of drift.

Words become indicators, sizes become ranks, embeddings become principal components: whatever is the same function of
the pooled sample for both groups may be tested. With g the group (0 baseline, 1 now), x the features on their principal
axes and z what is to be held equal (a constant at the least), let r and e be the residuals of g and x on z, by weighted
least squares, and c = w r. Then, for each axis j,

    U_j = sum c e_j,   V_j = lambda_j sum over both groups of D_gj sum c^2,   T = sum U_j^2 / V_j

where lambda_j is the variance of e_j in the pooled sample, and D_gj >= 1 the design effect of a group: how much more
the sums of whole conversations vary than those of as many records. Nothing but D is estimated in one group alone, so
that a word that one group lacks does no harm. Without weights, clusters and z it is Pearson's chi-square for
indicators, the test of Lepage for ranks and their distances from the middle, and Hotelling's for components. T / N
follows a beta distribution with k / 2 and (N - 1 - k) / 2, as R^2 does (T. W. Anderson, An Introduction to
Multivariate Statistical Analysis, 2003, section 8.4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

UNITS_PER_FEATURE: Final = 4
"""So many units must stand behind each feature. A new topic shows along axes that hardly varied before, so few axes
would be blind to it."""
_SMALLEST: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Shift:
    """What a test of two samples found.

    Attributes:
        p: how likely so large a shift is where there is none; 1 where nothing can be told.
        statistic: T.
        features: how many directions were tested.
        units: what the contrast is worth, in independent records.
        size: what both samples are worth, N of the distribution of T.
        difference: of the two means, by feature, now less baseline, after what was held equal.
        separation: of the means in standard deviations along the direction that separates best (Mahalanobis), without
            what chance alone makes of it.
        direction: along which the groups differ most: records that reach far along it moved it most.
    """

    p: float = 1.0
    statistic: float = 0.0
    features: int = 0
    units: float = 0.0
    size: float = 0.0
    difference: Array | None = None
    separation: float = 0.0
    direction: Array | None = None

    @property
    def told_apart(self) -> float:
        """How often the one of now is known among one of each, by the best linear rule; .5 is by chance."""
        return NormalDist().cdf(self.separation / math.sqrt(2))


NOTHING: Final = Shift()


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two samples laid one after the other: who is of now, what each weighs, and who belongs together."""

    now: Array
    weights: Array
    units: Integers
    held: Array | None = None

    def shift(self, features: Array) -> Shift:
        """Test whether the means of ``features`` (a row for each record) differ."""
        rows = features.reshape(len(self.now), -1)
        if not self._two_groups():
            return NOTHING
        r, e = self._residuals(self.now[:, None])[:, 0], self._residuals(rows)
        pull = self.weights * r
        worth = effective_units(_summed(pull[:, None], self.units)[:, 0])
        most = int(worth // UNITS_PER_FEATURE)
        information = float(np.sum(self.weights * r * r))
        if most < 1 or information <= 0:
            return NOTHING
        axes = _axes(e, self.weights, most)
        if not axes.shape[1]:
            return NOTHING
        along = e @ axes
        total, variances = pull @ along, self._variances(pull, along)
        statistic = float(total @ (total / variances))
        difference = (pull @ e) / information
        beyond_chance = float(((total**2 - variances) / self._pooled(along)).sum())
        size = effective_units(_summed(self.weights[:, None], self.units)[:, 0] ** 0.5)
        return Shift(
            p=chance(statistic, len(total), size),
            statistic=statistic,
            features=len(total),
            units=worth,
            size=size,
            difference=difference,
            separation=math.sqrt(max(0.0, beyond_chance)) / information,
            direction=axes @ (total / variances),
        )

    def each(self, features: Array) -> Array:
        """A p-value for each column alone, two-sided and by the normal distribution."""
        rows = features.reshape(len(self.now), -1)
        if not self._two_groups():
            return np.ones(rows.shape[1])
        pull, e = self.weights * self._residuals(self.now[:, None])[:, 0], self._residuals(rows)
        variances = self._variances(pull, e)
        z = np.abs(pull @ e) / np.sqrt(np.where(variances > 0, variances, np.inf))
        return np.array([math.erfc(x / math.sqrt(2)) for x in z])

    def _variances(self, pull: Array, along: Array) -> Array:
        """Of the sums of ``pull`` times each column, where nothing has moved."""
        pooled = self._pooled(along)
        found = np.zeros(along.shape[1])
        for group in (self.now == 0, self.now == 1):
            parts = pull[group, None] * along[group]
            alone = (parts**2).sum(axis=0)
            whole = (_summed(parts, self.units[group]) ** 2).sum(axis=0)
            design = np.where(alone > 0, np.maximum(whole / np.where(alone > 0, alone, 1.0), 1.0), 1.0)
            found += design * pooled * float(pull[group] @ pull[group])
        return found

    def _pooled(self, along: Array) -> Array:
        """Variance of each column over both groups."""
        squares = self.weights**2
        found: Array = (squares @ along**2) / float(squares.sum())
        return found

    def _two_groups(self) -> bool:
        return bool(len(self.now)) and 0 < float(self.weights @ self.now) < float(self.weights.sum())

    def _residuals(self, rows: Array) -> Array:
        """What the held columns and a constant do not explain, by weighted least squares."""
        total = float(self.weights.sum())
        rows = rows - (self.weights @ rows) / total
        if self.held is None or not self.held.shape[1]:
            return rows
        held = self.held - (self.weights @ self.held) / total
        root = np.sqrt(self.weights)[:, None]
        found: Array = rows - held @ np.linalg.lstsq(root * held, root * rows, rcond=1e-8)[0]
        return found


def contrast(
    n_before: int, n_now: int, weights: Sequence[float], units: Sequence[str], held: Array | None = None
) -> Contrast:
    """A contrast of two samples that stand one after the other, baseline first.

    Args:
        n_before: how many are of the baseline.
        n_now: how many are of now.
        weights: of all of them; each sample's are brought to a mean of 1, so that a baseline with another rate of
            sampling compares.
        units: who resembles whom; "" is a unit of its own. One that is in both samples counts as two.
        held: columns that are held equal.
    """
    w = np.asarray(weights, dtype=np.float64)
    now = np.repeat([0.0, 1.0], [n_before, n_now])
    for group in (now == 0, now == 1):
        if group.any() and w[group].sum() > 0:
            w[group] /= w[group].mean()
    names: dict[tuple[float, str], int] = {}
    numbers = [
        names.setdefault((g, u or f"\x1f{i}"), len(names)) for i, (g, u) in enumerate(zip(now, units, strict=True))
    ]
    return Contrast(now, w, np.asarray(numbers, dtype=np.int64), held)


def effective_units(pull: Array) -> float:
    """How many equal and independent ones the parts of a contrast are worth: (sum c^2)^2 / sum c^4."""
    squares = pull * pull
    fourth = float(squares @ squares)
    return float(squares.sum()) ** 2 / fourth if fourth > 0 else 0.0


def ranks(values: Sequence[float]) -> Array:
    """Two columns: the rank from -1 to 1 (ties share theirs), and its distance from the middle."""
    x = np.asarray(values, dtype=np.float64)
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2  # mean rank of each distinct value, from 1
    scaled = (2 * middle[inverse] - 1 - len(x)) / max(len(x), 1)
    return np.column_stack([scaled, np.abs(scaled)])


def one_sided(values: Array, weights: Array) -> tuple[float, float]:
    """Mean of independent values, and how likely one so far below 0 is where the true one is 0 (Student's t)."""
    total = float(weights.sum())
    mean = float(weights @ values) / total
    share = weights / total
    variance = float((share**2) @ (values - mean) ** 2)
    worth = 1.0 / float(share @ share)
    if worth < 2:
        return mean, 1.0
    if variance <= 0:
        return mean, 0.0 if mean < 0 else 1.0
    t2 = mean * mean / (variance * worth / (worth - 1))
    tail = beta_tail(0.5, (worth - 1) / 2, t2 / (t2 + worth - 1)) / 2
    return mean, tail if mean < 0 else 1.0 - tail


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values adjusted for being several: all that stay below a level are false together at most at that rate.

    S. Holm, A simple sequentially rejective multiple test procedure, 1979; whatever their dependence.
    """
    adjusted: dict[str, float] = {}
    worst = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        worst = max(worst, min(1.0, p * (len(p_values) - rank)))
        adjusted[name] = worst
    return adjusted


def chance(statistic: float, features: int, size: float) -> float:
    """How likely so large a T is by chance."""
    return beta_tail(features / 2, (size - 1 - features) / 2, statistic / size)


def beta_tail(a: float, b: float, x: float) -> float:
    """Probability that a beta variable exceeds ``x``: the continued fraction of DLMF 8.17.22, by Lentz's method."""
    if x <= 0 or b <= 0:
        return 1.0
    if x >= 1:
        return 0.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    if x < (a + 1) / (a + b + 2):
        return min(1.0, max(0.0, 1.0 - math.exp(log_front) * _fraction(a, b, x) / a))
    return min(1.0, math.exp(log_front) * _fraction(b, a, 1 - x) / b)


def _fraction(a: float, b: float, x: float) -> float:
    tiny = 1e-300
    c, d = 1.0, 1.0 / _apart(1.0 - (a + b) * x / (a + 1), tiny)
    found = d
    for m in range(1, 500):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / _apart(1.0 + term * d, tiny)
            c = _apart(1.0 + term / c, tiny)
            found *= c * d
        if abs(c * d - 1.0) < 1e-14:
            break
    return found


def _apart(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny


def _summed(rows: Array, units: Integers) -> Array:
    """Rows of one unit added up, in any order."""
    order = np.argsort(units, kind="stable")
    starts = np.flatnonzero(np.diff(units[order], prepend=-1))
    if len(starts) == len(rows):
        return rows
    found: Array = np.add.reduceat(rows[order], starts, axis=0)
    return found


def _axes(rows: Array, weights: Array, most: int) -> Array:
    """The principal axes of the pooled rows that vary, at most ``most``."""
    values, vectors = np.linalg.eigh((rows * weights[:, None]).T @ rows)
    kept = values > _SMALLEST * max(float(values[-1]), _SMALLEST)
    found: Array = vectors[:, kept][:, ::-1][:, :most]
    return found
