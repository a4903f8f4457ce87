"""What a call captures, what it inherits, and that the application's code is what it was."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
import threading
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from evalpipe import Hook, Release
from evalpipe.hook import suppressed

MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Where is my order?"}]


def test_a_call_becomes_a_record_with_what_the_application_knew(hook, queue):
    """All fields arrive under the names of Record, and the meter counts the same call."""
    with hook.call(feature="refund-answers", session_id="s1", user_id="u1") as call:
        call.messages = MESSAGES
        call.context = [{"id": "policy-3", "text": "Refunds within 30 days.", "score": 0.9}]
        call.tools = ["lookup_order"]
        call.tool_calls = [{"name": "lookup_order", "arguments": {"id": 7}}]
        call.parameters = {"model": "gpt-5", "temperature": 0.2}
        call.output = "It is on its way."
        call.model = "gpt-5-2026"
        call.input_tokens, call.output_tokens, call.cost_usd = 50, 6, 0.001
        call.finish_reason = "stop"
        call.attributes["country"] = "DE"
    assert hook.flush()
    (record,) = queue.records()
    assert record.release == Release(service="support-bot")
    assert (record.feature, record.session_id, record.user_id, record.unit) == ("refund-answers", "s1", "u1", "s1")
    assert list(record.messages) == MESSAGES
    assert record.context[0]["score"] == 0.9
    assert record.tools == [{"name": "lookup_order"}]
    assert record.tool_calls == [{"name": "lookup_order", "arguments": {"id": 7}}]
    assert record.parameters == {"model": "gpt-5", "temperature": 0.2}
    assert (record.output, record.model, record.finish_reason, record.error) == (
        "It is on its way.", "gpt-5-2026", "stop", "")  # fmt: skip
    assert (record.input_tokens, record.output_tokens, record.cost_usd) == (50, 6, 0.001)
    assert record.attributes == {"country": "DE"}
    assert record.probability == 1.0
    assert 0 <= record.latency_ms < 1000
    (row,) = queue.rows()
    assert (row["service"], row["feature"], row["calls"], row["enqueued"]) == ("support-bot", "refund-answers", 1, 1)
    assert (row["input_tokens"], row["output_tokens"], row["cost_usd"]) == (50, 6, 0.001)


def test_what_the_application_changes_later_does_not_change_the_record(hook, queue):
    """Containers are copied when they are assigned, at every depth."""
    messages = [{"role": "user", "content": [{"type": "text", "text": "first"}]}]
    arguments = {"id": 1}
    with hook.call() as call:
        call.messages = messages
        call.tool_calls = [{"name": "f", "arguments": arguments}]
        messages[0]["content"][0]["text"] = "changed"
        messages.append({"role": "assistant", "content": "added"})
        arguments["id"] = 2
        call.output = "answer"
    call.output = "changed"
    hook.flush()
    (record,) = queue.records()
    assert record.messages == [{"role": "user", "content": [{"type": "text", "text": "first"}]}]
    assert record.tool_calls[0]["arguments"] == {"id": 1}
    assert record.output == "answer"


def test_an_exception_passes_through_unchanged_and_is_recorded(hook, queue):
    """The same exception object arrives at the caller; record and meter know of it."""
    problem = TimeoutError("no answer after 30 s; key sk-abcdefghijklmnopqrstuv")
    with pytest.raises(TimeoutError) as caught, hook.call("refunds"):
        raise problem
    assert caught.value is problem
    hook.flush()
    (record,) = queue.records()
    assert record.error == "TimeoutError: no answer after 30 s; key [key]"
    assert queue.rows()[0]["errors"] == 1


def test_nested_calls_belong_to_one_trace_and_inherit_what_is_not_given(hook, queue):
    """Trace, session, user, unit, feature and release come from the call around; the parent's id is an attribute."""
    canary = Release(service="support-bot", variant="canary")
    with hook.call("agent", session_id="s", user_id="u", release=canary) as outer:
        with hook.call() as inner:
            assert inner.trace_id == outer.trace_id
        with hook.call("retrieval", user_id="other"):
            pass
    hook.flush()
    first, second, last = queue.records()
    assert first.trace_id == second.trace_id == last.trace_id
    assert (first.feature, first.session_id, first.user_id, first.release) == ("agent", "s", "u", canary)
    assert (second.feature, second.user_id) == ("retrieval", "other")
    assert first.attributes == second.attributes == {"parent_record_id": last.record_id}
    assert not last.attributes


def test_a_context_gives_its_ids_to_the_calls_inside_and_makes_no_record_itself(hook, queue):
    """For a request's handler around wrapped clients."""
    with hook.context("chat", session_id="s7"):
        with hook.call():
            pass
        with hook.call():
            pass
    hook.flush()
    one, two = queue.records()
    assert one.trace_id == two.trace_id
    assert {one.session_id, two.session_id} == {"s7"}
    assert "parent_record_id" not in one.attributes
    assert hook.stats().calls == 2


