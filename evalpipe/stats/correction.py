"""What people would have said: pass rates and means corrected for the judge's measured error.

A raw interval says how far the mean of the judge's grades is known, not how far the judge is right: with a biased judge
it never holds the truth, however many records are graded. Here both go into the interval: the records that were graded,
and the labelled ones that the judge's error was measured on.

All of it assumes that the labelled records are a random sample, with weights 1 / inclusion probability, of records on
which the judge errs as it does on those that are reported, and that people are right:

* ``rogan_gladen`` (pass and fail): sensitivity and specificity are the same. The pass rate may differ.
* ``prediction_powered`` (means): the mean difference of people and judge is the same; with ``tune`` the labelled
  records are a sample of the very records that are reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from math import sqrt
from statistics import NormalDist
from typing import Any, Final, Literal

import numpy as np

from evalpipe.rollup import Rollup
from evalpipe.stats.mean_interval import MeanInterval, interval_of, student

Method = Literal["rogan-gladen", "ppi"]

LEAST: Final = 30
"""Fewer labelled records than this correct nothing."""
LEAST_OF_EACH: Final = 10
"""Nor do fewer good or fewer bad ones (by people), where sensitivity and specificity are needed."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Sums over labelled records, enough for every correction: h is what people say, j the judge, w the weight.

    Attributes:
        n: records with both grades and a weight.
        good, bad: records that people gave 1 and 0.
        binary: 1 if all grades are 0 or 1.
        w, wh, wj, whj, w2, w2h, w2j, w2hh, w2jj, w2hj: sums; ``w2hj`` is that of w^2 h j.
    """

    n: int = 0
    good: int = 0
    bad: int = 0
    binary: int = 1
    w: float = 0.0
    wh: float = 0.0
    wj: float = 0.0
    whj: float = 0.0
    w2: float = 0.0
    w2h: float = 0.0
    w2j: float = 0.0
    w2hh: float = 0.0
    w2jj: float = 0.0
    w2hj: float = 0.0

    @classmethod
    def of(cls, triples: Iterable[tuple[float, float, float]]) -> Labelled:
        """From (h, j, w) of each record; what weighs nothing is left out."""
        kept = np.array([row for row in triples if row[2] > 0.0], dtype=float).reshape(-1, 3)
        h, j, w = kept.T
        w2 = w * w
        return cls(
            n=len(kept),
            good=int((h == 1.0).sum()),
            bad=int((h == 0.0).sum()),
            binary=int(np.isin(kept[:, :2], (0.0, 1.0)).all()),
            w=float(w.sum()),
            wh=float(w @ h),
            wj=float(w @ j),
            whj=float(w @ (h * j)),
            w2=float(w2.sum()),
            w2h=float(w2 @ h),
            w2j=float(w2 @ j),
            w2hh=float(w2 @ (h * h)),
            w2jj=float(w2 @ (j * j)),
            w2hj=float(w2 @ (h * j)),
        )

    def to_state(self) -> dict[str, Any]:
        """All of it as JSON-safe values."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Labelled:
        """The inverse of ``to_state``."""
        return cls(**{field.name: state[field.name] for field in fields(cls)})

    @property
    def sensitivity(self) -> float | None:
        """Of what people pass, the share that the judge passes; for pass and fail."""
        return self.whj / self.wh if self.wh > 0.0 else None

    @property
    def specificity(self) -> float | None:
        """Of what people fail, the share that the judge fails; for pass and fail."""
        failed = self.w - self.wh
        return 1.0 - (self.wj - self.whj) / failed if failed > 0.0 else None

    @property
    def sizes(self) -> tuple[float, float]:
        """Good and bad records, counted as equal weights would need them (Kish 1965); for pass and fail."""
        bad, w2_bad = self.w - self.wh, self.w2 - self.w2h
        return (
            self.wh**2 / self.w2h if self.w2h > 0.0 else 0.0,
            bad**2 / w2_bad if w2_bad > 0.0 else 0.0,
        )


@dataclass(frozen=True, slots=True)
class Corrected:
    """A corrected mean with its interval, or the reason why there is none.

    Attributes:
        mean, low, high: in [0, 1]; all None together.
        method: how it was corrected; None where it was not.
        reason: why it was not; "" where it was.
        tuned: the power of the judge's grades in a prediction-powered mean, from 0 (not used) to 1.
    """

    mean: float | None = None
    low: float | None = None
    high: float | None = None
    method: Method | None = None
    reason: str = ""
    tuned: float | None = None


def corrected(rollup: Rollup, labelled: Labelled) -> Corrected:
    """A rollup's mean, corrected: by Rogan and Gladen where people and judge pass or fail, else prediction-powered.

    Never tuned: a rollup is of one variant and time, and the labelled records may be of another mixture.
    """
    raw = interval_of(rollup)
    if raw is None:
        return Corrected(reason="nothing was scored")
    # Pass and fail: no scored value lies between 0 and 1.
    if labelled.binary and rollup.sum_wx - rollup.sum_wx2 <= 1e-9 * rollup.sum_w:
        return rogan_gladen(raw, labelled)
    return prediction_powered(raw, labelled, whole=rollup.sum_w)


