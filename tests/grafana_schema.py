"""What Grafana reads of a dashboard, as a JSON schema of the parts that ours uses, made from its TypeScript types.

Source: ``@grafana/schema`` 13.2, ``dashboard/v1beta1`` and the ``composable`` panels. Whatever is not named here is
refused, so that a part that is new to us is looked up first.
"""

from __future__ import annotations

from typing import Any, Final


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "additionalProperties": False, "properties": properties}


def _list(items: Any, **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **more}


_TEXT: Final = {"type": "string"}
_NAMED: Final = {"type": "string", "minLength": 1}
_BOOL: Final = {"type": "boolean"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_SOURCE: Final = _object(["type", "uid"], type={"const": "prometheus"}, uid={"const": "${datasource}"})
_CURRENT: Final = _object(["text", "value"], text=_TEXT, value=_TEXT)
_HIDE: Final = {"enum": [0, 1, 2]}
_VARIABLE: Final = {
    "oneOf": [
        _object(
            ["name", "type", "query"], name=_NAMED, label=_TEXT, type={"const": "datasource"}, query=_NAMED,
            regex=_TEXT, refresh={"enum": [0, 1, 2]}, hide=_HIDE, multi=_BOOL, includeAll=_BOOL, current=_CURRENT,
            options=_list(_CURRENT),
        ),
        _object(
            ["name", "type", "query", "datasource"], name=_NAMED, label=_TEXT, type={"const": "query"}, query=_NAMED,
            definition=_TEXT, datasource=_SOURCE, regex=_TEXT, refresh={"enum": [0, 1, 2]}, hide=_HIDE, multi=_BOOL,
            includeAll=_BOOL, allValue=_TEXT, current=_CURRENT, options=_list(_CURRENT), sort={"enum": [*range(9)]},
        ),
    ]
}  # fmt: skip
_ANNOTATION: Final = _object(
    ["name", "enable", "iconColor", "datasource", "expr"], name=_NAMED, enable=_BOOL, hide=_BOOL, iconColor=_NAMED,
    datasource=_SOURCE, expr=_NAMED, useValueForTime=_BOOL, titleFormat=_TEXT, textFormat=_TEXT, tagKeys=_TEXT,
    step=_TEXT,
)  # fmt: skip
_TARGET: Final = _object(
    ["refId", "expr", "datasource"], refId={"type": "string", "pattern": "^[A-Z]$"}, expr=_NAMED, legendFormat=_TEXT,
    editorMode={"enum": ["code", "builder"]}, range=_BOOL, instant=_BOOL, datasource=_SOURCE,
    format={"enum": ["time_series", "table", "heatmap"]},
)  # fmt: skip
_STEP: Final = _object(["value", "color"], value={"type": ["number", "null"]}, color=_NAMED)
_RESULT: Final = _object([], text=_TEXT, color=_TEXT, index=_COUNT)
_CUSTOM: Final = _object(
    [], lineWidth=_COUNT, fillOpacity={"type": "integer", "minimum": 0, "maximum": 100}, spanNulls=_BOOL,
    showPoints={"enum": ["auto", "never", "always"]}, align={"enum": ["auto", "left", "right", "center"]},
    inspect=_BOOL, stacking=_object(["mode"], mode={"enum": ["none", "normal", "percent"]}, group=_TEXT),
)  # fmt: skip
_DEFAULTS: Final = _object(
    ["unit"], unit=_NAMED, min={"type": "number"}, max={"type": "number"}, noValue=_TEXT, custom=_CUSTOM,
    thresholds=_object(["mode", "steps"], mode={"enum": ["absolute", "percentage"]}, steps=_list(_STEP, minItems=1)),
    mappings=_list(_object(["type", "options"], type={"const": "value"},
                           options={"type": "object", "additionalProperties": _RESULT})),
)  # fmt: skip
_OVERRIDE: Final = _object(
    ["matcher", "properties"],
    matcher=_object(["id", "options"], id={"enum": ["byRegexp", "byName"]}, options=_NAMED),
    properties=_list(_object(["id", "value"], id=_NAMED, value={}), minItems=1),
)
_POSITION: Final = _object(
    ["h", "w", "x", "y"], h={"type": "integer", "minimum": 1}, x={"type": "integer", "minimum": 0, "maximum": 23},
    w={"type": "integer", "minimum": 1, "maximum": 24}, y=_COUNT,
)  # fmt: skip
_LEGEND: Final = _object(
    ["displayMode", "placement", "showLegend", "calcs"], displayMode={"enum": ["list", "table", "hidden"]},
    placement={"enum": ["bottom", "right"]}, showLegend=_BOOL, calcs=_list(_TEXT),
)  # fmt: skip
_TOOLTIP: Final = _object(
    ["mode", "sort"], mode={"enum": ["single", "multi", "none"]}, sort={"enum": ["asc", "desc", "none"]}
)
_OPTIONS: Final = {
    "timeseries": _object(["legend", "tooltip"], legend=_LEGEND, tooltip=_TOOLTIP),
    "state-timeline": _object(
        ["legend", "tooltip", "showValue"], legend=_LEGEND, tooltip=_TOOLTIP, mergeValues=_BOOL,
        showValue={"enum": ["auto", "never", "always"]}, rowHeight={"type": "number", "maximum": 1},
    ),
    "stat": _object(
        ["reduceOptions", "graphMode", "colorMode", "justifyMode", "textMode", "orientation", "wideLayout",
         "showPercentChange", "percentChangeColorMode"],
        reduceOptions=_object(["calcs"], calcs=_list(_TEXT), values=_BOOL, fields=_TEXT),
        graphMode={"enum": ["none", "line", "area"]}, justifyMode={"enum": ["auto", "center"]},
        colorMode={"enum": ["value", "background", "background_solid", "none"]},
        textMode={"enum": ["auto", "value", "value_and_name", "name", "none"]},
        orientation={"enum": ["auto", "vertical", "horizontal"]}, wideLayout=_BOOL, showPercentChange=_BOOL,
        percentChangeColorMode={"enum": ["standard", "inverted", "same_as_value"]},
    ),
    "table": _object(["frameIndex", "showHeader"], frameIndex=_COUNT, showHeader=_BOOL,
                     cellHeight={"enum": ["sm", "md", "lg", "auto"]}),
}  # fmt: skip
_ROW: Final = _object(
    ["type", "collapsed", "id", "panels", "title", "gridPos"], type={"const": "row"}, collapsed={"const": False},
    id={"type": "integer", "minimum": 1}, panels=_list({}, maxItems=0), title=_NAMED, gridPos=_POSITION,
)  # fmt: skip


def _panel(kind: str) -> dict[str, Any]:
    config = _object(["defaults", "overrides"], defaults=_DEFAULTS, overrides=_list(_OVERRIDE))
    return _object(
        ["id", "type", "title", "description", "datasource", "gridPos", "targets", "fieldConfig", "options"],
        id={"type": "integer", "minimum": 1}, type={"const": kind}, title=_NAMED, description=_NAMED,
        datasource=_SOURCE, gridPos=_POSITION, targets=_list(_TARGET, minItems=1), fieldConfig=config,
        transformations=_list(_object(["id", "options"], id=_NAMED, options={"type": "object"})),
        options=_OPTIONS[kind],
        repeat=_NAMED, repeatDirection={"enum": ["h", "v"]}, maxPerRow={"type": "integer", "minimum": 1},
    )  # fmt: skip


DASHBOARD: Final = _object(
    ["uid", "title", "schemaVersion", "templating", "annotations", "panels", "time"],
    uid={"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,40}$"}, title=_NAMED, description=_TEXT, tags=_list(_TEXT),
    schemaVersion={"type": "integer", "minimum": 36}, version=_COUNT, editable=_BOOL, graphTooltip={"enum": [0, 1, 2]},
    timezone={"enum": ["browser", "utc", ""]}, refresh=_TEXT, fiscalYearStartMonth={"enum": [*range(12)]},
    time=_object(["from", "to"], **{"from": _NAMED, "to": _NAMED}), links=_list({}, maxItems=0),
    annotations=_object(["list"], list=_list(_ANNOTATION)), templating=_object(["list"], list=_list(_VARIABLE)),
    panels=_list({"oneOf": [_ROW, *(_panel(kind) for kind in _OPTIONS)]}, minItems=1),
)  # fmt: skip
