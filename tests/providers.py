"""A real local server that speaks OpenAI's and Anthropic's protocols: JSON, and events of a stream."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWER = "Your refund, for bob@example.com, is on its way."
WORDS = ["Your refund, ", "for bob@example.com, ", "is on its way."]
REFUSAL = "I'm sorry, but I can't help with that."
TOOL = {"type": "function", "function": {"name": "lookup", "parameters": {"type": "object"}}}
PAUSE_S = 0.05


class Provider(BaseHTTPRequestHandler):
    """Chat completions, text completions, responses and messages, plain and streamed.

    The model's name says what happens: ``broken`` answers 400, ``refuses`` refuses, ``slow`` waits before each chunk,
    ``cut`` ends the connection in the middle of a stream, ``fails`` sends an error event there, ``json`` answers JSON.
    """

    protocol_version = "HTTP/1.1"
    seen: list[dict[str, Any]]

    def do_POST(self) -> None:
        """Answer as the provider of the path would."""
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(request)
        path = self.path.partition("?")[0]
        if request["model"] == "broken":
            self._send(400, {"error": {"message": "no such model", "type": "invalid"}})
        elif request.get("stream"):
            self._stream(STREAMS[path](request), request["model"], named=path != "/v1/chat/completions")
        else:
            self._send(200, ANSWERS[path](request))

    def _send(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, events: Iterator[dict[str, Any]], model: str, *, named: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for number, event in enumerate(events):
            if model == "cut" and number == 6:
                return
            if model == "fails" and number == 6:
                failure = {"type": "error", "error": {"type": "overloaded_error", "message": "too much"}}
                self._write(f"event: error\ndata: {json.dumps(failure)}\n\n")
                return
            if model == "slow":
                time.sleep(PAUSE_S)
            self._write((f"event: {event['type']}\n" if named else "") + f"data: {json.dumps(event)}\n\n")
        if not named:
            self._write("data: [DONE]\n\n")

    def _write(self, text: str) -> None:
        try:
            self.wfile.write(text.encode())
        except OSError:  # the client went away, as some tests do
            return

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def serve() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A provider's URL, and the requests that it has seen."""
    seen: list[dict[str, Any]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Serving", (Provider,), {"seen": seen}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", seen
    server.shutdown()
    server.server_close()
    thread.join()


def said(request: dict[str, Any]) -> str:
    """What the model says."""
    return {"json": '{"days": 30}', "refuses": REFUSAL}.get(request["model"], ANSWER)


CHAT_USAGE = {
    "prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18,
    "prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 2},
}  # fmt: skip
RESPONSE_USAGE = {
    "input_tokens": 21, "output_tokens": 9, "total_tokens": 30,
    "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 0},
    "output_tokens_details": {"reasoning_tokens": 3},
}  # fmt: skip


def completion(request: dict[str, Any]) -> dict[str, Any]:
    """A chat completion; with tools it calls the tool."""
    message: dict[str, Any] = {"role": "assistant", "content": said(request)}
    if request["model"] == "refuses":
        message = {"role": "assistant", "content": None, "refusal": REFUSAL}
    if request.get("tools"):
        call = {"id": "c1", "type": "function", "function": {"name": "lookup", "arguments": '{"id": 7}'}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
    reason = "tool_calls" if "tools" in request else "length" if request.get("max_tokens") == 1 else "stop"
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-5-2026",
        "system_fingerprint": "fp_1", "service_tier": "default",
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "usage": CHAT_USAGE,
    }  # fmt: skip


def text_completion(request: dict[str, Any]) -> dict[str, Any]:
    """A completion of the older kind."""
    return {
        "id": "cmpl-1", "object": "text_completion", "created": 1, "model": "gpt-5-2026",
        "choices": [{"index": 0, "text": said(request), "finish_reason": "stop", "logprobs": None}],
        "usage": CHAT_USAGE,
    }  # fmt: skip


def response(request: dict[str, Any]) -> dict[str, Any]:
    """An object of the responses API, with a message and a function call."""
    background = bool(request.get("background"))
    part = {"type": "output_text", "text": said(request), "annotations": []}
    if request["model"] == "refuses":
        part = {"type": "refusal", "refusal": REFUSAL}
    call = {"id": "f", "type": "function_call", "call_id": "c1", "name": "lookup", "arguments": "{}",
            "status": "completed"}  # fmt: skip
    output = [{"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": [part]}, call]
    return {
        "id": "resp-1", "object": "response", "created_at": 1, "model": "gpt-5-2026",
        "status": "queued" if background else "completed", "output": [] if background else output,
        "parallel_tool_calls": False, "tool_choice": "auto", "tools": [],
        "usage": None if background else RESPONSE_USAGE,
    }  # fmt: skip


def message(request: dict[str, Any]) -> dict[str, Any]:
    """A message of Anthropic's, with text and a tool's use."""
    return {
        "id": "msg-1", "type": "message", "role": "assistant", "model": "claude-5",
        "stop_reason": "refusal" if request["model"] == "refuses" else "end_turn", "stop_sequence": None,
        "content": [{"type": "text", "text": said(request)},
                    {"type": "tool_use", "id": "t1", "name": "lookup", "input": {"id": 7}}],
        "usage": {"input_tokens": 31, "output_tokens": 5, "cache_read_input_tokens": 100,
                  "cache_creation_input_tokens": 20},
    }  # fmt: skip


def chat_events(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Chunks of a chat completion."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5-2026",
            "system_fingerprint": "fp_1"}  # fmt: skip

    def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

    yield chunk({"role": "assistant", "content": ""})
    if request["model"] == "refuses":
        yield chunk({"refusal": REFUSAL})
    elif request.get("tools"):
        yield chunk({"tool_calls": [{"index": 0, "id": "c1", "type": "function",
                                     "function": {"name": "lookup", "arguments": ""}}]})  # fmt: skip
        for piece in ('{"id"', ": 7}"):
            yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
    else:
        words = WORDS * 3 if request["model"] in {"cut", "fails"} else WORDS
        for word in [said(request)] if request["model"] == "json" else words:
            yield chunk({"content": word})
    yield chunk({}, "tool_calls" if request.get("tools") else "stop")
    if (request.get("stream_options") or {}).get("include_usage"):
        yield {**head, "choices": [], "usage": CHAT_USAGE}


def response_events(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Events of a response."""
    whole = response(request)
    numbers = iter(range(1000))

    def event(kind: str, **fields: Any) -> dict[str, Any]:
        return {"type": kind, "sequence_number": next(numbers), **fields}

    at = {"item_id": "m", "output_index": 0, "content_index": 0}
    empty = {**whole["output"][0], "content": [], "status": "in_progress"}
    yield event("response.created", response={**whole, "status": "in_progress", "output": [], "usage": None})
    yield event("response.output_item.added", output_index=0, item=empty)
    yield event("response.content_part.added", **at, part={"type": "output_text", "text": "", "annotations": []})
    words = WORDS * 3 if request["model"] in {"cut", "fails"} else WORDS
    for word in words:
        yield event("response.output_text.delta", **at, delta=word, logprobs=[])
    yield event("response.output_text.done", **at, text=ANSWER, logprobs=[])
    yield event("response.content_part.done", **at, part=whole["output"][0]["content"][0])
    yield event("response.output_item.done", output_index=0, item=whole["output"][0])
    yield event("response.output_item.added", output_index=1, item={**whole["output"][1], "arguments": ""})
    yield event("response.function_call_arguments.delta", item_id="f", output_index=1, delta="{}")
    yield event("response.function_call_arguments.done", item_id="f", output_index=1, name="lookup", arguments="{}")
    yield event("response.output_item.done", output_index=1, item=whole["output"][1])
    yield event("response.completed", response=whole)


def message_events(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Events of a message."""
    whole = message(request)
    usage = {**whole["usage"], "output_tokens": 1}
    yield {"type": "message_start", "message": {**whole, "content": [], "stop_reason": None, "usage": usage}}
    yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    for word in WORDS * 3 if request["model"] in {"cut", "fails"} else WORDS:
        yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
    yield {"type": "content_block_stop", "index": 0}
    tool = {"type": "tool_use", "id": "t1", "name": "lookup", "input": {}}
    yield {"type": "content_block_start", "index": 1, "content_block": tool}
    for piece in ('{"id"', ": 7}"):
        yield {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": piece}}
    yield {"type": "content_block_stop", "index": 1}
    yield {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None},
           "usage": {"output_tokens": 5}}  # fmt: skip
    yield {"type": "message_stop"}


ANSWERS = {"/v1/chat/completions": completion, "/v1/completions": text_completion, "/v1/responses": response,
           "/v1/messages": message}  # fmt: skip
STREAMS = {"/v1/chat/completions": chat_events, "/v1/responses": response_events, "/v1/messages": message_events}
