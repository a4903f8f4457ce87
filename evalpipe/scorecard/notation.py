"""Series written by hand, in one line: ``20@0.9x30 _x5 20@0.6x10``.

Cells stand with a space between them, one for each interval; ``x30`` repeats a cell thirty times, ``_`` is an interval
with nothing in it. A cell of scores has parts with a comma between them:

``20@0.9``  twenty scores of 0 and 1 whose mean is 0.9, spread evenly: no random numbers
``20~0.9``  twenty scores of 0 and 1, each 1 with probability 0.9, by the seed
``20*0.75`` twenty scores of 0.75
``3e`` ``3a`` ``3s``  three that ended as errors, that the judge could not tell (abstained), that were skipped

A cell of a number is a number: ``1000x60 10000x5``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

from pydantic import BeforeValidator, WithJsonSchema

T = TypeVar("T")

MOST_CELLS: Final = 50_000
"""A month by the minute is 43,200."""
MOST_SCORES: Final = 1_000_000
"""In one cell."""

_PART: Final = re.compile(r"(\d{1,7})(?:([@~*])(\d*\.?\d{1,9})|([eas]))", re.ASCII)
_REPEATED: Final = re.compile(r"(.*?)(?:x(\d{1,6}))?", re.ASCII)
_WRITE_SCORES: Final = "write 20@0.9x30 (count, mean, intervals), 20~0.9, 20*0.75, 2e, 2a, 2s or _"
_WRITE_NUMBERS: Final = "write 1000x60 (number, intervals) or _"


@dataclass(frozen=True, slots=True)
class Some:
    """Scores of one interval that are alike.

    Attributes:
        n: how many.
        how: ``@`` values of 0 and 1 with an even mean, ``~`` the same by chance, ``*`` all of one value; ``e``, ``a``
            and ``s`` have no value.
        value: mean or value.
    """

    n: int
    how: str
    value: float = 0.0


Cell = tuple[Some, ...]
"""The scores of one interval; empty for none."""


def parse_scores(text: Any) -> tuple[Cell, ...]:
    """The cells of a series of scores.

    Raises:
        ValueError: it is no such series; the message says what to write.
    """
    return _cells(text, _scores, (), _WRITE_SCORES)


def parse_numbers(text: Any) -> tuple[float | None, ...]:
    """The cells of a series of numbers, 0 or more; None where nothing was measured.

    Raises:
        ValueError: it is no such series; the message says what to write.
    """
    return _cells(text, _number, None, _WRITE_NUMBERS)


def _cells(text: Any, read: Callable[[str], T | None], nothing: T, write: str) -> tuple[T, ...]:
    if isinstance(text, int | float) and not isinstance(text, bool):
        text = str(text)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"is not a series; {write}")
    cells: list[T] = []
    for word in text.split():
        match = _REPEATED.fullmatch(word)
        assert match is not None  # whatever stands before the x
        cell, times = match[1], int(match[2] or 1)
        found = nothing if cell == "_" else read(cell)
        if found is None and cell != "_":
            raise ValueError(f"has {word!r}, which is no cell of a series; {write}")
        if len(cells) + times > MOST_CELLS:
            raise ValueError(f"has more than {MOST_CELLS:,} intervals; take a longer interval")
        cells += [nothing if found is None else found] * times
    return tuple(cells)


def _scores(cell: str) -> Cell | None:
    parts = []
    for part in cell.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            return None
        n, how, value = int(match[1]), match[2] or match[4], float(match[3] or 0)
        if n > MOST_SCORES or value > 1.0:
            return None
        parts.append(Some(n, how, value))
    return tuple(parts)


def _number(cell: str) -> float | None:
    return float(cell) if re.fullmatch(r"\d{1,12}(\.\d{1,12})?|\.\d{1,12}", cell, re.ASCII) else None


def _listed(parse: Callable[[Any], Sequence[Any]]) -> Callable[[Any], Any]:
    """What is parsed already stays as it is: models are copied."""
    return lambda value: value if isinstance(value, tuple) else parse(value)


ScoreCells = Annotated[
    tuple[Any, ...],
    BeforeValidator(_listed(parse_scores)),
    WithJsonSchema({"type": "string", "examples": ["20@0.9x30 _x5 20@0.6x10", "18*1,2*0.5,1ex60"]}),
]
"""A series of scores."""

NumberCells = Annotated[
    tuple[float | None, ...],
    BeforeValidator(_listed(parse_numbers)),
    WithJsonSchema({"type": ["string", "number"], "examples": ["1000x60 10000x5", "_x10 3x50"]}),
]
"""A series of numbers."""
