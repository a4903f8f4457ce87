"""OTLP over HTTP: the real SDK, exporter and OpenAI instrumentation, through a real API into a real database."""

from __future__ import annotations

import gzip
import http.server
import json
import os
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.rpc.status_pb2 import Status
from intake_api import KEY, Door, door
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from services import Valkey
from stopwatch import assert_quick

from evalpipe.api.bodies import MAX_BYTES
from evalpipe.hook.sampling import position
from evalpipe.store.tables import meters, records

PROTOBUF = "application/x-protobuf"
APPLICATION = '''
"""An application with OpenTelemetry and without the hook."""
import sys
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
OpenAIInstrumentor().instrument()

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="x", max_retries=0)
messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "May I, I am ann@example.com?"}]
tool = {"type": "function", "function": {"name": "lookup", "parameters": {"type": "object"}}}
with trace.get_tracer("app").start_as_current_span("POST /chat") as span:
    span.set_attribute("evalpipe.feature", "refunds")
    span.set_attribute("evalpipe.variant", "canary")
    span.set_attribute("user.id", "user-7")
    client.chat.completions.create(model="gpt-6-luna", temperature=0.2, seed=3, messages=messages, tools=[tool])
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    for _ in client.chat.completions.create(model="gpt-6-luna", messages=messages, **stream):
        pass
    client.responses.create(model="gpt-6-luna", input="hello", instructions="Be nice.")
    try:
        client.chat.completions.create(model="missing", messages=messages)
    except openai.NotFoundError:
        pass
provider.shutdown()
'''

EMPTY_SPANS = ExportTraceServiceRequest(
    resource_spans=[{"scope_spans": [{"spans": [{}] * 200_000}]}]  # type: ignore[list-item]
).SerializeToString()
"""0.4 MB on the wire."""


class Model(http.server.BaseHTTPRequestHandler):
    """Answers as OpenAI's API does."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        """Chat completions, streamed or not; responses; an unknown model."""
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if asked["model"] == "missing":
            self._send(404, {"error": {"message": "no such model", "code": "model_not_found"}})
        elif self.path.endswith("/responses"):
            said = {"type": "output_text", "text": "Hello.", "annotations": []}
            turn = {"id": "m1", "type": "message", "role": "assistant", "status": "completed", "content": [said]}
            usage = {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7,
                     "output_tokens_details": {"reasoning_tokens": 0},
                     "input_tokens_details": {"cached_tokens": 1}}  # fmt: skip
            self._send(200, {"id": "resp_1", "object": "response", "created_at": 1, "model": "gpt-6-luna-2026",
                             "status": "completed", "parallel_tool_calls": False, "tool_choice": "auto", "tools": [],
                             "output": [turn], "usage": usage})  # fmt: skip
        elif asked.get("stream"):
            self._stream()
        else:
            call = {"id": "c1", "type": "function", "function": {"name": "lookup", "arguments": '{"order": 7}'}}
            turn = {"role": "assistant", "content": "Within 30 days.", "tool_calls": [call]}
            usage = {"prompt_tokens": 12, "completion_tokens": 6, "total_tokens": 18,
                     "prompt_tokens_details": {"cached_tokens": 4}}  # fmt: skip
            self._send(200, {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-6-luna-2026",
                             "choices": [{"index": 0, "finish_reason": "tool_calls", "message": turn}],
                             "usage": usage})  # fmt: skip

    def _send(self, status: int, answer: dict[str, Any], kind: str = "application/json") -> None:
        self._send_bytes(status, json.dumps(answer).encode(), kind)

    def _send_bytes(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self) -> None:
        base = {"id": "chatcmpl-2", "object": "chat.completion.chunk", "created": 1, "model": "gpt-6-luna-2026"}
        deltas = [({"role": "assistant", "content": "With"}, None), ({"content": "in 30 days."}, None), ({}, "stop")]
        chunks: list[dict[str, Any]] = [
            {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": end}]} for delta, end in deltas
        ]
        chunks.append(
            {**base, "choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}}
        )
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        self._send_bytes(200, "".join([*lines, "data: [DONE]\n\n"]).encode(), "text/event-stream")


@pytest.fixture
def model_url() -> Iterator[str]:
    """A model behind OpenAI's API."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Model)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.fixture
