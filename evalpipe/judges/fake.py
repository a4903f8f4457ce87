"""A judge without a model, for tests and demonstrations: deterministic, and as troublesome as one asks it to be."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from typing import Annotated, Any, ClassVar, Final

from pydantic import BeforeValidator, Field

from evalpipe.errors import JudgeUnavailable
from evalpipe.judges.attempts import attempt, refusal
from evalpipe.judges.base import Answer, Finish, JudgeConfig, Prompt, judges
from evalpipe.judges.config import Options, read_options, version_of
from evalpipe.judges.prices import Usage, cost_usd

_TEXTS: Final = {"garbage": "I would rather talk about the weather.", "empty": "", "refused": "I cannot grade this."}
_HANG_S: Final = 3600.0


def _words(value: Any) -> Any:
    if isinstance(value, str | int):
        value = str(value).split(",")
    return tuple(str(word) for word in value) if isinstance(value, list | tuple) else value


class FakeOptions(Options):
    """Options of the judge ``fake``.

    An *act* is a grade (``pass``, ``4``, a category, ``cannot_tell``, or one that the criterion does not have) or a
    trouble: an HTTP status from ``400`` to ``599``, ``disconnect``, ``hang``, ``garbage``, ``empty``, ``truncated``,
    ``refused``.
    """

    unversioned: ClassVar[frozenset[str]] = Options.unversioned | {"latency_ms", "fail_rate", "retry_after_s"}

    rules: dict[str, str] = Field(
        default_factory=dict, description="Text to look for in the record, and the act it causes; the first found wins."
    )
    acts: Annotated[tuple[str, ...], BeforeValidator(_words)] = Field(
        default=(), description="What one call after the other gets where no rule matches; the last one stays."
    )
    latency_ms: float = Field(default=0.0, ge=0, description="Time that each call takes.")
    fail_rate: float = Field(
        default=0.0, ge=0, le=1, description="Share of calls that fail with 500; retries may work."
    )
    retry_after_s: float | None = Field(default=None, ge=0, description="What a 429 or 5xx asks one to wait.")


@judges.register("fake")
class FakeJudge:
    """Grades by the hash of the prompt unless its options say otherwise: the same prompt, the same grade.

    Attributes:
        calls: calls made so far, failed ones included.
    """

    version: str
    gives_logprobs: ClassVar[bool] = False

    def __init__(self, config: JudgeConfig) -> None:
        self._config = config
        self._options = read_options(config, FakeOptions)
        self.version = version_of(config, self._options)
        self.calls = 0

    async def ask(self, prompt: Prompt) -> Answer:
        """The answer by rule, by act, or by hash; see ``Judge.ask``."""
        number = itertools.count()
        return await attempt(self.version, self._config, lambda: self._call(prompt, next(number)))

    async def aclose(self) -> None:
        """Nothing is open."""

    async def _call(self, prompt: Prompt, number: int) -> Answer:
        act = self._act(prompt, number)
        self.calls += 1
        await asyncio.sleep(_HANG_S if act == "hang" else self._options.latency_ms / 1000.0)
        if act == "disconnect":
            raise JudgeUnavailable(f"judge {self.version} cannot be reached: it was told to disconnect")
        if len(act) == 3 and act.isdecimal() and "400" <= act <= "599":
            wait = self._options.retry_after_s
            headers = {} if wait is None else {"retry-after": str(wait)}
            raise refusal(self.version, int(act), "it was told to fail", headers)
        return self._answer(prompt, act)

    def _act(self, prompt: Prompt, number: int) -> str:
        if _share(prompt.system, prompt.user, str(number)) < self._options.fail_rate:
            return "500"
        for text, act in self._options.rules.items():
            if text in prompt.user:
                return act
        if acts := self._options.acts:
            return acts[min(self.calls, len(acts) - 1)]
        grades = [grade for grade in prompt.schema["properties"]["grade"]["enum"] if grade != "cannot_tell"]
        return str(grades[int(_share(prompt.system, prompt.user) * len(grades))])

    def _answer(self, prompt: Prompt, act: str) -> Answer:
        grade = json.dumps({"explanation": f"the fake judge says {act}", "quotation": "", "grade": act})
        text = grade[: len(grade) // 2] if act == "truncated" else _TEXTS.get(act, grade)
        finish: Finish = "truncated" if act == "truncated" else "refused" if act == "refused" else "complete"
        # About four characters a token, as is usual in English.
        usage = Usage(input_tokens=(len(prompt.system) + len(prompt.user)) // 4, output_tokens=len(text) // 4)
        return Answer(
            text=text,
            model=self._config.model,
            finish=finish,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cost_usd=cost_usd(usage, provider="fake", models=(), per_mtok=self._options.usd_per_mtok or (0.0, 0.0)),
        )


def _share(*texts: str) -> float:
    """A number in [0, 1) that depends on ``texts`` only."""
    return int.from_bytes(hashlib.sha256("\x1f".join(texts).encode()).digest()[:6]) / 2**48
