"""``POST /v1/traces``: OpenTelemetry's own way in (OTLP over HTTP), for applications that have telemetry already."""

from __future__ import annotations

from functools import partial
from typing import Any, Final, Literal

import orjson
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request, Response, Security

from evalpipe.api.access import bearer
from evalpipe.api.bodies import BodyError, received, unpacked
from evalpipe.api.counting import TooMuchError
from evalpipe.api.spans import SpanCall, read
from evalpipe.api.taps import Busy, Reported, Taps
from evalpipe.api.traces import from_json, from_protobuf
from evalpipe.errors import RecordError

Encoding = Literal["json", "protobuf"]
TYPES: Final[dict[str, Encoding]] = {"application/x-protobuf": "protobuf", "application/json": "json"}
RETRY_AFTER_S: Final = 5
CODES: Final = {400: 3, 413: 8, 415: 3, 503: 14}
"""Of google.rpc.Status, by HTTP status."""

router = APIRouter(tags=["intake"], dependencies=[Security(bearer)])
DESCRIBED: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "application/x-protobuf": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {"schema": {"type": "object"}},
        },
    }
}


@router.post(
    "/v1/traces",
    response_class=Response,
    openapi_extra=DESCRIBED,
    responses={
        200: {"description": "ExportTraceServiceResponse, in the encoding of the request."},
        400: {"description": "The body cannot be read (google.rpc.Status, as for all errors)."},
        413: {"description": "The body is too large, or has too many spans."},
        503: {"description": "Nothing was taken: send it again after Retry-After seconds."},
    },
)
async def post_traces(request: Request) -> Response:
    """Take OpenTelemetry spans in (an `ExportTraceServiceRequest`); those of model calls become records.

    Spans that have no `gen_ai.*` attributes are ignored. docs/hook.md tells which attributes are read.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if (encoding := TYPES.get(kind)) is None:
        return _failed("json", 415, f"content-type {kind[:80]!r} is not OTLP; send {' or '.join(TYPES)}")
    try:
        body = await received(request)
        work = partial(_take, request.app.state.taps, body, request.headers.get("content-encoding", ""), encoding)
        rejected = await to_thread.run_sync(work, limiter=limiter(request))
    except BodyError as error:
        return _failed(encoding, error.status, f"{error.what}; {error.advice}")
    except TooMuchError as error:
        return _failed(encoding, 413, str(error))
    except RecordError as error:
        return _failed(encoding, 400, str(error))
    except Busy as error:
        return _failed(encoding, 503, f"nothing was taken: {error}")
    return _done(encoding, rejected)


def limiter(request: Request) -> CapacityLimiter:
    """Bounds the threads that take something in, so that reading goes on while Redis hangs."""
    found: CapacityLimiter = request.app.state.intake
    return found


def _take(taps: Taps, body: bytes, content_encoding: str, encoding: Encoding) -> list[str]:
    """Take a request in; returns the reasons of the spans that were rejected."""
    text = unpacked(body, content_encoding)
    found = read(from_protobuf(text) if encoding == "protobuf" else from_json(text))
    taken = taps.take([_reported(call) for call in found.calls])
    taps.count_spans(call=taken.accepted, attached=found.attached, ignored=found.ignored, rejected=len(found.rejected))
    return found.rejected


def _reported(call: SpanCall) -> Reported:
    arguments: dict[str, Any] = {
        "feature": call.feature,
        "trace_id": call.span.trace_id,
        "session_id": call.session_id,
        "user_id": call.user_id,
        "unit": call.unit,
        "segment": call.segment,
        "at": call.at,
        "latency_ms": call.latency_ms,
        **call.fields,
    }
    return Reported(call.release, call.record_id, arguments)


def _done(encoding: Encoding, rejected: list[str]) -> Response:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
        ExportTracePartialSuccess,
        ExportTraceServiceResponse,
    )

    if encoding == "json":
        partial_success = {"rejectedSpans": str(len(rejected)), "errorMessage": rejected[0]} if rejected else None
        return _answer(encoding, 200, orjson.dumps({"partialSuccess": partial_success} if partial_success else {}))
    answer = ExportTraceServiceResponse()
    if rejected:
        told = ExportTracePartialSuccess(rejected_spans=len(rejected), error_message=rejected[0])
        answer.partial_success.CopyFrom(told)
    return _answer(encoding, 200, answer.SerializeToString())


def _failed(encoding: Encoding, status: int, message: str) -> Response:
    """A google.rpc.Status: field 1 is the code, field 2 the message. Two fields need no generated class."""
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {}
    if encoding == "json":
        return _answer(encoding, status, orjson.dumps({"code": CODES[status], "message": message}), headers)
    text = message.encode("utf-8", "replace")
    size, length = bytearray(), len(text)
    while length > 127:
        size.append(length & 127 | 128)
        length >>= 7
    size.append(length)
    return _answer(encoding, status, bytes((8, CODES[status], 18)) + size + text, headers)


def _answer(encoding: Encoding, status: int, body: bytes, headers: dict[str, str] | None = None) -> Response:
    kind = next(name for name, found in TYPES.items() if found == encoding)
    return Response(body, status, headers, media_type=kind)
