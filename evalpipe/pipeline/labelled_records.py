"""Records with people's labels in one file: for measuring a judge without a store.

Each line is a record as ``evalpipe scorecard try`` reads it, in short or in wire form, and ``labels``: for each
criterion the label, or an object of labels by annotator::

    {"input": "May I return it?", "output": "Yes, within 30 days.", "context": "Within 30 days.",
     "labels": {"grounded": "pass", "helpful": {"anna": 3, "ben": 2}}}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from evalpipe.errors import ConfigError
from evalpipe.pipeline.labelling import LabelError, find, read_label
from evalpipe.record import Record
from evalpipe.scorecard.document import Problem
from evalpipe.scorecard.model import Scorecard
from evalpipe.scorecard.rows import read_rows

MOST_PROBLEMS: Final = 20
"""Bad lines of a file that are told."""
SOMEBODY: Final = "people"
"""The annotator of labels that name none."""

People = dict[str, tuple[str, float | None]]
"""Label and value by annotator."""


@dataclass(frozen=True, slots=True)
class LabelledRecord:
    """A record with what people say of it, by criterion."""

    record: Record
    labels: Mapping[str, People]


def read_labelled_file(path: Path, card: Scorecard) -> list[LabelledRecord]:
    """All records with labels of one file.

    Args:
        path: JSONL, see the module.
        card: whose criteria are labelled.

    Raises:
        ConfigError: it cannot be read, or some lines cannot; says which, the first twenty of them.
    """
    try:
        with path.open("rb") as lines:
            found = list(read_labelled(str(path), lines, card))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if problems := [str(one) for one in found if isinstance(one, Problem)]:
        more = [f"... and {len(problems) - MOST_PROBLEMS} more"] if len(problems) > MOST_PROBLEMS else []
        raise ConfigError("\n".join([*problems[:MOST_PROBLEMS], *more]))
    return [one for one in found if not isinstance(one, Problem)]


def read_labelled(file: str, lines: Iterable[bytes], card: Scorecard) -> Iterator[LabelledRecord | Problem]:
    """For each line that is not empty its record with labels, or what is wrong with it.

    Args:
        file: its name as messages say it.
        lines: as read from the file in binary.
        card: whose criteria are labelled.
    """
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _read(file, number, line, card)


def _read(file: str, number: int, line: bytes, card: Scorecard) -> LabelledRecord | Problem:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    said = row.pop("labels", None) if isinstance(row, dict) else None
    # Blank lines before it keep the line's number, by which messages and nameless records go.
    bare = line if row is None else json.dumps(row).encode()
    found = next(iter(read_rows(file, [*[b""] * (number - 1), bare])))
    if isinstance(found, Problem):
        return found
    if not isinstance(said, dict) or not said:
        return Problem(file, number, 1, 'labels: give an object of labels by criterion, such as {"grounded": "pass"}')
    try:
        return LabelledRecord(found, {name: _people(card, name, label) for name, label in said.items()})
    except LabelError as error:
        advice = f" ({error.advice})" if error.advice else ""
        return Problem(file, number, 1, f"labels: {error}{advice}")


def _people(card: Scorecard, criterion: str, said: Any) -> People:
    asked = find([card], criterion, card.name)
    by = said if isinstance(said, dict) else {SOMEBODY: said}
    return {annotator: read_label(asked, label) for annotator, label in by.items()}
