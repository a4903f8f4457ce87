"""``evalpipe scorecard``: what authors see."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from evalpipe.cli.scorecard import app, build_app
from evalpipe.score import scored

CARD = """\
name: desk
owner: support
match: {service: support-*}
sampling: {judge: 20%}
criteria:
  - name: short
    description: Not too long.
    heuristic: length
    params: {max: 3}
  - name: kind
    judge: {kind: boolean, rubric: Is it kind?, needs: [input]}
alerts:
  - {name: rude, criterion: kind, mean: {below: 0.5}, window: 10m, for: 2m}
rollout:
  gates: [{criterion: kind}]
tests:
  - name: three words are short
    record: {output: one two three}
    expect: {short: {value: 1}, kind: {status: skipped}}
"""

SHARED = """\
name: desk
criteria:
  - name: kind
    judge: {kind: boolean, rubric: Is it kind?, needs: [input], together: style}
  - name: clear
    judge: {kind: boolean, rubric: Is it clear?, together: style}
tests:
  - name: first
    record: {input: a, output: you are nice}
    expect: {kind: {label: pass}, clear: {label: pass}}
  - name: second
    record: {input: a, output: go}
    expect: {kind: {label: fail}, clear: {label: fail}}
"""

RECORDS = """\
{"id": "good", "input": "a", "output": "you are nice", "service": "support-desk"}
not json
{"id": "long", "input": "a", "output": "this is much [bold]too long", "service": "billing"}
{"output": "no input"}
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with one scorecard and a file of records, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    (tmp_path / "scorecards").mkdir()
    (tmp_path / "scorecards" / "desk.yaml").write_text(CARD)
    (tmp_path / "records.jsonl").write_text(RECORDS)
    return tmp_path


def run(*arguments: object, application=app):
    """The result of a command."""
    return CliRunner().invoke(application, [str(a) for a in arguments])


def kind_grader(criteria):
    """A judge that likes the word nice, for scorecards with judged criteria."""
    assert any(criterion.is_judged for criterion in criteria)
    return lambda work: ((place, scored(float("nice" in record.output))) for place, (_, record, _) in enumerate(work))


@pytest.mark.usefixtures("home")
def test_check_accepts_a_good_folder():
    """It says what was checked, and that judged expectations were skipped."""
    result = run("check")
    assert result.exit_code == 0
    assert result.stdout.startswith("scorecards/desk.yaml: desk ")
    assert "2 criteria; tests: 1 passed, 1 skipped (no judge configured, or without --judge)" in result.stdout


def test_check_tells_every_mistake_on_stderr_and_fails(home):
    """The lines are those of an editor's problem list."""
    (home / "scorecards" / "bad.yaml").write_text(CARD.replace("length", "lenght").replace("name: desk", "name: Bad"))
    result = run("check")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[0].startswith("scorecards/bad.yaml:1:7: name: 'Bad' is not a name")
    said = "criteria[0].heuristic: no heuristic named 'lenght'; did you mean 'length'?"
    assert lines[1] == f"scorecards/bad.yaml:8:16: {said}"
    assert lines[2] == "2 problems in 1 file"
    assert "scorecards/desk.yaml: desk" in result.stdout


def test_check_fails_where_a_test_fails(home):
    """It says which, what was expected, and what came."""
    (home / "scorecards" / "desk.yaml").write_text(CARD.replace("one two three", "one two three four"))
    result = run("check")
    assert result.exit_code == 1
    said = "test 'three words are short': short: expected value 1, but it is 0.75 (4 words, at most 3 wanted)"
    assert f"scorecards/desk.yaml: {said}" in result.stderr


def test_check_for_machines_is_one_json_object(home):
    """With problems, scorecards and tests."""
    (home / "scorecards" / "bad.yaml").write_text("name: x\n")
    result = run("check", "--json")
    body = json.loads(result.stdout)
    assert result.exit_code == 1
    assert body["problems"] == [
        {"file": "scorecards/bad.yaml", "line": 1, "column": 1, "message": "criteria: is missing"}
    ]
    assert [t["outcome"] for t in body["tests"]] == ["passed", "skipped"]
    assert body["scorecards"][0]["name"] == "desk"


