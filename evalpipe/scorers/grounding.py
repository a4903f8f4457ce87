"""Does the retrieved context support what the answer says? Without a model: by its claims and its words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Final

from pydantic import Field

from evalpipe.record import Record, text_of
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
        "words, in an answer that has both. 1: only claims, answers without any are skipped; 0: only words.",
    )
    trust_input: bool = Field(
        True,
        description="What only the user's messages hold, and no document, counts neither for nor against the answer. "
        "False: it counts against it.",
    )
    min_words: int = Field(
        2, ge=1, description="With fewer distinct content words to compare, words say nothing and are left out."
    )


@base.heuristics.register("grounding")
class Grounding:
    """The share of the answer that the retrieved documents support: of its claims, and of its words.

    Claims: the share of the checkable claims that occur in the context (see `evalpipe.scorers.claims`). Words: the
    share of the distinct content words, cut to stems, that occur in it. The value is their weighted mean. Labels
    ``grounded``, and ``unsupported claims`` if there is one.

    It does not read. An answer that turns the documents' words into their opposite, or quotes the wrong rule, counts as
    supported; one that says the right thing in other words does not. It sees answers that bring in what no document
    says, above all numbers. For the rest use a judge.
    """

    Params: ClassVar[type[base.Params]] = GroundingParams
    version: ClassVar[str] = "1"

    def __init__(self, params: GroundingParams) -> None:
        self._params = params

    def score(self, record: Record) -> Score:
        """The score of ``record``; the explanation has both shares and the claims without support."""
        if reason := nothing_to_score(record):
            return skipped(reason)
        documents = context_texts(record)
        if not documents:
            return skipped("no context was retrieved")
        given = _all(documents)
        said = _read(_BRACKETS.sub(" ", record.output))  # whom it cites is a matter for the heuristic `citation`
        checked = {claim: quotation for claim, quotation in said.claims.items() if claim.kind != "word"}
        loose = {claim: quotation for claim, quotation in checked.items() if not supported(claim, given.claims)}
        strange = said.words - given.words
        if self._params.trust_input and (loose or strange):
            asked = "\n".join(text_of(m.get("content")) for m in record.messages if m.get("role") == "user")
            strange -= frozenset(stems(asked))
            known = claims(asked) if loose else {}
            loose = {claim: quotation for claim, quotation in loose.items() if not supported(claim, known)}
        return self._weigh(
            _Share(sum(supported(claim, given.claims) for claim in checked), len(loose)),
            _Share(len(said.words & given.words), len(strange)),
            list(loose.values()),
        )

    def _weigh(self, claim: _Share, word: _Share, loose: list[str]) -> Score:
        weight = self._params.claims_weight
        if word.total < self._params.min_words:
            weight = 1.0
        if not claim.total:
            if weight == 1.0:
                return skipped("the output says too little that could be checked")
            weight = 0.0
        value = weight * claim.supported + (1 - weight) * word.supported
        parts = [
            f"{share.yes} of {share.total} {name}"
            for share, name in ((claim, "claims"), (word, "words"))
            if share.total
        ]
        explanation = " and ".join(parts) + " supported"
        if loose:
            explanation += "; not in the context: " + ", ".join(repr(q[:40]) for q in loose[:5])
        return scored(value, "unsupported claims" if loose else "grounded", explanation)


@dataclass(frozen=True, slots=True)
class _Share:
    yes: int
    no: int

    @property
    def total(self) -> int:
        return self.yes + self.no

    @property
    def supported(self) -> float:
        return self.yes / self.total if self.total else 0.0


@dataclass(frozen=True, slots=True)
class _Content:
    """What a text says, as far as it can be compared."""

    claims: Mapping[Claim, str]
    words: frozenset[str]


def _all(texts: list[str]) -> _Content:
    """The content of several documents together; most are retrieved again and again, so theirs is kept."""
    contents = [_kept(text) if len(text) <= _KEPT_CHARS else _read(text) for text in texts]
    if len(contents) == 1:
        return contents[0]
    together: dict[Claim, str] = {}
    for content in contents:
        together.update(content.claims)
    return _Content(together, frozenset().union(*(content.words for content in contents)))


@lru_cache(maxsize=512)
def _kept(text: str) -> _Content:
    return _read(text)


def _read(text: str) -> _Content:
    return _Content(claims(text), frozenset(stem for stem in stems(text) if not stem[0].isdigit()))
