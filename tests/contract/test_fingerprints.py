"""Fingerprints on real databases and a real endpoint: asked, kept, accepted, and never asked twice at once."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from evalpipe.errors import ConfigError, RetryableError, ScorecardError
from evalpipe.pipeline import fingerprint
from evalpipe.pipeline.fingerprint import PAUSE, FingerprintStage, Round
from evalpipe.profiling.embedders.base import EmbedderConfig, open_embedder
from evalpipe.profiling.embedders.static import Static
from evalpipe.scorecard.fingerprint import FingerprintSet, load_fingerprints
from evalpipe.store import prints
from evalpipe.store.shelf import Shelf
from evalpipe.store.sql import Store

AT = datetime(2026, 3, 1, 10, tzinfo=UTC)
FILE = """
fingerprints:
  - name: support-model
    service: support
    environment: production
    model: {protocol: PROTOCOL, name: m-large, base_url: "URL", system: Be brief., settings: {temperature: 0.2}}
    every: 1h
    prompts:
      - {name: greeting, text: Hello there.}
      - {name: refund, text: How do I get a refund?}
      - {name: capital, text: What is the capital of France?}
"""


class Endpoint:
    """A model behind a real HTTP server.

    Attributes:
        say: the answer to a prompt; None is a 500.
        model, fingerprint: that it returns.
        seen: bodies of the requests.
    """

    def __init__(self) -> None:
        self.say: Callable[[str], str | None] = lambda text: f"You said: {text}"
        self.model = "m-large-2026"
        self.fingerprint = "fp_1"
        self.seen: list[Mapping[str, Any]] = []
        self.url = ""

    def answer(self, path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        """What is answered."""
        self.seen.append(body)
        text = self.say(body["messages"][-1]["content"])
        if text is None:
            return 500, {"error": {"message": "down", "type": "server"}}
        if path.endswith("/messages"):
            return 200, {"content": [{"type": "text", "text": text}], "model": self.model, "stop_reason": "end_turn",
                         "usage": {"output_tokens": 7}}  # fmt: skip
        tokens = [{"token": "x", "logprob": -0.5, "bytes": None, "top_logprobs": []}]
        choice = {"message": {"content": text}, "finish_reason": "stop", "logprobs": {"content": tokens}}
        return 200, {"choices": [choice], "model": self.model, "system_fingerprint": self.fingerprint,
                     "usage": {"completion_tokens": 7}}  # fmt: skip


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """One, on a port of its own."""
    with serving(Endpoint()) as found:
        yield found


@contextmanager
def serving(endpoint: Endpoint) -> Iterator[Endpoint]:
    """The endpoint while it runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, told = endpoint.answer(self.path, body)
            data = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def declared(folder: Path, url: str, protocol: str = "openai", **changes: str) -> list[FingerprintSet]:
    """The sets of the file, with words of it changed."""
    text = FILE.replace("URL", url.removesuffix("/v1") if protocol == "anthropic" else url)
    text = text.replace("PROTOCOL", protocol)
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / "fingerprints.yaml"
    path.write_text(text)
    return load_fingerprints(path)


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    """A migrated database."""
    made = Store(migrated_url)
    yield made
    made.close()


class Desk:
    """The stage on a database, with a clock that is moved by hand."""

    def __init__(self, store: Store, sets: list[FingerprintSet]) -> None:
        self.store = store
        self.at = AT
        self.sets = sets

    def run(self, **options: Any) -> list[Round]:
        """Ask what is due."""
        stage = FingerprintStage(self.store, self.sets, clock=lambda: self.at, embedder=open_embedder("static"))
        return asyncio.run(stage(**options))

    def runs(self) -> list[Any]:
        """What counts."""
        with self.store.read() as tx:
            return prints.prints_since(tx, "support-model", AT - timedelta(days=1))


