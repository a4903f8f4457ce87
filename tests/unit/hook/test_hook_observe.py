"""Observed generators, methods, tools and retrievals."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
from dataclasses import dataclass, field

import pytest
from switches import stop

from evalpipe.errors import ConfigError, KillSwitchEngaged
from evalpipe.hook.call import current
from evalpipe.hook.observing import documents

WORDS = ["Your refund ", "is ", "on its way."]


@dataclass
class Document:
    """As LangChain has them."""

    page_content: str
    id: str | None = None
    metadata: dict = field(default_factory=dict)


def test_an_observed_generator_is_recorded_from_its_call_to_its_end(hook, queue):
    """Texts are joined, the first item gives the TTFT, and calls made inside it belong to it."""

    @hook.observe(feature="chat")
    def answer(question):  # noqa: ARG001 - it is recorded
        for word in WORDS:
            with hook.call("inner"):
                pass
            yield word
        return "done"

    def relay():
        said = yield from answer("Where?")
        assert said == "done"

    for _ in relay():
        assert current() is None
    hook.flush()
    *inner, record = queue.records()
    assert (record.feature, record.input_text, record.output) == ("chat", "Where?", "".join(WORDS))
    assert 0 < record.ttft_ms <= record.latency_ms
    assert "stream" not in record.attributes
    assert {one.trace_id for one in inner} == {record.trace_id}
    assert len(inner) == 3


def test_an_asynchronous_generator_is_recorded_too(hook, queue):
    """In its tasks; what other tasks do meanwhile is not part of it."""

    @hook.observe
    async def answer(question):  # noqa: ARG001 - it is recorded
        for word in WORDS:
            await asyncio.sleep(0)
            assert hook.current_call().feature == "answer"
            yield word

    async def ask(number):
        with hook.context(session_id=f"s{number}"):
            items = answer(f"question {number}")
        assert [item async for item in items] == WORDS
        assert current() is None

    async def run():
        await asyncio.gather(*(ask(number) for number in range(3)))

    asyncio.run(run())
    hook.flush()
    records = queue.records()
    assert {(record.session_id, record.input_text) for record in records} == {
        (f"s{number}", f"question {number}") for number in range(3)
    }
    assert {record.output for record in records} == {"".join(WORDS)}


@pytest.mark.parametrize("way", ["close", "drop", "fail", "unread", "throw"])
def test_a_generator_that_does_not_reach_its_end_is_recorded_as_far_as_it_came(hook, queue, way):
    """Closed and dropped is no error; one that nobody ever read is only counted."""

    @hook.observe
    def answer():
        yield "Your "
        raise TimeoutError("no more")

    items = answer()
    if way != "unread":
        assert next(items) == "Your "
    if way == "close":
        items.close()
        items.close()
    elif way == "fail":
        with pytest.raises(TimeoutError, match="no more"):
            next(items)
        assert list(items) == []
    elif way == "throw":
        with pytest.raises(ZeroDivisionError):
            items.throw(ZeroDivisionError())
    del items
    gc.collect()
    hook.flush()
    records = queue.records()
    if way == "unread":
        assert records == []
        assert hook.stats().calls == 1
        return
    (record,) = records
    assert record.output == "Your "
    error = {"fail": "TimeoutError: no more", "throw": "ZeroDivisionError: "}.get(way, "")
    assert (record.error, record.attributes.get("stream")) == (error, None if error else "abandoned")


def test_generators_can_be_sent_to_and_read_in_another_thread_or_context(hook, queue):
    """Session and trace are those of where the function was called."""

    @hook.observe
    def echo():
        heard = yield "ready"
        while heard:
            heard = yield heard.upper()

    with hook.context(session_id="s1"):
        items = echo()
    assert next(items) == "ready"
    assert contextvars.copy_context().run(items.send, "a") == "A"
    thread = threading.Thread(target=items.send, args=("b",))
    thread.start()
    thread.join()
    with pytest.raises(StopIteration):
        items.send("")
    hook.flush()
    (record,) = queue.records()
    assert (record.session_id, record.output) == ("s1", "readyAB")


def test_a_long_generator_is_bounded_in_memory_and_passes_whole(make_hook):
    """What does not fit into a record is shed as oversized; the application gets it all."""
    hook = make_hook(max_record_bytes=2000)

    @hook.observe
    def long():
        for _ in range(1000):
            yield "x" * 100

    items = long()
    assert sum(len(item) for item in items) == 100_000
    hook.flush(0.1)
    assert hook.stats().shed["oversized"] == 1


def test_tools_and_retrievals_are_part_of_the_call_around_them(hook, queue):
    """Name, arguments and result; documents with id, text and score; failures too, which pass through."""

    @hook.observe(kind="tool")
    def lookup(number, *, deep=False):
        if deep:
            raise LookupError("too deep")
        return {"order": number}

    @hook.observe(kind="retrieval")
    async def search(query):  # noqa: ARG001 - it is recorded
        return [Document("Within 30 days.", "policy-3", {"score": 0.9}), ("A text.", 0.5), {"id": "d", "text": "D"}]

    @hook.observe(feature="agent")
    def agent(question):
        asyncio.run(search(question))
        with pytest.raises(LookupError):
            lookup(8, deep=True)
        return str(lookup(7))

    assert agent("Where?") == "{'order': 7}"
    hook.flush()
    (record,) = queue.records()
    assert record.tool_calls == [
        {"name": "lookup", "arguments": {"number": 8, "deep": True}, "error": "LookupError: too deep"},
        {"name": "lookup", "arguments": {"number": 7}, "result": {"order": 7}},
    ]
    assert list(record.context) == [
        {"id": "policy-3", "text": "Within 30 days.", "score": 0.9},
        {"text": "A text.", "score": 0.5},
        {"id": "d", "text": "D"},
    ]


class UnprintableError(Exception):
    """An exception of the application that cannot be printed."""

    def __str__(self) -> str:
        raise RuntimeError("not this one")


@pytest.mark.parametrize("failing", [UnprintableError(), UnprintableError("a"), KeyError(UnprintableError())])
def test_what_a_tool_raises_is_what_the_application_sees_even_if_it_cannot_be_printed(hook, queue, failing):
    """Its type is recorded, and the call around it goes on."""

    @hook.observe(kind="tool")
    def lookup():
        raise failing

    with hook.call("agent") as call:
        call.output = "sorry"
        with pytest.raises(type(failing)) as seen:
            lookup()
        assert seen.value is failing
    hook.flush()
    (record,) = queue.records()
    assert record.output == "sorry"
    (tool,) = record.tool_calls
    assert tool["name"] == "lookup"
    assert tool["error"].startswith(type(failing).__name__)


def test_arguments_and_results_that_cannot_be_read_pass_through(hook):
    """Whatever they raise when they are looked at; so does a function that hides its signature."""

    class Odd:
        """Raises at every look."""

        def __getattribute__(self, name: str) -> object:
            raise RuntimeError(name)

    class Strange:
        """A callable object without a signature."""

        @property
        def __signature__(self) -> object:
            raise RuntimeError

        def __call__(self, odd: object) -> object:
            return odd

    odd = Odd()
    strange = hook.observe(kind="tool")(Strange())
    search = hook.observe(kind="retrieval")(lambda odd: odd)
    plain = hook.observe(lambda odd: odd)
    with hook.call("agent") as call:
        call.output = "fine"
        assert strange(odd) is odd
        assert search(odd) is odd
    assert plain(odd) is odd
    assert search(odd) is odd
    assert hook.flush()
    assert hook.stats().calls == 3


def test_a_tool_that_is_cancelled_has_not_failed(hook, queue):
    """Nobody waits for it any more; that is no error of the tool's."""

    @hook.observe(kind="tool")
    async def lookup(number):
        await asyncio.sleep(10.0 + number)

    async def run():
        with hook.call("agent") as call:
            call.output = "sorry"
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(lookup(7), 0.01)

    asyncio.run(run())
    assert hook.flush()
    (record,) = queue.records()
    assert record.tool_calls == [{"name": "lookup", "arguments": {"number": 7}, "cancelled": True}]


