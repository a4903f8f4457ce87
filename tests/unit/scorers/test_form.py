"""The heuristics that look at an answer's form, from its length to its language."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from evalpipe.errors import ConfigError
from evalpipe.score import Status

EASY = "The cat sat on the mat. It was a fat cat. The sun was out. It lay in the sun all day. We like the cat a lot."
HARD = (
    "Notwithstanding contractual stipulations regarding reimbursement, beneficiaries acknowledge institutional "
    "prerogatives concerning retrospective verification, supplementary documentation, and administrative "
    "reconsideration procedures established pursuant to applicable jurisdictional requirements."
)
SCHEMA = {"type": "object", "required": ["total"], "properties": {"total": {"type": "number", "minimum": 0}}}


@pytest.mark.parametrize(
    ("params", "output", "value", "label"),
    [
        ({}, "four words are here", 1.0, "ok"),
        ({"min": 8}, "four words are here", 0.5, "short"),
        ({"max": 2}, "four words are here", 0.5, "long"),
        ({"unit": "characters", "max": 5}, "1234567890", 0.5, "long"),
        ({}, "", 0.0, "short"),
    ],
)
def test_length_falls_with_the_distance_from_the_limits(score, params, output, value, label):
    """The value is the ratio to the limit that is broken; an empty answer is too short."""
    found = score("length", params, output)
    assert (found.value, found.label) == (value, label)


def test_an_answer_that_the_token_limit_cut_off_fails_its_length(score):
    """Unless the author does not mind."""
    assert score("length", {}, "It is", finish_reason="max_tokens").label == "cut off"
    assert score("length", {"allow_cut_off": True}, "It is", finish_reason="length").value == 1.0


def test_length_refuses_limits_that_no_answer_can_keep(score):
    """A lower limit above the upper one."""
    with pytest.raises(ConfigError, match="min is 9 and max is 3"):
        score("length", {"min": 9, "max": 3}, "x")


@pytest.mark.parametrize(
    ("match", "output", "value"),
    [
        ("any", "A GUARANTEE", 1.0),
        ("any", "nothing", 0.0),
        ("all", "we promise and guarantee", 1.0),
        ("all", "we promise", 0.0),
        ("none", "we promise", 0.0),
        ("none", "we will see", 1.0),
    ],
)
def test_patterns_are_wanted_or_forbidden(score, match, output, value):
    """``any``, ``all`` and ``none`` of two patterns."""
    assert score("pattern", {"patterns": ["guarantee", "promise"], "match": match}, output).value == value


def test_a_pattern_can_tell_capitals_and_other_scripts(score):
    """ignore_case, and RE2's classes for letters of any script."""
    assert score("pattern", {"patterns": ["ERR"], "ignore_case": False}, "err").value == 0.0
    assert score("pattern", {"patterns": [r"\p{Han}{2}"]}, "退货 policy").value == 1.0


def test_a_pattern_that_re2_does_not_know_is_the_authors_error():
    """The message has the pattern and the reason, and nothing is written to standard error."""
    code = (
        "from evalpipe.scorers.base import heuristics as h; p = h.get('pattern')\n"
        "try: p(p.Params(patterns=['(?=a)']))\n"
        "except Exception as e: print(type(e).__name__, e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ConfigError the pattern '(?=a)' is not one that RE2 knows")
    assert done.stderr == ""


def test_disclosures_are_found_whatever_the_typography(score):
    """Case, white space and the shape of quotation marks do not matter; alternatives are enough."""
    params = {"required": ["It's not financial advice", ["Terms apply", "conditions apply"]]}
    found = score("disclosure", params, "Buy! IT\u2019S  NOT\nfinancial advice. Conditions apply.")
    assert (found.value, found.label) == (1.0, "disclosed")
    half = score("disclosure", params, "Terms apply.")
    assert (half.value, half.label) == (0.5, "missing")
    assert "it's not financial advice" in half.explanation


def test_a_disclosure_is_required_only_where_it_applies(score):
    """``when`` looks at the question and the answer."""
    params = {"required": ["not financial advice"], "when": ["invest", "stocks"]}
    assert score("disclosure", params, "Hello!").status is Status.SKIPPED
    assert score("disclosure", params, "Hello!", user="Where should I invest?").value == 0.0
    with pytest.raises(ConfigError, match="'when' is empty"):
        score("disclosure", {"required": ["a"], "when": [" "]}, "x")
    with pytest.raises(ConfigError, match="'required' is empty"):
        score("disclosure", {"required": ["a", []]}, "x")


