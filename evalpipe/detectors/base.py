"""The contract of a detector: what it looks at, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from evalpipe.detectors.view import View
from evalpipe.registry import Registry
from evalpipe.scorecard.values import Period

Kind = Literal[
    "quality", "rate", "safety", "cost", "latency", "input_drift", "output_drift", "fingerprint", "coverage", "meter"
]
"""What an alert is about; the severity table and inhibition go by it."""
Input = Literal["growth", "scores", "calls", "users", "profiles", "prints", "coverage"]
State = Mapping[str, Any]
"""What a detector keeps between two evaluations: JSON-safe, and empty at first."""


class DetectorParams(BaseModel):
    """Base of every detector's parameters: what a rule's author writes under ``params``."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class RatedParams(DetectorParams):
    """Base of the parameters of detectors that test: their thresholds follow from the wanted rate of false alarms."""

    false_alarm_every: Period = Field(
        default=timedelta(days=365),
        description="How long it takes on the average until a false alarm of one alert, where nothing has changed: "
        "`365d` is one a year, so that of twenty alerts less than two a month are false. Thresholds follow from it and "
        "from what is normal.",
    )


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look at one place found.

    Attributes:
        violated: whether the condition holds; None where that cannot be told (too few data, no baseline): then the
            rule's ``no_data`` decides.
        value: the number to show, in the unit that people know; None if unknown.
        n: how many scores, calls or records are behind it.
        reason: one sentence for people: the number, what is normal, and by which test it differs.
        ratio: value over what is normal; None where there is no such ratio. The severity table reads it.
        threshold: that ``value`` was compared with, if there is one number.
        severity: where the detector itself knows (a cost of 100 times the usual); else the rule's, or the table's.
        numbers: JSON-safe evidence: the test, its statistics, the sizes, the baseline.
        examples: ids of the records that show it best, at most ten, the best first; empty if it knows none (the ten
            worst scores of the criterion are then looked up).
    """

    violated: bool | None
    value: float | None = None
    n: int = 0
    reason: str = ""
    ratio: float | None = None
    threshold: float | None = None
    severity: Literal["SEV1", "SEV2", "SEV3", "SEV4"] | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)
    examples: tuple[str, ...] = ()


class Detector(Protocol):
    """Looks for one kind of change. Made once for each rule; what it remembers of a place is in the state.

    Attributes:
        Params: the parameter model; its field descriptions are the manual.
        version: raised whenever the state of before means something else: alerts begin anew.
        kind: what its alerts are about.
        inputs: what it reads of a view; nothing else is loaded.
    """

    Params: ClassVar[type[DetectorParams]]
    version: ClassVar[str]
    kind: ClassVar[Kind]
    inputs: ClassVar[frozenset[Input]]

    def __init__(self, params: Any) -> None:
        """Check what can be checked without data; ``params`` is a ``Params`` of the class.

        Raises:
            ConfigError: the parameters are well-formed but cannot work, for example a burn rate that no traffic can
                reach.
        """

    @property
    def criteria(self) -> tuple[str, ...]:
        """The criteria whose scores it reads; empty for none."""
        ...

    def look(self, view: View, state: State) -> tuple[State, Finding]:
        """One evaluation: the new state, and what was found. Deterministic; never changes ``state``."""
        ...


detectors: Registry[type[Detector]] = Registry("detector", "evalpipe.detectors")
"""All detectors by the name that alert rules use."""
