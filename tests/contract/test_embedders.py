"""Every embedder in the registry: what all promise, and what an API's does when its server is in trouble."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from evalpipe.errors import ConfigError, PermanentError, RetryableError
from evalpipe.profile import DIMENSIONS
from evalpipe.profiling.embedders.base import Embedder, embedders, open_embedder
from evalpipe.profiling.profiler import Profiler

TEXTS = ["Where is my refund?", "", "Wie kann ich die Bestellung stornieren?", "  \n", "Where is my refund ?"]


class EmbeddingServer:
    """An HTTP server in the form of OpenAI's: embeds letters into 300 numbers, or acts as it is told."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.act: tuple[int, str] = (200, "")
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append({"path": self.path, **body})
                server.keys.append(self.headers.get("Authorization", ""))
                status, said = server.act
                reply = said or json.dumps(
                    {
                        "data": [
                            {"index": i, "embedding": vector(text)}
                            for i, text in reversed(list(enumerate(body["input"])))
                        ]
                    }
                )
                self.send_response(status)
                self.send_header("Content-Length", str(len(reply.encode())))
                self.end_headers()
                self.wfile.write(reply.encode())

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()


def vector(text: str) -> list[float]:
    """How often each of 300 hashed words stands in a text."""
    found = [0.0] * 300
    for word in text.lower().replace("?", " ").split():
        found[int.from_bytes(hashlib.blake2b(word.encode(), digest_size=2).digest(), "big") % 300] += 1.0
    return found


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    """A server."""
    made = EmbeddingServer()
    yield made
    made.close()


@pytest.fixture
def open_one(server: EmbeddingServer) -> Callable[[str], Embedder]:
    """Opens an embedder by its name; one whose library is not installed is skipped."""

    def opened(name: str) -> Embedder:
        if name == "openai":
            return open_embedder("openai:small", base_url=server.url, api_key="secret")
        if name == "sentence-transformers":
            if importlib.util.find_spec("sentence_transformers") is None:
                pytest.skip("sentence-transformers is not installed")
            return open_embedder("sentence-transformers:all-MiniLM-L6-v2")
        return open_embedder(name)

    return opened


@pytest.mark.parametrize("name", list(embedders))
def test_every_embedder_makes_unit_vectors_of_one_width_and_none_of_no_text(name, open_one):
    """In the order of the texts, the same each time, alike for texts that are alike."""
    embedder = open_one(name)
    found = embedder.embed(TEXTS)
    assert [len(v) for v in found] == [DIMENSIONS, 0, DIMENSIONS, 0, DIMENSIONS]
    assert all(math.sqrt(sum(x * x for x in v)) == pytest.approx(1.0) for v in found if v)
    assert found == embedder.embed(TEXTS)
    alike, strange = (sum(a * b for a, b in zip(found[0], found[i], strict=True)) for i in (4, 2))
    assert alike > 0.8 > strange
    assert embedder.embed([]) == []
    assert embedder.version.startswith(name)


@pytest.mark.parametrize("name", list(embedders))
def test_a_slow_embedder_is_not_asked_at_ingest(name, open_one, server):
    """Its records have no embedding yet, and nothing was sent or loaded."""
    from stages import record

    embedder = open_one(name)
    profile = Profiler(embedder).profile(record(1))
    assert profile is not None
    assert (profile.embedder == "") == embedder.slow
    assert server.requests == []


def test_one_request_carries_all_texts_of_a_batch_with_the_key(server, open_one):
    """And no empty text, which the provider would refuse."""
    open_one("openai").embed(TEXTS)
    [asked] = server.requests
    assert asked["path"] == "/v1/embeddings"
    assert (asked["model"], asked["input"]) == ("small", [TEXTS[0], TEXTS[2], TEXTS[4]])
    assert server.keys == ["Bearer secret"]


@pytest.mark.parametrize(
    ("act", "error"),
    [
        ((503, "{}"), RetryableError),
        ((429, "{}"), RetryableError),
        ((400, '{"error": "too long for key secret"}'), PermanentError),
        ((401, '{"error": "no such key: secret"}'), RetryableError),
        ((404, "no such page\x1b[2J"), RetryableError),
        ((200, "<html>"), PermanentError),
        ((200, '{"data": []}'), PermanentError),
        ((200, '{"data": [{"index": 0, "embedding": ["x"]}]}'), PermanentError),
    ],
)
def test_what_a_server_answers_instead_says_whether_to_try_again(server, open_one, act, error):
    """A busy server may answer later, and keys are mended; one that refuses a text will not. No error has the key."""
    server.act = act
    with pytest.raises(error, match="embeddings: ") as raised:
        open_one("openai").embed(["one"])
    assert "secret" not in str(raised.value)
    assert str(raised.value).isprintable()


def test_a_server_that_cannot_be_reached_is_tried_again_later():
    """By whoever asks."""
    with pytest.raises(RetryableError, match="cannot be reached"):
        open_embedder("openai:small", base_url="http://127.0.0.1:1/v1").embed(["one"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("statik", "did you mean 'static'"),
        ("static:large", "no models"),
        ("openai", "names no model"),
        ("openai:small", "EVALPIPE_EMBEDDINGS_API_KEY"),
        ("sentence-transformers", "names no model"),
    ],
)
def test_a_setting_that_cannot_work_says_what_to_write(setting, message, monkeypatch):
    """When it is opened, before a record arrives."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=message):
        open_embedder(setting)


def test_a_library_that_is_missing_is_named():
    """With the command that installs it."""
    if importlib.util.find_spec("sentence_transformers") is not None:
        pytest.skip("it is installed")
    with pytest.raises(ConfigError, match="pip install sentence-transformers"):
        open_embedder("sentence-transformers:any").embed(["one"])
