"""The callbacks for LangChain and LiteLLM, with the real libraries."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from providers import ANSWER, serve
from switches import stop
from unit.hook.harness import Queue, balanced

from evalpipe import Hook
from evalpipe.errors import KillSwitchEngaged
from evalpipe.hook import suppressed
from evalpipe.hook.integrations.langchain import EvalpipeCallback
from evalpipe.record import Record

SAID = ANSWER.replace("bob@example.com", "[email]")


@pytest.fixture
def hook(redis_url) -> Iterator[Hook]:
    """A hook that captures everything."""
    hook = Hook("support-bot", redis_url=redis_url, sample_rate=1.0)
    yield hook
    hook.shutdown(0.5)


def recorded(hook: Hook, redis_url: str) -> list[Record]:
    """All records so far."""
    assert hook.flush()
    assert balanced(hook)
    queue = Queue(redis_url)
    records = queue.records()
    queue.client.close()
    return records


class Shelf(BaseRetriever):
    """A retriever that always finds the same."""

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return [Document("Refunds within 30 days.", id="policy-3", metadata={"score": 0.9})]


class Fails(GenericFakeChatModel):
    """A model that fails."""

    def _generate(self, *_: Any, **__: Any) -> Any:
        raise TimeoutError("no answer")

    def _stream(self, *_: Any, **__: Any) -> Iterator[ChatGenerationChunk]:
        yield ChatGenerationChunk(message=AIMessageChunk("Your "))
        raise TimeoutError("no answer")


def model() -> GenericFakeChatModel:
    """A model that answers, with a tool's call, as the integrations of providers do."""
    answer = AIMessage(
        ANSWER,
        tool_calls=[{"id": "c1", "name": "lookup", "args": {"id": 7}}],
        usage_metadata={"input_tokens": 11, "output_tokens": 7, "total_tokens": 18,
                        "input_token_details": {"cache_read": 4}},
        response_metadata={"model_name": "gpt-5-2026", "finish_reason": "stop", "id": "chatcmpl-1"},
    )  # fmt: skip
    return GenericFakeChatModel(messages=iter([answer] * 9))


def test_a_langchain_model_call_becomes_a_record(hook, redis_url):
    """Messages, answer, tool calls, usage, model; metadata of the run say whose it is."""
    callback = EvalpipeCallback(hook, feature="chat")
    asked = [SystemMessage("Be kind."), HumanMessage("Where is my refund?")]
    config = {"callbacks": [callback], "metadata": {"thread_id": "s1", "user_id": "u1"}}
    assert model().invoke(asked, config=config, stop=["END"]).content == ANSWER
    (record,) = recorded(hook, redis_url)
    assert (record.feature, record.session_id, record.user_id) == ("chat", "s1", "u1")
    assert list(record.messages) == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Where is my refund?"},
    ]
    assert (record.output, record.model, record.finish_reason) == (SAID, "gpt-5-2026", "stop")
    assert (record.input_tokens, record.output_tokens) == (11, 7)
    assert record.tool_calls == [{"id": "c1", "name": "lookup", "arguments": {"id": 7}}]
    assert record.parameters["stop"] == ["END"]
    assert record.attributes == {"response_id": "chatcmpl-1"}
    assert record.latency_ms is not None
    assert callback._runs == {}


def test_a_chain_is_one_trace_and_what_was_retrieved_is_the_context_of_the_call_after_it(hook, redis_url):
    """The root run's id is the trace id of all its calls; the next invocation is another trace."""
    answering, str_of = model(), RunnableLambda(lambda answer: answer.content)
    chain = RunnableLambda(lambda question: [*Shelf().invoke(question), question][-1]) | answering | str_of | answering
    for _ in range(2):
        chain.invoke("Where?", config={"callbacks": [EvalpipeCallback(hook)]})
    records = recorded(hook, redis_url)
    assert len(records) == 4
    assert len({record.trace_id for record in records}) == 2
    for record in records:
        assert list(record.context) == [{"id": "policy-3", "text": "Refunds within 30 days.", "score": 0.9}]


