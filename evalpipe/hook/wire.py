"""From what a call left behind to a record in wire form: plain JSON types, redacted. Runs in the thread that ships."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from enum import Enum
from typing import Any, Final

from evalpipe.hook.buffer import Entry
from evalpipe.hook.freezing import DEEPEST
from evalpipe.hook.redaction import Redactor

TEXTS: Final = ("model", "finish_reason", "error", "output")
_IDS: Final = ("record_id", "trace_id", "session_id", "user_id", "unit")
_LISTS: Final = ("messages", "context", "tools", "tool_calls")
_NUMBERS: Final = ("input_tokens", "output_tokens", "cost_usd", "latency_ms")
_SHORT_KEY: Final = 13
"""No key, number or address is shorter than this and an identifier, so such names of fields are not searched."""


def record_wire(entry: Entry, release: Mapping[str, str], redact: Redactor, *, metadata_only: bool) -> dict[str, Any]:
    """The record as ``evalpipe.record.from_wire`` reads it, without what is unknown.

    Raises:
        Exception: whatever an object of the application or the application's own redaction raises.
    """
    fields = _metadata(entry.fields) if metadata_only else entry.fields
    wire: dict[str, Any] = {name: _text(fields[name]) for name in _IDS if fields.get(name)}
    wire["captured_at"] = entry.captured_at
    wire["release"] = release
    wire["probability"] = fields["probability"]
    if entry.feature:
        wire["feature"] = entry.feature
    for name in TEXTS:
        if value := fields.get(name):
            wire[name] = redact(_text(value))
    for name in _LISTS:
        if value := fields.get(name):
            wire[name] = [_item(name, item) for item in _items(plain(value, redact))]
    for name in _NUMBERS:
        value = fields.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            wire[name] = value
    for name in ("parameters", "attributes"):
        if value := fields.get(name):
            value = plain(value, redact)
            wire[name] = value if isinstance(value, dict) else {"value": value}
    return wire


def plain(value: Any, redact: Redactor, depth: int = 0) -> Any:  # noqa: PLR0911 - one line for each kind of value
    """``value`` in types that JSON knows, with every text redacted.

    Pydantic models and dataclasses become dicts. Of an object that is neither only its type is named: to print it could
    run the application's code.
    """
    if isinstance(value, str):
        return redact(_clean(value))
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return plain(value.value, redact, depth)
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 63 else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth > DEEPEST:
        return "[too deep]"
    if isinstance(value, Mapping):
        return {_key(key, redact): plain(item, redact, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, redact, depth + 1) for item in value]
    return _plain_object(value, redact, depth)


def _plain_object(value: Any, redact: Redactor, depth: int) -> Any:
    if isinstance(value, bytes):
        return redact(_clean(value.decode("utf-8", "replace")))
    if isinstance(value, date | Decimal) or type(value).__module__ == "uuid":
        return str(value)
    if isinstance(value, BaseException):
        return redact(f"{type(value).__name__}: {value}")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return plain({name: getattr(value, name, None) for name in names}, redact, depth)
    dump = getattr(type(value), "model_dump", None)
    if callable(dump):
        return plain(dump(value, exclude_none=True), redact, depth)
    return f"[{type(value).__module__}.{type(value).__qualname__}]"


def _key(key: Any, redact: Redactor) -> str:
    if type(key) is str:
        return key if len(key) < _SHORT_KEY and key.isidentifier() else redact(_clean(key))
    return redact(str(key)) if isinstance(key, int | float | bytes | type(None)) else f"[{type(key).__qualname__}]"


def _clean(text: str) -> str:
    # PostgreSQL takes no NUL in a text.
    return text.replace("\x00", "\ufffd") if "\x00" in text else text


def _text(value: Any) -> str:
    """``value`` as a text: itself, or its JSON."""
    if not isinstance(value, str):
        value = plain(value, str)
    return _clean(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _item(name: str, item: Any) -> dict[str, Any]:
    """An element of a list field: a dict; a bare text goes where that field has its text."""
    if isinstance(item, dict):
        return item
    if name == "messages":
        return {"role": "user", "content": item}
    return {"text" if name == "context" else "name": item}


def _metadata(fields: Mapping[str, Any]) -> dict[str, Any]:
    """``fields`` without any text of user, model or application."""
    kept = {
        name: fields[name] for name in (*_IDS, *_NUMBERS, "model", "finish_reason", "probability") if name in fields
    }
    if error := fields.get("error"):
        kept["error"] = str(error).partition(":")[0]
    for name in ("parameters", "attributes"):
        values = fields.get(name)
        if isinstance(values, Mapping):
            kept[name] = {k: v for k, v in values.items() if type(v) in {int, float, bool}}
    return kept
