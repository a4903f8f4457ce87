"""The JSON Schema of a scorecard, for editors: names, descriptions and the parameters of every heuristic."""

from __future__ import annotations

import inspect
from datetime import timedelta
from typing import Any, Final

from pydantic import TypeAdapter

from evalpipe.scorecard.load import Names
from evalpipe.scorecard.model import Scorecard
from evalpipe.scorecard.values import DURATION_PATTERN, format_duration

_ISO: Final = TypeAdapter(timedelta)


def json_schema(heuristics: Names) -> dict[str, Any]:
    """The schema, draft 2020-12, with one branch for each heuristic that says what its ``params`` are."""
    schema = Scorecard.model_json_schema(by_alias=True)
    definitions: dict[str, Any] = schema["$defs"]
    criterion = definitions["Criterion"]
    fields = criterion["properties"]
    fields["heuristic"] = {
        "description": fields["heuristic"]["description"],
        "oneOf": [{"const": name, "description": _summary(heuristics.get(name))} for name in heuristics],
    }
    fields["params"] = {"type": "object", "description": fields["params"]["description"]}
    fields["judge"] = {"$ref": "#/$defs/JudgeSpec", "description": fields["judge"]["description"]}
    criterion["oneOf"] = [{"required": ["heuristic"]}, {"required": ["judge"], "not": {"required": ["params"]}}]
    criterion["allOf"] = [_branch(name, heuristics.get(name), definitions) for name in heuristics]
    definitions["MeanThreshold"]["oneOf"] = [{"required": ["below"]}, {"required": ["above"]}]
    _short_steps(definitions)
    _tidy(schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "evalpipe scorecard",
        **{key: value for key, value in schema.items() if key != "title"},
    }


def _branch(name: str, heuristic: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    params = heuristic.Params.model_json_schema(by_alias=True, ref_template="#/$defs/{model}")
    definitions.update(params.pop("$defs", {}))
    definitions[f"params_{name}"] = params
    then: dict[str, Any] = {"properties": {"params": {"$ref": f"#/$defs/params_{name}"}}}
    if params.get("required"):
        then["required"] = ["params"]
    return {"if": {"properties": {"heuristic": {"const": name}}, "required": ["heuristic"]}, "then": then}


def _short_steps(definitions: dict[str, Any]) -> None:
    """A step of the ramp is a percentage, or a mapping."""
    step = definitions["RampStep"]
    definitions["RampStep"] = {"anyOf": [*step["properties"]["percent"]["anyOf"], step]}


def _tidy(node: Any) -> None:
    """Remove the titles that only repeat names, and write durations as people do."""
    if isinstance(node, list):
        for item in node:
            _tidy(item)
    if not isinstance(node, dict):
        return
    if isinstance(node.get("title"), str):
        del node["title"]
    if node.get("pattern") == DURATION_PATTERN and "default" in node:
        node["default"] = format_duration(_ISO.validate_python(node["default"]))
    for item in node.values():
        _tidy(item)


def _summary(heuristic: Any) -> str:
    return (inspect.getdoc(heuristic) or "").partition("\n\n")[0].replace("\n", " ")
