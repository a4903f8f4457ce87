"""The contract of an embedder, and the registry in which they find one another."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from evalpipe.errors import ConfigError
from evalpipe.profile import DIMENSIONS
from evalpipe.registry import Registry

MOST_CHARS: Final = 4_000
"""Of a text are embedded; more says little new about its topic, and costs in proportion."""
Embedding = tuple[float, ...]
Rows = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class EmbedderConfig:
    """How an embedder is to be opened.

    Attributes:
        model: what stands behind the colon of the setting; "" for none.
        base_url: of an API; "" means the provider's own.
        api_key: of an API; "" means the provider's own variable.
        timeout_s: of one request.
    """

    model: str = ""
    base_url: str = ""
    api_key: str = ""
    timeout_s: float = 30.0


class Embedder(Protocol):
    """Makes vectors of ``DIMENSIONS`` numbers, each of length 1, of texts. Embeddings of two versions do not compare.

    Attributes:
        slow: it costs milliseconds or a request for each text: it then runs beside ingest, not in it.
        version: name and version, for example ``static/1``; another one begins a new epoch for drift.
    """

    slow: ClassVar[bool]

    def __init__(self, config: EmbedderConfig) -> None:
        """Open it; nothing is connected or loaded yet.

        Raises:
            ConfigError: it cannot work as it is configured.
        """

    @property
    def version(self) -> str:
        """Name and version."""
        ...

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """A vector for each text, in their order; empty for a text without a letter or a digit.

        Raises:
            RetryableError: it does not answer now; try again later.
            PermanentError: it refuses.
        """
        ...


embedders: Registry[type[Embedder]] = Registry("embedder", "evalpipe.profiling.embedders")
"""All embedders by the name that EVALPIPE_EMBEDDINGS uses."""


def open_embedder(setting: str, **options: Any) -> Embedder:
    """The embedder that a setting names: ``static``, ``sentence-transformers:MODEL`` or ``openai:MODEL``.

    Args:
        setting: name, and behind a colon the model if there is a choice.
        options: further fields of ``EmbedderConfig``.

    Raises:
        ConfigError: there is none of that name, or it cannot work.
    """
    name, _, model = setting.partition(":")
    try:
        found = embedders.get(name)
    except ConfigError as error:
        raise ConfigError(f"EVALPIPE_EMBEDDINGS={setting}: {error}") from None
    return found(EmbedderConfig(model=model, **options))


def has_text(text: str) -> bool:
    """Whether there is a letter or a digit in what would be embedded."""
    return any(map(str.isalnum, text[:MOST_CHARS]))


def unit(rows: Rows) -> list[Embedding]:
    """Each row at length 1; empty for a row of zeros."""
    lengths = np.sqrt((rows * rows).sum(axis=1))
    return [tuple((row / n).tolist()) if n > 0 else () for row, n in zip(rows, lengths, strict=True)]


def projected(rows: Rows) -> Rows:
    """Rows of any width brought to ``DIMENSIONS`` numbers by fixed random directions; narrower ones are filled up.

    Distances stay what they are to about 1 / sqrt(DIMENSIONS) (W. B. Johnson and J. Lindenstrauss, Extensions of
    Lipschitz mappings into a Hilbert space, 1984), which is enough for means of many.
    """
    width = rows.shape[1]
    if width <= DIMENSIONS:
        return np.pad(rows, ((0, 0), (0, DIMENSIONS - width)))
    found: Rows = rows @ _directions(width)
    return found


@cache
def _directions(width: int) -> Rows:
    return np.stack([direction(f"{width}/{index}") for index in range(width)])


def direction(name: str) -> Rows:
    """A fixed random direction of length about 1 for a name: the 64 bytes of a BLAKE2b hash, each a number."""
    raw = np.frombuffer(hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=DIMENSIONS).digest(), np.uint8)
    # A byte less its mean has a variance of (256^2 - 1) / 12.
    found: Rows = (raw - 127.5) / np.sqrt((256.0**2 - 1) / 12 * DIMENSIONS)
    return found
