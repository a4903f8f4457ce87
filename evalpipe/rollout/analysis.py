"""Comparison of the two arms: evidence in, the state of each gate out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from evalpipe.rollout.plan import Gate
from evalpipe.rollout.seen import SeenUnits
from evalpipe.score import Status
from evalpipe.stats.betting import Bets
from evalpipe.stats.drop_interval import DropInterval
from evalpipe.stats.matched_block import MatchedEstimate
from evalpipe.stats.matching import Arm, Matcher
from evalpipe.stats.moments import Moments

MISSING_GAIN: Final = 0.02
"""Gain of the moving average of missing scores: the last fifty or so count."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One score as a rollout sees it.

    Attributes:
        seq: place in the rollout's order, which is that of sampling and not of the judges' answers; with ``criterion``
            unique.
        at: when the record was captured, aware UTC.
        arm: which release answered.
        unit: user or conversation; one score of each enters the test.
        criterion: what was scored.
        value: in [0, 1]; None unless the status is scored.
        weight: 1 / inclusion probability.
        status: how the score came out.
        epoch: scorecard and judge version; scores of different epochs are never compared.
        suspect: the judge was under suspicion when it answered; such a score is counted and set aside.
    """

    seq: int
    at: datetime
    arm: Arm
    unit: str
    criterion: str
    value: float | None
    weight: float = 1.0
    status: Status = Status.SCORED
    epoch: str = ""
    suspect: bool = False

    def line(self) -> str:
        """Canonical text for ``inputs_hash``."""
        return (
            f"{self.seq}|{self.at.isoformat()}|{self.arm}|{self.unit}|{self.criterion}|{self.value!r}"
            f"|{float(self.weight)!r}|{self.status}|{self.epoch}|{self.suspect:d}"
        )


@dataclass(slots=True)
class ArmTally:
    """What became of the evidence of one arm.

    Attributes:
        scored: usable scores; ``used`` of them entered the test and ``collapsed`` were further scores of a known unit.
        missing: errors and abstentions; ``missing_share`` is a moving average of them.
        skipped: the criterion did not apply.
        set_aside: of another epoch, by a suspect judge, or with a weight beyond ``max_weights``.
        overweight: of these, those with a weight beyond ``max_weights``.
        min_weight, max_weight: among usable scores; 0 before the first.
        epoch: of the newest score; "" before the first.
    """

    scored: int = 0
    used: int = 0
    collapsed: int = 0
    missing: int = 0
    skipped: int = 0
    set_aside: int = 0
    overweight: int = 0
    missing_share: float = 0.0
    min_weight: float = 0.0
    max_weight: float = 0.0
    epoch: str = ""

    def to_state(self) -> dict[str, Any]:
        """By name."""
        return {name: getattr(self, name) for name in self.__slots__}


class GateState:
    """Evidence of one gate: harm (rolls back), no harm beyond the margin (lets advance), and the interval for people.

    The three share one matcher and one baseline, so that they speak of the same comparison.
    """

    __slots__ = ("_matcher", "_moments", "baseline", "canary", "epoch", "estimate", "harm", "interval", "safe", "seen",
                 "starved")  # fmt: skip

    def __init__(self, gate: Gate) -> None:
        self.harm = Bets(gate.sign)
        self.safe = Bets(-1 if gate.sign > 0 else 1, tau=-gate.margin)
        self.interval = DropInterval()
        self.estimate = MatchedEstimate()
        self.seen = SeenUnits()
        self.baseline, self.canary = ArmTally(), ArmTally()
        self.epoch = ""
        self.starved = False
        self._matcher = Matcher(gate.max_weights or (1.0, 1.0))
        self._moments = Moments(gate.calibration)

    def add(self, gate: Gate, evidence: Evidence) -> None:
        """Take one piece of evidence for the gate's criterion, in order."""
        tally = self.canary if evidence.arm == "canary" else self.baseline
        if evidence.status is Status.SKIPPED:
            tally.skipped += 1
            return
        lost = evidence.status is not Status.SCORED
        tally.missing_share += MISSING_GAIN * (lost - tally.missing_share)
        self._watch_missing(gate)
        if lost or evidence.value is None:
            tally.missing += 1
        elif evidence.suspect or not self._same_epoch(tally, evidence.epoch) or _overweight(gate, tally, evidence):
            tally.set_aside += 1
        else:
            self._take(gate, tally, evidence, evidence.value)

    def _take(self, gate: Gate, tally: ArmTally, evidence: Evidence, value: float) -> None:
        weight = evidence.weight
        tally.scored += 1
        tally.min_weight = min(tally.min_weight or weight, weight)
        tally.max_weight = max(tally.max_weight, weight)
        if not self.seen.add(evidence.unit):
            tally.collapsed += 1
            return
        tally.used += 1
        if gate.max_weights:
            block = self._matcher.add(evidence.arm, value, min(weight, gate.max_weights[evidence.arm == "canary"]))
        else:
            block = self._matcher.add(evidence.arm, value)
        if block is None:
            return
        mean, variance = self._moments.mean, self._moments.variance
        self.harm.update(block, mean, variance)
        self.safe.update(block, mean, variance)
        self.interval.update(block, mean, variance)
        self.estimate.update(block)
        self._moments.update(block.baselines, 1.0)

    def _same_epoch(self, tally: ArmTally, epoch: str) -> bool:
        """Whether a score may be compared; begins anew once both arms have moved to another epoch."""
        first = not self.baseline.epoch and not self.canary.epoch
        tally.epoch = epoch
        if first:
            self.epoch = epoch
        elif epoch != self.epoch and self.baseline.epoch == self.canary.epoch:
            self.epoch = epoch
            self._matcher.clear()
            self._moments.restart()
            self.harm.restart()
            self.safe.restart()
            self.interval.restart()
            self.estimate = MatchedEstimate()
        return epoch == self.epoch

    def _watch_missing(self, gate: Gate) -> None:
        share = max(self.baseline.missing_share, self.canary.missing_share)
        self.starved = share > (gate.max_missing / 2 if self.starved else gate.max_missing)

    @property
    def epochs_differ(self) -> bool:
        """The arms are scored by different versions just now."""
        epochs = {self.baseline.epoch, self.canary.epoch} - {""}
        return len(epochs) > 1

    def weights_unusable(self, gate: Gate) -> bool:
        """An arm was sampled at unequal rates, and the plan does not bound them."""
        if gate.max_weights:
            return self.baseline.overweight + self.canary.overweight > 0
        return any(t.max_weight > t.min_weight * (1 + 1e-9) for t in (self.baseline, self.canary))

    def change(self) -> float | None:
        """Estimated relative change of the canary: -.05 is five per cent lower; None while nothing is matched."""
        drop = self.estimate.drop
        return None if drop is None else -drop

    def harmed(self, gate: Gate) -> bool:
        """Both keys of a rollback: harm was proven at any time, and the estimate is beyond its share of the margin."""
        change = self.change()
        return (
            self.harm.fired(gate.alpha)
            and self.estimate.n_canary >= gate.min_canary
            and change is not None
            and gate.sign * change >= gate.estimate_share * gate.margin
        )

    def proven_safe(self, gate: Gate) -> bool:
        """Harm of ``margin`` or more was excluded at any time in this epoch."""
        return self.safe.fired(gate.promote_alpha) and self.estimate.n_canary >= gate.min_canary

    def to_state(self) -> dict[str, Any]:
        """All of it as JSON-safe values."""
        return {
            "harm": self.harm.to_state(),
            "safe": self.safe.to_state(),
            "interval": self.interval.to_state(),
            "estimate": self.estimate.to_state(),
            "seen": self.seen.to_state(),
            "baseline": self.baseline.to_state(),
            "canary": self.canary.to_state(),
            "epoch": self.epoch,
            "starved": self.starved,
            "matcher": self._matcher.to_state(),
            "moments": self._moments.to_state(),
        }

    @classmethod
    def from_state(cls, gate: Gate, state: dict[str, Any]) -> GateState:
        """The inverse of ``to_state``."""
        new = cls(gate)
        new.harm, new.safe = Bets.from_state(state["harm"]), Bets.from_state(state["safe"])
        new.interval = DropInterval.from_state(state["interval"])
        new.estimate = MatchedEstimate.from_state(state["estimate"])
        new.seen = SeenUnits.from_state(state["seen"])
        new.baseline, new.canary = ArmTally(**state["baseline"]), ArmTally(**state["canary"])
        new.epoch, new.starved = state["epoch"], state["starved"]
        new._matcher, new._moments = Matcher.from_state(state["matcher"]), Moments.from_state(state["moments"])
        return new


def _overweight(gate: Gate, tally: ArmTally, evidence: Evidence) -> bool:
    if gate.max_weights is None or evidence.weight <= gate.max_weights[evidence.arm == "canary"] * (1 + 1e-9):
        return False
    tally.overweight += 1
    return True