@pytest.mark.parametrize(
    ("output", "value", "label", "says"),
    [
        ('{"total": 3.5}', 1.0, "valid", ""),
        ('```json\n{"total": 3.5}\n```', 1.0, "valid", ""),
        ('Here you are:\n```json\n{"total": 3.5}\n```', 0.0, "not json", "line 1"),
        ('{"total": "hunter2"}', 0.0, "invalid", 'at /total: the value is not of type "number"'),
        ("{}", 0.0, "invalid", '"total" is a required property'),
        ('{"total": 3', 0.0, "not json", ""),
        ("\ud800", 0.0, "not json", ""),
    ],
)
def test_json_is_valid_or_the_explanation_says_where_it_breaks(score, output, value, label, says):
    """And no value of the output is quoted."""
    found = score("json_schema", {"schema": SCHEMA}, output)
    assert (found.value, found.label) == (value, label)
    assert says in found.explanation
    assert "hunter2" not in found.explanation


def test_a_fence_can_be_forbidden_and_any_json_is_enough_without_a_schema(score):
    """For callers that parse the output as it is."""
    assert score("json_schema", {"allow_fence": False}, "```\n1\n```").value == 0.0
    assert score("json_schema", {}, "[1, null]").value == 1.0


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "strin"}, "strin"),
        ({"$ref": "https://schemas.example/a.json"}, "schemas.example"),
        ({"properties": {"a": {"pattern": "(?=x)"}}}, "regex"),
    ],
)
def test_a_schema_that_cannot_be_used_is_the_authors_error(score, schema, says):
    """A wrong type, a document elsewhere (nothing is fetched), a pattern that could run away."""
    with pytest.raises(ConfigError, match="json_schema: 'schema' cannot be used") as error:
        score("json_schema", {"schema": schema}, "{}")
    assert says in str(error.value)


GERMAN = "Sie können den Artikel innerhalb von dreißig Tagen an uns zurückschicken."
ENGLISH = "You can send the item back to us within thirty days of delivery."


def test_the_language_is_the_expected_one_or_that_of_the_question(score):
    """The label is the language's code."""
    assert score("language", {"expected": ["de", "fr"]}, GERMAN).value == 1.0
    wrong = score("language", {"expected": ["en"]}, GERMAN)
    assert (wrong.value, wrong.label, wrong.explanation) == (0.0, "de", "de, expected en")
    assert score("language", {}, GERMAN, user=GERMAN).value == 1.0
    assert score("language", {}, ENGLISH, user=GERMAN).value == 0.0
    assert score("language", {"expected": ["en"]}, ENGLISH.upper()).value == 1.0


def test_a_language_that_cannot_be_told_is_not_scored(score):
    """Too short is skipped; unsure is abstained."""
    assert score("language", {"expected": ["en"]}, "Ok.").status is Status.SKIPPED
    assert score("language", {}, ENGLISH, user="1234").status is Status.SKIPPED
    unsure = score("language", {"expected": ["en"], "min_confidence": 1.0}, "Lorem kitchen ipsum garden dolor sit.")
    assert unsure.status is Status.ABSTAINED
    with pytest.raises(ConfigError, match="'English' is not an ISO 639-1 code"):
        score("language", {"expected": ["English"]}, ENGLISH)


def test_language_detection_needs_no_network_and_writes_nothing(tmp_path):
    """The model is in the wheel: no name is resolved, no socket opened, and home and temporary folder stay empty."""
    code = (
        "import socket\n"
        "def deny(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = deny\n"
        "from evalpipe.scorers.language import detect\n"
        f"print(detect({GERMAN!r})[0])"
    )
    places = {name: str(tmp_path) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "FTLANG_CACHE")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | places, capture_output=True, text=True, check=True
    )
    assert done.stdout == "de\n"
    assert list(tmp_path.iterdir()) == []


def test_readability_follows_lix(score):
    """Short words in short sentences are easy; 27 words in one sentence, most of them long, are not."""
    easy, hard = score("readability", {}, EASY), score("readability", {}, HARD)
    assert (easy.value, easy.label) == (1.0, "very easy")
    assert (hard.value, hard.label) == (0.0, "very difficult")
    assert easy.explanation == "LIX 6"  # 28 words in 5 sentences, none of more than six letters: 5.6
    middle = score("readability", {"good": 0, "bad": 11.2}, EASY)
    assert middle.value == pytest.approx(0.5)


def test_readability_skips_what_lix_does_not_fit(score):
    """Few words, other scripts; and limits the wrong way round are the author's error."""
    assert score("readability", {}, "Yes, you can.").status is Status.SKIPPED
    assert "Latin" in score("readability", {}, "退货政策 " * 30).explanation
    with pytest.raises(ConfigError, match="good must be lower"):
        score("readability", {"good": 60, "bad": 60}, "x")


def test_a_loop_is_repetitive_and_prose_is_not(score):
    """rep-4 of a sentence ten times over, of prose, and of a loop without spaces."""
    assert score("repetition", {}, HARD).value == 1.0
    loop = score("repetition", {}, "I will send you the parcel soon. " * 10)
    assert loop.label == "repetitive"
    assert loop.value < 0.15
    assert score("repetition", {}, "退货政策退货政策" * 40).value < 0.1
    assert score("repetition", {}, "Too short.").status is Status.SKIPPED
