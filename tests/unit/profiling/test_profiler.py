"""What a profile says of a record: words, sizes, the key of recurring inputs, and the shapes of texts."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stopwatch import assert_quick

from evalpipe.profile import packed, unpacked
from evalpipe.profiling.embedders.base import EmbedderConfig
from evalpipe.profiling.embedders.static import Static
from evalpipe.profiling.profiler import Profiler, input_key, language_of
from evalpipe.profiling.shape import format_of, json_shape
from evalpipe.record import Record, Release

PROFILER = Profiler()
TABLE = "| a | b |\n| --- | --- |\n| 1 | 2 |"


def record(asked: str = "Where is my refund?", output: str = "It is on its way.", **fields: object) -> Record:
    """One record."""
    at = datetime(2026, 3, 1, tzinfo=UTC)
    messages = [{"role": "user", "content": asked}]
    return Record("r1", "t1", at, Release("desk"), messages=messages, output=output, **fields)


def test_a_profile_has_the_words_and_sizes_that_drift_is_found_by():
    """Of the input and of the output, with the conversation only as a hash."""
    asked = "Please write to ada@example.org about the refund that I asked for last week."
    made = PROFILER.profile(
        record(asked, "- one\n- two\n- three", feature="mail", session_id="s1", finish_reason="stop")
    )
    assert made is not None
    assert made.words == {
        "language": "en",
        "entities": "email",
        "input_schema": "text",
        "feature": "mail",
        "output_language": "unknown",
        "output_schema": "list",
        "format": "list",
        "finish": "stop",
        "terms": "- one two three",
    }
    assert made.sizes["input_chars"] == len(asked)
    assert made.sizes["output_words"] == 6
    assert "type_token" not in made.sizes
    assert made.unit
    assert "s1" not in made.unit


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("Yes, you can.", "prose"),
        ("First\n\nsecond paragraph - with a dash.", "prose"),
        ("Do this:\n- one\n- two", "list"),
        ("1. one\n2. two\n3) three", "list"),
        (TABLE, "table"),
        ('{"a": 1}', "json"),
        ('```json\n{"a": 1}\n```', "json"),
        ("```python\nprint(1)\n```", "code"),
        ("{not json}", "prose"),
    ],
)
def test_the_format_of_a_text_is_what_most_of_it_is(text, form):
    """A dash or a brace alone is prose."""
    assert format_of(text) == form


@pytest.mark.parametrize(
    "text",
    [
        "a|" + "\n" * 40_000 + "x",
        "a|" + " \n" * 40_000 + "x",
        "a|\n" + " " * 80_000 + "x",
        "a|\n" + "-" * 80_000 + "x",
        "a|\n--|" + "- " * 40_000 + "x",
        "a\n" + "- \n" * 40_000 + "x",
        "```" * 30_000 + "x",
        "[1," * 30_000,
    ],
    ids=lambda text: repr(text[:8]),
)
def test_no_answer_takes_long_to_be_looked_at(text):
    """A model that repeats blank lines to its limit must not stop ingest: that took minutes."""
    started = time.process_time()
    format_of(text)
    assert_quick(time.process_time() - started, 2.0)


def test_a_table_or_list_with_other_line_ends_and_spaces_is_one():
    """As programs of Windows, and models that like non-breaking spaces, write them."""
    assert format_of("| a |\r\n| --- |\r\n| 1 |") == "table"
    assert format_of("-\u00a0one\n-\u00a0two") == "list"


def test_the_format_of_an_answer_knows_refusals_errors_and_tools():
    """These are no formats of a text."""

    def form(**fields: object) -> str:
        made = PROFILER.profile(record(**fields))
        assert made is not None
        return made.words["format"]

    assert form(output="I'm sorry, but I can't help with that.") == "refusal"
    assert form(output="", error="Timeout: too slow") == "error"
    assert form(output="", tool_calls=[{"name": "find"}]) == "tools"


def test_the_shape_of_json_is_its_keys_and_types_whatever_the_values():
    """The order of keys and the length of lists do not count; a long shape ends in its hash."""
    assert json_shape('{"b": [1, 2.5], "a": {"x": null, "y": true}}') == "{a:{x:null,y:bool},b:[number]}"
    assert json_shape('{"a": {"y": false, "x": null}, "b": [7]}') == json_shape(
        '{"b": [1], "a": {"x": null, "y": true}}'
    )
    assert json_shape('"text"') == json_shape("7") == json_shape("{") == ""
    long = json_shape("{" + ",".join(f'"key{i}": {i}' for i in range(60)) + "}")
    assert len(long) <= 120
    assert long != json_shape("{" + ",".join(f'"key{i}": "{i}"' for i in range(60)) + "}")


def test_inputs_that_mean_the_same_have_one_key():
    """Order, case, function words and numbers do not count; content words and the feature do."""
    key = input_key("chat", "How do I get a refund for order 1234?")
    assert key == input_key("chat", "Hello, order 77: can I get refunds")
    assert key != input_key("mail", "order 77: can I get refunds")
    assert key != input_key("chat", "How do I get an invoice for order 1234?")
    assert input_key("chat", " ") == ""
    assert input_key("chat", "who are you?") == input_key("chat", "Who  are you?") != ""


def test_the_language_of_a_short_or_strange_text_is_unknown():
    """Rather than wrong."""
    assert language_of("") == ""
    assert language_of("ok 123") == "unknown"
    assert language_of("Wo bleibt eigentlich meine Bestellung von letzter Woche?") == "de"


@given(asked=st.text(max_size=200), output=st.text(max_size=200))
def test_any_text_has_a_profile(asked, output):
    """With vectors of length 1 or none, and words that a database takes."""
    made = PROFILER.profile(record(asked, output))
    assert made is not None
    for vector in (made.input_embedding, made.output_embedding):
        assert not vector or sum(x * x for x in vector) == pytest.approx(1.0)
    assert all("\0" not in word for word in made.words.values())
    " ".join(made.words.values()).encode()
    assert unpacked(packed(made.input_embedding)) == pytest.approx(made.input_embedding, abs=2e-3)


def test_a_text_has_the_same_vector_whatever_was_embedded_before():
    """Also after the cache was emptied, and in Chinese, which has no spaces."""
    texts = ["Refunds are paid within 3 days.", "退款将在三个工作日内完成。" * 9, "- a\n- b"]
    first = Static(EmbedderConfig())
    second = Static(EmbedderConfig())
    second.embed([f"word{i} other{i}" for i in range(16_000)])
    assert second.embed(texts[::-1])[::-1] == first.embed(texts)


def test_likeness_follows_shared_words_and_their_stems():
    """A refund is like refunds, and not like a router."""
    refund, refunds, router = Static(EmbedderConfig()).embed(
        ["I want a refund for my order", "Refunds of an order?", "The router blinks red at night"]
    )

    def cosine(a: tuple[float, ...], b: tuple[float, ...]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert cosine(refund, refunds) > 0.6
    assert cosine(refund, router) < 0.4
