"""A real local server that speaks OpenAI's chat completions as a judge, counts who asked what, and fails on demand."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Fault = str
"""``""`` (none), an HTTP status, ``malformed`` (an answer that is no grade), ``garbage`` (a body that is no JSON), or
``hang``."""

INPUT_TOKENS, OUTPUT_TOKENS = 1000, 100
"""What every answer says that it took."""


def lenient(shown: str) -> str:
    """The grade that the fake judge of the other tests gives: fail where the record says REFUND."""
    return "fail" if "REFUND" in shown else "pass"


def works(_number: int, _model: str, _shown: str) -> Fault:
    """Nothing goes wrong."""
    return ""


class JudgeServer:
    """A provider of judges on a thread of its own; what it does can be switched while it runs.

    Args:
        latency_s: of each answer.

    Attributes:
        grade: the grade's word for what a judge is shown.
        fault: what goes wrong with a call, by its number from 1, its model, and what the judge is shown.
        keys: that it takes; empty takes any.
        calls: answered with whatever, by model and work: the code in the fence is the work's.
        answered: those that brought an answer, and would be on the bill.
        outcomes: of all calls: the fault, or ``ok``.
    """

    def __init__(self, latency_s: float = 0.02) -> None:
        self.latency_s = latency_s
        self.grade: Callable[[str], str] = lenient
        self.fault: Callable[[int, str, str], Fault] = works
        self.keys: frozenset[str] = frozenset()
        self.calls: Counter[tuple[str, str]] = Counter()
        self.answered: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.in_flight = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._server = _Server(("127.0.0.1", 0), type("Serving", (_Handler,), {"judge": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def total(self) -> int:
        """All calls so far."""
        return self.outcomes.total()

    def judge(self, model: str, options: str = "usd_per_mtok=0") -> str:
        """How a scorecard names a model of this server."""
        return f"openai:{model}@http://127.0.0.1:{self._server.server_address[1]}/v1?{options}"

    def version(self, model: str) -> str:
        """What the store calls it."""
        return f"openai:{model}@127.0.0.1:{self._server.server_address[1]}"

    def answer(self, request: Mapping[str, Any], key: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for one call."""
        model, shown = request["model"], request["messages"][-1]["content"]
        code = re.search(r"^Code: (\w+)", shown, re.MULTILINE)
        with self._lock:
            self.calls[model, code[1] if code else ""] += 1
            self.in_flight += 1
            fault = "401" if self.keys and key not in self.keys else self.fault(self.total + 1, model, shown)
            self.outcomes[fault or "ok"] += 1
        try:
            self._stopping.wait(600 if fault == "hang" else self.latency_s)
            return self._reply(request, fault)
        finally:
            with self._lock:
                self.in_flight -= 1

    def _reply(self, request: Mapping[str, Any], fault: Fault) -> tuple[int, dict[str, str], bytes]:
        if fault.isdigit():
            error = {"error": {"message": f"no: {fault}", "type": "error", "code": None}}
            return int(fault), {"retry-after-ms": "200"} if fault == "429" else {}, json.dumps(error).encode()
        if fault == "garbage":
            return 200, {}, b"<html>bad gateway</html>"
        with self._lock:
            self.answered[request["model"]] += 1
        grade = self.grade(request["messages"][-1]["content"])
        said = {"explanation": "as told", "quotation": "", "grade": grade}
        text = "I would say it is fine." if fault == "malformed" else json.dumps(said)
        body = {
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": request["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": INPUT_TOKENS, "completion_tokens": OUTPUT_TOKENS},
        }  # fmt: skip
        return 200, {}, json.dumps(body).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet
    judge: JudgeServer

    def do_POST(self) -> None:
        """One call."""
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        status, headers, body = self.judge.answer(request, key)
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def handle(self) -> None:
        """Until the client goes; killed workers do so in the middle."""
        try:
            super().handle()
        except OSError:
            return

    def log_message(self, *_: object) -> None:
        """Nothing."""
