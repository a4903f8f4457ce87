"""Every judge in the registry, against a real HTTP server that speaks its protocol and is as troublesome as told."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from evalpipe.errors import ConfigError, JudgeRejected, JudgeUnavailable, PermanentError
from evalpipe.judges import attempts
from evalpipe.judges.base import Answer, Judge, judges
from evalpipe.judges.config import open_judge, parse_judge
from evalpipe.record import Record, Release
from evalpipe.score import Status
from evalpipe.scorecard.model import JudgeSpec
from evalpipe.scorers.judged import build_prompt, grade

SPEC = JudgeSpec(kind="boolean", rubric="The answer is polite.")
RECORD = Record("r1", "t1", datetime(2026, 1, 1, tzinfo=UTC), Release("shop"), output="Certainly, madam.")
PROMPT = build_prompt(SPEC, RECORD, "w1")
HTTP_PROVIDERS = ("anthropic", "openai")
PATHS = {"openai": "/v1", "anthropic": ""}


class JudgeServer:
    """An HTTP server that speaks both protocols; the n-th request gets the n-th act, further ones the last."""

    def __init__(self, acts: list[str], retry_after: str = "") -> None:
        self.acts, self.retry_after = acts, retry_after
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler(), bind_and_activate=False)
        self._server.request_queue_size = 128
        self._server.server_bind()
        self._server.server_activate()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End hanging requests and stop."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def next_act(self, body: dict[str, Any], headers: dict[str, str]) -> str:
        """The act of this request, which is counted."""
        with self._lock:
            self.requests.append(body)
            self.headers.append(headers)
            return self.acts[min(len(self.requests), len(self.acts)) - 1]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                act = server.next_act(body, {name.lower(): value for name, value in self.headers.items()})
                if act == "hang":
                    server.closing.wait(10)
                if act in {"hang", "disconnect"}:
                    self.close_connection = True
                    return
                speak = openai_body if self.path.endswith("/chat/completions") else anthropic_body
                status, text = speak(act, body)
                data = text.encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                if server.retry_after and status in {429, 503}:
                    self.send_header("retry-after", server.retry_after)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


def said(act: str) -> str:
    """What the model says in an act that is no trouble of HTTP."""
    texts = {"garbage": "Lovely weather.", "empty": "", "refused": "I will not."}
    whole = json.dumps({"explanation": "because", "quotation": "", "grade": act})
    return texts.get(act, whole[:20] if act == "truncated" else whole)


def trouble(act: str) -> tuple[int, str] | None:
    """Status and body of an act that no model answers."""
    if act.isdecimal():
        return int(act), json.dumps({"error": {"message": f"it is {act}", "type": "some_error", "code": None}})
    return {"not-json": (200, "<html>Bad gateway"), "not-an-answer": (200, '{"choices": [], "content": null}')}.get(act)


def openai_body(act: str, request: dict[str, Any]) -> tuple[int, str]:
    """Status and body of a chat completion."""
    if act == "no-credit":
        return 429, json.dumps({"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}})
    if act == "no-temperature" and "temperature" in request:
        return 400, json.dumps({"error": {"message": "no temperature", "param": "temperature"}})
    if found := trouble(act):
        return found
    message: dict[str, Any] = {"role": "assistant", "content": said("pass" if act == "no-temperature" else act)}
    if act == "refused":
        message = {"role": "assistant", "content": None, "refusal": said(act)}
    choice = {"index": 0, "message": message, "finish_reason": "length" if act == "truncated" else "stop"}
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 60}}
    return 200, json.dumps(
        {"model": "answering-model", "choices": [choice], "usage": usage, "system_fingerprint": "fp"}
    )


def anthropic_body(act: str, _: dict[str, Any]) -> tuple[int, str]:
    """Status and body of a message."""
    if act == "no-credit":
        message = "Your credit balance is too low to access the API."
        return 400, json.dumps({"type": "error", "error": {"type": "invalid_request_error", "message": message}})
    if found := trouble(act):
        return found
    stop = {"truncated": "max_tokens", "refused": "refusal"}.get(act, "end_turn")
    usage = {
        "input_tokens": 40,
        "cache_read_input_tokens": 60,
        "cache_creation_input_tokens": None,
        "output_tokens": 20,
    }
    content = [{"type": "text", "text": said(act)}]
    return 200, json.dumps({"model": "answering-model", "content": content, "stop_reason": stop, "usage": usage})


class Rig:
    """A judge of one provider, with the acts that its calls get and a count of its calls."""

    def __init__(self, provider: str) -> None:
        self.provider = provider
        self.servers: list[JudgeServer] = []

    def judge(self, *acts: str, retry_after: str = "", options: str = "", **settings: Any) -> Judge:
        """A judge whose successive calls get ``acts``."""
        settings = {"timeout_s": 5.0, "attempts": 3} | settings
        if self.provider == "fake":
            options += f"&acts={','.join(acts)}" + (f"&retry_after_s={retry_after}" if retry_after else "")
            judge = open_judge(parse_judge(f"fake:model?{options.lstrip('&')}", **settings))
            self.calls: Callable[[], int] = lambda: judge.calls  # type: ignore[attr-defined]
            return judge
        assert self.provider in PATHS, f"judge {self.provider!r} is new: teach this test's server its protocol"
        server = JudgeServer(list(acts), retry_after)
        self.servers.append(server)
        self.calls = lambda: len(server.requests)
        url = server.url + PATHS[self.provider]
        return open_judge(parse_judge(f"{self.provider}:model@{url}?{options}", **settings))


@pytest.fixture(autouse=True)
def short_pauses_and_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that a test can wait for, and none of the developer's own keys and endpoints."""
    monkeypatch.setattr(attempts, "FIRST_WAIT_S", 0.01)
    for name in (
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_AUTH_TOKEN",
        "ANTHROPIC_BASE_URL",
    ):
        monkeypatch.delenv(name, raising=False)


