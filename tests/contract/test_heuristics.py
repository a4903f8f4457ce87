"""What every heuristic promises. The list is the registry's: a new heuristic is tested by being there."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from stopwatch import TookTooLongError

from evalpipe.record import Record, Release
from evalpipe.score import Score, Status
from evalpipe.scorers.base import Params, heuristics

AT = datetime(2026, 11, 22, 3, 30, tzinfo=UTC)
NEEDED = {
    "pattern": {"patterns": [r"\brefund\b"]},
    "disclosure": {"required": ["not financial advice"]},
    "topic": {"examples": ["I want my money back for the kettle"]},
}
"""Parameters of the heuristics that have no defaults for all of them."""
NAMES = list(heuristics)
HOSTILE = {
    "empty": "",
    "white space": " \n\t\u00a0\u2028",
    "lone surrogates": "\ud800 refund \udfff within 30 days",
    "NULs": "refund\0\0within 30 days\0",
    "right to left": "\u202eسيتم رد المبلغ خلال ٣٠ يومًا\u202c [returns]",
    "only emoji": "😀👩‍👩‍👧🏳️‍🌈" * 30,
    "combining marks": "e" + "\u0301" * 5000,
    "a long number": "9" * 5000 + " days",
    "numbers and signs": "$1,,,2...3 %% €-5 0.0.0.0 1e999 99999999999999999 days 32 March 25:61 1/0",
    "broken JSON": '{"a": [1, 2' + "[" * 3000,
    "deep JSON": "[" * 900 + "]" * 900,
    "a fence in a fence": "```json\n```\n```",
    "half a bracket": "[" * 2000 + "](",
    "1 MB": "We refund 30 days after a@b.co wrote, [returns]. " * 21_000,
    "1 MB without a space": "x" * 1_000_000,
}
GROWING = {
    "letters": "a",
    "words": "refund ",
    "numbers": "1 ",
    "digits": "7",
    "points and digits": "1.",
    "ranges": "3-5 to ",
    "lists": "1. a\n",
    "white space": "a" + " " * 99,
    "line ends": "\n",
    "brackets": "[",
    "addresses": "a@a.a@",
    "dashes": "4-4 ",
    "refusals": "i can't ",
    "quotation marks": '"',
    "unspaced script": "退",
}


def _heuristic(name, **params):
    heuristic = heuristics.get(name)
    return heuristic(heuristic.Params(**(params or NEEDED.get(name, {}))))


def _record(output="", **fields):
    fields.setdefault("messages", [{"role": "user", "content": "I want a refund for order 1234."}])
    fields.setdefault("context", [{"id": "returns", "text": "Returns are refunded within 30 days of delivery."}])
    return Record("r1", "t1", AT, Release(service="desk"), output=output, **fields)


def test_the_registry_holds_the_heuristics_that_scorecards_are_promised():
    """The list of the scorecard's documentation."""
    assert set(NAMES) >= {
        "citation", "disclosure", "grounding", "json_schema", "language", "length", "pattern", "pii", "readability",
        "refusal", "repetition", "topic",
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_described_and_strict_and_the_version_is_set(name):
    """The parameter model is the manual: each field has a description, and an unknown one is an error."""
    heuristic = heuristics.get(name)
    assert issubclass(heuristic.Params, Params)
    assert heuristic.version
    assert heuristic.__doc__
    for field, info in heuristic.Params.model_fields.items():
        assert info.description, f"{name}.{field} has no description"
    with pytest.raises(ValidationError, match="no_such_parameter"):
        heuristic.Params(**NEEDED.get(name, {}), no_such_parameter=1)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("name", NAMES)
def test_hostile_text_gets_a_score_and_the_same_one_again(name, text):
    """As output, as input and as context; by the same instance and by a new one."""
    heuristic = _heuristic(name)
    for record in (
        _record(text),
        _record("We refund within 30 days. [returns]", messages=[{"role": "user", "content": text}]),
        _record("We refund within 30 days. [returns]", context=[{"id": text[:100], "text": text}]),
    ):
        score = heuristic.score(record)
        assert isinstance(score, Score)
        assert heuristic.score(record) == score
        assert _heuristic(name).score(record) == score
        assert score.status is Status.SCORED or score.explanation


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=50)
@given(text=st.text(st.characters(), max_size=300))
def test_any_text_at_all_gets_a_score(name, text):
    """Lone surrogates and unassigned characters too."""
    assert isinstance(_heuristic(name).score(_record(text)), Score)


@pytest.mark.parametrize("name", NAMES)
def test_odd_records_are_scored_or_skipped(name):
    """Nothing but the ids; documents without text, with wrong types, or no objects; messages of parts."""
    heuristic = _heuristic(name)
    odd = ({}, {"id": None}, {"id": 7, "text": None}, {"text": ["a"]}, "text", None, {"id": "", "text": ""})
    assert isinstance(heuristic.score(Record("r1", "t1", AT, Release(service="desk"))), Score)
    for document in odd:
        assert isinstance(heuristic.score(_record("We refund within 30 days.", context=[document])), Score)
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image", "url": None}, 7]}, {}]
    assert isinstance(heuristic.score(_record("We refund within 30 days.", messages=parts)), Score)


@pytest.mark.parametrize("name", NAMES)
def test_a_failed_call_is_skipped_with_the_reason(name):
    """An error says nothing about the quality of an answer that there never was."""
    score = _heuristic(name).score(_record("", error="TimeoutError: no answer in 30 s"))
    assert score.status is Status.SKIPPED
    assert "the call failed: TimeoutError" in score.explanation


@pytest.mark.parametrize("name", NAMES)
def test_the_explanation_stays_short(name):
    """It is stored with each score: no heuristic copies the output into it."""
    for text in HOSTILE.values():
        assert len(_heuristic(name).score(_record(text)).explanation) <= 1000


@pytest.mark.parametrize("name", NAMES)
def test_the_cost_grows_in_a_straight_line(name):
    """Eight times the text takes at most 24 times the time; what is quadratic takes 64 times."""
    heuristic = _heuristic(name)
    slow = {}
    for kind, unit in GROWING.items():
        short, long = (_seconds(heuristic, (unit * n)[:n]) for n in (4_000, 32_000))
        if long > 0.005 and long > 24 * short:
            slow[kind] = f"{short * 1e3:.2f} ms, then {long * 1e3:.2f} ms"
    if slow:
        raise TookTooLongError(str(slow))


def _seconds(heuristic, text):
    """The best of three, with the text as output, input and context at once; nothing is answered from a cache."""
    times = []
    for attempt in range(3):
        fresh = f"{text}{attempt}"
        record = _record(fresh, messages=[{"role": "user", "content": fresh}], context=[{"id": "a", "text": fresh}])
        record = replace(record, finish_reason="stop")
        start = time.process_time()
        heuristic.score(record)
        times.append(time.process_time() - start)
    return min(times)
