"""The wire form: what leaves the process of a record, in full, under an allow-list, and as metadata."""

from __future__ import annotations

import json
from decimal import Decimal
from enum import StrEnum
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.hook.buffer import Entry
from evalpipe.hook.redaction import Redaction, redact
from evalpipe.hook.wire import plain, record_wire
from evalpipe.record import Release, from_wire

RELEASE = {"service": "shop"}
FIELDS = {
    "record_id": "r1",
    "trace_id": "t1",
    "session_id": "s1",
    "user_id": "u1",
    "unit": "s1",
    "segment": "pro",
    "probability": 0.5,
    "stratum": "long",
    "reason": "keep:cost",
    "latency_ms": 12.5,
    "ttft_ms": 3.5,
    "input_tokens": 7,
    "output_tokens": 5,
    "cached_tokens": 2,
    "cost_usd": 0.25,
    "model": "gpt-5",
    "finish_reason": "stop",
    "error": "TimeoutError: bob@example.com",
    "messages": [{"role": "user", "content": "I am bob@example.com", "name": "Bob"}],
    "context": [{"id": "d1", "text": "doc", "score": 0.5}],
    "tools": ["search"],
    "tool_calls": [{"name": "search", "arguments": {"q": "bob@example.com"}}],
    "parameters": {"temperature": 0.5, "stop": ["END"], "logprobs": True},
    "attributes": {"plan": "gold", "lang": "de", "score": 3},
    "output": "Hello bob@example.com",
}


def _wire(fields=None, redaction=redact, **options):
    entry = Entry(Release("shop"), "chat", 1_800_000_000.0, 1000, {**FIELDS, **(fields or {})})
    return record_wire(entry, RELEASE, redaction, **{"metadata_only": False, **options})


def test_every_field_arrives_as_it_was_set_and_redacted():
    """What a worker reads has all of them."""
    record = from_wire(json.loads(json.dumps(_wire())))
    assert (record.segment, record.stratum, record.reason, record.probability) == ("pro", "long", "keep:cost", 0.5)
    assert (record.ttft_ms, record.cached_tokens, record.latency_ms, record.cost_usd) == (3.5, 2, 12.5, 0.25)
    assert (record.output, record.error) == ("Hello [email]", "TimeoutError: [email]")
    assert record.messages[0] == {"role": "user", "content": "I am [email]", "name": "Bob"}
    assert record.tool_calls[0]["arguments"] == {"q": "[email]"}
    assert record.tools == [{"name": "search"}]
    assert record.attributes == FIELDS["attributes"]


def test_what_is_unknown_takes_no_room():
    """No empty text, no empty list, no None, and no number that is none."""
    empty = dict.fromkeys(FIELDS, "") | {"probability": 1.0, "record_id": "r1", "trace_id": "t1"}
    numbers = {"latency_ms": float("nan"), "ttft_ms": None, "cached_tokens": True, "cost_usd": "3"}
    assert set(_wire({**empty, **numbers})) == {
        "record_id", "trace_id", "captured_at", "release", "probability", "feature"}  # fmt: skip


def test_only_allowed_fields_leave_and_of_them_only_allowed_keys():
    """Ids, numbers, the model and the finish reason always do."""
    own = Redaction(fields={"output": True, "messages": ["role"], "attributes": ["plan"]})
    sent = _wire(redaction=own, keep=own.keep)
    assert sent["output"] == "Hello [email]"
    assert sent["messages"] == [{"role": "user"}]
    assert sent["attributes"] == {"plan": "gold"}
    assert not {"context", "tools", "tool_calls", "parameters", "error"} & set(sent)
    assert (sent["model"], sent["ttft_ms"], sent["user_id"], sent["segment"]) == ("gpt-5", 3.5, "u1", "pro")
    nothing = Redaction(fields=[])
    assert not {"output", "messages", "attributes"} & set(_wire(redaction=nothing, keep=nothing.keep))
    assert _wire(keep=own.keep, metadata_only=True)["attributes"] == {}


def test_metadata_has_ids_names_and_numbers():
    """And the class of the error."""
    sent = _wire(metadata_only=True)
    assert sent["error"] == "TimeoutError"
    assert (sent["segment"], sent["reason"], sent["stratum"]) == ("pro", "keep:cost", "long")
    assert (sent["ttft_ms"], sent["cached_tokens"]) == (3.5, 2)
    assert sent["parameters"] == {"temperature": 0.5, "logprobs": True}
    assert sent["attributes"] == {"score": 3}
    assert not {"messages", "context", "tools", "tool_calls", "output"} & set(sent)


_SECRET = "the secret words of a customer"
_PLACES = ["model", "finish_reason", "error", "output", "messages", "context", "tools", "tool_calls", "parameters",
           "attributes"]  # fmt: skip


@given(
    st.dictionaries(
        st.sampled_from(_PLACES),
        st.recursive(
            st.just(_SECRET) | st.just(_SECRET.encode()) | st.integers() | st.floats(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", _SECRET]), inner),
            max_leaves=6,
        ),
    )
)
def test_no_text_of_the_application_survives_in_metadata(fields):
    """Wherever it stands: values, keys, names of models, an error without a class, bytes."""
    sent = json.dumps(_wire(fields, str, metadata_only=True), default=str)
    assert "secret" not in sent
    assert "customer" not in sent


class _Colour(StrEnum):
    RED = "bob@example.com"


class _Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "not the text"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a\x00b@x.io", "a\ufffdb@x.io".replace("b@x.io", "[email]")),
        (_Colour.RED, "[email]"),
        (_Text("bob@example.com"), "[email]"),
        (b"bob@example.com \xff", "[email] \ufffd"),
        (ValueError("bob@example.com"), "ValueError: [email]"),
        (Decimal("1.5"), "1.5"),
        ((1, {2.5}), [1, [2.5]]),
        (MappingProxyType({"bob@example.com": None}), {"[email]": None}),
        (1 << 70, str(1 << 70)),
        (float("inf"), "inf"),
        (object(), "[builtins.object]"),
        ({1: {None: True}}, {"1": {"None": True}}),
    ],
)
def test_any_value_becomes_json_and_its_texts_are_redacted(value, expected):
    """Also what is a text only nearly, and keys."""
    assert plain(value, redact) == expected


def test_what_is_too_deep_ends_with_a_mark():
    """Whatever it is made of."""
    for around in (lambda inner: [inner], lambda inner: {"a": inner}, lambda inner: (inner,)):
        value = "x"
        for _ in range(40):
            value = around(value)
        assert "[too deep]" in json.dumps(plain(value, redact))


def test_numbers_are_searched_as_texts_are():
    """A card's number in a tool's arguments needs no quotes; other numbers stay numbers."""
    arguments = {"card": 4111111111111111, "order": 20260131, "count": 3, "price": 12.5, "id": -7}
    wire = _wire({"tool_calls": [{"name": "pay", "arguments": arguments}]})
    assert wire["tool_calls"][0]["arguments"] == {**arguments, "card": "[card]"}
    metadata = _wire({"parameters": {"seed": 7, "phone": 4915112345678}}, metadata_only=True)
    assert metadata["parameters"] == {"seed": 7}


def test_ids_and_segments_are_as_short_as_keys_must_be():
    """A long one is cut, and two that begin alike stay two."""
    first, second = _wire({"user_id": "u" * 5000 + "1"}), _wire({"user_id": "u" * 5000 + "2"})
    assert first["user_id"] != second["user_id"]
    assert len(first["user_id"]) == len(_wire({"segment": "s" * 201})["segment"]) == 200
    assert _wire({"user_id": "u" * 200})["user_id"] == "u" * 200
