"""What a rollout compares, and by which rules it is decided."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, Literal

from evalpipe.alerts.rules import Severity
from evalpipe.stats.moments import Calibration

Harm = Literal["drop", "rise"]


@dataclass(frozen=True, slots=True)
class Gate:
    """One guardrail: rolls back where harm is proven, lets advance where harm beyond ``margin`` is excluded.

    Attributes:
        name: unique in the plan; names the gate in reasons and evidence.
        criterion: whose scores it reads; in [0, 1].
        kind: ``quality``, the mean of the scores.
        direction: what harm is: a ``drop`` of the canary below the baseline, or a ``rise`` above it.
        margin: relative change that is not tolerated; .05 is five per cent of the baseline.
        estimate_share: second key of a rollback: the estimated change is at least this share of ``margin``.
        alpha: first key of a rollback: probability, over the whole rollout and however often one looks, that this gate
            finds harm where there is none.
        promote_alpha: probability that it lets a canary advance that is worse by ``margin``.
        min_canary: canary scores compared before any action.
        max_missing: share of recent scores of an arm that may be errors or abstentions; beyond it the gate holds.
        severity: of the incident that a rollback by this gate opens.
        calibration: what is known of the baseline (it sets the speed, not the guarantee).
        max_weights: largest weight of a score in the baseline and in the canary, 1 / the lowest inclusion probability
            there; then unequal weights are honoured. None where each arm is sampled at one rate.
    """

    name: str
    criterion: str
    kind: Literal["quality"] = "quality"
    direction: Harm = "drop"
    margin: float = 0.05
    estimate_share: float = 0.8
    alpha: float = 0.0025
    promote_alpha: float = 0.01
    min_canary: int = 10
    max_missing: float = 0.2
    severity: Severity = "SEV2"
    calibration: Calibration = field(default_factory=Calibration)
    max_weights: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for key in ("margin", "alpha", "promote_alpha", "max_missing"):
            if not 0.0 < getattr(self, key) < 1.0:
                raise ValueError(f"gate {self.name!r}: {key} must be in (0, 1), not {getattr(self, key)!r}")
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


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """A canary compared with its baseline in one service.

    Attributes:
        rollout_id: unique; a plan that changes is a new rollout.
        service: of both releases.
        baseline, canary: names of the variants.
        gates: any of them rolls back; all of them together let advance.
        no_data_after: an arm without a score for so long holds the rollout.
    """

    rollout_id: str
    service: str
    baseline: str
    canary: str
    gates: tuple[Gate, ...]
    no_data_after: timedelta = timedelta(minutes=15)

    def __post_init__(self) -> None:
        """Refuse a plan without gates, with two of a name, or with one variant for both arms."""
        names = [gate.name for gate in self.gates]
        if not names or len(set(names)) != len(names):
            raise ValueError(
                f"rollout {self.rollout_id!r}: gates must be at least one with distinct names, not {names!r}"
            )
        if self.baseline == self.canary:
            raise ValueError(f"rollout {self.rollout_id!r}: baseline and canary are both {self.canary!r}")
        if self.no_data_after <= timedelta(0):
            raise ValueError(f"rollout {self.rollout_id!r}: no_data_after must be positive, not {self.no_data_after}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; the inverse is ``from_dict``."""
        return asdict(self) | {"no_data_after": self.no_data_after.total_seconds()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RolloutPlan:
        """The plan that ``to_dict`` gave, also after a trip through JSON."""
        gates = tuple(
            Gate(
                **{
                    **gate,
                    "calibration": Calibration(**gate["calibration"]),
                    "max_weights": tuple(gate["max_weights"]) if gate["max_weights"] else None,
                }
            )
            for gate in values["gates"]
        )
        return cls(**{**values, "gates": gates, "no_data_after": timedelta(seconds=values["no_data_after"])})

    @property
    def plan_hash(self) -> str:
        """Sixteen hex digits over everything in the plan: part of every decision's ``inputs_hash``."""
        text = json.dumps(asdict(self), sort_keys=True, default=lambda value: value.total_seconds())
        return hashlib.sha256(text.encode()).hexdigest()[:16]
