"""Wrapped clients of OpenAI and Anthropic: every way to call a model, against a local server of their protocols.

What the application sees must be what the library gives; what the hook saw is in the record.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pydantic
import pytest
from providers import ANSWER, PAUSE_S, REFUSAL, TOOL, WORDS, serve
from stopwatch import TookTooLongError, assert_quick
from switches import stop
from unit.hook.harness import Queue, balanced

from evalpipe import Hook
from evalpipe.errors import KillSwitchEngaged
from evalpipe.hook.call import current
from evalpipe.hook.integrations import RAW
from evalpipe.record import Record

SAID = ANSWER.replace("bob@example.com", "[email]")
MESSAGES = [{"role": "user", "content": "Where is my refund?"}]
CHAT: dict[str, Any] = {"model": "gpt-5", "messages": MESSAGES}
CLAUDE: dict[str, Any] = {"model": "claude-5", "max_tokens": 100, "messages": MESSAGES}


class Terms(pydantic.BaseModel):
    """What a model is asked to answer in."""

    days: int


class Seen:
    """A hook that captures everything, and what it captured."""

    def __init__(self, redis_url: str, **options: Any) -> None:
        self.hook = Hook("support-bot", redis_url=redis_url, **{"sample_rate": 1.0, **options})
        self._queue = Queue(redis_url)

    def records(self) -> list[Record]:
        """All records so far."""
        assert self.hook.flush()
        assert balanced(self.hook)
        return self._queue.records()

    def record(self) -> Record:
        """The only record."""
        (record,) = self.records()
        return record

    def row(self) -> dict[str, Any]:
        """The meter's only row."""
        assert self.hook.flush()
        (row,) = self._queue.rows()
        return row

    def close(self) -> None:
        """End the hook."""
        self.hook.shutdown(0.5)
        self._queue.client.close()


@pytest.fixture(scope="module")
def provider() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The local provider: its URL, and what it was asked."""
    with serve() as served:
        yield served


@pytest.fixture
def base_url(provider) -> str:
    """The URL of the local provider, which has not been asked yet."""
    provider[1].clear()
    return provider[0]


@pytest.fixture
def seen(redis_url) -> Iterator[Seen]:
    """A hook that captures everything."""
    seen = Seen(redis_url)
    yield seen
    seen.close()


@pytest.fixture
def unsampled(redis_url) -> Iterator[Seen]:
    """A hook that captures nothing."""
    seen = Seen(redis_url, sample_rate=0.0)
    yield seen
    seen.close()


@pytest.fixture
def ours(base_url) -> Iterator[openai.OpenAI]:
    """An ordinary client of OpenAI's."""
    with openai.OpenAI(api_key="k", base_url=base_url + "/v1", max_retries=0) as client:
        yield client


@pytest.fixture
def theirs(base_url) -> Iterator[anthropic.Anthropic]:
    """An ordinary client of Anthropic's."""
    with anthropic.Anthropic(api_key="k", base_url=base_url, max_retries=0) as client:
        yield client


def test_a_streamed_chat_completion_is_recorded_as_the_application_read_it(seen, ours):
    """Chunks arrive one by one and unchanged; the record has text, model, usage, finish reason and time to first."""
    stream = seen.hook.wrap(ours, feature="chat").chat.completions.create(
        **{**CHAT, "model": "slow"}, temperature=0.5, stream=True, stream_options={"include_usage": True}
    )
    assert isinstance(stream, openai.Stream)
    assert current() is None
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == ANSWER
    record = seen.record()
    assert (record.feature, list(record.messages), record.output) == ("chat", MESSAGES, SAID)
    assert record.parameters == {"model": "slow", "temperature": 0.5, "stream": True}
    assert (record.model, record.finish_reason) == ("gpt-5-2026", "stop")
    assert (record.input_tokens, record.output_tokens, record.cached_tokens) == (11, 7, 4)
    assert record.attributes == {"response_id": "chatcmpl-1", "system_fingerprint": "fp_1", "reasoning_tokens": 2}
    assert PAUSE_S * 1000 < record.ttft_ms < record.latency_ms - 3 * PAUSE_S * 1000


