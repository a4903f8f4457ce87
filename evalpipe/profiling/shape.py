"""The shape of a text: its format, and of JSON its schema pattern."""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final

import orjson

_DEEPEST: Final = 4
_LONGEST: Final = 120
_TYPES: Final = {str: "text", bool: "bool", int: "number", float: "number", type(None): "null"}
_LIST: Final = re.compile(r"^[^\S\n]{0,6}(?:[-*\u2022+]|\d{1,3}[.)])[^\S\n]+\S", re.MULTILINE)
_TABLE: Final = re.compile(
    r"^[^\S\n]{0,40}(?:\|[^\S\n]{0,40})?:?-{2,200}:?[^\S\n]{0,40}\|(?:[^\S\n]|[|:-])*$", re.MULTILINE
)
"""Of one line and bounded: an answer with thousands of blank lines must not take minutes."""
_FENCE: Final = "```"
_MANY: Final = 0.4
"""Share of the lines from which on a text is a list and no prose with a list in it."""


def format_of(text: str) -> str:
    """``json``, ``code``, ``table``, ``list`` or ``prose``; ``empty`` for white space."""
    stripped = text.strip()
    if not stripped:
        return "empty"
    if json_shape(stripped):
        return "json"
    if _FENCE in stripped and 2 * sum(map(len, stripped.split(_FENCE)[1::2])) > len(stripped):
        return "code"
    if "|" in stripped and _TABLE.search(stripped):
        return "table"
    lines = stripped.count("\n") + 1 - stripped.count("\n\n")
    items = len(_LIST.findall(stripped)) if lines > 1 else 0
    return "list" if items >= 2 and items >= _MANY * lines else "prose"


def json_shape(text: str) -> str:
    """Keys and types of the JSON that ``text`` is (perhaps in a code fence), for example ``{id:number,items:[text]}``.

    "" where it is no object or array. A long shape ends in its hash.
    """
    stripped = text.strip()
    if stripped.startswith(_FENCE) and stripped.endswith(_FENCE):
        stripped = stripped.partition("\n")[2][: -len(_FENCE)].strip()
    if stripped[:1] not in {"{", "["}:
        return ""
    try:
        value = orjson.loads(stripped)
    except orjson.JSONDecodeError:
        return ""
    shape = _shape(value, 0)
    if len(shape) <= _LONGEST:
        return shape
    digest = hashlib.blake2b(shape.encode("utf-8", "replace"), digest_size=4).hexdigest()
    return f"{shape[: _LONGEST - 12]}...#{digest}"


def _shape(value: Any, depth: int) -> str:
    if isinstance(value, dict):
        if depth == _DEEPEST:
            return "{...}"
        return "{" + ",".join(f"{key}:{_shape(value[key], depth + 1)}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        if depth == _DEEPEST:
            return "[...]"
        return "[" + "|".join(sorted({_shape(item, depth + 1) for item in value[:20]})) + "]"
    return _TYPES[type(value)]
