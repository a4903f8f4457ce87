"""Records from JSONL, one to a line: in the wire form, or as people write them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final, NoReturn

from pydantic import ValidationError

from evalpipe.errors import RecordError
from evalpipe.record import Record, from_wire
from evalpipe.scorecard.checks import dotted
from evalpipe.scorecard.document import Problem
from evalpipe.scorecard.wording import worded
from evalpipe.scorecard.written import WrittenRecord

WIRE_KEYS: Final = frozenset({"record_id", "trace_id", "captured_at", "release"})
"""A row with one of these is in the wire form."""


def read_rows(file: str, lines: Iterable[bytes]) -> Iterator[Record | Problem]:
    """For each line that is not empty its record, or what is wrong with it.

    Args:
        file: its name as messages say it; with the line's number it also names records that have no id.
        lines: as read from the file in binary, since one bad byte must not cost the other lines.
    """
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _row(file, number, line)


def _row(file: str, number: int, line: bytes) -> Record | Problem:
    try:
        row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"), parse_constant=_refuse)
    except UnicodeDecodeError as error:
        return Problem(file, number, error.start + 1, f"byte 0x{line[error.start]:02x} is not UTF-8")
    except json.JSONDecodeError as error:
        return Problem(file, number, error.colno, f"not JSON: {error.msg}")
    except (ValueError, RecursionError) as error:
        return Problem(file, number, 1, f"not JSON: {error}")
    if not isinstance(row, dict):
        return Problem(file, number, 1, f"must be an object, not {type(row).__name__}")
    return _record(file, number, row)


def _record(file: str, number: int, row: dict[str, Any]) -> Record | Problem:
    try:
        if WIRE_KEYS & row.keys():
            return from_wire(row)
        written = WrittenRecord.model_validate(row)
    except RecordError as error:
        return Problem(file, number, 1, str(error))
    except ValidationError as error:
        found = (f"{dotted(f.loc)}: {f.message}" for f in worded(error, WrittenRecord))
        return Problem(file, number, 1, "; ".join(found))
    if written.input is not None and written.messages:
        return Problem(file, number, 1, "messages: write either 'input' or 'messages', not both")
    return written.record(f"line {number}")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number of JSON")