def test_tool_calls_that_come_in_pieces_are_put_together(seen, ours, theirs):
    """OpenAI's by index, Anthropic's by block."""
    for _ in seen.hook.wrap(ours).chat.completions.create(**CHAT, tools=[TOOL], stream=True):
        pass
    for _ in seen.hook.wrap(theirs).messages.create(**CLAUDE, stream=True):
        pass
    chat, message = seen.records()
    assert chat.tool_calls == [{"id": "c1", "name": "lookup", "arguments": '{"id": 7}'}]
    assert chat.finish_reason == "tool_calls"
    assert chat.tools[0]["function"]["name"] == "lookup"
    assert chat.ttft_ms is not None
    assert message.tool_calls == [{"id": "t1", "name": "lookup", "arguments": '{"id": 7}'}]


def test_the_helpers_for_streams_keep_working(seen, ours, theirs):
    """``.stream()`` of chat, responses and messages: events, snapshots, text_stream, final objects."""
    seen.hook.wrap(ours)
    seen.hook.wrap(theirs)
    with ours.chat.completions.stream(**CHAT) as stream:
        assert {event.type for event in stream} >= {"content.delta", "chunk"}
        assert stream.get_final_completion().choices[0].message.content == ANSWER
    with ours.responses.stream(model="gpt-5", input="Where?") as stream:
        assert [event.delta for event in stream if event.type == "response.output_text.delta"] == WORDS
        assert stream.get_final_response().output_text == ANSWER
    with theirs.messages.stream(**CLAUDE) as stream:
        assert list(stream.text_stream) == WORDS
        assert stream.response.status_code == 200
        assert stream.get_final_message().content[0].text == ANSWER
    with theirs.beta.messages.stream(**CLAUDE) as stream:
        assert stream.get_final_text() == ANSWER
    chat, answer, message, beta = seen.records()
    assert [record.output for record in (chat, answer, message, beta)] == [SAID] * 4
    assert (chat.finish_reason, answer.finish_reason, message.finish_reason) == ("stop", "completed", "end_turn")
    assert (answer.input_tokens, answer.output_tokens, answer.cached_tokens) == (21, 9, 8)
    assert (message.input_tokens, message.output_tokens, message.cached_tokens) == (151, 5, 100)
    assert answer.tool_calls == [{"id": "c1", "name": "lookup", "arguments": "{}"}]
    assert message.attributes["cache_write_tokens"] == 20
    assert all(record.ttft_ms is not None and "stream" not in record.attributes for record in seen.records())


def test_asynchronous_streams_are_recorded_too(seen, base_url):
    """The same for the asynchronous clients, plain and with the helpers, many at once."""

    async def run() -> None:
        async with (
            openai.AsyncOpenAI(api_key="k", base_url=base_url + "/v1", max_retries=0) as ours,
            anthropic.AsyncAnthropic(api_key="k", base_url=base_url, max_retries=0) as theirs,
        ):
            seen.hook.wrap(ours)
            seen.hook.wrap(theirs)

            async def ask(number: int) -> None:
                with seen.hook.context("chat", session_id=f"s{number}"):
                    stream = await ours.chat.completions.create(**CHAT, stream=True)
                    events = theirs.messages.stream(**CLAUDE)
                    responses = ours.responses.stream(model="gpt-5", input="Where?")
                assert len([chunk async for chunk in stream]) == 5
                async with events as message:
                    assert [text async for text in message.text_stream] == WORDS
                    assert (await message.get_final_message()).stop_reason == "end_turn"
                async with responses as answer:
                    assert (await answer.get_final_response()).output_text == ANSWER

            await asyncio.gather(*(ask(number) for number in range(4)))

    asyncio.run(run())
    records = seen.records()
    assert len(records) == 12
    assert {record.output for record in records} == {SAID}
    assert {record.session_id for record in records if record.model == "gpt-5-2026"} >= {"s0", "s1", "s2", "s3"}


def test_a_stream_may_be_read_in_another_thread_than_it_was_opened_in(seen, ours):
    """Trace and session are those of where it was opened, and nobody's calls nest in it."""
    seen.hook.wrap(ours)
    with seen.hook.context("chat", session_id="s1"):
        stream = ours.chat.completions.create(**CHAT, stream=True)
    thread = threading.Thread(target=lambda: list(stream))
    thread.start()
    with seen.hook.call("other"):
        assert seen.hook.current_call().feature == "other"
    thread.join()
    streamed = next(record for record in seen.records() if record.feature == "chat")
    assert (streamed.session_id, streamed.output) == ("s1", SAID)


