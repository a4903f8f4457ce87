"""A real local server that speaks the batch APIs of OpenAI and Anthropic, and what a judge needs beside them."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

INPUT, OUTPUT = 1000, 100
"""Tokens of each call."""


class Trouble(Exception):  # noqa: N818 - an answer of the server
    """What the server says instead."""

    def __init__(self, status: int, code: str, message: str = "it was told to fail") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Provider:
    """What the server has, and what it is told to do.

    Words of a record do something to its answer: ``REFUND`` fails, ``BROKEN`` is an error, ``GARBAGE`` is no JSON,
    ``LATE`` expires, ``LOST`` is not in the results.

    Attributes:
        running: batches do not end.
        drops: batches are made, and their maker is told nothing.
        fails: code with which batches fail as a whole.
        trouble: what every request about batches gets.
        picky: a temperature is refused.
        asked: questions answered outside batches.
        batches: by id, with the requests in ``lines``.
        cancelled: ids.
    """

    def __init__(self) -> None:
        self.running = self.drops = self.picky = False
        self.fails = ""
        self.trouble: Trouble | None = None
        self.asked: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.cancelled: list[str] = []
        self.guarded = True
        self.url = ""
        self._ids = itertools.count(1)
        self._lock = threading.Lock()

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The requests of all batches."""
        return [line for batch in self.batches.values() for line in batch["lines"]]

    def __call__(self, method: str, path: str, body: bytes, content_type: str) -> Any:
        """The reply to one request: JSON, or bytes."""
        with self._lock:
            about_batches = "batches" in path or path.startswith("/v1/files")
            if about_batches and self.trouble is not None:
                raise self.trouble
            if path.startswith("/v1/files"):
                return self._files(method, path, body, content_type)
            if path.startswith("/v1/messages/batches"):
                return self._anthropic(method, path.removeprefix("/v1/messages/batches"), body)
            if path.startswith("/v1/batches"):
                return self._openai(method, path.removeprefix("/v1/batches"), body)
            self.asked.append(json.loads(body))
            return self._answer(path, self.asked[-1])

    def _files(self, method: str, path: str, body: bytes, content_type: str) -> Any:
        if method == "GET":
            return self.files[path.removeprefix("/v1/files/").removesuffix("/content")]
        boundary = b"--" + content_type.partition("boundary=")[2].encode()
        parts = {}
        for part in body.split(boundary)[1:-1]:
            head, _, content = part.partition(b"\r\n\r\n")
            parts[head.partition(b'name="')[2].partition(b'"')[0].decode()] = content.removesuffix(b"\r\n")
        assert parts["purpose"] == b"batch"
        return self._file(parts["file"])

    def _file(self, content: bytes) -> dict[str, Any]:
        name = f"file-{next(self._ids)}"
        self.files[name] = content
        return {"id": name, "object": "file", "bytes": len(content), "created_at": _now(), "filename": "b.jsonl",
                "purpose": "batch", "status": "processed"}  # fmt: skip

    def _openai(self, method: str, path: str, body: bytes) -> Any:
        if method == "POST" and not path:
            wanted = json.loads(body)
            lines = [json.loads(line) for line in self.files[wanted["input_file_id"]].splitlines()]
            assert {line["url"] for line in lines} == {wanted["endpoint"]}
            batch = {"id": f"batch_{next(self._ids)}", "object": "batch", "endpoint": wanted["endpoint"],
                     "input_file_id": wanted["input_file_id"], "completion_window": wanted["completion_window"],
                     "created_at": _now(), "metadata": wanted["metadata"],
                     "status": "validating", "lines": lines}  # fmt: skip
            return self._made(batch)
        if method == "GET" and not path.strip("/").partition("?")[0]:
            found = sorted(self.batches.values(), key=lambda batch: -int(batch["id"].partition("_")[2]))
            return {"object": "list", "data": [_shown(batch) for batch in found], "has_more": False}
        batch = self._batch(path)
        if path.endswith("/cancel"):
            self.cancelled.append(batch["id"])
            batch["status"] = "cancelling"
        elif not self.running and batch["status"] == "validating":
            self._end_openai(batch)
        return _shown(batch)

    def _end_openai(self, batch: dict[str, Any]) -> None:
        if self.fails:
            batch["status"] = "failed"
            batch["errors"] = {"object": "list", "data": [{"code": self.fails, "message": "too much", "line": 1}]}
            return
        good, bad = [], []
        for line in reversed(batch["lines"]):
            one: dict[str, Any] = {"id": "r", "custom_id": line["custom_id"], "error": None}
            try:
                answer = self._answer(batch["endpoint"], line["body"])
                good.append({**one, "response": {"status_code": 200, "request_id": "req", "body": answer}})
            except Trouble as trouble:
                if trouble.code == "expired":
                    bad.append({**one, "response": None, "error": {"code": "batch_expired", "message": "too late"}})
                elif trouble.code != "lost":
                    error = {"error": {"code": trouble.code, "message": str(trouble)}}
                    bad.append({**one, "response": {"status_code": trouble.status, "request_id": "r", "body": error}})
        batch["status"] = "completed"
        for name, lines in (("output_file_id", good), ("error_file_id", bad)):
            if lines:
                batch[name] = self._file("\n".join(map(json.dumps, lines)).encode())["id"]

    def _anthropic(self, method: str, path: str, body: bytes) -> Any:
        if method == "POST" and not path:
            lines = json.loads(body)["requests"]
            at = datetime.now(UTC).isoformat()
            batch = {"id": f"msgbatch_{next(self._ids)}", "type": "message_batch", "created_at": at, "expires_at": at,
                     "processing_status": "in_progress", "lines": lines, "results_url": None, "archived_at": None,
                     "request_counts": _counts(processing=len(lines))}  # fmt: skip
            return self._made(batch)
        if not self.running:
            for batch in self.batches.values():
                batch |= {"processing_status": "ended", "request_counts": _counts(succeeded=len(batch["lines"])),
                          "results_url": f"{self.url}/v1/messages/batches/{batch['id']}/results"}  # fmt: skip
        if not path.strip("/").partition("?")[0]:
            found = [_shown(batch) for batch in reversed(self.batches.values())]
            return {"data": found, "has_more": False, "first_id": None, "last_id": None}
        batch = self._batch(path)
        if path.endswith("/cancel"):
            self.cancelled.append(batch["id"])
        if path.endswith("/results"):
            results = [self._result(line) for line in reversed(batch["lines"])]
            return "\n".join(json.dumps(found) for found in results if found).encode()
        return _shown(batch)

    def _result(self, line: dict[str, Any]) -> dict[str, Any] | None:
        try:
            result = {"type": "succeeded", "message": self._answer("/v1/messages", line["params"])}
        except Trouble as trouble:
            if trouble.code == "lost":
                return None
            error = {"type": "error", "error": {"type": "invalid_request_error", "message": str(trouble)}}
            result = {"type": "expired"} if trouble.code == "expired" else {"type": "errored", "error": error}
        return {"custom_id": line["custom_id"], "result": result}

    def _made(self, batch: dict[str, Any]) -> Any:
        self.batches[batch["id"]] = batch
        return None if self.drops else _shown(batch)

    def _batch(self, path: str) -> dict[str, Any]:
        name = path.strip("/").partition("/")[0]
        if name not in self.batches:
            raise Trouble(404, "not_found", f"no batch {name}")
        return self.batches[name]

    def _answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        text = json.dumps(body)
        if self.picky and "temperature" in body:
            raise Trouble(400, "unsupported_value", "unsupported value: 'temperature'")
        for word, code in (("BROKEN", "invalid_prompt"), ("LATE", "expired"), ("LOST", "lost")):
            if word in text:
                raise Trouble(400, code)
        grade = "fail" if "REFUND" in text else "pass"
        said = "What a day" if "GARBAGE" in text else json.dumps(
            {"explanation": "as told", "quotation": "REFUND" if grade == "fail" else "", "grade": grade})  # fmt: skip
        if path.endswith("/messages"):
            return {"id": "msg-1", "type": "message", "role": "assistant", "model": "claude-5",
                    "stop_reason": "end_turn", "stop_sequence": None, "content": [{"type": "text", "text": said}],
                    "usage": {"input_tokens": INPUT, "output_tokens": OUTPUT}}  # fmt: skip
        if path.endswith("/responses"):
            part = {"type": "output_text", "text": said, "annotations": []}
            return {"id": "resp-1", "object": "response", "model": "gpt-5", "status": "completed",
                    "output": [{"id": "m", "type": "message", "role": "assistant", "content": [part]}],
                    "usage": {"input_tokens": INPUT, "output_tokens": OUTPUT}}  # fmt: skip
        message = {"role": "assistant", "content": said}
        return {"id": "chatcmpl-1", "object": "chat.completion", "model": "gpt-5",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": INPUT, "completion_tokens": OUTPUT}}  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """HTTP around a provider."""

    protocol_version = "HTTP/1.1"
    provider: Provider

    def do_GET(self) -> None:
        """Read something."""
        self._reply("GET")

    def do_POST(self) -> None:
        """Make something."""
        self._reply("POST")

    def _reply(self, method: str) -> None:
        body = self._body()
        self.provider.guarded &= self.headers.get("x-evalpipe-judge") == "1"
        try:
            found = self.provider(method, self.path, body, self.headers.get("Content-Type", ""))
        except Trouble as trouble:
            error = {"type": "error", "error": {"type": trouble.code, "code": trouble.code, "message": str(trouble)}}
            self._send(trouble.status, json.dumps(error).encode())
            return
        if found is None:
            self.close_connection = True  # as if one of the two had died
            return
        self._send(200, found if isinstance(found, bytes) else json.dumps(found).encode())

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def serve() -> Iterator[Provider]:
    """A provider that listens at its ``url``."""
    provider = Provider()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Serving", (Handler,), {"provider": provider}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    provider.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield provider
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _shown(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name != "lines"}


def _counts(**counts: int) -> dict[str, int]:
    return {"processing": 0, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0} | counts


def _now() -> int:
    return int(datetime.now(UTC).timestamp())
