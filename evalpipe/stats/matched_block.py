"""The matched-block e-process: is the canary worse than the baseline, looked at after every score.

The heart of evalpipe's decisions; the formulas and their source are in ``evalpipe.stats.betting``, the order of
comparison in ``evalpipe.stats.matching``. Plain floats, constant memory.
"""

from __future__ import annotations

from typing import Any

from evalpipe.stats.betting import Bets, Direction
from evalpipe.stats.matching import Arm, Block, Matcher
from evalpipe.stats.moments import Calibration, Moments


class MatchedEstimate:
    """The relative drop of the canary, estimated over matched blocks.

    A ratio of sums over blocks, each with weight 1 / (1/kb + 1/kc). Because each block compares scores of the same
    time, a ramp plus a drift of both arms does not bias it, as it would bias the ratio of the two arms' overall means.
    """

    __slots__ = ("n_baseline", "n_blocks", "n_canary", "sum_baseline", "sum_canary", "sum_weight")

    def __init__(self) -> None:
        self.n_blocks = self.n_baseline = self.n_canary = 0
        self.sum_weight = self.sum_baseline = self.sum_canary = 0.0

    def update(self, block: Block) -> None:
        """Count one block."""
        baselines, canary, k_canary = block
        k = len(baselines)
        weight = k * k_canary / (k + k_canary)
        self.n_blocks += 1
        self.n_baseline += k
        self.n_canary += k_canary
        self.sum_weight += weight
        self.sum_baseline += weight * (sum(baselines) / k if k > 1 else baselines[0])
        self.sum_canary += weight * canary

    @property
    def drop(self) -> float | None:
        """1 - canary / baseline: .05 is five per cent lower, negative is higher; None while nothing is compared."""
        return 1.0 - self.sum_canary / self.sum_baseline if self.sum_baseline > 0.0 else None

    def change(self, *, relative: bool = True) -> float | None:
        """The canary less the baseline, as a share of it or in points; None while nothing is compared.

        Infinite where the baseline has nothing of what the canary has some of.
        """
        if not self.n_blocks:
            return None
        if not relative:
            return (self.sum_canary - self.sum_baseline) / self.sum_weight
        if self.sum_baseline > 0.0:
            return self.sum_canary / self.sum_baseline - 1.0
        return float("inf") if self.sum_canary > 0.0 else None

    @property
    def means(self) -> tuple[float | None, float | None]:
        """Means of the matched scores: baseline, canary."""
        if not self.n_blocks:
            return None, None
        return self.sum_baseline / self.sum_weight, self.sum_canary / self.sum_weight

    def to_state(self) -> list[float]:
        """The six sums."""
        return [
            self.n_blocks, self.n_baseline, self.n_canary, self.sum_weight, self.sum_baseline, self.sum_canary
        ]  # fmt: skip

    @classmethod
    def from_state(cls, state: list[float]) -> MatchedEstimate:
        """The inverse of ``to_state``."""
        estimate = cls()
        estimate.n_blocks, estimate.n_baseline, estimate.n_canary = (int(n) for n in state[:3])
        estimate.sum_weight, estimate.sum_baseline, estimate.sum_canary = state[3:]
        return estimate


class MatchedBlock:
    """One hypothesis about two arms, tested score by score.

    ``direction=-1, tau=0`` gathers evidence for "the canary is worse"; ``direction=-1, tau=.05`` for "worse by more
    than 5 %"; ``direction=+1, tau=-.05`` for "worse by less than 5 %" (promotion). Fire when ``fired(alpha)``.

    Args:
        direction: -1 gathers evidence that the canary is lower, +1 that it is higher.
        tau: the tolerated relative change in that direction.
        hi: the largest possible score; scores are in [0, hi].
        calibration: what is known of the baseline.
        max_weights: largest weight in the baseline and in the canary; see ``Matcher``.
    """

    __slots__ = ("_bets", "_estimate", "_matcher", "_moments", "_totals")

    def __init__(
        self,
        direction: Direction = -1,
        tau: float = 0.0,
        *,
        hi: float = 1.0,
        calibration: Calibration | None = None,
        max_weights: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        self._bets = Bets(direction, tau, hi)
        self._matcher = Matcher(max_weights)
        self._moments = Moments(calibration)
        self._estimate = MatchedEstimate()
        self._totals = {"baseline": [0, 0.0, 0.0], "canary": [0, 0.0, 0.0]}

    def add(self, arm: Arm, value: float, weight: float = 1.0) -> bool:
        """Take one score, in sampling order; True if it completed a block, that is if the e-value moved.

        Raises:
            ValueError: unknown arm, a value outside [0, hi], or a weight outside (0, max_weight of the arm].
        """
        bets = self._bets
        if not 0.0 <= value <= bets.hi:
            raise ValueError(f"a {arm} score must be in [0, {bets.hi:g}], not {value!r}")
        block = self._matcher.add(arm, value, weight)
        total = self._totals[arm]
        total[0] += 1
        total[1] += weight
        total[2] += weight * value
        if block is None:
            return False
        moments = self._moments
        bets.update(block, moments.mean, moments.variance)
        self._estimate.update(block)
        moments.update(block.baselines, bets.hi)
        return True

    @property
    def e_value(self) -> float:
        """Evidence now; 1 is none."""
        return self._bets.e_value

    @property
    def max_e_value(self) -> float:
        """The most evidence there ever was."""
        return self._bets.max_e_value

    @property
    def p_value(self) -> float:
        """Running p-value, valid whenever it is read: 1 / max E."""
        return 1.0 / self._bets.max_e_value

    def fired(self, alpha: float) -> bool:
        """Whether the null was ever rejected at ``alpha``; once true it stays true."""
        return self._bets.fired(alpha)

    @property
    def counts(self) -> tuple[int, int]:
        """Scores taken: baseline, canary."""
        return int(self._totals["baseline"][0]), int(self._totals["canary"][0])

    @property
    def matched(self) -> tuple[int, int]:
        """Scores that entered a block: baseline, canary."""
        return self._estimate.n_baseline, self._estimate.n_canary

    @property
    def means(self) -> tuple[float | None, float | None]:
        """Weighted means of all scores taken: baseline, canary. For display; decisions use ``drop``."""
        (_, w_b, x_b), (_, w_c, x_c) = self._totals["baseline"], self._totals["canary"]
        return (x_b / w_b if w_b else None), (x_c / w_c if w_c else None)

    @property
    def drop(self) -> float | None:
        """Estimated relative drop of the canary over matched blocks; see ``MatchedEstimate``."""
        return self._estimate.drop

    def to_state(self) -> dict[str, Any]:
        """All of it as JSON-safe values: about 30 numbers and the scores that wait."""
        return {
            "bets": self._bets.to_state(),
            "matcher": self._matcher.to_state(),
            "moments": self._moments.to_state(),
            "estimate": self._estimate.to_state(),
            "totals": {arm: list(total) for arm, total in self._totals.items()},
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> MatchedBlock:
        """The inverse of ``to_state``: the test goes on bit by bit as if never interrupted."""
        engine = cls()
        engine._bets = Bets.from_state(state["bets"])
        engine._matcher = Matcher.from_state(state["matcher"])
        engine._moments = Moments.from_state(state["moments"])
        engine._estimate = MatchedEstimate.from_state(state["estimate"])
        engine._totals = {arm: list(total) for arm, total in state["totals"].items()}
        return engine
