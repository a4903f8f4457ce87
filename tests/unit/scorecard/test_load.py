"""Scorecards from files: every mistake at its place, and nothing but a ScorecardError whatever is in the file."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

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

MISTAKES = [
    # a field, a type, a missing field
    ("match: {", "mach: {", "2:1: mach: is no field; did you mean 'match'?"),
    ("    params: {max", "    parms: {max", "6:5: criteria[0].parms: is no field; did you mean 'params'?"),
    ("      rubric: How", "      rubrik: How", "10:7: criteria[1].judge.rubrik: is no field; did you mean 'rubric'?"),
    ("      rubric: How kind is it?\n", "", "9:7: criteria[1].judge.rubric: is missing"),
    ("name: desk", "name: Help Desk", "1:7: name: 'Help Desk' is not a name: lower-case letters and digits in words joined "
     "by - or _, beginning with a letter"),
    ("name: desk", "name: 5", "1:7: name: must be text, not 5"),
    ("name: desk", "name:", "1:6: name: must be text, not nothing"),
    ("name: desk\n", "", "1:1: name: is missing"),
    ("{service: support-desk}", "{service: []}", "2:18: match.service: must not be empty"),
    ("{service: support-desk}", "support-desk", "2:8: match: must be a mapping, not 'support-desk' (text)"),
    ("anchors: {1: rude", "anchors: {one: rude", "11:17: criteria[1].judge.anchors.one: must be a whole number, not 'one' "
     "(text)"),
    # scorers
    ("heuristic: length", "heuristic: lenght", "5:16: criteria[0].heuristic: no heuristic named 'lenght'; did you mean "
     "'length'?"),
    ("params: {max: 50}", "params: {maximum: 50}", "6:14: criteria[0].params.maximum: is no field; did you mean 'max'?"),
    ("params: {max: 50}", "params: {max: fifty}", "6:19: criteria[0].params.max: must be a whole number, not 'fifty' (text)"),
    ("params: {max: 50}", "params: {max: 5, min: 9}", "6:13: criteria[0].params: length: min is 9 and max is 5: no answer "
     "can be that long"),
    ("heuristic: length\n    params: {max: 50}", "heuristic: pattern\n    params: {patterns: ['(']}", "6:13: "
     "criteria[0].params: pattern '(' cannot be used: missing ): ("),
    ("    heuristic: length\n    params: {max: 50}\n", "    weight: 1\n", "4:5: criteria[0]: nothing scores it: give it either "
     "'heuristic' or 'judge'"),
    ("    judge:\n      kind: scale", "    heuristic: length\n    judge:\n      kind: scale", "9:5: criteria[1].judge: has "
     "both 'heuristic' and 'judge'; make them two criteria"),
    ("    judge:\n      kind: scale", "    params: {max: 1}\n    judge:\n      kind: scale", "8:5: criteria[1].params: params "
     "belong to a heuristic; a judge has none"),
    # judges
    ("kind: scale", "kind: scales", "9:13: criteria[1].judge.kind: 'scales' is not one of boolean, scale, category; did you "
     "mean 'scale'?"),
    ("kind: scale", "kind: boolean", "11:7: criteria[1].judge.anchors: belongs to kind 'scale', but kind is 'boolean'"),
    ("{1: rude, 5: kind}", "{1: rude}", "11:16: criteria[1].judge.anchors: a scale needs at least two anchors: anchors: "
     "{1: what is bad, 5: what is good}"),
    ("      anchors: {1: rude, 5: kind}\n", "", "9:7: criteria[1].judge: a scale needs at least two anchors: anchors: "
     "{1: what is bad, 5: what is good}"),
    ("{1: rude, 5: kind}", "{1: rude, 500: kind}", "11:16: criteria[1].judge.anchors: span more than 100 steps; judges grade "
     "best on 3 to 5 numbers"),
    ("      anchors", "      model: opnai:x\n      anchors", "11:14: criteria[1].judge.model: no judge named 'opnai'; did you "
     "mean 'openai'? (in 'opnai:x')"),
    ("      anchors", "      model: gpt\n      anchors", "11:14: criteria[1].judge.model: 'gpt' is not a judge; write "
     "default or provider:model"),
    ("      anchors", "      needs: [contxt]\n      anchors", "11:15: criteria[1].judge.needs[0]: 'contxt' is not one of "
     "input, output, context, tools, tool_calls; did you mean 'context'?"),
    ("      anchors", "      priority: 10\n      anchors", "11:17: criteria[1].judge.priority: must be at most 9, not 10"),
    ("      anchors", "      examples: [{input: a, output: b, grade: 7}]\n      anchors", "11:48: "
     "criteria[1].judge.examples[0].grade: must be a whole number from 1 to 5, not 7"),
    ("      anchors", "      examples: [{input: a, output: b, grade: [1]}]\n      anchors", "11:48: "
     "criteria[1].judge.examples[0].grade: must be true or false or a number or text, not [1] (a list)"),
    ("{value: 0.5}", "{value: 1.5}", "16:47: criteria[2].judge.categories.both.value: must be at most 1, not 1.5"),
    ("other:", "cannot_tell:", "16:53: criteria[2].judge.categories.cannot_tell: is what a judge may always answer (status "
     "abstained); take another label"),
    ("{us: {value: 1}, both: {value: 0.5}, other: {value: 0.2}}", "{us: {value: 1}, other: {value: 1}}", "16:19: "
     "criteria[2].judge.categories: every label is worth 1: the score could never change"),
    # alerts
    ("criterion: tone\n    mean", "criterion: tune\n    mean", "19:16: alerts[0].criterion: no criterion named 'tune'; did you "
     "mean 'tone'?"),
    ("{below: 0.5}", "{below: 1.5}", "20:19: alerts[0].mean.below: must be at most 1, not 1.5"),
    ("{below: 0.5}", "{below: 0}", "20:19: alerts[0].mean.below: can never be crossed: this criterion's mean is never "
     "below 0"),
    ("{below: 0.5}", "{above: 1}", "20:19: alerts[0].mean.above: can never be crossed: this criterion's mean is never "
     "above 1"),
    ("criterion: tone\n    mean: {below: 0.5}", "criterion: topic\n    mean: {below: 0.2}", "20:19: alerts[0].mean.below: can "
     "never be crossed: this criterion's mean is never below 0.2"),
    ("{below: 0.5}", "{}", "20:11: alerts[0].mean: needs exactly one of 'below' and 'above'"),
    ("{below: 0.5}", "{below: 0.5, above: 0.6}", "20:11: alerts[0].mean: needs exactly one of 'below' and 'above'"),
    ("window: 10m", "window: 10", "21:13: alerts[0].window: 10 is not a duration; write 90s, 10m, 1h30m or 7d"),
    ("window: 10m", "window: 30s", "21:13: alerts[0].window: must be from 1m to 30d, not 30s"),
    ("window: 10m", "min_sample: 0", "21:17: alerts[0].min_sample: must be at least 1, not 0"),
    ("window: 10m", "for: soon", "21:10: alerts[0].for: 'soon' is not a duration; write 90s, 10m, 1h30m or 7d"),
    ("window: 10m", "severity: SEV5", "21:15: alerts[0].severity: 'SEV5' is not one of SEV1, SEV2, SEV3, SEV4; did you mean "
     "'SEV4'?"),
    # rollout
    ("    - criterion: tone\n      margin", "    - criterion: tine\n      margin", "24:18: rollout.gates[0].criterion: no "
     "criterion named 'tine'; did you mean 'tone'?"),
    ("margin: 5%", "margin: 5", "25:15: rollout.gates[0].margin: 5 must be more than 0 and at most 1 (100%); did you mean "
     "5%?"),
    ("margin: 5%", "alpha: 0", "25:14: rollout.gates[0].alpha: must be more than 0, not 0"),
    ("rollout:\n", "rollout:\n  canary: baseline\n", "23:3: rollout: baseline and canary are both 'baseline': there is nothing "
     "to compare"),
    ("{service: support-desk}", "{variant: [canary, blue]}", "23:3: rollout.baseline: match.variant (canary, blue) keeps out "
     "'baseline': the gates would see no score of it"),
    ("      margin: 5%\n", "      margin: 5%\n    - criterion: tone\n", "26:18: rollout.gates[1].criterion: two gates are for "
     "'tone'; the other is rollout.gates[0]"),
    ("  gates:\n    - criterion: tone\n      margin: 5%\n", "  gates: []\n", "23:10: rollout.gates: must not be empty"),
    # names
    ("- name: tone", "- name: short", "7:11: criteria[1].name: two criteria are named 'short'; the other is criteria[0]"),
    # tests
    ("expect: {short", "expect: {shot", "29:14: tests[0].expect.shot: no criterion named 'shot'; did you mean 'short'?"),
    ("{value: 1}}\n", "{}}\n", "29:21: tests[0].expect.short: expects nothing: write value, at_least, at_most, label or "
     "status"),
    ("{value: 1}}\n", "{value: 1, status: skipped}}\n", "29:22: tests[0].expect.short.value: a score with status 'skipped' "
     "has no value"),
    ("{value: 1}}\n", "{at_least: 0.9, at_most: 0.1}}\n", "29:32: tests[0].expect.short.at_least: can never be met: at_least "
     "0.9 is above at_most 0.1"),
    ("{input: a, output: b}", "{input: a, messages: [{role: user}]}", "28:24: tests[0].record.messages: write either 'input' "
     "or 'messages', not both"),
    ("{input: a, output: b}", "{input: a, context: [{id: x}]}", "28:34: tests[0].record.context[0].text: is missing"),
    # the YAML itself
    ("name: desk\n", "name: desk\nname: task\n", "2:1: name: is already given at line 1; remove one of them"),
]  # fmt: skip


def load(text, tmp_path: Path):
    """Load one file of that text."""
    path = tmp_path / "card.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_scorecard(path, heuristics, judges)


def test_a_good_scorecard_loads(tmp_path):
    """It knows where it came from."""
    found = load(GOOD, tmp_path)
    assert (found.name, found.path, len(found.criteria)) == ("desk", tmp_path / "card.yaml", 3)


@pytest.mark.parametrize(("old", "new", "said"), MISTAKES, ids=[m[2] for m in MISTAKES])
def test_a_mistake_is_one_line_with_place_value_and_what_to_do(old, new, said, tmp_path):
    """The line is there, whatever else the mistake entails."""
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
    said = f"{tmp_path / 'b.yaml'}:1:7: name: {tmp_path / 'a.yaml'} has a scorecard named 'desk' too; rename one of them"
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
    [None, True, 0, -1, 7, 1.5, 1e308, "", "x", "5%", "10m", "default", "length", [], ["x"], [[]], {}, {"a": 1}, {1: "x"}]
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
    try:
        load(yaml.safe_dump(tree["top"]), folder)
    except ScorecardError as error:
        lines = str(error).splitlines()
        assert lines
        assert all(line.startswith(f"{folder / 'card.yaml'}:") for line in lines)


@given(st.integers(0, len(GOOD)), st.integers(0, 12), st.text(alphabet="\t :-{}[]&*'\"#x1~%\n", max_size=4))
def test_no_typing_mistake_gives_a_traceback(tmp_path_factory, start, length, typed):
    """Characters are lost and typed anywhere in the text."""
    try:
        load(GOOD[:start] + typed + GOOD[start + length :], tmp_path_factory.mktemp("typed"))
    except ScorecardError as error:
        assert str(error)
