"""YAML with places: what is read, and what is said where it cannot be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.scorecard.document import parse

EMPTY = "1:1: the file is empty; a scorecard starts with 'name:' and 'criteria:', rules with 'alerts:'"


def problems(text):
    """The problems of a text or of bytes, without the file's name."""
    document = parse("f", text if isinstance(text, bytes) else text.encode())
    return [str(problem).removeprefix("f:") for problem in document.problems]


def test_words_stay_words():
    """Norway, switches, times, dates and octal numbers are not turned into something else."""
    words = ["no", "off", "yes", "1:30", "2024-05-01", "0o17", "1_000", "0x1F"]
    assert parse("f", f"[{', '.join(words)}]".encode()).value == words


def test_numbers_truth_and_nothing_are_what_they_seem():
    """And in quotes they are text."""
    values = [None, None, True, False, -7, 1500.0, 0.5, "5", "true"]
    assert parse("f", b"[~, null, true, False, -7, 1.5e3, .5, '5', 'true']").value == values


def test_places_count_from_one_and_point_at_the_value():
    """Keys and values have places of their own."""
    document = parse("f", b"\xef\xbb\xbfa:\n  - b: 1\n    c: {d: x}\n")
    assert document.values["a", 0, "b"] == (2, 8)
    assert parse("f", "ä: {ö: ü, b: why?}".encode()).keys["ä", "b"] == (1, 11)
    assert document.keys["a", 0, "c"] == (3, 5)
    assert document.values["a", 0, "c", "d"] == (3, 12)
    assert str(document.problem(("a", 0, "z"), "is missing")) == "f:2:5: a[0].z: is missing"


def test_anchors_and_merges_work():
    """An alias is the anchor's value, and a merge is overridden by what is written beside it."""
    text = "base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  y: 3\nlist:\n  <<: [{z: 4}, *b]\nagain: *b\n"
    assert parse("f", text.encode()).value == {
        "base": {"x": 1, "y": 2},
        "use": {"x": 1, "y": 3},
        "list": {"x": 1, "y": 2, "z": 4},
        "again": {"x": 1, "y": 2},
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "3:1: a: is already given at line 1; remove one of them"),
        ("a:\n  b: 1\n  b: 2\n", "3:3: a.b: is already given at line 2; remove one of them"),
        (
            "a:\n\tb: 1\n",
            (
                "2:1: not YAML: while scanning for the next token: found character that cannot start any token; "
                "indent with spaces, never with tabs"
            ),
        ),
        (
            "a: b: c\n",
            "1:5: not YAML: mapping values are not allowed in this context; put text that has ': ' in it in quotes",
        ),
        (
            "a: {b: 'why, c: d}\n",
            "2:1: not YAML: while scanning a quoted scalar (from 1:8 on): found unexpected end of stream",
        ),
        ("é: [ö,\n", "2:1: not YAML: while parsing a flow node: did not find expected node content"),
        ("a: *nowhere\n", "1:4: not YAML: found undefined alias *nowhere; define it further up with &"),
        ("a: 1\n---\nb: 2\n", "2:1: not YAML: a second document starts here; write one scorecard to a file"),
        ("", EMPTY),
        ("# only a comment\n", EMPTY),
        (b"name: caf\xe9\n", "1:10: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        ("a: \x07\n", "1:4: character U+0007 is not allowed in YAML; remove it"),
        ('a: "\\0"\n', "1:4: a: has the character U+0000, which cannot be stored; remove it"),
        (
            'a: "\\ud800"\n',
            "1:7: not YAML: while parsing a quoted scalar (from 1:4 on): found invalid Unicode character escape code",
        ),
        ("a: .nan\n", "1:4: a: '.nan' is no number that a scorecard can hold"),
        ("a: -.inf\n", "1:4: a: '-.inf' is no number that a scorecard can hold"),
        ("a: 99999999999999999999\n", "1:4: a: '99999999999999999999' is no whole number that a scorecard can hold"),
        ("a: !!int x\n", "1:4: a: 'x' is no whole number that a scorecard can hold"),
        ("a: !!bool x\n", "1:4: a: 'x' is no true or false that a scorecard can hold"),
        (
            "a: !!python/name:os.system x\n",
            "1:4: a: the tag 'tag:yaml.org,2002:python/name:os.system' has no meaning here; remove it",
        ),
        ("a: !thing {b: 1}\n", "1:4: a: the tag '!thing' has no meaning here; remove it"),
        ("1.5: a\n", "1:1: the file: a key must be a word or a whole number, not '1.5'; quote it"),
        ("a:\n  [b]: c\n", "2:3: a: a key must be a word or a whole number, not this; quote it"),
        ("a: &a [*a]\n", "1:4: an anchor contains itself by an alias"),
        ("a:\n  <<: 5\n", "2:7: a.<<: merges a mapping or a list of mappings, not 5"),
    ],
)
def test_what_is_wrong_with_the_yaml_is_said_with_its_place(text, said):
    """One line, with what to do."""
    assert problems(text) == [said]


def test_a_bomb_of_aliases_is_refused():
    """Nine levels of nine aliases would be a billion values."""
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"] + [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    assert "more than 100000 values" in problems("\n".join(lines))[0]


@pytest.mark.parametrize("depth", [100, 1_000_000])
def test_nesting_without_end_is_refused(depth):
    """Neither our own recursion nor the parser's gives a traceback."""
    assert "nested too deep" in problems("[" * depth + "]" * depth)[0]


@given(st.binary(max_size=200) | st.text(alphabet="ab: -[]{}&*!<'\"\n\t#|>?%@,0.~", max_size=60).map(str.encode))
def test_no_bytes_give_a_traceback(raw):
    """Whatever is in the file, what is wrong with it has a place."""
    assert all(problem.line >= 1 and problem.column >= 1 for problem in parse("f", raw).problems)