def rogan_gladen(raw: MeanInterval, labelled: Labelled) -> Corrected:
    """The true pass rate behind the judge's: (q + specificity - 1) / (sensitivity + specificity - 1).

    Rogan and Gladen 1978 (American Journal of Epidemiology 107); for judges Lee et al., arXiv 2511.21140. The interval
    is by the delta method with the variances of all three, each drawn to the middle by the pseudo-counts of Lang and
    Reiczigel 2014 (Preventive Veterinary Medicine 113), which is also where the shift of the centre comes from. For
    the rate, the interval of Wilson is what their pseudo-counts are, and it knows of weights.

    There is none where the labelled records are too few, or where the judge cannot be told from chance: then no value
    of the true rate could be ruled out.

    Args:
        raw: the judge's pass rate with its interval.
        labelled: of grades 0 and 1.
    """
    if reason := _too_few(labelled, each=True):
        return Corrected(reason=reason)
    z = NormalDist().inv_cdf(0.5 + raw.level / 2)
    sensitivity, specificity = labelled.sensitivity, labelled.specificity
    assert sensitivity is not None
    assert specificity is not None
    (n_good, n_bad) = labelled.sizes
    skill = sensitivity + specificity - 1.0
    se, se_var = _drawn(sensitivity, n_good)
    sp, sp_var = _drawn(specificity, n_bad)
    if skill <= 0.0 or se + sp - 1.0 <= z * sqrt(se_var + sp_var):
        return Corrected(
            reason=f"the judge cannot be told from chance: sensitivity {sensitivity:.2f} + specificity "
            f"{specificity:.2f} - 1 = {skill:.2f}"
        )
    mean = _clipped((raw.mean + specificity - 1.0) / skill)
    rate, rate_var = (raw.low + raw.high) / 2, ((raw.high - raw.low) / (2 * z)) ** 2
    skill = se + sp - 1.0
    centre = (rate + sp - 1.0) / skill
    shift = 2.0 * z * z * (centre * se_var - (1.0 - centre) * sp_var)
    half = z * sqrt(rate_var + centre**2 * se_var + (1.0 - centre) ** 2 * sp_var) / skill
    return _around(mean, centre + shift - half, centre + shift + half, "rogan-gladen")


def prediction_powered(raw: MeanInterval, labelled: Labelled, *, whole: float, tune: bool = False) -> Corrected:
    """The mean that people would give: tuned * (judge's mean) + mean of (people - tuned * judge) over labelled records.

    Prediction-powered inference (Angelopoulos et al. 2023, arXiv 2301.09633), with the power tuning of PPI++
    (arXiv 2311.01453) where ``tune`` is set: a judge that says little about people's grades then counts little. Where
    the labelled records are some of those behind ``raw``, the best power is the slope of people's grades on the
    judge's, and the labels alone are what remains where all records are labelled.

    The variance is the sum of both parts', linearised for weights, and twice their covariance where it is above 0:
    it is that of all labelled records being among those behind ``raw``, which is the worst there can be. A judge that
    shrinks its grades to the middle makes it so. Two labelled records that differ by half the scale in either
    direction are added to the variance, since agreement throughout a small sample is not certainty (Bonett and Price
    2012, for pass and fail), and Student's t stands for z.

    Args:
        raw: the mean of the judge's grades with its interval.
        labelled: of any grades in [0, 1].
        whole: sum of the weights behind ``raw``.
        tune: only where the labelled records are a random sample of the records behind ``raw``; else a labelled set of
            another mixture would pull the mean towards its own.
    """
    if reason := _too_few(labelled, each=False):
        return Corrected(reason=reason)
    z = NormalDist().inv_cdf(0.5 + raw.level / 2)
    raw_var = ((raw.high - raw.low) / (2 * z)) ** 2
    h, j = labelled.wh / labelled.w, labelled.wj / labelled.w
    of_both = max(labelled.w2hj - j * labelled.w2h - h * labelled.w2j + h * j * labelled.w2, 0.0)
    of_judge = max(labelled.w2jj - 2.0 * j * labelled.w2j + j * j * labelled.w2, 0.0)
    power = 1.0
    if tune:
        power = _clipped(of_both / of_judge) if of_judge > 1e-12 * labelled.w2 else 0.0
    mean = power * raw.mean + h - power * j
    n_eff = labelled.w**2 / labelled.w2
    labelled_var = _difference_variance(labelled, power, n_eff)
    t = student(z, max(n_eff - 1.0, 2.0))
    shared = max(power * (of_both - power * of_judge), 0.0) / (labelled.w * max(labelled.w, whole))
    half = sqrt((z * power) ** 2 * raw_var + t * t * labelled_var + 2.0 * z * t * shared)
    found = _around(_clipped(mean), mean - half, mean + half, "ppi")
    return Corrected(found.mean, found.low, found.high, "ppi", tuned=power)


def _difference_variance(labelled: Labelled, power: float, n_eff: float) -> float:
    """Of the labelled mean of people - power * judge, with the two records that are added."""
    s = labelled
    d = (s.wh - power * s.wj) / s.w
    w2d = s.w2h - power * s.w2j
    w2dd = s.w2hh - 2.0 * power * s.w2hj + power * power * s.w2jj
    variance = max(w2dd - 2.0 * d * w2d + d * d * s.w2, 0.0) / s.w2  # of one difference
    return (n_eff * variance + 2.0 * 0.25) / (n_eff + 2.0) / n_eff


def _too_few(labelled: Labelled, *, each: bool) -> str:
    if labelled.n < LEAST:
        return f"only {labelled.n} labelled records; a correction needs {LEAST}"
    if each and min(labelled.good, labelled.bad) < LEAST_OF_EACH:
        return (
            f"of {labelled.n} labelled records people pass {labelled.good} and fail {labelled.bad}; a correction needs "
            f"{LEAST_OF_EACH} of each"
        )
    return ""


def _drawn(rate: float, n: float) -> tuple[float, float]:
    """A rate drawn to the middle by two pseudo-counts, and its variance (Lang and Reiczigel 2014)."""
    drawn = (n * rate + 1.0) / (n + 2.0)
    return drawn, drawn * (1.0 - drawn) / n


def _clipped(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _around(mean: float, low: float, high: float, method: Method) -> Corrected:
    return Corrected(mean, min(_clipped(low), mean), max(_clipped(high), mean), method)
