"""Harm in a part of the traffic that the whole hides: a small test for each segment, with one alpha for all of them."""

from __future__ import annotations

from typing import Any, Final

from evalpipe.rollout.plan import Gate, Segments
from evalpipe.stats.betting import EQUAL_WEIGHTS, RARE_EFFECTS, Bets, Four, Unit
from evalpipe.stats.matched_block import MatchedEstimate
from evalpipe.stats.matching import Arm, Matcher
from evalpipe.stats.moments import Moments

OTHER: Final = "other"
"""Name of the segments that showed up after the first ``most``."""
_WEIGHTS: Final[Four] = (0.15, 0.30, 0.35, 0.20)
"""A part of the traffic shows large harm or none: effects of one to eight margins."""


class Watch:
    """Test and estimate of one segment."""

    __slots__ = ("_matcher", "_moments", "estimate", "harm", "threshold")

    def __init__(self, gate: Gate, threshold: float) -> None:
        unit: Unit = "mean" if gate.relative else "one"
        if gate.kind == "rate":
            self.harm = Bets(gate.sign, effects=RARE_EFFECTS, weights=EQUAL_WEIGHTS, unit="rare")
        else:
            effects = (gate.margin, 2.0 * gate.margin, 4.0 * gate.margin, 8.0 * gate.margin)
            self.harm = Bets(gate.sign, effects=effects, weights=_WEIGHTS, unit=unit)
        self.threshold = threshold
        self.estimate = MatchedEstimate()
        self._moments = Moments(gate.calibration)
        self._matcher = Matcher(gate.max_weights or (1.0, 1.0))

    def add(self, arm: Arm, value: float, weight: float) -> bool:
        """Take a score; True if it completed a block."""
        block = self._matcher.add(arm, value, weight)
        if block is None:
            return False
        self.harm.update(block, self._moments.mean, self._moments.variance)
        self.estimate.update(block)
        self._moments.update(block.baselines, 1.0)
        return True

    def restart(self) -> None:
        """See ``Comparison.restart``."""
        self._matcher.clear()
        self._moments.restart()
        self.harm.restart()
        self.estimate = MatchedEstimate()

    def to_state(self) -> list[Any]:
        """All of it as JSON-safe values."""
        return [self.harm.to_state(), self.estimate.to_state(), self._moments.to_state(), self._matcher.to_state()]

    def load(self, state: list[Any]) -> None:
        """The inverse of ``to_state``."""
        self.harm, self.estimate = Bets.from_state(state[0]), MatchedEstimate.from_state(state[1])
        self._moments, self._matcher = Moments.from_state(state[2]), Matcher.from_state(state[3])


class SegmentWatch:
    """The segments of one gate, in the order in which they showed up.

    The k-th is found harmed when its e-value reaches 1 / (alpha w_k), with w_k = 1 / (k H) and H the sum of 1 / k over
    all that may be watched. The weights are fixed beforehand and sum to 1, so the probability that any segment is named
    that is not harmed is at most alpha (Bonferroni with weights), whether others are harmed or not; averaging e-values
    would not tell which, and e-BH bounds the share of false names and not their probability. Large segments show up
    first and pay little: with twenty, the first needs 3.6 times the evidence that it would need alone.
    """

    __slots__ = ("_gate", "_harmed", "_segments", "_sum", "watched")

    def __init__(self, gate: Gate, segments: Segments) -> None:
        self._gate, self._segments = gate, segments
        self._sum = sum(1.0 / k for k in range(1, segments.most + 2))
        self.watched: dict[str, Watch] = {}
        self._harmed = ""

    def add(self, segment: str, arm: Arm, value: float, weight: float) -> bool:
        """Take a score; True if another segment is the harmed one now, or none is any more."""
        watch = self.watched.get(segment)
        if watch is None:
            watch = self._watch(segment)
        if not watch.add(arm, value, weight):
            return False
        if watch.harm.max_e_value < watch.threshold:
            return False
        before, self._harmed = self._harmed, self._worst()
        return self._harmed != before

    def _watch(self, segment: str) -> Watch:
        if len(self.watched) >= self._segments.most:
            segment = OTHER
        if segment not in self.watched:
            self.watched[segment] = Watch(self._gate, self._threshold(len(self.watched) + 1))
        return self.watched[segment]

    def _threshold(self, k: int) -> float:
        return k * self._sum / self._segments.alpha

    def _worst(self) -> str:
        found = [(watch.harm.max_e_value / watch.threshold, name) for name, watch in self.watched.items()]
        return max([entry for entry in found if self._is_harmed(self.watched[entry[1]])], default=(0.0, ""))[1]

    def _is_harmed(self, watch: Watch) -> bool:
        change, gate = watch.estimate.change(relative=self._gate.relative), self._gate
        return (
            watch.harm.max_e_value >= watch.threshold
            and watch.estimate.n_canary >= gate.min_canary
            and change is not None
            and gate.sign * change >= gate.estimate_share * gate.margin
        )

    @property
    def harmed(self) -> str:
        """The segment in which harm is proven most clearly; "" if there is none."""
        return self._harmed

    @property
    def rolls_back(self) -> bool:
        """Harm of a segment acts as harm of the whole does."""
        return self._segments.role == "guardrail"

    def detail(self) -> str:
        """The harmed segment in words; "" without one."""
        if not self._harmed:
            return ""
        watch = self.watched[self._harmed]
        drop, n = watch.estimate.drop, watch.estimate.n_canary
        change = "changed" if drop is None else f"{-drop:+.1%}"
        return f"{self._segments.by} {self._harmed!r}: {change} over {n} canary scores (E {watch.harm.max_e_value:.3g})"

    def restart(self) -> None:
        """See ``Comparison.restart``."""
        for watch in self.watched.values():
            watch.restart()
        self._harmed = ""

    def numbers(self) -> list[dict[str, Any]]:
        """One entry a segment, in the order in which they showed up."""
        return [
            {
                "segment": name,
                "estimate": None if watch.estimate.drop is None else 0.0 - watch.estimate.drop,
                "e_value": watch.harm.e_value,
                "max_e_value": watch.harm.max_e_value,
                "threshold": watch.threshold,
                "mean_baseline": watch.estimate.means[0],
                "mean_canary": watch.estimate.means[1],
                "matched_baseline": watch.estimate.n_baseline,
                "matched_canary": watch.estimate.n_canary,
                "harmed": self._is_harmed(watch),
            }
            for name, watch in self.watched.items()
        ]

    def to_state(self) -> dict[str, Any]:
        """All of it as JSON-safe values."""
        return {"watched": [[name, watch.to_state()] for name, watch in self.watched.items()], "harmed": self._harmed}

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of ``to_state``."""
        for k, (name, watch) in enumerate(state["watched"], 1):
            self.watched[name] = Watch(self._gate, self._threshold(k))
            self.watched[name].load(watch)
        self._harmed = state["harmed"]
