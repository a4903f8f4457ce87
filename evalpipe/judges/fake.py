"""A judge without a model, for tests and demonstrations: deterministic, and as troublesome as one asks it to be."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final

from pydantic import BeforeValidator, Field

from evalpipe.errors import JudgeUnavailable
from evalpipe.judges.attempts import attempt, refusal
from evalpipe.judges.base import Answer, Finish, JudgeConfig, Prompt, Token, judges
from evalpipe.judges.config import Options, read_options, version_of
from evalpipe.judges.prices import Usage, cost_usd

_TEXTS: Final = {"garbage": "I would rather talk about the weather.", "empty": "", "refused": "I cannot grade this."}
_HANG_S: Final = 3600.0
_ABSTAINS: Final = "cannot_tell"
_MOST_COUNTED: Final = 100_000
"""Prompts whose votes are counted; then the count begins anew."""
_NEXT: Final = 0.5
"""How much less likely than its neighbour each grade is that is further from the one said."""


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

    unversioned: ClassVar[frozenset[str]] = Options.unversioned | {"latency_ms", "fail_rate", "retry_after_s", "moved"}

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
    logprobs: bool = Field(default=True, description="Whether it gives log-probabilities when it is asked for them.")
    sure: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Probability of the grade that it says; without it by hash, from 0.5 to 1.",
    )
    noise: float = Field(
        default=0.0, ge=0, le=1, description="Share of votes that come out as another grade, each vote by itself."
    )
    first: float = Field(
        default=0.0, ge=0, le=1, description="Share of pairs in which it takes the first answer, whatever it is."
    )
    moved: float = Field(
        default=0.0,
        ge=-1,
        le=1,
        description="Share of passes that become fails, of numbers that become one less; below 0 the other way. "
        "Not part of its version: a model that changed behind its name.",
    )


@judges.register("fake")
class FakeJudge:
    """Grades by the hash of the prompt unless its options say otherwise: the same prompt, the same grade.

    Attributes:
        calls: calls made so far, failed ones included.
    """

    version: str
    gives_logprobs: ClassVar[bool] = True
    price_list: ClassVar[str] = ""

    def __init__(self, config: JudgeConfig) -> None:
        self._config = config
        self._options = read_options(config, FakeOptions)
        self.version = version_of(config, self._options)
        self.calls = 0
        self._votes: Counter[str] = Counter()

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
        return self._answer_or_fail(prompt, act)

    def answer_at_once(self, prompt: Prompt) -> Answer:
        """The answer to one prompt of a batch; it hangs where that expires.

        Raises:
            EvalpipeError: as ``ask``.
        """
        act = self._act(prompt, 0)
        self.calls += 1
        if act == "hang":
            raise JudgeUnavailable(f"judge {self.version} let it expire", cause="timeout")
        return self._answer_or_fail(prompt, act)

    def _answer_or_fail(self, prompt: Prompt, act: str) -> Answer:
        if act == "disconnect":
            raise JudgeUnavailable(f"judge {self.version} cannot be reached: it was told to disconnect")
        if len(act) == 3 and act.isdecimal() and "400" <= act <= "599":
            wait = self._options.retry_after_s
            headers = {} if wait is None else {"retry-after": str(wait)}
            raise refusal(self.version, int(act), "it was told to fail", headers)
        return self._answer(prompt, act)

    def _act(self, prompt: Prompt, number: int) -> str:
        """What this call is told to do; "" leaves it to the hash."""
        if _share(prompt.system, prompt.user, str(number)) < self._options.fail_rate:
            return "500"
        for text, act in self._options.rules.items():
            if text in prompt.user:
                return act
        if acts := self._options.acts:
            return acts[min(self.calls, len(acts) - 1)]
        return ""

    def _answer(self, prompt: Prompt, act: str) -> Answer:
        tokens = self._grades(prompt, act)
        whole = "".join(token.text for token in tokens)
        text = whole[: len(whole) // 2] if act == "truncated" else _TEXTS.get(act, whole)
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
            tokens=tokens if prompt.logprobs and self._options.logprobs and text == whole else (),
        )

    def _grades(self, prompt: Prompt, act: str) -> list[Token]:
        """The JSON that the schema asks for, each grade a token of its own."""
        vote = self._vote(prompt)
        properties = prompt.schema["properties"]
        if "enum" in properties.get("grade", {}):
            return self._object(prompt, properties["grade"]["enum"], act, "", vote)
        forms = {name: form["properties"]["grade"]["enum"] for name, form in properties.items()}
        if not any(act in enum for enum in forms.values()):
            forms = {name: [*enum, act] if act else enum for name, enum in forms.items()}
        tokens: list[Token] = []
        for name, enum in forms.items():
            tokens += [_plain((", " if tokens else "{") + json.dumps(name) + ": ")]
            tokens += self._object(prompt, enum, act if act in enum else "", name, vote)
        return [*tokens, _plain("}")]

    def _object(self, prompt: Prompt, enum: Sequence[str], act: str, name: str, vote: int) -> list[Token]:
        grades = [grade for grade in enum if grade != _ABSTAINS]
        said = act
        if "first" in grades and "second" in grades and act not in grades:
            said = self._preferred(prompt, act)
        elif not act:
            said = grades[int(_share(prompt.system, prompt.user, *filter(None, [name])) * len(grades))]
        if said in grades:
            said = self._disturbed(prompt, grades, said, name, vote)
        likely = self._likely(prompt, grades, said) if said in grades else {said: 1.0}
        head = json.dumps({"explanation": f"the fake judge says {said}", "quotation": "", "grade": ""})
        logprobs = {_inner(grade): math.log(p) for grade, p in likely.items()}
        return [_plain(head[:-2]), Token(_inner(said), logprobs), _plain('"}')]

    def _preferred(self, prompt: Prompt, act: str) -> str:
        """Which of two answers is better: the one without what a rule fails, or with what it passes; else by hash."""
        if _share(prompt.key or prompt.user, "first") < self._options.first:
            return "first"
        if act in {"tie", _ABSTAINS}:
            return act
        first, second = _part(prompt.user, "FIRST"), _part(prompt.user, "SECOND")
        found = next(((text, a) for text, a in self._options.rules.items() if text in prompt.user), None)
        if found is None:
            good, other = _share(prompt.system, first), _share(prompt.system, second)
        else:
            good, other = (float((found[0] in side) == (found[1] == "pass")) for side in (first, second))
        return "tie" if good == other else "first" if good > other else "second"

    def _disturbed(self, prompt: Prompt, grades: Sequence[str], said: str, name: str, vote: int) -> str:
        """The grade after what the options ``moved`` and ``noise`` do to it."""
        what = prompt.key or prompt.system + prompt.user
        moved, noise = self._options.moved, self._options.noise
        if moved and _share(what, name, "moved") < abs(moved):
            said = _worse(said, -1 if moved > 0 else 1, grades)
        if noise and len(grades) > 1 and (at := _share(what, name, "noise", str(vote))) < noise:
            others = [grade for grade in grades if grade != said]
            said = others[int(at / noise * len(others))]
        return said

    def _likely(self, prompt: Prompt, grades: Sequence[str], said: str) -> Mapping[str, float]:
        """A probability for each grade: most for the one that is said, less the further away."""
        sure = self._options.sure or 0.5 + _share(prompt.key or prompt.user, "sure") / 2.0
        at = grades.index(said)
        weights = {grade: _NEXT ** abs(n - at) for n, grade in enumerate(grades) if n != at}
        rest = sum(weights.values())
        return {said: sure if rest else 1.0} | {
            grade: (1.0 - sure) * weight / rest for grade, weight in weights.items() if sure < 1.0
        }

    def _vote(self, prompt: Prompt) -> int:
        """How often this prompt was answered before; only counted where it matters."""
        if not self._options.noise:
            return 0
        if len(self._votes) >= _MOST_COUNTED:
            self._votes.clear()
        what = prompt.key or prompt.user
        self._votes[what] += 1
        return self._votes[what] - 1


def _worse(said: str, step: int, grades: Sequence[str]) -> str:
    if said.isdecimal():
        return str(int(said) + step) if str(int(said) + step) in grades else said
    return {("pass", -1): "fail", ("fail", 1): "pass"}.get((said, step), said)


def _part(user: str, name: str) -> str:
    """The text of one part of the fenced record; "" without it."""
    found = re.search(rf"^\[(\w+) {name}\]\n(.*?)^\[\1 ", user, re.MULTILINE | re.DOTALL)
    return found[2] if found else ""


def _inner(word: str) -> str:
    """A grade as it stands within the quotes of JSON."""
    return json.dumps(word, ensure_ascii=False)[1:-1]


def _plain(text: str) -> Token:
    return Token(text, {text: 0.0})


def _share(*texts: str) -> float:
    """A number in [0, 1) that depends on ``texts`` only."""
    return int.from_bytes(hashlib.sha256("\x1f".join(texts).encode()).digest()[:6]) / 2**48
