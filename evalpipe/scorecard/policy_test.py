"""The tests that a rollout's policy carries: streams of scores, and what it must decide on them."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

from evalpipe.scorecard.criterion import Text, Written
from evalpipe.scorecard.values import DURATION_PATTERN, Share, ShareOrZero, format_duration, parse_duration


class Distribution(Written):
    """Where the scores of one arm come from: exactly one of the three."""

    rate: ShareOrZero | None = Field(default=None, description="1 with this probability, else 0.")
    scores: list[float] = Field(default_factory=list, description="The steps of a rubric, `[0, 0.5, 1]`; with shares.")
    shares: list[Annotated[float, Field(ge=0)]] = Field(
        default_factory=list, description="How often each of the scores comes, `[1, 2, 7]`."
    )
    mean: float | None = Field(
        default=None,
        gt=0,
        description="A beta distribution with this mean and `sd`; for cost and latency a log-normal.",
    )
    sd: float | None = Field(default=None, gt=0, description="Goes with `mean`.")


class Stream(Written):
    """The scores of one criterion in both arms."""

    criterion: Text = Field(description="As a gate of the policy names it.")
    baseline: Distribution = Field(description="Where the baseline's scores come from.")
    canary: Distribution | None = Field(
        default=None, description="Where the canary's come from; the baseline's distribution without it."
    )
    drop: Share | None = Field(default=None, description="Instead: the canary's mean is lower by this share.")
    rise: Share | None = Field(default=None, description="Instead: the canary's mean is higher by this share.")
    missing: ShareOrZero = Field(default=0.0, description="Share of the canary's scores that end as errors.")


class Row(Written):
    """One score as it stands in a file for `evalpipe backtest`; the order of the list is its place."""

    arm: Literal["baseline", "canary"] = Field(description="Which release answered.")
    criterion: Text = Field(description="What was scored.")
    value: float | None = Field(description="The score; null where it is missing.")
    after: Annotated[timedelta, BeforeValidator(parse_duration)] | None = Field(
        default=None, description="When, since the start, `90s`; a second after the row before without it."
    )
    unit: str = Field(default="", description="User or conversation; another one for each row without it.")
    weight: float = Field(default=1.0, ge=1, description="1 / inclusion probability.")
    status: Literal["scored", "error", "abstained", "skipped"] = Field(default="scored", description="How it came out.")
    epoch: str = Field(default="", description="Scorecard and judge version.")
    pair: str = Field(default="", description="The input that both arms answered.")
    segment: str = Field(default="", description="Of the traffic.")


def _within(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str | timedelta):
        raise ValueError(  # noqa: TRY004 - pydantic makes a message of this one
            "is neither a number of canary scores nor a duration; write 1500 or 2h"
        )
    return value if isinstance(value, int) else parse_duration(value)


Within = Annotated[
    int | timedelta,
    BeforeValidator(_within),
    PlainSerializer(lambda value: format_duration(value) if isinstance(value, timedelta) else value),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": DURATION_PATTERN}]},
    ),
]


class PolicyExpectation(Written):
    """What must come of a test's streams."""

    decision: Literal["advance", "hold", "rollback"] = Field(
        description="hold: it stands at the end, and nothing else was ever decided."
    )
    gate: str = Field(default="", description="The gate that it must be due to; any without it.")
    cause: str = Field(default="", description="Its cause, such as harm_proven or missing_scores; any without it.")
    within: Within | None = Field(
        default=None, description="By when: so many values of the canary (of the criterion that has most), or `2h`."
    )
    at_least: ShareOrZero | None = Field(default=None, description="Of the repetitions; all of them without it.")
    at_most: ShareOrZero | None = Field(default=None, description="Of the repetitions.")


class PolicyTest(Written):
    """Streams, and what the policy must decide on them."""

    name: Text = Field(description="A sentence that says what must be true.")
    streams: list[Stream] = Field(default_factory=list, description="Distributions by criterion; or `rows`.")
    rows: list[Row] = Field(default_factory=list, description="Scores one by one; instead of `streams`.")
    canary_share: Share = Field(default=0.5, description="Share of the units that get the canary.")
    units: int = Field(default=4000, ge=1, le=1_000_000, description="Users or conversations of both arms.")
    per_minute: float = Field(default=60.0, gt=0, description="How many of them come in a minute.")
    seed: int = Field(default=1, ge=0, description="Of the random numbers; the same seed gives the same streams.")
    repeat: int = Field(default=1, ge=1, le=10_000, description="How often, with other random numbers each time.")
    expect: PolicyExpectation = Field(description="What must come of it.")
