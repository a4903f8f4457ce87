"""Every judge in the registry, against a real HTTP server that speaks its protocol and is as troublesome as told."""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
import threading
import time
import typing
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import TypeAdapter
from stopwatch import assert_quick

from evalpipe.errors import ConfigError, EvalpipeError, JudgeRejected, JudgeUnavailable, PermanentError
from evalpipe.judges import attempts
from evalpipe.judges.base import Answer, Judge, Prompt, judges
from evalpipe.judges.config import open_judge, parse_judge
from evalpipe.judges.openai import read_tokens
from evalpipe.record import Record, Release
from evalpipe.score import Status
from evalpipe.scorecard.model import JudgeSpec
from evalpipe.scorers.judged import Question, build_prompt
from evalpipe.scorers.reading import parse, parse_all

SPEC = JudgeSpec(kind="boolean", rubric="The answer is polite.")
RECORD = Record("r1", "t1", datetime(2026, 1, 1, tzinfo=UTC), Release("shop"), output="Certainly, madam.")
PROMPT = build_prompt(Question(SPEC), RECORD, "w1")
LIKELY = build_prompt(Question(SPEC.model_copy(update={"logprobs": True})), RECORD, "w1")
SPECS = {
    "polite": SPEC.model_copy(update={"logprobs": True}),
    "warm": JudgeSpec(kind="scale", rubric="It is warm.", anchors={1: "cold", 5: "warm"}, logprobs=True),
}
SEVERAL = build_prompt(Question(SPECS), RECORD, "w1")
PATHS = {"openai": "/v1", "openai-responses": "/v1", "openai-decisions": "/v1", "anthropic": ""}
HTTP_PROVIDERS = tuple(PATHS)
OPENAI_PROVIDERS = tuple(name for name in PATHS if name.startswith("openai"))
WORDLESS = ("openai-decisions",)
"""They answer typed questions: what they say cannot be cut, empty or no JSON."""


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
                status, text = SPEAK[self.path.rpartition("/")[2]](act, body)
                data = text.encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.send_header("request-id" if self.path.endswith("/messages") else "x-request-id", "call-7")
                if server.retry_after and status in {429, 503}:
                    self.send_header("retry-after", server.retry_after)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


def said(act: str, schema: dict[str, Any] | None = None) -> str:
    """What the model says in an act that is no trouble of HTTP: a grade, or one for each criterion."""
    texts = {"garbage": "Lovely weather.", "empty": "", "refused": "I will not."}
    grade = {"explanation": "because", "quotation": "", "grade": act}
    names = [] if schema is None or "grade" in schema["properties"] else list(schema["properties"])
    whole = json.dumps(dict.fromkeys(names, grade) or grade)
    return texts.get(act, whole[:20] if act == "truncated" else whole)


def listed(text: str) -> list[dict[str, Any]]:
    """The tokens of ``text`` as OpenAI lists them: 30 % for another grade wherever there is one."""
    found = []
    for word in re.findall(r"\w+|\W+", text):
        others = {"pass": ["pass", "fail"], "3": ["3", "4"]}.get(word, [word])
        raw = list(word.encode())
        top = [
            {"token": w, "bytes": list(w.encode()), "logprob": math.log(p)}
            for w, p in zip(others, (0.7, 0.3), strict=False)
        ]
        found.append({"token": word, "bytes": raw, "logprob": top[0]["logprob"], "top_logprobs": top})
    return found


