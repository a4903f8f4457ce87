"""Does the answer say what it is obliged to say?"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from evalpipe.errors import ConfigError
from evalpipe.record import Record
from evalpipe.score import Score, scored, skipped
from evalpipe.scorers import base
from evalpipe.scorers.answer import nothing_to_score

_SIGNS = str.maketrans({"\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-"})


class DisclosureParams(base.Params):
    """Parameters of ``disclosure``."""

    required: list[str | list[str]] = Field(
        min_length=1,
        description="What must be said: each entry is a phrase, or a list of phrases of which one is enough. Case, "
        "white space and the shape of quotation marks do not matter.",
    )
    when: list[str] = Field(
        default_factory=list,
        description="Only answers to which one of these phrases applies (in the input or in the output) are scored, "
        "the others are skipped. Empty: all are scored.",
    )


@base.heuristics.register("disclosure")
class Disclosure:
    """The share of the required disclosures that the answer makes. Labels ``disclosed`` and ``missing``."""

    Params: ClassVar[type[base.Params]] = DisclosureParams
    version: ClassVar[str] = "1"

    def __init__(self, params: DisclosureParams) -> None:
        self._required = [[_plain(p) for p in ([r] if isinstance(r, str) else r)] for r in params.required]
        self._when = [_plain(phrase) for phrase in params.when]
        if not all(alternatives and all(alternatives) for alternatives in self._required):
            raise ConfigError(f"disclosure: an entry of 'required' is empty: {params.required!r}; write a phrase")
        if not all(self._when):
            raise ConfigError(f"disclosure: an entry of 'when' is empty: {params.when!r}; write a phrase")

    def score(self, record: Record) -> Score:
        """The score of ``record``; the explanation names what is missing."""
        if reason := nothing_to_score(record):
            return skipped(reason)
        output = _plain(record.output)
        if self._when:
            question = _plain(record.input_text)
            if not any(phrase in output or phrase in question for phrase in self._when):
                return skipped("nothing in the input or the output calls for the disclosure")
        missing = [alternatives[0] for alternatives in self._required if not any(a in output for a in alternatives)]
        if missing:
            share = 1 - len(missing) / len(self._required)
            return scored(share, "missing", "not said: " + "; ".join(repr(m[:80]) for m in missing))
        return scored(1.0, "disclosed")


def _plain(text: str) -> str:
    return " ".join(text.translate(_SIGNS).lower().split())
