"""What a watched criterion will show: thresholds for a wanted rate of false alarms, the smallest drop seen, how fast.

The detector, ``quality`` or ``rate``, is run over scores drawn from the baseline's own histogram, tilted until its
mean has dropped. A windowed mean is reckoned: looked at all the time, its normalised value is Slepian's process, which
crosses a high line u about ``u phi(u)`` times in the length of a window (Pickands, Trans. AMS 145, 1969, with constant
1); the quantile is corrected for the skewness of scores that pile up at 1 (Cornish and Fisher, 1938).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from math import exp, log, pi, sqrt
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from evalpipe.detectors.quality import QualityParams
from evalpipe.detectors.rate import RateParams
from evalpipe.detectors.streams import LEAST_RUN_LENGTH, counts_of, moments
from evalpipe.rollup import Rollup, bin_of
from evalpipe.stats import change

DROPS: Final = (0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.035, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.35, 0.6)
"""Relative drops of the mean that are tried."""
SHOWN: Final = (0.05, 0.1, 0.2)
"""Drops whose delay is told."""
HORIZONS: Final[Mapping[str, timedelta]] = {
    "1h": timedelta(hours=1), "1d": timedelta(days=1), "7d": timedelta(days=7),
}  # fmt: skip
WINDOWS: Final = tuple(timedelta(minutes=m) for m in (10, 30, 60, 180, 360, 720, 1440, 4320, 10080))
"""From which the window of a windowed mean is chosen."""
AIM: Final = 0.1
"""The drop that the window should show."""
LEAST_IN_WINDOW: Final = 30
_RUNS: Final = 200
_STEPS: Final = 240
_SURE: Final = 1.2816
"""Standard errors: nine of ten."""
_SEED: Final = 20_261_122

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Watched:
    """One criterion of a baseline.

    Attributes:
        rollup: its scores, with the histogram.
        days: how long they took.
        design_effect: of scores that hang together.
    """

    rollup: Rollup
    days: float
    design_effect: float = 1.0

    @property
    def per_day(self) -> float:
        """Scores a day."""
        return self.rollup.n_scored / self.days

    def law(self) -> tuple[Floats, Floats]:
        """The values of the histogram's bins, as detectors take them, and the share of scores that each has."""
        counts = counts_of(self.rollup)
        sizes = np.asarray([n for _, n in counts])
        return np.asarray([value for value, _ in counts]), sizes / sizes.sum()


@dataclass(frozen=True, slots=True)
class Delay:
    """How long until a drop is found.

    Attributes:
        drop: relative to the mean.
        scores: until the alarm, on the average; None where most runs did not find it.
        p90: scores within which nine of ten are found.
        hours: the average at the baseline's rate.
    """

    drop: float
    scores: float | None
    p90: float | None
    hours: float | None


@dataclass(frozen=True, slots=True)
class WindowLine:
    """A windowed mean with its line.

    Attributes:
        window: its length.
        below: the line.
        n: scores in a window, at the baseline's rate.
        smallest: relative drop that nine of ten windows show; None where none does.
        delays_h: by the relative drop, hours until the window shows it; None: it probably does not.
    """

    window: timedelta
    below: float
    n: int
    smallest: float | None
    delays_h: Mapping[float, float | None]


@dataclass(frozen=True, slots=True)
class WatchOutlook:
    """What watching a criterion will show.

    Attributes:
        detector: that is proposed.
        mean, sd: of one score.
        tolerated: the mean below which a change counts: tolerance and the baseline's own error.
        run_length: scores between two false alarms at the least, on the average.
        tried: delays of ``DROPS`` beyond what is tolerated.
        delays: of ``SHOWN``.
        smallest: by the horizon, the smallest drop that is found within it on the average; None: none.
        window: for a rule with ``mean``; None with too few scores.
    """

    detector: Literal["quality", "rate"]
    mean: float
    sd: float
    tolerated: float
    run_length: float
    tried: tuple[Delay, ...]
    delays: tuple[Delay, ...]
    smallest: Mapping[str, float | None]
    window: WindowLine | None