def test_a_round_is_asked_when_it_is_due_with_the_applications_own_settings(
    store: Store, tmp_path: Path, endpoint: Endpoint
) -> None:
    """Every hour, with its system prompt and temperature; in between nothing is asked."""
    desk = Desk(store, declared(tmp_path, endpoint.url))
    assert [(r.answered, r.kept, r.model) for r in desk.run()] == [(3, True, "m-large-2026")]
    assert desk.run() == []
    desk.at += timedelta(minutes=59)
    assert desk.run() == []
    desk.at += timedelta(minutes=1)
    assert len(desk.run()) == 1
    found = desk.runs()
    assert len(found) == 6
    assert found[0].prompt == "capital"
    assert found[0].fingerprint == "fp_1"
    assert found[0].traits["refusal"] == "no"
    assert found[0].traits["logprob"] == -0.5
    assert len(found[0].embedding) == 64
    request = endpoint.seen[0]
    assert request["temperature"] == 0.2
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}


def test_anthropics_messages_are_asked_in_their_own_form(store: Store, tmp_path: Path, endpoint: Endpoint) -> None:
    """With a bound on the answer, which its API needs."""
    desk = Desk(store, declared(tmp_path, endpoint.url, "anthropic", **{"{temperature: 0.2}": "{}"}))
    assert [r.kept for r in desk.run()] == [True]
    assert endpoint.seen[0]["system"] == "Be brief."
    assert endpoint.seen[0]["max_tokens"] > 0
    assert {run.traits["output_tokens"] for run in desk.runs()} == {7.0}


def test_a_round_that_is_not_answered_does_not_count_and_is_tried_again_soon(
    store: Store, tmp_path: Path, endpoint: Endpoint
) -> None:
    """An endpoint that is down says nothing about the model."""
    endpoint.say = lambda _text: None
    desk = Desk(store, declared(tmp_path, endpoint.url))
    (failed,) = desk.run()
    assert not failed.kept
    assert "InternalServerError" in failed.error
    assert desk.runs() == []
    assert desk.run() == []
    endpoint.say = lambda text: text
    desk.at += PAUSE
    assert [r.kept for r in desk.run()] == [True]


def test_a_prompt_that_never_gets_an_answer_makes_the_others_cost_no_more(
    store: Store, tmp_path: Path, endpoint: Endpoint
) -> None:
    """A round of which two thirds were paid for is not asked again before two thirds of the time."""
    endpoint.say = lambda text: None if "capital" in text else text
    desk = Desk(store, declared(tmp_path, endpoint.url))
    assert [(r.answered, r.kept) for r in desk.run()] == [(2, False)]
    desk.at += timedelta(minutes=39)
    assert desk.run() == []
    desk.at += timedelta(minutes=1)
    assert [r.answered for r in desk.run()] == [2]


