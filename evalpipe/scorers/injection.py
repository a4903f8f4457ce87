"""Does the record hold a text that tries to steer whoever reads it: the application's model, or the judge?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal, get_args

from pydantic import Field

from evalpipe.judges.injection import suspects
from evalpipe.record import Record, text_of
from evalpipe.score import Score, scored, skipped
from evalpipe.scorers import base
from evalpipe.scorers.answer import context_texts

Part = Literal["output", "context", "input"]


def _every_part() -> list[Part]:
    return list(get_args(Part))


class InjectionParams(base.Params):
    """Parameters of ``injection``."""

    parts: list[Part] = Field(
        default_factory=_every_part,
        min_length=1,
        description="Where is looked: 'output', 'context' (retrieved documents, what tools returned) and 'input' (the "
        "user's messages). An attempt in the output is the one that a judge is most likely to obey.",
    )


@base.heuristics.register("injection")
class Injection:
    """1 if no attempt is found, 0 if one is. Labels ``clean``, or the pattern and the part, as in ``order in output``.

    The explanation names all that was found. Known forms are found (see `evalpipe.judges.injection`), others are not.
    """

    Params: ClassVar[type[base.Params]] = InjectionParams
    version: ClassVar[str] = "1"

    def __init__(self, params: InjectionParams) -> None:
        self._parts = [part for part in get_args(Part) if part in params.parts]

    def score(self, record: Record) -> Score:
        """The score of ``record``; an attempt in the input counts also where the output is empty."""
        if record.error:
            return skipped(f"the call failed: {record.error[:200]}")
        texts = {part: [text for text in _texts(record, part) if text] for part in self._parts}
        if not any(texts.values()):
            return skipped(f"there is no text in {' or '.join(self._parts)}")
        found = [(name, part) for part in self._parts for name in sorted({n for t in texts[part] for n in suspects(t)})]
        if not found:
            return scored(1.0, "clean")
        return scored(0.0, " in ".join(found[0]), "; ".join(f"{name} in {part}" for name, part in found))


def _texts(record: Record, part: Part) -> Iterator[str]:
    if part == "output":
        yield record.output
        return
    if part == "context":
        yield from context_texts(record)
    role = "user" if part == "input" else "tool"
    yield from (text_of(message.get("content")) for message in record.messages if message.get("role") == role)
