"""Kind ``paired``: quality, rate and cost gates in the shadow phase, where both arms answer the same input."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from evalpipe.rollout.gates.arms import Arms
from evalpipe.rollout.gates.base import Standing, kinds
from evalpipe.rollout.gates.cost import WINSOR, Cap
from evalpipe.rollout.gates.marks import Marks, kept
from evalpipe.rollout.inputs import Evidence, MeterReading
from evalpipe.rollout.plan import Gate, RolloutPlan
from evalpipe.score import Status
from evalpipe.stats.betting import Direction
from evalpipe.stats.matching import Arm
from evalpipe.stats.paired_block import PRIOR_MEAN, PRIOR_VARIANCE, PairedBlock
from evalpipe.stats.paired_interval import PairedInterval
from evalpipe.stats.seen import SeenUnits

MOST_WAITING: Final = 4_096
"""Halves of pairs that may wait; the partner of the oldest then counts as missing."""
TIE: Final = 0.5
"""What a comparison of two equal answers scores."""
_ROUNDING: Final = 1.0 + 1e-9


class Half(NamedTuple):
    """What waits for its partner; no value: the pair is lost already."""

    arm: Arm
    value: float | None


@kinds.register("paired")
class PairedGate:
    """Pairs joined by ``Evidence.pair``, one of each unit, tested by their differences.

    A pair of which one half has no value is missing, and the other half is not used. A ``pairwise`` criterion has a
    score on the canary's record only, which is tested against .5. Costs are cut off as by the kind ``cost``.
    """

    __slots__ = ("_cap", "_gate", "_marks", "_min_pairs", "_seen", "_shown", "_sums", "_waiting", "arms", "given_up",
                 "harm", "interval", "n_pairs", "safe")  # fmt: skip

    def __init__(self, gate: Gate, plan: RolloutPlan) -> None:
        self._gate = gate
        self._cap = Cap(gate.calibration) if gate.kind == "cost" else None
        self._min_pairs = max(gate.min_canary, plan.shadow.min_pairs if plan.shadow else 0)
        self.harm, self.safe = self._tests()
        self.interval = PairedInterval(mean=self.harm.mean, variance=self.harm.variance)
        self.arms = Arms(gate)
        self._marks = Marks(gate, plan)
        self._seen = SeenUnits()
        self._waiting: dict[str, Half] = {}
        self._sums = [0.0, 0.0]
        self.n_pairs = self.given_up = 0
        self._shown = Standing()

    def _tests(self) -> tuple[PairedBlock, PairedBlock]:
        """Processes for "there is harm" and "there is no harm of the margin or more"."""
        gate, sign = self._gate, self._gate.sign
        if self._cap is not None and self._cap.value:
            gate = self._cap.scaled(gate)
        known = gate.calibration
        mean = known.mean if known else (PRIOR_MEAN if sign < 0 else 1.0 - PRIOR_MEAN)
        usual: dict[str, Any] = {
            "reference": TIE if gate.pairwise else None,
            "effect": gate.margin,
            "absolute": not gate.relative,
            "mean": mean,
            "variance": known.variance / 2.0 if known else PRIOR_VARIANCE,
        }
        opposite: Direction = 1 if sign < 0 else -1
        if gate.relative:
            return PairedBlock(sign, **usual), PairedBlock(opposite, -gate.margin, **usual)
        return PairedBlock(sign, **usual), PairedBlock(opposite, shift=sign * gate.margin, **usual)

    def take(self, evidence: Evidence) -> bool:
        """Take one half of a pair, in order."""
        gate = self._gate
        if evidence.criterion != gate.criterion or (gate.pairwise and evidence.arm != "canary"):
            return False
        admitted = self.arms.admit(evidence)
        if self.arms.renewed:
            self.arms.renewed = False
            self._restart()
        turned, self.arms.turned = self.arms.turned, False
        moved = False
        if gate.pairwise:
            moved = admitted and self._enter(evidence, TIE, evidence.value or 0.0)
        elif evidence.pair and evidence.status is not Status.SKIPPED:
            moved = self._join(evidence, evidence.value if admitted else None)
        return (moved or turned) and self._turned()

    def _join(self, evidence: Evidence, value: float | None) -> bool:
        waiting, pair, arm = self._waiting, evidence.pair, evidence.arm
        partner = waiting.get(pair)
        if partner is None:
            waiting[pair] = Half(arm, value)
            if len(waiting) <= MOST_WAITING:
                return False
            lost = waiting.pop(next(iter(waiting)))
            self.given_up += 1
            self.arms.watch(self.arms.of("canary" if lost.arm == "baseline" else "baseline"), lost=True)
            return True
        if partner.arm == arm:
            return False
        del waiting[pair]
        if partner.value is None or value is None:
            return False
        return self._enter(evidence, *((partner.value, value) if arm == "canary" else (value, partner.value)))

    def _enter(self, evidence: Evidence, baseline: float, canary: float) -> bool:
        bounds = self._gate.max_weights
        if bounds and not kept(evidence.pair or evidence.seq, evidence.weight / bounds[evidence.arm == "canary"]):
            return False
        if not self._seen.add(evidence.unit):
            self.arms.canary.collapsed += 1
            return False
        if self._cap is not None:
            if not self._cap.value:
                self._cap.learn(baseline)
                self.harm, self.safe = self._tests()
                self.interval = PairedInterval(mean=self.harm.mean, variance=self.harm.variance)
                return False
            baseline, canary = self._cap.share(baseline), self._cap.share(canary)
        self.arms.baseline.used += not self._gate.pairwise
        self.arms.canary.used += 1
        self.harm.add(baseline, canary)
        self.safe.add(baseline, canary)
        self.interval.add(baseline, canary)
        self._sums[0] += baseline
        self._sums[1] += canary
        self.n_pairs += 1
        return True

    def _restart(self) -> None:
        """Another version of the judge: halves that wait have no partner any more."""
        self._waiting = {}
        self.harm.restart()
        self.safe.restart()
        self.interval.restart()
        self._sums, self.n_pairs = [0.0, 0.0], 0

    @property
    def _means(self) -> tuple[float | None, float | None]:
        n, unit = self.n_pairs, self._cap.value if self._cap else 1.0
        return (self._sums[0] / n * unit, self._sums[1] / n * unit) if n else (None, None)

    def _change(self) -> float | None:
        """The canary's change: relative, or in points."""
        baseline, canary = self._means
        if baseline is None or canary is None:
            return None
        if not self._gate.relative:
            return canary - baseline
        return canary / baseline - 1.0 if baseline else (float("inf") if canary else None)

    def _turned(self) -> bool:
        standing, shown = self.standing(), self._shown
        self._shown = standing
        return standing._replace(seen=shown.seen) != shown or self._marks.reached(standing.seen)

    def standing(self) -> Standing:
        """Harmed by both keys; proven with the pairs that the shadow phase asks for; ``seen`` are pairs.

        While too many scores are missing, harm waits: the pairs that are left may be the worse ones. No user is harmed.
        """
        gate, n, change = self._gate, self.n_pairs, self._change()
        obstacle, harmed = self.arms.obstacle, False
        if change is not None and self.harm.fired(gate.alpha) and obstacle != "missing_scores":
            beyond = gate.sign * change / gate.margin * _ROUNDING
            harmed = beyond >= (gate.estimate_share if n >= gate.min_canary else gate.catastrophic)
        proven = n >= self._min_pairs and self.safe.fired(gate.advance_alpha)
        return Standing(harmed, proven, n, obstacle, self.arms.detail() if obstacle else "")

    def take_meter(self, reading: MeterReading) -> bool:
        """Calls are no pairs."""
        del reading
        return False

    def set_share(self, share: float | None) -> None:
        """Both arms have the same inputs."""

    def numbers(self) -> dict[str, Any]:
        """Means and interval are those of the pairs compared."""
        gate, arms = self._gate, self.arms
        baseline, canary = self._means
        drops = self.interval.read()
        return {
            "gate": gate.name, "kind": "paired", "criterion": gate.criterion, "role": gate.role,
            "dry_run": gate.dry_run, "direction": gate.direction, "margin": gate.sign * gate.margin,
            "relative": gate.relative,
            "estimate": None if not baseline or canary is None else canary / baseline - 1.0,
            "interval": {
                "low": None if drops.high is None else 0.0 - drops.high,
                "high": None if drops.low is None else 0.0 - drops.low,
                "level": drops.level,
            },
            "e_value": self.harm.e_value, "max_e_value": self.harm.max_e_value, "threshold": 1.0 / gate.alpha,
            "safe_e_value": self.safe.e_value, "max_safe_e_value": self.safe.max_e_value,
            "safe_threshold": 1.0 / gate.advance_alpha,
            "mean_baseline": baseline, "mean_canary": canary,
            "matched_baseline": self.n_pairs, "matched_canary": self.n_pairs,
            "n_baseline": arms.baseline.scored, "n_canary": arms.canary.scored,
            "epoch": arms.epoch, "arms": arms.numbers(),
            "pairs": self.n_pairs, "waiting": len(self._waiting), "given_up": self.given_up,
            "pairwise": gate.pairwise, "cap": (self._cap.value or None) if self._cap else None, "winsor": WINSOR,
        }  # fmt: skip

    def to_state(self) -> dict[str, Any]:
        """All of it as JSON-safe values."""
        return {
            "harm": self.harm.to_state(),
            "safe": self.safe.to_state(),
            "interval": self.interval.to_state(),
            "arms": self.arms.to_state(),
            "marks": self._marks.to_state(),
            "seen": self._seen.to_state(),
            "waiting": [[pair, *half] for pair, half in self._waiting.items()],
            "sums": list(self._sums),
            "counts": [self.n_pairs, self.given_up],
            "cap": None if self._cap is None else self._cap.to_state(),
            "shown": list(self._shown),
        }

    @classmethod
    def from_state(cls, gate: Gate, plan: RolloutPlan, state: dict[str, Any]) -> PairedGate:
        """The inverse of ``to_state``."""
        new = cls(gate, plan)
        if new._cap is not None:
            new._cap.load(state["cap"])
            new.harm, new.safe = new._tests()
        new.harm.load(state["harm"])
        new.safe.load(state["safe"])
        new.interval.load(state["interval"])
        new.arms.load(state["arms"])
        new._marks.load(state["marks"])
        new._seen = SeenUnits.from_state(state["seen"])
        new._waiting = {pair: Half(arm, value) for pair, arm, value in state["waiting"]}
        new._sums = list(state["sums"])
        new.n_pairs, new.given_up = state["counts"]
        new._shown = Standing(*state["shown"])
        return new
