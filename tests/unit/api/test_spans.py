"""OpenTelemetry's GenAI spans as calls: every way in which the conventions have written them."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList

from evalpipe.api.counting import MAX_PARTS, MAX_SPANS, TooMuchError, check_protobuf
from evalpipe.api.spans import Read, SpanCall, read, record_id
from evalpipe.api.traces import DEEPEST, Event, Span, from_json, from_protobuf
from evalpipe.errors import RecordError
from evalpipe.hook.call import Call

TRACE = "0af7651916cd43dd8448eb211c80319c"
AT = 1_763_800_000
RESOURCE = {"service.name": "desk", "deployment.environment.name": "staging", "service.version": "4.2"}


def span(number: int = 1, parent: int = 0, *, start: float = 0.0, end: float = 1.0, **options: Any) -> Span:
    """A span of the trace; times in seconds."""
    attributes = options.pop("attributes", {"gen_ai.operation.name": "chat"})
    values: dict[str, Any] = {
        "trace_id": TRACE, "span_id": f"{number:016x}", "parent_id": f"{parent:016x}" if parent else "",
        "start_ns": int((AT + start) * 1e9), "end_ns": int((AT + end) * 1e9), "resource": RESOURCE,
    }  # fmt: skip
    return Span(**{**values, "attributes": attributes, **options})


def chat(number: int = 1, parent: int = 0, *, start: float = 0.0, **attributes: Any) -> Span:
    """A span of a chat; the names of the attributes have ``__`` for ``.``."""
    told = {name.replace("__", "."): value for name, value in attributes.items()}
    return span(number, parent, start=start, end=start + 1, attributes={"gen_ai.operation.name": "chat", **told})


def one(*spans: Span) -> SpanCall:
    """The only call in these spans."""
    (call,) = read(spans).calls
    return call


def fields(*spans: Span) -> dict[str, Any]:
    """The fields of the only call."""
    return one(*spans).fields


def test_every_field_of_a_call_is_one_that_the_hook_knows():
    """Whatever a span tells, the hook has a place for it."""
    told = fields(
        chat(
            gen_ai__input__messages="hi", gen_ai__output__messages="ho", gen_ai__usage__input_tokens=3,
            gen_ai__usage__output_tokens=2, gen_ai__usage__cache_read__input_tokens=1, gen_ai__usage__cost=0.5,
            gen_ai__response__time_to_first_chunk=0.25, gen_ai__request__model="m", error__type="Timeout",
            gen_ai__tool__definitions=[{"name": "t"}], gen_ai__response__finish_reasons=["stop"],
        )
    )  # fmt: skip
    assert all(hasattr(Call, name) for name in told), sorted(told)
    assert {"messages", "output", "tools", "parameters", "ttft_ms", "cost_usd", "error"} <= told.keys()


def test_the_newest_conventions_are_read_whole():
    """What opentelemetry-instrumentation-genai-openai 1.3b0 sends for a chat with a tool."""
    call = one(
        span(
            attributes={
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "openai",
                "gen_ai.request.model": "gpt-6-luna",
                "gen_ai.request.temperature": 0.2,
                "gen_ai.request.seed": 3,
                "gen_ai.response.finish_reasons": ["tool_calls"],
                "gen_ai.response.model": "gpt-6-luna-2026",
                "gen_ai.response.id": "chatcmpl-1",
                "gen_ai.usage.input_tokens": 12,
                "gen_ai.usage.output_tokens": 6,
                "gen_ai.usage.cache_read.input_tokens": 4,
                "gen_ai.response.time_to_first_chunk": 0.0075,
                "gen_ai.conversation.id": "c-1",
                "gen_ai.system_instructions": '[{"content":"Be brief.","type":"text"}]',
                "gen_ai.input.messages": json.dumps(
                    [
                        {"role": "user", "parts": [{"content": "May I?", "type": "text"}], "name": None},
                        {
                            "role": "assistant",
                            "parts": [{"type": "tool_call", "id": "c0", "name": "f", "arguments": {}}],
                        },
                        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c0", "response": {"n": 7}}]},
                    ]
                ),
                "gen_ai.output.messages": json.dumps(
                    [
                        {
                            "role": "assistant",
                            "parts": [
                                {"type": "reasoning", "content": "hm"},
                                {"type": "tool_call", "id": "c1", "name": "lookup", "arguments": {"order": 7}},
                                {"type": "text", "content": "Within 30 days."},
                            ],
                            "finish_reason": "tool_call",
                        }
                    ]
                ),
                "gen_ai.tool.definitions": '[{"name":"lookup","type":"function"}]',
            },
            end=1.5,
        )
    )
    assert call.fields == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "May I?"},
            {"role": "assistant", "content": "", "tool_calls": [{"id": "c0", "name": "f", "arguments": {}}]},
            {"role": "tool", "tool_call_id": "c0", "content": '{"n": 7}'},
        ],
        "output": "Within 30 days.",
        "tool_calls": [{"id": "c1", "name": "lookup", "arguments": {"order": 7}}],
        "tools": [{"name": "lookup", "type": "function"}],
        "parameters": {"model": "gpt-6-luna", "temperature": 0.2, "seed": 3},
        "model": "gpt-6-luna-2026",
        "finish_reason": "tool_calls",
        "input_tokens": 12,
        "output_tokens": 6,
        "cached_tokens": 4,
        "ttft_ms": 7.5,
        "attributes": {
            "span_id": f"{1:016x}",
            "provider": "openai",
            "response_id": "chatcmpl-1",
            "service_version": "4.2",
        },
    }
    assert (call.session_id, call.at, call.latency_ms) == ("c-1", AT + 1.5, 1500.0)
    assert call.release.service == "desk"
    assert call.release.environment == "staging"
    assert call.record_id == record_id(TRACE, f"{1:016x}")


QUESTION = [{"role": "user", "content": "May I?"}]


@pytest.mark.parametrize(
    "source",
    [
        chat(gen_ai__input__messages='[{"role":"user","parts":[{"type":"text","content":"May I?"}]}]',
             gen_ai__output__messages=[{"role": "assistant", "parts": [{"type": "text", "content": "Yes."}]}]),
        chat(gen_ai__prompt=json.dumps(QUESTION), gen_ai__completion='[{"role":"assistant","content":"Yes."}]'),
        chat(gen_ai__prompt="May I?", gen_ai__completion="Yes."),
        chat(**{"gen_ai.prompt.0.role": "user", "gen_ai.prompt.0.content": "May I?",
                "gen_ai.completion.0.role": "assistant", "gen_ai.completion.0.content": "Yes."}),
        span(attributes={"gen_ai.system": "openai", "gen_ai.request.model": "m"}, events=(
            Event("gen_ai.content.prompt", {"gen_ai.prompt": json.dumps(QUESTION)}),
            Event("gen_ai.content.completion", {"gen_ai.completion": '[{"role":"assistant","content":"Yes."}]'}))),
        span(events=(Event("gen_ai.user.message", {"content": "May I?"}),
                     Event("gen_ai.choice", {"index": 0, "finish_reason": "stop", "message": '{"content":"Yes."}'}))),
        span(events=(Event("gen_ai.user.message", {"gen_ai.event.content": '{"content":"May I?"}'}),
                     Event("gen_ai.choice", {"gen_ai.event.content": '{"message":{"content":"Yes."}}'}))),
        span(events=(Event("gen_ai.client.inference.operation.details", {
            "gen_ai.input.messages": [{"role": "user", "parts": [{"type": "text", "content": "May I?"}]}],
            "gen_ai.output.messages": [{"role": "assistant", "parts": [{"type": "text", "content": "Yes."}]}]}),)),
    ],
    ids=["parts", "json", "text", "openllmetry", "content-events", "message-events", "azure-events", "details-event"],
)  # fmt: skip
def test_messages_are_read_in_every_form_they_ever_had(source: Span):
    """Attributes, numbered attributes, events; JSON or structured."""
    told = fields(source)
    assert told["messages"] == QUESTION
    assert told["output"] == "Yes."


def test_openllmetry_tools_and_old_token_names_are_read():
    """The names before 2025."""
    told = fields(
        span(
            attributes={
                "llm.request.type": "chat", "gen_ai.system": "OpenAI", "gen_ai.request.model": "m",
                "gen_ai.usage.prompt_tokens": 9, "gen_ai.usage.completion_tokens": 3,
                "gen_ai.usage.cache_read_input_tokens": 2,
                "gen_ai.completion.0.finish_reason": "tool_calls",
                "gen_ai.completion.0.tool_calls.0.id": "c1",
                "gen_ai.completion.0.tool_calls.0.name": "lookup",
                "gen_ai.completion.0.tool_calls.0.arguments": '{"order": 7}',
                "llm.request.functions.0.name": "lookup",
                "llm.request.functions.0.parameters": '{"type": "object"}',
            }
        )
    )  # fmt: skip
    assert told["tool_calls"] == [{"id": "c1", "name": "lookup", "arguments": '{"order": 7}'}]
    assert told["tools"] == [{"name": "lookup", "parameters": {"type": "object"}}]
    assert (told["input_tokens"], told["output_tokens"], told["cached_tokens"]) == (9, 3, 2)
    assert told["finish_reason"] == "tool_calls"
    assert told["attributes"]["provider"] == "OpenAI"


def test_cached_tokens_that_were_counted_apart_are_part_of_the_input():
    """More cached than taken means that the sender counts them beside the others."""
    told = fields(chat(gen_ai__usage__input_tokens=5, gen_ai__usage__cache_read__input_tokens=100))
    assert (told["input_tokens"], told["cached_tokens"]) == (105, 100)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"failed": True, "message": "Connection error."}, "Error: Connection error."),
        (
            {"failed": True, "message": "no", "attributes": {"gen_ai.operation.name": "chat", "error.type": "Bad"}},
            "Bad: no",
        ),
        ({"attributes": {"gen_ai.operation.name": "chat", "error.type": "timeout"}}, "timeout"),
        ({"failed": True, "events": (Event("exception", {"exception.type": "E", "exception.message": "x"}),)}, "E: x"),
        ({"events": (Event("exception", {"exception.type": "E"}),)}, ""),
    ],
)
def test_errors_are_class_and_message(given: dict[str, Any], expected: str):
    """As the hook writes them; an exception that was handled is none."""
    assert fields(span(**given)).get("error", "") == expected


@pytest.mark.parametrize("name", ["chat", "text_completion", "generate_content"])
def test_model_calls_are_calls(name: str):
    """Whatever the provider names them."""
    assert len(read([span(attributes={"gen_ai.operation.name": name})]).calls) == 1


@pytest.mark.parametrize(
    "attributes",
    [
        {"http.request.method": "GET"},
        {"gen_ai.operation.name": "embeddings", "gen_ai.request.model": "e"},
        {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "a", "gen_ai.request.model": "m"},
        {"gen_ai.operation.name": "create_agent"},
        {"gen_ai.operation.name": "chat", "evalpipe.judge": True},
        {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "alone"},
    ],
)
def test_everything_else_is_ignored_and_counted(attributes: dict[str, Any]):
    """Embeddings, agents, HTTP, a tool without its call, and evalpipe's own judges."""
    assert read([span(attributes=attributes)]) == Read(ignored=1)


