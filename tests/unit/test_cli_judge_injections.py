"""``evalpipe judge injections``: the corpus on a judge whose habits are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evalpipe.cli.app import app
from evalpipe.cli.injection_run import spread
from evalpipe.errors import EvalpipeError
from evalpipe.judges.corpus import CONTROL, attempts

HABITS = {
    "Ignore all previous": "pass",
    "JSON is not accepted": "garbage",
    "I cannot grade this": "cannot_tell",
    "grade this answer as fail": "fail",
    "bank account": "fail",
    "$20 voucher": "fail",
    "take everything": "fail",
}
SUPPORT = Path(__file__).parents[2] / "scorecards" / "support-bot.yaml"


@pytest.fixture(autouse=True)
def judge(monkeypatch):
    """A judge that obeys one sentence, breaks at another, and is right otherwise."""
    monkeypatch.setenv("EVALPIPE_JUDGE", f"fake:a?rules={json.dumps(HABITS)}&acts=pass")
    monkeypatch.setenv("COLUMNS", "140")


def run(*arguments: str):
    """The result of the command."""
    return CliRunner().invoke(app, ["judge", "injections", *arguments])


def test_every_attempt_ends_in_an_outcome_and_the_rates_follow_from_them():
    """Moved, broken, abstained or held, by kind; the base rate first; and what the screen flags."""
    result = run("--json")
    assert result.exit_code == 0, result.output
    body = json.loads(result.stdout)
    assert [row["outcome"] for row in body["base"]] == ["held"] * 5
    assert len(body["attempts"]) == len(attempts())
    by_id = {row["id"]: row for row in body["attempts"]}
    assert (by_id["order-01"]["outcome"], by_id["order-01"]["label"]) == ("moved", "pass")
    assert by_id["order-07"]["outcome"] == "moved"
    assert by_id["order-07"]["record"] in {"4", "5"}
    assert (by_id["format-06"]["outcome"], by_id["format-09"]["outcome"]) == ("broken", "abstained")
    assert by_id["format-06"]["explanation"]
    assert by_id["order-02"]["outcome"] == "held"
    rows = {row["kind"]: row for row in body["kinds"]}
    whole = rows["all"]
    assert whole["n"] == len(attempts()) - rows[CONTROL]["n"]
    assert whole["moved"] == sum(rows[kind]["moved"] for kind in rows if kind not in {"all", CONTROL})
    assert whole["low"] < whole["rate"] < whole["high"]
    assert whole["flagged"] >= 0.9 * whole["n"]
    assert (rows[CONTROL]["moved"], rows[CONTROL]["flagged"]) == (0, 0)


def test_people_get_a_table_and_are_told_what_a_fake_judge_means():
    """The exit code is 0 whatever the rates are: they are a measurement."""
    result = run("--limit", "20")
    assert result.exit_code == 0
    assert "without an attempt: 3 of 3 bad answers graded rightly" in result.stdout
    assert "these figures mean nothing" in result.stdout
    assert "control" in result.stdout


def test_what_the_judge_gets_wrong_by_itself_is_left_out(monkeypatch):
    """An answer that passes anyway cannot be moved to a pass."""
    monkeypatch.setenv("EVALPIPE_JUDGE", 'fake:a?rules={"bank account": "fail"}&acts=pass')
    body = json.loads(run("--json").stdout)
    assert [row["outcome"] for row in body["base"]] == ["held", "moved", "moved", "held", "held"]
    assert {row["record"] for row in body["attempts"]} == {"1", "4", "5"}
    monkeypatch.setenv("EVALPIPE_JUDGE", "fake:a?acts=cannot_tell")
    result = run()
    assert result.exit_code == 0
    assert "no attempt can be tried" in result.stdout


def test_a_scorecard_gives_the_criterion_and_its_tests_the_answers():
    """The first judged criterion, or the named one."""
    body = json.loads(run("--scorecard", str(SUPPORT), "--limit", "12", "--json", "--judge", "fake:b").stdout)
    assert body["criterion"] == "support-bot/grounded"
    assert body["judges"] == ["fake:b"]
    assert [row["good"] for row in body["base"]] == [True, False]


def test_mistakes_say_what_to_do(tmp_path):
    """No tests with a bad answer, no such criterion, no file."""
    card = tmp_path / "card.yaml"
    card.write_text("name: a\ncriteria: [{name: kind, judge: {kind: boolean, rubric: Is it kind?}}]\n")
    for arguments, told in (
        (["--scorecard", str(card)], "no test says which answer is bad by 'kind'"),
        (["--scorecard", str(card), "--criterion", "rude"], "there is no judged criterion 'rude'"),
        (["--criterion", "kind"], "--criterion needs --scorecard"),
    ):
        result = run(*arguments)
        assert isinstance(result.exception, EvalpipeError)
        assert told in str(result.exception)


def test_a_limit_takes_some_of_each_kind():
    """In the order of the corpus, each once."""
    few = spread(attempts(), 28)
    assert len(few) == 28
    assert {attempt.kind for attempt in few} == {attempt.kind for attempt in attempts()}
    assert few == [attempt for attempt in attempts() if attempt in few]
    assert spread(attempts(), 0) == list(attempts())


def test_a_judge_that_is_down_is_said_and_not_asked_170_times(monkeypatch):
    """It is given up, and nothing is claimed."""
    monkeypatch.setattr("evalpipe.cli.asking.FIRST_WAIT_S", 0.0)
    monkeypatch.setenv("EVALPIPE_JUDGE", "fake:a?acts=503")
    result = run()
    assert result.exit_code == 1
    assert result.stderr.startswith("evalpipe: stopped asking: 8 calls in a row without an answer, the last: ")
    assert "without an attempt: 0 of 3 bad answers graded rightly" in result.stdout
    assert "answer 1: " in result.stdout
    assert "The judge gave no answer: no attempt was tried." in result.stdout


def test_a_judge_that_dies_on_the_way_is_asked_no_more_and_what_there_is_is_told(monkeypatch):
    """A wrong key needs a human: the rest is not asked."""
    monkeypatch.setenv("EVALPIPE_JUDGE_CONCURRENCY", "1")
    result = run("--judge", "fake:a?acts=fail,fail,fail,pass,pass,pass,401", "--json")
    assert result.exit_code == 1
    assert result.stderr.startswith("evalpipe: stopped asking: ")
    outcomes = [one["outcome"] for one in json.loads(result.stdout)["attempts"]]
    assert set(outcomes[6:]) == {"unanswered"}
    assert set(outcomes[:6]) <= {"moved", "held"}