def test_check_tells_what_is_no_mistake_and_should_be_known(home):
    """A safety rule that was never measured does not arm; the exit code is 0."""
    (home / "scorecards" / "desk.yaml").write_text(
        CARD.replace("{criterion: kind}", "{criterion: kind, kind: safety, confirm: short}")
    )
    result = run("check")
    assert result.exit_code == 0
    assert "desk.yaml:15:11: rollout.gates[0]: false_flags was not measured" in result.stderr
    assert json.loads(run("check", "--json").stdout)["notices"][0]["line"] == 15


def test_check_grades_with_the_judge_when_asked(home):
    """Only then, since it costs."""
    (home / "scorecards" / "desk.yaml").write_text(CARD.replace("{status: skipped}", "{value: 1}"))
    application = build_app(kind_grader)
    assert "1 passed, 1 skipped" in run("check", application=application).stdout
    result = run("check", "--judge", application=application)
    assert result.exit_code == 1
    assert "kind: expected value 1, but it is 0" in result.stderr


@pytest.mark.usefixtures("home")
def test_a_path_that_is_not_there_is_a_message():
    """Not a traceback."""
    result = run("check", "nowhere")
    assert result.exit_code == 2
    assert result.stderr.startswith("there is no scorecard file or folder 'nowhere'")


@pytest.mark.usefixtures("home")
def test_show_speaks_plainly():
    """Match, criteria, alerts and gates in words."""
    result = run("show", "desk")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert "records of service support-*; heuristics score all of them, judges grade 20% of them" in text
    assert "SEV3 when the mean of kind over 10m is below 0.5 for 2m; needs 30 scores" in text
    assert "rolls back on proof of a drop (chance of error 1%) that is estimated at 3.75% or more" in text
    assert json.loads(run("show", "scorecards/desk.yaml", "--json").stdout)["name"] == "desk"


@pytest.mark.usefixtures("home")
def test_a_wrong_name_gets_the_nearest_right_one():
    """As everywhere."""
    result = run("show", "dsk")
    assert result.exit_code == 2
    assert result.stderr == "no scorecard named 'dsk' in scorecards; did you mean 'desk'?\n"


def test_diff_says_what_changes_and_what_starts_again(home):
    """An author sees before the merge which series break."""
    (home / "new.yaml").write_text(CARD.replace("max: 3", "max: 4").replace("window: 10m", "window: 20m"))
    result = run("diff", "scorecards/desk.yaml", "new.yaml")
    assert "criterion 'short': params.max changes from 3 to 4" in result.stdout
    assert "alert rule 'rude': window changes from 10m to 20m" in result.stdout
    assert "new epoch: short." in result.stdout
    body = json.loads(run("diff", "scorecards/desk.yaml", "new.yaml", "--json").stdout)
    assert body["new_epochs"] == ["short"]
    assert body["before"] != body["after"]


def test_diff_of_equals_says_so(home):
    """Comments and layout change nothing."""
    (home / "new.yaml").write_text("# a comment\n" + CARD)
    result = run("diff", "scorecards/desk.yaml", "new.yaml")
    assert "stays as it is" in result.stdout
    assert "nothing changes but comments and layout" in result.stdout


@pytest.mark.usefixtures("home")
def test_try_scores_what_can_be_read_and_names_the_rest():
    """One bad line costs one line and the exit code, not the others."""
    result = run("try", "desk", "--records", "records.jsonl")
    assert result.exit_code == 1
    assert "records.jsonl:2:1: not JSON: Expecting value" in result.stderr
    assert "1 line could not be read" in result.stderr
    assert "judged criteria skipped: no judge configured (kind); set EVALPIPE_JUDGE" in result.stdout
    assert "short 0.60  long  5 words, at most 3 wanted" in result.stdout
    assert "not taken by the scorecard's match: 1 of 3 records" in result.stdout


