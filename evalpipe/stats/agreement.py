"""How far two who grade agree: a judge and people, or people among themselves.

Whoever could not tell, or broke, has no grade and is in none of these numbers: count them apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from evalpipe.stats.mean_interval import mean_interval

Floats = NDArray[np.float64]
Weights = Literal["none", "linear", "quadratic"]
Metric = Literal["nominal", "ordinal", "interval"]

REPLICATIONS: Final = 2000
"""Of a bootstrap."""
BY_CHANCE: Final = 2
"""Units that agree by chance only, added before a bootstrap."""
SEED: Final = 20_260_301
"""The same grades give the same interval."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval; all None where the grades cannot tell (nothing graded, or all grades the same)."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


UNKNOWN: Final = Estimate()


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts of pairs of grades.

    Attributes:
        labels: the grades, in their order.
        counts: rows are the first rater's grades (people), columns the second's (the judge).
    """

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]], labels: Sequence[str]) -> Confusion:
        """Count ``pairs`` of (first, second).

        Raises:
            KeyError: a grade is not among ``labels``.
        """
        place = {label: index for index, label in enumerate(labels)}
        counts = np.zeros((len(labels), len(labels)), dtype=int)
        for first, second in pairs:
            counts[place[first], place[second]] += 1
        return cls(tuple(labels), tuple(tuple(int(n) for n in row) for row in counts))

    @property
    def n(self) -> int:
        """Pairs."""
        return sum(map(sum, self.counts))

    @property
    def agreed(self) -> int:
        """Pairs of the same grade."""
        return sum(row[index] for index, row in enumerate(self.counts))


def share(k: float, n: float, *, level: float = 0.95) -> Estimate:
    """The share k of n with Wilson's interval (1927)."""
    found = mean_interval(round(n), n, k, k, level=level)
    return Estimate(found.mean, found.low, found.high) if found else UNKNOWN


def cohen_kappa(
    confusion: Confusion, weights: Weights = "none", *, values: Sequence[float] | None = None, level: float = 0.95
) -> Estimate:
    """Cohen's kappa: agreement beyond what two raters with these habits would reach by chance; 1 is perfect, 0 chance.

    The interval is asymptotic (Fleiss, Cohen and Everitt 1969, Psychological Bulletin 72: equation 13, which holds
    for weighted kappa and contains the unweighted one), with one pair spread evenly over the table, since a table
    without any disagreement is not certainty. It is taken on Fisher's scale, atanh(kappa), where kappa near 1 is less
    skewed.

    Args:
        confusion: counts of pairs.
        weights: ``none`` counts equal grades only; ``linear`` and ``quadratic`` (Cohen 1968) count a near miss as
            partly right, for scales.
        values: where the grades stand on the scale; by default evenly.
        level: two-sided confidence.
    """
    counts = np.array(confusion.counts, dtype=float)
    k = len(counts)
    if k < 2 or counts.sum() <= 0:
        return UNKNOWN
    agreement = _agreement(k, weights, values)
    kappa, _ = _kappa(counts, agreement)
    if kappa is None:
        return UNKNOWN
    smoothed, error = _kappa(counts + 1.0 / (k * k), agreement)
    assert smoothed is not None
    z = NormalDist().inv_cdf(0.5 + level / 2)
    centre, half = np.arctanh(smoothed), z * error / (1.0 - smoothed * smoothed)
    low, high = float(np.tanh(centre - half)), float(np.tanh(centre + half))
    return Estimate(kappa, min(low, kappa), max(high, kappa))


def _agreement(k: int, weights: Weights, values: Sequence[float] | None) -> Floats:
    if weights == "none":
        return np.eye(k)
    at = np.arange(k, dtype=float) if values is None else np.array(values, dtype=float)
    distance = np.abs(at[:, None] - at[None, :]) / (at.max() - at.min())
    result: Floats = 1.0 - (distance if weights == "linear" else distance**2)
    return result


def _kappa(counts: Floats, agreement: Floats) -> tuple[float | None, float]:
    """Weighted kappa and its standard error; None where both gave one and the same grade throughout."""
    n = counts.sum()
    p = counts / n
    rows, columns = p.sum(axis=1), p.sum(axis=0)
    observed = float((p * agreement).sum())
    expected = float(rows @ agreement @ columns)
    if expected >= 1.0 - 1e-12:
        return None, 0.0
    kappa = (observed - expected) / (1.0 - expected)
    of_row, of_column = agreement @ columns, rows @ agreement
    inner = agreement * (1.0 - expected) - (of_row[:, None] + of_column[None, :]) * (1.0 - observed)
    spread = float((p * inner**2).sum()) - (observed * expected - 2.0 * expected + observed) ** 2
    return kappa, float(np.sqrt(max(spread, 0.0) / n)) / (1.0 - expected) ** 2


