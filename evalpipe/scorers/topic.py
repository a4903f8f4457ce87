"""Is the text about the topic? By keywords, or by likeness to example phrases."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import ClassVar, Final, Literal

from pydantic import Field

from evalpipe.errors import ConfigError
from evalpipe.record import Record
from evalpipe.score import Score, scored, skipped
from evalpipe.scorers import base
from evalpipe.scorers.answer import nothing_to_score
from evalpipe.scorers.words import stems

PASSAGE: Final = 150
"""Words in a passage: a long text is about the topic if one of its passages is."""
_KEPT: Final = 50_000
_KEPT_CHARS: Final = 30
_SIGNS: Final = str.maketrans(dict.fromkeys('.,;:!?()[]{}<>"*_/|\u2026\u201c\u201d\u2013\u2014', " "))

_Alike = tuple[str, tuple[tuple[int, int], ...]]
"""A word's stem, and its likeness in millionths to each example that has any."""


class TopicParams(base.Params):
    """Parameters of ``topic``."""

    examples: list[str] = Field(
        default_factory=list,
        description="Phrases or sentences that are about the topic, the more and the more different the better.",
    )
    other_examples: list[str] = Field(
        default_factory=list,
        description="Phrases about neighbouring topics: a text that is more like these is off the topic.",
    )
    keywords: list[str] = Field(
        default_factory=list, description="Words or phrases that by themselves put a text on the topic, in any case."
    )
    expect: Literal["on", "off"] = Field(
        "on", description="What is good: to be 'on' the topic, or 'off' it (a topic that the feature must not enter)."
    )
    of: Literal["output", "input"] = Field("output", description="Which text: the answer, or the user's last message.")
    threshold: float = Field(
        0.2,
        gt=0,
        le=1,
        description="Likeness (cosine) from which on a text is on the topic. Find yours with 'evalpipe scorecard try': "
        "the explanation has each record's likeness.",
    )


@base.heuristics.register("topic")
class Topic:
    """Expecting ``on``: likeness / threshold, at most 1. Expecting ``off``: 1 up to the threshold, 0 from twice it on.

    Labels ``on`` and ``off``. Likeness is the greatest cosine between a passage of the text and an example, in a static
    embedding that needs no weights: a word is a fixed vector over its stem and its letter trigrams (the subword idea of
    Bojanowski et al., Enriching word vectors with subword information, 2017), a text is the sum of its distinct content
    words, and its length is taken as if they were at right angles (as in the soft cosine of Sidorov et al., 2014).

    What it is not: nothing is learned, so synonyms are strangers ("money back" is not like "refund", "refundable" is),
    and so is another language. Give examples in the words that people really use, in each language they use; or use a
    judge.
    """

    Params: ClassVar[type[base.Params]] = TopicParams
    version: ClassVar[str] = "1"

    def __init__(self, params: TopicParams) -> None:
        if not params.examples and not params.keywords:
            raise ConfigError("topic: neither examples nor keywords are given: write at least one example phrase")
        empty = [e for e in (*params.examples, *params.other_examples) if not _content(e)]
        if empty or not all(k.strip() for k in params.keywords):
            raise ConfigError(f"topic: {(empty or params.keywords)!r} holds a phrase without a word that tells a topic")
        self._params = params
        self._keywords = [k.lower() for k in params.keywords]
        self._examples = [_content(e) for e in (*params.examples, *params.other_examples)]
        self._norms = [math.sqrt(len(example)) for example in self._examples]
        self._known: set[str] = set()
        self._without_topic: set[str] = set()
        self._alike: dict[str, _Alike] = {}

    def score(self, record: Record) -> Score:
        """The score of ``record``."""
        text = record.input_text if self._params.of == "input" else record.output
        if self._params.of == "output" and (reason := nothing_to_score(record)):
            return skipped(reason)
        lowered = text.lower()
        if keyword := next((k for k in self._keywords if k in lowered), ""):
            return self._scored(1.0, f"the keyword {keyword!r} is there")
        words = lowered.translate(_SIGNS).split()
        passages = [self._likeness(set(words[start : start + PASSAGE])) for start in range(0, len(words), PASSAGE)]
        if not any(count for count, _ in passages):
            return skipped(f"the {self._params.of} has no words that tell a topic")
        likeness = [max(column) for column in zip(*(cosines for _, cosines in passages), strict=True)]
        split = len(self._params.examples)
        wanted, other = max(likeness[:split], default=0.0), max(likeness[split:], default=0.0)
        if other > wanted:
            return self._scored(0.0, f"likeness {wanted:.2f}, but {other:.2f} to another topic")
        return self._scored(wanted, f"likeness {wanted:.2f}")

    def _likeness(self, words: set[str]) -> tuple[int, list[float]]:
        """How many content words there are, and the cosine of all of them and each example."""
        if new := words - self._known:
            words = self._learn(words, new)
        count = len(words - self._without_topic)
        sums = [0] * len(self._examples)  # whole millionths: their sum does not depend on the set's order
        for alike in {self._alike[word][0]: self._alike[word][1] for word in words & self._alike.keys()}.values():
            for index, millionths in alike:
                sums[index] += millionths
        length = 1e6 * math.sqrt(count or 1)
        return count, [min(1.0, s / (length * norm)) for s, norm in zip(sums, self._norms, strict=True)]

    def _learn(self, words: set[str], new: set[str]) -> set[str]:
        """Find out how alike the new words are to each example, and keep it; long words are taken apart."""
        if len(self._known) > _KEPT:
            self._known.clear()
            self._without_topic.clear()
            self._alike.clear()
            new = words
        long = {word for word in new if len(word) > _KEPT_CHARS}
        words = (words - long).union(*map(_content, long))
        for word in words - self._known:
            found = _content(word)
            sums = ((i, sum(_alike(s, t) for s in found for t in example)) for i, example in enumerate(self._examples))
            self._known.add(word)
            if not found:
                self._without_topic.add(word)
            elif alike := tuple((i, round(1e6 * s)) for i, s in sums if s):
                self._alike[word] = (" ".join(found), alike)
        return words

    def _scored(self, likeness: float, explanation: str) -> Score:
        ratio = max(0.0, likeness) / self._params.threshold
        value = min(1.0, ratio) if self._params.expect == "on" else min(1.0, max(0.0, 2.0 - ratio))
        return scored(value, "on" if ratio >= 1 else "off", explanation)


def _content(phrase: str) -> list[str]:
    return [stem for stem in dict.fromkeys(stems(phrase)) if not stem[0].isdigit()]


def _alike(a: str, b: str) -> float:
    """The cosine of two words: 1 if the stems are one, else half of what their trigrams have in common."""
    if a == b:
        return 1.0
    ours, theirs = _trigrams(a), _trigrams(b)
    cosine = len(ours & theirs) / math.sqrt(len(ours) * len(theirs))
    return cosine / 2 if cosine >= 0.5 else 0.0  # less is chance: one ending in common


@lru_cache(maxsize=20_000)
def _trigrams(stem: str) -> frozenset[str]:
    marked = f"<{stem}>"
    return frozenset(marked[i : i + 3] for i in range(len(marked) - 2))
