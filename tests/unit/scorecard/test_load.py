"""Scorecards from files: every mistake at its place, and nothing but a ScorecardError whatever is in the file."""

from __future__ import annotations

import contextlib
import copy
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.detectors.base import detectors
from evalpipe.errors import ConfigError, ScorecardError
from evalpipe.judges.base import judges
from evalpipe.scorecard.load import load_scorecard, load_scorecards, read_scorecards
from evalpipe.scorers.base import heuristics

GOOD = """\
name: desk
match: {service: support-desk}
criteria:
  - name: short
    heuristic: length
    params: {max: 50}
  - name: tone
    judge:
      kind: scale
      rubric: How kind is it?
      anchors: {1: rude, 5: kind}
  - name: topic
    judge:
      kind: category
      rubric: What is it about?
      categories: {us: {value: 1}, both: {value: 0.5}, other: {value: 0.2}}
alerts:
  - name: rude
    criterion: tone
    mean: {below: 0.5}
    window: 10m
rollout:
  gates:
    - criterion: tone
      margin: 5%
tests:
  - name: a short answer is short
    record: {input: a, output: b}
    expect: {short: {value: 1}}
"""

MISTAKES = yaml.safe_load((Path(__file__).parent / "mistakes.yaml").read_text(encoding="utf-8"))


def load(text, tmp_path: Path):
    """Load one file of that text."""
    path = tmp_path / "card.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_scorecard(path, heuristics, judges, detectors)


def test_a_good_scorecard_loads(tmp_path):
    """It knows where it came from."""
    found = load(GOOD, tmp_path)
    assert (found.name, found.path, len(found.criteria)) == ("desk", tmp_path / "card.yaml", 3)


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake["said"] for mistake in MISTAKES])
def test_a_mistake_is_one_line_with_place_value_and_what_to_do(mistake, tmp_path):
    """The line is there, whatever else the mistake entails."""
    old, new, said = mistake["old"], mistake["new"], mistake["said"]
    assert GOOD.count(old) == 1
    with pytest.raises(ScorecardError) as error:
        load(GOOD.replace(old, new), tmp_path)
    lines = str(error.value).splitlines()
    assert f"{tmp_path / 'card.yaml'}:{said}" in lines
    assert len(lines) <= 3


def test_all_mistakes_of_a_file_are_listed_in_the_order_of_their_places(tmp_path):
    """Syntax of values, wrong types, wrong names and wrong thresholds together."""
    text = GOOD.replace("lenght", "x").replace("heuristic: length", "heuristic: lenght")
    text = text.replace("below: 0.5", "below: 0").replace("margin: 5%", "margn: 5%").replace("name: desk", "name: 7")
    with pytest.raises(ScorecardError) as error:
        load(text, tmp_path)
    places = [tuple(map(int, line.split(":")[1:3])) for line in str(error.value).splitlines()]
    assert places == [(1, 7), (5, 16), (20, 19), (25, 7)]


def test_mistakes_of_all_files_are_listed_and_good_files_can_still_be_used(tmp_path):
    """One broken file does not hide the others."""
    (tmp_path / "a.yaml").write_text(GOOD.replace("desk", "one").replace("kind: scale", "kind: x"))
    (tmp_path / "b.yml").write_text(GOOD.replace("name: desk", "name: two"))
    (tmp_path / "c.yaml").write_text("name: [")
    (tmp_path / "notes.txt").write_text("not a scorecard")
    (tmp_path / ".hidden.yaml").write_text("not a scorecard")
    reading = read_scorecards([tmp_path], heuristics)
    assert [card.name for card in reading.scorecards] == ["two"]
    assert {Path(problem.file).name for problem in reading.problems} == {"a.yaml", "c.yaml"}
    with pytest.raises(ScorecardError, match=r"a\.yaml:9:13"):
        load_scorecards(tmp_path, heuristics)


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    """Both endings count."""
    for name in ("zebra.yml", "apple.yaml", "mango.yaml"):
        (tmp_path / name).write_text(GOOD.replace("name: desk", f"name: {name.partition('.')[0]}"))
    assert [card.name for card in load_scorecards(tmp_path, heuristics)] == ["apple", "mango", "zebra"]


def test_two_scorecards_of_one_name_are_a_mistake_that_names_both_files(tmp_path):
    """Names stand for series, so they are unique in a folder."""
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(GOOD)
    with pytest.raises(ScorecardError) as error:
        load_scorecards(tmp_path, heuristics)
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    said = f"{second}:1:7: name: {first} has a scorecard named 'desk' too; rename one of them"
    assert str(error.value) == said


def test_a_file_named_twice_is_one_file(tmp_path):
    """A folder and a file in it do not clash."""
    (tmp_path / "a.yaml").write_text(GOOD)
    assert len(read_scorecards([tmp_path, tmp_path / "a.yaml"], heuristics).scorecards) == 1


def test_an_empty_folder_has_no_scorecards(tmp_path):
    """It is for the caller to say whether that is a mistake."""
    assert load_scorecards(tmp_path, heuristics) == []


def test_a_path_that_is_not_there_is_a_config_error(tmp_path):
    """So is a folder where a file is meant."""
    with pytest.raises(ConfigError, match="there is no scorecard file or folder"):
        load_scorecards(tmp_path / "nowhere", heuristics)
    with pytest.raises(ConfigError, match="is a folder"):
        load_scorecard(tmp_path, heuristics)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_a_config_error(tmp_path):
    """The system's reason is told."""
    (tmp_path / "a.yaml").write_text(GOOD)
    (tmp_path / "a.yaml").chmod(0)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        load_scorecards(tmp_path, heuristics)


TREE = yaml.safe_load(GOOD)
ODD = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        7,
        1.5,
        1e18,
        "",
        "x",
        "5%",
        "10m",
        "default",
        "length",
        [],
        ["x"],
        [[]],
        {},
        {"a": 1},
        {1: "x"},
    ]
)


def paths(value, at=()):
    """Every place in the tree."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths(inner, (*at, key))


@given(st.lists(st.tuples(st.sampled_from(sorted(paths(TREE), key=repr)), ODD, st.booleans()), min_size=1, max_size=4))
def test_no_change_of_a_scorecard_gives_a_traceback(tmp_path_factory, changes):
    """Values of any kind in any place: it loads, or it is a ScorecardError with a place in every line."""
    tree = {"top": copy.deepcopy(TREE)}
    for place, odd, as_key in changes:
        target, key = tree, "top"
        for part in place:
            if not (isinstance(target[key], dict) and part in target[key]) and not (
                isinstance(target[key], list) and isinstance(part, int) and part < len(target[key])
            ):
                break
            target, key = target[key], part
        if as_key and isinstance(target[key], dict):
            target[key] = {**target[key], "odd": odd}
        else:
            target[key] = odd
    folder = tmp_path_factory.mktemp("mutated")
    said = f"{folder / 'card.yaml'}:1:1: "
    try:
        load(yaml.safe_dump(tree["top"]), folder)
    except ScorecardError as error:
        said = str(error)
    assert all(line.startswith(f"{folder / 'card.yaml'}:") for line in said.splitlines())


@given(st.integers(0, len(GOOD)), st.integers(0, 12), st.text(alphabet="\t :-{}[]&*'\"#x1~%\n", max_size=4))
def test_no_typing_mistake_gives_a_traceback(tmp_path_factory, start, length, typed):
    """Characters are lost and typed anywhere in the text."""
    with contextlib.suppress(ScorecardError):
        load(GOOD[:start] + typed + GOOD[start + length :], tmp_path_factory.mktemp("typed"))