@pytest.mark.parametrize("way", ["break", "close", "with", "drop", "raise"])
def test_a_stream_that_is_not_read_to_its_end_is_recorded_as_far_as_it_came(seen, ours, way):
    """Closed, left or dropped: one record each, with what was read, and why there is no more."""
    stream = seen.hook.wrap(ours).chat.completions.create(**CHAT, stream=True)
    next(stream), next(stream)
    if way == "break":
        for _ in stream:
            break
        stream.close()
    elif way == "close":
        stream.close()
        stream.close()
    elif way == "with":
        with stream as same:
            assert same is stream
    elif way == "raise":
        with pytest.raises(ZeroDivisionError), stream:
            raise ZeroDivisionError
    del stream
    if way == "with":
        del same
    gc.collect()
    record = seen.record()
    assert record.output == ("Your refund, for [email], " if way == "break" else "Your refund, ")
    assert (record.finish_reason, record.error) == ("", "")
    assert record.attributes["stream"] == "abandoned"
    assert record.ttft_ms is not None


def test_an_asynchronous_stream_that_is_cancelled_is_no_error(seen, base_url):
    """The user went away; that is not the provider's failure."""

    async def run() -> None:
        async with anthropic.AsyncAnthropic(api_key="k", base_url=base_url, max_retries=0) as theirs:
            stream = await seen.hook.wrap(theirs).messages.create(**{**CLAUDE, "model": "slow"}, stream=True)

            async def consume() -> None:
                async for _ in stream:
                    pass

            with pytest.raises(TimeoutError):
                await asyncio.wait_for(consume(), PAUSE_S * 3.5)

    asyncio.run(run())
    record = seen.record()
    if record.output != "Your refund, ":
        raise TookTooLongError(f"it was cancelled after {record.output!r}")
    assert (record.attributes["stream"], record.error) == ("abandoned", "")
    assert seen.row()["errors"] == 0


@pytest.mark.parametrize("model", ["cut", "fails"])
def test_a_stream_that_breaks_raises_what_it_raised_and_is_recorded(seen, ours, theirs, model):
    """The connection ends, or an error event comes: the library's own exception, and the text so far."""
    seen.hook.wrap(ours)
    seen.hook.wrap(theirs)
    if model == "fails":
        with pytest.raises(openai.APIError, match="too much"):
            list(ours.chat.completions.create(**{**CHAT, "model": model}, stream=True))
        with pytest.raises(anthropic.APIStatusError, match="too much"):
            list(theirs.messages.create(**{**CLAUDE, "model": model}, stream=True))
        ours_record, theirs_record = seen.records()
        assert ours_record.error == "APIError: too much"
        assert "too much" in theirs_record.error
    else:
        list(ours.chat.completions.create(**{**CHAT, "model": model}, stream=True))
        list(theirs.messages.create(**{**CLAUDE, "model": model}, stream=True))
        ours_record, theirs_record = seen.records()
    assert ours_record.output.startswith("Your refund, ")
    assert theirs_record.output.startswith("Your refund, ")
    assert ours_record.finish_reason == theirs_record.finish_reason == ""


def test_unsampled_streams_meter_what_sampled_ones_do_and_keep_only_what_the_screen_needs(unsampled, ours, theirs):
    """Tokens, finish reasons, time to first token and refusals of all calls; no record."""
    unsampled.hook.wrap(ours)
    unsampled.hook.wrap(theirs)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    assert len(list(ours.chat.completions.create(**CHAT, **options))) == 6
    list(ours.chat.completions.create(**{**CHAT, "model": "refuses"}, **options))
    list(theirs.messages.create(**CLAUDE, stream=True))
    assert unsampled.records() == []
    row = unsampled.row()
    assert (row["calls"], row["sampled"], row["errors"]) == (3, 0, 0)
    assert (row["input_tokens"], row["output_tokens"], row["cached_tokens"]) == (11 + 11 + 151, 7 + 7 + 5, 4 + 4 + 100)
    assert row["finish_reasons"] == {"stop": 1, "refusal": 1, "end_turn": 1}
    assert row["refusals"] == 1
    assert sum(row["ttft"]["counts"]) == 3