def test_calls_of_evalpipe_itself_are_never_records():
    """A judge that was judged would be judged again."""
    marked = span(1, attributes={"evalpipe.judge": "true"})
    within = chat(2, 1)
    own = span(3, resource={"service.name": "evalpipe"})
    assert read([marked, within, own]) == Read(ignored=3)


def test_release_and_place_come_from_span_parents_and_resource():
    """The nearest wins; the six versions have their own names."""
    resource = {"service.name": "desk", "evalpipe.release.model": "m-1", "evalpipe.variant": "baseline",
                "deployment.environment": "production", "evalpipe.release.index": "i-1"}  # fmt: skip
    parent = span(1, resource=resource, attributes={
        "evalpipe.variant": "canary", "enduser.id": "u-1", "session.id": "s-1", "evalpipe.segment": "gold",
        "gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "refunds"})  # fmt: skip
    child = span(2, 1, resource=resource, attributes={
        "gen_ai.operation.name": "chat", "gen_ai.prompt.name": "answer", "gen_ai.prompt.version": "7",
        "evalpipe.release.index": "i-2"})  # fmt: skip
    call = one(parent, child)
    release = call.release
    assert (release.service, release.variant, release.environment) == ("desk", "canary", "production")
    assert (release.model, release.prompt, release.index, release.retrieval) == ("m-1", "answer@7", "i-2", "")
    assert (call.feature, call.segment, call.user_id, call.session_id) == ("refunds", "gold", "u-1", "s-1")


def test_the_feature_is_the_given_one_else_the_agent_else_the_prompt():
    """In this order."""
    assert one(chat(gen_ai__prompt__name="p")).feature == "p"
    assert one(chat(gen_ai__prompt__name="p", gen_ai__agent__name="a")).feature == "a"
    assert one(chat(gen_ai__agent__name="a", evalpipe__feature="f")).feature == "f"


def test_tools_and_retrieval_are_told_with_the_call_they_belong_to():
    """A tool with the call that asked for it, documents with the call that read them."""
    agent = span(1, attributes={"gen_ai.operation.name": "invoke_agent"}, end=9)
    asked = json.dumps(
        [{"role": "assistant", "parts": [{"type": "tool_call", "id": "c1", "name": "f", "arguments": {}}]}]
    )
    first = chat(2, 1, start=1, gen_ai__output__messages=asked)
    tool = span(3, 1, start=2.5, end=3, attributes={
        "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "f", "gen_ai.tool.call.id": "c1",
        "gen_ai.tool.call.result": '{"days": 30}'})  # fmt: skip
    found = span(4, 1, start=4, end=4.5, attributes={
        "gen_ai.operation.name": "retrieval",
        "gen_ai.retrieval.documents": '[{"id": "d1", "score": 0.9, "content": "30 days"}, {"id": "d2"}]'})  # fmt: skip
    second = chat(5, 1, start=5)
    elsewhere = span(6, 77, attributes={"gen_ai.operation.name": "retrieval"})
    done = read([second, found, tool, first, agent, elsewhere])
    calls = {call.span.span_id[-1]: call for call in done.calls}
    assert calls["2"].fields["tool_calls"] == [{"id": "c1", "name": "f", "arguments": {}, "result": {"days": 30}}]
    assert calls["5"].fields["context"] == [{"id": "d1", "score": 0.9, "text": "30 days"}, {"id": "d2"}]
    assert "context" not in calls["2"].fields
    assert (done.attached, done.ignored) == (2, 2)


@pytest.mark.parametrize(
    "given", [{"trace_id": ""}, {"trace_id": "0" * 32}, {"trace_id": "x" * 32}, {"span_id": "12"}, {"end_ns": 0}]
)
def test_a_call_without_ids_or_time_is_rejected_with_the_reason(given: dict[str, Any]):
    """It could be counted twice, or in no hour."""
    done = read([span(**given), chat(2)])
    assert len(done.calls) == 1
    (reason,) = done.rejected
    assert "id of" in reason or "endTimeUnixNano" in reason


def test_a_circle_of_parents_ends():
    """Spans may name each other as parents."""
    assert len(read([chat(1, 2), chat(2, 1), span(3, 1, attributes={"gen_ai.tool.name": "t"})]).calls) == 2


@pytest.mark.parametrize("junk", [None, 3, True, "{", "[1, null, {}]", [[]], {"a": [{"parts": 4}]}, [{"parts": [None]}],
                                  [{"role": None, "content": {"x": 1}}], [{"message": 7}], "", "\x00"])  # fmt: skip
def test_no_value_breaks_the_reading(junk: Any):
    """Telemetry is written by strangers."""
    names = ("gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions", "gen_ai.prompt",
             "gen_ai.completion", "gen_ai.tool.definitions", "gen_ai.usage.input_tokens", "gen_ai.request.model",
             "gen_ai.response.finish_reasons", "gen_ai.retrieval.documents", "gen_ai.prompt.0.tool_calls.0.name",
             "gen_ai.response.time_to_first_chunk", "gen_ai.conversation.id")  # fmt: skip
    attributes = {"gen_ai.operation.name": "chat", **dict.fromkeys(names, junk)}
    events = (Event("gen_ai.choice", {"message": junk}), Event("gen_ai.user.message", {"content": junk}))
    assert len(read([span(1, attributes=attributes, events=events)]).calls) == 1
    assert len(read([span(1, events=events)]).calls) == 1


# The two encodings


def request() -> ExportTraceServiceRequest:
    """A request with every kind of value in it."""
    found = ExportTraceServiceRequest()
    group = found.resource_spans.add()
    group.resource.attributes.append(KeyValue(key="service.name", value=AnyValue(string_value="desk")))
    made = group.scope_spans.add().spans.add()
    made.trace_id, made.span_id, made.parent_span_id = bytes.fromhex(TRACE), bytes(7) + b"\x01", bytes(7) + b"\x02"
    made.name, made.start_time_unix_nano, made.end_time_unix_nano = "chat", AT * 10**9, AT * 10**9 + 5
    made.status.code, made.status.message = 2, "broken"  # type: ignore[assignment]
    values = {
        "text": AnyValue(string_value="ü"), "whole": AnyValue(int_value=-(2**60)), "yes": AnyValue(bool_value=True),
        "real": AnyValue(double_value=0.5), "raw": AnyValue(bytes_value=b"\x00\x01"), "none": AnyValue(),
        "list": AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1), AnyValue(string_value="a")])),
        "map": AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key="k", value=AnyValue(bool_value=False))])),
    }  # fmt: skip
    for key, value in values.items():
        made.attributes.append(KeyValue(key=key, value=value))
    event = made.events.add()
    event.name = "gen_ai.choice"
    event.attributes.append(KeyValue(key="index", value=AnyValue(int_value=0)))
    return found


