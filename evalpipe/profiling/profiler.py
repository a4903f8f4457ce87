"""Makes the profile of a record."""

from __future__ import annotations

import hashlib
import re
from typing import Final

from evalpipe.profile import Profile
from evalpipe.profiling.embedders.base import Embedder, EmbedderConfig
from evalpipe.profiling.embedders.static import Static
from evalpipe.profiling.shape import format_of, json_shape
from evalpipe.record import Record
from evalpipe.refusal import is_refusal
from evalpipe.scorers.language import detect
from evalpipe.scorers.pii import Pii, PiiParams
from evalpipe.scorers.words import stems
from evalpipe.store.sql import storable

TERMS: Final = 40
"""First distinct words of an output that are kept: a fixed number, so that a longer answer has no more of them."""
FIRST_WORDS: Final = 100
_READ_CHARS: Final = 4_000
_KEY_CHARS: Final = 2_000
_LEAST_LETTERS: Final = 12
_UNSURE: Final = 0.4
_LONGEST_TERM: Final = 24
_SIGNS: Final = str.maketrans(dict.fromkeys('.,;:!?()[]{}<>"*_/|#`\u2026\u201c\u201d\u2013\u2014', " "))
_COURTESIES: Final = frozenset(
    """
    hello hi hey dear sir madam good mornin evenin day thank thanks quick questi help hallo guten tag morgen liebe
    danke frage kurze helfen bonjou salut merci madame monsie petite aidez svp hola buenos buenas dias gracia ayuda
    pregun ciao buongi grazie domand olá obriga ajuda pergun dank vraag
    """.split()  # noqa: SIM905 - a page of quotation marks would be harder to read
)
"""Stems of what people say around a question."""
_DIGIT: Final = re.compile(r"\d")


class Profiler:
    """Makes profiles; what it costs is in bench/detection/drift.py.

    Args:
        embedder: the static one by default. A slow one is left to the stage ``embed``.
    """

    def __init__(self, embedder: Embedder | None = None) -> None:
        self._embedder: Embedder = embedder or Static(EmbedderConfig())
        self._pii = Pii(PiiParams())

    def profile(self, record: Record) -> Profile | None:
        """The profile of ``record``; None where it stands for no traffic.

        That is a record kept because of what became known after its decision, and a shadow's answer, which no user saw.
        """
        if record.weight == 0.0 or record.reason.endswith(":shadow"):
            return None
        asked, answered = record.input_text, record.output
        embeddings: list[tuple[float, ...]] = [(), ()]
        if not self._embedder.slow:
            embeddings = self._embedder.embed((asked, answered))
        unit = record.unit or record.session_id or record.user_id or record.trace_id
        return Profile(
            record_id=record.record_id,
            captured_at=record.captured_at,
            words={
                "language": language_of(asked),
                "entities": "+".join(sorted(self._pii.kinds(asked[:_READ_CHARS]))) or "none",
                "input_schema": storable(json_shape(asked)) or ("text" if asked else ""),
                "feature": record.feature,
                **_answer_words(record),
            },
            sizes=_sizes(record, asked),
            input_embedding=embeddings[0],
            output_embedding=embeddings[1],
            input_key=input_key(record.feature, asked),
            weight=record.weight,
            unit=_hashed(f"{record.release.service}\x1f{unit}"),
            embedder="" if self._embedder.slow else self._embedder.version,
        )


def language_of(text: str) -> str:
    """The language's code; ``unknown`` for a text that is too short or unclear, "" for none."""
    if not text.strip():
        return ""
    if sum(map(str.isalpha, text[:80])) < _LEAST_LETTERS:
        return "unknown"
    code, confidence = detect(text)
    return code if confidence >= _UNSURE else "unknown"


def input_key(feature: str, text: str) -> str:
    """The same for inputs with the same content words, in any order, case and number; "" for no text.

    So "Hello, how do I get a refund?" and "can I get refunds" are one recurring input, whatever order they name.
    """
    found = {stem for stem in stems(text[:_KEY_CHARS]) if not stem[0].isdigit()} - _COURTESIES
    if not found:
        found = {" ".join(text[:_KEY_CHARS].lower().split())} - {""}
    return _hashed("\x1f".join([feature, *sorted(found)])) if found else ""


def _answer_words(record: Record) -> dict[str, str]:
    text, shape = record.output, ""
    if record.error:
        form = "error"
    elif is_refusal(text, record.finish_reason):
        form = "refusal"
    elif not text.strip() and record.tool_calls:
        form = "tools"
    else:
        shape = json_shape(text)
        form = "json" if shape else format_of(text)
    return {
        "output_language": language_of(text),
        "output_schema": storable(shape) if shape else form,
        "format": form,
        "finish": storable(record.finish_reason)[:40],
        "terms": " ".join(_terms(text)),
    }


def _terms(text: str) -> list[str]:
    found: list[str] = []
    for word in dict.fromkeys(storable(text[:_READ_CHARS]).lower().translate(_SIGNS).split()):
        if len(word) <= _LONGEST_TERM and not _DIGIT.search(word):
            found.append(word)
            if len(found) == TERMS:
                break
    return found


def _sizes(record: Record, asked: str) -> dict[str, float]:
    sizes: dict[str, float] = {
        "input_chars": len(asked),
        "input_words": len(asked.split()),
        "messages": len(record.messages),
    }
    if not record.error:
        words = record.output.split()
        sizes |= {"output_chars": len(record.output), "output_words": len(words)}
        if len(words) >= FIRST_WORDS // 4:
            first = words[:FIRST_WORDS]
            sizes["type_token"] = round(len({word.lower() for word in first}) / len(first), 4)
    return {name: float(value) for name, value in sizes.items()}


def _hashed(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()