@pytest.mark.usefixtures("home")
def test_try_for_machines_gives_means_intervals_statuses_and_the_worst():
    """Every number that the table has."""
    result = run("try", "desk", "-r", "records.jsonl", "--json", application=build_app(kind_grader))
    body = json.loads(result.stdout)
    short, kind = body["criteria"]
    assert body["records"] == 3
    assert body["unread"] == ["records.jsonl:2:1: not JSON: Expecting value"]
    assert short["n"] == 3
    assert short["mean"] == pytest.approx(2.6 / 3, abs=1e-6)
    assert short["low"] < short["mean"] < short["high"]
    assert short["worst"] == [{"value": 0.6, "record_id": "long", "explanation": "5 words, at most 3 wanted"}]
    assert (kind["n"], kind["mean"], kind["skipped"], kind["ungraded"]) == (2, 0.5, 1, 0)
    assert kind["reasons"] == [{"status": "skipped", "reason": "the record has no input", "n": 1}]


@pytest.mark.usefixtures("home")
def test_try_makes_no_judge_call_when_told_so():
    """The grader is not even asked for."""

    def never(_criteria):
        raise AssertionError

    result = run("try", "desk", "-r", "records.jsonl", "--heuristics-only", "--json", application=build_app(never))
    assert json.loads(result.stdout)["criteria"][1]["ungraded"] == 2


@pytest.mark.usefixtures("home")
def test_try_takes_as_many_records_as_asked_for():
    """A look at the first ones is cheap."""
    assert json.loads(run("try", "desk", "-r", "records.jsonl", "--limit", 1, "--json").stdout)["records"] == 1


@pytest.mark.usefixtures("home")
def test_try_grades_with_the_judge_of_the_settings(monkeypatch):
    """The judge that ships for tests grades every record that has an input."""
    monkeypatch.setenv("EVALPIPE_JUDGE", "fake:any")
    body = json.loads(run("try", "desk", "-r", "records.jsonl", "--json").stdout)
    assert body["criteria"][1]["n"] == 2
    assert body["criteria"][1]["skipped"] == 1


def test_what_is_graded_in_one_call_is_tried_and_tested_in_one_call(home, monkeypatch):
    """The first call passes and the second fails, each for both criteria; who needs what is not there is skipped."""
    monkeypatch.setenv("EVALPIPE_JUDGE", "fake:any?acts=pass,fail")
    monkeypatch.setenv("EVALPIPE_JUDGE_CONCURRENCY", "1")
    (home / "scorecards" / "desk.yaml").write_text(SHARED)
    body = json.loads(run("try", "desk", "-r", "records.jsonl", "--json").stdout)
    assert [c["labels"] for c in body["criteria"]] == [{"pass": 1, "fail": 1}, {"fail": 2, "pass": 1}]
    assert [c["skipped"] for c in body["criteria"]] == [1, 0]
    result = run("check", "--judge")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "tests: 4 passed" in result.stdout


@pytest.mark.usefixtures("home")
def test_a_judge_that_cannot_be_opened_is_a_message(monkeypatch):
    """A wrong setting is told once, not once for every record."""
    monkeypatch.setenv("EVALPIPE_JUDGE", "opnai:any")
    result = run("try", "desk", "-r", "records.jsonl")
    assert result.exit_code == 2
    assert "did you mean 'openai'?" in result.stderr


@pytest.mark.usefixtures("home")
def test_a_records_file_that_is_not_there_is_a_message():
    """Not a traceback."""
    result = run("try", "desk", "-r", "none.jsonl")
    assert (result.exit_code, result.stderr) == (2, "none.jsonl cannot be read: No such file or directory\n")