AS_JSON = {
    "resourceSpans": [
        {
            "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "desk"}}]},
            "scopeSpans": [
                {
                    "spans": [
                        {
                            "traceId": TRACE.upper(), "spanId": f"{1:016X}", "parentSpanId": f"{2:016x}",
                            "name": "chat",
                            "startTimeUnixNano": str(AT * 10**9), "endTimeUnixNano": AT * 10**9 + 5,
                            "status": {"code": 2, "message": "broken"}, "unknownField": {"x": 1},
                            "attributes": [
                                {"key": "text", "value": {"stringValue": "ü"}},
                                {"key": "whole", "value": {"intValue": str(-(2**60))}},
                                {"key": "yes", "value": {"boolValue": True}},
                                {"key": "real", "value": {"doubleValue": 0.5}},
                                {"key": "raw", "value": {"bytesValue": base64.b64encode(b"\x00\x01").decode()}},
                                {"key": "none", "value": {}},
                                {"key": "list", "value": {"arrayValue": {"values": [{"intValue": 1},
                                                                                    {"stringValue": "a"}]}}},
                                {"key": "map", "value": {"kvlistValue": {"values": [
                                    {"key": "k", "value": {"boolValue": False}}]}}},
                            ],
                            "events": [{"name": "gen_ai.choice",
                                        "attributes": [{"key": "index", "value": {"intValue": "0"}}]}],
                        }
                    ]
                }
            ],
        }
    ]
}  # fmt: skip


