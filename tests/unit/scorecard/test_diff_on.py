"""``evalpipe scorecard diff A B --on labelled.jsonl``: what an edit changes before it ships."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from evalpipe.cli.scorecard import app

OLD = """\
name: desk
criteria:
  - name: short
    heuristic: length
    params: {max: 3}
  - name: kind
    judge: {kind: boolean, rubric: Is it kind?, needs: [input], model: "fake:a?acts=pass&usd_per_mtok=1"}
  - name: polite
    judge: {kind: boolean, rubric: Is it polite?, model: "fake:a?acts=pass"}
"""
NEW = OLD.replace("max: 3", "max: 5").replace(
    'Is it kind?, needs: [input], model: "fake:a?acts=pass&usd_per_mtok=1',
    'Is it really kind?, needs: [input], model: "fake:b?acts=fail,pass,fail&usd_per_mtok=2',
)  # fmt: skip
ROWS = [
    {"id": "a", "input": "x", "output": "you are nice", "labels": {"kind": "pass"}},
    {"id": "b", "input": "x", "output": "you are not so nice", "labels": {"kind": {"anna": "fail", "ben": "pass"}}},
    {"id": "c", "input": "x", "output": "go", "labels": {"kind": "fail"}},
    {"id": "d", "output": "no input here", "labels": {"kind": "fail"}},
]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Two versions of a scorecard and labelled records, in the folder in which the command runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("EVALPIPE_JUDGE_CONCURRENCY", "1")
    monkeypatch.delenv("EVALPIPE_JUDGE", raising=False)
    (tmp_path / "old.yaml").write_text(OLD)
    (tmp_path / "new.yaml").write_text(NEW)
    (tmp_path / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def run(*arguments: str):
    """The result of the command."""
    return CliRunner().invoke(app, ["diff", "old.yaml", "new.yaml", *arguments])


@pytest.mark.usefixtures("home")
def test_what_is_scored_anew_is_compared_record_by_record_and_with_people():
    """Unchanged criteria are not graded; a record without what is needed, or without a majority, is not counted."""
    result = run("--on", "labelled.jsonl", "--json")
    assert result.exit_code == 0, result.output
    body = json.loads(result.stdout)
    short, kind = body["on"]
    assert (short["criterion"], kind["criterion"]) == ("short", "kind")
    assert (kind["records"], kind["judged"], short["judged"]) == (4, True, False)
    assert [(flip["record_id"], flip["people"]) for flip in kind["flips"]] == [("a", "pass"), ("c", "fail")]
    first = kind["flips"][0]
    assert (first["before"]["label"], first["after"]["label"]) == ("pass", "fail")
    assert first["after"]["explanation"]
    agreement = kind["agreement"]
    assert (agreement["labelled"], agreement["only_before"], agreement["only_after"], agreement["p"]) == (2, 1, 1, 1.0)
    assert agreement["before"]["value"] == agreement["after"]["value"] == 0.5
    assert agreement["before"]["low"] < 0.5 < agreement["before"]["high"]
    assert kind["usd_per_1000"]["after"] > 1.5 * kind["usd_per_1000"]["before"] > 0


@pytest.mark.usefixtures("home")
def test_a_heuristic_needs_no_model_and_shows_what_it_says_now():
    """Its label or value changes; it has no price."""
    short = json.loads(run("--on", "labelled.jsonl", "--json").stdout)["on"][0]
    assert [flip["record_id"] for flip in short["flips"]] == ["b"]
    assert (short["flips"][0]["before"]["label"], short["flips"][0]["after"]["label"]) == ("long", "ok")
    assert short["usd_per_1000"] == {"before": None, "after": None}
    assert short["agreement"]["p"] is None


@pytest.mark.usefixtures("home")
def test_people_see_a_table_and_the_worst_first():
    """A grade that was right and is wrong now comes before one that was wrong."""
    result = run("--on", "labelled.jsonl", "--worst", "1")
    assert "new epoch: short, kind." in result.stdout
    assert "kind  a  pass -> fail (people: pass)" in result.stdout
    assert "kind  c" not in result.stdout
    assert "... and 1 more: --worst 2, or --json" in result.stdout
    assert "1 grades agree with people that did not, and 1 do not any more; by chance alone p = 1" in result.stdout


@pytest.mark.usefixtures("home")
def test_one_judge_can_stand_for_both_files():
    """To see what the words change and not the model."""
    body = json.loads(run("--on", "labelled.jsonl", "--judge", "fake:c?acts=pass", "--json").stdout)
    assert body["on"][1]["flips"] == []


def test_mistakes_are_told_with_file_and_line(home):
    """Nothing is graded, and there is no traceback."""
    with (home / "labelled.jsonl").open("a") as rows:
        rows.write('{"output": "x"}\n{"output": "x", "labels": {"kind": "perhaps"}}\n')
    result = run("--on", "labelled.jsonl")
    assert result.exit_code == 2
    assert "labelled.jsonl:5:1: labels: give an object" in result.stderr
    assert "labelled.jsonl:6:1: labels: 'perhaps' is no label of desk/kind" in result.stderr
    missing = run("--on", "none.jsonl")
    assert (missing.exit_code, missing.stderr) == (2, "none.jsonl cannot be read: No such file or directory\n")
    assert "--judge goes with --on" in run("--judge", "fake:a").stderr
    (home / "labelled.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    assert "'nothing'" in run("--on", "labelled.jsonl", "--judge", "nothing").stderr


def test_nothing_is_graded_where_nothing_is_scored_anew(home):
    """A new description costs no call."""
    (home / "new.yaml").write_text(OLD.replace("- name: kind", "- name: kind\n    description: Friendly."))
    (home / "labelled.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    assert "nothing is scored anew" in run("--on", "labelled.jsonl").stdout


def test_what_is_graded_in_one_call_is_compared_in_one_call(home):
    """Each side's first call passes and its second fails for both criteria; the unchanged one is there too."""
    old = """\
name: desk
criteria:
  - name: kind
    judge: {kind: boolean, rubric: Is it kind?, together: style, model: "fake:a?acts=pass,fail"}
  - name: clear
    judge: {kind: boolean, rubric: Is it clear?, together: style, model: "fake:a?acts=pass,fail"}
"""
    (home / "old.yaml").write_text(old)
    (home / "new.yaml").write_text(old.replace("Is it clear?", "Is it really clear?"))
    (home / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:2]))
    kind, clear = json.loads(run("--on", "labelled.jsonl", "--json").stdout)["on"]
    assert (kind["criterion"], clear["criterion"]) == ("kind", "clear")
    assert [(c["mean"], c["flips"]) for c in (kind, clear)] == [({"before": 0.5, "after": 0.5}, [])] * 2


@pytest.mark.usefixtures("home")
def test_a_dead_judge_is_given_up_and_what_both_sides_graded_is_compared(monkeypatch):
    """After eight calls in a row without an answer; the exit code says that it is not all."""
    monkeypatch.setattr("evalpipe.cli.asking.FIRST_WAIT_S", 0.0)
    result = run("--on", "labelled.jsonl", "--judge", "fake:a?acts=503", "--json")
    assert result.exit_code == 1
    assert result.stderr.startswith("evalpipe: stopped asking: 8 calls in a row without an answer, the last: ")
    kind = json.loads(result.stdout)["on"][1]
    assert (kind["records"], kind["flips"]) == (1, []), "the one that was skipped for want of its input"


@pytest.mark.usefixtures("home")
def test_a_judge_without_a_price_is_refused_before_it_is_asked():
    """No cap could be kept; nothing is connected."""
    result = run("--on", "labelled.jsonl", "--judge", "openai:foo@http://127.0.0.1:9/v1")
    assert result.exit_code == 2
    assert "judge openai:foo at 127.0.0.1 has no known price" in result.stderr
