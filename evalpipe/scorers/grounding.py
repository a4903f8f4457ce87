"""Does the retrieved context support what the answer says? Without a model: by its claims and its words."""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Final

from pydantic import Field

from evalpipe.record import Record
from evalpipe.score import Score, scored, skipped
from evalpipe.scorers import base
from evalpipe.scorers.answer import context_texts, nothing_to_score
from evalpipe.scorers.claims import Claim, claims, supported
from evalpipe.scorers.words import stems

_BRACKETS: Final = re.compile(r"\[[^\[\]\n]{1,200}\]")
_KEPT_CHARS: Final = 20_000


class GroundingParams(base.Params):
    """Parameters of ``grounding``."""

    claims_weight: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Weight of the claims (amounts, percents, durations, dates, times, counts, addresses) against the "
        "words, in an answer that makes claims. 1: claims only, and answers without any are skipped; 0: words only.",
    )
    trust_input: bool = Field(
        True, description="What the user said needs no support: its claims and words are taken as known."
    )


@base.heuristics.register("grounding")
class Grounding:
    """The share of the answer that the retrieved documents support: of its claims, and of its words.

    Claims: the share of the checkable claims that occur in the context (see `evalpipe.scorers.claims`). Words: the
    share of the distinct content words, cut to stems, that occur in it. The value is their weighted mean. Labels ``grounded``
    and ``unsupported claims``.

    It does not read: a sentence that turns the context's words into its opposite counts as supported. It sees answers
    that bring in what no document says, above all numbers; for the rest use a judge.
    """

    Params: ClassVar[type[base.Params]] = GroundingParams
    version: ClassVar[str] = "1"

    def __init__(self, params: GroundingParams) -> None:
        self._params = params

    def score(self, record: Record) -> Score:
        """The score of ``record``; the explanation has the claims and some of the words without support."""
        if reason := nothing_to_score(record):
            return skipped(reason)
        documents = context_texts(record)
        if not documents:
            return skipped("no context was retrieved")
        said = _read(_BRACKETS.sub(" ", record.output))  # whom it cites is for the heuristic `citation`
        known = _read(record.input_text) if self._params.trust_input else _NOTHING
        return self._compare(said.beyond(known), _all(documents))

    def _compare(self, said: _Content, given: _Content) -> Score:
        loose = [quotation for claim, quotation in said.claims.items() if not supported(claim, given.claims)]
        strange = sorted(said.words - given.words)
        weight = self._params.claims_weight
        if not said.claims and (weight == 1 or not said.words):
            return skipped("the output claims nothing that can be checked")
        weight = 0.0 if not said.claims else 1.0 if not said.words else weight
        claims_share = 1 - len(loose) / len(said.claims) if said.claims else 0.0
        words_share = 1 - len(strange) / len(said.words) if said.words else 0.0
        value = weight * claims_share + (1 - weight) * words_share
        explanation = f"words {words_share:.0%} supported"
        if said.claims:
            explanation = f"claims {claims_share:.0%} supported, " + explanation
        if loose:
            explanation += "; not in the context: " + ", ".join(repr(q[:40]) for q in loose[:5])
        return scored(value, "unsupported claims" if loose else "grounded", explanation)


@dataclass(frozen=True, slots=True)
class _Content:
    """What a text says, as far as it can be compared."""

    claims: Mapping[Claim, str]
    words: frozenset[str]

    def beyond(self, other: _Content) -> _Content:
        """The content to be checked: without that of ``other``, and without spelled-out counts."""
        left = ((claim, q) for claim, q in self.claims.items() if claim.kind != "word")
        claims_left = {claim: q for claim, q in left if not supported(claim, other.claims)}
        return _Content(claims_left, self.words - other.words)


_NOTHING: Final = _Content({}, frozenset())


def _all(texts: list[str]) -> _Content:
    """The content of several documents together; most are retrieved again and again, so theirs is kept."""
    contents = [_kept(text) if len(text) <= _KEPT_CHARS else _read(text) for text in texts]
    if len(contents) == 1:
        return contents[0]
    return _Content(
        dict(ChainMap(*(dict(c.claims) for c in contents))), frozenset().union(*(c.words for c in contents))
    )


@lru_cache(maxsize=512)
def _kept(text: str) -> _Content:
    return _read(text)


def _read(text: str) -> _Content:
    found = claims(text)
    return _Content(found, frozenset(s for s in stems(text) if not s[0].isdigit()))
