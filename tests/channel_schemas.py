"""The payloads that the other sides take, as JSON schemas made from their references."""

from __future__ import annotations

from typing import Any, Final


def _text(most: int, *, least: int = 1) -> dict[str, Any]:
    return {"type": "string", "minLength": least, "maxLength": most}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "additionalProperties": False, "properties": properties}


def _plain(most: int) -> dict[str, Any]:
    # Nothing but plain text: what is marked up could be marked up by a judged text. & < > are written as entities.
    safe = {**_text(most), "pattern": "^([^<>&]|&(amp|lt|gt);)*$"}
    return _object(["type", "text"], type={"const": "plain_text"}, emoji={"type": "boolean"}, text=safe)


_LINK: Final = {"type": "string", "format": "uri", "pattern": "^https?://", "maxLength": 3000}
SLACK: Final = _object(
    ["text", "blocks"],
    text={**_text(40_000), "pattern": "^([^<>&]|&(amp|lt|gt);)*$"},
    mrkdwn={"const": False},
    unfurl_links={"const": False},
    unfurl_media={"const": False},
    blocks={
        "type": "array",
        "minItems": 1,
        "maxItems": 50,
        "items": {
            "oneOf": [
                _object(["type", "text"], type={"const": "header"}, text=_plain(150)),
                _object(["type", "text"], type={"const": "section"}, text=_plain(3000)),
                _object(
                    ["type", "fields"],
                    type={"const": "section"},
                    fields={"type": "array", "minItems": 1, "maxItems": 10, "items": _plain(2000)},
                ),
                _object(
                    ["type", "elements"],
                    type={"const": "context"},
                    elements={"type": "array", "minItems": 1, "maxItems": 10, "items": _plain(3000)},
                ),
                _object(
                    ["type", "elements"],
                    type={"const": "actions"},
                    elements={
                        "type": "array",
                        "minItems": 1,
                        "maxItems": 25,
                        "items": _object(["type", "text", "url"], type={"const": "button"}, text=_plain(75), url=_LINK),
                    },
                ),
            ]
        },
    },
)

_ISO: Final = {"type": "string", "format": "date-time"}
_LINKS: Final = {"type": "array", "items": _object(["href"], href=_LINK, text={"type": "string"})}
_KEY: Final = _text(64)
PAGERDUTY: Final = {
    **_object(
        ["routing_key", "event_action"],
        routing_key=_KEY,
        event_action={"enum": ["trigger", "acknowledge", "resolve"]},
        dedup_key=_text(255),
        client={"type": "string"},
        client_url=_LINK,
        links=_LINKS,
        payload=_object(
            ["summary", "source", "severity"],
            summary=_text(1024),
            source=_text(1024),
            severity={"enum": ["critical", "error", "warning", "info"]},
            timestamp=_ISO,
            component={"type": "string"},
            group={"type": "string"},
            **{"class": {"type": "string"}},
            custom_details={"type": "object"},
        ),
    ),
    "if": {"properties": {"event_action": {"const": "trigger"}}},
    "then": {"required": ["payload"]},
    "else": {"required": ["dedup_key"]},
}
PAGERDUTY_CHANGE: Final = _object(
    ["routing_key", "payload"],
    routing_key=_KEY,
    links=_LINKS,
    payload=_object(
        ["summary"], summary=_text(1024), timestamp=_ISO, source=_text(1024), custom_details={"type": "object"}
    ),
)

_LABELS: Final = {
    "type": "object",
    "propertyNames": {"pattern": "^[a-zA-Z_][a-zA-Z0-9_]*$"},
    "additionalProperties": {"type": "string", "minLength": 1},
}
ALERTMANAGER: Final = {
    "type": "array",
    "minItems": 1,
    "items": _object(
        ["labels", "endsAt"],
        labels={**_LABELS, "required": ["alertname", "severity", "sev"]},
        annotations=_LABELS,
        startsAt=_ISO,
        endsAt=_ISO,
        generatorURL=_LINK,
    ),
}
