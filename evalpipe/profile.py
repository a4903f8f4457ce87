"""What one record's input and output look like, in a few words and numbers; many of them are compared for drift."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Profile:
    """Of one record; made when it is taken in.

    Attributes:
        record_id: of the record.
        captured_at: aware UTC.
        words: by dimension, for example ``language``: ``en``, ``feature``, ``schema``, ``entities``, ``format``.
        sizes: by dimension, for example ``input_chars``, ``output_chars``.
        input_embedding, output_embedding: unit vectors; empty where there is no text.
        input_key: names inputs that mean the same, so that answers to recurring ones can be compared; "" if none.
        weight: 1 / inclusion probability.
    """

    record_id: str
    captured_at: datetime
    words: dict[str, str]
    sizes: dict[str, float]
    input_embedding: tuple[float, ...] = ()
    output_embedding: tuple[float, ...] = ()
    input_key: str = ""
    weight: float = 1.0


Profiles = list[Profile]
