"""Labels in files, each bad line told with its place; and who is asked about which record next."""

from __future__ import annotations

import io
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.errors import ConfigError
from evalpipe.judges.base import judges
from evalpipe.pipeline.label_file import EXPORTED, read_file, write
from evalpipe.pipeline.labelling import CALIBRATE, choose
from evalpipe.scorecard.load import load_scorecards
from evalpipe.scorecard.model import Scorecard
from evalpipe.scorers.base import heuristics

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
CARDS = {
    "one": """
name: one
criteria:
  - {name: grounded, judge: {kind: boolean, rubric: Is it?}}
  - {name: helpful, judge: {kind: scale, rubric: How far?, anchors: {1: not, 5: fully}}}
  - {name: brief, heuristic: length, params: {max: 5}}
""",
    "two": "name: two\ncriteria: [{name: grounded, judge: {kind: boolean, rubric: Is it?}}]\n",
    "pair": "name: pair\ncriteria: [{name: better, judge: {kind: pairwise, rubric: Which?}}]\n",
}


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> list[Scorecard]:
    """Three scorecards, of which two have a criterion of the same name."""
    folder = tmp_path_factory.mktemp("cards")
    for name, text in CARDS.items():
        (folder / f"{name}.yaml").write_text(text)
    return load_scorecards(folder, heuristics=heuristics, judges=judges)


def read(folder: Path, cards: list[Scorecard], text: str | bytes, *, name: str = "labels.csv", by: str = "ada"):
    """Labels and problems of a file with this text; a problem without the file's name."""
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    found = read_file(path, cards, annotator=by, now=NOON)
    return [one for _, one in found.found], [problem.removeprefix(f"{path}:") for problem in found.problems]


def test_csv_may_have_columns_in_any_order_and_comments_over_several_lines(tmp_path: Path, cards: list[Scorecard]):
    """As spreadsheets write it: a byte order mark, CRLF, quotes."""
    header = "\ufefflabel,record_id,criterion,comment,at"
    lines = header, '4,r-1,helpful,"a ""b"",', 'c",2026-11-20T10:00:00+02:00', "", "tie,r-2,better,,"
    text = "\r\n".join([*lines, ""])
    (one, two), problems = read(tmp_path, cards, text)
    assert problems == []
    assert (one.record_id, one.scorecard, one.label, one.value, one.annotator) == ("r-1", "one", "4", 0.75, "ada")
    assert one.comment == 'a "b",\r\nc'
    assert one.at == datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
    assert (two.label, two.value, two.at) == ("tie", 0.5, NOON)


def test_jsonl_takes_the_types_that_the_kind_suggests(tmp_path: Path, cards: list[Scorecard]):
    """The value true is pass, 4 is "4"; whoever cannot tell gives no value."""
    rows: list[dict[str, Any]] = [
        {"record_id": "r-1", "criterion": "grounded", "scorecard": "two", "label": True, "annotator": "bob"},
        {"record_id": "r-1", "criterion": "helpful", "label": 1},
        {"record_id": "r-2", "criterion": "helpful", "label": "cannot_tell"},
    ]
    found, problems = read(tmp_path, cards, "\n".join(map(json.dumps, rows)), name="a.jsonl")
    assert problems == []
    assert [(one.annotator, one.label, one.value) for one in found] == [
        ("bob", "pass", 1.0), ("ada", "1", 0.0), ("ada", "cannot_tell", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"label": "yes"}, "label: 'yes' is no label of two/grounded (there are: pass, fail, cannot_tell)"),
        ({"label": 1}, "label: 1 is no label of two/grounded (there are: pass, fail, cannot_tell)"),
        ({"label": ""}, "label: is missing (there are: pass, fail, cannot_tell)"),
        ({"record_id": ""}, "record_id: is missing (give a column 'record_id')"),
        ({"record_id": "a\x00b"}, "record_id: must be text of at most 512 printable characters, not 'a\\x00b'"),
        ({"scorecard": ""}, "scorecard: several scorecards have a criterion 'grounded' (name one: one, two)"),
        ({"scorecard": "three"}, "scorecard: there is no scorecard 'three' (there are: one, pair, two)"),
        ({"scorecard": "one", "criterion": "brief"}, "there is no judged criterion 'brief' of scorecard 'one'"),
        ({"annotator": 7}, "annotator: must be text"),
        ({"at": "yesterday"}, "at: 'yesterday' is no instant (write it as 2026-11-22T03:00:00Z)"),
        ({"at": "2026-11-22T13:00:00"}, "at: '2026-11-22T13:00:00' is no instant"),
        ({"at": "2026-11-23T13:00:00Z"}, "at: '2026-11-23T13:00:00Z' is in the future"),
        ({"lable": "pass"}, "lable: is no field of a label (did you mean 'label'?)"),
        ({"conversation_id": "c"}, CALIBRATE),
        ({"comment": "x" * 4001}, "comment: must be text of at most 4000 characters"),
    ],
)
def test_a_bad_line_is_told_with_its_place_and_what_to_write(
    tmp_path: Path, cards: list[Scorecard], row: dict[str, Any], said: str
):
    """And the good lines are read all the same."""
    good = {"record_id": "r-1", "criterion": "grounded", "scorecard": "two", "label": "pass"}
    text = json.dumps(good) + "\n\n" + json.dumps({**good, "record_id": "r-2", **row})
    found, (problem,) = read(tmp_path, cards, text, name="a.jsonl")
    assert len(found) == 1
    assert problem.startswith("3: ")
    assert said in problem


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "record_id,label\nr-1,pass\n", "1: the first line must name the columns, and 'criterion' is not"),
        ("a.csv", "record_id,label,criterion,label\n", "1: the column 'label' occurs twice"),
        ("a.csv", "record_id,criterion,label\nr-1,better,tie,because\n", "2: 4 fields, but the first line has 3"),
        ("a.csv", 'record_id,criterion,label\nr-1,better,"tie\n', "2: not CSV:"),
        ("a.csv", b"record_id,criterion,label\nr-1,better,\xff\n", "2: byte 0xff is not UTF-8"),
        ("a.csv", "", "1: there is no label in it"),
        ("a.jsonl", "{\n", "1: not JSON:"),
        ("a.jsonl", "[1]\n", "1: must be an object, not list"),
        ("a.jsonl", b'{"label": "\xff"}', "1: byte 0xff is not UTF-8"),
    ],
)
def test_a_file_that_is_broken_is_told_by_its_line(
    tmp_path: Path, cards: list[Scorecard], name: str, text: str | bytes, said: str
):
    """Never a traceback, and never a wrong number."""
    _, (problem,) = read(tmp_path, cards, text, name=name)
    assert problem.startswith(said)


