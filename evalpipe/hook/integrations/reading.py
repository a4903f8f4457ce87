"""What the readers of requests share: parameters of plain types, and messages without images, sound and files."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from typing import Any, Final

HASHED_CHARS: Final = 16_384
"""Inline data up to this length are hashed, in the calling thread; of longer ones only the size is recorded."""

_PLAIN: Final = (str, int, float, list, dict)
_URLS: Final = frozenset({"url", "image_url", "video_url", "file_data", "file_url"})
_DATA: Final = frozenset({"data", "file_data"})
_DEEPEST: Final = 4


def parameters(body: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """The named arguments that were given: texts, numbers, booleans, and lists and dicts of them."""
    return {name: value for name, value in body.items() if name in names and isinstance(value, _PLAIN)}


def items(value: Any) -> list[Any]:
    """A list of messages as a list of its own; what can be read only once is left to its reader."""
    return list(value) if isinstance(value, list | tuple) else []


def lean(messages: list[Any]) -> list[Any]:
    """``messages``, with a placeholder for every part that carries base64 data; nothing is changed in place."""
    for at, message in enumerate(messages):
        if type(message) is dict:
            messages[at] = _lean(message, 0)
    return messages


def _lean(part: dict[str, Any], depth: int) -> dict[str, Any]:
    """The part without data: itself if it has none."""
    if found := _inline(part, 0):
        return {"type": part.get("type", ""), **_omitted(*found)}
    for key in ("content", "output"):
        inside = part.get(key)
        if type(inside) is dict and depth < _DEEPEST:
            inside = [inside]
        if type(inside) is list and depth < _DEEPEST:
            leaner = [_lean(one, depth + 1) if type(one) is dict else one for one in inside]
            if any(new is not old for new, old in zip(leaner, inside, strict=True)):
                return {**part, key: leaner}
    return part


def _inline(part: Mapping[str, Any], depth: int) -> tuple[str, str, int] | None:
    """Media type, text that holds the data, and where in it they begin."""
    for key, value in part.items():
        if type(value) is dict:
            if depth < 2 and key not in {"content", "output"} and (found := _inline(value, depth + 1)):
                return found
        elif type(value) is str:
            if key in _URLS and value.startswith("data:"):
                if (comma := value.find(";base64,", 0, 200)) > 0:
                    return value[5:comma], value, comma + 8
            elif key in _DATA and part.get("type") != "text":
                return str(part.get("media_type") or part.get("format") or "data"), value, 0
            elif key == "result" and part.get("type") == "image_generation_call":
                return "image", value, 0
    return None


def _omitted(media: str, text: str, start: int) -> dict[str, str]:
    size = (len(text) - start) * 3 // 4 - text.count("=", len(text) - 2)
    omitted = {"omitted": f"{media}, {size} bytes"}
    if len(text) <= HASHED_CHARS:
        with suppress(ValueError):  # it may be no base64 after all
            omitted["sha256"] = sha256(b64decode(text[start:])).hexdigest()[:16]
    return omitted
