"""The default embedder: no model, no download, some tens of microseconds for a text."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar, Final

import numpy as np

from evalpipe.errors import ConfigError
from evalpipe.profile import DIMENSIONS
from evalpipe.profiling.embedders.base import MOST_CHARS, EmbedderConfig, Embedding, Rows, direction, embedders, unit
from evalpipe.scorers.words import FUNCTION_WORDS, stems

DAMPING: Final = 0.3
"""How much function words, numbers and marks of layout count beside a content word: nothing for the topic, something
for the style."""
_KEPT: Final = 30_000
_LONGEST: Final = 40
_READ: Final = 300  # of a token without spaces, as Chinese and Japanese are written
_SIGNS: Final = 3
_WORD: Final = re.compile(r"[^\W\d_]+")
_DIGITS: Final = re.compile(r"\d+")


@embedders.register("static")
class Static:
    """The sum of fixed random directions of a text's distinct words, and of their letter trigrams.

    Random indexing (M. Sahlgren, An introduction to random indexing, 2005) with the subwords of Bojanowski et al.
    (Enriching word vectors with subword information, 2017), so that "refund" and "refunds" are alike, function words
    damped. Nothing is learned: synonyms are strangers, and two languages too. That serves drift, which asks whether
    texts are of the same kind as before, and not what they mean.
    """

    slow: ClassVar[bool] = False

    def __init__(self, config: EmbedderConfig) -> None:
        if config.model:
            raise ConfigError(f"EVALPIPE_EMBEDDINGS=static:{config.model}: static has no models; write 'static'")
        self._lock = threading.Lock()
        self._rows: dict[str, int] = {}
        self._vectors = np.zeros((1024, DIMENSIONS), dtype=np.float32)
        self._used = 0

    @property
    def version(self) -> str:
        """Raised whenever a text gets another vector."""
        return "static/1"

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """A vector for each text."""
        return unit(np.stack([self._sum(text) for text in texts])) if texts else []

    def _sum(self, text: str) -> Rows:
        found = np.zeros(DIMENSIONS)
        rows: list[int] = []
        with self._lock:
            if self._used > _KEPT:
                self._rows.clear()
                self._used = 0
            for token in dict.fromkeys(text[:MOST_CHARS].lower().split()):
                row = self._rows.get(token)
                if row is not None:
                    rows.append(row)
                elif len(token) > _LONGEST:
                    found += _vector(token)
                else:
                    rows.append(self._learn(token))
            found += self._vectors[rows].sum(axis=0, dtype=np.float64)
        return found

    def _learn(self, token: str) -> int:
        """Make the vector of a new token; says where it stands."""
        if self._used == len(self._vectors):
            self._vectors = np.concatenate([self._vectors, np.zeros_like(self._vectors)])
        self._vectors[self._used] = _vector(token)
        self._rows[token] = self._used
        self._used += 1
        return self._used - 1


def _vector(token: str) -> Rows:
    """What a token adds to a text: its words' directions; of signs alone, a direction of their own."""
    found = np.zeros(DIMENSIONS)
    words = _WORD.findall(token[:_READ])
    for word in words:
        if word in FUNCTION_WORDS:
            found += DAMPING * direction(word)
            continue
        for stem in stems(word):
            found += _stem(stem)
    if not words and any(map(str.isalnum, token)):
        return found + DAMPING * direction(_DIGITS.sub("0", token[:_READ]))
    if not words:
        return found + DAMPING * direction(token[:_SIGNS])
    return found


@lru_cache(maxsize=_KEPT)
def _stem(stem: str) -> Rows:
    """The direction of a stem, and half as much of what its trigrams say."""
    marked = f"<{stem}>"
    trigrams = [marked[i : i + 3] for i in range(len(marked) - 2)] if len(stem) > 2 else []
    shared = sum((direction(f"3{t}") for t in trigrams), np.zeros(DIMENSIONS)) / math.sqrt(len(trigrams) or 1)
    found: Rows = direction(stem) + 0.5 * shared
    return found