@dataclass(frozen=True, slots=True)
class _Test:
    """A detector as it will run on a criterion: of a share it counts what is 0."""

    detector: Literal["quality", "rate"]
    tolerated: float
    bets: tuple[change.Bet, ...]
    threshold: float
    design_effect: float
    per_day: float

    def grows(self, values: Floats) -> Floats:
        """What each value adds to the logarithm of each bet."""
        seen = 1.0 - values if self.detector == "rate" else values
        stakes, centres = (np.asarray([bet[i] for bet in self.bets]) for i in (0, 1))
        grown: Floats = np.log1p(stakes * (seen[:, None] - centres)) / self.design_effect
        return grown


def outlook(of: Watched, every: timedelta) -> WatchOutlook:
    """What the detectors, as they are by default, and a windowed mean make of this criterion.

    Of passes and fails the share of fails is watched (``rate``), which is quicker; of other scores the mean.

    Args:
        of: the criterion in its baseline.
        every: the wanted time between two false alarms.

    Raises:
        ValueError: it has no scores, or all of them are 0: nothing can drop.
    """
    if not of.rollup.n_scored or not of.rollup.sum_wx:
        raise ValueError("a criterion without scores above 0 cannot drop")
    values, shares = of.law()
    mean, variance, _ = moments(counts_of(of.rollup))
    test = _test(of, every)
    delays = {
        drop: _delay(test, values, tilted(values, shares, drop), drop)
        for drop in DROPS
        if mean * (1.0 - drop) < test.tolerated
    }
    return WatchOutlook(
        detector=test.detector,
        mean=mean,
        sd=sqrt(variance),
        tolerated=test.tolerated,
        run_length=test.threshold,
        tried=tuple(delays.values()),
        delays=tuple(delays.get(drop, Delay(drop, None, None, None)) for drop in SHOWN),
        smallest={name: _smallest(delays, of.per_day * span.total_seconds() / 86_400.0)
                  for name, span in HORIZONS.items()},
        window=_window(of, every, values, shares),
    )  # fmt: skip


def _test(of: Watched, every: timedelta) -> _Test:
    threshold = max(LEAST_RUN_LENGTH, of.per_day * every.total_seconds() / 86_400.0)
    mean, variance, n = moments(counts_of(of.rollup))
    independent = int(n / of.design_effect)
    if of.rollup.bins.keys() <= {bin_of(0.0), bin_of(1.0)}:
        share = change.share_limits(1.0 - mean, independent, RateParams.model_fields["tolerance"].default)
        bets = change.share_bets(share, "up")
        return _Test("rate", 1.0 - share.high, bets, threshold, of.design_effect, of.per_day)
    normal = change.limits(mean, variance, independent, QualityParams.model_fields["tolerance"].default)
    bets = change.mean_bets(mean, variance, normal, "down")
    return _Test("quality", normal.low, bets, threshold, of.design_effect, of.per_day)


def tilted(values: Floats, shares: Floats, drop: float) -> Floats:
    """The shares after a relative drop of the mean: tilted exponentially, the likeliest way there.

    Where even the lowest value is too high, a part of all scores becomes 0: the shares then add up to what is left.
    """
    target = float(values @ shares) * (1.0 - drop)
    if float(values.min()) >= target:
        return shares * (1.0 - drop)
    low, high = 0.0, 1e6
    for _ in range(200):
        theta = (low + high) / 2.0
        if float(values @ _tilt(values, shares, theta)) > target:
            low = theta
        else:
            high = theta
    return _tilt(values, shares, high)


def _tilt(values: Floats, shares: Floats, theta: float) -> Floats:
    weights = shares * np.exp(-theta * (values - values.min()))
    result: Floats = weights / weights.sum()
    return result


