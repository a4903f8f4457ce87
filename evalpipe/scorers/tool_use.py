"""Do the model's tool calls work: an offered tool, arguments of the agreed shape, and a result that is no error?"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import orjson
from pydantic import Field

from evalpipe.record import Record
from evalpipe.score import Score, scored, skipped
from evalpipe.scorers import base

_SCHEMA_KEYS: Final = ("parameters", "input_schema", "inputSchema")
_FAILED: Final = frozenset({"error", "failed", "failure"})


class ToolUseParams(base.Params):
    """Parameters of ``tool_use``."""

    errors: list[str] = Field(
        default_factory=list,
        description="Further beginnings of a tool's result, in any case, by which it has failed, for example your "
        "tools' own 'not found'.",
    )
    check_arguments: bool = Field(
        True, description="Hold arguments to the JSON Schema that the tool was offered with, if it has one."
    )


@base.heuristics.register("tool_use")
class ToolUse:
    """The share of the tool calls that work. Labels ``ok``, ``unknown tool``, ``bad arguments``, ``failed``.

    A call works if its tool was offered (where offers are captured), its arguments are a JSON object that fits the
    tool's schema, and its result, or what role ``tool`` says of it in the messages, is no error. Skipped without calls.
    """

    Params: ClassVar[type[base.Params]] = ToolUseParams
    version: ClassVar[str] = "1"

    def __init__(self, params: ToolUseParams) -> None:
        self._errors = (
            "error:",
            "error ",
            "traceback (most recent call last)",
            *(e.lower() for e in params.errors if e),
        )
        self._check = params.check_arguments

    def score(self, record: Record) -> Score:
        """The score of ``record``; the explanation names the tools and quotes no argument."""
        if record.error:
            return skipped(f"the call failed: {record.error[:200]}")
        offered = _offered(record.tools)
        troubles = [self._trouble(call, offered) for call in record.tool_calls]
        troubles += [self._answer_trouble(message) for message in _answers(record)]
        if not troubles:
            return skipped("the model called no tools")
        bad = [trouble for trouble in troubles if trouble]
        if not bad:
            return scored(1.0, "ok")
        label = bad[0].partition(":")[0]
        return scored(1.0 - len(bad) / len(troubles), label, "; ".join(bad[:5])[:500])

    def _trouble(self, call: Any, offered: Mapping[str, Any]) -> str:
        """What is wrong with a call, as label and detail; "" if nothing."""
        if not isinstance(call, Mapping) or not (name := str(call.get("name") or "")[:80]):
            return "unknown tool: a call without a name"
        if offered and name not in offered:
            return f"unknown tool: {name} was not offered"
        if call.get("error") or str(call.get("status")).lower() in _FAILED or self._says_error(call.get("result")):
            return f"failed: {name}"
        arguments = _parsed(call.get("arguments"))
        if not isinstance(arguments, Mapping):
            return f"bad arguments: those of {name} are no JSON object"
        schema = offered.get(name)
        if self._check and schema is not None and not _fits(schema, arguments):
            return f"bad arguments: those of {name} do not fit its schema"
        return ""

    def _answer_trouble(self, message: Mapping[str, Any]) -> str:
        failed = message.get("is_error") is True or str(message.get("status")).lower() in _FAILED
        if failed or self._says_error(message.get("content")):
            return f"failed: {str(message.get('name') or 'a tool')[:80]}"
        return ""

    def _says_error(self, result: Any) -> bool:
        if isinstance(result, str):
            if result[:64].lstrip().lower().startswith(self._errors):
                return True
            result = _parsed(result) if result.lstrip()[:1] == "{" else None
        return isinstance(result, Mapping) and (
            bool(result.get("error")) or result.get("is_error") is True or result.get("isError") is True
        )


def _answers(record: Record) -> list[Mapping[str, Any]]:
    """Messages of role ``tool`` since the last user's: what the tools of this turn said."""
    found: list[Mapping[str, Any]] = []
    for message in reversed(record.messages):
        if message.get("role") == "user":
            break
        if message.get("role") == "tool":
            found.append(message)
    return found[::-1]


def _offered(tools: Any) -> dict[str, bytes | None]:
    """The names of the tools offered, each with its JSON Schema as text, if it has one; in any provider's form."""
    found: dict[str, bytes | None] = {}
    for tool in tools:
        inner = tool.get("function", tool) if isinstance(tool, Mapping) else tool
        if isinstance(inner, str):
            found[inner[:80]] = None
        elif isinstance(inner, Mapping) and isinstance(inner.get("name"), str):
            schema = next((inner[key] for key in _SCHEMA_KEYS if isinstance(inner.get(key), Mapping)), None)
            found[inner["name"][:80]] = None if schema is None else _text(schema)
    return found


def _text(schema: Any) -> bytes | None:
    try:
        return orjson.dumps(schema, option=orjson.OPT_SORT_KEYS)
    except (TypeError, ValueError):
        return None


def _parsed(value: Any) -> Any:
    """JSON text as what it says; text that is none, and anything else, as it is. No arguments are an empty object."""
    if value is None or value == "":
        return {}
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return value


def _fits(schema: bytes, arguments: Any) -> bool:
    validator = _validator(schema)
    try:
        return validator is None or bool(validator.is_valid(arguments))
    except (TypeError, ValueError):
        return True


@functools.lru_cache(maxsize=256)
def _validator(schema: bytes) -> Any:
    """Compiled once for each schema; None for one that cannot be used, which is not the model's fault."""
    import jsonschema_rs

    try:
        return jsonschema_rs.validator_for(
            orjson.loads(schema), offline=True, pattern_options=jsonschema_rs.RegexOptions()
        )
    except (ValueError, TypeError):
        return None