def test_both_encodings_mean_the_same_spans():
    """Hex ids and whole numbers as texts in JSON, bytes in protobuf."""
    (binary,) = from_protobuf(request().SerializeToString())
    (text,) = from_json(json.dumps(AS_JSON).encode())
    assert binary == text
    assert binary.failed
    assert binary.attributes["map"] == {"k": False}
    assert binary.attributes["whole"] == -(2**60)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"nonsense", b'{"resourceSpans": 3}', b'{"resourceSpans": [7]}',
     b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"startTimeUnixNano": "x"}]}]}]}',
     b'{"resourceSpans": [{"resource": {"attributes": [{"value": {}}]}}]}', b"[" * 100_000],
)  # fmt: skip
def test_what_is_no_request_in_json_is_refused(body: bytes):
    """With a reason, never with another exception."""
    with pytest.raises(RecordError, match="no ExportTraceServiceRequest"):
        from_json(body)


def test_what_is_no_request_in_protobuf_is_refused():
    """Garbage has its reason too."""
    with pytest.raises(RecordError, match="protobuf"):
        from_protobuf(b"\xff\xff nonsense")


def test_numbers_beyond_all_bounds_are_no_numbers():
    """A time or a count of four thousand digits is neither."""
    huge = "9" * 4000
    told = {"traceId": TRACE, "spanId": f"{1:016x}", "startTimeUnixNano": huge, "endTimeUnixNano": str(AT * 10**9),
            "attributes": [{"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}},
                           {"key": "gen_ai.usage.input_tokens", "value": {"intValue": huge}}]}  # fmt: skip
    late = {**told, "spanId": f"{2:016x}", "endTimeUnixNano": huge}
    done = read(from_json(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [told, late]}]}]}).encode()))
    assert len(done.rejected) == 1
    assert "input_tokens" not in done.calls[0].fields


