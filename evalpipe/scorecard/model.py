"""The scorecard: what is scored, on which records, and what follows from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError

from evalpipe.record import Record
from evalpipe.scorecard.alert_rule import AlertRule, MeanThreshold
from evalpipe.scorecard.checks import CROSS_CHECK
from evalpipe.scorecard.criterion import Category, Criterion, Example, JudgeSpec, Name, Text, Written, content_hash
from evalpipe.scorecard.rollout import RolloutPolicy
from evalpipe.scorecard.rollout_checks import card_problems
from evalpipe.scorecard.values import Globs, Share
from evalpipe.scorecard.written import WrittenRecord

__all__ = (
    "AlertRule",
    "Category",
    "Criterion",
    "Example",
    "Expectation",
    "JudgeSpec",
    "Judging",
    "Match",
    "MeanThreshold",
    "Sampling",
    "Scorecard",
    "ScorecardTest",
)


class Match(Written):
    """Which records the scorecard applies to: those that fit every field."""

    service: Globs = Field(default=["*"], min_length=1, description="The service that the hook names.")
    feature: Globs = Field(default=["*"], min_length=1, description="The product feature that the hook names.")
    environment: Globs = Field(
        default=["*"], min_length=1, description="The release's environment, such as production."
    )
    variant: Globs = Field(
        default=["*"], min_length=1, description="The release's variant, such as baseline or canary."
    )

    def fits(self, record: Record) -> bool:
        """Whether the scorecard applies to ``record``."""
        release = record.release
        return self._fits(release.service, record.feature, release.environment, release.variant)

    def fits_place(self, place: Any) -> bool:
        """Whether it applies to what has the service, feature, environment and variant of ``place``."""
        return self._fits(place.service, place.feature, place.environment, place.variant)

    def _fits(self, service: str, feature: str, environment: str, variant: str) -> bool:
        return (
            any_fits(self.service, service)
            and any_fits(self.feature, feature)
            and any_fits(self.environment, environment)
            and any_fits(self.variant, variant)
        )


class Sampling(Written):
    """Which share of the matched records is worth a judge's money. Heuristics score all of them."""

    judge: Share = Field(
        default=1.0,
        description="Share of matched records whose judged criteria are graded, `20%` or `0.2`; by trace, repeatable.",
    )

    def keeps(self, trace_id: str) -> bool:
        """Whether records of this trace are judged.

        The hash is salted, so that this choice is independent of the hook's own choice by the same trace id.
        """
        digest = hashlib.blake2b(
            trace_id.encode("utf-8", "surrogatepass"), digest_size=8, person=b"evalpipe-judge"
        ).digest()
        return int.from_bytes(digest, "big") < self.judge * 2.0**64


class Judging(Written):
    """What the judges of this scorecard may cost."""

    usd_per_day: float | None = Field(
        default=None,
        gt=0,
        description="At most this many US dollars a UTC day. As it runs short, less urgent work is thinned out at "
        "random (its scores weigh more) and then shed; canaries and safety (priority below 5) go first.",
    )


class Expectation(Written):
    """What a test expects of one criterion: at least one of the fields. Without `status` it must be `scored`."""

    value: float | None = Field(default=None, ge=0, le=1, description="Exactly this (to 1e-6).")
    at_least: float | None = Field(default=None, ge=0, le=1, description="This or more.")
    at_most: float | None = Field(default=None, ge=0, le=1, description="This or less.")
    label: str | None = Field(default=None, description="The score's label, for example `refusal`.")
    status: Literal["scored", "skipped", "error", "abstained"] | None = Field(
        default=None, description="How the score came out."
    )


class ScorecardTest(Written):
    """A record and the scores that it must get. `evalpipe scorecard check` runs them."""

    name: Text = Field(description="A sentence that says what must be true.")
    record: WrittenRecord = Field(description="The interaction, in short form.")
    expect: dict[str, Expectation] = Field(min_length=1, description="By the name of the criterion.")


class Scorecard(Written):
    """What a team wants of one LLM feature, written down before it ships."""

    name: Name = Field(description="Names the scorecard everywhere; lower case, for example `support-bot`.")
    description: str = Field(default="", description="What it is for, in a sentence or two.")
    owner: str = Field(default="", description="The team that answers for it.")
    match: Match = Field(default_factory=Match, description="Which records it applies to; all without it.")
    sampling: Sampling = Field(default_factory=Sampling, description="Which share of them a judge grades.")
    judging: Judging = Field(default_factory=Judging, description="What its judges may cost.")
    criteria: list[Criterion] = Field(min_length=1, description="What is scored.")
    alerts: list[AlertRule] = Field(default_factory=list, description="What somebody should hear about.")
    rollout: RolloutPolicy | None = Field(default=None, description="How a canary is compared with the baseline.")
    tests: list[ScorecardTest] = Field(default_factory=list, description="Records with the scores that they must get.")

    _path: Path | None = PrivateAttr(default=None)

    @property
    def path(self) -> Path | None:
        """The file that it was read from, or None."""
        return self._path

    @cached_property
    def version(self) -> str:
        """Twelve hex digits of the content.

        Comments, the order of keys, defaults that are written out, and tests do not change it. A field's default is
        part of the format and never changes, else one version would mean two things.
        """
        return content_hash(self.body())

    def matches(self, record: Record) -> bool:
        """Whether this scorecard applies to ``record``."""
        return self.match.fits(record)

    def together(self, name: str) -> list[Criterion]:
        """The criteria that are graded in one call with this one, itself included, in the scorecard's order."""
        spec = self.criterion(name).judge
        if spec is None or not spec.together:
            return [self.criterion(name)]
        return [c for c in self.criteria if c.judge is not None and c.judge.together == spec.together]

    def criterion(self, name: str) -> Criterion:
        """The criterion of that name.

        Raises:
            KeyError: there is none.
        """
        return self._by_name[name]

    def body(self) -> dict[str, Any]:
        """The content as JSON-ready values, without defaults and tests: what ``version`` names."""
        return self.model_dump(
            mode="json", by_alias=True, exclude_defaults=True, exclude={"tests": True, "rollout": {"tests"}}
        )

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> Self:
        """The inverse of ``body``, also after a trip through JSON.

        Raises:
            pydantic.ValidationError: it is not a scorecard.
        """
        return cls.model_validate_json(json.dumps(body))

    @cached_property
    def _by_name(self) -> dict[str, Criterion]:
        return {criterion.name: criterion for criterion in self.criteria}

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        problems = list(card_problems(self.model_dump(mode="json", by_alias=True, exclude_defaults=True)))
        if problems:
            text = "; ".join(str(problem) for problem in problems)
            raise PydanticCustomError(CROSS_CHECK, "{problems}", {"problems": text})
        return self


def any_fits(globs: Sequence[str], text: str) -> bool:
    """Whether one of the globs fits; ``*`` also fits an empty text."""
    return any(glob == "*" or fnmatchcase(text, glob) for glob in globs)