def test_raw_responses_are_recorded_where_they_are_parsed(seen, ours, theirs):
    """with_raw_response gives its own type, parsed once; with_streaming_response leaves the body to the application."""
    before = ours.chat.completions.with_raw_response
    seen.hook.wrap(ours)
    seen.hook.wrap(theirs)
    raw = before.create(**CHAT)
    assert raw.http_response.status_code == 200
    assert raw.parse().choices[0].message.content == ANSWER
    assert len(list(ours.chat.completions.with_raw_response.create(**CHAT, stream=True).parse())) == 5
    assert theirs.messages.with_raw_response.create(**CLAUDE).parse().content[0].text == ANSWER
    with ours.chat.completions.with_streaming_response.create(**CHAT) as response:
        assert response.parse().choices[0].message.content == ANSWER
    with theirs.messages.with_streaming_response.create(**CLAUDE, stream=True) as response:
        assert len(list(response.parse())) == 12
    assert [record.output for record in seen.records()] == [SAID] * 5
    with ours.chat.completions.with_streaming_response.create(**CHAT) as response:
        assert ANSWER in "".join(response.iter_lines())
    assert len(seen.records()) == 5
    assert (seen.hook.stats().calls, seen.hook.stats().not_sampled) == (6, 1)


def test_asynchronous_raw_responses_are_recorded_too(seen, base_url):
    """Anthropic's are parsed with await, OpenAI's without."""

    async def run() -> None:
        async with (
            openai.AsyncOpenAI(api_key="k", base_url=base_url + "/v1", max_retries=0) as ours,
            anthropic.AsyncAnthropic(api_key="k", base_url=base_url, max_retries=0) as theirs,
        ):
            seen.hook.wrap(ours)
            seen.hook.wrap(theirs)
            raw = await ours.chat.completions.with_raw_response.create(**CHAT)
            assert raw.parse().choices[0].message.content == ANSWER
            other = await theirs.messages.with_raw_response.create(**CLAUDE)
            assert (await other.parse()).content[0].text == ANSWER
            async with ours.responses.with_streaming_response.create(model="gpt-5", input="Where?") as response:
                assert (await response.parse()).output_text == ANSWER

    asyncio.run(run())
    assert [record.output for record in seen.records()] == [SAID] * 3


def test_structured_answers_are_recorded_and_paid_for_even_if_they_do_not_parse(seen, ours, theirs):
    """``.parse()`` gives the application's type; an answer cut at its length raises, and its tokens count."""
    seen.hook.wrap(ours)
    seen.hook.wrap(theirs)
    asked = {**CHAT, "model": "json"}
    parsed = ours.chat.completions.parse(**asked, response_format=Terms)
    assert parsed.choices[0].message.parsed == Terms(days=30)
    assert ours.responses.parse(model="json", input="Where?", text_format=Terms).output_parsed == Terms(days=30)
    assert theirs.messages.parse(**{**CLAUDE, "model": "json"}, output_format=Terms).parsed_output == Terms(days=30)
    with pytest.raises(openai.LengthFinishReasonError):
        ours.chat.completions.parse(**asked, response_format=Terms, max_tokens=1)
    chat, response, message, cut = seen.records()
    assert [record.parameters["response_format"] for record in (chat, response, message)] == ["json_schema"] * 3
    assert {record.output for record in (chat, response, message)} == {'{"days": 30}'}
    assert (cut.output_tokens, cut.finish_reason) == (7, "length")
    assert cut.error.startswith("LengthFinishReasonError")


def test_copies_of_a_wrapped_client_are_wrapped(seen, ours, theirs):
    """with_options() and copy(); the classes and other clients are not touched, and wrapping twice is wrapping once."""
    wrapped = seen.hook.wrap(seen.hook.wrap(ours))
    assert wrapped is ours
    ours.with_options(timeout=5).with_options(max_retries=1).chat.completions.create(**CHAT)
    ours.copy().responses.create(model="gpt-5", input="Where?")
    seen.hook.wrap(theirs).with_options(timeout=5).messages.create(**CLAUDE)
    with openai.OpenAI(api_key="k", base_url=ours.base_url) as other:
        other.chat.completions.create(**CHAT)
    assert len(seen.records()) == 3


def test_parameters_and_details_are_recorded(seen, ours, theirs):
    """What was asked for, in the provider's words, and which response it was."""
    seen.hook.wrap(ours)
    seen.hook.wrap(theirs)
    ours.chat.completions.create(
        **CHAT, top_p=0.9, seed=7, max_completion_tokens=50, stop=["END"], service_tier="default",
        reasoning_effort="low", tools=[TOOL], tool_choice={"type": "function", "function": {"name": "lookup"}},
        response_format={"type": "json_object"}, user="never recorded",
    )  # fmt: skip
    ours.responses.create(model="gpt-5", input="Where?", reasoning={"effort": "high"}, previous_response_id="resp-0")
    theirs.messages.create(**CLAUDE, stop_sequences=["END"], thinking={"type": "adaptive"})
    chat, response, message = seen.records()
    assert chat.parameters == {
        "model": "gpt-5", "top_p": 0.9, "seed": 7, "max_completion_tokens": 50, "stop": ["END"],
        "service_tier": "default", "reasoning_effort": "low", "response_format": "json_object",
        "tool_choice": {"type": "function", "function": {"name": "lookup"}},
    }  # fmt: skip
    assert chat.attributes == {"response_id": "chatcmpl-1", "system_fingerprint": "fp_1", "service_tier": "default",
                               "reasoning_tokens": 2}  # fmt: skip
    assert response.parameters == {"model": "gpt-5", "reasoning_effort": "high", "previous_response_id": "resp-0"}
    assert message.parameters["stop_sequences"] == ["END"]
    assert message.parameters["thinking"] == {"type": "adaptive"}


