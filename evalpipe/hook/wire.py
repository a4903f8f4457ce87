"""From what a call left behind to a record in wire form: plain JSON types, redacted. Runs in the thread that ships."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from evalpipe.hook.buffer import Entry
from evalpipe.hook.freezing import DEEPEST
from evalpipe.hook.redaction import Keep, Redactor

TEXTS: Final = ("model", "finish_reason", "error", "output")
_IDS: Final = ("record_id", "trace_id", "session_id", "user_id", "unit", "segment", "stratum", "reason")
_MAPPINGS: Final = ("parameters", "attributes")
_STRUCTURED: Final = ("messages", "context", "tools", "tool_calls", *_MAPPINGS)
_NUMBERS: Final = ("input_tokens", "output_tokens", "cached_tokens", "cost_usd", "latency_ms", "ttft_ms",
                   "rate_probability")  # fmt: skip
MOST_CHARS: Final = 200
"""Of an id or a segment: a longer one is cut, and told apart by a digest. Databases have them as keys."""
_LONG: Final = 1_000_000
"""Whole numbers from here on are searched as texts are."""
_SHORT_KEY: Final = 13
"""No key, number or address is shorter than this and an identifier, so such names of fields are not searched."""
_LONGEST_NAME: Final = 128
"""Of what may leave as a name where no text may."""
_USUAL_KEYS: Final = frozenset(
    {"role", "content", "type", "text", "name", "id", "score", "function", "arguments", "tool_calls", "tool_call_id",
     "parameters", "description", "properties", "temperature", "top_p", "max_tokens", "seed", "model"}
)  # fmt: skip


def record_wire(
    entry: Entry, release: Mapping[str, str], redact: Redactor, *, metadata_only: bool, keep: Keep | None = None
) -> dict[str, Any]:
    """The record as ``evalpipe.record.from_wire`` reads it, without what is unknown.

    Args:
        entry: what the call left.
        release: its release in wire form.
        redact: runs over every text that is not an id.
        metadata_only: whether no text may leave at all.
        keep: the fields that may leave; None for all.

    Raises:
        Exception: whatever an object of the application or the application's own redaction raises.
    """
    fields = entry.fields
    if metadata_only or keep is not None:
        fields = _allowed(fields, keep, metadata_only=metadata_only)
    wire: dict[str, Any] = {
        "captured_at": entry.captured_at,
        "release": release,
        "probability": fields["probability"],
    }
    if entry.feature:
        wire["feature"] = _text(entry.feature)
    get = fields.get
    for name in _IDS:
        if value := get(name):
            wire[name] = key_of(value)
    for name in TEXTS:
        if value := get(name):
            wire[name] = redact(value if type(value) is str and "\x00" not in value else _text(value))
    _put_numbers(wire, fields)
    for name in _STRUCTURED:
        if value := get(name):
            wire[name] = _structured(name, plain(value, redact), None if keep is None else keep[name])
    return wire


def _put_numbers(wire: dict[str, Any], fields: Mapping[str, Any]) -> None:
    for name in _NUMBERS:
        value = fields.get(name)
        if value is None or type(value) is bool:
            continue
        if (type(value) in _NUMERIC or isinstance(value, int | float)) and math.isfinite(value):
            wire[name] = value


_NUMERIC: Final = frozenset({int, float})
"""Told apart at once; ``isinstance`` is for what is derived from them."""


def _structured(name: str, value: Any, keys: frozenset[str] | None) -> Any:
    """A list field's elements as dicts, or a mapping; of both only ``keys``, None for all."""
    if name in _MAPPINGS:
        return _only(value if isinstance(value, dict) else {"value": value}, keys)
    items = [item if type(item) is dict else _item(name, item) for item in _items(value)]
    return items if keys is None else [_only(item, keys) for item in items]


_CONTENT: Final = frozenset({*_STRUCTURED, "output", "error"})


def _only(value: dict[str, Any], keys: frozenset[str] | None) -> dict[str, Any]:
    return value if keys is None else {key: item for key, item in value.items() if key in keys}


