"""Records from JSONL: short and wire form side by side, and bad lines that cost nothing but themselves."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.record import Record, Release, to_wire
from evalpipe.scorecard.document import Problem
from evalpipe.scorecard.rows import read_rows


def rows(*lines: str | bytes):
    """What is read from lines of text or bytes."""
    return list(read_rows("r.jsonl", [line if isinstance(line, bytes) else line.encode() for line in lines]))


def test_a_short_row_becomes_a_record():
    """Input, output and context are what most people have."""
    row = {
        "input": "May I?",
        "output": "Yes. [1]",
        "context": ["Everybody may.", {"id": "x", "text": "t", "score": 0.5}],
    }
    (record,) = rows(json.dumps(row))
    assert record.input_text == "May I?"
    assert record.output == "Yes. [1]"
    assert record.context == [{"id": "1", "text": "Everybody may."}, {"id": "x", "text": "t", "score": 0.5}]
    assert (record.record_id, record.trace_id, record.unit) == ("line 1", "line 1", "line 1")


def test_a_row_as_hooks_send_it_is_the_same_record():
    """Exports of stored records can be tried as they are."""
    before = Record(
        "r", "t", datetime(2024, 1, 1, tzinfo=UTC), Release(service="desk"), output="Hello", probability=0.05
    )
    assert rows(json.dumps(to_wire(before))) == [before]


def test_one_document_may_stand_without_a_list():
    """A text or an object is a list of one."""
    for context in ("Everybody may.", {"text": "Everybody may."}):
        (record,) = rows(json.dumps({"context": context}))
        assert record.context == [{"id": "1", "text": "Everybody may."}]


def test_messages_and_everything_else_that_a_record_has_can_be_written():
    """Tools, calls, release and figures arrive in their places."""
    row = {
        "id": "a7",
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        ],
        "tools": ["find"],
        "tool_calls": [{"name": "find", "arguments": {"q": 1}}, {"name": "find", "arguments": "{"}],
        "service": "desk",
        "variant": "canary",
        "session_id": "s",
        "latency_ms": 12,
        "finish_reason": "length",
    }
    (record,) = rows(json.dumps(row))
    assert (record.record_id, record.input_text, record.unit) == ("a7", "Hi", "s")
    assert record.release == Release(service="desk", variant="canary")
    assert record.tool_calls == [{"name": "find", "arguments": {"q": 1}}, {"name": "find", "arguments": "{"}]
    assert (record.latency_ms, record.finish_reason) == (12, "length")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "1:2: not JSON: Expecting property name enclosed in double quotes"),
        ('{"input" "a"}', "1:10: not JSON: Expecting ':' delimiter"),
        ("[1]", "1:1: must be an object, not list"),
        ('{"input": NaN}', "1:1: not JSON: NaN is not a number of JSON"),
        ('{"inputs": "a"}', "1:1: inputs: is no field; did you mean 'input'?"),
        ('{"output": 5, "context": 7}', "1:1: output: must be text, not 5; context: must be a list, not 7"),
        (
            '{"input": "a", "messages": [{"role": "user"}]}',
            "1:1: messages: write either 'input' or 'messages', not both",
        ),
        ('{"record_id": "a"}', "1:1: record field 'trace_id' is missing"),
        (b'{"input": "\xff"}', "1:12: byte 0xff is not UTF-8"),
        ('{"a":' * 100_000, "1:1: not JSON: "),
    ],
)
def test_a_bad_line_is_reported_with_its_place(line, said):
    """The other lines are read."""
    problem, good = rows(line, '{"output": "b"}')
    assert str(problem).startswith(f"r.jsonl:{said}")
    assert isinstance(good, Record)


def test_empty_lines_count_but_are_no_records():
    """Line numbers are those of the file."""
    problem, record = rows("\n", "x\n", "  \n", "{}\n")
    assert (problem.line, record.record_id) == (2, "line 4")


FIELDS = st.sampled_from(["input", "output", "context", "messages", "record_id", "captured_at", "tool_calls"])
VALUES = st.none() | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=3) | st.none(), max_size=2)


@given(st.binary(max_size=80) | st.dictionaries(FIELDS, VALUES).map(lambda row: json.dumps(row).encode()))
def test_every_line_is_a_record_or_a_problem(line):
    """Nothing that stands in a file gives a traceback."""
    assert all(isinstance(row, Record | Problem) for row in rows(line))