def test_tasks_and_threads_keep_their_calls_apart(hook, queue):
    """The context is that of the task; a thread begins without one."""

    async def answer(number):
        with hook.call(session_id=str(number)):
            await asyncio.sleep(0.01 * (number % 3))
            with hook.call() as inner:
                await asyncio.sleep(0)
                assert inner.session_id == str(number)

    async def run():
        await asyncio.gather(*(answer(number) for number in range(10)))

    asyncio.run(run())
    with hook.call(session_id="main"):
        seen = []

        def work():
            with hook.call() as call:
                seen.append(call.session_id)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen == [""]
    hook.flush()
    assert len(queue.records()) == 22


def test_an_observed_function_is_in_every_other_respect_what_it_was(hook, queue):
    """Name, signature, arguments, result, exceptions and being a coroutine or a generator stay."""

    @hook.observe(feature="refunds")
    def ask(question: str, *, top: int = 3) -> str:
        """Ask."""
        return f"{question} {top}"

    @hook.observe
    async def ask_later(question):
        await asyncio.sleep(0)
        return question.upper()

    @hook.observe(feature="stream")
    def words(count):
        yield from range(count)

    class Desk:
        @hook.observe
        def answer(self, messages):
            return {"text": messages[-1]["content"], "user": self.__class__.__name__}

    assert ask("why?", top=4) == "why? 4"
    assert (ask.__name__, ask.__doc__, str(inspect.signature(ask))) == (
        "ask", "Ask.", "(question: 'str', *, top: 'int' = 3) -> 'str'")  # fmt: skip
    assert inspect.iscoroutinefunction(ask_later)
    assert asyncio.run(ask_later("x")) == "X"
    assert list(words(3)) == [0, 1, 2]
    assert Desk().answer(MESSAGES) == {"text": "Where is my order?", "user": "Desk"}
    with pytest.raises(TypeError):
        ask()
    hook.flush()
    asked, later, streamed, desk, wrong = queue.records()
    assert (asked.feature, asked.input_text, asked.output) == ("refunds", "why?", "why? 4")
    assert (later.feature, later.input_text, later.output) == ("ask_later", "x", "X")
    assert json.loads(streamed.output) == [0, 1, 2]
    assert desk.input_text == "Where is my order?"
    assert json.loads(desk.output) == {"text": "Where is my order?", "user": "Desk"}
    assert wrong.error.startswith("TypeError")
    assert {row["feature"]: row["calls"] for row in queue.rows()} == {
        "refunds": 2, "ask_later": 1, "stream": 1, "answer": 1}  # fmt: skip


def test_inside_an_observed_function_the_current_call_can_be_filled_in(hook, queue):
    """What the function sets itself is better than what the decorator guesses; outside there is an inert call."""

    @hook.observe
    def ask(question):
        call = hook.current_call()
        call.messages = MESSAGES
        call.output = "said"
        call.input_tokens = 7
        return question

    ask("x")
    outside = hook.current_call()
    outside.output = "nothing keeps this"
    outside.attributes["x"] = 1
    assert outside.output == ""
    hook.flush()
    (record,) = queue.records()
    assert (list(record.messages), record.output, record.input_tokens) == (MESSAGES, "said", 7)


def test_calls_of_judges_are_neither_captured_nor_metered(hook, queue):
    """The loop guard: inside suppressed() nothing is counted, also in nested calls and tasks."""
    with suppressed():
        with hook.call("judge") as call, hook.call():
            call.messages = MESSAGES

        async def run():
            with hook.call("judge"):
                pass

        asyncio.run(run())
    with hook.call("served"):
        pass
    hook.flush()
    assert hook.stats().calls == 1
    assert [record.feature for record in queue.records()] == ["served"]


def test_values_that_json_does_not_know_arrive_readable(hook, queue):
    """Models and dataclasses become dicts, other objects are named by their type, and nothing poisons the batch."""

    @dataclass
    class Document:
        id: str
        text: str

    class Message:
        """As the providers' libraries have them."""

        def model_dump(self, exclude_none=False):
            return {"role": "assistant", "content": "earlier"}

    class Hostile:
        def __str__(self) -> str:
            raise RuntimeError

        __repr__ = __str__

    circle = {}
    circle["self"] = circle
    with hook.call() as call:
        call.messages = [Message(), "bare text", {"role": "user", "content": b"\xff\xfebytes"}]
        call.context = [Document("d1", "mail a@b.io"), "bare"]
        call.output = {"when": datetime(2026, 1, 1, tzinfo=UTC), "price": Decimal("1.50"), "n": float("nan")}
        call.attributes.update(
            {"hostile": Hostile(), "big": 1 << 80, "inf": float("inf"), "circle": circle, 7: "key",
             "uuid": uuid.UUID(int=1), "half": "\ud800 surrogate", "nul": "a\x00b", "set": {1}}
        )  # fmt: skip
        call.input_tokens = float("nan")
        call.output_tokens = "many"
    hook.flush()
    (record,) = queue.records()
    assert list(record.messages) == [
        {"role": "assistant", "content": "earlier"},
        {"role": "user", "content": "bare text"},
        {"role": "user", "content": "\ufffd\ufffdbytes"},
    ]
    assert list(record.context) == [{"id": "d1", "text": "mail [email]"}, {"text": "bare"}]
    assert json.loads(record.output) == {"when": "2026-01-01 00:00:00+00:00", "price": "1.50", "n": "nan"}
    assert record.attributes["hostile"].endswith("Hostile]")
    assert record.attributes["big"] == str(1 << 80)
    assert record.attributes["nul"] == "a\ufffdb"
    assert record.attributes["half"] == "? surrogate"
    assert record.input_tokens is None
    assert record.output_tokens is None
    assert hook.stats().enqueued == 1


