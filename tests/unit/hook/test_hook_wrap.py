"""Wrapped clients of OpenAI and Anthropic; tests/contract/test_hook_clients.py has all that they can do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import anthropic
import openai
import pytest
from providers import ANSWER, TOOL, serve

from evalpipe.errors import ConfigError

MESSAGES = [{"role": "user", "content": "Where is my refund?"}]


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    """The URL of the local provider."""
    with serve() as (url, _):
        yield url


@pytest.fixture
def openai_client(base_url):
    """An ordinary client of OpenAI's."""
    with openai.OpenAI(api_key="k", base_url=base_url + "/v1", max_retries=0) as client:
        yield client


def test_a_chat_completion_is_captured_with_its_whole_context(hook, queue, openai_client):
    """Messages as sent, parameters, answer, model returned, usage and finish reason; the caller gets what it got."""
    client = hook.wrap(openai_client, feature="refunds")
    assert client is openai_client
    messages = [dict(one) for one in MESSAGES]
    answer = client.chat.completions.create(model="gpt-5", messages=messages, temperature=0.5, seed=3)
    assert answer.choices[0].message.content == ANSWER
    messages.append(answer.choices[0].message)
    client.chat.completions.create(model="gpt-5", messages=messages, tools=[TOOL])
    hook.flush()
    first, second = queue.records()
    assert (first.feature, list(first.messages), first.output) == (
        "refunds", MESSAGES, ANSWER.replace("bob@example.com", "[email]"))  # fmt: skip
    assert first.parameters == {"model": "gpt-5", "temperature": 0.5, "seed": 3}
    assert (first.model, first.finish_reason, first.input_tokens, first.output_tokens) == ("gpt-5-2026", "stop", 11, 7)
    assert second.messages[1]["role"] == "assistant"
    assert second.tools[0]["function"]["name"] == "lookup"
    assert second.tool_calls == [{"id": "c1", "name": "lookup", "arguments": '{"id": 7}'}]
    assert second.finish_reason == "tool_calls"


def test_a_response_is_captured_too(hook, queue, openai_client):
    """Instructions become the system message."""
    hook.wrap(openai_client).responses.create(
        model="gpt-5", instructions="Be kind.", input="Where?", max_output_tokens=50
    )
    hook.flush()
    (record,) = queue.records()
    assert list(record.messages) == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Where?"}]
    assert (record.model, record.finish_reason, record.input_tokens, record.output_tokens) == (
        "gpt-5-2026", "completed", 21, 9)  # fmt: skip
    assert record.output.startswith("Your refund")
    assert record.tool_calls == [{"id": "c1", "name": "lookup", "arguments": "{}"}]
    assert record.parameters == {"model": "gpt-5", "max_output_tokens": 50}


def test_a_message_of_anthropics_is_captured(hook, queue, base_url):
    """The system prompt becomes the first message; cached input tokens are input tokens."""
    with anthropic.Anthropic(api_key="k", base_url=base_url, max_retries=0) as client:
        hook.wrap(client).messages.create(model="claude-5", max_tokens=100, system="Be kind.", messages=MESSAGES)
    hook.flush()
    (record,) = queue.records()
    assert list(record.messages) == [{"role": "system", "content": "Be kind."}, *MESSAGES]
    assert (record.model, record.finish_reason, record.input_tokens, record.output_tokens) == (
        "claude-5", "end_turn", 151, 5)  # fmt: skip
    assert record.tool_calls == [{"id": "t1", "name": "lookup", "arguments": {"id": 7}}]


def test_asynchronous_clients_are_captured_in_their_tasks(hook, queue, base_url):
    """Concurrent calls keep their own sessions."""

    async def run():
        async with (
            openai.AsyncOpenAI(api_key="k", base_url=base_url + "/v1", max_retries=0) as ours,
            anthropic.AsyncAnthropic(api_key="k", base_url=base_url, max_retries=0) as theirs,
        ):
            hook.wrap(ours)
            hook.wrap(theirs)

            async def ask(number):
                with hook.context("chat", session_id=f"s{number}"):
                    await ours.chat.completions.create(model="gpt-5", messages=MESSAGES)
                    await ours.responses.create(model="gpt-5", input="Where?")
                    await theirs.messages.create(model="claude-5", max_tokens=9, messages=MESSAGES)

            await asyncio.gather(*(ask(number) for number in range(3)))

    asyncio.run(run())
    hook.flush()
    records = queue.records()
    assert len(records) == 9
    assert {record.session_id for record in records} == {"s0", "s1", "s2"}
    assert len({record.trace_id for record in records}) == 3
    assert all(record.output.startswith("Your refund") for record in records)


def test_an_error_of_the_provider_arrives_as_it_was_and_is_recorded(hook, queue, openai_client):
    """The same exception class; the record says what was asked and what went wrong."""
    hook.wrap(openai_client)
    with pytest.raises(openai.BadRequestError, match="no such model"):
        openai_client.chat.completions.create(model="broken", messages=MESSAGES)
    hook.flush()
    (record,) = queue.records()
    assert record.error.startswith("BadRequestError")
    assert list(record.messages) == MESSAGES
    assert queue.rows()[0]["errors"] == 1


def test_unsampled_calls_meter_their_tokens_all_the_same(make_hook, redis_url, queue, openai_client):
    """The meter counts every call, the sample only some."""
    hook = make_hook(redis_url=redis_url, sample_rate=0.0)
    hook.wrap(openai_client).chat.completions.create(model="gpt-5", messages=MESSAGES)
    hook.flush()
    (row,) = queue.rows()
    assert (row["calls"], row["sampled"], row["input_tokens"], row["output_tokens"]) == (1, 0, 11, 7)


def test_a_client_that_nobody_knows_is_a_clear_error(hook):
    """At start-up, with the way out."""
    with pytest.raises(ConfigError, match=r"hook\.observe"):
        hook.wrap(object())
