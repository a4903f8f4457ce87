"""An OTLP trace request as spans, whichever of its two encodings it came in. Pure.

Protobuf is read by OpenTelemetry's own classes. OTLP's JSON is not protobuf's JSON: ids are in hex, enums are numbers.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from evalpipe.api.attributes import read_json, text_of
from evalpipe.api.counting import check_json, check_protobuf, check_spans
from evalpipe.errors import RecordError

DEEPEST = 32
"""Levels of lists and maps in a value, and of spans around a span; what lies deeper is left out."""
ERROR = 2
"""Status code of a span that failed."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something within a span."""

    name: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Span:
    """One operation: ids in lower-case hex, times in nanoseconds since 1970.

    Attributes:
        resource: the attributes of whoever sent it.
        failed: its status is an error.
    """

    trace_id: str
    span_id: str
    parent_id: str = ""
    name: str = ""
    start_ns: int = 0
    end_ns: int = 0
    attributes: Mapping[str, Any] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    resource: Mapping[str, Any] = field(default_factory=dict)
    failed: bool = False
    message: str = ""


class Trees:
    """The spans of a request, and for each those around it, from near to far."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self._spans = {(span.trace_id, span.span_id): span for span in spans}

    def around(self, span: Span) -> Iterator[Span]:
        """``span`` and its ancestors, as far as they came in the same request."""
        seen: set[str] = set()
        at: Span | None = span
        while at is not None and at.span_id not in seen and len(seen) < DEEPEST:
            seen.add(at.span_id)
            yield at
            at = self._spans.get((at.trace_id, at.parent_id))

    def first(self, span: Span, *names: str) -> str:
        """The nearest value of one of these attributes; at last the resource's."""
        for one in self.around(span):
            if found := text_of(one.attributes, names):
                return found
        return text_of(span.resource, names)


def from_protobuf(body: bytes) -> list[Span]:
    """The spans of an ``ExportTraceServiceRequest``.

    Raises:
        RecordError: it is none, or holds too much (``TooMuchError``).
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    check_protobuf(body)
    try:
        request = ExportTraceServiceRequest.FromString(body)
    except DecodeError as error:
        raise RecordError(f"the body is no ExportTraceServiceRequest in protobuf: {error}") from error
    found = []
    for group in request.resource_spans:
        resource = _pairs(group.resource.attributes)
        found += [_from_message(span, resource) for scope in group.scope_spans for span in scope.spans]
    return found


def from_json(body: bytes) -> list[Span]:
    """The spans of a request in OTLP's JSON.

    Raises:
        RecordError: it is none, or holds too much (``TooMuchError``).
    """
    check_json(body)
    try:
        request = read_json(body)
        check_spans(
            sum(len(_list(s, "spans")) for g in _list(request, "resourceSpans") for s in _list(g, "scopeSpans"))
        )
        found = []
        for group in _list(request, "resourceSpans"):
            resource = _members(_list(group.get("resource") or {}, "attributes"))
            for scope in _list(group, "scopeSpans"):
                found += [_from_object(span, resource) for span in _list(scope, "spans")]
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError) as error:
        raise RecordError(
            f"the body is no ExportTraceServiceRequest in JSON: {type(error).__name__}: {error}"
        ) from error
    return found


def _from_message(span: Any, resource: Mapping[str, Any]) -> Span:
    return Span(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        name=span.name,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_pairs(span.attributes),
        events=tuple(Event(event.name, _pairs(event.attributes)) for event in span.events),
        resource=resource,
        failed=span.status.code == ERROR,
        message=span.status.message,
    )


def _from_object(span: Mapping[str, Any], resource: Mapping[str, Any]) -> Span:
    status = span.get("status") or {}
    return Span(
        trace_id=str(span.get("traceId") or "").lower(),
        span_id=str(span.get("spanId") or "").lower(),
        parent_id=str(span.get("parentSpanId") or "").lower(),
        name=str(span.get("name") or ""),
        start_ns=_nanoseconds(span.get("startTimeUnixNano")),
        end_ns=_nanoseconds(span.get("endTimeUnixNano")),
        attributes=_members(_list(span, "attributes")),
        events=tuple(
            Event(str(event.get("name") or ""), _members(_list(event, "attributes"))) for event in _list(span, "events")
        ),
        resource=resource,
        failed=status.get("code") in {ERROR, str(ERROR), "STATUS_CODE_ERROR"},
        message=str(status.get("message") or ""),
    )


def _nanoseconds(value: Any) -> int:
    """A fixed64; 0 for what is none."""
    found = int(value or 0)
    return found if 0 <= found < 1 << 64 else 0


def _list(of: Mapping[str, Any], name: str) -> list[Any]:
    found = of.get(name)
    if found is None:
        return []
    if not isinstance(found, list):
        raise TypeError(f"{name} must be a list")
    return found


def _pairs(attributes: Iterable[Any]) -> dict[str, Any]:
    return {pair.key: _value(pair.value, 0) for pair in attributes}


def _value(value: Any, depth: int) -> Any:
    """What an ``AnyValue`` holds, in plain types; None where it holds nothing or lies too deep."""
    kind = value.WhichOneof("value")
    if kind is None or depth > DEEPEST:
        return None
    held = getattr(value, kind)
    if kind == "array_value":
        return [_value(item, depth + 1) for item in held.values]
    if kind == "kvlist_value":
        return {pair.key: _value(pair.value, depth + 1) for pair in held.values}
    return base64.b64encode(held).decode() if kind == "bytes_value" else held


def _members(attributes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {str(pair["key"]): _plain(pair.get("value") or {}, 0) for pair in attributes}


def _plain(value: Mapping[str, Any], depth: int) -> Any:
    """As ``_value``, of an ``AnyValue`` in JSON."""
    if depth > DEEPEST:
        return None
    kind: str = next(iter(value), "")
    held: Any = value.get(kind)
    if kind == "arrayValue":
        return [_plain(item, depth + 1) for item in _list(held, "values")]
    if kind == "kvlistValue":
        return {str(pair["key"]): _plain(pair.get("value") or {}, depth + 1) for pair in _list(held, "values")}
    if kind in {"intValue", "doubleValue"}:
        return int(held) if kind == "intValue" else float(held)
    return held if kind in {"stringValue", "boolValue", "bytesValue"} else None