def test_inside_a_call_of_the_hook_everything_belongs_to_it(hook, redis_url):
    """Trace and session of the call around; its own context and tool calls are those of the run."""

    @tool
    def lookup(number: int) -> str:
        """Look it up."""
        return f"order {number}"

    config: Any = {"callbacks": [EvalpipeCallback(hook)]}
    with hook.call("agent", session_id="s1") as call:
        Shelf().invoke("refunds", config=config)
        lookup.invoke({"number": 7}, config=config)
        model().invoke("Where?", config=config)
    inner, agent = recorded(hook, redis_url)
    assert (inner.feature, inner.session_id, inner.trace_id) == ("agent", "s1", call.trace_id)
    assert agent.context[0]["id"] == "policy-3"
    assert agent.tool_calls == [{"name": "lookup", "arguments": {"number": 7}, "result": "order 7"}]


def test_streams_of_langchain_have_a_time_to_first_token(hook, redis_url):
    """Plain and asynchronous, all calls at once; a task's calls keep their own metadata."""
    callback = EvalpipeCallback(hook)
    assert "".join(chunk.content for chunk in model().stream("Where?", config={"callbacks": [callback]})) == ANSWER

    async def run() -> None:
        async def ask(number: int) -> None:
            config: Any = {"callbacks": [callback], "metadata": {"session_id": f"s{number}"}}
            assert [chunk async for chunk in model().astream("Where?", config=config)]
            await model().ainvoke("Where?", config=config)

        await asyncio.gather(*(ask(number) for number in range(3)))

    asyncio.run(run())
    records = recorded(hook, redis_url)
    assert [record.output for record in records] == [SAID] * 7
    assert sorted(record.session_id for record in records) == ["", "s0", "s0", "s1", "s1", "s2", "s2"]
    assert sum(row["ttft"]["counts"][0] > 0 for row in Queue(redis_url).rows() if row["ttft"]["counts"]) == 1


class UnprintableError(Exception):
    """An exception that cannot be printed."""

    def __str__(self) -> str:
        raise RuntimeError("not this one")


FAILURES = [
    (UnprintableError(), "UnprintableError", None),
    (asyncio.CancelledError(), "", True),
    (TimeoutError("late"), "TimeoutError: late", None),
]
"""What is raised, the error that is recorded of it, and whether the call counts as cancelled, which is no failure."""


@pytest.mark.parametrize(("problem", "error", "cancelled"), FAILURES)
def test_a_failing_tool_of_langchain_is_recorded_even_if_its_failure_cannot_be_printed(
    hook, redis_url, problem, error, cancelled
):
    """And its run is forgotten."""
    callback = EvalpipeCallback(hook)
    run_id = uuid.uuid4()
    with hook.call("agent") as call:
        call.output = "sorry"
        callback.on_tool_start({"name": "lookup"}, "7", run_id=run_id)
        callback.on_tool_error(problem, run_id=run_id)
    assert callback._runs == {}
    (agent,) = recorded(hook, redis_url)
    (tool,) = agent.tool_calls
    assert (tool.get("error", ""), tool.get("cancelled")) == (error, cancelled)


def test_a_failure_in_langchain_arrives_unchanged_and_is_recorded(hook, redis_url):
    """Of a plain call and of a stream."""
    failing = Fails(messages=iter([]))
    callback = EvalpipeCallback(hook)
    with pytest.raises(TimeoutError, match="no answer"):
        failing.invoke("Where?", config={"callbacks": [callback]})
    with pytest.raises(TimeoutError, match="no answer"):
        list(failing.stream("Where?", config={"callbacks": [callback]}))
    assert [record.error for record in recorded(hook, redis_url)] == ["TimeoutError: no answer"] * 2
    assert callback._runs == {}


def test_langchain_calls_are_refused_only_where_the_application_asked_for_it(hook, redis_url):
    """The control plane's refusal reaches the application; judges are not recorded at all."""
    with suppressed():
        model().invoke("Grade this.", config={"callbacks": [EvalpipeCallback(hook)]})
    assert recorded(hook, redis_url) == []
    stop(redis_url, hook)
    with pytest.raises(KillSwitchEngaged, match="it is wrong"):
        model().invoke("Where?", config={"callbacks": [EvalpipeCallback(hook, feature="chat", enforce=True)]})
    callback = EvalpipeCallback(hook, feature="chat")
    assert model().invoke("Where?", config={"callbacks": [callback]}).content == ANSWER


