"""The wire below the providers' libraries, against a real HTTP server."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any

import pytest

from evalpipe.errors import JudgeRejected, JudgeUnavailable, PermanentError
from evalpipe.judges import transport
from evalpipe.judges.base import Prompt
from evalpipe.judges.config import open_judge, parse_judge

PROMPT = Prompt("Grade it.", "The answer.", {"type": "object"})
FINE = {"model": "m", "choices": [{"message": {"content": "{}"}, "finish_reason": "stop"}], "usage": {}}


class Server:
    """Answers each request with the next of its replies (status, headers, body), then with the last one again."""

    def __init__(self) -> None:
        self.replies: list[tuple[int, dict[str, str], bytes]] = [(200, {}, json.dumps(FINE).encode())]
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                server.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                status, headers, text = server.replies[min(len(server.requests), len(server.replies)) - 1]
                self.send_response(status)
                for name, value in {**headers, "content-length": str(len(text))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server, and an environment without keys and proxies."""
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    found = Server()
    yield found
    found.close()


def ask(server: Server, times: int = 1, **settings: Any) -> list[Any]:
    """What successive calls of one judge come to: answers and errors."""

    async def go() -> list[Any]:
        judge = open_judge(parse_judge(f"openai:model@{server.url}", attempts=1, **settings))
        try:
            return [(await asyncio.gather(judge.ask(PROMPT), return_exceptions=True))[0] for _ in range(times)]
        finally:
            await judge.aclose()

    return asyncio.run(go())


def test_the_librarys_headers_go_out_and_the_key_with_them(server: Server) -> None:
    """Who owns the requests is the library: its key, its own headers and ours are there, and none of them twice."""
    ask(server, api_key="sk-secret")
    [(path, headers, body)] = server.requests
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == "Bearer sk-secret"
    assert headers["content-type"] == "application/json"
    assert headers["x-evalpipe-judge"] == "1"
    assert "AsyncOpenAI" in headers["user-agent"]
    assert json.loads(body)["messages"][1]["content"] == "The answer."


def test_the_library_is_asked_again_for_headers_that_may_have_expired(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while, and after the server has refused the key."""
    asked: list[str] = []
    original = transport.Wire._ask_library

    async def counted(self: transport.Wire, path: str) -> Any:
        asked.append(path)
        return await original(self, path)

    monkeypatch.setattr(transport.Wire, "_ask_library", counted)
    ask(server, times=3)
    assert len(asked) == 1
    monkeypatch.setattr(transport, "NOTED_FOR_S", -1.0)
    ask(server, times=3)
    assert len(asked) == 4
    monkeypatch.setattr(transport, "NOTED_FOR_S", 20.0)
    server.replies = [(401, {}, b'{"error": {"message": "who?"}}')]
    ask(server, times=3)
    assert len(asked) == 7


@pytest.mark.parametrize(
    ("status", "kind", "text"),
    [
        (401, JudgeRejected, "no such key"),
        (400, PermanentError, "no such key"),
        (429, JudgeUnavailable, "no such key"),
        (500, JudgeUnavailable, "no such key"),
    ],
)
def test_a_refusal_is_the_librarys_own_error(server: Server, status: int, kind: type[Exception], text: str) -> None:
    """It read the body for its message, and the headers are at hand."""
    server.replies = [(status, {"retry-after": "3"}, json.dumps({"error": {"message": text}}).encode())]
    [error] = ask(server)
    assert isinstance(error, kind)
    assert text in str(error)
    if isinstance(error, JudgeUnavailable):
        assert error.retry_after_s == 3.0


def test_a_redirect_is_followed_by_nobody(server: Server) -> None:
    """A key and a record go where they were meant to go, and nowhere else."""
    server.replies = [(308, {"location": "http://elsewhere.example/v1"}, b"")]
    [error] = ask(server, api_key="sk-secret")
    assert isinstance(error, JudgeRejected)
    assert "elsewhere.example" in str(error)
    assert "sk-secret" not in str(error)
    assert len(server.requests) == 1


def test_the_providers_name_for_the_call_is_kept(server: Server) -> None:
    """Its support asks for it."""
    server.replies = [(200, {"x-request-id": "req_7"}, json.dumps(FINE).encode())]
    [answer] = ask(server)
    assert answer.request_id == "req_7"


def test_half_a_character_in_an_answer_does_not_lose_it(server: Server) -> None:
    """A model that was cut in the middle of an emoji has answered all the same."""
    text = json.dumps({**FINE, "choices": [{"message": {"content": "cut \ud83d"}, "finish_reason": "length"}]})
    server.replies = [(200, {}, text.encode())]
    [answer] = ask(server)
    assert (answer.finish, answer.text) == ("truncated", "cut \ud83d")


def test_calls_go_through_the_proxy_of_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the library itself would send them."""
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/v1"))

    async def go() -> Any:
        judge = open_judge(parse_judge("openai:model@http://judge.example/v1", attempts=1))
        try:
            return await judge.ask(PROMPT)
        finally:
            await judge.aclose()

    assert asyncio.run(go()).finish == "complete"
    assert [path for path, _, _ in server.requests] == ["http://judge.example/v1/chat/completions"]


def test_a_mapping_of_any_kind_can_be_sent() -> None:
    """A schema need not be a plain dictionary."""
    assert transport._plain(MappingProxyType({"a": 1})) == {"a": 1}
    with pytest.raises(TypeError, match="set is not JSON"):
        transport._plain({1})
