"""Can people read it? LIX, a readability index that needs no dictionary."""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import Field

from evalpipe.errors import ConfigError
from evalpipe.record import Record
from evalpipe.score import Score, scored, skipped
from evalpipe.scorers import base
from evalpipe.scorers.answer import nothing_to_score

_ENDS = re.compile(r"[.!?:]\s|\n")
_LONG_WORD = re.compile(r"\w{7,}")
_BANDS = ((30.0, "very easy"), (40.0, "easy"), (50.0, "medium"), (60.0, "difficult"))


class ReadabilityParams(base.Params):
    """Parameters of ``readability``."""

    good: float = Field(
        50.0,
        ge=0,
        description="LIX up to which the value is 1: 30 is a children's book, 40 fiction, 50 a newspaper, 60 a law.",
    )
    bad: float = Field(
        80.0, gt=0, description="LIX from which on the value is 0; in between it falls in a straight line."
    )
    min_words: int = Field(20, ge=1, description="A shorter answer is skipped: too few words to tell.")


@base.heuristics.register("readability")
class Readability:
    """1 up to LIX ``good``, 0 from LIX ``bad`` on. Labels ``very easy`` to ``very difficult``.

    LIX = words per sentence + percentage of words with more than six letters (C.-H. Bjoernsson, Laesbarhet, 1968). It
    fits languages in Latin, Greek and Cyrillic letters; other scripts are skipped. A line's end ends a sentence too, so
    lists count as short sentences.
    """

    Params: ClassVar[type[base.Params]] = ReadabilityParams
    version: ClassVar[str] = "1"

    def __init__(self, params: ReadabilityParams) -> None:
        if params.good >= params.bad:
            raise ConfigError(f"readability: good is {params.good} and bad is {params.bad}: good must be lower")
        self._params = params

    def score(self, record: Record) -> Score:
        """The score of ``record``; the explanation has the index."""
        if reason := nothing_to_score(record):
            return skipped(reason)
        if not _spaced_script(record.output[:200]):
            return skipped("LIX fits Latin, Greek and Cyrillic letters only")
        words = len(record.output.split())
        if words < self._params.min_words:
            return skipped(f"{words} words are too few to tell, {self._params.min_words} are needed")
        sentences = sum(1 for piece in _ENDS.split(record.output) if piece and not piece.isspace())
        long_words = len(_LONG_WORD.findall(record.output))
        lix = words / max(1, sentences) + 100 * long_words / words
        value = (self._params.bad - lix) / (self._params.bad - self._params.good)
        label = next((name for limit, name in _BANDS if lix < limit), "very difficult")
        return scored(min(1.0, max(0.0, value)), label, f"LIX {lix:.0f}")


def _spaced_script(head: str) -> bool:
    if head.isascii():
        return True
    letters = [c for c in head if c.isalpha()]
    return 2 * sum(c < "\u0530" or "\u1e00" <= c < "\u2000" for c in letters) >= len(letters)
