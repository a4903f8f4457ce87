"""One named thing that a scorecard scores, by a heuristic or by a judge.

The models here and in ``model`` say what each single field may hold; what must agree between fields is in ``checks``.
The descriptions of the fields are the manual: they go into the JSON Schema that editors show.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from evalpipe.scorecard.values import JUDGE, NAME

Need = Literal["input", "output", "context", "tools", "tool_calls", "reference"]
Name = Annotated[str, Field(pattern=NAME, max_length=64)]
Text = Annotated[str, Field(min_length=1)]


class Written(BaseModel):
    """Base of everything that people write in a scorecard: no unknown keys, no silent conversions, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Category(Written):
    """One of the answers that a judge of kind ``category`` may give."""

    value: float = Field(ge=0, le=1, description="What this answer is worth, from 0 (bad) to 1 (good).")
    description: str = Field(default="", description="When the judge should give this answer.")


class Example(Written):
    """A worked example that the judge is shown."""

    input: str = Field(description="What the user asked.")
    output: str = Field(description="What the model answered.")
    context: str = Field(default="", description="What was retrieved, if that matters for the grade.")
    grade: bool | int | str = Field(
        description="The right grade: true or false (boolean), a number of the scale (scale), a label (category)."
    )
    explanation: str = Field(default="", description="Why that grade is right; judges grade better when shown this.")


class Escalation(Written):
    """A cascade: a stronger judge grades again what the first one must not decide alone; its grade counts."""

    to: str = Field(pattern=JUDGE, description="The stronger judge, `provider:model`.")
    when: list[Literal["unsure", "fail"]] = Field(
        default=["unsure"],
        min_length=1,
        description="unsure: it could not tell, its votes differ, or (with logprobs) the likeliest grade is below 0.8. "
        "fail: the grade is not the best one; for safety, where a failure must be confirmed.",
    )


class JudgeSpec(Written):
    """How a judge grades a criterion."""

    kind: Literal["boolean", "scale", "category", "pairwise"] = Field(
        description="boolean: pass is 1 and fail is 0. scale: whole numbers with anchors, carried to [0, 1]. "
        "category: labels, each with its value. pairwise: a shadow's answer against the served one, asked in both "
        "orders: 1 is better, 0.5 a tie, 0 worse; other records are skipped."
    )
    rubric: Text = Field(
        description="What the judge is asked to decide, in plain words: what passes, what fails, what does not count."
    )
    anchors: dict[int, Text] = Field(
        default_factory=dict,
        description="Only for scale, and at least two: what the numbers mean. The lowest becomes 0, the highest 1.",
    )
    categories: dict[Text, Category] = Field(
        default_factory=dict, description="Only for category, and at least two: the labels with their values."
    )
    examples: list[Example] = Field(
        default_factory=list, max_length=20, description="Worked examples that the judge is shown before the record."
    )
    needs: list[Need] = Field(
        default_factory=list,
        description="What a record must have to be graded; where it is absent, the score is `skipped` without a call. "
        "reference: a known good answer, in the record's attribute `reference`; the judge is shown it.",
    )
    model: str = Field(
        default="default",
        pattern=JUDGE,
        description="Which judge: `default` (the configured one) or `provider:model`, such as `openai:gpt-6-luna`.",
    )
    panel: list[Annotated[str, Field(pattern=JUDGE)]] = Field(
        default_factory=list,
        max_length=9,
        description="Several judges instead of `model`: each grades, and `combine` says what counts.",
    )
    votes: int = Field(
        default=1, ge=1, le=9, description="How often each judge is asked; more than one needs a temperature above 0."
    )
    combine: Literal["majority", "mean"] = Field(
        default="majority",
        description="What several grades become: the most frequent (a tie abstains), or the mean of their values.",
    )
    together: str = Field(
        default="",
        pattern=r"^[a-z0-9_-]{0,64}$",
        description="Criteria with the same word here are graded in one call: cheaper, and less independent.",
    )
    explain: bool = Field(
        default=True,
        description="false: the grade alone, without explanation and quotation: a fifth of the output tokens, and for "
        "small models often better with `logprobs`; large ones grade better when they explain first.",
    )
    logprobs: bool = Field(
        default=False,
        description="The score is the mean over the grades weighted by their log-probabilities, where the provider "
        "gives them (OpenAI's API and most compatible servers; not Anthropic's), else the grade as said.",
    )
    escalate: Escalation | None = Field(default=None, description="A stronger judge for what the first is unsure of.")
    fallback: list[Annotated[str, Field(pattern=JUDGE)]] = Field(
        default_factory=list,
        max_length=5,
        description="Judges to turn to, in this order, while the ones before are failing; each opens a new epoch.",
    )
    confirms: str = Field(
        default="",
        description="The criterion of this scorecard whose flags this judge confirms: it is asked only about records "
        "that were flagged there, and must be another, stronger judge.",
    )
    lane: Literal["now", "batch"] = Field(
        default="now",
        description="batch: what is not urgent goes through the provider's batch API, at half the price, within a day.",
    )
    priority: int = Field(
        default=5,
        ge=0,
        le=9,
        description="Which work comes first when the judge is behind: 0 (safety) before 5 (normal).",
    )

    @property
    def ladder(self) -> list[list[str]]:
        """Who grades at each step: the panel (or the model) first, then each judge to fall back to."""
        return [list(self.panel) or [self.model], *([model] for model in self.fallback)]

    @property
    def models(self) -> list[str]:
        """Every judge that may be asked, each once."""
        named = [model for step in self.ladder for model in step]
        return list(dict.fromkeys([*named, *([self.escalate.to] if self.escalate else [])]))


class Criterion(Written):
    """One named thing that is scored: by exactly one of a heuristic and a judge."""

    name: Name = Field(description="Names the series of scores; lower case, for example `grounded`.")
    description: str = Field(default="", description="One sentence for people; no scorer reads it.")
    heuristic: str | None = Field(default=None, description="A scorer without a model, by name.")
    params: dict[str, Any] = Field(default_factory=dict, description="The parameters of the heuristic.")
    judge: JudgeSpec | None = Field(default=None, description="How a judge model grades this criterion.")
    weight: float = Field(
        default=1.0, gt=0, le=100, description="How much it counts where one number is shown for all."
    )

    @property
    def is_judged(self) -> bool:
        """Whether a model grades it; otherwise a heuristic scores it."""
        return self.judge is not None

    @cached_property
    def definition_hash(self) -> str:
        """Twelve hex digits of what makes the score: the heuristic with its parameters, or the judge's instructions.

        The epoch of a series comes from it and the scorer's version, so a new description, weight or priority does not
        break a series.
        """
        definition = self.model_dump(mode="json", include={"heuristic", "params", "judge"}, exclude_defaults=True)
        for name in ("priority", "lane", "fallback"):  # the judge's version tells which step of the ladder graded
            definition.get("judge", {}).pop(name, None)
        return content_hash(definition)


def content_hash(body: Mapping[str, Any]) -> str:
    """Twelve hex digits of a JSON-ready mapping, independent of the order of its keys."""
    text = json.dumps(body, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