def test_schema_goes_to_stdout_or_to_a_file(home):
    """Both are the same JSON."""
    printed = json.loads(run("schema").stdout)
    assert run("schema", "--out", "s.json").exit_code == 0
    assert json.loads((home / "s.json").read_text()) == printed
    result = run("schema", "--out", "no/s.json")
    assert (result.exit_code, result.stderr) == (2, "no/s.json cannot be written: No such file or directory\n")


@pytest.mark.parametrize("command", ["check", "show", "diff", "try", "schema"])
def test_every_command_has_help_with_an_example(command):
    """The help teaches."""
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"evalpipe scorecard {command}" in result.stdout


@pytest.mark.parametrize(
    ("written", "place", "said"),
    [
        ("model: 'openai:foo@http://127.0.0.1:9/v1'", "5:14: criteria[0].judge.model", "has no known price"),
        ("panel: ['fake:a', 'openai:gpt-99-foo']", "5:25: criteria[0].judge.panel[1]", "?usd_per_mtok=IN/OUT"),
        ("escalate: {to: 'fake:a?latency=300'}", "5:22: criteria[0].judge.escalate.to", "did you mean 'latency_ms'?"),
        ("fallback: ['fake:a?usd_per_day=lots']", "5:18: criteria[0].judge.fallback[0]", "must be a number"),
        ("model: 'fake:a?usd_per_mtok=cheap'", "5:14: criteria[0].judge.model", "'cheap' is no price"),
    ],
)  # fmt: skip
def test_check_reports_judges_that_could_not_be_asked_at_their_place(tmp_path, written, place, said):
    """What `evalpipe up` would refuse at its start is told before: unknown prices and wrong options."""
    card = tmp_path / "card.yaml"
    spec = f"      {written}\n      kind: boolean\n      rubric: Is it kind?\n"
    card.write_text("name: desk\ncriteria:\n  - name: kind\n    judge:\n" + spec)
    result = CliRunner().invoke(app, ["check", str(card)])
    assert result.exit_code == 1
    assert f"{card}:{place}: " in result.stderr
    assert said in result.stderr
    assert "1 problem in 1 file" in result.stderr


RICH = """\
name: desk
judging: {usd_per_day: 2.5}
criteria:
  - name: kind
    judge:
      kind: boolean
      rubric: |
        Is it kind?
        The second line is for the judge.
      panel: ["fake:a", "fake:b"]
      votes: 3
      combine: mean
      together: style
      explain: false
      logprobs: true
      escalate: {to: "fake:c", when: [unsure, fail]}
      fallback: ["fake:d", "fake:e"]
      priority: 0
  - name: later
    judge: {kind: boolean, rubric: Is it late?, lane: batch}
"""


def test_show_says_everything_that_decides_who_grades_and_what_it_costs(tmp_path, monkeypatch):
    """Panel, votes, cascade, fallback, shared calls, lane, priority and the cap; of the rubric its first line."""
    monkeypatch.setenv("COLUMNS", "1000")
    (tmp_path / "card.yaml").write_text(RICH)
    result = CliRunner().invoke(app, ["show", str(tmp_path / "card.yaml")])
    assert result.exit_code == 0, result.output
    for said in (
        "its judges may cost $2.5 a day (UTC)",
        "asks: Is it kind?; panel of fake:a, fake:b; 3 votes each; the mean of their grades counts; ",
        "where it is unsure or it does not give the best grade, fake:c grades again and counts; ",
        "while that fails: fake:d, then fake:e; in one call with what else is marked 'style'; ",
        "by the log-probabilities of the grades, where the provider gives them; without explanations; ",
        "without explanations; priority 0 (0 is first)",
        "asks: Is it late?; through the provider's batch API where it is not urgent",
    ):
        assert said in result.stdout
    (tmp_path / "pair.yaml").write_text("name: p\ncriteria: [{name: b, judge: {kind: pairwise, rubric: Which?}}]\n")
    assert "against the served one" in CliRunner().invoke(app, ["show", str(tmp_path / "pair.yaml")]).stdout