def test_refusals_are_told_apart_from_answers(seen, ours, theirs):
    """By the provider's own field or stop reason, streamed or not."""
    seen.hook.wrap(ours)
    seen.hook.wrap(theirs)
    refuses = {**CHAT, "model": "refuses"}
    ours.chat.completions.create(**refuses)
    list(ours.chat.completions.create(**refuses, stream=True))
    ours.responses.create(model="refuses", input="Where?")
    theirs.messages.create(**{**CLAUDE, "model": "refuses"})
    assert {(record.output, record.finish_reason) for record in seen.records()} == {(REFUSAL, "refusal")}


def test_inline_images_sound_and_files_are_replaced_by_what_they_were(seen, ours, theirs):
    """The request goes out whole; the record has kind, size and, if it is small, a hash."""
    small, large = b"\x89PNG" * 1000, b"\x00" * 400_000
    small64, large64 = base64.b64encode(small).decode(), base64.b64encode(large).decode()
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{small64}"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "input_audio", "input_audio": {"data": large64, "format": "wav"}},
    ]
    messages = [{"role": "user", "content": parts}]
    seen.hook.wrap(ours).chat.completions.create(model="gpt-5", messages=messages)
    assert parts[1]["image_url"]["url"].endswith(small64)
    image = {"type": "input_image", "image_url": f"data:image/jpeg;base64,{large64}"}
    ours.responses.create(model="gpt-5", input=[{"role": "user", "content": [image]}])
    source = {"type": "base64", "media_type": "image/png", "data": large64}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "image", "source": source}]}
    seen.hook.wrap(theirs).messages.create(**{**CLAUDE, "messages": [{"role": "user", "content": [result]}]})
    chat, response, message = seen.records()
    content = chat.messages[0]["content"]
    assert content[0] == parts[0]
    assert content[1] == {
        "type": "image_url", "omitted": "image/png, 4000 bytes", "sha256": hashlib.sha256(small).hexdigest()[:16]
    }  # fmt: skip
    assert content[2] == parts[2]
    assert content[3] == {"type": "input_audio", "omitted": "wav, 400000 bytes"}
    assert response.messages[0]["content"] == [{"type": "input_image", "omitted": "image/jpeg, 400000 bytes"}]
    assert message.messages[0]["content"][0]["content"] == [{"type": "image", "omitted": "image/png, 400000 bytes"}]


def test_a_stream_longer_than_a_record_may_be_reaches_the_application_whole(redis_url, ours):
    """The record is shed as oversized, as it would be without streaming; the memory for it is bounded meanwhile."""
    seen = Seen(redis_url, max_record_bytes=2000)
    stream = seen.hook.wrap(ours).chat.completions.create(**CHAT, stream=True)
    first = next(stream)
    first.choices[0].delta.content = "x" * 100
    watch = stream._iterator._watch
    for _ in range(100):
        watch.saw(first)
    assert len(list(stream)) == 4
    assert len("".join(watch._reader._text)) <= 2200
    assert seen.records() == []
    assert seen.hook.stats().shed["oversized"] == 1
    seen.close()


def test_a_background_response_is_counted_and_not_judged(seen, ours):
    """Its answer comes with another request."""
    assert seen.hook.wrap(ours).responses.create(model="gpt-5", input="Where?", background=True).status == "queued"
    assert seen.records() == []
    assert seen.hook.stats().not_sampled == 1


def test_text_completions_are_recorded_and_what_cannot_be_read_is_counted(seen, ours):
    """What gateways offer; and the library's own ``client.post``, whose answer is whatever the application wants."""
    seen.hook.wrap(ours).completions.create(model="gpt-5", prompt="Where?")
    assert ours.post("/chat/completions", cast_to=object, body=CHAT)["model"] == "gpt-5-2026"
    record = seen.record()
    assert (record.input_text, record.output, record.finish_reason) == ("Where?", SAID, "stop")
    assert (seen.hook.stats().calls, seen.hook.stats().not_sampled) == (2, 1)


