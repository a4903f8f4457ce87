"""Any model of the sentence-transformers library, on this machine: `pip install sentence-transformers`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from evalpipe.errors import ConfigError
from evalpipe.profiling.embedders.base import (
    MOST_CHARS,
    EmbedderConfig,
    Embedding,
    embedders,
    has_text,
    projected,
    unit,
)


@embedders.register("sentence-transformers")
class SentenceTransformers:
    """A model by its name on the hub or by its folder; tens of milliseconds for a text, so it runs beside ingest."""

    slow: ClassVar[bool] = True

    def __init__(self, config: EmbedderConfig) -> None:
        if not config.model:
            raise ConfigError(
                "EVALPIPE_EMBEDDINGS=sentence-transformers names no model: write for example "
                "'sentence-transformers:all-MiniLM-L6-v2'"
            )
        self._name = config.model

    @property
    def version(self) -> str:
        """Of the model by its name: nothing else is known without loading it."""
        return f"sentence-transformers:{self._name}/1"

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """A vector for each text.

        Raises:
            ConfigError: the library is not installed, or there is no such model.
        """
        found: list[Embedding] = [()] * len(texts)
        kept = [index for index, text in enumerate(texts) if has_text(text)]
        if kept:
            rows = self._model.encode([texts[i][:MOST_CHARS] for i in kept], show_progress_bar=False)
            for index, vector in zip(kept, unit(projected(np.asarray(rows, dtype=np.float64))), strict=True):
                found[index] = vector
        return found

    @cached_property
    def _model(self) -> Any:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise ConfigError(
                f"EVALPIPE_EMBEDDINGS={self.version.removesuffix('/1')} needs a library that is not installed: "
                "pip install sentence-transformers"
            ) from None
        try:
            return SentenceTransformer(self._name)
        except (OSError, ValueError) as error:
            raise ConfigError(f"EVALPIPE_EMBEDDINGS: no model {self._name!r}: {error}") from None
