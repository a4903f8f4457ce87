"""Does the answer name the documents that it was given?"""

from __future__ import annotations

import re
from typing import ClassVar, Final, Literal

from pydantic import Field

from evalpipe.record import Record
from evalpipe.score import Score, scored, skipped
from evalpipe.scorers import base
from evalpipe.scorers.answer import context_ids, nothing_to_score

_BRACKETS: Final = re.compile(r"\[([^\[\]\n(){}]{1,200})\](?!\()")  # a Markdown link's text is no citation
_LEFT_BY_REDACTION: Final = frozenset({"email", "phone", "card", "key"})


class CitationParams(base.Params):
    """Parameters of ``citation``."""

    style: Literal["brackets", "anywhere"] = Field(
        "brackets",
        description="Where citations stand: 'brackets' is [id], [id, id] or [1] for the first document; 'anywhere' "
        "takes an id that occurs as a word of the answer, and cannot see invented ids.",
    )
    min: int = Field(1, ge=1, description="How many different documents must be cited for the value 1.")


@base.heuristics.register("citation")
class Citation:
    """1 if at least ``min`` given documents are cited and no other; else cited / (wanted + invented), so 0 if none is.

    Labels ``cited``, ``too few``, ``missing`` and ``invented`` (an id that retrieval did not give). It sees whether a
    document is named, not whether the document says what the answer says: for that see ``grounding``.
    """

    Params: ClassVar[type[base.Params]] = CitationParams
    version: ClassVar[str] = "1"

    def __init__(self, params: CitationParams) -> None:
        self._anywhere = params.style == "anywhere"
        self._min = params.min

    def score(self, record: Record) -> Score:
        """The score of ``record``; skipped if no document with an id was retrieved."""
        if reason := nothing_to_score(record):
            return skipped(reason)
        ids = [i.lower() for i in context_ids(record)]
        if not ids:
            return skipped("no context was retrieved, or its documents have no ids")
        invented: list[str] = []
        if self._anywhere:
            found = {i for i in ids if _occurs(i, record.output.lower())}
        else:
            found, invented = _in_brackets(record.output.lower(), ids)
        wanted = min(self._min, len(set(ids)))
        value = (
            min(1.0, len(found) / wanted) if not invented else len(found) / (max(wanted, len(found)) + len(invented))
        )
        if invented:
            return scored(
                value, "invented", "not among the documents given: " + ", ".join(i[:80] for i in invented[:5])
            )
        label = "missing" if not found else "cited" if len(found) >= wanted else "too few"
        return scored(
            value, label, f"cites {', '.join(sorted(found))}" if found else "cites no document that was given"
        )


def _in_brackets(output: str, ids: list[str]) -> tuple[set[str], list[str]]:
    """The ids of given documents in brackets, and what else stands there that looks like an id."""
    found: set[str] = set()
    invented: dict[str, None] = {}
    for group in _BRACKETS.findall(output):
        for piece in re.split("[,;]", group):
            mark = piece.strip().removeprefix("#").strip()
            if mark in ids:
                found.add(mark)
            elif mark.isdigit() and len(mark) < 4 and 1 <= int(mark) <= len(ids):
                found.add(ids[int(mark) - 1])
            elif mark and " " not in mark and mark not in _LEFT_BY_REDACTION:
                invented[mark] = None
    return found, list(invented)


def _occurs(needle: str, text: str) -> bool:
    start = text.find(needle)
    while start >= 0:
        end = start + len(needle)
        if not (text[max(0, start - 1) : start].isalnum() or text[end : end + 1].isalnum()):
            return True
        start = text.find(needle, end)
    return False
