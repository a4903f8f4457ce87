"""Which evidence may enter a test: what became of the evidence of both arms, and what stands in the way of using it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from evalpipe.rollout.gates.base import Obstacle
from evalpipe.rollout.inputs import Evidence
from evalpipe.rollout.plan import Gate
from evalpipe.score import Status
from evalpipe.stats.exceedance import Counts, RateBets
from evalpipe.stats.matching import Arm

MISSING_GAIN: Final = 0.02
"""Gain of the moving average of missing scores: the last fifty or so count."""
_SCORED: Final = Status.SCORED
COUNTED: Final = 64
"""Records after which the arms' missing scores are compared."""
UNEVEN_ALPHA: Final = 0.001
"""Probability, for each direction, that missing scores are said to depend on the arm where they do not."""
LEAST_UNEVEN: Final = 0.01
"""A smaller difference of the shares that are missing is let pass: it moves a mean by no more."""
_DELTAS: Final = (0.01, 0.03, 0.08, 0.25)
_WEIGHTS: Final = (0.25, 0.25, 0.25, 0.25)


@dataclass(slots=True)
class Tally:
    """What became of the evidence of one arm.

    Attributes:
        scored: usable values; ``used`` of them entered the test and ``collapsed`` were further ones of a known unit.
        missing: errors and abstentions; ``missing_share`` is a moving average of them.
        skipped: the criterion did not apply.
        set_aside: of another epoch, by a suspect judge, or with a weight beyond ``max_weights``.
        overweight: of these, those with a weight beyond ``max_weights``.
        min_weight, max_weight: among usable values; 0 before the first.
        epoch: of the newest value; "" before the first.
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

    @property
    def due(self) -> int:
        """Records that should have a score."""
        return self.scored + self.missing + self.set_aside

    @property
    def missing_of_all(self) -> float:
        """Share of them that have none."""
        return self.missing / (self.due or 1)

    def to_state(self) -> dict[str, Any]:
        """By name."""
        return {name: getattr(self, name) for name in self.__slots__}


class Arms:
    """The tallies of both arms.

    Attributes:
        baseline, canary: see ``Tally``.
        epoch: which the test compares; both arms have to move to another one before it begins anew.
        renewed: a new epoch began with the newest evidence; whoever restarts the test resets it.
        turned: the obstacle may be another than before; whoever acts on it resets it.
    """

    __slots__ = ("_counted", "_left", "_max_missing", "_max_weights", "_more", "_starved", "_uneven", "baseline",
                 "canary", "epoch", "renewed", "turned")  # fmt: skip

    def __init__(self, gate: Gate) -> None:
        self._max_missing, self._max_weights = gate.max_missing, gate.max_weights
        self.baseline, self.canary = Tally(), Tally()
        self.epoch = ""
        self.renewed = self.turned = False
        self._starved = self._uneven = False
        self._left, self._counted = COUNTED, (0, 0, 0, 0)
        self._more = (RateBets(1, _DELTAS, _WEIGHTS), RateBets(-1, _DELTAS, _WEIGHTS))

    def of(self, arm: Arm) -> Tally:
        """The tally of one arm."""
        return self.canary if arm == "canary" else self.baseline

    def admit(self, evidence: Evidence) -> bool:
        """Count one piece of evidence; True if its value may enter the test."""
        _, _, arm, _, _, value, weight, status, epoch, _, _, suspect = evidence
        tally = self.canary if arm == "canary" else self.baseline
        if status is Status.SKIPPED:
            tally.skipped += 1
            return False
        self._left -= 1
        if self._left <= 0:
            self._compare_missing()
        if status is not _SCORED or value is None:
            self.watch(tally, lost=True)
            return False
        if tally.missing_share:
            self.watch(tally, lost=False)
        if suspect or not (epoch == self.epoch == tally.epoch or self._same_epoch(tally, epoch)):
            tally.set_aside += 1
            return False
        if not weight == tally.min_weight == tally.max_weight and self._overweight(tally, arm, weight):
            tally.set_aside += 1
            return False
        tally.scored += 1
        return True

    def watch(self, tally: Tally, *, lost: bool) -> None:
        """Count whether a value that was due is missing."""
        tally.missing += lost
        tally.missing_share += MISSING_GAIN * (lost - tally.missing_share)
        share, before = max(self.baseline.missing_share, self.canary.missing_share), self._starved
        self._starved = share > (self._max_missing / 2 if before else self._max_missing)
        if self._starved is not before:
            self.turned = True

    def _compare_missing(self) -> None:
        """Test whether scores are missing more often in one arm, on the records since this was done last.

        Scores that are missing in one arm alone, of bad answers say, make equal arms look different: no test of means
        survives that. When a block ends follows from how many records there are, never from what became of them.
        """
        baseline, canary, self._left = self.baseline, self.canary, COUNTED
        now = (baseline.due, baseline.missing, canary.due, canary.missing)
        n_b, e_b, n_c, e_c = (new - old for new, old in zip(now, self._counted, strict=True))
        if not n_b or not n_c:
            return
        rate = (self._counted[1] + self._counted[3] + 0.5) / (self._counted[0] + self._counted[2] + 10.0)
        self._counted = now
        for more in self._more:
            more.update(Counts(n_b, e_b, n_c, e_c), rate)
        before, fired = self._uneven, any(more.fired(UNEVEN_ALPHA) for more in self._more)
        self._uneven = fired and abs(baseline.missing_of_all - canary.missing_of_all) >= LEAST_UNEVEN
        self.turned = self.turned or self._uneven is not before

    @property
    def uneven(self) -> bool:
        """Scores are missing more often in one arm than in the other, beyond chance."""
        return self._uneven

    def _same_epoch(self, tally: Tally, epoch: str) -> bool:
        first = not self.baseline.epoch and not self.canary.epoch
        self.turned = True
        tally.epoch = epoch
        if first:
            self.epoch = epoch
        elif epoch != self.epoch and self.baseline.epoch == self.canary.epoch:
            self.epoch = epoch
            self.renewed = True
        return epoch == self.epoch

    def _overweight(self, tally: Tally, arm: Arm, weight: float) -> bool:
        """Note a weight; True if it is beyond its bound."""
        self.turned = True
        if self._max_weights is not None and weight > self._max_weights[arm == "canary"] * (1 + 1e-9):
            tally.overweight += 1
            return True
        tally.min_weight = min(tally.min_weight or weight, weight)
        tally.max_weight = max(tally.max_weight, weight)
        return False

    @property
    def obstacle(self) -> Obstacle:
        """What stands in the way just now; "" if nothing does."""
        baseline, canary = self.baseline, self.canary
        if baseline.epoch != canary.epoch and baseline.epoch and canary.epoch:
            return "epochs_differ"
        if self._starved or self._uneven:
            return "missing_scores"
        if self._max_weights is None:
            unequal = any(tally.max_weight > tally.min_weight * (1 + 1e-9) for tally in (baseline, canary))
        else:
            unequal = baseline.overweight + canary.overweight > 0
        return "unequal_weights" if unequal else ""

    def detail(self) -> str:
        """The obstacle in words, with its numbers."""
        obstacle, baseline, canary = self.obstacle, self.baseline, self.canary
        if obstacle == "epochs_differ":
            return f"the baseline is scored by {baseline.epoch}, the canary by {canary.epoch}"
        if obstacle == "missing_scores" and not self._starved:
            shares = (
                f"{baseline.missing_of_all:.1%} of the baseline's scores, {canary.missing_of_all:.1%} of the canary's"
            )
            return f"missing are {shares}: that is not chance, so the rest cannot be compared"
        if obstacle == "missing_scores":
            shares = f"{baseline.missing_share:.0%} of the baseline, {canary.missing_share:.0%} of the canary"
            return f"missing lately: {shares}"
        if obstacle == "unequal_weights":
            return (
                f"weights are {baseline.min_weight:g} to {baseline.max_weight:g} in the baseline and "
                f"{canary.min_weight:g} to {canary.max_weight:g} in the canary; set max_weights, or sample at one rate"
            )
        return ""

    def numbers(self) -> dict[str, Any]:
        """By arm, JSON-safe."""
        return {"baseline": self.baseline.to_state(), "canary": self.canary.to_state()}

    def to_state(self) -> dict[str, Any]:
        """All of it as JSON-safe values."""
        missing = [self._left, list(self._counted), *(more.to_state() for more in self._more)]
        return {
            **self.numbers(),
            "epoch": self.epoch,
            "starved": self._starved,
            "uneven": self._uneven,
            "missing": missing,
        }

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of ``to_state``."""
        self.baseline, self.canary = Tally(**state["baseline"]), Tally(**state["canary"])
        self.epoch, self._starved, self._uneven = state["epoch"], state["starved"], state["uneven"]
        self._left, counted, *more = state["missing"]
        self._counted = (counted[0], counted[1], counted[2], counted[3])
        for test, saved in zip(self._more, more, strict=True):
            test.load(saved)