def krippendorff_alpha(
    units: Iterable[Sequence[float | None]],
    metric: Metric = "nominal",
    *,
    level: float = 0.95,
    replications: int = REPLICATIONS,
) -> Estimate:
    """Krippendorff's alpha: agreement of any number of raters beyond chance, whoever graded what; 1 is perfect.

    From the coincidence matrix (Krippendorff 2011, "Computing Krippendorff's alpha-reliability"). The interval is the
    percentiles of a bootstrap over units with a fixed seed, with ``BY_CHANCE`` units of two grades added that agree as
    chance does, since units without any disagreement are not certainty.

    Args:
        units: for each graded thing the grades as numbers, None where a rater has none. Things with fewer than two
            grades say nothing. For ``nominal`` any number may stand for any grade.
        metric: how far two grades are apart: same or not; by rank; by the square of their difference.
        level: two-sided confidence.
        replications: of the bootstrap; 0 gives no interval.
    """
    graded = (tuple(sorted(v for v in unit if v is not None)) for unit in units)
    # Units with the same grades are one pattern, and as likely to be drawn as there are units of it.
    patterns = Counter(unit for unit in graded if len(unit) > 1)
    at = sorted({v for unit in patterns for v in unit})
    if len(at) < 2:
        return UNKNOWN
    shares = np.stack([_coincidences(unit, at) for unit in patterns]).reshape(len(patterns), -1)
    counts = np.array(list(patterns.values()))
    whole: Floats = counts @ shares
    value = float(_alphas(whole[None, :], at, metric)[0])
    if not replications:
        return Estimate(value)
    totals = whole.reshape(len(at), -1).sum(axis=1) / whole.sum()
    shares = np.vstack([shares, 2.0 * np.outer(totals, totals).reshape(1, -1)])
    counts = np.append(counts, BY_CHANCE)
    rng = np.random.default_rng(SEED)
    drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=replications)
    low, high = np.nanquantile(_alphas(drawn @ shares, at, metric), [0.5 - level / 2, 0.5 + level / 2])
    return Estimate(value, float(min(low, value)), float(max(high, value)))


def _coincidences(unit: Sequence[float], at: Sequence[float]) -> Floats:
    """A unit's part of the coincidence matrix: each ordered pair of its grades counts 1 / (grades - 1)."""
    counts = np.array([unit.count(v) for v in at], dtype=float)
    pairs: Floats = (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    return pairs


def _alphas(coincidences: Floats, at: Sequence[float], metric: Metric) -> Floats:
    """Alpha of each flattened coincidence matrix; NaN where all grades are the same."""
    k = len(at)
    matrices = coincidences.reshape(-1, k, k)
    totals = matrices.sum(axis=2)
    n = totals.sum(axis=1)
    distance = _distance(totals, np.array(at, dtype=float), metric)
    observed = (matrices * distance).sum(axis=(1, 2)) / n
    expected = (totals[:, :, None] * totals[:, None, :] * distance).sum(axis=(1, 2)) / (n * (n - 1.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        result: Floats = np.where(expected > 0.0, 1.0 - observed / expected, np.nan)
    return result


def _distance(totals: Floats, at: Floats, metric: Metric) -> Floats:
    """Squared distances of grades, for each replication (only ranks differ between them)."""
    k = len(at)
    if metric == "nominal":
        return np.broadcast_to(1.0 - np.eye(k), (len(totals), k, k))
    if metric == "interval":
        return np.broadcast_to((at[:, None] - at[None, :]) ** 2, (len(totals), k, k))
    # The grades between two, and half of both: the difference of their mean ranks.
    middle = np.cumsum(totals, axis=1) - totals / 2.0
    result: Floats = (middle[:, :, None] - middle[:, None, :]) ** 2
    return result


def majority(labels: Iterable[Hashable]) -> Hashable | None:
    """The most frequent of ``labels``; None where two are equally frequent, and where there is none."""
    counts = Counter(labels)
    most = [label for label, n in counts.items() if n == max(counts.values())]
    return most[0] if len(most) == 1 else None