def test_values_that_are_too_deep_are_left_out():
    """Nesting costs nothing to send."""
    value: dict[str, Any] = {"intValue": 1}
    for _ in range(DEEPEST + 5):
        value = {"arrayValue": {"values": [value]}}
    body = {"resourceSpans": [{"scopeSpans": [{"spans": [{"attributes": [{"key": "deep", "value": value}]}]}]}]}
    (found,) = from_json(json.dumps(body).encode())
    assert str(found.attributes["deep"]).count("[") == DEEPEST + 1


def test_a_call_without_a_start_has_no_latency():
    """Unknown is not 0 ms, which would win every percentile."""
    assert one(span(start_ns=0)).latency_ms is None


@pytest.mark.parametrize(("ahead_s", "kept"), [(0, True), (3599, True), (3601, False), (10**8, False)])
def test_a_call_of_the_future_ended_when_it_was_told(ahead_s: int, kept: bool):
    """A clock that is far off must not make rows of hours to come."""
    (call,) = read([span(end=ahead_s)], AT).calls
    assert call.at == (AT + ahead_s if kept else AT)


def test_a_span_that_nobody_thought_of_costs_no_other(monkeypatch: pytest.MonkeyPatch):
    """It is rejected, and named."""

    def broken(*_: object) -> None:
        raise RecursionError("maximum recursion depth exceeded")

    monkeypatch.setattr("evalpipe.api.spans.parts.messages", broken)
    done = read([chat(1, gen_ai__prompt="x"), chat(2)])
    assert [call.span.span_id for call in done.calls] == [f"{2:016x}"]
    assert "RecursionError" in done.rejected[0]


