"""How a canary is compared with its baseline, and what it needs to go on: what people write.

It stands under ``rollout:`` in a scorecard, alone in a policy file, and with a name in a file of ``rollouts:``.
``evalpipe.rollout.from_policy`` makes the plan of it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Final, Literal

from pydantic import Field, SerializationInfo, SerializerFunctionWrapHandler, model_serializer, model_validator

from evalpipe.scorecard.criterion import Text, Written
from evalpipe.scorecard.policy_test import PolicyTest
from evalpipe.scorecard.values import Duration, Lasting, Margin, Percent, Share, Weights

GateKind = Literal["quality", "rate", "cost", "latency", "safety", "ratio"]
NoData = Literal["hold", "ignore", "rollback"]
COST: Final = "cost_usd"
LATENCY: Final = "latency_ms"
TTFT: Final = "ttft_ms"
MEASURED: Final = (COST, LATENCY, TTFT)
"""Criteria that nobody scores: what a call cost and how long it took. Their values are not in [0, 1]."""
ESTIMATE_SHARE: Final = 0.75
"""Second key of a rollback: the estimated change, in units of the margin."""
MARGINS: Final[dict[str, float]] = {"cost": 0.15, "latency": 0.20}
"""Tolerances where none is written; 5 % for the others."""

_Alpha = Annotated[float, Field(gt=0, le=0.1)]


def kind_of(criterion: Any, kind: Any = None) -> str:
    """The kind of a gate, as written or as its criterion has it."""
    if isinstance(kind, str):
        return kind
    return "cost" if criterion == COST else "latency" if criterion in MEASURED else "quality"


class Gate(Written):
    """A test that the canary is not worse than the baseline in one respect."""

    criterion: str = Field(
        default="",
        description="What is compared: a criterion of the scorecard, or cost_usd, latency_ms or ttft_ms. The kind "
        "ratio counts units by it; by cost_usd, which every captured record has, without it.",
    )
    name: str = Field(
        default="", max_length=64, description="Names the gate in reasons; the criterion without it. Unique."
    )
    kind: GateKind | None = Field(
        default=None,
        description="quality: the mean of scores. rate: the mean of something rare or common, such as refusals. "
        "cost: a mean without bound. latency: a quantile. safety: flags, confirmed before they act. ratio: how many "
        "units each arm got. Without it cost for cost_usd, latency for latency_ms and ttft_ms, else quality.",
    )
    role: Literal["guardrail", "objective", "signal"] = Field(
        default="guardrail",
        description="Proven harm of a guardrail rolls back, of an objective or a signal holds. Guardrails and "
        "objectives must be proven safe where a step asks for it.",
    )
    margin: Margin = Field(
        default=0.05,
        description="The change that is not tolerated: `5%` of the baseline, or `0.03 points`. A rollback needs "
        "evidence of harm and an estimate of at least 0.75 of the margin; an advance of the last step needs evidence "
        "that harm is smaller than the margin. 20% for latency and 15% for cost without it.",
    )
    direction: Literal["drop", "rise", "both"] | None = Field(
        default=None,
        description="What harm is: a drop below the baseline, a rise above it, or both (two gates with half the alpha "
        "each). Without it rise for cost, latency and the rate of flags, else drop.",
    )
    alpha: _Alpha | None = Field(
        default=None,
        description="Chance of finding harm where there is none, over the whole rollout and however often it looks. "
        "Without it a guardrail gets its share of the rollout's alpha, and others 0.0025.",
    )
    share: float = Field(
        default=1.0, gt=0, le=1000, description="Of the rollout's alpha, against the other guardrails without alpha."
    )
    advance_alpha: _Alpha | None = Field(
        default=None, description="Chance of a false advance over the whole rollout; the rollout's without it."
    )
    min_canary: int = Field(default=30, ge=1, description="No decision before this many values of the canary.")
    catastrophic: float = Field(
        default=4.0,
        ge=1,
        description="From so many times the margin on, proven harm acts without waiting for min_canary.",
    )
    no_data: NoData | None = Field(
        default=None, description="What it means when an arm gives no value for no_data_after; the rollout's without."
    )
    severity: Literal["SEV1", "SEV2", "SEV3", "SEV4"] | None = Field(
        default=None, description="Of the incident that its rollback opens; SEV1 for safety, else SEV2, without it."
    )
    dry_run: bool = Field(default=False, description="true: computed and told, and acts on nothing.")
    control: str = Field(
        default="",
        description="A heuristic's criterion that goes with this one: as a control variate it saves judge calls.",
    )
    quantile: float | None = Field(default=None, gt=0, lt=1, description="Of latency; 0.99 without it.")
    confirm: str = Field(
        default="",
        description="Of safety: the criterion by which another, stronger judge confirms a flag; without it the one "
        "whose judge says so by `confirms`. A heuristic's flag needs none: it acts at once.",
    )
    flag_at: float | None = Field(
        default=None, ge=0, le=1, description="Of safety: a score at or below it is a flag; 0.5 without it."
    )
    false_flags: float | None = Field(
        default=None, ge=0, le=1, description="Of safety: measured share of clean records that are flagged."
    )
    false_confirms: float | None = Field(
        default=None, ge=0, le=1, description="Of safety: measured share of such false flags that are confirmed."
    )
    expected_canary: int | None = Field(
        default=None, ge=1, description="Of safety: canary records that the rollout will grade; 2000 without it."
    )
    split: Share | None = Field(
        default=None,
        description="Of ratio: share of the captured units that the canary should get; as the ramp says without it.",
    )
    pairwise: bool = Field(
        default=False,
        description="true: in the shadow phase the criterion compares both answers (1 the canary's is better, 0.5 "
        "equal, 0 worse) and is tested against 0.5; so for a judge of kind pairwise.",
    )
    max_weights: Weights | None = Field(
        default=None,
        description="[baseline, canary]: the largest weight of a score, where an arm is sampled at several rates.",
    )

    @property
    def resolved(self) -> str:
        """The kind, as written or as the criterion has it."""
        return kind_of(self.criterion, self.kind)

    @property
    def called(self) -> str:
        """Its name, as written or by default."""
        return self.name or self.criterion or self.resolved

    @property
    def tolerance(self) -> tuple[float, bool]:
        """The margin, and whether it is a share of the baseline (else points)."""
        if isinstance(self.margin, str):
            return float(self.margin.partition(" ")[0]), False
        return self.margin, True

    @property
    def directions(self) -> tuple[Literal["drop", "rise"], ...]:
        """What harm is; one gate of the plan for each."""
        if self.direction == "both":
            return ("drop", "rise")
        return (self.direction or ("rise" if self.resolved in {"cost", "latency", "safety"} else "drop"),)

    @property
    def spends(self) -> bool:
        """Whether its false alarms are false rollbacks."""
        return self.role == "guardrail" and not self.dry_run and self.resolved != "ratio"

    @model_validator(mode="before")
    @classmethod
    def _margin_of_its_kind(cls, data: Any) -> Any:
        if isinstance(data, dict) and "margin" not in data:
            margin = MARGINS.get(kind_of(data.get("criterion"), data.get("kind")))
            return data if margin is None else {**data, "margin": margin}
        return data

    @model_serializer(mode="wrap")
    def _without_the_margin_of_its_kind(
        self, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        """The default of a margin goes by the kind, which pydantic's own ``exclude_defaults`` cannot know."""
        found: dict[str, Any] = handler(self)
        if info.exclude_defaults:
            found.pop("margin", None)
            if self.margin != MARGINS.get(self.resolved, 0.05):
                found["margin"] = self.margin
        return found


