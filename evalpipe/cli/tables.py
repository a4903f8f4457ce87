"""Rows as a table for people, whatever the width, or as JSON for machines."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import typer
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPED = 200
"""The width where nobody looks: into a file or another program."""
WIDE = 120
"""From this width on no column is left out."""
SHORT, WORD = 24, 16
"""Texts up to ``SHORT`` are broken between words only; longer ones also within words longer than ``WORD``."""


def as_json(value: Any) -> str:
    """JSON with instants in ISO 8601."""
    return json.dumps(value, default=_plain, ensure_ascii=False, allow_nan=False)


def finite(value: Any) -> Any:
    """JSON knows no infinity: an estimate over a baseline of 0 is unknown, and so is evidence beyond all bounds."""
    if isinstance(value, dict):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show(
    rows: list[dict[str, Any]], columns: Sequence[str], *, less: Sequence[str] = (), machine: bool = False
) -> None:
    """Print rows as a table for people, or as one JSON array for machines.

    Ids and numbers are never cut: where a terminal is too narrow for them, it breaks the lines.

    Args:
        rows: what each line is made of.
        columns: in their order.
        less: columns that a narrow terminal does without, the least needed first.
        machine: JSON with everything there is.
    """
    if machine:
        typer.echo(as_json(rows))
        return
    console = Console()
    room = console.width if console.is_terminal or "COLUMNS" in os.environ else max(PIPED, console.width)
    found = {name: _Column(name, [cell(row.get(name)) for row in rows], _are_numbers(rows, name)) for name in columns}
    left_out = []
    for name in dict.fromkeys(less):
        if room >= WIDE or _total(column.least for column in found.values()) <= room:
            break
        left_out.append(found.pop(name).heading)
    widths = _fit([(column.least, column.whole) for column in found.values()], room)
    table = Table(header_style="bold", box=SIMPLE_HEAD, padding=0)
    for column, width in zip(found.values(), widths, strict=True):
        table.add_column(column.heading, justify="right" if column.numbers else "left", width=width, overflow="fold")
    for index in range(len(rows)):
        table.add_row(*(Text(column.cells[index]) for column in found.values()))
    Console(width=max(room, _total(widths))).print(table)
    if left_out:
        typer.echo(f"Left out, for want of width: {', '.join(left_out)}.", err=True)


def cell(value: Any) -> str:
    """A value as people read it."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, float):
        return f"{value:.3f}"
    return "" if value is None else str(value)


class _Column:
    """A column, how wide it would like to be, and how wide it has to be."""

    def __init__(self, name: str, cells: list[str], numbers: bool) -> None:
        self.heading = name.replace("_", " ")
        self.cells = cells
        self.numbers = numbers
        heading = _longest(self.heading.split())
        longest = max((_longest(text.splitlines()) for text in cells), default=0)
        words = max((_longest(text.split()) for text in cells), default=0)
        identity = name == "id" or name.endswith("_id")
        least = longest if identity or numbers else words if longest <= SHORT else min(words, WORD)
        self.least = max(least, heading)
        # The headings of numbers may wrap: they are longer than the numbers.
        self.whole = max(longest, heading if numbers else cell_len(self.heading))


def _are_numbers(rows: Sequence[dict[str, Any]], name: str) -> bool:
    values = [row[name] for row in rows if row.get(name) is not None]
    return bool(values) and all(isinstance(value, int | float) for value in values)


def _fit(columns: Sequence[tuple[int, int]], room: int) -> list[int]:
    """The widths: as wide as each would like to be, or as the widest may be; never less than it has to be."""
    most = max((whole for _, whole in columns), default=0)
    for cap in range(min(most, room), 0, -1):
        widths = [max(least, min(whole, cap)) for least, whole in columns]
        if _total(widths) <= room:
            return widths
    return [least for least, _ in columns]


def _total(widths: Iterable[int]) -> int:
    """With a space at each end and between columns, as the box has it."""
    return sum(width + 1 for width in widths) + 1


def _longest(texts: Sequence[str]) -> int:
    return max((cell_len(text) for text in texts), default=0)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value)
