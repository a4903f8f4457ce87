"""Mean and variance of the baseline as known before a block: where the bets are centred."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MEAN_GAIN: Final = 0.002
VARIANCE_GAIN: Final = 0.001
RESTART_COUNT: Final = 30
_FLOOR: Final = 1e-3
_VARIANCE_FLOOR: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is known of the baseline before the test: it makes the test fast or slow, never invalid.

    Attributes:
        mean, variance: of one score.
        count: scores that stand behind them; few means that the first scores of the test soon outweigh them.
    """

    mean: float = 0.85
    variance: float = 0.06
    count: int = RESTART_COUNT

    def __post_init__(self) -> None:
        """Refuse what cannot be a mean, a variance or a count."""
        if not (self.mean > 0.0 and self.variance > 0.0 and self.count >= 1):
            raise ValueError(f"calibration needs mean > 0, variance > 0 and count >= 1, not {self!r}")


UNKNOWN: Final = Calibration(mean=0.85, variance=0.1, count=10)
"""A guess that a few scores outweigh; a variance that is too large costs less at the start than one too small."""


class Moments:
    """Running mean ``m`` and variance ``s2`` of past baselines.

    A plain average from the calibration onwards until its gain would fall under .002 (mean) or .001 (variance), then an
    exponential one, so that it follows drift. Update it only after the block was bet on. ``mean`` and ``variance`` are
    what is told, renewed after every sixteenth more scores, 32 at most: bets designed for them serve that long.
    """

    __slots__ = ("_due", "_mean", "_variance", "count", "mean", "variance")

    def __init__(self, calibration: Calibration | None = None) -> None:
        prior = calibration or UNKNOWN
        self.mean, self.variance, self.count = prior.mean, prior.variance, prior.count
        self._mean, self._variance, self._due = self.mean, self.variance, 0

    def update(self, baselines: list[float], hi: float) -> None:
        """Learn from the baselines of a block that is over; ``hi`` is the largest possible score."""
        mean, variance, count = self._mean, self._variance, self.count
        for x in baselines:
            count += 1
            error = x - mean
            mean += error / count if count * MEAN_GAIN < 1.0 else error * MEAN_GAIN
            gain = 1.0 / count if count * VARIANCE_GAIN < 1.0 else VARIANCE_GAIN
            variance += gain * (error * error - variance)
        self._mean, self._variance, self.count = mean, variance, count
        if count >= self._due:
            self._due = count + min(max(count // 16, 1), 32)
            self.mean = min(max(mean, _FLOOR * hi), hi)
            self.variance = max(variance, _VARIANCE_FLOOR)

    def restart(self) -> None:
        """Keep the values but learn fast again: what scores the records has changed."""
        self.count, self._due = min(self.count, RESTART_COUNT), 0

    def to_state(self) -> list[float]:
        """Mean, variance, count; mean and variance as told, and until when."""
        return [self._mean, self._variance, self.count, self.mean, self.variance, self._due]

    @classmethod
    def from_state(cls, state: list[float]) -> Moments:
        """The inverse of ``to_state``."""
        moments = cls()
        moments._mean, moments._variance, moments.count = state[0], state[1], int(state[2])
        moments.mean, moments.variance, moments._due = state[3], state[4], int(state[5])
        return moments
