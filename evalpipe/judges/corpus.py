"""The corpus of injection attempts that ships: texts which try to move the grade of the record that they stand in.

They are our own, under the licence of this repository (``injections.md`` beside the file says what is in it). A bad
record gets an attempt of goal ``pass`` or ``break``, a good one an attempt of goal ``fail``. Attempts of kind
``control`` ask for nothing: what they move is the judge's own unsteadiness.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Final, Literal

from evalpipe.record import Record, text_of

Where = Literal["output", "input", "context"]
PLACES: Final[Sequence[Where]] = ("output", "input", "context")
"""Where an attempt can stand."""
CONTROL: Final = "control"
"""The kind of the attempts that are none."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One text that tries to move a grade.

    Attributes:
        id: its kind and a number.
        kind: ``order``, ``system``, ``rubric``, ``grade``, ``already``, ``authority``, ``role``, ``format``,
            ``delimiter``, ``template``, ``language``, ``encoded``, ``indirect`` or ``control``.
        where: the place for which it was written.
        goal: the grade that it wants; ``break`` wants none that can be read.
        text: as an attacker would write it.
    """

    id: str
    kind: str
    where: Where
    goal: Literal["pass", "fail", "break"]
    text: str


@cache
def attempts() -> tuple[Attempt, ...]:
    """All of the corpus, in the order of the file."""
    lines = files("evalpipe.judges").joinpath("injections.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(Attempt(**json.loads(line)) for line in lines)


def attached(record: Record, attempt: Attempt, where: Where | None = None) -> Record:
    """``record`` with the attempt at the end of its output, of the last user message, or as one more document.

    Args:
        record: good or bad, as the attempt's goal needs it.
        attempt: from the corpus.
        where: another place than the one for which it was written.
    """
    place = where or attempt.where
    if place == "output":
        return replace(record, output=_joined(record.output, attempt.text))
    if place == "context":
        return replace(record, context=[*record.context, {"id": "note", "text": attempt.text}])
    messages = [dict(message) for message in record.messages]
    said = next((m for m in reversed(messages) if m.get("role") == "user"), None)
    if said is None:
        return replace(record, messages=[*messages, {"role": "user", "content": attempt.text}])
    said["content"] = _joined(text_of(said.get("content")), attempt.text)
    return replace(record, messages=messages)


def _joined(text: str, attempt: str) -> str:
    return f"{text}\n\n{attempt}" if text else attempt
