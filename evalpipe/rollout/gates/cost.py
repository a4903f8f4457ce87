"""Kind ``cost``: the mean of something without bound, such as US dollars a call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from evalpipe.rollout.gates.base import kinds
from evalpipe.rollout.gates.mean import MeanGate
from evalpipe.rollout.inputs import Evidence
from evalpipe.rollout.plan import Gate, RolloutPlan
from evalpipe.stats.moments import Calibration

WINSOR: Final = 10.0
"""Costs count as this many times the baseline's mean at the most, in both arms: else one call could cap every bet."""
LEARNT: Final = 30
"""Baseline costs above zero from which the mean is learnt where it is not known; nothing is bet on them."""


class Cap:
    """Learns the mean of the baseline's costs, and where costs are cut off."""

    __slots__ = ("count", "mean", "paid", "square", "value")

    def __init__(self, known: Calibration | None) -> None:
        self.count, self.paid, self.mean, self.square = 0, 0, 0.0, 0.0
        self.value = 0.0 if known is None else WINSOR * known.mean

    def learn(self, cost: float) -> None:
        """Take a baseline cost; the value is there after 30 that are not zero."""
        self.count += 1
        self.paid += cost > 0.0
        self.mean += (cost - self.mean) / self.count
        self.square += (cost * cost - self.square) / self.count
        if self.paid >= LEARNT:
            self.value = WINSOR * self.mean

    def share(self, cost: float) -> float:
        """A cost in [0, 1], of the value."""
        return min(max(cost, 0.0) / self.value, 1.0)

    def scaled(self, gate: Gate) -> Gate:
        """The gate on shares of the value instead of costs."""
        unit, known = self.value, gate.calibration
        if known is None:
            spread = min(max(self.square / self.mean**2 - 1.0, 0.1), 4.0)
            known = Calibration(unit / WINSOR, spread * (unit / WINSOR) ** 2, LEARNT)
        shares = Calibration(known.mean / unit, known.variance / unit**2, known.count)
        return replace(gate, calibration=shares, margin=gate.margin if gate.relative else gate.margin / unit)

    def to_state(self) -> list[float]:
        """Counts, mean, mean of squares, value."""
        return [self.count, self.paid, self.mean, self.square, self.value]

    def load(self, state: list[float]) -> None:
        """The inverse of ``to_state``."""
        self.count, self.paid, self.mean, self.square, self.value = int(state[0]), int(state[1]), *state[2:]


@kinds.register("cost")
class CostGate(MeanGate):
    """A mean gate on costs cut off at ten times the baseline's mean.

    Without a calibration the first 30 costs of the baseline (and the free calls among them) set the mean, and no cost
    is compared until then. A call whose cost is not known (a model without a price) is missing, so the gate holds where
    they are many.
    """

    __slots__ = ("_plan", "_written", "cap")

    def __init__(self, gate: Gate, plan: RolloutPlan) -> None:
        self._written, self._plan = gate, plan
        self.cap = Cap(gate.calibration)
        super().__init__(self.cap.scaled(gate) if self.cap.value else gate, plan)

    def _enter(self, evidence: Evidence) -> bool:
        cost = evidence.value or 0.0
        if evidence.criterion != self._written.criterion:
            return super()._enter(evidence)
        if self.cap.value:
            return super()._enter(evidence._replace(value=self.cap.share(cost)))
        if evidence.arm == "baseline":
            self.cap.learn(cost)
            if self.cap.value:
                arms = self.arms
                super().__init__(self.cap.scaled(self._written), self._plan)
                self.arms = arms
        return False

    def numbers(self) -> dict[str, Any]:
        """Means in the costs' own unit; ``cap`` is where costs are cut off, None while that is being learnt."""
        numbers = super().numbers()
        for mean in ("mean_baseline", "mean_canary"):
            numbers[mean] = None if numbers[mean] is None else numbers[mean] * self.cap.value
        numbers["margin"] = self._written.sign * self._written.margin
        return {**numbers, "cap": self.cap.value or None}

    def to_state(self) -> dict[str, Any]:
        """All of it as JSON-safe values."""
        return {**super().to_state(), "cap": self.cap.to_state()}

    @classmethod
    def from_state(cls, gate: Gate, plan: RolloutPlan, state: dict[str, Any]) -> CostGate:
        """The inverse of ``to_state``."""
        new = cls(gate, plan)
        new.cap.load(state["cap"])
        mean = MeanGate.from_state(new.cap.scaled(gate) if new.cap.value else gate, plan, state)
        for name in MeanGate.__slots__:
            setattr(new, name, getattr(mean, name))
        return new
