"""Is the answer JSON of the agreed shape?"""

from __future__ import annotations

from typing import Any, ClassVar

import orjson
from pydantic import Field

from evalpipe.errors import ConfigError
from evalpipe.record import Record
from evalpipe.score import Score, scored, skipped
from evalpipe.scorers import base
from evalpipe.scorers.answer import nothing_to_score


class JsonSchemaParams(base.Params):
    """Parameters of ``json_schema``."""

    json_schema: dict[str, Any] = Field(
        default_factory=dict,
        alias="schema",
        description="The JSON Schema (draft 2020-12, or the one that '$schema' names). Empty: any JSON will do. "
        "References to other documents are not followed.",
    )
    allow_fence: bool = Field(
        True,
        description="Accept JSON inside one Markdown code fence (three backticks), as chat models like to write it.",
    )


@base.heuristics.register("json_schema")
class JsonSchema:
    """1 if the output is JSON that fits the schema, else 0. Labels ``valid``, ``invalid`` and ``not json``."""

    Params: ClassVar[type[base.Params]] = JsonSchemaParams
    version: ClassVar[str] = "1"

    def __init__(self, params: JsonSchemaParams) -> None:
        self._allow_fence = params.allow_fence
        self._validator = _compile(params.json_schema)

    def score(self, record: Record) -> Score:
        """The score of ``record``; the explanation says where the JSON or the shape breaks, and quotes no value."""
        if reason := nothing_to_score(record):
            return skipped(reason)
        text = record.output
        if self._allow_fence and "```" in text:
            text = _inside_fence(text)
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            return scored(0.0, "not json", str(error)[:200])
        if self._validator.is_valid(value):
            return scored(1.0, "valid")
        first = next(iter(self._validator.iter_errors(value)))
        where = "/" + "/".join(str(step) for step in first.instance_path)
        return scored(0.0, "invalid", f"at {where[:100]}: {first.message[:200]}")


def _inside_fence(text: str) -> str:
    """What stands in the only code fence of ``text``; the text itself if words stand around the fence."""
    stripped = text.strip()
    first_line, newline, rest = stripped.partition("\n")
    if not (newline and first_line.startswith("```") and rest.endswith("```") and "```" not in rest[:-3]):
        return text
    return rest[:-3]


def _compile(schema: dict[str, Any]) -> Any:
    import jsonschema_rs

    # Patterns run in linear time, and nothing is fetched.
    options: dict[str, Any] = {"offline": True, "pattern_options": jsonschema_rs.RegexOptions()}
    try:
        jsonschema_rs.validator_for(schema, **options)  # once without the mask, for a message that shows the mistake
    except ValueError as error:
        raise ConfigError(f"json_schema: 'schema' cannot be used as a JSON Schema: {error}") from error
    return jsonschema_rs.validator_for(schema, mask="the value", **options)
