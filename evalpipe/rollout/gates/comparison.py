"""What a gate on a mean learns from two arms: harm, no harm beyond the margin, an estimate, and an interval."""

from __future__ import annotations

from typing import Any, Final

from evalpipe.rollout.plan import Gate
from evalpipe.stats.betting import EQUAL_WEIGHTS, RARE_EFFECTS, WEIGHTS, Bets, Direction, Four, Unit
from evalpipe.stats.control_variate import ControlVariate, Labelled
from evalpipe.stats.drop_interval import DropInterval
from evalpipe.stats.matched_block import MatchedEstimate
from evalpipe.stats.matching import Arm, Block, Matcher, Pairing
from evalpipe.stats.moments import Moments

QUALITY: Final[Four] = (0.8, 1.2, 2.0, 4.0)
"""Effects in margins."""
COST: Final[Four] = (0.8, 1.0, 1.6, 3.0)
COST_WEIGHTS: Final[Four] = (0.25, 0.45, 0.22, 0.08)
RATE_INTERVAL: Final = (0.5, 2.0)
"""Effects by which the interval of a rate is found, in multiples of it."""


class Comparison:
    """Two tests, an estimate and an interval over the same blocks, so that they speak of the same comparison."""

    __slots__ = ("_matcher", "_moments", "estimate", "harm", "interval", "safe")

    def __init__(self, gate: Gate) -> None:
        self.harm, self.safe = bets(gate)
        self.interval = DropInterval(unit="rare", effects=RATE_INTERVAL) if gate.kind == "rate" else DropInterval()
        self.estimate = MatchedEstimate()
        self._moments = Moments(gate.calibration)
        self._matcher = Matcher(gate.max_weights or (1.0, 1.0))

    def add(self, seq: int, arm: Arm, value: float, weight: float) -> bool:
        """Take a score, with its ``seq``; True if it completed a block."""
        block = self._matcher.add(arm, value, weight)
        if block is None:
            return False
        moments = self._moments
        mean, variance = moments.mean, moments.variance
        self.harm.update(block, mean, variance)
        self.safe.update(block, mean, variance)
        self.interval.update(block, mean, variance)
        self.estimate.update(block)
        moments.update(block.baselines, 1.0)
        return True

    def restart(self) -> None:
        """Begin anew: what comes is not to be compared with what was. Losses stay; see ``Bets.restart``."""
        self._matcher.clear()
        self._moments.restart()
        self.harm.restart()
        self.safe.restart()
        self.interval.restart()
        self.estimate = MatchedEstimate()

    def to_state(self) -> dict[str, Any]:
        """All of it as JSON-safe values."""
        return {
            "harm": self.harm.to_state(),
            "safe": self.safe.to_state(),
            "interval": self.interval.to_state(),
            "estimate": self.estimate.to_state(),
            "moments": self._moments.to_state(),
            "matcher": self._matcher.to_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of ``to_state``."""
        self.harm, self.safe = Bets.from_state(state["harm"]), Bets.from_state(state["safe"])
        self.interval = DropInterval.from_state(state["interval"])
        self.estimate = MatchedEstimate.from_state(state["estimate"])
        self._moments = Moments.from_state(state["moments"])
        self._matcher = Matcher.from_state(state["matcher"])


class ControlledComparison(Comparison):
    """The same with a control variate.

    The interval is made of the plain scores: it is wider than what the tests know.
    """

    __slots__ = ("_pairing", "control")

    def __init__(self, gate: Gate) -> None:
        super().__init__(gate)
        self.control = ControlVariate()
        self._pairing: Pairing[Labelled] = Pairing()

    def add(self, seq: int, arm: Arm, value: float, weight: float) -> bool:
        """Take a score; True if blocks were completed, by this one or by those that had waited for their signals."""
        self.control.score(seq, arm, value)
        return self.settle()

    def settle(self) -> bool:
        """Compare the scores whose signals have come; True if blocks were completed."""
        settled = False
        for item in self.control.ready():
            matched = self._pairing.match(item.arm, item)
            if matched is not None:
                self.compare(*matched)
                settled = True
        return settled

    def compare(self, baselines: list[Labelled], canaries: list[Labelled]) -> None:
        """Settle the tests on one block."""
        moments, control = self._moments, self.control
        mean, variance = moments.mean, moments.variance
        block, residuals, whole, ratio = control.adjust(baselines, canaries)
        self.harm.update(block, mean, variance * ratio, residuals)
        self.safe.update(block, mean, variance * ratio, residuals)
        plain = Block([item.y for item in baselines], sum(item.y for item in canaries) / len(canaries), len(canaries))
        self.interval.update(plain, mean, variance)
        self.estimate.update(whole)
        moments.update(plain.baselines, 1.0)
        control.learn([*baselines, *canaries], ratio)

    def restart(self) -> None:
        """As without a control; what was learnt of the signal stays."""
        super().restart()
        self.control.clear()
        self._pairing.clear()

    def to_state(self) -> dict[str, Any]:
        """All of it as JSON-safe values."""
        return super().to_state() | {"control": self.control.to_state(), "pairing": self._pairing.to_state()}

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of ``to_state``."""
        super().load(state)
        self.control = ControlVariate.from_state(state["control"])
        self._pairing = Pairing.from_state(state["pairing"], Labelled._make)


def bets(gate: Gate) -> tuple[Bets, Bets]:
    """Processes for "there is harm" and "there is no harm of the margin or more".

    Effects of .8 to 4 margins are bet on, most of the wealth on those of about one (for a cost, whose law is skewed, a
    little less); harm to a rate may be any multiple of it.
    """
    shares, weights = (COST, COST_WEIGHTS) if gate.kind == "cost" else (QUALITY, WEIGHTS)
    effects = (shares[0] * gate.margin, shares[1] * gate.margin, shares[2] * gate.margin, shares[3] * gate.margin)
    unit: Unit = "mean" if gate.relative else "one"
    opposite: Direction = -1 if gate.sign > 0 else 1
    if gate.kind == "rate":
        harm = Bets(gate.sign, effects=RARE_EFFECTS, weights=EQUAL_WEIGHTS, unit="rare")
    else:
        harm = Bets(gate.sign, effects=effects, weights=weights, unit=unit)
    if gate.relative:
        return harm, Bets(opposite, tau=-gate.margin, effects=effects, weights=weights)
    return harm, Bets(opposite, effects=effects, weights=weights, unit=unit, shift=-gate.sign * gate.margin)
