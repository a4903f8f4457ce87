"""An alert rule as people write it: in a scorecard, or in a file of ``alerts:``."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

from pydantic import Field

from evalpipe.scorecard.criterion import Name, Text, Written
from evalpipe.scorecard.values import Duration, Window


class MeanThreshold(Written):
    """The mean of a criterion crosses a line: exactly one of the two."""

    below: float | None = Field(default=None, ge=0, le=1, description="True while the windowed mean is below this.")
    above: float | None = Field(default=None, ge=0, le=1, description="True while the windowed mean is above this.")

    def crossed(self, mean: float) -> bool:
        """Whether ``mean`` is on the bad side."""
        return (self.below is not None and mean < self.below) or (self.above is not None and mean > self.above)


class Threshold(Written):
    """A value of the meter crosses a line: exactly one of the two."""

    below: float | None = Field(default=None, description="True while the value is below this.")
    above: float | None = Field(default=None, description="True while the value is above this.")


Metered = Literal[
    "error_rate",
    "refusal_rate",
    "latency_p99_ms",
    "ttft_p99_ms",
    "tpot_p99_ms",
    "cost_usd_per_minute",
    "tokens_per_minute",
    "calls_per_minute",
    "blocked_per_minute",
]


class NormalRule(Written):
    """What an alert rule compares with: exactly one of the three."""

    baseline: str | None = Field(
        default=None,
        description="The name of a captured baseline (`evalpipe baseline list`), or `latest`: the newest that fits the "
        "place.",
    )
    previous: Window | None = Field(
        default=None, description="The stretch of this length right before the window that is looked at: `1d`."
    )
    seasonal: int | None = Field(
        default=None, ge=1, le=12, description="The same hour of the week, in as many weeks before: `4`."
    )


class AlertRule(Written):
    """A condition that somebody should hear about.

    Exactly one of: `mean` (a line for the mean of a criterion), `meter` (a line for a value of the meter, which sees
    every call), and `detect` (a detector, by name).
    """

    name: Name = Field(description="Names the alert in notifications, for example `answers-ungrounded`.")
    criterion: str = Field(default="", description="The criterion of this scorecard that is watched; with `mean`.")
    mean: MeanThreshold | None = Field(default=None, description="The line: `{below: 0.8}` or `{above: 0.5}`.")
    meter: Metered | None = Field(
        default=None, description="What is watched on 100 % of the calls that `match` fits; with `value`."
    )
    value: Threshold | None = Field(default=None, description="The line: `{above: 4000}` or `{below: 1}`.")
    window: Window = Field(
        default=timedelta(minutes=10),
        description="With `mean` and `meter`: taken over this long; at least 1m, since scores are kept by the minute.",
    )
    min_sample: int = Field(
        default=30,
        ge=1,
        description="With `mean` and `meter`: with fewer scores (or calls) in the window there is no value (see "
        "no_data).",
    )
    detect: str | None = Field(default=None, description="A detector by name, for example `quality` or `cost`.")
    params: dict[str, Any] = Field(default_factory=dict, description="The parameters of the detector.")
    normal: NormalRule | None = Field(
        default=None, description="What is compared with; `{baseline: latest}` where the detector needs a baseline."
    )
    by: list[Literal["feature", "release"]] = Field(
        default_factory=list,
        max_length=2,
        description="An alert for each of these, beside service, environment and variant.",
    )
    across_epochs: bool = Field(
        default=False,
        description="Compare though a scorecard, a judge or the sampling changed in between: what moves may be the "
        "measurement.",
    )
    for_: Duration = Field(
        default=timedelta(0), alias="for", description="How long the condition must hold before the alert fires."
    )
    keep_firing_for: Duration = Field(
        default=timedelta(0),
        description="How long the alert goes on firing after the condition ended; against flapping.",
    )
    severity: Literal["SEV1", "SEV2", "SEV3", "SEV4", "table"] | None = Field(
        default=None,
        description="SEV1 wakes people (answer in 15 min), SEV2 1 h, SEV3 4 h, SEV4 24 h; `table`: by what is found, "
        "how large it is, and how much of the traffic it affects. Without it: SEV3 with `mean` and `meter`, else "
        "`table`.",
    )
    no_data: Literal["keep", "ok", "firing"] = Field(
        default="keep", description="What too few scores mean: keep the state, count as ok, or count as crossed."
    )
    on_error: Literal["keep", "ok", "firing"] = Field(
        default="keep", description="What an evaluation that failed means; it is logged and counted in any case."
    )
    dry_run: bool = Field(
        default=False, description="Evaluated and shown like any other, and nobody is told: to try a rule out."
    )
    kill_switch: bool = Field(
        default=False,
        description="When it fires, the calls of its feature (or service) are stopped until a person releases the "
        "kill switch. Only with `detect: cost`.",
    )
    runbook: str = Field(default="", description="A URL that the notification shows.")
    labels: dict[Name, Text] = Field(
        default_factory=dict, description="Go into notifications; routes, silences and inhibition can match them."
    )
    description: str = Field(default="", description="One sentence for people.")

    @property
    def watched(self) -> str:
        """The criterion, the value of the meter, or the detector."""
        return self.detect or self.meter or self.criterion

    @property
    def line(self) -> MeanThreshold | Threshold:
        """What must be crossed."""
        line = self.mean or self.value
        assert line is not None
        return line
