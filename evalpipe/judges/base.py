"""The contract of a judge: text in, grade out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from evalpipe.registry import Registry
from evalpipe.score import Status

Finish = Literal["complete", "truncated", "refused"]
"""How an answer ended: whole, cut at ``max_tokens``, or with the judge's model declining to grade."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a judge is asked.

    Attributes:
        system: rubric and instructions; the same for every record of a criterion, so that providers can cache it.
        user: the record, fenced as data; comes last.
        schema: JSON Schema of the answer.
        max_tokens: bound on the answer.
        logprobs: ask for the log-probabilities of the answer's tokens, where the provider gives them.
        key: names what is asked, whatever the code of the fence: equal for equal rubric and record.
        account: the scorecard that pays.
    """

    system: str
    user: str
    schema: Mapping[str, Any]
    max_tokens: int = 512
    logprobs: bool = False
    key: str = ""
    account: str = ""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer with what else might have stood there.

    Attributes:
        text: as it stands in the answer.
        alternatives: natural log-probability by text, the token itself included.
    """

    text: str
    alternatives: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a judge's model said to one prompt, with what it took.

    A truncated or refused answer is an ``Answer`` too and not an exception: it was paid for.

    Attributes:
        text: the answer, whole; JSON where the provider keeps its promise; the refusal where it refused.
        model: the model that answered, as returned.
        finish: how the answer ended.
        fingerprint: the provider's name for the exact back end, where it gives one; a change may move the grades.
        input_tokens, cached_tokens, output_tokens: usage as the provider counts it; cached ones are part of the input.
        cost_usd: by the price list; None where the model has no known price.
        latency_ms: wall time of the call that succeeded.
        attempts: calls made, the successful one included.
        tokens: the answer's, in order, where log-probabilities were asked for and given.
        request_id: the provider's name for the call, for its support.
    """

    text: str
    model: str
    finish: Finish = "complete"
    fingerprint: str = ""
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None
    latency_ms: float = 0.0
    attempts: int = 1
    tokens: Sequence[Token] = ()
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Grade:
    """What a judge said of one work, checked against the criterion's schema.

    Attributes:
        status: ``scored``, ``abstained`` (the judge could not tell) or ``error``; never ``skipped``.
        value: in [0, 1] where 1 is good; None unless scored.
        label: the grade in the judge's word: ``pass``, ``4`` or a category.
        explanation: why, for people; for an error what is wrong with the answer.
        quotation: the words of the output that cost it the best grade; "" if the judge named none that occur in it.
        raw: what the judge said, whole; only for errors.
        answer: what the call took; None if the judge did not answer, and where the grade is one that is known already.
        cause: of an error: ``refused``, ``truncated``, ``malformed`` or ``request`` (the provider refused this one).
        reading: ``word`` (the grade as said) or ``expected`` (its mean over the grades' log-probabilities).
        confidence: probability of the most likely grade, by the log-probabilities; None without them.
    """

    status: Status
    value: float | None = None
    label: str = ""
    explanation: str = ""
    quotation: str = ""
    raw: str = ""
    answer: Answer | None = None
    cause: str = ""
    reading: Literal["word", "expected"] = "word"
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class JudgeConfig:
    """How to reach one judge.

    Attributes:
        provider: a name in the registry ``judges``.
        model: the provider's name for the model.
        base_url: an OpenAI- or Anthropic-compatible endpoint; "" means the provider's own.
        api_key: "" means the provider's own environment variable, and no key at all where ``base_url`` is set.
        concurrency: calls in flight per worker process at the most; kept by the caller's window.
        timeout_s: for one attempt.
        attempts: calls for one grade at the most.
        options: further settings of the provider.
    """

    provider: str
    model: str
    base_url: str = ""
    api_key: str = field(default="", repr=False)
    concurrency: int = 32
    timeout_s: float = 60.0
    attempts: int = 3
    options: Mapping[str, Any] = field(default_factory=dict)


class Judge(Protocol):
    """A model that grades. One instance lives as long as its event loop and holds its connections."""

    version: str
    """``provider:model[@host][?option=value]``: names the judge in every grade; a change opens a new epoch."""

    gives_logprobs: ClassVar[bool]
    """Whether ``Prompt.logprobs`` can be met."""

    def __init__(self, config: JudgeConfig) -> None:
        """Open nothing yet: connections are made on the loop that first calls ``ask``.

        Raises:
            ConfigError: an option is unknown or has a wrong value.
        """

    async def ask(self, prompt: Prompt) -> Answer:
        """The model's answer.

        Raises:
            JudgeUnavailable: timeout, throttling, 5xx or a broken connection, after the configured attempts.
            JudgeRejected: bad key, no credit, unknown model: nothing that this judge is asked can work.
            PermanentError: the provider refuses this one request, for example because it is too long.
        """
        ...

    async def aclose(self) -> None:
        """Close the connections; may be called twice."""
        ...


judges: Registry[type[Judge]] = Registry("judge", "evalpipe.judges")
"""All judge providers by name."""

__all__: Sequence[str] = ("Answer", "Finish", "Grade", "Judge", "JudgeConfig", "Prompt", "Token", "judges")