def test_a_round_ends_before_its_lease(
    store: Store, tmp_path: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else another worker asks all of it again, and neither keeps it."""
    assert timedelta(seconds=fingerprint.LONGEST_S) < fingerprint.LEASE
    monkeypatch.setattr(fingerprint, "LONGEST_S", 0.2)
    endpoint.say = lambda text: time.sleep(0.5) or text
    (ended,) = Desk(store, declared(tmp_path, endpoint.url)).run()
    assert (ended.answered, ended.kept) == (0, False)
    assert "declare fewer prompts" in ended.error


def test_whatever_an_endpoint_answers_is_kept_or_told_without_the_key(
    store: Store, tmp_path: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NUL, halves of surrogate pairs, odd numbers; and what is no JSON object, or quotes the key."""
    desk = Desk(store, declared(tmp_path, endpoint.url))
    endpoint.say = lambda text: f"{text}\x00\ud800"
    endpoint.model, endpoint.fingerprint = "m\x00", "f\ud83d"
    assert [r.kept for r in desk.run()] == [True]
    assert {run.fingerprint for run in desk.runs()} == {"f?"}
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-key")
    monkeypatch.setattr(endpoint, "answer", lambda _path, _body: (401, {"error": "no sk-very-secret-key\n\x1b[2J"}))
    desk.at += timedelta(hours=1)
    (refused,) = desk.run()
    assert "secret" not in refused.error
    assert refused.error.isprintable()
    monkeypatch.setattr(endpoint, "answer", lambda _path, _body: (200, "<html>"))
    (streamed,) = desk.run(force=True)
    assert "no JSON object" in streamed.error


def test_an_embedder_that_fails_costs_no_answers(store: Store, tmp_path: Path, endpoint: Endpoint) -> None:
    """They were paid for; the other rounds keep their embeddings."""

    class Away(Static):
        def embed(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
            raise RetryableError("busy")

    desk = Desk(store, declared(tmp_path, endpoint.url))
    desk.run()
    stage = FingerprintStage(
        store, desk.sets, clock=lambda: desk.at + timedelta(hours=1), embedder=Away(EmbedderConfig())
    )
    assert [r.kept for r in asyncio.run(stage())] == [True]
    assert [len(run.embedding) for run in desk.runs()] == [64, 64, 64, 0, 0, 0]


def test_rules_read_the_first_and_the_newest_rounds_and_only_when_there_is_another(
    store: Store, tmp_path: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation every two seconds must not read months of answers."""
    monkeypatch.setattr(prints, "REFERENCE", 2)
    monkeypatch.setattr(prints, "NEWEST", 1)
    desk = Desk(store, declared(tmp_path, endpoint.url))
    for _ in range(4):
        desk.run()
        desk.at += timedelta(hours=1)
    shelf = Shelf()
    with store.read() as tx:
        found = shelf.prints(tx, "support-model", AT)
        assert shelf.prints(tx, "support-model", AT) is found
    assert sorted({run.at for run in found}) == [AT, AT + timedelta(hours=1), AT + timedelta(hours=3)]
    desk.run()
    with store.read() as tx:
        assert max(run.at for run in shelf.prints(tx, "support-model", AT)) == AT + timedelta(hours=4)


def test_two_workers_ask_a_round_once(store: Store, tmp_path: Path, endpoint: Endpoint) -> None:
    """Who finds it leased leaves it; whose lease ran out keeps nothing."""
    (one,) = declared(tmp_path, endpoint.url)
    with store.begin() as tx:
        mine = prints.claim(tx, one, AT, lease=timedelta(minutes=20))
    with store.begin() as tx:
        assert prints.claim(tx, one, AT + timedelta(minutes=1), lease=timedelta(minutes=20)) is None
    with store.begin() as tx:
        other = prints.claim(tx, one, AT + timedelta(minutes=21), lease=timedelta(minutes=20))
    assert (mine, other) == (AT, AT + timedelta(minutes=21))
    with store.begin() as tx:
        assert not prints.settle(tx, one.name, AT + timedelta(minutes=20), {"round_at": AT}, [])
        assert prints.settle(tx, one.name, AT + timedelta(minutes=41), {"round_at": other}, [])


def test_an_accepted_behaviour_and_a_new_definition_begin_a_new_reference(
    store: Store, tmp_path: Path, endpoint: Endpoint
) -> None:
    """What was answered before is not compared with any more; retention keeps the reference that is in use."""
    desk = Desk(store, declared(tmp_path, endpoint.url))
    desk.run()
    desk.at += timedelta(hours=1)
    with desk.store.begin() as tx:
        prints.accept(tx, "support-model", desk.at, actor="alice", reason="a new model on purpose")
        with pytest.raises(ConfigError, match="support-model"):
            prints.accept(tx, "suport", desk.at, actor="alice", reason="?")
    assert desk.runs() == []
    desk.run()
    assert len(desk.runs()) == 3
    with desk.store.begin() as tx:
        assert prints.remove_old(tx, desk.at + timedelta(days=400)) == 3
    assert len(desk.runs()) == 3
    desk.sets = declared(tmp_path, endpoint.url, **{"Be brief.": "Be long."})
    desk.at += timedelta(minutes=4)
    assert desk.run() == []  # two workers with different files do not ask in turns without a pause
    desk.at += timedelta(minutes=1)
    desk.run()
    assert len(desk.runs()) == 3
    with desk.store.read() as tx:
        assert [(r["name"], r["rounds"]) for r in prints.listing(tx)] == [("support-model", 1)]


def test_mistakes_in_the_file_are_named_with_their_line(tmp_path: Path) -> None:
    """Wrong words, names that are used twice, settings that belong to the set itself."""
    with pytest.raises(ScorecardError) as raised:
        declared(
            tmp_path,
            "http://x/v1",
            **{"{temperature: 0.2}": "{model: other}", "name: refund": "name: greeting", "every: 1h": "every: 10s"},
        )
    told = str(raised.value)
    assert "fingerprints.yaml:6:" in told
    assert "is set by the fingerprint itself" in told
    assert "fingerprints.yaml:7:" in told
    assert "fingerprints.yaml:10:" in told
