"""When an alert fires: a threshold on a windowed mean."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

Severity = Literal["SEV1", "SEV2", "SEV3", "SEV4"]
NoData = Literal["keep", "ok", "firing"]


@dataclass(frozen=True, slots=True)
class Observation:
    """The aggregate of a rule's window at one evaluation.

    Attributes:
        value: None if it is unknown.
        n: scored records behind it.
        at: end of the window, aware UTC.
    """

    value: float | None
    n: int
    at: datetime


@dataclass(frozen=True, slots=True)
class ThresholdRule:
    """An alert rule: the mean of a criterion, or a value of the meter, over a window, below or above a threshold.

    Attributes:
        name: unique in its scorecard.
        criterion: whose scores it reads, or which value of the meter.
        comparison: ``below`` or ``above``: the condition is true strictly beyond the threshold.
        threshold: in units of the score.
        window: how far back the mean reaches.
        min_sample: scored records, or calls, below which the value counts as no data.
        for_: how long every evaluation must be true before the alert fires; zero fires at once.
        keep_firing_for: how long it keeps firing after the condition cleared.
        fires_at_least: how long a firing lasts at the least: who evaluates with each new score sees the mean of a young
            window cross the threshold to and fro, which is one firing and no three.
        severity: of the alert and its incident.
        no_data: what an evaluation without enough data counts as: ``keep`` leaves the alert as it is (CloudWatch's
            ``ignore``, Grafana's "Keep Last State"), ``ok`` counts as clear, ``firing`` as a violation.
        aggregation: ``mean`` of a criterion's scores, or ``meter``: a value of the meter, which sees every call.
    """

    name: str
    criterion: str
    comparison: Literal["below", "above"]
    threshold: float
    window: timedelta
    min_sample: int = 30
    for_: timedelta = timedelta(0)
    keep_firing_for: timedelta = timedelta(0)
    severity: Severity = "SEV3"
    no_data: NoData = "keep"
    aggregation: Literal["mean", "meter"] = "mean"
    fires_at_least: timedelta = timedelta(0)

    def __post_init__(self) -> None:
        """Refuse durations and samples that make no sense."""
        if self.window <= timedelta(0):
            raise ValueError(f"alert rule {self.name!r}: window must be positive, not {self.window}")
        if self.for_ < timedelta(0) or self.keep_firing_for < timedelta(0):
            raise ValueError(f"alert rule {self.name!r}: for and keep_firing_for must not be negative")
        if self.min_sample < 1:
            raise ValueError(f"alert rule {self.name!r}: min_sample must be at least 1, not {self.min_sample!r}")

    def violated(self, observation: Observation) -> bool | None:
        """Whether the condition holds; None where there is not enough data and the policy is to keep."""
        if observation.value is None or observation.n < self.min_sample:
            return {"keep": None, "ok": False, "firing": True}[self.no_data]
        if self.comparison == "below":
            return observation.value < self.threshold
        return observation.value > self.threshold
