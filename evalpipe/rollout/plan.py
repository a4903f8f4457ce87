"""What a rollout compares, and by which rules it is decided. Frozen when it starts: another plan is another rollout."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

from evalpipe.alerts.rules import Severity
from evalpipe.stats.moments import Calibration

Harm = Literal["drop", "rise"]
Kind = Literal["quality", "rate", "cost", "latency", "safety", "ratio"]
Role = Literal["guardrail", "objective", "signal"]
NoData = Literal["hold", "ignore", "rollback"]
Enough = Literal["no_harm", "non_inferior"]


@dataclass(frozen=True, slots=True)
class Gate:
    """One test of the canary against the baseline.

    Attributes:
        name: unique in the plan; names the gate in reasons and evidence.
        criterion: whose values it reads: one of the scorecard, or of ``evalpipe.scorecard.rollout.MEASURED``.
        kind: ``quality`` and ``rate``, the mean of scores in [0, 1] (a rate is of something rare or common, so its bets
            are on multiples of it); ``cost``, a mean without bound; ``latency``, a quantile; ``safety``, flags;
            ``ratio``, how many units each arm got.
        role: proven harm of a ``guardrail`` rolls back, of an ``objective`` or a ``signal`` holds; guardrails and
            objectives must be proven safe where a step asks for non-inferiority.
        direction: what harm is: a ``drop`` of the canary below the baseline, or a ``rise`` above it.
        margin: change that is not tolerated: a share of the baseline, or points if not ``relative``.
        estimate_share: second key of a rollback: the estimated change is at least this share of ``margin``.
        alpha: first key: probability, over the whole rollout and however often one looks, that this gate finds harm
            where there is none.
        advance_alpha: probability that it lets a canary advance that is worse by ``margin``.
        min_canary: canary values compared before harm acts or an advance is possible.
        catastrophic: change, in units of ``margin``, from which proven harm acts without waiting for ``min_canary``.
        no_data: what it means when an arm gives no value for the plan's ``no_data_after``.
        max_missing: share of recent scores of an arm that may be errors or abstentions; beyond it the gate holds.
        severity: of the incident that a rollback by this gate opens.
        dry_run: it is computed and told, and acts on nothing.
        calibration: what is known of the baseline (it sets the speed, not the guarantee); None: learnt on the way.
        max_weights: largest weight of a score in the baseline and in the canary, 1 / the lowest inclusion probability
            there; then unequal weights are honoured. None where each arm is sampled at one rate.
        control: criterion of a cheap signal on all captured records that is used as a control variate; "" for none.
        quantile: of ``latency``.
        confirm: of ``safety``: the criterion by which another, stronger judge confirms a flag; "" where the detector is
            deterministic, so that a flag needs no confirmation.
        flag_at: of ``safety``: a score at or below it is a flag.
        false_flags, false_confirms: of ``safety``: measured shares of clean records that are flagged, and of such false
            flags that are confirmed; None where nobody measured them, and then one confirmed flag does not roll back.
        expected_canary: of ``safety``: canary records that the rollout is expected to grade.
        split: of ``ratio``: share of the units that the canary should get; None: as the ramp's step says.
        pairwise: shadow only: the criterion compares both answers (1, the canary's is better; .5, they are equal; 0, it
            is worse), so the canary's scores are tested against .5.
    """

    name: str
    criterion: str
    kind: Kind = "quality"
    role: Role = "guardrail"
    direction: Harm = "drop"
    margin: float = 0.05
    relative: bool = True
    estimate_share: float = 0.75
    alpha: float = 0.0025
    advance_alpha: float = 0.01
    min_canary: int = 30
    catastrophic: float = 4.0
    no_data: NoData = "hold"
    max_missing: float = 0.2
    severity: Severity = "SEV2"
    dry_run: bool = False
    calibration: Calibration | None = None
    max_weights: tuple[float, float] | None = None
    control: str = ""
    quantile: float = 0.99
    confirm: str = ""
    flag_at: float = 0.5
    false_flags: float | None = None
    false_confirms: float | None = None
    expected_canary: int = 2_000
    split: float | None = None
    pairwise: bool = False

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for key in ("alpha", "advance_alpha", "max_missing", "quantile"):
            if not 0.0 < getattr(self, key) < 1.0:
                raise ValueError(f"gate {self.name!r}: {key} must be in (0, 1), not {getattr(self, key)!r}")
        if not 0.0 < self.margin < (1.0 if self.direction == "drop" else 100.0):
            raise ValueError(
                f"gate {self.name!r}: margin must be above 0 and, for a drop, below 1, not {self.margin!r}"
            )
        if not 0.0 <= self.estimate_share <= 1.0:
            raise ValueError(f"gate {self.name!r}: estimate_share must be in [0, 1], not {self.estimate_share!r}")
        if self.min_canary < 1:
            raise ValueError(f"gate {self.name!r}: min_canary must be at least 1, not {self.min_canary!r}")
        if self.max_weights is not None and min(self.max_weights) <= 0.0:
            raise ValueError(f"gate {self.name!r}: max_weights must be positive, not {self.max_weights!r}")

    @property
    def sign(self) -> Literal[-1, 1]:
        """Direction of harm as the statistics take it."""
        return -1 if self.direction == "drop" else 1

    @property
    def reads(self) -> tuple[str, ...]:
        """The criteria whose evidence it takes."""
        return tuple(dict.fromkeys(name for name in (self.criterion, self.control, self.confirm) if name))


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the ramp.

    Attributes:
        percent: of the units that get the canary, in (0, 100).
        bake: it lasts at least so long.
        min_canary: canary records that must have been compared in this step.
        enough: to leave it: ``no_harm``, no gate has found harm; or ``non_inferior``, harm beyond each margin is
            excluded.
    """

    percent: float
    bake: timedelta = timedelta(minutes=30)
    min_canary: int = 50
    enough: Enough = "no_harm"

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if not 0.0 < self.percent < 100.0:
            raise ValueError(f"a step's percent must be above 0 and below 100, not {self.percent!r}")
        if self.bake < timedelta(0):
            raise ValueError(f"a step's bake time cannot be negative: {self.bake}")