class RampStep(Written):
    """One step of the ramp."""

    percent: Percent = Field(description="Of the units that get the canary: `5` or `5%`.")
    bake: Duration = Field(default=timedelta(minutes=30), description="It lasts at least so long.")
    min_canary: int = Field(default=50, ge=0, description="Canary records that must have been compared in it.")
    enough: Literal["no_harm", "non_inferior"] | None = Field(
        default=None,
        description="To leave it: no_harm, no gate has found harm; or non_inferior, harm beyond each margin is ruled "
        "out. Without it no_harm, and non_inferior for the step before 100 %.",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_a_number(cls, data: Any) -> Any:
        return {"percent": data} if isinstance(data, int | float | str) and not isinstance(data, bool) else data


class ShadowPhase(Written):
    """The first phase: both arms answer the same input, and users see the baseline's answer."""

    min_duration: Duration = Field(default=timedelta(days=7), description="It lasts at least so long.")
    min_pairs: int = Field(default=200, ge=1, description="Inputs that both arms answered, at least.")
    alpha: _Alpha = Field(
        default=0.01, description="Of each guardrail in this phase, in which no user is harmed by waiting."
    )
    rate: Share = Field(default=0.1, description="Share of the calls that run the canary too.")
    per_minute: int = Field(
        default=600, ge=1, le=1_000_000, description="Such calls a minute of a process at the most."
    )


SEGMENTED: Final = frozenset({"quality", "rate", "cost"})
"""Kinds of gates that are looked at by segment."""
SEGMENTS_ALPHA: Final = 0.0025


class SegmentSpec(Written):
    """Parts of the traffic in which harm is looked for too."""

    by: Text = Field(
        default="feature", description="feature, segment, or an attribute of the record such as `language`."
    )
    role: Literal["guardrail", "signal"] = Field(
        default="signal", description="signal: holds and names the segment; guardrail: rolls back."
    )
    alpha: _Alpha = Field(
        default=SEGMENTS_ALPHA, description="Chance, for a gate, that any segment is found harmed where none is."
    )
    most: int = Field(default=20, ge=1, le=200, description="Segments watched: the first; all others are one.")


DEFAULT_RAMP: Final = (1.0, 5.0, 20.0, 50.0, 100.0)


class RolloutPolicy(Written):
    """The comparison of two variants, and what it needs to go on."""

    baseline: Text = Field(default="baseline", description="The variant that is compared with.")
    canary: Text = Field(default="canary", description="The variant on trial.")
    gates: list[Gate] = Field(
        default=[],
        min_length=1,
        description="One failed guardrail rolls back; all must pass to advance. Without it the default rules: quality "
        "-5%, latency p99 +20%, any confirmed safety violation, cost +15%; refusals, format and the sample ratio hold.",
    )
    alpha: _Alpha = Field(
        default=0.01,
        description="Chance of a false rollback over the whole rollout, by all guardrails together: those without an "
        "alpha of their own share it.",
    )
    advance_alpha: _Alpha = Field(
        default=0.01, description="Chance of a false advance over the whole rollout, however often it looks."
    )
    ramp: list[RampStep] | None = Field(
        default=None,
        min_length=1,
        description="Percent of the units that get the canary, step by step: `[1, 5, 20, 50, 100]` (without it), or a "
        "mapping for a step with a bake time of its own.",
    )
    shadow: ShadowPhase | None = Field(default=None, description="A phase before the ramp that no user sees.")
    segments: SegmentSpec | None = Field(default=None, description="Parts of the traffic that are looked at too.")
    no_data: NoData = Field(default="hold", description="What it means when an arm gives no value for no_data_after.")
    no_data_after: Lasting = Field(default=timedelta(minutes=15), description="So long without a value is no data.")
    max_duration: Lasting = Field(
        default=timedelta(days=14), description="Then it expires: traffic goes back to the baseline, without incident."
    )
    verify_within: Lasting = Field(
        default=timedelta(minutes=2), description="After a rollback the canary's calls must end within this time."
    )
    weights: str = Field(
        default="",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$",
        description="The weights control that the steps set, and that the application asks `hook.variant()` for; "
        "without it others split the traffic.",
    )
    sample: Share = Field(default=1.0, description="Share of the canary's calls that is captured.")
    tests: list[PolicyTest] = Field(
        default_factory=list, description="What it must decide on given streams. `evalpipe rollout test` runs them."
    )

    @property
    def steps(self) -> bool:
        """Whether evalpipe moves the traffic: a ramp or a weights control is written."""
        return bool(self.weights) or self.ramp is not None

    @property
    def climb(self) -> list[RampStep]:
        """The steps before 100 %, each with what is enough to leave it."""
        ramp = self.ramp or [RampStep(percent=percent) for percent in DEFAULT_RAMP]
        below = [step for step in ramp if step.percent < 100.0]
        last = len(below) - 1
        return [
            step.model_copy(update={"enough": step.enough or ("non_inferior" if place == last else "no_harm")})
            for place, step in enumerate(below)
        ]
