"""The JSON Schema of a scorecard, for editors: names, descriptions, parameters of every heuristic and detector."""

from __future__ import annotations

import inspect
from datetime import timedelta
from typing import Any, Final

from pydantic import TypeAdapter

from evalpipe.scorecard.load import Names
from evalpipe.scorecard.model import Scorecard
from evalpipe.scorecard.values import DURATION_PATTERN, format_duration

_ISO: Final = TypeAdapter(timedelta)


def json_schema(heuristics: Names, detectors: Names) -> dict[str, Any]:
    """The schema, draft 2020-12, with one branch for each heuristic and detector that says what its ``params`` are."""
    schema = Scorecard.model_json_schema(by_alias=True)
    definitions: dict[str, Any] = schema["$defs"]
    criterion = definitions["Criterion"]
    fields = criterion["properties"]
    _plug_in(criterion, "heuristic", heuristics, definitions)
    fields["judge"] = {"$ref": "#/$defs/JudgeSpec", "description": fields["judge"]["description"]}
    criterion["oneOf"] = [{"required": ["heuristic"]}, {"required": ["judge"], "not": {"required": ["params"]}}]
    alerts(definitions, detectors)
    definitions["MeanThreshold"]["oneOf"] = [{"required": ["below"]}, {"required": ["above"]}]
    _short_steps(definitions)
    _tidy(schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "evalpipe scorecard",
        **{key: value for key, value in schema.items() if key != "title"},
    }


def alerts(definitions: dict[str, Any], detectors: Names, name: str = "AlertRule") -> None:
    """Say in the definition of an alert rule which detectors there are, and what may stand together."""
    rule = definitions[name]
    _plug_in(rule, "detect", detectors, definitions, prefix="detect_")
    ways = (("criterion", "mean"), ("meter", "value"), ("detect",))
    rule["oneOf"] = [{"required": list(way)} for way in ways]
    definitions["NormalRule"] |= {"minProperties": 1, "maxProperties": 1}
    definitions["Threshold"]["oneOf"] = [{"required": ["below"]}, {"required": ["above"]}]


def _plug_in(of: dict[str, Any], field: str, names: Names, definitions: dict[str, Any], prefix: str = "") -> None:
    """A field that names a plug-in, and ``params`` that are the plug-in's."""
    fields = of["properties"]
    fields[field] = {
        "description": fields[field]["description"],
        "oneOf": [{"const": name, "description": _summary(names.get(name))} for name in names],
    }
    fields["params"] = {"type": "object", "description": fields["params"]["description"]}
    of["allOf"] = [_branch(field, name, names.get(name), definitions, prefix) for name in names]


def _branch(field: str, name: str, plug_in: Any, definitions: dict[str, Any], prefix: str) -> dict[str, Any]:
    params = plug_in.Params.model_json_schema(by_alias=True, ref_template="#/$defs/{model}")
    definitions.update(params.pop("$defs", {}))
    definitions[f"params_{prefix}{name}"] = params
    then: dict[str, Any] = {"properties": {"params": {"$ref": f"#/$defs/params_{prefix}{name}"}}}
    if params.get("required"):
        then["required"] = ["params"]
    return {"if": {"properties": {field: {"const": name}}, "required": [field]}, "then": then}


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


def _summary(plug_in: Any) -> str:
    return (inspect.getdoc(plug_in) or "").partition("\n\n")[0].replace("\n", " ")