def test_a_file_must_not_contradict_itself(tmp_path: Path, cards: list[Scorecard]):
    """Unless it tells which came later; the same line twice is one label."""
    same = "record_id,criterion,label\nr-1,helpful,1\nr-1,helpful,1\nr-1,helpful,2\n"
    (one,), (problem,) = read(tmp_path, cards, same)
    assert one.label == "1"
    assert problem == "4: ada labels r-1 otherwise on line 2 (keep one, or give 'at')"
    dated = "record_id,criterion,label,at\nr-1,helpful,1,2026-11-20T10:00:00Z\nr-1,helpful,2,2026-11-21T10:00:00Z\n"
    assert len(read(tmp_path, cards, dated)[0]) == 2


def test_whoever_labelled_must_be_named(tmp_path: Path, cards: list[Scorecard]):
    """By the line or for the whole file; and the file must be of a kind that is read."""
    _, (problem,) = read(tmp_path, cards, "record_id,criterion,label\nr-1,better,tie\n", by="")
    assert problem == "2: annotator: is missing (give a column 'annotator', or --annotator)"
    with pytest.raises(ConfigError, match=r"not \.xlsx"):
        read(tmp_path, cards, "", name="a.xlsx")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_file(tmp_path / "none.csv", cards, annotator="", now=NOON)


def test_an_export_is_an_import(tmp_path: Path, cards: list[Scorecard]):
    """In both forms, commas, quotes and line ends included."""
    row = dict.fromkeys(EXPORTED) | {"record_id": 'r,"1"', "criterion": "better", "label": "first", "annotator": "Zoë",
           "scorecard": "pair", "comment": "a\nb", "at": NOON, "chosen": "random"}  # fmt: skip
    for name in ("a.csv", "a.jsonl"):
        out = io.StringIO(newline="")
        assert write([row], out, as_csv=name.endswith("csv")) == 1
        (one,), problems = read(tmp_path, cards, out.getvalue(), name=name, by="")
        assert problems == []
        assert (one.record_id, one.comment, one.annotator, one.chosen) == ('r,"1"', "a\nb", "Zoë", "random")
        assert one.at - NOON == timedelta(0)


# Who is asked about what

IDS = st.sets(st.integers(0, 60).map(str), max_size=40)


@given(IDS, IDS, IDS, IDS)
def test_everybody_is_asked_about_everything_once(pool: set[str], mine: set[str], others: set[str], without: set[str]):
    """But for what they labelled or have before them; always in the same order."""
    labelled = {i: {"bob": "uncertain"} for i in others}
    for i in mine:
        labelled[i] = {**labelled.get(i, {}), "ada": "random"}
    doubts = dict.fromkeys(sorted(pool), 0.0)
    found = list(choose(doubts, labelled, "ada", name="c", without=without))
    assert sorted(i for i, _ in found) == sorted((pool | set(labelled)) - mine - without)
    assert dict(found) == {i: "uncertain" if i in labelled else "random" for i, _ in found}
    assert found == list(choose(doubts, labelled, "ada", name="c", without=without))


def test_the_sample_is_uniform_over_people_and_a_fifth_of_it_is_shared():
    """Each record is as likely to come first; with nobody else before, nothing is shared."""
    pool = {f"r-{i}": 0.0 for i in range(10)}
    first = Counter(next(choose(pool, {}, f"person {i}", name="c"))[0] for i in range(5000))
    assert max(abs(first[record_id] - 500) for record_id in pool) < 5 * (5000 * 0.1 * 0.9) ** 0.5
    wide = {f"r-{i}": 0.0 for i in range(20_000)}
    labelled = {f"r-{i}": {"bob": "random"} for i in range(10_000)}
    drawn = [i for i, _ in islice(choose(wide, labelled, "ada", name="c"), 5000)]
    shared = sum(i in labelled for i in drawn)
    assert abs(shared - 1000) < 5 * (5000 * 0.2 * 0.8) ** 0.5


def test_the_doubtful_come_first_if_asked_for_and_those_of_few_people_before_those_of_many():
    """The rest is as random as ever."""
    pool = {f"r-{i}": i / 10 for i in range(10)}
    found = list(choose(pool, {}, "ada", name="c", order="uncertain"))
    assert [i for i, _ in found] == [f"r-{i}" for i in range(9, -1, -1)]
    assert {how for _, how in found} == {"uncertain"}
    labelled = {"r-0": {"bob": "random", "cyd": "random"}, "r-1": {"bob": "random"}}
    assert [i for i, _ in choose({}, labelled, "ada", name="c")] == ["r-1", "r-0"]
