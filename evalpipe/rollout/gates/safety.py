"""Kind ``safety``: flags, confirmed before they act, and a test of their rates for what confirmation would miss.

What acts, in the order of the records:

* A flag that another judge must confirm holds until the answer is there. Confirmed, it is harm at once if the gate is
  armed: ``expected_canary x false_flags x false_confirms`` is at most .0025, the canary has not had more records than
  expected, and the baseline has no confirmed flag itself. If it is not armed, the e-process on the rate of confirmed
  flags decides, with .8 of alpha. A flag without an answer (the judge failed, abstained or was late) holds no more and
  is never confirmed; where such answers are missing again and again the gate holds for missing scores.
* A flag of a deterministic detector is harm at once while the baseline has none in as many records as the canary had
  up to its first; it holds until there are so many. If the baseline shows such flags too, or if ``false_flags`` is
  measured and more than .0025 false ones are expected, the e-process on the rate of flags decides.
* With confirmation, the e-process on the rate of all flags has .2 of alpha.
* What the rule of one flag is expected to spend is taken off the alpha of the rates, down to a fifth of it.

Rates are of one record for each unit. The records enter the rates in their order: those after a flag that waits for its
answer wait with it.
"""

from __future__ import annotations

from typing import Any, Final

from evalpipe.rollout.gates.arms import Arms
from evalpipe.rollout.gates.base import Obstacle, Standing, kinds
from evalpipe.rollout.gates.flag_line import Answer, FlagLine, Released
from evalpipe.rollout.gates.marks import Marks, kept
from evalpipe.rollout.inputs import Evidence, MeterReading
from evalpipe.rollout.plan import Gate, RolloutPlan
from evalpipe.score import Status
from evalpipe.stats.flags import FLOOR, FlagRates
from evalpipe.stats.matching import Arm
from evalpipe.stats.seen import SeenUnits

BUDGET: Final = 0.0025
"""Most false rollbacks for a rollout that a gate may expect and still act on one flag."""
CONFIRMED_SHARE: Final = 0.8
"""Of the gate's alpha for the rate of confirmed flags; the rest is for the rate of all flags."""
LEAST_RATES: Final = 0.2
"""Of the gate's alpha for the rates, where the rule of one flag spends the rest."""
LEAST_CANARY: Final = 5
"""Canary records before a proven rate acts."""
_ROUNDING: Final = 1.0 + 1e-9