@pytest.fixture(scope="module")
def litellm() -> Iterator[Any]:
    """The library, which would fetch a list of prices from the network otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "LITELLM_LOCAL_MODEL_COST_MAP", "True")
        import litellm

        litellm.telemetry = False
        yield litellm


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    """The URL of a local provider."""
    with serve() as (url, _):
        yield url + "/v1"


@pytest.fixture
def ask(litellm, base_url, hook) -> Iterator[dict[str, Any]]:
    """Arguments of a LiteLLM call, which is logged by the hook."""
    from evalpipe.hook.integrations.litellm import EvalpipeLogger

    litellm.callbacks = [EvalpipeLogger(hook, feature="gateway")]
    yield {
        "model": "openai/gpt-4o",
        "messages": [{"role": "user", "content": "Where is my refund?"}],
        "api_base": base_url,
        "api_key": "k",
    }
    litellm.callbacks = []
    for name in ("input_callback", "success_callback", "failure_callback", "_async_success_callback",
                 "_async_failure_callback"):  # fmt: skip
        setattr(litellm, name, [])


def arrived(hook: Hook, redis_url: str, count: int) -> list[Record]:
    """All records, once there are ``count``: LiteLLM calls back in threads of its own."""
    deadline = time.monotonic() + 60
    while hook.stats().calls < count and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)  # for one that is too many
    return recorded(hook, redis_url)


def test_litellm_calls_become_records(hook, redis_url, litellm, ask):
    """Plain, streamed and failed ones, each once; metadata say whose they are; judges' are left out."""
    metadata = {"session_id": "s1", "user_id": "u1", "trace_id": "t1"}
    litellm.completion(**ask, temperature=0.5, metadata=metadata)
    chunks = list(litellm.completion(**ask, stream=True, stream_options={"include_usage": True}))
    assert len(chunks) > 2
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(**{**ask, "model": "openai/broken"}, max_retries=0)
    litellm.completion(**ask, extra_headers={"x-evalpipe-judge": "1"})
    litellm.completion(**ask, metadata={"x-evalpipe-judge": "1"})
    plain, streamed, failed = sorted(arrived(hook, redis_url, 3), key=lambda record: record.captured_at)
    assert (plain.feature, plain.session_id, plain.user_id, plain.trace_id) == ("gateway", "s1", "u1", "t1")
    assert list(plain.messages) == ask["messages"]
    assert (plain.parameters["model"], plain.parameters["temperature"]) == ("gpt-4o", 0.5)
    assert (plain.output, plain.finish_reason, plain.input_tokens, plain.output_tokens) == (SAID, "stop", 11, 7)
    assert plain.model == "gpt-5-2026"
    assert plain.latency_ms > 0
    assert (streamed.output, streamed.finish_reason, streamed.output_tokens) == (SAID, "stop", 7)
    assert failed.error.startswith("BadRequestError")
    assert failed.output == ""


def test_asynchronous_litellm_calls_belong_to_the_call_around_them(hook, redis_url, litellm, ask):
    """Although LiteLLM calls back elsewhere; each once."""

    async def run() -> None:
        with hook.call("agent", session_id="s1"):
            await litellm.acompletion(**ask)
            stream = await litellm.acompletion(**ask, stream=True)
            assert [chunk async for chunk in stream]
        with suppressed():
            await litellm.acompletion(**ask)
        deadline = time.monotonic() + 60
        while hook.stats().calls < 3 and time.monotonic() < deadline:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)

    asyncio.run(run())
    records = arrived(hook, redis_url, 3)
    assert [(record.feature, record.session_id) for record in records] == [("agent", "s1")] * 3
    assert len({record.trace_id for record in records}) == 1
    assert [record.output for record in records].count(SAID) == 2


@pytest.mark.usefixtures("litellm")
@pytest.mark.parametrize(("problem", "error", "cancelled"), FAILURES)
def test_a_failed_call_of_litellm_is_recorded_even_if_its_failure_cannot_be_printed(
    hook, redis_url, problem, error, cancelled
):
    """A cancelled one has not failed."""
    from evalpipe.hook.integrations.litellm import EvalpipeLogger

    EvalpipeLogger(hook).log_failure_event({"exception": problem, "litellm_call_id": "c1"}, None, None, None)
    (failed,) = recorded(hook, redis_url)
    assert (failed.error, failed.attributes.get("cancelled")) == (error, cancelled)