def rigs(provider: str) -> Iterator[Rig]:
    """A rig whose servers are closed afterwards."""
    rig = Rig(provider)
    yield rig
    for server in rig.servers:
        server.close()


@pytest.fixture(params=sorted(judges))
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Each judge of the registry."""
    yield from rigs(request.param)


@pytest.fixture(params=HTTP_PROVIDERS)
def http_rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Each judge that speaks HTTP."""
    yield from rigs(request.param)


@pytest.fixture
def openai_rig() -> Iterator[Rig]:
    """The judge ``openai``."""
    yield from rigs("openai")


def ask(judge: Judge, times: int = 1) -> list[Answer]:
    """The answers to ``times`` calls at once on one loop, which ends with the judge closed."""

    async def go() -> list[Answer]:
        try:
            return list(await asyncio.gather(*(judge.ask(PROMPT) for _ in range(times))))
        finally:
            await judge.aclose()
            await judge.aclose()

    return asyncio.run(go())


def graded(judge: Judge) -> Any:
    """The grade of the record."""

    async def go() -> Any:
        try:
            return await grade(judge, SPEC, RECORD, "w1")
        finally:
            await judge.aclose()

    return asyncio.run(go())


def test_a_good_answer_is_a_grade_with_what_it_took(rig: Rig) -> None:
    """Value, label, explanation, the model that answered, tokens, time and the count of attempts are all there."""
    found = graded(rig.judge("pass"))
    assert (found.status, found.value, found.label) == (Status.SCORED, 1.0, "pass")
    assert found.explanation
    assert found.answer.model
    assert found.answer.input_tokens >= found.answer.cached_tokens >= 0
    assert found.answer.input_tokens > 10
    assert found.answer.output_tokens > 0
    assert found.answer.latency_ms >= 0
    assert found.answer.attempts == rig.calls() == 1


def test_a_throttled_call_waits_as_asked_and_is_tried_again(rig: Rig) -> None:
    """Retry-After is honoured, and both calls are counted."""
    started = time.perf_counter()
    [answer] = ask(rig.judge("429", "pass", retry_after="0.2"))
    assert time.perf_counter() - started >= 0.2
    assert answer.attempts == rig.calls() == 2
    assert answer.latency_ms < 200


@pytest.mark.parametrize("act", ["500", "503", "529", "429", "disconnect"])
def test_a_failing_provider_costs_the_configured_attempts_and_no_more(rig: Rig, act: str) -> None:
    """Three attempts are three calls, then the work goes back to the queue."""
    with pytest.raises(JudgeUnavailable, match="attempt 3 of 3"):
        ask(rig.judge(act))
    assert rig.calls() == 3


def test_one_attempt_is_one_call(rig: Rig) -> None:
    """The libraries' own retries are off."""
    with pytest.raises(JudgeUnavailable):
        ask(rig.judge("500", attempts=1))
    assert rig.calls() == 1