def test_shapes_that_nobody_expected_reach_the_application(seen, base_url):
    """An answer without what its type promises, as some gateways send; the call is counted."""

    class Odd(openai.OpenAI):
        def post(self, path: str, **_: Any) -> Any:
            return object()

    with Odd(api_key="k", base_url=base_url + "/v1") as client:
        seen.hook.wrap(client)
        assert type(client.chat.completions.create(**CHAT)) is object
        assert type(client.chat.completions.create(**CHAT, stream=True)) is object
        assert type(client.chat.completions.with_raw_response.create(**CHAT)) is object
    assert seen.records() == []
    assert seen.hook.stats().calls == 3


class Awkward:
    """An answer that raises at every look, and not what is expected of a missing attribute."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


@pytest.mark.parametrize("make", [object, Awkward])
@pytest.mark.parametrize("kind", ["", "true", "stream"])
def test_an_answer_that_cannot_be_looked_at_reaches_the_application(seen, base_url, make, kind):
    """Parsed, raw or to be parsed later, at once or in a loop; each call is counted."""
    answer = make()

    class Odd(openai.OpenAI):
        def post(self, path: str, **_: Any) -> Any:
            return answer

    class AsyncOdd(openai.AsyncOpenAI):
        async def post(self, path: str, **_: Any) -> Any:
            return answer

    options = {"headers": {RAW: kind}} if kind else {"headers": Awkward()}

    async def run() -> None:
        async with AsyncOdd(api_key="k", base_url=base_url + "/v1") as client:
            posted = await seen.hook.wrap(client).post("/chat/completions", cast_to=object, body=CHAT, options=options)
            assert posted is answer

    asyncio.run(run())
    with Odd(api_key="k", base_url=base_url + "/v1") as client:
        seen.hook.wrap(client)
        assert client.post("/chat/completions", cast_to=object, body=CHAT, options=options) is answer
    assert seen.records() == []
    assert seen.hook.stats().calls == 2


def test_a_raw_response_that_cannot_be_parsed_is_a_call_that_failed(seen, ours, base_url):
    """As it is where the library parses it: what it raises is the application's, and the call is counted."""
    seen.hook.wrap(ours)
    with (
        ours.chat.completions.with_streaming_response.create(**CHAT) as response,
        pytest.raises(RuntimeError, match="Unsupported type"),
    ):
        response.parse(to=complex)

    async def run() -> None:
        async with openai.AsyncOpenAI(api_key="k", base_url=base_url + "/v1", max_retries=0) as client:
            seen.hook.wrap(client)
            async with client.chat.completions.with_streaming_response.create(**CHAT) as response:
                with pytest.raises(RuntimeError, match="Unsupported type"):
                    await response.parse(to=complex)

    asyncio.run(run())
    assert seen.records() == []
    row = seen.row()
    assert (row["calls"], row["sampled"], row["errors"]) == (2, 0, 2)


def test_a_refused_call_reaches_the_application_and_not_the_provider(seen, ours, provider, redis_url):
    """What the control plane refuses is raised for plain calls, streams and helpers, before any request is made."""
    seen.hook.wrap(ours, feature="chat", enforce=True)
    stop(redis_url, seen.hook)
    for attempt in (
        lambda: ours.chat.completions.create(**CHAT),
        lambda: ours.chat.completions.create(**CHAT, stream=True),
        lambda: ours.chat.completions.stream(**CHAT).__enter__(),
        lambda: ours.responses.parse(model="gpt-5", input="Where?", text_format=Terms),
        lambda: ours.chat.completions.with_raw_response.create(**CHAT),
    ):
        with pytest.raises(KillSwitchEngaged, match="it is wrong"):
            attempt()
    assert provider[1] == []


def test_time_to_first_token_is_measured_at_the_caller(seen, theirs):
    """From the request to the first text that the application is handed, not to the first byte."""
    started = time.perf_counter()
    first = 0.0
    with seen.hook.wrap(theirs).messages.stream(**{**CLAUDE, "model": "slow"}) as stream:
        for _ in stream.text_stream:
            first = first or (time.perf_counter() - started) * 1000
    record = seen.record()
    assert_quick(abs(record.ttft_ms - first) / 1000, 0.02)
    assert record.ttft_ms > 3 * PAUSE_S * 1000