def _delay(test: _Test, values: Floats, shares: Floats, drop: float) -> Delay:
    """By simulation, in batches: the sums of bets until they reach the threshold."""
    if shares.sum() < 1.0 - 1e-9:
        values, shares = np.append(values, 0.0), np.append(shares, 1.0 - shares.sum())
    weights = np.asarray([bet.weight for bet in test.bets])
    grows = test.grows(values)
    speed = float((shares @ grows).max())
    if speed <= 0.0:
        return Delay(drop, None, None, None)
    batch = max(1, int(log(test.threshold) / speed / 40.0))
    rng = np.random.default_rng(_SEED)
    sums, found = np.zeros((_RUNS, len(weights))), np.full(_RUNS, np.inf)
    for step in range(1, _STEPS + 1):
        drawn = rng.multinomial(batch, shares, size=_RUNS)
        sums = (sums + weights * batch) * np.exp(np.minimum(drawn @ grows, 600.0))
        over = (sums.sum(axis=1) >= test.threshold) & np.isinf(found)
        found[over] = step * batch
        sums[~np.isinf(found)] = 0.0
        if not np.isinf(found).any():
            break
    if np.isinf(found).mean() > 0.1:
        return Delay(drop, None, None, None)
    found[np.isinf(found)] = _STEPS * batch
    # A change begins anywhere in a batch of the simulation.
    mean = max(1.0, float(found.mean()) - (batch - 1) / 2.0)
    return Delay(drop, mean, float(np.quantile(found, 0.9)), mean / test.per_day * 24.0)


def _smallest(delays: Mapping[float, Delay], scores: float) -> float | None:
    """The drop that so many scores show: between two that were tried, on a line of their logarithms."""
    known = [(drop, delay.scores) for drop, delay in sorted(delays.items()) if delay.scores is not None]
    before: tuple[float, float] | None = None
    for drop, needed in known:
        if needed <= scores:
            if before is None or before[1] <= needed:
                return drop
            share = log(before[1] / scores) / log(before[1] / needed)
            return exp(log(before[0]) + share * log(drop / before[0]))
        before = drop, needed
    return None


def _window(of: Watched, every: timedelta, values: Floats, shares: Floats) -> WindowLine | None:
    """The shortest window that shows a drop of 10 %, or the longest; none where all scores are alike."""
    found = None
    if len(values) < 2:
        return None
    for window in WINDOWS:
        if window * 2 > every or of.per_day * (window / timedelta(days=1)) < LEAST_IN_WINDOW:
            continue
        found = _line(of, every, window, values, shares)
        if found.smallest is not None and found.smallest <= AIM:
            break
    return found


def _line(of: Watched, every: timedelta, window: timedelta, values: Floats, shares: Floats) -> WindowLine:
    n = of.per_day * (window / timedelta(days=1))
    mean = float(values @ shares)
    sd = sqrt(float(((values - mean) ** 2) @ shares))
    error = sd * sqrt(of.design_effect / n)
    skew = float((((values - mean) / sd) ** 3) @ shares) * sqrt(of.design_effect / n) if sd > 0.0 else 0.0
    u = _height(window / every)
    known = change.TRUST * sd * sqrt(of.design_effect / of.rollup.n_scored)
    below = max(mean - known - error * max(u - (u * u - 1.0) * skew / 6.0, 0.0), 0.0)
    smallest = 1.0 - (below - _SURE * error) / mean
    delays: dict[float, float | None] = {}
    for drop in SHOWN:
        part = (mean - below) / (drop * mean)
        delays[drop] = part * window.total_seconds() / 3600.0 if drop >= smallest else None
    return WindowLine(window, round(below, 4), int(n), smallest if smallest < 1.0 else None, delays)


def _height(rate: float) -> float:
    """The u with u phi(u) = rate, the one above 1."""
    low, high = 1.0, 40.0
    for _ in range(80):
        u = (low + high) / 2.0
        low, high = (u, high) if u * exp(-u * u / 2.0) / sqrt(2.0 * pi) > rate else (low, u)
    return high