def test_a_hanging_provider_is_left_after_the_timeout_of_each_attempt(rig: Rig) -> None:
    """A judge that never answers costs attempts times timeout."""
    started = time.perf_counter()
    with pytest.raises(JudgeUnavailable, match=r"did not answer within 0\.2 s .attempt 2 of 2."):
        ask(rig.judge("hang", timeout_s=0.2, attempts=2))
    assert 0.4 <= time.perf_counter() - started < 5
    assert rig.calls() == 2


def test_a_long_wait_is_the_queues_business(rig: Rig) -> None:
    """A provider that asks for an hour is not waited for; the hint travels with the exception."""
    with pytest.raises(JudgeUnavailable) as caught:
        ask(rig.judge("429", retry_after="3600"))
    assert caught.value.retry_after_s == 3600
    assert rig.calls() == 1


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        ("garbage", "not JSON"),
        ("empty", "nothing"),
        ("truncated", "cut"),
        ("refused", "refused"),
        ("perhaps", "'perhaps'"),
    ],
)
def test_an_answer_that_is_no_grade_is_an_error_and_never_a_score(rig: Rig, act: str, reason: str) -> None:
    """What was said and what it took are kept; it is not asked again."""
    found = graded(rig.judge(act))
    assert (found.status, found.value) == (Status.ERROR, None)
    assert reason in found.explanation
    assert found.raw == found.answer.text
    assert bool(found.raw) == (act != "empty")
    assert found.answer.input_tokens > 0
    assert rig.calls() == 1


def test_a_judge_that_cannot_tell_abstains(rig: Rig) -> None:
    """Abstaining is a status of its own."""
    found = graded(rig.judge("cannot_tell"))
    assert (found.status, found.value) == (Status.ABSTAINED, None)


@pytest.mark.parametrize("status", ["401", "402", "403", "404"])
def test_a_refused_account_or_model_needs_a_human(rig: Rig, status: str) -> None:
    """Trying again cannot help, so nothing is tried again."""
    with pytest.raises(JudgeRejected, match=f"HTTP {status}"):
        ask(rig.judge(status))
    assert rig.calls() == 1


@pytest.mark.parametrize("status", ["400", "413", "422"])
def test_a_refused_request_is_one_works_error_and_not_the_judges(rig: Rig, status: str) -> None:
    """A record that is too long must not stop the judge for all others."""
    with pytest.raises(PermanentError) as caught:
        ask(rig.judge(status))
    assert not isinstance(caught.value, JudgeRejected)
    found = graded(rig.judge(status))
    assert (found.status, found.answer) == (Status.ERROR, None)
    assert f"HTTP {status}" in found.explanation


def test_fifty_calls_at_once_share_one_loop(rig: Rig) -> None:
    """Every call gets its answer with one request each, and closing leaves nothing open (a warning fails the test)."""
    answers = ask(rig.judge("pass"), times=50)
    assert [answer.attempts for answer in answers] == [1] * 50
    assert rig.calls() == 50


def test_the_version_names_the_judge_and_no_secret(rig: Rig) -> None:
    """Provider, model and host, but never the key."""
    judge = rig.judge("pass", api_key="sk-secret")
    assert judge.version.startswith(f"{rig.provider}:model")
    assert "secret" not in judge.version


def test_an_unknown_option_is_named(rig: Rig) -> None:
    """A misspelt option is an error at once, with the right ones."""
    with pytest.raises(ConfigError, match=r"option 'temprature'.*the options are: .*usd_per_mtok"):
        rig.judge("pass", options="temprature=1")


@pytest.mark.parametrize("act", ["not-json", "not-an-answer"])
def test_a_body_that_is_no_answer_is_the_servers_failure(http_rig: Rig, act: str) -> None:
    """A gateway's HTML page with status 200 is tried again."""
    with pytest.raises(JudgeUnavailable, match="a body that is no answer"):
        ask(http_rig.judge(act, attempts=2))
    assert http_rig.calls() == 2


def test_no_credit_is_told_from_throttling(http_rig: Rig) -> None:
    """OpenAI sends 429 for both, Anthropic 400; only throttling passes by itself."""
    with pytest.raises(JudgeRejected, match="no credit"):
        ask(http_rig.judge("no-credit"))
    assert http_rig.calls() == 1


