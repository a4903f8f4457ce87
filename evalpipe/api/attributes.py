"""Attributes as strangers write them: found by the first of several names, as what they should be."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

DEEPEST = 64
"""Levels of lists and objects in what strangers send: what takes it further goes down level by level."""


def is_too_deep(value: Any, most: int = DEEPEST) -> bool:
    """Whether lists and objects lie more than ``most`` deep in each other."""
    level = [value]
    for _ in range(most + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def any_of(attributes: Mapping[str, Any], names: Iterable[str]) -> Any:
    """The first of these that is there, or None."""
    return next((attributes[name] for name in names if attributes.get(name) is not None), None)


def text_of(attributes: Mapping[str, Any], names: Iterable[str]) -> str:
    """The first of these that is not empty, as a text."""
    found = next((attributes[name] for name in names if attributes.get(name) not in (None, "")), "")
    return found if isinstance(found, str) else str(found)


def number_of(attributes: Mapping[str, Any], names: Iterable[str]) -> float | None:
    """The first of these, if it is a number that can be an amount."""
    try:
        value = float(any_of(attributes, names))
    except (TypeError, ValueError, OverflowError):
        return None
    return value if 0.0 <= value < 1e12 else None


def whole_of(attributes: Mapping[str, Any], names: Iterable[str]) -> int | None:
    """As ``number_of``, without a fraction."""
    found = number_of(attributes, names)
    return None if found is None else int(found)


def read_json(text: bytes | str) -> Any:
    """What a JSON text says; halves of surrogate pairs, which clients cut out of emoji, become question marks.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return orjson.loads(text)
    except ValueError:
        try:
            mended = json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8", "replace")
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error
        return orjson.loads(mended)
