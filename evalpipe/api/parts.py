"""Messages as OpenTelemetry's GenAI conventions have written them over the years, as dicts with role and content.

Pure. The newest form has ``parts``; older ones have ``content``, and the oldest are bare texts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from evalpipe.api.attributes import is_too_deep, read_json


class Answer(NamedTuple):
    """What the model said: the first choice of them, as the hook records it."""

    text: str = ""
    tool_calls: list[dict[str, Any]] = []  # noqa: RUF012 - never changed
    finish_reason: str = ""


def parsed(value: Any) -> Any:
    """``value``, or what it says if it is a text of JSON: attributes were texts before they could be structured.

    JSON that is nested beyond all sense stays a text.
    """
    if not isinstance(value, str) or not value.lstrip().startswith(("{", "[", '"')):
        return value
    try:
        found = read_json(value)
    except ValueError:
        return value
    return value if is_too_deep(found) else found


def messages(value: Any, role: str = "user") -> list[dict[str, Any]]:
    """The messages in ``value``; ``role`` is of those that name none."""
    found: list[dict[str, Any]] = []
    for item in _items(parsed(value)):
        if not isinstance(item, Mapping):
            found.append({"role": role, "content": _text(item)})
        elif isinstance(item.get("parts"), list):
            found += _of_parts(str(item.get("role") or role), item)
        elif "type" in item and "role" not in item:  # a part that stands for a message
            found += _of_parts(role, {"parts": [item]})
        else:
            found.append({"role": role, **item})
    return found


def answer(value: Any) -> Answer:
    """The answer in ``value``: choices or messages of the model, of which the first counts."""
    found = parsed(value)
    first = next(iter(_items(found)), None)
    if first is None:
        return Answer()
    reason = str(first.get("finish_reason") or "") if isinstance(first, Mapping) else ""
    if isinstance(first, Mapping) and isinstance(first.get("message"), Mapping | str):  # a choice around its message
        first = parsed(first["message"])
    said = messages([first], "assistant")
    calls = [call for message in said for call in _calls(message.get("tool_calls"))]
    text = "\n".join(part for message in said if (part := _content_text(message.get("content"))))
    return Answer(text, calls, reason)


def indexed(attributes: Mapping[str, Any], prefix: str, *, inner: str = "tool_calls.") -> list[dict[str, Any]]:
    """What is written flat, as ``gen_ai.prompt.0.role`` and ``gen_ai.prompt.0.tool_calls.0.name``."""
    found: dict[int, dict[str, Any]] = {}
    for name, value in attributes.items():
        if name.startswith(prefix):
            number, _, rest = name[len(prefix) :].partition(".")
            if number.isascii() and number.isdigit() and rest and len(number) < 6:
                found.setdefault(int(number), {})[rest] = value
    items = []
    for _, item in sorted(found.items()):
        # Tool calls have none of their own, so it goes no deeper.
        calls = indexed(item, inner, inner="") if inner else []
        flat = {name: value for name, value in item.items() if not inner or not name.startswith(inner)}
        items.append({**flat, "tool_calls": calls} if calls else flat)
    return items


def definitions(value: Any) -> list[Any]:
    """The tools that were offered."""
    return [parsed(item) for item in _items(parsed(value))]


def documents(value: Any) -> list[dict[str, Any]]:
    """Retrieved documents, each with ``id``, ``text`` and ``score`` as far as they are known."""
    found = []
    for item in _items(parsed(value)):
        item = parsed(item)  # noqa: PLW2901 - a text of JSON within a list
        if not isinstance(item, Mapping):
            found.append({"text": _text(item)})
            continue
        document = {name: item[name] for name in ("id", "score") if item.get(name) is not None}
        text = next((item[name] for name in ("text", "content", "page_content") if item.get(name)), None)
        found.append(document if text is None else {**document, "text": _text(text)})
    return found


def _of_parts(role: str, message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A message with parts: its texts and media, its tool calls, and each tool's answer as a message of its own."""
    content: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for part in message["parts"]:
        if not isinstance(part, Mapping):
            content.append({"type": "text", "text": _text(part)})
            continue
        kind = str(part.get("type") or "text")
        if kind == "text":
            content.append({"type": "text", "text": _text(part.get("content", part.get("text")))})
        elif kind == "tool_call":
            calls.append({name: part.get(name) for name in ("id", "name", "arguments")})
        elif kind == "tool_call_response":
            told = part.get("response", part.get("result"))
            results.append({"role": "tool", "tool_call_id": part.get("id"), "content": _text(told)})
        elif kind not in {"reasoning", "compaction"}:  # the user never saw these
            # Of a picture that travels inside, only that there was one.
            content.append({name: value for name, value in part.items() if kind != "blob" or name != "content"})
    if not content and not calls and results:
        return results
    texts = [part["text"] for part in content if part.get("type") == "text"]
    turn: dict[str, Any] = {"role": role, "content": "\n".join(texts) if len(texts) == len(content) else content}
    if message.get("name"):
        turn["name"] = message["name"]
    if calls:
        turn["tool_calls"] = calls
    return [turn, *results]


def _calls(value: Any) -> Iterable[dict[str, Any]]:
    """Tool calls as dicts with ``name`` and ``arguments``; OpenAI has both inside of ``function``."""
    for item in _items(parsed(value)):
        if isinstance(item, Mapping):
            function = item.get("function")
            told = {**item, **function} if isinstance(function, Mapping) else item
            yield {name: told[name] for name in ("id", "name", "arguments") if told.get(name) is not None}


def _content_text(content: Any) -> str:
    content = parsed(content)
    if isinstance(content, list):
        texts = (p.get("text", p.get("content")) if isinstance(p, Mapping) else p for p in content)
        return "\n".join(text for text in texts if isinstance(text, str))
    return _text(content)


def _items(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False, default=str)
