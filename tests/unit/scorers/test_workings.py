"""The heuristics that see an answer that broke off, retrieval that found nothing, and tool calls that fail."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evalpipe.score import Status
from evalpipe.scorers.base import heuristics

DOCUMENT = {"id": "returns", "text": "Returns within 30 days.", "updated_at": "2026-11-20T03:30:00+00:00"}
TOOL = {
    "type": "function",
    "function": {
        "name": "refund",
        "parameters": {"type": "object", "required": ["order"], "properties": {"order": {"type": "integer"}}},
    },
}


@pytest.mark.parametrize(
    "output",
    [
        "Send it back within 30 days.",
        "30 days",
        '{"order": 7, "items": ["a", "b"]}',
        "```json\n{}\n```",
        "~~~\n```\n~~~",
        "[returns] says 30 days [see",
        "[1] is what counts: {",
        "1. Pack it\n2. Send it",
        'He said "30 days',
    ],
)
def test_a_whole_answer_is_complete(score, output):
    """Prose, JSON, fences and lists that come to their end, and brackets in prose, which are no JSON."""
    found = score("complete", {}, output)
    assert (found.value, found.label) == (1.0, "complete")


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("Here it is:\n```python\nprint(1)", "fence"),
        ("```\n~~~\n", "fence"),
        ('{"order": 7, "items": ["a", "b"', "JSON"),
        ('[{"order": "seven', "JSON"),
        ('{"a": "\\"', "JSON"),
        ("{", "JSON"),
        ("Steps:\n1. Pack it\n2.", "list"),
        ("Steps:\n- Pack it\n-", "list"),
    ],
)
def test_what_was_begun_and_not_ended_is_cut_off(score, output, why):
    """A fence, JSON, a string in it, an item of a list."""
    found = score("complete", {}, output)
    assert (found.value, found.label) == (0.0, "cut off")
    assert why in found.explanation


def test_the_provider_is_believed_that_the_limit_cut_the_answer_off(score):
    """Whatever the text looks like."""
    assert score("complete", {}, "All of it.", finish_reason="max_tokens").label == "cut off"


def test_an_empty_answer_of_a_call_that_worked_is_empty(score):
    """White space is nothing; a model that called tools and said nothing is another thing."""
    assert score("complete", {}, " \n ").label == "empty"
    assert score("complete", {"min_characters": 3}, "o k").label == "empty"
    assert score("complete", {}, "", tool_calls=[{"name": "refund"}]).status is Status.SKIPPED


def test_a_sentence_must_end_where_the_feature_answers_in_prose(score):
    """By its last sign, in any script."""
    prose = {"ending": "sentence"}
    assert score("complete", prose, "Send it back within").label == "cut off"
    for whole in ("Send it back.", "Wirklich?", "30日以内です。", "See [returns]", "**Done**"):
        assert score("complete", prose, whole).value == 1.0


def test_retrieval_that_found_nothing_fails(score):
    """No documents, none with text, none with the score; but documents without a score are found."""
    assert score("retrieval", {}, "x").label == "empty"
    assert score("retrieval", {}, "x", context=[{"id": "a", "text": "  "}]).value == 0.0
    scored = [{"id": "a", "text": "t", "score": 0.2}]
    assert score("retrieval", {}, "x", context=scored).value == 1.0
    assert score("retrieval", {"min_score": 0.5}, "x", context=scored).value == 0.0
    assert score("retrieval", {"min_score": 0.5}, "x", context=[DOCUMENT]).label == "found"
    assert score("retrieval", {"min": 2}, "x", context=[DOCUMENT]).label == "empty"


def test_the_share_of_fresh_documents_counts(score):
    """Captured on the 22nd: two days old, and a year old; seconds since 1970 are dates too, and no zone is UTC."""
    old = {**DOCUMENT, "updated_at": "2025-11-20T03:30:00"}
    found = score("retrieval", {"max_age": "7d"}, "x", context=[DOCUMENT, old])
    assert (found.value, found.label) == (0.5, "stale")
    assert "367d" in found.explanation
    assert score("retrieval", {"max_age": "1d"}, "x", context=[DOCUMENT]).value == 0.0
    seconds = {"id": "a", "text": "t", "indexed": 1_795_300_000}
    assert score("retrieval", {"max_age": "7d", "date_field": "indexed"}, "x", context=[seconds]).value == 1.0


def test_a_record_may_have_the_date_of_all_its_documents(score):
    """The time of the index, in an attribute; without any date nobody knows."""
    bare = [{"id": "a", "text": "t"}]
    dated = {"updated_at": "2026-11-21T00:00:00Z"}
    assert score("retrieval", {"max_age": "7d"}, "x", context=bare, attributes=dated).value == 1.0
    for odd in ({}, {"updated_at": "soon"}, {"updated_at": True}, {"updated_at": 1e300}):
        found = score("retrieval", {"max_age": "7d"}, "x", context=bare, attributes=odd)
        assert found.status is Status.ABSTAINED


@pytest.mark.parametrize(
    "tool", [TOOL, TOOL["function"], {"name": "refund", "input_schema": TOOL["function"]["parameters"]}]
)
def test_a_call_of_an_offered_tool_with_fitting_arguments_works(score, tool):
    """In each provider's form of an offer; arguments as an object and as JSON text."""
    for arguments in ({"order": 7}, '{"order": 7}'):
        found = score("tool_use", {}, "", tools=[tool], tool_calls=[{"name": "refund", "arguments": arguments}])
        assert (found.value, found.label) == (1.0, "ok")


