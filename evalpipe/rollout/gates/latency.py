"""Kind ``latency``: a quantile of the time that calls take, or until their first token, tested by exceedances."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from evalpipe.rollout.gates.arms import Arms
from evalpipe.rollout.gates.base import Obstacle, Standing, kinds
from evalpipe.rollout.gates.marks import Marks, kept
from evalpipe.rollout.inputs import Evidence, MeterReading
from evalpipe.rollout.plan import Gate, RolloutPlan
from evalpipe.scorecard.rollout import TTFT
from evalpipe.stats.quantile_shift import QuantileShift
from evalpipe.stats.seen import SeenUnits

LOOK_AGAIN: Final = 1.01
"""The quantiles are read anew when the calls compared have grown by this factor."""


@kinds.register("latency")
class LatencyGate:
    """The sequential quantile test on all calls that the meters counted, or on the records if there are no meters.

    Harm is always a rise. The meters' readings and the records are never both counted: evidence is taken until the
    first reading, and readings are taken from the one that begins after the newest record taken. Of the records one of
    each unit counts; the meters know calls and no units, so there every call does. ``calibration.mean`` is the
    baseline's quantile in ms; without it the first 500 calls of the baseline are only learnt from.
    """

    __slots__ = ("_change", "_gate", "_look_at", "_marks", "_metered_until", "_newest", "_seen",
                 "_shown", "_take_meter", "arms", "test")  # fmt: skip

    def __init__(self, gate: Gate, plan: RolloutPlan) -> None:
        self._gate = gate
        known = gate.calibration.mean if gate.calibration else None
        self.test = QuantileShift(gate.quantile, gate.margin, relative=gate.relative, known=known)
        self.arms = Arms(gate)
        self._seen = SeenUnits()
        self._take_meter = False
        self._metered_until: dict[str, datetime] = {}
        self._newest: datetime | None = None
        self._look_at = 0.0
        self._change: float | None = None
        self._marks = Marks(gate, plan)
        self._shown = Standing()

    def take(self, evidence: Evidence) -> bool:
        """Take one record's value unless the meters count."""
        arms, bounds = self.arms, self._gate.max_weights
        admitted = not self._take_meter and arms.admit(evidence)
        turned, arms.turned, arms.renewed = arms.turned, False, False
        if admitted and evidence.value is not None:
            if bounds and not kept(evidence.seq, evidence.weight / bounds[evidence.arm == "canary"]):
                return turned
            if self._seen.add(f"{evidence.arm} {evidence.unit}" if evidence.pair else evidence.unit):
                arms.of(evidence.arm).used += 1
                if self._newest is None or evidence.at > self._newest:
                    self._newest = evidence.at
                return (self.test.add(evidence.arm, evidence.value) and self._turned()) or turned
            arms.of(evidence.arm).collapsed += 1
        return turned

    def take_meter(self, reading: MeterReading) -> bool:
        """Take all calls of a reading."""
        bins: Mapping[int, int] = reading.ttft if self._gate.criterion == TTFT else reading.latency
        if not bins:
            return False
        self._take_meter = True
        begun = self._metered_until.get(reading.arm)
        self._metered_until[reading.arm] = reading.at
        if self._newest is not None and (begun is None or begun < self._newest):
            return False
        return self.test.add_bins(reading.arm, bins) and self._turned()

    def set_share(self, share: float | None) -> None:
        """The split of the calls has changed: calls from before are not compared with those from after."""
        del share
        self.test.split_changed()
        self._marks.ramp(self.test.n_tested)

    def _turned(self) -> bool:
        """After a block: read the quantiles if they matter (it takes a while, so from time to time only)."""
        gate, n = self._gate, sum(self.test.n_matched)
        if n >= self._look_at and self.test.harm.fired(gate.alpha):
            self._look_at = n * LOOK_AGAIN
            self._change = self._changed()
        standing, shown = self.standing(), self._shown
        self._shown = standing
        return standing._replace(seen=shown.seen) != shown or self._marks.reached(standing.seen)

    def _changed(self) -> float | None:
        """The change in units of the margin: relative or in ms."""
        baseline, canary = self.test.quantiles
        if baseline is None or canary is None:
            return None
        return canary / baseline - 1.0 if self._gate.relative else canary - baseline

    def standing(self) -> Standing:
        """Harmed once a rise is proven and the quantile is beyond ``estimate_share`` of the margin."""
        gate, seen, change = self._gate, self.test.n_tested, self._change
        harmed = proven = False
        enough = seen >= gate.min_canary
        if change is not None and self.test.harm.fired(gate.alpha):
            harmed = change >= gate.margin * (gate.estimate_share if enough else gate.catastrophic)
        if self.test.safe.fired(gate.advance_alpha):
            proven = enough
        obstacle: Obstacle = "" if self._take_meter else self.arms.obstacle
        detail = self.arms.detail() if obstacle else ""
        return Standing(harmed, proven, seen, obstacle, detail, "catastrophic_harm" if harmed and not enough else "")

    def numbers(self) -> dict[str, Any]:
        """No interval is computed; means are the quantiles in ms, ``threshold_ms`` is what calls are compared with."""
        gate, test = self._gate, self.test
        baseline, canary = test.quantiles
        return {
            "gate": gate.name, "kind": "latency", "criterion": gate.criterion, "role": gate.role,
            "dry_run": gate.dry_run, "direction": "rise", "margin": gate.margin, "relative": gate.relative,
            "estimate": test.change, "interval": {"low": None, "high": None, "level": 0.95},
            "e_value": test.harm.e_value, "max_e_value": test.harm.max_e_value, "threshold": 1.0 / gate.alpha,
            "safe_e_value": test.safe.e_value, "max_safe_e_value": test.safe.max_e_value,
            "safe_threshold": 1.0 / gate.advance_alpha,
            "mean_baseline": baseline, "mean_canary": canary,
            "matched_baseline": test.n_matched[0], "matched_canary": test.n_matched[1],
            "n_baseline": test.seen[0], "n_canary": test.seen[1], "epoch": "",
            "arms": self.arms.numbers(),
            "quantile": gate.quantile, "threshold_ms": test.threshold,
            "source": "meter" if self._take_meter else "records",
        }  # fmt: skip

    def to_state(self) -> dict[str, Any]:
        """All of it as JSON-safe values."""
        return {
            "test": self.test.to_state(),
            "arms": self.arms.to_state(),
            "seen": self._seen.to_state(),
            "meter": self._take_meter,
            "metered_until": {arm: at.isoformat() for arm, at in self._metered_until.items()},
            "newest": None if self._newest is None else self._newest.isoformat(),
            "look_at": self._look_at,
            "change": self._change,
            "marks": self._marks.to_state(),
            "shown": list(self._shown),
        }

    @classmethod
    def from_state(cls, gate: Gate, plan: RolloutPlan, state: dict[str, Any]) -> LatencyGate:
        """The inverse of ``to_state``."""
        new = cls(gate, plan)
        new.test.load(state["test"])
        new.arms.load(state["arms"])
        new._seen = SeenUnits.from_state(state["seen"])
        new._take_meter = state["meter"]
        new._metered_until = {arm: datetime.fromisoformat(at) for arm, at in state["metered_until"].items()}
        new._newest = None if state["newest"] is None else datetime.fromisoformat(state["newest"])
        new._look_at, new._change = state["look_at"], state["change"]
        new._marks.load(state["marks"])
        new._shown = Standing(*state["shown"])
        return new