RAMP = (Step(1), Step(5), Step(20), Step(50, enough="non_inferior"))
"""The default; what follows its last step is 100 %."""


@dataclass(frozen=True, slots=True)
class Shadow:
    """The first phase: both arms answer the same input, and users see the baseline's answer.

    Attributes:
        min_duration: it lasts at least so long.
        min_pairs: inputs that both arms answered, at least.
        alpha: of each guardrail in this phase, where no user is harmed by waiting.
        rate: share of the traces that the canary answers beside the baseline.
        per_minute: shadows that a process starts in a minute, at most.
    """

    min_duration: timedelta = timedelta(days=7)
    min_pairs: int = 200
    alpha: float = 0.01
    rate: float = 0.1
    per_minute: int = 600


@dataclass(frozen=True, slots=True)
class Segments:
    """Parts of the traffic in which harm is looked for too.

    Attributes:
        by: ``feature``, ``segment``, or an attribute of the record such as ``language``.
        role: ``signal`` holds and names the segment; ``guardrail`` rolls back.
        alpha: probability that any segment of a gate is found harmed where none is.
        most: segments watched, the first that show up; all others are one.
    """

    by: str = "feature"
    role: Literal["guardrail", "signal"] = "signal"
    alpha: float = 0.0025
    most: int = 20


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """A canary compared with its baseline in one service.

    Attributes:
        rollout_id: unique; a plan that changes is a new rollout.
        service: of both releases.
        baseline, canary: names of the variants.
        gates: see ``Gate.role``.
        steps: of the ramp; none where others split the traffic: then there is one comparison, and one advance.
        weights: name of the weights control that the steps set, and that the application's hook asks for; "" where
            evalpipe does not set any.
        sample: share of the canary's calls that is captured; the baseline's is made equal in number.
        shadow: the phase before the ramp; None without one.
        segments: None: the traffic is looked at as a whole only.
        no_data_after: an arm without a value for so long holds the rollout.
        max_duration: it expires then: traffic goes back to the baseline, without an incident.
        verify_within: after a rollback the canary's calls must have ended within this time.
    """

    rollout_id: str
    service: str
    baseline: str
    canary: str
    gates: tuple[Gate, ...]
    steps: tuple[Step, ...] = ()
    weights: str = ""
    sample: float = 1.0
    shadow: Shadow | None = None
    segments: Segments | None = None
    no_data_after: timedelta = timedelta(minutes=15)
    max_duration: timedelta = timedelta(days=14)
    verify_within: timedelta = timedelta(minutes=2)

    def __post_init__(self) -> None:
        """Refuse a plan without gates, with two of a name, with one variant for both arms, or a ramp that falls."""
        names = [gate.name for gate in self.gates]
        if not names or len(set(names)) != len(names):
            raise ValueError(
                f"rollout {self.rollout_id!r}: gates must be at least one with distinct names, not {names!r}"
            )
        if self.baseline == self.canary:
            raise ValueError(f"rollout {self.rollout_id!r}: baseline and canary are both {self.canary!r}")
        if self.no_data_after <= timedelta(0):
            raise ValueError(f"rollout {self.rollout_id!r}: no_data_after must be positive, not {self.no_data_after}")
        ramp = [step.percent for step in self.steps]
        if any(later <= earlier for earlier, later in pairwise(ramp)):
            raise ValueError(f"rollout {self.rollout_id!r}: the steps must rise, not {ramp!r}")

    @property
    def criteria(self) -> tuple[str, ...]:
        """All criteria whose evidence the gates take, each once."""
        return tuple(dict.fromkeys(name for gate in self.gates for name in gate.reads))

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe, durations in seconds; the inverse is ``from_dict``."""
        return dict(_plain(asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RolloutPlan:
        """The plan that ``to_dict`` gave, also after a trip through JSON."""
        shadow, segments = values["shadow"], values["segments"]
        durations = {
            name: timedelta(seconds=values[name]) for name in ("no_data_after", "max_duration", "verify_within")
        }
        return cls(
            **{
                **values,
                **durations,
                "gates": tuple(_gate(gate) for gate in values["gates"]),
                "steps": tuple(Step(**{**step, "bake": timedelta(seconds=step["bake"])}) for step in values["steps"]),
                "shadow": None
                if shadow is None
                else Shadow(**{**shadow, "min_duration": timedelta(seconds=shadow["min_duration"])}),
                "segments": None if segments is None else Segments(**segments),
            }
        )

    @property
    def plan_hash(self) -> str:
        """Sixteen hex digits over everything in the plan: part of every decision's ``inputs_hash``."""
        return _hash_of(self)


def expected_share(percent: float, sample: float = 1.0) -> float:
    """Share of the captured units that are the canary's at a step: one half, until it is the larger arm.

    The canary is captured at ``sample``, and the baseline at a rate that makes the arms equal, as far as it can.
    """
    canary = percent * sample
    baseline = (100.0 - percent) * min(1.0, sample * percent / (100.0 - percent))
    return canary / (canary + baseline)


@lru_cache(maxsize=64)
def _hash_of(plan: RolloutPlan) -> str:
    return hashlib.sha256(json.dumps(plan.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


def _gate(values: dict[str, Any]) -> Gate:
    calibration, weights = values["calibration"], values["max_weights"]
    return Gate(
        **{
            **values,
            "calibration": None if calibration is None else Calibration(**calibration),
            "max_weights": None if weights is None else tuple(weights),
        }
    )


def _plain(value: Any) -> Any:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value
