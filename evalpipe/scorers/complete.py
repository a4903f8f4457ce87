"""Is there an answer at all, and did it come to its end?"""

from __future__ import annotations

import re
from typing import ClassVar, Final, Literal

import orjson
from pydantic import Field

from evalpipe.record import Record
from evalpipe.score import Score, scored, skipped
from evalpipe.scorers import base
from evalpipe.scorers.answer import CUT_OFF, nothing_to_score

_FENCE: Final = re.compile(r"^[ \t]{0,3}(`{3,}|~{3,})", re.MULTILINE)
_JSON_BEGINS: Final = re.compile(r'\s*(?:\{\s*(?:"|\}|\Z)|\[\s*(?:["{\[\]\d-]|true|false|null|\Z))')
_JSON_PARTS: Final = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\Z)|[{}\[\]]', re.DOTALL)
_LIST_MARK: Final = re.compile(r"(?:[-*+\u2022]|\d{1,3}[.)])\s*\Z")
_ENDS: Final = frozenset(".!?:)]}>\"'`*_\u2026\u201d\u2019\u00bb\u3002\uff01\uff1f\u0964\u061f\u06d4")


class CompleteParams(base.Params):
    """Parameters of ``complete``."""

    ending: Literal["any", "sentence"] = Field(
        "any",
        description="How a whole answer ends: 'any' way, or with the end of a 'sentence' (a sign such as . ! ? or a "
        "closing bracket or quotation mark), for features that answer in prose.",
    )
    min_characters: int = Field(1, ge=1, description="An answer with fewer, white space not counted, is empty.")


@base.heuristics.register("complete")
class Complete:
    """1 if there is an answer and it came to its end, else 0. Labels ``complete``, ``empty``, ``cut off``.

    It was cut off if the provider says so, or if a code fence, JSON, a list's item or (with ``ending``) a sentence was
    begun and not ended. Skipped where the model called tools and said nothing.
    """

    Params: ClassVar[type[base.Params]] = CompleteParams
    version: ClassVar[str] = "1"

    def __init__(self, params: CompleteParams) -> None:
        self._sentence = params.ending == "sentence"
        self._least = params.min_characters

    def score(self, record: Record) -> Score:
        """The score of ``record``."""
        if record.error or (record.tool_calls and not record.output.strip()):
            return skipped(nothing_to_score(record))
        if record.finish_reason.lower() in CUT_OFF:
            return scored(
                0.0, "cut off", f"the token limit cut the answer off (finish reason {record.finish_reason!r})"
            )
        text = record.output.strip()
        if len("".join(text.split())) < self._least:
            return scored(0.0, "empty", "the call worked and the answer is empty")
        if unended := self._unended(text):
            return scored(0.0, "cut off", unended)
        return scored(1.0, "complete")

    def _unended(self, text: str) -> str:
        """What was begun and not ended; "" for nothing."""
        if _fence_open(text):
            return "a code fence is not closed"
        if _JSON_BEGINS.match(text) and _json_open(text):
            return "the JSON is not closed"
        last = text.rpartition("\n")[2].strip()
        if _LIST_MARK.fullmatch(last) and "\n" in text:
            return "the last item of a list is empty"
        if self._sentence and text[-1] not in _ENDS:
            return "the last sentence has no end"
        return ""


def _fence_open(text: str) -> bool:
    """Whether the last code fence is open: one is closed by as many of the same signs, or more."""
    fence = ""
    for found in _FENCE.finditer(text):
        mark = found[1]
        if not fence:
            fence = mark
        elif mark[0] == fence[0] and len(mark) >= len(fence):
            fence = ""
    return bool(fence)


def _json_open(text: str) -> bool:
    """Whether brackets or a string of what begins like JSON are open at the end."""
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    else:
        return False
    depth = 0
    for found in _JSON_PARTS.finditer(text):
        part = found[0]
        if part[0] == '"':
            if len(part) == 1 or not part.endswith('"'):
                return True
        else:
            depth += 1 if part in "{[" else -1
            if depth == 0:
                return False
    return depth > 0
