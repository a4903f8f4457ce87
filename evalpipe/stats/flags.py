"""Does the canary show more flags than the baseline? The count test with bets for something that should hardly occur.

The formulas and what they assume are in ``evalpipe.stats.exceedance``. The bets are for a rate that is higher by .5, 1,
3 and 10 times the baseline's, or .002 if that is lower. With a margin in points there is a second test, for an advance:
that the canary's rate is below the baseline's + margin.
"""

from __future__ import annotations

from typing import Any, Final

from evalpipe.stats.exceedance import CountMatcher, PastRate, RateBets
from evalpipe.stats.matching import Arm

DELTAS: Final = (0.5, 1.0, 3.0, 10.0)
WEIGHTS: Final = (0.25, 0.25, 0.25, 0.25)
FLOOR: Final = 0.002
"""Rates below it are bet against as if they were this one."""
SAFE_DELTAS: Final = (0.5, 0.75, 0.95)
SAFE_WEIGHTS: Final = (0.3, 0.4, 0.3)
"""Bets that the canary's rate is lower than the baseline's + margin, by parts of the margin."""
PRIOR_COUNT: Final = 500
"""Records that the expected rate counts for against the rate seen."""


class FlagRates:
    """The sequential test that flags are more frequent in the canary, one record of each unit after another.

    Args:
        rate: of clean records that are flagged, as far as it is known: it sets the speed, not the guarantee.
        margin: of ``safe``, in points; None: there is no such test.
    """

    __slots__ = ("_bets", "_margin", "_matcher", "_past", "matched", "safe", "totals")

    def __init__(self, rate: float = FLOOR, margin: float | None = None) -> None:
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"a rate of flags must be in [0, 1), not {rate!r}")
        self._bets = RateBets(1, DELTAS, WEIGHTS)
        self._margin = margin
        self.safe = None if margin is None else RateBets(-1, SAFE_DELTAS, SAFE_WEIGHTS, shift=margin)
        self._matcher = CountMatcher()
        self._past = PastRate(rate, PRIOR_COUNT)
        self.totals = [0, 0, 0, 0]
        self.matched = [0, 0, 0, 0]

    def add(self, arm: Arm, flagged: bool) -> bool:
        """Take one record, in order; True if the e-value moved."""
        canary = 2 if arm == "canary" else 0
        self.totals[canary] += 1
        self.totals[canary + 1] += flagged
        block = self._matcher.add(arm, 1, int(flagged))
        if block is None:
            return False
        rate = self._past.value
        self._bets.update(block, rate, max(rate, FLOOR))
        if self.safe is not None and self._margin is not None:
            self.safe.update(block, rate, self._margin)
        self._past.add(block.n_baseline, block.e_baseline)
        for i in range(4):
            self.matched[i] += block[i]
        return True

    @property
    def rates(self) -> tuple[float | None, float | None]:
        """Flagged shares of the records taken: baseline, canary."""
        n_b, e_b, n_c, e_c = self.totals
        return (e_b / n_b if n_b else None), (e_c / n_c if n_c else None)

    @property
    def e_value(self) -> float:
        """Evidence now; 1 is none."""
        return self._bets.e_value

    @property
    def max_e_value(self) -> float:
        """The most evidence there ever was."""
        return self._bets.max_e_value

    def fired(self, alpha: float) -> bool:
        """Whether equal rates were ever rejected at ``alpha``; once true it stays true."""
        return self._bets.fired(alpha)

    def restart(self) -> None:
        """Begin again with the wealth at hand, but never with more than 1; records that wait are given up."""
        self._bets.restart()
        if self.safe is not None:
            self.safe.restart()
        self._matcher.flush()
        self.totals, self.matched = [0, 0, 0, 0], [0, 0, 0, 0]

    def to_state(self) -> dict[str, Any]:
        """All of it as JSON-safe values, apart from what the constructor takes."""
        return {
            "bets": self._bets.to_state(),
            "safe": None if self.safe is None else self.safe.to_state(),
            "matcher": self._matcher.to_state(),
            "past": self._past.to_state(),
            "totals": list(self.totals),
            "matched": list(self.matched),
        }

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of ``to_state``, bit by bit."""
        self._bets.load(state["bets"])
        if self.safe is not None:
            self.safe.load(state["safe"])
        self._matcher.load(state["matcher"])
        self._past.load(state["past"])
        self.totals, self.matched = list(state["totals"]), list(state["matched"])
