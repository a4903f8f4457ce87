"""Embeddings of an API in the form of OpenAI's, which many servers have: POST /embeddings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, ClassVar, Final

import numpy as np

from evalpipe.errors import ConfigError, PermanentError, RetryableError
from evalpipe.profiling.embedders.base import (
    MOST_CHARS,
    EmbedderConfig,
    Embedding,
    Rows,
    embedders,
    has_text,
    projected,
    unit,
)

_BASE: Final = "https://api.openai.com/v1"
_PASSING: Final = frozenset({
    HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS,
    # Of the key, the account or the path, and of no text: people mend them.
    HTTPStatus.UNAUTHORIZED, HTTPStatus.PAYMENT_REQUIRED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND,
})  # fmt: skip


@embedders.register("openai")
class OpenAIEmbedder:
    """A model by its name; one request for a batch of texts, which leave this machine, so that runs beside ingest."""

    slow: ClassVar[bool] = True

    def __init__(self, config: EmbedderConfig) -> None:
        if not config.model:
            raise ConfigError(
                "EVALPIPE_EMBEDDINGS=openai names no model: write for example 'openai:text-embedding-3-small'"
            )
        self._config = config
        self._base = config.base_url.rstrip("/") or _BASE
        self._key = config.api_key or os.environ.get("OPENAI_API_KEY", "")
        if not self._key and not config.base_url:
            raise ConfigError(
                f"EVALPIPE_EMBEDDINGS=openai:{config.model} needs a key: set EVALPIPE_EMBEDDINGS_API_KEY or "
                "OPENAI_API_KEY"
            )

    @property
    def version(self) -> str:
        """Of the model and of where it runs, by their names."""
        return f"openai:{self._config.model}@{self._base}/1"

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """A vector for each text.

        Raises:
            RetryableError: the server cannot be reached, is busy or broken.
            PermanentError: it refuses, or answers something else.
        """
        found: list[Embedding] = [()] * len(texts)
        kept = [index for index, text in enumerate(texts) if has_text(text)]
        if kept:
            rows = self._asked([texts[i][:MOST_CHARS] for i in kept])
            for index, vector in zip(kept, unit(projected(rows)), strict=True):
                found[index] = vector
        return found

    def _asked(self, texts: list[str]) -> Rows:
        import httpx2

        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        body = {"model": self._config.model, "input": texts, "encoding_format": "float"}
        try:
            reply = httpx2.post(f"{self._base}/embeddings", json=body, headers=headers, timeout=self._config.timeout_s)
        except httpx2.HTTPError as error:
            raise RetryableError(f"embeddings: {self._base} cannot be reached: {error}") from error
        if reply.status_code in _PASSING or reply.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise RetryableError(f"embeddings: {self._base} answers {reply.status_code} {self._told(reply)}".rstrip())
        if reply.status_code != HTTPStatus.OK:
            raise PermanentError(f"embeddings: {self._base} refuses: {reply.status_code} {self._told(reply)}")
        try:
            return _rows(reply.json(), len(texts))
        except (ValueError, KeyError, TypeError) as error:
            raise PermanentError(f"embeddings: {self._base} answers no list of embeddings: {error!r}") from error

    def _told(self, reply: Any) -> str:
        """What was answered, as one line without the key, which a gateway may quote."""
        text = reply.text[:2_000]
        if self._key:
            text = text.replace(self._key, "***")
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]


def _rows(said: Any, wanted: int) -> Rows:
    """The vectors in the order of the texts.

    Raises:
        ValueError: there are more or fewer, or they are no numbers.
    """
    ordered = sorted(said["data"], key=lambda item: item["index"])
    rows = np.array([item["embedding"] for item in ordered], dtype=np.float64)
    if rows.ndim != 2 or len(rows) != wanted or not np.isfinite(rows).all():
        raise ValueError(f"{len(ordered)} embeddings of {wanted}")
    return rows