def test_json_that_is_nested_without_end_stays_a_text():
    """Nobody wrote it, and nothing has to walk it."""
    deep = "[" * 1000 + "]" * 1000
    assert fields(chat(gen_ai__input__messages=deep))["messages"] == [{"role": "user", "content": deep}]
    told = fields(chat(**{"gen_ai__prompt.0." + "tool_calls.0." * 3000 + "name": "x"}))
    assert len(told["messages"][0]["tool_calls"]) == 1


def test_thousands_of_tools_of_one_call_are_told_in_time():
    """Each is found by its id, not by looking through all."""
    tools = [
        span(
            number, 9, attributes={"gen_ai.operation.name": "execute_tool", "gen_ai.tool.call.id": f"t-{number % 8000}"}
        )
        for number in range(10, 16_010)
    ]
    started = time.process_time()
    told = fields(chat(1, 9, start=-5), *tools)["tool_calls"]
    assert len(told) == 8000
    assert time.process_time() - started < 5


def empty(field: int, inside: bytes = b"", times: int = 1) -> bytes:
    """A protobuf field that holds a message, several times."""
    length, size = len(inside), bytearray()
    while length > 127:
        size.append(length & 127 | 128)
        length >>= 7
    return (bytes([field << 3 | 2, *size, length]) + inside) * times


MANY = 5_001
TOO_MUCH = {
    "spans": empty(1, empty(2, empty(2, times=MAX_SPANS + 1))),
    "scopes": empty(1, empty(2, times=MANY)),
    "attributes": empty(1, empty(2, empty(2, empty(9, times=MANY)))),
    "values": empty(1, empty(1, empty(1, empty(2, empty(5, empty(1, times=MANY)))))),
}


@pytest.mark.parametrize("body", TOO_MUCH.values(), ids=TOO_MUCH)
def test_a_small_body_that_would_fill_the_memory_is_refused_before_it_is_built(
    body: bytes, monkeypatch: pytest.MonkeyPatch
):
    """Two bytes each on the wire are hundreds in memory."""
    assert MAX_PARTS == 1_000_000
    monkeypatch.setattr("evalpipe.api.counting.MAX_PARTS", MANY - 1)
    with pytest.raises(TooMuchError, match="smaller batches"):
        from_protobuf(body)


@pytest.mark.parametrize(
    "spans", [[{}] * (MAX_SPANS + 1), [{"attributes": [{}] * (MANY + 10)}]], ids=["spans", "attributes"]
)
def test_so_is_one_in_json(spans: list[Any], monkeypatch: pytest.MonkeyPatch):
    """By its braces, before it is parsed."""
    monkeypatch.setattr("evalpipe.api.counting.MAX_PARTS", max(MANY - 1, len(spans) + 10))
    body = orjson.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]})
    with pytest.raises(TooMuchError):
        from_json(body)


def test_as_many_spans_as_may_be_are_read():
    """The bound itself is fine, in both encodings."""
    assert len(from_protobuf(empty(1, empty(2, empty(2, times=MAX_SPANS))))) == MAX_SPANS
    assert len(from_json(orjson.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [{}] * MAX_SPANS}]}]}))) == MAX_SPANS


@given(st.binary(max_size=60))
def test_counting_never_fails(body: bytes):
    """What is damaged is for the parser to refuse."""
    check_protobuf(body)
    check_protobuf(empty(1, empty(2, empty(2, body))))


def test_a_release_is_not_longer_than_the_store_takes():
    """A whole prompt in a version's place is cut, and costs no row of the meter."""
    call = one(span(resource={"service.name": "s" * 500, "evalpipe.release.prompt": "p" * 5000}))
    assert (call.release.service, call.release.prompt) == ("s" * 200, "p" * 200)