def plain(value: Any, redact: Redactor, depth: int = 0) -> Any:
    """``value`` in types that JSON knows, with every text redacted.

    Pydantic models and dataclasses become dicts. Of an object that is neither only its type is named: to print it could
    run the application's code.
    """
    kind = type(value)
    if kind is str:
        return redact(value if "\x00" not in value else _clean(value))
    if value is None or kind is bool or (kind is int and -_LONG < value < _LONG):
        return value
    if kind is float:
        return value if math.isfinite(value) else str(value)
    if kind is dict and depth <= DEEPEST:
        down = depth + 1
        # Most values are texts, and to call this function once more for each would take as long as to redact one.
        return {
            (key if type(key) is str and key in _USUAL_KEYS else _key(key, redact)): (
                redact(item) if type(item) is str and "\x00" not in item else plain(item, redact, down)
            )
            for key, item in value.items()
        }
    if kind is list and depth <= DEEPEST:
        down = depth + 1
        return [plain(item, redact, down) for item in value]
    return _plain_other(value, redact, depth)


def _plain_other(value: Any, redact: Redactor, depth: int) -> Any:  # noqa: PLR0911 - one line for each kind of value
    if isinstance(value, Enum):
        return plain(value.value, redact, depth)
    if isinstance(value, str):
        return redact(_clean(str.__str__(value)))
    if isinstance(value, int):
        # A card's number is one without quotes too.
        text = redact(str(value))
        return value if text == str(value) and -(1 << 63) <= value < 1 << 63 else text
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
    import dataclasses
    from datetime import date
    from decimal import Decimal

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


def key_of(value: Any) -> str:
    """An id as records carry it: a text of bounded length."""
    text = value if type(value) is str and "\x00" not in value else _text(value)
    return text if len(text) <= MOST_CHARS else _cut(text)


def _cut(text: str) -> str:
    from hashlib import sha256

    return f"{text[: MOST_CHARS - 33]}#{sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


def _text(value: Any) -> str:
    """``value`` as a text: itself, or its JSON."""
    if type(value) is str and "\x00" not in value:
        return value
    if not isinstance(value, str):
        value = plain(value, str)
    return _clean(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _item(name: str, item: Any) -> dict[str, Any]:
    """A bare text among a list field's dicts goes where that field has its text."""
    if name == "messages":
        return {"role": "user", "content": item}
    return {"text" if name == "context" else "name": item}


def _allowed(fields: Mapping[str, Any], keep: Keep | None, *, metadata_only: bool) -> Mapping[str, Any]:
    if metadata_only:
        fields = _metadata(fields)
    if keep is not None:
        fields = {name: value for name, value in fields.items() if name in keep or name not in _CONTENT}
    return fields


def _metadata(fields: Mapping[str, Any]) -> dict[str, Any]:
    """``fields`` without any text of user, model or application: ids, names, numbers."""
    kept = {name: fields[name] for name in (*_IDS, *_NUMBERS, "probability") if name in fields}
    for name in ("model", "finish_reason"):
        if _is_name(value := fields.get(name)):
            kept[name] = value
    if error := fields.get("error"):
        kind = str(error).partition(":")[0]
        kept["error"] = kind if kind.replace(".", "").isidentifier() and len(kind) <= _LONGEST_NAME else "error"
    for name in _MAPPINGS:
        values = fields.get(name)
        if isinstance(values, Mapping):
            kept[name] = {k: v for k, v in values.items() if _is_number(v) and _is_name(k)}
    return kept


def _is_number(value: Any) -> bool:
    """Whether it is a setting or a measure, and no number of a card, a phone or a person."""
    return type(value) in {bool, float} or (type(value) is int and -_LONG < value < _LONG)


def _is_name(value: Any) -> bool:
    """Whether it can be the name of a model or of a field, and is no sentence: one word, and not a long one."""
    return type(value) is str and 0 < len(value) <= _LONGEST_NAME and not any(c.isspace() for c in value)