@kinds.register("safety")
class SafetyGate:
    """Flags of one criterion, and their confirmation by another."""

    __slots__ = ("_alpha", "_at_once", "_first_at", "_gate", "_marks", "_notable", "_seen", "_shown", "arms",
                 "confirmed", "line", "raw")  # fmt: skip

    def __init__(self, gate: Gate, plan: RolloutPlan) -> None:
        self._gate = gate
        margin = None if gate.relative else gate.margin
        known = FLOOR if gate.false_flags is None else gate.false_flags
        twice = known * (FLOOR if gate.false_confirms is None else gate.false_confirms)
        self.raw = FlagRates(known, None if gate.confirm else margin)
        self.confirmed = FlagRates(twice, margin)
        self.arms = Arms(gate)
        self.line = FlagLine()
        self._marks = Marks(gate, plan)
        self._seen = SeenUnits()
        self._first_at: int | None = None
        self._at_once = False
        self._alpha = gate.alpha
        if (expected := self._expected) is not None and expected <= BUDGET * _ROUNDING:
            self._alpha = max(gate.alpha - expected, LEAST_RATES * gate.alpha)
        self._shown = Standing()
        self._notable = 1.0 / max(gate.alpha, gate.advance_alpha)

    def take(self, evidence: Evidence) -> bool:
        """Take a flag or a clean score, or the answer to a flag."""
        own = evidence.criterion == self._gate.criterion
        notable = self._flag(evidence) if own else self._answer(evidence)
        return (self._marks.reached(self.line.counts["canary"].records) or notable) and self._turned()

    def _flag(self, evidence: Evidence) -> bool:
        seq, arm, arms, line = evidence.seq, evidence.arm, self.arms, self.line
        admitted = arms.admit(evidence)
        if arms.renewed:
            arms.renewed = False
            self.raw.restart()
            self.confirmed.restart()
            line.renew()
        answer, value = line.reach(seq), evidence.value
        if not admitted or value is None:
            return arms.turned
        flagged = value <= self._gate.flag_at
        enters = self._enters(evidence)
        line.count(arm, flagged=flagged)
        if flagged and arm == "canary" and self._first_at is None:
            self._first_at = line.counts[arm].records
        notable = flagged or arms.turned or (self._first_at is not None and not self._gate.confirm)
        if enters:
            notable |= self._rated(self.raw, arm, flagged=flagged)
        if self._gate.confirm:
            notable |= self._released(line.wait(seq, arm, answer, flagged=flagged, enters=enters))
        return notable

    def _answer(self, evidence: Evidence) -> bool:
        """The confirming judge has answered, or will not."""
        value = evidence.value
        answer: Answer = "unanswered"
        if evidence.status is Status.SCORED and value is not None and not evidence.suspect:
            answer = "confirmed" if value <= self._gate.flag_at else "dismissed"
        self._released(self.line.answer(evidence.seq, answer))
        return True

    def _released(self, records: Released) -> bool:
        notable = False
        for arm, confirmed in records:
            notable |= self._rated(self.confirmed, arm, flagged=confirmed)
        return notable

    def _rated(self, test: FlagRates, arm: Arm, *, flagged: bool) -> bool:
        """Let a record enter a rate; True if that may have proven something."""
        if not test.add(arm, flagged):
            return False
        return test.max_e_value >= self._notable or (test.safe is not None and test.safe.max_e_value >= self._notable)

    def _enters(self, evidence: Evidence) -> bool:
        tally = self.arms.of(evidence.arm)
        bounds = self._gate.max_weights
        if bounds and not kept(evidence.seq, evidence.weight / bounds[evidence.arm == "canary"]):
            return False
        # A pair is one input with two answers of one unit; that they go together makes equal rates look more equal.
        if not self._seen.add(f"{evidence.arm} {evidence.unit}" if evidence.pair else evidence.unit):
            tally.collapsed += 1
            return False
        tally.used += 1
        return True

    @property
    def _expected(self) -> float | None:
        """False rollbacks that acting on one flag would cause; None where nobody has measured that."""
        gate = self._gate
        false_confirms = gate.false_confirms if gate.confirm else 1.0
        if gate.false_flags is None or false_confirms is None:
            return None
        return gate.expected_canary * gate.false_flags * false_confirms

    @property
    def armed(self) -> tuple[bool, str]:
        """Whether one flag acts, and by what reckoning."""
        gate, expected = self._gate, self._expected
        if not gate.confirm and gate.false_flags is None:
            return True, "flags of this detector need no confirmation"
        if expected is None:
            return False, "nobody has measured how many clean records are flagged and confirmed"
        false_confirms = gate.false_confirms if gate.confirm else 1.0
        reckoning = (
            f"{gate.expected_canary} records x {gate.false_flags:g} x {false_confirms:g} = {expected:.2g} "
            f"false rollbacks expected, at most {BUDGET:g}"
        )
        if expected > BUDGET * _ROUNDING:
            return False, reckoning
        if self.line.counts["canary"].records > gate.expected_canary:
            return False, f"the canary has had {self.line.counts['canary'].records} records; {reckoning}"
        return True, reckoning

    def _acts_at_once(self) -> bool:
        baseline, canary = self.line.counts["baseline"], self.line.counts["canary"]
        if self._gate.confirm:
            return canary.confirmed > 0 and not baseline.confirmed and self.armed[0]
        return self._first_at is not None and not baseline.flags and self.armed[0] and not self._outnumbered

    @property
    def _outnumbered(self) -> bool:
        """The baseline has had fewer records than the canary had when it showed its first flag."""
        return self._first_at is not None and self.line.counts["baseline"].records < self._first_at

    def _proven_harm(self) -> bool:
        """A rate is proven higher, and by the share of the margin that the second key asks for."""
        gate = self._gate
        if self.line.counts["canary"].records < LEAST_CANARY:
            return False
        shares = (1.0 - CONFIRMED_SHARE, CONFIRMED_SHARE) if gate.confirm else (1.0, 0.0)
        for test, share in zip((self.raw, self.confirmed), shares, strict=True):
            if share and test.fired(self._alpha * share):
                change = _change(test, relative=gate.relative)
                if change is not None and change >= gate.estimate_share * gate.margin:
                    return True
        return False

    def _turned(self) -> bool:
        self._at_once = self._at_once or self._acts_at_once()
        self.arms.turned = False
        standing, shown = self.standing(), self._shown
        self._shown = standing
        return standing != shown

    def standing(self) -> Standing:
        """Harmed at once or by a proven rate; an unconfirmed flag of the canary is an obstacle."""
        gate, seen = self._gate, self.line.counts["canary"].records
        harmed = self._at_once or self._proven_harm()
        obstacle, detail = self._obstacle()
        enough = not harmed and obstacle != "unconfirmed_flag" and seen >= gate.min_canary
        safe = (self.confirmed if gate.confirm else self.raw).safe
        proven = enough and (safe is None or safe.fired(gate.advance_alpha))
        return Standing(harmed, proven, seen, obstacle, detail, "confirmed_flag" if self._at_once else "")

    def _obstacle(self) -> tuple[Obstacle, str]:
        gate, canary = self._gate, self.line.counts["canary"]
        if gate.confirm and canary.waiting:
            return "unconfirmed_flag", f"{canary.waiting} of the canary's flags wait for {gate.confirm}"
        if not gate.confirm and self._outnumbered and not self.line.counts["baseline"].flags and self.armed[0]:
            return "unconfirmed_flag", (
                f"the canary showed a flag in its first {self._first_at} records, the baseline has had "
                f"{self.line.counts['baseline'].records}"
            )
        if self.arms.obstacle:
            return self.arms.obstacle, self.arms.detail()
        if self.line.unanswered > gate.max_missing + 1e-9:
            return "missing_scores", f"{gate.confirm} has left {self.line.unanswered:.0%} of the last flags unanswered"
        return "", ""

    def take_meter(self, reading: MeterReading) -> bool:
        """Calls have no flags."""
        del reading
        return False

    def set_share(self, share: float | None) -> None:
        """A step begins."""
        del share
        self._marks.ramp(self.line.counts["canary"].records)

    def numbers(self) -> dict[str, Any]:
        """Means are flag rates (of confirmed flags, if they are confirmed); ``flags`` says what became of them."""
        gate = self._gate
        test = self.confirmed if gate.confirm else self.raw
        share = CONFIRMED_SHARE if gate.confirm else 1.0
        baseline, canary = test.rates
        armed, why = self.armed
        safe = test.safe
        return {
            "gate": gate.name, "kind": "safety", "criterion": gate.criterion, "role": gate.role,
            "dry_run": gate.dry_run, "direction": "rise", "margin": gate.margin, "relative": gate.relative,
            "estimate": None if not baseline or canary is None else canary / baseline - 1.0,
            "interval": {"low": None, "high": None, "level": 0.95},
            "e_value": test.e_value, "max_e_value": test.max_e_value, "threshold": 1.0 / (self._alpha * share),
            "safe_e_value": None if safe is None else safe.e_value,
            "max_safe_e_value": None if safe is None else safe.max_e_value,
            "safe_threshold": None if safe is None else 1.0 / gate.advance_alpha,
            "mean_baseline": baseline, "mean_canary": canary,
            "matched_baseline": test.matched[0], "matched_canary": test.matched[2],
            "n_baseline": self.line.counts["baseline"].records, "n_canary": self.line.counts["canary"].records,
            "epoch": self.arms.epoch, "arms": self.arms.numbers(),
            "armed": armed, "armed_why": why, "at_once": self._at_once,
            "flags": {arm: {**counts.to_state(), "waiting": counts.waiting if gate.confirm else 0}
                      for arm, counts in self.line.counts.items()},
            "raw": {"e_value": self.raw.e_value, "max_e_value": self.raw.max_e_value,
                    "threshold": 1.0 / (self._alpha * ((1.0 - CONFIRMED_SHARE) if gate.confirm else 1.0))},
        }  # fmt: skip

    def to_state(self) -> dict[str, Any]:
        """All of it as JSON-safe values."""
        return {
            "raw": self.raw.to_state(),
            "confirmed": self.confirmed.to_state(),
            "arms": self.arms.to_state(),
            "line": self.line.to_state(),
            "marks": self._marks.to_state(),
            "seen": self._seen.to_state(),
            "first_at": self._first_at,
            "at_once": self._at_once,
            "shown": list(self._shown),
        }

    @classmethod
    def from_state(cls, gate: Gate, plan: RolloutPlan, state: dict[str, Any]) -> SafetyGate:
        """The inverse of ``to_state``."""
        new = cls(gate, plan)
        new.raw.load(state["raw"])
        new.confirmed.load(state["confirmed"])
        new.arms.load(state["arms"])
        new.line.load(state["line"])
        new._marks.load(state["marks"])
        new._seen = SeenUnits.from_state(state["seen"])
        new._first_at, new._at_once = state["first_at"], state["at_once"]
        new._shown = Standing(*state["shown"])
        return new


def _change(test: FlagRates, *, relative: bool) -> float | None:
    """Change of the canary's rate: relative (infinite if the baseline has none), or in points."""
    baseline, canary = test.rates
    if baseline is None or canary is None:
        return None
    if not relative:
        return canary - baseline
    return canary / baseline - 1.0 if baseline else (float("inf") if canary else None)
