"""Wrapped clients of OpenAI and Anthropic, against a real local server that speaks their JSON."""

from __future__ import annotations

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anthropic
import openai
import pytest

from evalpipe.errors import ConfigError

ANSWER = "Your refund, for bob@example.com, is on its way."
TOOL = {"type": "function", "function": {"name": "lookup", "parameters": {"type": "object"}}}
MESSAGES = [{"role": "user", "content": "Where is my refund?"}]


class Provider(BaseHTTPRequestHandler):
    """Chat completions, responses and messages, plain and streamed; the model ``broken`` answers 400."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        """Answer as the provider of the path would."""
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if request["model"] == "broken":
            return self._send(400, json.dumps({"error": {"message": "no such model", "type": "invalid"}}))
        if request.get("stream"):
            return self._send(200, STREAMS[self.path], "text/event-stream")
        return self._send(200, json.dumps(ANSWERS[self.path](request)))

    def _send(self, status, text, kind="application/json"):
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Nothing."""


def completion(request):
    """A chat completion; with tools it calls the tool."""
    message = {"role": "assistant", "content": ANSWER}
    if request.get("tools"):
        call = {"id": "c1", "type": "function", "function": {"name": "lookup", "arguments": '{"id": 7}'}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
    return {
        "id": "x", "object": "chat.completion", "created": 1, "model": "gpt-5-2026",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls" if "tools" in request else "stop"}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
    }  # fmt: skip


def response(_request):
    """An object of the responses API, with a message and a function call."""
    return {
        "id": "r", "object": "response", "created_at": 1, "model": "gpt-5-2026", "status": "completed",
        "output": [
            {"id": "m", "type": "message", "role": "assistant", "status": "completed",
             "content": [{"type": "output_text", "text": ANSWER, "annotations": []}]},
            {"id": "f", "type": "function_call", "call_id": "c1", "name": "lookup", "arguments": "{}",
             "status": "completed"},
        ],
        "parallel_tool_calls": False, "tool_choice": "auto", "tools": [],
        "usage": {"input_tokens": 21, "output_tokens": 9, "total_tokens": 30,
                  "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}},
    }  # fmt: skip


def message(_request):
    """A message of Anthropic's, with text and a tool's use."""
    return {
        "id": "m", "type": "message", "role": "assistant", "model": "claude-5", "stop_reason": "end_turn",
        "stop_sequence": None,
        "content": [{"type": "text", "text": ANSWER},
                    {"type": "tool_use", "id": "t1", "name": "lookup", "input": {"id": 7}}],
        "usage": {"input_tokens": 31, "output_tokens": 5, "cache_read_input_tokens": 100,
                  "cache_creation_input_tokens": 0},
    }  # fmt: skip


ANSWERS = {"/v1/chat/completions": completion, "/v1/responses": response, "/v1/messages": message}
CHUNK = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5",
         "choices": [{"index": 0, "delta": {"content": "word"}, "finish_reason": None}]}  # fmt: skip
STREAMS = {"/v1/chat/completions": f"data: {json.dumps(CHUNK)}\n\ndata: [DONE]\n\n"}


@pytest.fixture(scope="module")
def base_url():
    """The URL of the local provider."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def openai_client(base_url):
    """An ordinary client of OpenAI's."""
    with openai.OpenAI(api_key="k", base_url=base_url + "/v1", max_retries=0) as client:
        yield client


def test_a_chat_completion_is_captured_with_its_whole_context(hook, queue, openai_client):
    """Messages as sent, parameters, answer, model returned, usage and finish reason; the caller gets what it got."""
    client = hook.wrap(openai_client, feature="refunds")
    assert client is openai_client
    messages = [dict(one) for one in MESSAGES]
    answer = client.chat.completions.create(model="gpt-5", messages=messages, temperature=0.5, seed=3)
    assert answer.choices[0].message.content == ANSWER
    messages.append(answer.choices[0].message)
    client.chat.completions.create(model="gpt-5", messages=messages, tools=[TOOL])
    hook.flush()
    first, second = queue.records()
    assert (first.feature, list(first.messages), first.output) == (
        "refunds", MESSAGES, ANSWER.replace("bob@example.com", "[email]"))  # fmt: skip
    assert first.parameters == {"model": "gpt-5", "temperature": 0.5, "seed": 3}
    assert (first.model, first.finish_reason, first.input_tokens, first.output_tokens) == ("gpt-5-2026", "stop", 11, 7)
    assert second.messages[1]["role"] == "assistant"
    assert second.tools[0]["function"]["name"] == "lookup"
    assert second.tool_calls == [{"id": "c1", "name": "lookup", "arguments": '{"id": 7}'}]
    assert second.finish_reason == "tool_calls"


def test_a_response_is_captured_too(hook, queue, openai_client):
    """Instructions become the system message."""
    hook.wrap(openai_client).responses.create(
        model="gpt-5", instructions="Be kind.", input="Where?", max_output_tokens=50
    )
    hook.flush()
    (record,) = queue.records()
    assert list(record.messages) == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Where?"}]
    assert (record.model, record.finish_reason, record.input_tokens, record.output_tokens) == (
        "gpt-5-2026", "completed", 21, 9)  # fmt: skip
    assert record.output.startswith("Your refund")
    assert record.tool_calls == [{"id": "c1", "name": "lookup", "arguments": "{}"}]
    assert record.parameters == {"model": "gpt-5", "max_output_tokens": 50}


def test_a_message_of_anthropics_is_captured(hook, queue, base_url):
    """The system prompt becomes the first message; cached input tokens are input tokens."""
    with anthropic.Anthropic(api_key="k", base_url=base_url, max_retries=0) as client:
        hook.wrap(client).messages.create(model="claude-5", max_tokens=100, system="Be kind.", messages=MESSAGES)
    hook.flush()
    (record,) = queue.records()
    assert list(record.messages) == [{"role": "system", "content": "Be kind."}, *MESSAGES]
    assert (record.model, record.finish_reason, record.input_tokens, record.output_tokens) == (
        "claude-5", "end_turn", 131, 5)  # fmt: skip
    assert record.tool_calls == [{"id": "t1", "name": "lookup", "arguments": {"id": 7}}]


def test_asynchronous_clients_are_captured_in_their_tasks(hook, queue, base_url):
    """Concurrent calls keep their own sessions."""

    async def run():
        async with (
            openai.AsyncOpenAI(api_key="k", base_url=base_url + "/v1", max_retries=0) as ours,
            anthropic.AsyncAnthropic(api_key="k", base_url=base_url, max_retries=0) as theirs,
        ):
            hook.wrap(ours)
            hook.wrap(theirs)

            async def ask(number):
                with hook.context("chat", session_id=f"s{number}"):
                    await ours.chat.completions.create(model="gpt-5", messages=MESSAGES)
                    await ours.responses.create(model="gpt-5", input="Where?")
                    await theirs.messages.create(model="claude-5", max_tokens=9, messages=MESSAGES)

            await asyncio.gather(*(ask(number) for number in range(3)))

    asyncio.run(run())
    hook.flush()
    records = queue.records()
    assert len(records) == 9
    assert {record.session_id for record in records} == {"s0", "s1", "s2"}
    assert len({record.trace_id for record in records}) == 3
    assert all(record.output.startswith("Your refund") for record in records)


def test_an_error_of_the_provider_arrives_as_it_was_and_is_recorded(hook, queue, openai_client):
    """The same exception class; the record says what was asked and what went wrong."""
    hook.wrap(openai_client)
    with pytest.raises(openai.BadRequestError, match="no such model"):
        openai_client.chat.completions.create(model="broken", messages=MESSAGES)
    hook.flush()
    (record,) = queue.records()
    assert record.error.startswith("BadRequestError")
    assert list(record.messages) == MESSAGES
    assert queue.rows()[0]["errors"] == 1


def test_streams_pass_through_untouched_and_are_counted(hook, queue, openai_client):
    """In this release a stream is metered, not captured."""
    hook.wrap(openai_client)
    chunks = list(openai_client.chat.completions.create(model="gpt-5", messages=MESSAGES, stream=True))
    assert chunks[0].choices[0].delta.content == "word"
    hook.flush()
    assert queue.records() == []
    assert hook.stats().calls == hook.stats().not_sampled == 1


def test_raw_responses_and_other_instances_are_left_in_peace(hook, openai_client, base_url):
    """with_raw_response still gives its own type; the class and other clients are not touched; twice is once."""
    hook.wrap(hook.wrap(openai_client))
    raw = openai_client.chat.completions.with_raw_response.create(model="gpt-5", messages=MESSAGES)
    assert raw.parse().choices[0].message.content == ANSWER
    with openai.OpenAI(api_key="k", base_url=base_url + "/v1") as other:
        other.chat.completions.create(model="gpt-5", messages=MESSAGES)
    hook.flush()
    assert hook.stats().calls == 1


def test_unsampled_calls_meter_their_tokens_all_the_same(make_hook, redis_url, queue, openai_client):
    """The meter counts every call, the sample only some."""
    hook = make_hook(redis_url=redis_url, sample_rate=0.0)
    hook.wrap(openai_client).chat.completions.create(model="gpt-5", messages=MESSAGES)
    hook.flush()
    (row,) = queue.rows()
    assert (row["calls"], row["sampled"], row["input_tokens"], row["output_tokens"]) == (1, 0, 11, 7)


def test_a_client_that_nobody_knows_is_a_clear_error(hook):
    """At start-up, with the way out."""
    with pytest.raises(ConfigError, match=r"hook\.observe"):
        hook.wrap(object())
