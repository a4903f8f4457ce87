"""Gates on the mean of a score, kinds ``quality`` and ``rate``: matched blocks, two keys, one score of each unit."""

from __future__ import annotations

from typing import Any, Final

from evalpipe.rollout.gates.arms import Arms
from evalpipe.rollout.gates.base import HarmCause, Standing, kinds
from evalpipe.rollout.gates.comparison import Comparison, ControlledComparison
from evalpipe.rollout.gates.marks import Marks
from evalpipe.rollout.gates.segments import SegmentWatch
from evalpipe.rollout.inputs import Evidence, MeterReading
from evalpipe.rollout.plan import Gate, RolloutPlan
from evalpipe.score import Status
from evalpipe.stats.seen import SeenUnits

LEAST_CANARY: Final = 5
"""Canary values compared before catastrophic harm acts."""
_ROUNDING: Final = 1.0 - 1e-9


@kinds.register("quality")
@kinds.register("rate")
class MeanGate:
    """Evidence of one gate on a mean: of the whole, and of its segments where the plan watches them."""

    __slots__ = ("_controlled", "_harm_at", "_harmed", "_marks", "_proven", "_safe_at", "_seen", "arms", "comparison",
                 "gate", "segments")  # fmt: skip

    def __init__(self, gate: Gate, plan: RolloutPlan) -> None:
        self.gate = gate
        self._harm_at, self._safe_at = 1.0 / gate.alpha, 1.0 / gate.advance_alpha
        self._controlled: ControlledComparison | None = None
        if gate.control not in {"", gate.criterion} and gate.max_weights is None:
            self._controlled = ControlledComparison(gate)
        self.comparison: Comparison = self._controlled or Comparison(gate)
        self.segments = None if plan.segments is None else SegmentWatch(gate, plan.segments)
        self.arms = Arms(gate)
        self._marks = Marks(gate, plan)
        self._seen = SeenUnits()
        self._harmed = self._proven = False

    def take(self, evidence: Evidence) -> bool:
        """Take one score, or a signal of the control, in order; True if the standing may have changed."""
        if evidence.criterion != self.gate.criterion:
            return self._take_signal(evidence)
        arms, turned = self.arms, False
        admitted = arms.admit(evidence)
        if arms.turned:
            turned, arms.turned = True, False
            if arms.renewed:
                arms.renewed = False
                self._restart()
        return (admitted and self._enter(evidence)) or turned

    def _take_signal(self, evidence: Evidence) -> bool:
        controlled = self._controlled
        if controlled is None or evidence.criterion != self.gate.control:
            return False
        usable = evidence.status is Status.SCORED and not evidence.suspect
        value = evidence.value if usable else None
        controlled.control.signal(evidence.seq, evidence.arm, evidence.unit, value, evidence.epoch)
        return controlled.settle() and self._turned()

    def _enter(self, evidence: Evidence) -> bool:
        seq, _, arm, unit, _, value, weight, _, _, _, segment, _ = evidence
        tally = self.arms.canary if arm == "canary" else self.arms.baseline
        if value is None or not self._seen.add(unit):
            tally.collapsed += 1
            return False
        tally.used += 1
        bounds = self.gate.max_weights
        weight = min(weight, bounds[arm == "canary"]) if bounds else 1.0
        turned = self.comparison.add(seq, arm, value, weight) and self._turned()
        if self.segments is not None and segment:
            return self.segments.add(segment, arm, value, weight) or turned
        return turned

    def _restart(self) -> None:
        self.comparison.restart()
        if self.segments is not None:
            self.segments.restart()
        self._harmed = self._proven = False
        self._marks.ramp(0)

    def _turned(self) -> bool:
        """Whether anything changed that the standing shows, or a count was reached that somebody waits for."""
        comparison = self.comparison
        n_canary = comparison.estimate.n_canary
        turned = self._marks.reached(n_canary) or self.arms.uneven
        if comparison.harm.max_e_value >= self._harm_at:
            harmed = self._is_harmed()
            turned = turned or harmed is not self._harmed
            self._harmed = harmed
        if not self._proven and comparison.safe.max_e_value >= self._safe_at and n_canary >= self.gate.min_canary:
            turned = self._proven = True
        return turned

    def _is_harmed(self) -> bool:
        """Both keys of a rollback, and enough canaries for the harm that it is."""
        gate, estimate = self.gate, self.comparison.estimate
        change = estimate.change(relative=gate.relative)
        if change is None:
            return False
        beyond, n = gate.sign * change / gate.margin, estimate.n_canary
        if n < gate.min_canary and not (n >= LEAST_CANARY and beyond >= gate.catastrophic * _ROUNDING):
            return False
        return beyond >= gate.estimate_share * _ROUNDING

    def _stands_at_worst(self) -> bool:
        """Whether there is harm even if all missing scores speak for the canary and against the baseline."""
        gate, (baseline, canary) = self.gate, self.comparison.estimate.means
        if baseline is None or canary is None:
            return False
        lost_b, lost_c = self.arms.baseline.missing_of_all, self.arms.canary.missing_of_all
        best = gate.sign < 0  # what speaks for a canary: the highest score, or the lowest
        canary = canary * (1.0 - lost_c) + lost_c * best
        baseline = baseline * (1.0 - lost_b) + lost_b * (not best)
        change = gate.sign * (canary - baseline) / (baseline if gate.relative else 1.0) if baseline > 0.0 else 0.0
        return change >= gate.estimate_share * gate.margin * _ROUNDING

    def take_meter(self, reading: MeterReading) -> bool:
        """The meters tell nothing about scores."""
        return False

    def set_share(self, share: float | None) -> None:
        """A step begins: its minimum of canaries counts from here. Blocks follow the arrivals, whatever their ratio."""
        self._marks.ramp(self.comparison.estimate.n_canary)

    def standing(self) -> Standing:
        """Where it stands now."""
        obstacle, detail = self.arms.obstacle, ""
        harmed = self._harmed and (not self.arms.uneven or self._stands_at_worst())
        if obstacle:
            detail = self.arms.detail()
        elif self.segments is not None and self.segments.harmed:
            detail = self.segments.detail()
            if not self.segments.rolls_back:
                obstacle = "segment_harmed"
        if self.segments is not None and self.segments.harmed and self.segments.rolls_back and not self.arms.uneven:
            harmed = True
        seen = self.comparison.estimate.n_canary
        cause: HarmCause = "catastrophic_harm" if harmed and seen < self.gate.min_canary else ""
        return Standing(harmed, self._proven, seen, obstacle, detail, cause)

    def numbers(self) -> dict[str, Any]:
        """JSON-safe evidence for a decision; changes are relative to the baseline, -.05 is five per cent lower."""
        gate, found, arms = self.gate, self.comparison, self.arms
        estimate, harm, safe, drops = found.estimate, found.harm, found.safe, found.interval.read()
        mean_baseline, mean_canary = estimate.means
        numbers = {
            "gate": gate.name,
            "kind": gate.kind,
            "criterion": gate.criterion,
            "role": gate.role,
            "dry_run": gate.dry_run,
            "direction": gate.direction,
            "margin": gate.sign * gate.margin,
            "relative": gate.relative,
            "estimate": None if estimate.drop is None else 0.0 - estimate.drop,
            "interval": {
                "low": None if drops.high is None else 0.0 - drops.high,
                "high": None if drops.low is None else 0.0 - drops.low,
                "level": drops.level,
            },
            "e_value": harm.e_value,
            "max_e_value": harm.max_e_value,
            "threshold": self._harm_at,
            "safe_e_value": safe.e_value,
            "max_safe_e_value": safe.max_e_value,
            "safe_threshold": self._safe_at,
            "mean_baseline": mean_baseline,
            "mean_canary": mean_canary,
            "matched_baseline": estimate.n_baseline,
            "matched_canary": estimate.n_canary,
            "n_baseline": arms.baseline.scored,
            "n_canary": arms.canary.scored,
            "epoch": arms.epoch,
            "arms": arms.numbers(),
        }
        if self._controlled is not None:
            numbers["control"] = {"criterion": gate.control, **self._controlled.control.numbers()}
        if self.segments is not None:
            numbers["segments"] = self.segments.numbers()
        return numbers

    def to_state(self) -> dict[str, Any]:
        """All of it as JSON-safe values."""
        return {
            "comparison": self.comparison.to_state(),
            "segments": None if self.segments is None else self.segments.to_state(),
            "arms": self.arms.to_state(),
            "seen": self._seen.to_state(),
            "marks": self._marks.to_state(),
            "harmed": self._harmed,
            "proven": self._proven,
        }

    @classmethod
    def from_state(cls, gate: Gate, plan: RolloutPlan, state: dict[str, Any]) -> MeanGate:
        """The inverse of ``to_state``."""
        new = cls(gate, plan)
        new.comparison.load(state["comparison"])
        if new.segments is not None:
            new.segments.load(state["segments"])
        new.arms.load(state["arms"])
        new._seen = SeenUnits.from_state(state["seen"])
        new._marks.load(state["marks"])
        new._harmed, new._proven = state["harmed"], state["proven"]
        return new