@pytest.mark.parametrize(
    ("call", "label"),
    [
        ({"name": "pay", "arguments": {}}, "unknown tool"),
        ({"arguments": {}}, "unknown tool"),
        ({"name": "refund", "arguments": '{"order": 7'}, "bad arguments"),
        ({"name": "refund", "arguments": {"order": "seven"}}, "bad arguments"),
        ({"name": "refund"}, "bad arguments"),
        ({"name": "refund", "arguments": {"order": 7}, "error": "timeout"}, "failed"),
        ({"name": "refund", "arguments": {"order": 7}, "result": "Error: no such order"}, "failed"),
        ({"name": "refund", "arguments": {"order": 7}, "result": '{"error": "no such order"}'}, "failed"),
    ],
)
def test_a_call_that_cannot_work_or_did_not_is_told(score, call, label):
    """One of two calls: half."""
    good = {"name": "refund", "arguments": {"order": 7}, "result": {"ok": True, "error": None}}
    found = score("tool_use", {}, "", tools=[TOOL], tool_calls=[good, call])
    assert (found.value, found.label) == (0.5, label)
    assert "seven" not in found.explanation


def test_what_the_tools_of_this_turn_said_counts(record):
    """Messages of role tool after the user's last; a word of one's own can be a failure."""
    before = [{"role": "tool", "content": "Error: old"}, {"role": "user", "content": "And now?"}]
    said = [*before, {"role": "tool", "name": "search", "content": "Nothing found"}]
    turn = replace(record("There is nothing."), messages=said)
    kind = heuristics.get("tool_use")
    assert kind(kind.Params()).score(turn).value == 1.0
    assert kind(kind.Params(errors=["nothing found"])).score(turn).label == "failed"
    assert kind(kind.Params()).score(replace(turn, messages=before)).status is Status.SKIPPED


def test_arguments_are_not_checked_where_that_is_not_wanted_or_cannot_be(score):
    """And a schema that is none is not the model's fault."""
    call = [{"name": "refund", "arguments": {"order": "seven"}}]
    assert score("tool_use", {"check_arguments": False}, "", tools=[TOOL], tool_calls=call).value == 1.0
    odd = {"name": "refund", "parameters": {"type": "no such type"}}
    assert score("tool_use", {}, "", tools=[odd], tool_calls=call).value == 1.0
    assert score("tool_use", {}, "", tools=["refund"], tool_calls=call).value == 1.0
