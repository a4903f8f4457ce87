"""Do the arms get their shares of the units? An exact sequential test, for shares that change over time.

A mixture of likelihood ratios (Wald 1945; Robbins 1970): if the canary should get the share s of the units, each new
unit multiplies the wealth of a bet on the odds ratio r by p / s (canary) or (1 - p) / (1 - s) (baseline), with
p = s r / (s r + 1 - s). Its mean is exactly 1 if the share is s, so wealth reaches 1 / alpha with probability at most
alpha (Ville), whenever one looks, and s may be another for each unit as long as it is known before. It needs units that
are assigned independently of one another: count each user once, not each record.
"""

from __future__ import annotations

from math import exp, log
from typing import Any, Final

from evalpipe.stats.matching import Arm

ODDS: Final = (0.5, 0.67, 0.8, 0.9, 1.1, 1.25, 1.5, 2.0)
"""Odds ratios of the bets, of equal weight."""
_CEILING: Final = 690.0


class SampleRatio:
    """Wealth of the bets that the canary gets more or less than its share."""

    __slots__ = ("_logs", "_share", "_steps", "counts", "e_value", "expected", "max_e_value", "tested")

    def __init__(self) -> None:
        self._logs = [0.0] * len(ODDS)
        self._share = -1.0
        self._steps: tuple[list[float], list[float]] = ([], [])
        self.e_value = self.max_e_value = 1.0
        self.counts = [0, 0]
        self.tested = [0, 0]
        self.expected = 0.0

    def add(self, arm: Arm, share: float | None) -> bool:
        """Count a unit that is new; ``share`` is what the canary should get, None if nobody knows.

        Returns:
            Whether the e-value moved.

        Raises:
            ValueError: the arm is unknown, or the share is not in (0, 1).
        """
        canary = arm == "canary"
        if not canary and arm != "baseline":
            raise ValueError(f"arm must be 'baseline' or 'canary', not {arm!r}")
        self.counts[canary] += 1
        if share is None:
            return False
        if self._share != share:
            self._share, self._steps = share, _steps(share)
        self.tested[canary] += 1
        self.expected += share
        steps, logs = self._steps[canary], self._logs
        e_value = 0.0
        for i, step in enumerate(steps):
            logs[i] = grown = min(logs[i] + step, _CEILING)
            e_value += exp(grown)
        self.e_value = e_value = e_value / len(ODDS)
        self.max_e_value = max(e_value, self.max_e_value)
        return True

    def fired(self, alpha: float) -> bool:
        """Whether the shares were ever rejected at ``alpha``: latched."""
        return self.max_e_value * alpha >= 1.0

    @property
    def shares(self) -> tuple[float | None, float | None]:
        """The canary's share of the units tested: as expected, as seen."""
        n = sum(self.tested)
        return (self.expected / n, self.tested[1] / n) if n else (None, None)

    def to_state(self) -> dict[str, Any]:
        """All of it as JSON-safe values."""
        return {
            "logs": list(self._logs),
            "e_value": self.e_value,
            "max_e_value": self.max_e_value,
            "counts": list(self.counts),
            "tested": list(self.tested),
            "expected": self.expected,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> SampleRatio:
        """The inverse of ``to_state``, bit by bit."""
        new = cls()
        new._logs, new.counts, new.tested = list(state["logs"]), list(state["counts"]), list(state["tested"])
        new.e_value, new.max_e_value, new.expected = state["e_value"], state["max_e_value"], state["expected"]
        return new


def _steps(share: float) -> tuple[list[float], list[float]]:
    """What a baseline unit and what a canary unit add to the logarithms."""
    if not 0.0 < share < 1.0:
        raise ValueError(f"the canary's share must be in (0, 1), not {share!r}")
    bets = [share * odds / (share * odds + 1.0 - share) for odds in ODDS]
    return [log((1.0 - p) / (1.0 - share)) for p in bets], [log(p / share) for p in bets]
