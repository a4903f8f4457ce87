"""What one record's input and output look like, in a few words and numbers; many of them are compared for drift."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from datetime import datetime
from typing import Final

DIMENSIONS: Final = 64
"""Numbers in an embedding, whoever makes it."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Of one record; made when it is taken in.

    Attributes:
        record_id: of the record.
        captured_at: aware UTC.
        words: by dimension: ``language`` and ``output_language``, ``entities`` (kinds of personal data in the input),
            ``input_schema`` and ``output_schema`` (the shape of JSON), ``feature``, ``format`` (of the output),
            ``finish``; and ``terms``, the first distinct words of the output with a space between them.
        sizes: by dimension: ``input_chars``, ``input_words``, ``messages``, ``output_chars``, ``output_words``,
            ``type_token`` (distinct words among the first hundred of the output, as a share).
        input_embedding, output_embedding: unit vectors; empty where there is no text, or none was made yet.
        input_key: names inputs that mean the same, so that answers to recurring ones can be compared; "" if none.
        weight: 1 / inclusion probability.
        unit: names the conversation (else the user, else the trace), hashed: records of one resemble each other.
        embedder: name and version of what made the embeddings; "" where none were made. Those of two are never
            compared.
    """

    record_id: str
    captured_at: datetime
    words: dict[str, str]
    sizes: dict[str, float]
    input_embedding: tuple[float, ...] = ()
    output_embedding: tuple[float, ...] = ()
    input_key: str = ""
    weight: float = 1.0
    unit: str = ""
    embedder: str = ""


Profiles = list[Profile]


def packed(embedding: tuple[float, ...]) -> bytes:
    """An embedding as half-precision floats, two bytes each: more digits tell nothing about drift."""
    return struct.pack(f"<{len(embedding)}e", *embedding)


def unpacked(data: bytes | None) -> tuple[float, ...]:
    """The inverse of ``packed``."""
    return struct.unpack(f"<{len(data) // 2}e", data) if data else ()
