"""Kind ``ratio``: did the arms get their shares of the units? If not, something picks who gets the canary."""

from __future__ import annotations

from typing import Any

from evalpipe.rollout.gates.base import Standing, kinds
from evalpipe.rollout.gates.marks import Marks
from evalpipe.rollout.inputs import Evidence, MeterReading
from evalpipe.rollout.plan import Gate, RolloutPlan
from evalpipe.stats.sample_ratio import SampleRatio
from evalpipe.stats.seen import SeenUnits


@kinds.register("ratio")
class RatioGate:
    """Counts each unit once, by the arm it was first seen in; ``split`` of the gate or the ramp's share is expected.

    It finds harm where the split is not the one expected; there is nothing to prove for an advance but that.
    """

    __slots__ = ("_gate", "_marks", "_seen", "_share", "test")

    def __init__(self, gate: Gate, plan: RolloutPlan) -> None:
        self._gate = gate
        self._marks = Marks(gate, plan)
        self._share = gate.split
        self._seen = SeenUnits()
        self.test = SampleRatio()

    def take(self, evidence: Evidence) -> bool:
        """Count the unit if it is new, whatever became of its score."""
        if evidence.criterion != self._gate.criterion or not self._seen.add(evidence.unit):
            return False
        before = self._fired
        self.test.add(evidence.arm, self._share)
        return self._fired is not before or self._marks.reached(self.test.counts[1])

    def take_meter(self, reading: MeterReading) -> bool:
        """Calls are no units."""
        del reading
        return False

    def set_share(self, share: float | None) -> None:
        """Expect this share from the next unit on, unless the gate has its own."""
        self._marks.ramp(self.test.counts[1])
        if self._gate.split is None:
            self._share = share if share is not None and 0.0 < share < 1.0 else None

    @property
    def _fired(self) -> bool:
        return self.test.fired(self._gate.alpha)

    def standing(self) -> Standing:
        """Harmed if the split is not what it should be."""
        fired, seen = self._fired, self.test.counts[1]
        enough = seen >= self._gate.min_canary
        if not fired:
            return Standing(proven=enough, seen=seen)
        expected, found = self.test.shares
        detail = f"{found or 0.0:.1%} of the units have the canary, expected {expected or 0.0:.1%}"
        return Standing(harmed=enough or sum(self.test.tested) >= self._gate.min_canary, seen=seen, detail=detail)

    def numbers(self) -> dict[str, Any]:
        """``estimate`` is the relative change of the canary's share; ``share`` and ``expected_share`` are its parts."""
        gate, test = self._gate, self.test
        expected, found = test.shares
        return {
            "gate": gate.name, "kind": "ratio", "criterion": gate.criterion, "role": gate.role,
            "dry_run": gate.dry_run, "direction": "both", "margin": None, "relative": True,
            "estimate": None if not expected or found is None else found / expected - 1.0,
            "interval": {"low": None, "high": None, "level": 0.95},
            "e_value": test.e_value, "max_e_value": test.max_e_value, "threshold": 1.0 / gate.alpha,
            "safe_e_value": None, "max_safe_e_value": None, "safe_threshold": None,
            "mean_baseline": None, "mean_canary": None,
            "matched_baseline": test.tested[0], "matched_canary": test.tested[1],
            "n_baseline": test.counts[0], "n_canary": test.counts[1], "epoch": "",
            "arms": {"baseline": {"units": test.counts[0]}, "canary": {"units": test.counts[1]}},
            "share": found, "expected_share": expected, "share_now": self._share,
        }  # fmt: skip

    def to_state(self) -> dict[str, Any]:
        """All of it as JSON-safe values."""
        return {
            "test": self.test.to_state(),
            "seen": self._seen.to_state(),
            "share": self._share,
            "marks": self._marks.to_state(),
        }

    @classmethod
    def from_state(cls, gate: Gate, plan: RolloutPlan, state: dict[str, Any]) -> RatioGate:
        """The inverse of ``to_state``."""
        new = cls(gate, plan)
        new.test, new._seen = SampleRatio.from_state(state["test"]), SeenUnits.from_state(state["seen"])
        new._share = state["share"]
        new._marks.load(state["marks"])
        return new