def test_a_closed_port_is_unavailable(http_rig: Rig) -> None:
    """Connection refused is an outage like any other."""
    judge = http_rig.judge("pass", attempts=2)
    http_rig.servers.pop().close()
    with pytest.raises(JudgeUnavailable, match="cannot be reached"):
        ask(judge)


@pytest.mark.parametrize(("provider", "variable"), [("openai", "OPENAI_API_KEY"), ("anthropic", "ANTHROPIC_API_KEY")])
def test_a_missing_key_says_which_variable_to_set(provider: str, variable: str) -> None:
    """Without a key and an endpoint of one's own nothing is sent."""
    with pytest.raises(JudgeRejected, match=variable):
        ask(open_judge(parse_judge(f"{provider}:model")))


@pytest.mark.parametrize(("provider", "variable"), [("openai", "OPENAI_API_KEY"), ("anthropic", "ANTHROPIC_API_KEY")])
def test_the_providers_key_never_goes_to_another_endpoint(
    provider: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local endpoint gets no key of the environment; one that is configured for it is sent."""
    monkeypatch.setenv(variable, "sk-of-the-provider")
    rig = Rig(provider)
    ask(rig.judge("pass"))
    ask(rig.judge("pass", api_key="sk-local"))
    sent = [json.dumps(server.headers) for server in rig.servers]
    for server in rig.servers:
        server.close()
    assert "sk-of-the-provider" not in sent[0]
    assert "sk-local" in sent[1]


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_judges_requests_say_that_they_are_a_judges(provider: str) -> None:
    """A gateway that records calls for evalpipe sees it, and judges are not judged."""
    rig = Rig(provider)
    ask(rig.judge("pass"))
    rig.servers[0].close()
    assert [headers["x-evalpipe-judge"] for headers in rig.servers[0].headers] == ["1"]


def test_openai_is_asked_for_a_strict_schema_at_temperature_zero(openai_rig: Rig) -> None:
    """The rubric goes first and the record last; the answer's form is fixed by the schema."""
    [answer] = ask(openai_rig.judge("pass", options="seed=7"))
    [body] = openai_rig.servers[0].requests
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["response_format"]["json_schema"]["strict"] is True
    assert body["response_format"]["json_schema"]["schema"] == PROMPT.schema
    assert (body["temperature"], body["seed"], body["max_tokens"]) == (0.0, 7, PROMPT.max_tokens)
    assert (answer.model, answer.fingerprint, answer.cached_tokens) == ("answering-model", "fp", 60)
    assert answer.cost_usd is None


def test_a_model_without_temperature_is_asked_without_it_from_then_on(openai_rig: Rig) -> None:
    """The refusal of the parameter costs one unpaid request, once."""
    judge = openai_rig.judge("no-temperature")

    async def go() -> list[Answer]:
        answers = [await judge.ask(PROMPT), await judge.ask(PROMPT)]
        await judge.aclose()
        return answers

    assert [answer.attempts for answer in asyncio.run(go())] == [1, 1]
    assert ["temperature" in body for body in openai_rig.servers[0].requests] == [True, False, False]


@pytest.mark.parametrize(("structured", "kind"), [("json_object", "json_object"), ("none", None)])
def test_a_server_without_schemas_can_be_asked_for_less(openai_rig: Rig, structured: str, kind: str | None) -> None:
    """The option ``structured`` chooses what is sent."""
    ask(openai_rig.judge("pass", options=f"structured={structured}"))
    assert openai_rig.servers[0].requests[0].get("response_format", {}).get("type") == kind


def test_anthropic_is_asked_for_a_schema_with_the_rubric_cached() -> None:
    """The API takes no temperature; the rubric is a cached block, and cached tokens count within the input."""
    rig = Rig("anthropic")
    [answer] = ask(rig.judge("pass", options="effort=low&usd_per_mtok=1/10"))
    rig.servers[0].close()
    [body] = rig.servers[0].requests
    assert body["output_config"] == {"format": {"type": "json_schema", "schema": PROMPT.schema}, "effort": "low"}
    assert body["system"] == [{"type": "text", "text": PROMPT.system, "cache_control": {"type": "ephemeral"}}]
    assert "temperature" not in body
    assert (answer.input_tokens, answer.cached_tokens, answer.output_tokens) == (100, 60, 20)
    assert answer.cost_usd == pytest.approx((100 * 1 + 20 * 10) / 1e6)