def test_wrong_types_and_names_never_reach_the_application(hook, queue):
    """Whatever is passed or set, the body of the with-block runs and the call is counted or left out."""
    ran = 0
    odd = (
        {"trace_id": 7},
        {"feature": 5},
        {"trace_id": "\ud800"},
        {"release": "canary"},
        {"user_id": uuid.UUID(int=3)},
    )
    for arguments in odd:
        with hook.call(**arguments) as call:
            call.mesages = "a name that does not exist"
            call.attributes = 5
            call.parameters = object()
            ran += 1
    assert ran == 5
    hook.flush()
    seven, five, half, canary, three = queue.records()
    assert canary.release == hook.release
    assert (seven.trace_id, five.feature, half.trace_id) == ("7", "5", "?")
    assert three.user_id == three.unit == str(uuid.UUID(int=3))
    assert sum(row["calls"] for row in queue.rows()) == 5


def test_a_call_left_in_another_context_than_entered_is_still_counted(hook):
    """As happens around generators of web frameworks."""
    call = hook.call()
    contextvars.copy_context().run(call.__enter__)
    call.__exit__(None, None, None)
    call.__exit__(None, None, None)
    assert hook.stats().calls == 1


def test_metadata_capture_keeps_no_text_at_all(make_hook, redis_url, queue):
    """Only ids, names of models, numbers and the class of an error."""
    hook = make_hook(redis_url=redis_url, capture="metadata")
    with pytest.raises(ValueError, match="secret"), hook.call("refunds", session_id="s") as call:  # noqa: PT012
        call.messages = MESSAGES
        call.output = "secret"
        call.context = [{"text": "secret"}]
        call.parameters = {"model": "secret", "temperature": 0.5}
        call.attributes["note"] = "secret"
        call.attributes["score"] = 3
        call.model, call.input_tokens = "gpt-5", 9
        raise ValueError("secret")
    hook.flush()
    (record,) = queue.records()
    assert "secret" not in queue.blobs()[0]
    assert (record.session_id, record.model, record.input_tokens, record.error) == ("s", "gpt-5", 9, "ValueError")
    assert record.parameters == {"temperature": 0.5}
    assert record.attributes == {"score": 3}


def test_the_application_can_add_its_own_redaction_or_turn_it_off(make_hook, redis_url, queue):
    """A function runs after the built-in rules; if it fails the record is shed, never sent as it was."""
    own = make_hook(redis_url=redis_url, redact=lambda text: text.replace("Bob", "[name]"))
    off = make_hook(redis_url=redis_url, redact=False)

    def broken(text):
        raise KeyError(text)

    failing = make_hook(redis_url=redis_url, redact=broken)
    for hook in (own, off, failing):
        with hook.call() as call:
            call.output = "Bob, bob@example.com"
        hook.flush()
    assert [record.output for record in queue.records()] == ["[name], [email]", "Bob, bob@example.com"]
    assert failing.stats().shed["failed"] == 1


def test_refusals_are_counted_on_all_calls_sampled_or_not(make_hook, redis_url, queue):
    """The screen sees every answer, in the thread that ships; an answer without text is not screened."""
    hook = make_hook(redis_url=redis_url, sample_rate=0.0)
    for output in ("I'm sorry, but I can't help with that.", "Your refund is on its way.", ""):
        with hook.call("refunds") as call:
            call.output = output
    hook.flush()
    (row,) = queue.rows()
    assert (row["calls"], row["sampled"], row["screened"], row["refusals"]) == (3, 0, 2, 1)


def test_a_hook_that_is_off_changes_nothing(monkeypatch):
    """No URL, or EVALPIPE_ENABLED=0: functions and clients come back as they were, and nothing is counted."""

    def ask():
        return 1

    monkeypatch.setenv("EVALPIPE_ENABLED", "0")
    for hook in (Hook(), Hook("svc", redis_url="redis://localhost/0")):
        assert not hook.enabled
        assert hook.observe(ask) is ask
        with hook.call("x") as call:
            call.output = "x"
        assert hook.stats().calls == 0
        assert hook.flush()
        assert hook.shutdown()