def test_outside_of_any_call_a_tool_is_a_call_of_its_own(hook, queue):
    """Also where there is only a context around it."""

    class Desk:
        @hook.observe(kind="tool")
        def lookup(self, number):
            return f"order {number}"

    with hook.context(session_id="s1"):
        Desk().lookup(7)
    hook.flush()
    (record,) = queue.records()
    assert (record.feature, record.session_id, record.output) == ("lookup", "s1", "order 7")
    assert record.tool_calls == [{"name": "lookup", "arguments": {"number": 7}}]


def test_methods_of_classes_and_objects_are_observed_without_themselves(hook, queue):
    """Class and static methods, on either side of the decorator."""

    class Desk:
        @hook.observe
        @classmethod
        def one(cls, question) -> str:
            return f"{cls.__name__} {question}"

        @classmethod
        @hook.observe
        def two(cls, question) -> str:
            return question

        @hook.observe
        @staticmethod
        def three(question) -> str:
            return question

    assert (Desk.one("a"), Desk().two("b"), Desk.three("c")) == ("Desk a", "b", "c")
    hook.flush()
    assert [(record.feature, record.input_text) for record in queue.records()] == [
        ("one", "a"), ("two", "b"), ("three", "c")]  # fmt: skip


def test_a_refused_function_does_not_run(hook, redis_url):
    """Plain, asynchronous and generator functions raise where they are called, if they asked for it."""
    ran = []

    @hook.observe(feature="chat", enforce=True)
    def plain():
        ran.append(1)

    @hook.observe(feature="chat", enforce=True)
    async def later():
        ran.append(1)

    @hook.observe(feature="chat", enforce=True)
    def items():
        ran.append(1)
        yield 1

    stop(redis_url, hook)
    for attempt in (plain, lambda: asyncio.run(later()), items):
        with pytest.raises(KillSwitchEngaged, match="it is wrong"):
            attempt()
    assert ran == []


def test_what_cannot_be_observed_is_a_clear_error_where_it_is_decorated(hook):
    """With the way out."""
    with pytest.raises(ConfigError, match="tool, retrieval"):
        hook.observe(kind="agent")(print)
    with pytest.raises(ConfigError, match="by keyword"):
        hook.observe("refunds")
    with pytest.raises(ConfigError, match="generator"):

        @hook.observe(kind="retrieval")
        def search():
            yield 1


def test_documents_of_any_kind_become_context():
    """And nothing is nothing."""
    assert documents(None) == []
    assert documents("text") == [{"text": "text"}]
    assert documents(Document("T", metadata={"source": "a.md"})) == [{"id": "a.md", "text": "T"}]
    assert documents([(Document("T"), 0.25)]) == [{"text": "T", "score": 0.25}]