def api(migrated_sqlite_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    """An API that captures everything."""
    monkeypatch.setenv("EVALPIPE_SAMPLE_RATE", "1")
    with door(migrated_sqlite_url, redis_url, tmp_path) as opened:
        yield opened


def make_request(*spans: dict[str, Any], service: str = "desk") -> ExportTraceServiceRequest:
    """A request with one chat for each of ``spans``, which say what differs."""
    found = ExportTraceServiceRequest()
    group = found.resource_spans.add()
    group.resource.attributes.append(KeyValue(key="service.name", value=AnyValue(string_value=service)))
    scope = group.scope_spans.add()
    for number, told in enumerate(spans, 1):
        made = scope.spans.add()
        made.trace_id = told.pop("trace_id", number.to_bytes(16))
        made.span_id = told.pop("span_id", number.to_bytes(8))
        made.end_time_unix_nano = time.time_ns()
        made.start_time_unix_nano = made.end_time_unix_nano - 10**9
        texts = {"gen_ai.operation.name": "chat", "gen_ai.prompt": "May I?", "gen_ai.completion": "Yes.", **told}
        for name, text in texts.items():
            made.attributes.append(KeyValue(key=name, value=AnyValue(string_value=text)))
    return found


def as_json(request: ExportTraceServiceRequest) -> bytes:
    """The same in OTLP's JSON."""
    (group,) = request.resource_spans
    spans = [
        {"traceId": s.trace_id.hex(), "spanId": s.span_id.hex(), "startTimeUnixNano": str(s.start_time_unix_nano),
         "endTimeUnixNano": str(s.end_time_unix_nano),
         "attributes": [{"key": a.key, "value": {"stringValue": a.value.string_value}} for a in s.attributes]}
        for s in group.scope_spans[0].spans
    ]  # fmt: skip
    resource = [{"key": a.key, "value": {"stringValue": a.value.string_value}} for a in group.resource.attributes]
    body = {"resourceSpans": [{"resource": {"attributes": resource}, "scopeSpans": [{"spans": spans}]}]}
    return json.dumps(body).encode()


def test_an_application_with_opentelemetry_and_the_openai_client_has_records(api: Door, model_url: str):
    """SDK, exporter and instrumentation as they are; only their environment says where to send."""
    environ = {
        **os.environ,
        "OTEL_EXPORTER_OTLP_ENDPOINT": api.url,
        "OTEL_EXPORTER_OTLP_HEADERS": f"Authorization=Bearer%20{KEY}",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "SPAN_ONLY",
        "OTEL_RESOURCE_ATTRIBUTES": "service.name=desk,deployment.environment.name=staging,evalpipe.release.prompt=v7",
    }
    ran = subprocess.run([sys.executable, "-c", APPLICATION, model_url], env=environ, capture_output=True, text=True,
                         check=False, timeout=60)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    api.work()
    chat, stream, response, failed = api.payloads()

    assert [m["role"] for m in chat["messages"]] == ["system", "user"]
    assert chat["messages"][0]["content"] == "Be brief."
    assert "ann@example.com" not in json.dumps(chat), "it is redacted as everything is"
    assert chat["output"] == "Within 30 days."
    assert chat["tool_calls"] == [{"id": "c1", "name": "lookup", "arguments": {"order": 7}}]
    assert [tool["name"] for tool in chat["tools"]] == ["lookup"]
    assert chat["parameters"] == {"model": "gpt-6-luna", "temperature": 0.2, "seed": 3}
    assert (chat["model"], chat["finish_reason"]) == ("gpt-6-luna-2026", "tool_calls")
    assert (chat["input_tokens"], chat["output_tokens"], chat["cached_tokens"]) == (12, 6, 4)
    assert chat["feature"] == "refunds"
    assert chat["user_id"] == "user-7"
    assert chat["release"] == {"service": "desk", "variant": "canary", "environment": "staging", "prompt": "v7"}
    assert 0 < chat["latency_ms"] < 20_000

    assert stream["output"] == "Within 30 days."
    assert 0 < stream["ttft_ms"] <= stream["latency_ms"]
    assert (stream["input_tokens"], stream["output_tokens"]) == (11, 5)
    assert response["output"] == "Hello."
    assert response["messages"][0] == {"role": "system", "content": "Be nice."}
    assert failed["error"].startswith("openai.NotFoundError: ")
    assert "output" not in failed
    assert len({wire["trace_id"] for wire in api.payloads()}) == 1

    ledger = api.ledger()
    assert (ledger["observed"], ledger["sampled"], ledger["difference"]) == (4, 4, 0)
    assert (ledger["scored"], ledger["skipped"]) == (3, 1), "without an answer there is nothing to score"
    (row,) = [row for row in api.rows(meters) if row["service"] == "desk"]
    assert (row["calls"], row["errors"], row["input_tokens"], row["output_tokens"]) == (4, 1, 28, 13)


@pytest.mark.parametrize("packing", ["", "gzip", "deflate", "raw deflate"])
@pytest.mark.parametrize("kind", [PROTOBUF, "application/json; charset=utf-8"])
def test_both_encodings_are_taken_packed_or_not(api: Door, kind: str, packing: str):
    """The answer comes in the encoding of the request."""
    request = make_request({}, {"http.route": "/"})
    body = request.SerializeToString() if kind == PROTOBUF else as_json(request)
    raw = zlib.compressobj(wbits=-15)
    pack = {
        "": bytes,
        "gzip": gzip.compress,
        "deflate": zlib.compress,
        "raw deflate": lambda b: raw.compress(b) + raw.flush(),
    }
    headers = {"content_encoding": packing.rsplit(maxsplit=1)[-1]} if packing else {}
    answer = api.post("/v1/traces", pack[packing](body), content_type=kind, **headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == kind.partition(";")[0]
    if kind == PROTOBUF:
        assert not ExportTraceServiceResponse.FromString(answer.content).HasField("partial_success")
    else:
        assert answer.json() == {}
    api.work()
    assert [wire["output"] for wire in api.payloads()] == ["Yes.", "Yes."]


def test_an_export_that_is_repeated_counts_nothing_twice(api: Door):
    """A client that heard no answer sends the same again."""
    body = make_request({}, {}, {}).SerializeToString()
    for _ in range(3):
        assert api.post("/v1/traces", body, content_type=PROTOBUF).status_code == 200
        api.work()
    assert len(api.rows(records)) == 3
    ledger = api.ledger()
    assert (ledger["observed"], ledger["scored"], ledger["lost"], ledger["difference"]) == (3, 3, 0, 0)


def test_the_hooks_rule_samples_and_the_meter_counts_everything(
    migrated_sqlite_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whoever taps the same trace in another process captures it too."""
    monkeypatch.setenv("EVALPIPE_SAMPLE_RATE", "0.2")
    ids = [number.to_bytes(16, "big") for number in range(1, 301)]
    expected = {one.hex() for one in ids if position(one.hex()) < 0.2 * 2**32}
    with door(migrated_sqlite_url, redis_url, tmp_path) as api:
        body = make_request(*({"trace_id": one} for one in ids)).SerializeToString()
        assert api.post("/v1/traces", body, content_type=PROTOBUF).status_code == 200
        api.work()
        assert {row["trace_id"] for row in api.rows(records)} == expected
        assert {round(row["probability"], 6) for row in api.rows(records)} == {0.2}
        ledger = api.ledger()
    assert (ledger["observed"], ledger["sampled"]) == (300, len(expected))
    assert ledger["difference"] == 0


def test_each_service_has_its_own_row_and_unknown_spans_are_ignored(api: Door):
    """Spans without gen_ai attributes are everybody's; those of evalpipe's judges are nobody's."""
    plain = make_request({}, service="other")
    span = plain.resource_spans[0].scope_spans[0].spans.add()
    span.CopyFrom(plain.resource_spans[0].scope_spans[0].spans[0])
    del span.attributes[:]
    span.span_id = b"12345678"
    desk = make_request({"trace_id": b"2" * 16}, service="desk")
    judge = make_request({"trace_id": b"3" * 16}, service="evalpipe")
    for request in (plain, desk, judge):
        assert api.post("/v1/traces", request.SerializeToString(), content_type=PROTOBUF).status_code == 200
    api.work()
    assert sorted(row["service"] for row in api.rows(meters)) == ["desk", "other"]
    told = api.client.get("/metrics").text
    assert 'evalpipe_otlp_spans_total{outcome="call"} 2.0' in told
    assert 'evalpipe_otlp_spans_total{outcome="ignored"} 2.0' in told


def test_spans_that_cannot_be_used_are_a_partial_success(api: Door):
    """The others are taken."""
    request = make_request({}, {"trace_id": b"short"})
    answer = api.post("/v1/traces", request.SerializeToString(), content_type=PROTOBUF)
    told = ExportTraceServiceResponse.FromString(answer.content).partial_success
    assert (answer.status_code, told.rejected_spans) == (200, 1)
    assert "trace id" in told.error_message
    answer = api.post("/v1/traces", as_json(request))
    assert answer.json()["partialSuccess"]["rejectedSpans"] == "1"
    api.work()
    assert len(api.rows(records)) == 1


def test_spans_of_an_odd_shape_cost_neither_the_request_nor_the_process(api: Door):
    """Nested without end, or with indexes within indexes: each is taken as far as it makes sense."""
    deep = "[" * 1000 + "]" * 1000
    request = make_request(
        {"gen_ai.input.messages": deep},
        {"gen_ai.output.messages": deep},
        {"gen_ai.prompt": "", "gen_ai.prompt.0." + "tool_calls.0." * 3000 + "name": "x"},
        {},
    )
    for body, kind in ((request.SerializeToString(), PROTOBUF), (as_json(request), "application/json")):
        assert api.post("/v1/traces", body, content_type=kind).status_code == 200
    api.work()
    assert len(api.rows(records)) == 4
    assert api.payloads()[-1]["output"] == "Yes."


def test_a_span_without_a_start_has_no_latency(api: Door):
    """Unknown is not 0 ms."""
    request = make_request({})
    request.resource_spans[0].scope_spans[0].spans[0].start_time_unix_nano = 0
    assert api.post("/v1/traces", request.SerializeToString(), content_type=PROTOBUF).status_code == 200
    api.work()
    assert "latency_ms" not in api.payloads()[0]
    assert api.get("/v1/meter")["meters"][0]["latency_ms"] is None


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"\xff\xff nonsense", {}, 400),
        (b"\xff\xff nonsense", {"content_encoding": "gzip"}, 400),
        (gzip.compress(b"x" * 100)[:-12], {"content_encoding": "gzip"}, 400),
        (gzip.compress(bytes(MAX_BYTES + 1)), {"content_encoding": "gzip"}, 413),
        (gzip.compress(bytes(MAX_BYTES)) * 3, {"content_encoding": "gzip"}, 413),
        (gzip.compress(b"") * 100_000, {"content_encoding": "gzip"}, 400),
        (b"x" * 100, {"content_encoding": "zstd"}, 415),
    ],
    ids=["garbage", "no gzip", "half a gzip", "bomb", "bomb of members", "too many members", "zstd"],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_in_the_requests_encoding(
    api: Door, body: bytes, headers: dict[str, str], status: int
):
    """A google.rpc.Status that says what to do; the server goes on."""
    answer = api.post("/v1/traces", body, content_type=PROTOBUF, **headers)
    assert answer.status_code == status
    told = Status.FromString(answer.content)
    assert told.code in {3, 8}
    assert told.message
    answer = api.post("/v1/traces", body, **headers)
    assert answer.status_code == status
    assert answer.json()["message"]


def test_more_spans_than_may_be_are_refused_with_advice(api: Door):
    """Before they are built; in both encodings."""
    request = ExportTraceServiceRequest.FromString(EMPTY_SPANS)
    answer = api.post("/v1/traces", gzip.compress(EMPTY_SPANS), content_type=PROTOBUF, content_encoding="gzip")
    told = Status.FromString(answer.content)
    assert (answer.status_code, told.code) == (413, 8)
    assert "more than 20000 spans; send smaller batches" in told.message
    answer = api.post("/v1/traces", as_json(request))
    assert answer.status_code == 413
    assert "smaller batches" in answer.json()["message"]


def test_a_body_that_is_too_large_and_an_unknown_type_are_refused(api: Door):
    """Before anything is unpacked."""
    assert api.post("/v1/traces", bytes(MAX_BYTES + 1), content_type=PROTOBUF).status_code == 413
    assert api.post("/v1/traces", b"{}", content_type="text/plain").status_code == 415
    assert api.client.post("/v1/traces", content=b"{}", headers={"Authorization": "Bearer no"}).status_code == 401


def test_while_redis_is_away_nothing_is_taken_and_the_exporter_is_told_to_come_back(
    migrated_sqlite_url: str, valkey: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """503 with Retry-After, at once; afterwards the same request is taken, once."""
    monkeypatch.setenv("EVALPIPE_SAMPLE_RATE", "1")
    with door(migrated_sqlite_url, valkey.url, tmp_path) as api:
        body = make_request({}, {}).SerializeToString()
        valkey.stop()
        for _ in range(3):
            started = time.monotonic()
            answer = api.post("/v1/traces", body, content_type=PROTOBUF)
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "5"
            assert Status.FromString(answer.content).code == 14
            assert_quick(time.monotonic() - started, 3)
        valkey.start()
        time.sleep(1.1)
        assert api.post("/v1/traces", body, content_type=PROTOBUF).status_code == 200
        api.work()
        assert len(api.rows(records)) == 2
        assert api.ledger()["difference"] == 0


def test_what_was_taken_is_shipped_when_the_api_stops(
    migrated_sqlite_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A deployment of the API loses nothing."""
    monkeypatch.setenv("EVALPIPE_SAMPLE_RATE", "1")
    monkeypatch.setenv("EVALPIPE_FLUSH_INTERVAL_S", "60")
    with door(migrated_sqlite_url, redis_url, tmp_path) as api:
        body = make_request({}).SerializeToString()
        assert api.post("/v1/traces", body, content_type=PROTOBUF).status_code == 200
        assert api.wiring.queue.lengths()["ingest"] == 0
    import redis

    with redis.Redis.from_url(redis_url) as client:
        assert client.llen("evalpipe.ingest") == 1