def trouble(act: str, body: dict[str, Any]) -> tuple[int, str] | None:
    """Status and body of an act that no model answers."""
    status, _, message = act.partition(": ")
    if status.isdecimal() and int(status) >= 400:
        error = {"message": message or f"it is {act}", "type": "some_error", "code": None}
        return int(status), json.dumps({"error": error})
    if act == "no-credit":
        return 429, json.dumps({"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}})
    param, _, message = act.removeprefix("no-").partition("=")
    if act.startswith("no-") and param in {"temperature", "logprobs", "top_logprobs"} and refuses(param, body):
        error = {"message": message or f"no {param}", "param": None if message else param}
        return 400, json.dumps({"error": error})
    return {"not-json": (200, "<html>Bad gateway"), "not-an-answer": (200, '{"choices": [], "content": null}')}.get(act)


def refuses(param: str, body: dict[str, Any]) -> bool:
    """Whether a server that does not know ``param``, or only five alternatives of a token, refuses this request."""
    if param == "top_logprobs":
        return body.get("top_logprobs", 0) > 5
    return param in body or (param == "logprobs" and "include" in body)


def chat_body(act: str, request: dict[str, Any]) -> tuple[int, str]:
    """Status and body of a chat completion."""
    if found := trouble(act, request):
        return found
    form = request.get("response_format", {}).get("json_schema", {}).get("schema")
    text = said("pass" if act.startswith("no-") else act, form)
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if act == "refused":
        message = {"role": "assistant", "content": None, "refusal": text}
    choice = {"index": 0, "message": message, "finish_reason": "length" if act == "truncated" else "stop"}
    if request.get("logprobs"):
        choice["logprobs"] = {"content": listed(text), "refusal": None}
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    usage |= {"prompt_tokens_details": {"cached_tokens": 60}}  # type: ignore[dict-item]
    body = {"id": "c-1", "object": "chat.completion", "created": 1, "model": "answering-model"}
    return 200, json.dumps(body | {"choices": [choice], "usage": usage, "system_fingerprint": "fp"})


def responses_body(act: str, request: dict[str, Any]) -> tuple[int, str]:
    """Status and body of a response."""
    if found := trouble(act, request):
        return found
    body: dict[str, Any] = {"id": "r-1", "object": "response", "created_at": 1, "model": "answering-model"}
    body |= {"status": "completed", "usage": typed_usage(), "parallel_tool_calls": True}
    body |= {"tool_choice": "auto", "tools": []}
    if act.startswith("failed:"):
        error = {"code": act.partition(":")[2], "message": "it failed"}
        return 200, json.dumps(body | {"status": "failed", "error": error, "output": []})
    text = said("pass" if act.startswith("no-") else act, request.get("text", {}).get("format", {}).get("schema"))
    part: dict[str, Any] = {"type": "output_text", "text": text, "annotations": []}
    if "message.output_text.logprobs" in request.get("include", []):
        part["logprobs"] = listed(text)
    if act == "refused":
        part = {"type": "refusal", "refusal": text}
    thought = {"type": "reasoning", "id": "t", "summary": []}
    said_aside = {"type": "output_text", "text": "Let me see.", "annotations": []}
    message = {"type": "message", "id": "m", "role": "assistant", "status": "completed"}
    aside = message | {"phase": "commentary", "content": [said_aside]}
    reason = {"truncated": "max_output_tokens", "filtered": "content_filter"}.get(act)
    if reason is not None:
        body |= {"status": "incomplete", "incomplete_details": {"reason": reason}}
    return 200, json.dumps(body | {"output": [thought, aside, message | {"content": [part]}]})


def decisions_body(act: str, request: dict[str, Any]) -> tuple[int, str]:
    """Status and body of decisions: 70 % for the act's grade, and the rest for the next one."""
    if found := trouble(act, request):
        return found

    def answer(place: int, question: dict[str, Any]) -> dict[str, Any]:
        named = {"name": question.get("name")}
        if act == "refused" or (act == "half-refused" and place == 1):
            return named | {"type": "refusal"}
        values = [choice["value"] for choice in question["choices"]]
        grade = values[0] if act == "half-refused" else act
        others = [value for value in values if value != grade]
        likely = {grade: 0.7, others[0]: 0.3} | dict.fromkeys(others[1:], 0.0)
        told = [{"value": value, "probability": p} for value, p in likely.items()]
        return named | {"type": "choice", "choice": grade, "confidence": 0.4, "probabilities": told}

    answers = [answer(place, question) for place, question in enumerate(request["questions"])]
    return 200, json.dumps({"answers": answers, "model": "answering-model", "usage": typed_usage()})


def typed_usage() -> dict[str, Any]:
    """What OpenAI's newer endpoints say of tokens."""
    return {
        "input_tokens": 100,
        "input_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 0},
        "output_tokens": 20,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 120,
    }


def anthropic_body(act: str, request: dict[str, Any]) -> tuple[int, str]:
    """Status and body of a message."""
    if act == "no-credit":
        message = "Your credit balance is too low to access the API."
        return 400, json.dumps({"type": "error", "error": {"type": "invalid_request_error", "message": message}})
    if found := trouble(act, request):
        return found
    stop = {"truncated": "max_tokens", "refused": "refusal", "too-long": "model_context_window_exceeded"}
    usage = {
        "input_tokens": 40,
        "cache_read_input_tokens": 60,
        "cache_creation_input_tokens": None,
        "output_tokens": 20,
    }
    if act == "writes":
        usage |= {"cache_read_input_tokens": 0, "cache_creation_input_tokens": 60}
        usage |= {"cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 60}}  # type: ignore[dict-item]
    form = request.get("output_config", {}).get("format", {}).get("schema")
    content = [{"type": "text", "text": said("pass" if act == "writes" else act, form)}]
    reason = stop.get(act, "end_turn")
    body = {"id": "m-1", "type": "message", "role": "assistant", "model": "answering-model", "content": content}
    return 200, json.dumps(body | {"stop_reason": reason, "usage": usage})


PROTOCOLS = {
    "openai": "completions",
    "openai-responses": "responses",
    "openai-decisions": "decisions",
    "anthropic": "messages",
}
SPEAK: dict[str, Callable[[str, dict[str, Any]], tuple[int, str]]] = {
    "completions": chat_body,
    "responses": responses_body,
    "decisions": decisions_body,
    "messages": anthropic_body,
}


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


@pytest.fixture(params=[name for name in sorted(judges) if name not in WORDLESS])
def wordy_rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Each judge that answers in words."""
    yield from rigs(request.param)


@pytest.fixture(params=HTTP_PROVIDERS)
def http_rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Each judge that speaks HTTP."""
    yield from rigs(request.param)


@pytest.fixture(params=OPENAI_PROVIDERS)
def openai_family(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Each judge over OpenAI's library."""
    yield from rigs(request.param)


@pytest.fixture
def openai_rig() -> Iterator[Rig]:
    """The judge ``openai``."""
    yield from rigs("openai")


@pytest.fixture
def responses_rig() -> Iterator[Rig]:
    """The judge ``openai-responses``."""
    yield from rigs("openai-responses")


@pytest.fixture
def decisions_rig() -> Iterator[Rig]:
    """The judge ``openai-decisions``."""
    yield from rigs("openai-decisions")


@pytest.fixture
def anthropic_rig() -> Iterator[Rig]:
    """The judge ``anthropic``."""
    yield from rigs("anthropic")


def ask(judge: Judge, times: int = 1, prompt: Prompt = PROMPT) -> list[Answer]:
    """The answers to ``times`` calls at once on one loop, which ends with the judge closed."""

    async def go() -> list[Answer]:
        try:
            return list(await asyncio.gather(*(judge.ask(prompt) for _ in range(times))))
        finally:
            await judge.aclose()
            await judge.aclose()

    return asyncio.run(go())


def twice(judge: Judge, prompt: Prompt = PROMPT) -> list[Answer]:
    """The answers to two calls, one after the other."""

    async def go() -> list[Answer]:
        answers = [await judge.ask(prompt), await judge.ask(prompt)]
        await judge.aclose()
        return answers

    return asyncio.run(go())


def troubles(judge: Judge, times: int) -> list[EvalpipeError]:
    """The exceptions of calls made one after the other."""

    async def go() -> list[EvalpipeError]:
        found = []
        for _ in range(times):
            with pytest.raises(EvalpipeError) as caught:
                await judge.ask(PROMPT)
            found.append(caught.value)
        await judge.aclose()
        return found

    return asyncio.run(go())


def library_types(provider: str) -> tuple[Any, Any]:
    """The provider's library's types of a request and of its answer."""
    if provider == "anthropic":
        from anthropic.types import Message
        from anthropic.types.message_create_params import MessageCreateParamsNonStreaming

        return MessageCreateParamsNonStreaming, Message
    if provider == "openai-decisions":
        from openai.types.decision import Decision
        from openai.types.decision_create_params import DecisionCreateParams

        return DecisionCreateParams, Decision
    if provider == "openai-responses":
        from openai.types.responses import Response
        from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming

        return ResponseCreateParamsNonStreaming, Response
    from openai.types.chat import ChatCompletion
    from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming

    return CompletionCreateParamsNonStreaming, ChatCompletion


def graded(judge: Judge) -> Any:
    """The grade of the record."""
    [answer] = ask(judge)
    return parse(SPEC, answer, RECORD.output)


def test_a_good_answer_is_a_grade_with_what_it_took(rig: Rig) -> None:
    """Value, label, explanation, the model that answered, tokens, time and the count of attempts are all there."""
    found = graded(rig.judge("pass"))
    assert (found.status, found.value, found.label) == (Status.SCORED, 1.0, "pass")
    assert bool(found.explanation) == (rig.provider not in WORDLESS)
    assert found.answer.model
    assert found.answer.input_tokens >= found.answer.cached_tokens >= 0
    assert found.answer.input_tokens > 10
    assert found.answer.output_tokens > 0
    assert found.answer.latency_ms >= 0
    assert found.answer.attempts == rig.calls() == 1


def test_a_throttled_call_waits_as_asked_and_is_tried_again(rig: Rig) -> None:
    """Retry-After is honoured, both calls are counted, and the wait is no part of the answer's latency."""
    started = time.perf_counter()
    [answer] = ask(rig.judge("429", "pass", retry_after="0.2"))
    took_ms = (time.perf_counter() - started) * 1000
    assert took_ms >= 200
    assert answer.attempts == rig.calls() == 2
    assert answer.latency_ms <= took_ms - 200


def test_a_failing_provider_costs_the_configured_attempts_and_no_more(rig: Rig) -> None:
    """Three attempts are three calls, then the work goes back to the queue."""
    acts = ["500", "503", "529", "429", "disconnect"]
    failures = troubles(rig.judge(*[act for act in acts for _ in range(3)]), len(acts))
    assert rig.calls() == 3 * len(acts)
    for act, failure in zip(acts, failures, strict=True):
        assert isinstance(failure, JudgeUnavailable), act
        assert "attempt 3 of 3" in str(failure)
        cause = {"429": "throttled", "529": "throttled", "disconnect": "unreachable"}.get(act, "server")
        assert failure.cause == cause, act


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
    took = time.perf_counter() - started
    assert took >= 0.4
    assert_quick(took, 5)
    assert rig.calls() == 2


def test_a_long_wait_is_the_queues_business(rig: Rig) -> None:
    """A provider that asks for an hour is not waited for; the hint travels with the exception."""
    with pytest.raises(JudgeUnavailable) as caught:
        ask(rig.judge("429", retry_after="3600"))
    assert caught.value.retry_after_s == 3600
    assert rig.calls() == 1


def assert_kept_as_an_error(rig: Rig, act: str, reason: str) -> None:
    """The act is an error that keeps what was said and what it took."""
    found = graded(rig.judge(act))
    assert (found.status, found.value) == (Status.ERROR, None)
    assert reason in found.explanation
    assert found.raw == found.answer.text
    assert bool(found.raw) == (act != "empty")
    assert found.answer.input_tokens > 0
    assert rig.calls() == 1


@pytest.mark.parametrize(("act", "reason"), [("refused", "refused"), ("perhaps", "'perhaps'")])
def test_an_answer_that_is_no_grade_is_an_error_and_never_a_score(rig: Rig, act: str, reason: str) -> None:
    """What was said and what it took are kept; the judge does not ask again."""
    assert_kept_as_an_error(rig, act, reason)


@pytest.mark.parametrize(("act", "reason"), [("garbage", "not JSON"), ("empty", "nothing"), ("truncated", "cut")])
def test_words_that_are_no_grade_are_an_error_and_never_a_score(wordy_rig: Rig, act: str, reason: str) -> None:
    """So is what a model that answers in words can do wrong besides."""
    assert_kept_as_an_error(wordy_rig, act, reason)


def test_a_judge_that_cannot_tell_abstains(rig: Rig) -> None:
    """Abstaining is a status of its own."""
    found = graded(rig.judge("cannot_tell"))
    assert (found.status, found.value) == (Status.ABSTAINED, None)


def test_a_refused_account_or_model_needs_a_human(rig: Rig) -> None:
    """Trying again cannot help, so nothing is tried again; the cause tells who must act."""
    causes = {"401": "key", "402": "credit", "403": "forbidden", "404": "gone"}
    failures = troubles(rig.judge(*causes), len(causes))
    assert rig.calls() == len(causes)
    for (status, cause), failure in zip(causes.items(), failures, strict=True):
        assert isinstance(failure, JudgeRejected), status
        assert f"HTTP {status}" in str(failure)
        assert failure.cause == cause


def test_a_refused_request_is_one_works_error_and_not_the_judges(rig: Rig) -> None:
    """A record that is too long must not stop the judge for all others."""
    statuses = ["400", "413", "422"]
    failures = troubles(rig.judge(*statuses), len(statuses))
    assert rig.calls() == len(statuses)
    for status, failure in zip(statuses, failures, strict=True):
        assert type(failure) is PermanentError
        assert f"HTTP {status}" in str(failure)


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
    """A gateway's HTML page with status 200 is tried again; the model may have answered, and be paid for."""
    with pytest.raises(JudgeUnavailable, match="a body that is no answer") as found:
        ask(http_rig.judge(act, attempts=2))
    assert found.value.may_be_billed
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


@pytest.mark.parametrize(
    ("provider", "variable"),
    [(name, "ANTHROPIC_API_KEY" if name == "anthropic" else "OPENAI_API_KEY") for name in HTTP_PROVIDERS],
)
def test_a_missing_key_says_which_variable_to_set(provider: str, variable: str) -> None:
    """Without a key and an endpoint of one's own nothing is sent."""
    with pytest.raises(JudgeRejected, match=variable):
        ask(open_judge(parse_judge(f"{provider}:model")))


@pytest.mark.parametrize(
    ("provider", "variable"),
    [(name, "ANTHROPIC_API_KEY" if name == "anthropic" else "OPENAI_API_KEY") for name in HTTP_PROVIDERS],
)
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


def test_a_judges_requests_say_that_they_are_a_judges(http_rig: Rig) -> None:
    """A gateway that records calls for evalpipe sees it, and judges are not judged."""
    ask(http_rig.judge("pass"))
    assert [headers["x-evalpipe-judge"] for headers in http_rig.servers[0].headers] == ["1"]


def test_an_answer_carries_the_providers_name_for_the_call(http_rig: Rig) -> None:
    """Its support asks for it."""
    [answer] = ask(http_rig.judge("pass"))
    assert answer.request_id == "call-7"


def test_several_criteria_get_a_grade_each_in_one_call(rig: Rig) -> None:
    """The answer has one object for each criterion, whatever the provider's protocol."""
    [answer] = ask(rig.judge("3"), prompt=SEVERAL)
    assert rig.calls() == 1
    assert json.loads(answer.text).keys() == SPECS.keys()
    assert parse_all(SPECS, answer, RECORD.output)["warm"].label == "3"


def test_log_probabilities_are_given_where_they_can_be_and_only_when_asked_for(rig: Rig) -> None:
    """Together the tokens are the answer; a judge that gives none says so."""
    judge = rig.judge("pass")
    [plain] = ask(judge)
    [answer] = ask(judge, prompt=LIKELY)
    assert plain.tokens == ()
    assert bool(answer.tokens) == judge.gives_logprobs
    if answer.tokens:
        assert "".join(token.text for token in answer.tokens) == answer.text
        found = parse(SPECS["polite"], answer, RECORD.output)
        assert found.reading == "expected"
        assert 0.5 <= found.confidence < 1


def test_the_grade_of_openais_log_probabilities_is_their_mean(openai_family: Rig) -> None:
    """70 % for pass and 30 % for fail is 0.7; for 3 and 4 of 1 to 5 it is 0.575."""
    judge = openai_family.judge("pass")
    [answer] = ask(judge, prompt=LIKELY)
    found = parse(SPECS["polite"], answer, RECORD.output)
    assert (found.label, found.value, found.confidence) == ("pass", pytest.approx(0.7), pytest.approx(0.7))
    [answer] = ask(openai_family.judge("3"), prompt=SEVERAL)
    if openai_family.provider not in WORDLESS:  # its server gives the rest to another grade
        found = parse_all(SPECS, answer, RECORD.output)["warm"]
        assert (found.value, found.reading) == (pytest.approx(0.7 * 0.5 + 0.3 * 0.75), "expected")


@pytest.mark.parametrize("provider", ["openai", "openai-responses"])
@pytest.mark.parametrize(
    ("act", "asked"),
    [
        ("no-logprobs", [20, None, None]),
        ("no-logprobs=You are not allowed to request logprobs from this model", [20, None, None]),
        ("no-top_logprobs", [20, 5, 5]),
        ("no-top_logprobs=top_logprobs must be at most 5", [20, 5, 5]),
    ],
)
def test_a_server_that_refuses_log_probabilities_is_asked_for_less_from_then_on(
    provider: str, act: str, asked: list[int | None]
) -> None:
    """By the field of the refusal or by its words: fewer alternatives first, then none."""
    for rig in rigs(provider):
        answers = twice(rig.judge(act), LIKELY)
        assert [answer.attempts for answer in answers] == [1, 1]
        assert [body.get("top_logprobs") for body in rig.servers[0].requests] == asked
        assert bool(answers[1].tokens) == (asked[-1] is not None)


def test_log_probabilities_in_another_form_do_not_cost_the_answer(openai_rig: Rig, monkeypatch: Any) -> None:
    """The grade as said is good without them."""
    monkeypatch.setattr(sys.modules[__name__], "listed", lambda text: [{"token": text, "logprob": None}])
    [answer] = ask(openai_rig.judge("pass"), prompt=LIKELY)
    assert (answer.tokens, parse(SPECS["polite"], answer, RECORD.output).reading) == ((), "word")


def test_a_character_that_lies_across_two_tokens_is_put_together() -> None:
    """The tokens' text together is the answer's."""
    halves = [{"token": "?", "bytes": [part], "logprob": -0.1, "top_logprobs": []} for part in "é".encode()]
    assert [token.text for token in read_tokens(halves)] == ["", "é"]


def test_openai_is_asked_for_a_strict_schema_at_temperature_zero(openai_rig: Rig) -> None:
    """The rubric goes first and the record last; the answer's form is fixed by the schema."""
    [answer] = ask(openai_rig.judge("pass", options="seed=7"))
    [body] = openai_rig.servers[0].requests
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["response_format"]["json_schema"]["strict"] is True
    assert body["response_format"]["json_schema"]["schema"] == PROMPT.schema
    assert (body["temperature"], body["seed"], body["max_tokens"]) == (0.0, 7, PROMPT.max_tokens)
    assert "logprobs" not in body
    assert (answer.model, answer.fingerprint, answer.cached_tokens) == ("answering-model", "fp", 60)
    assert answer.cost_usd is None


@pytest.mark.parametrize("provider", ["openai", "openai-responses"])
def test_a_model_without_temperature_is_asked_without_it_from_then_on(provider: str) -> None:
    """The refusal of the parameter costs one unpaid request, once."""
    for rig in rigs(provider):
        assert [answer.attempts for answer in twice(rig.judge("no-temperature"))] == [1, 1]
        assert ["temperature" in body for body in rig.servers[0].requests] == [True, False, False]


def test_a_refusal_that_quotes_the_record_changes_nothing_for_others(openai_rig: Rig) -> None:
    """A record that speaks of temperature, in a request that is refused anyway, does not turn it off."""
    judge = openai_rig.judge("400: the temperature is high", "400: the temperature is high", "pass")

    async def go() -> None:
        with pytest.raises(PermanentError):
            await judge.ask(PROMPT)
        await judge.ask(PROMPT)
        await judge.aclose()

    asyncio.run(go())
    assert ["temperature" in body for body in openai_rig.servers[0].requests] == [True, False, True]


@pytest.mark.parametrize(("structured", "kind"), [("json_object", "json_object"), ("none", None)])
def test_a_server_without_schemas_can_be_asked_for_less(openai_rig: Rig, structured: str, kind: str | None) -> None:
    """The option ``structured`` chooses what is sent."""
    ask(openai_rig.judge("pass", options=f"structured={structured}"))
    assert openai_rig.servers[0].requests[0].get("response_format", {}).get("type") == kind


def test_the_responses_api_is_asked_to_keep_nothing(responses_rig: Rig) -> None:
    """The rubric is the instructions, the record the input; thinking is bounded, and the answer's form fixed."""
    [answer] = ask(responses_rig.judge("pass", options="effort=low&usd_per_mtok=1/10"))
    [body] = responses_rig.servers[0].requests
    assert (body["instructions"], body["input"], body["store"]) == (PROMPT.system, PROMPT.user, False)
    form = {"type": "json_schema", "name": "grade", "strict": True, "schema": PROMPT.schema}
    assert (body["text"], body["reasoning"]) == ({"format": form}, {"effort": "low"})
    assert (body["max_output_tokens"], body["temperature"]) == (PROMPT.max_tokens, 0.0)
    assert (answer.model, answer.cached_tokens, answer.output_tokens) == ("answering-model", 60, 20)
    assert answer.cost_usd == pytest.approx((100 * 1 + 20 * 10) / 1e6)


@pytest.mark.parametrize("act", ["filtered", "failed:bio_policy"])
def test_a_response_that_the_provider_withholds_is_a_refusal(responses_rig: Rig, act: str) -> None:
    """Content filters and policies come with status 200; to ask again would not help."""
    [answer] = ask(responses_rig.judge(act))
    assert (answer.finish, responses_rig.calls()) == ("refused", 1)


@pytest.mark.parametrize(("code", "cause"), [("server_error", "server"), ("rate_limit_exceeded", "throttled")])
def test_a_response_that_failed_is_tried_again(responses_rig: Rig, code: str, cause: str) -> None:
    """The model's failure comes with status 200 too."""
    with pytest.raises(JudgeUnavailable) as caught:
        ask(responses_rig.judge(f"failed:{code}", attempts=2))
    assert (caught.value.cause, responses_rig.calls()) == (cause, 2)


def test_decisions_are_one_choice_for_each_criterion(decisions_rig: Rig) -> None:
    """The rubric and the record are the input, the grades the choices; the probabilities are the reading."""
    [answer] = ask(decisions_rig.judge("pass"), prompt=LIKELY)
    ask(decisions_rig.judge("pass"), prompt=SEVERAL)
    one, several = (server.requests[0] for server in decisions_rig.servers)
    assert [message["role"] for message in one["input"]] == ["system", "user"]
    assert one["input"][1]["content"] == LIKELY.user
    [question] = one["questions"]
    assert [choice["value"] for choice in question["choices"]] == ["pass", "fail", "cannot_tell"]
    assert [question["name"] for question in several["questions"]] == list(SPECS)
    assert json.loads(answer.text) == {"explanation": "", "quotation": "", "grade": "pass"}
    assert (answer.input_tokens, answer.cached_tokens, answer.output_tokens) == (100, 60, 20)


def test_one_refused_question_of_several_abstains(decisions_rig: Rig) -> None:
    """The others keep their grades; only where all are refused the judge refused."""
    [answer] = ask(decisions_rig.judge("half-refused"), prompt=SEVERAL)
    found = parse_all(SPECS, answer, RECORD.output)
    assert [grade.status for grade in found.values()] == [Status.SCORED, Status.ABSTAINED]
    assert "refused" in found["warm"].explanation


def test_anthropic_is_asked_for_a_schema_with_the_rubric_cached(anthropic_rig: Rig) -> None:
    """The API takes no temperature; the rubric is a cached block, and cached tokens count within the input."""
    [answer] = ask(anthropic_rig.judge("pass", options="effort=low&usd_per_mtok=1/10"), prompt=LIKELY)
    [body] = anthropic_rig.servers[0].requests
    assert body["output_config"] == {"format": {"type": "json_schema", "schema": PROMPT.schema}, "effort": "low"}
    assert body["system"] == [{"type": "text", "text": PROMPT.system, "cache_control": {"type": "ephemeral"}}]
    assert not body.keys() & {"temperature", "top_p", "top_k", "logprobs"}
    assert (answer.input_tokens, answer.cached_tokens, answer.output_tokens) == (100, 60, 20)
    assert answer.cost_usd == pytest.approx((100 * 1 + 20 * 10) / 1e6)


def test_a_rubric_can_stay_cached_for_an_hour(anthropic_rig: Rig) -> None:
    """It does not change the judge's version, and what is written to the cache costs twice the input."""
    judge = anthropic_rig.judge("writes", options="cache_ttl=1h&usd_per_mtok=1/10")
    [answer] = ask(judge)
    [body] = anthropic_rig.servers[0].requests
    assert body["system"][0]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
    assert "cache_ttl" not in judge.version
    assert answer.cost_usd == pytest.approx((40 * 1 + 60 * 2 + 20 * 10) / 1e6)


def test_a_record_beyond_the_models_window_is_cut(anthropic_rig: Rig) -> None:
    """It is told from a refusal, and never a score."""
    [answer] = ask(anthropic_rig.judge("too-long"))
    assert answer.finish == "truncated"


@pytest.mark.parametrize("provider", OPENAI_PROVIDERS)
@pytest.mark.parametrize(("model", "marked"), [("gpt-6-luna", True), ("gpt-5.6-sol", True), ("gpt-4.1-mini", False)])
def test_openai_itself_is_told_where_the_rubric_ends(provider: str, model: str, marked: bool) -> None:
    """One cache key for each rubric; models that charge for what they write are told not to write the record."""
    body = open_judge(parse_judge(f"{provider}:{model}")).body(PROMPT)  # type: ignore[attr-defined]
    other = open_judge(parse_judge(f"{provider}:{model}")).body(LIKELY)  # type: ignore[attr-defined]
    assert body["prompt_cache_key"] == other["prompt_cache_key"]
    assert body.get("prompt_cache_options") == ({"mode": "explicit"} if marked else None)
    before, mark, after = json.dumps(body).partition('"prompt_cache_breakpoint": {"mode": "explicit"}')
    assert bool(mark) == marked
    if marked:
        assert json.dumps(PROMPT.user) in after
        assert json.dumps(PROMPT.system) in before
    local = open_judge(parse_judge(f"{provider}:{model}@http://127.0.0.1:1/v1")).body(PROMPT)  # type: ignore[attr-defined]
    assert "prompt_cache" not in json.dumps(local)


@pytest.mark.parametrize("provider", HTTP_PROVIDERS)
def test_requests_and_answers_are_what_the_providers_libraries_know(provider: str) -> None:
    """Both sides of these tests are held to the types of the installed libraries: no field is made up."""
    model = "claude-haiku-5-5" if provider == "anthropic" else "gpt-6-luna"
    asked, answers = library_types(provider)
    options = "" if provider == "openai-decisions" else "?effort=low"
    for prompt in (PROMPT, LIKELY, SEVERAL):
        body = open_judge(parse_judge(f"{provider}:{model}{options}")).body(prompt)  # type: ignore[attr-defined]
        assert body.keys() <= typing.get_type_hints(asked).keys()
        TypeAdapter(asked).validate_python(body)
        status, text = SPEAK[PROTOCOLS[provider]]("pass", body)
        assert status == 200
        answers.model_validate_json(text)
