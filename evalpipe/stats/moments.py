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


class Moments:
    """Running mean ``m`` and variance ``s2`` of past baselines.

    A plain average from the calibration onwards until its gain would fall under .002 (mean) or .001 (variance), then an
    exponential one, so that it follows drift . Update it only after the block was bet on.
    """

    __slots__ = ("count", "mean", "variance")

    def __init__(self, calibration: Calibration | None = None) -> None:
        prior = calibration or Calibration()
        self.mean, self.variance, self.count = prior.mean, prior.variance, prior.count

    def update(self, baselines: list[float], hi: float) -> None:
        """Learn from the baselines of a block that is over; ``hi`` is the largest possible score."""
        mean, variance, count = self.mean, self.variance, self.count
        for x in baselines:
            count += 1
            error = x - mean
            mean += error / count if count * MEAN_GAIN < 1.0 else error * MEAN_GAIN
            gain = 1.0 / count if count * VARIANCE_GAIN < 1.0 else VARIANCE_GAIN
            variance += gain * (error * error - variance)
        self.mean = min(max(mean, _FLOOR * hi), hi)
        self.variance = max(variance, _VARIANCE_FLOOR)
        self.count = count

    def restart(self) -> None:
        """Keep the values but learn fast again: what scores the records has changed."""
        self.count = min(self.count, RESTART_COUNT)

    def to_state(self) -> list[float]:
        """Mean, variance, count."""
        return [self.mean, self.variance, self.count]

    @classmethod
    def from_state(cls, state: list[float]) -> Moments:
        """The inverse of ``to_state``."""
        moments = cls()
        moments.mean, moments.variance, moments.count = state[0], state[1], int(state[2])
        return moments
