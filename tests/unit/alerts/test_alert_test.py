"""Tests of alert rules: the notation, what fails and how it is said, and that those that are shipped pass."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from evalpipe.alerts.by_hand import Evenly, latencies
from evalpipe.alerts.routing import Routing
from evalpipe.alerts.rule_test import RuleTestResult, run_rule_test
from evalpipe.alerts.rules import rule_of
from evalpipe.cli.app import app
from evalpipe.detectors.base import detectors
from evalpipe.errors import ScorecardError
from evalpipe.scorecard.alert_rule import AlertRule
from evalpipe.scorecard.alert_test import AlertTest
from evalpipe.scorecard.notation import MOST_CELLS, Some, parse_numbers, parse_scores

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "examples/alerts"
RULES = """
alerts:
  - {name: many-errors, meter: error_rate, value: {above: 0.05}, window: 2m, for: 1m, severity: SEV2}
notify:
  routes:
    - {name: pages, severities: [SEV2], channels: [on-call]}
"""
HEAD = """rules: [rules.yaml]
tests:
  - name: errors
    series:
      - calls: {calls: 100x30, errors: 1x10 20x10 1x10}
"""


def run(tmp_path: Path, rest: str, *options: str) -> Any:
    """``evalpipe alerts test`` of a file whose first test has ten bad minutes, from minute 10 to 20."""
    (tmp_path / "rules.yaml").write_text(RULES)
    (tmp_path / "tests.yaml").write_text(HEAD + rest)
    return CliRunner().invoke(app, ["alerts", "test", str(tmp_path / "tests.yaml"), *options])


def played(rule: dict[str, Any], **test: Any) -> RuleTestResult:
    """One rule, and a test."""
    rules = [rule_of(AlertRule.model_validate({"name": "it", **rule}), None, lambda place: bool(place.service))]
    return run_rule_test(AlertTest.model_validate({"name": "t", **test}), rules, Routing())


def test_a_series_is_a_cell_for_each_interval():
    """``x`` repeats, ``_`` is nothing, and scores may be of several kinds at once."""
    assert parse_scores("2@0.5x2 _ 3*0.75,1e") == (
        (Some(2, "@", 0.5),), (Some(2, "@", 0.5),), (), (Some(3, "*", 0.75), Some(1, "e")),
    )  # fmt: skip
    assert parse_numbers("10x2 _x2 .5") == (10.0, 10.0, None, None, 0.5)
    assert parse_numbers(7) == (7.0,)


@pytest.mark.parametrize("text", ["", "x3", "5", "5@2", "5@0.9y3", "-1@0.5", "5@", "5@0.5,", "1ex2x3", True, None])
def test_what_is_no_series_of_scores_is_said_with_what_to_write(text: Any):
    """Never guessed."""
    with pytest.raises(ValueError, match=re.escape("write 20@0.9x30")):
        parse_scores(text)


@pytest.mark.parametrize("text", ["a", "1@2", "-3", "1e9", "nan", f"1x{MOST_CELLS + 1}"])
def test_what_is_no_series_of_numbers_is_said(text: str):
    """And a series has an end."""
    with pytest.raises(ValueError, match=r"write 1000x60|more than 50,000 intervals"):
        parse_numbers(text)


@given(st.lists(st.floats(0, 50), max_size=60))
def test_whole_numbers_are_spread_evenly(amounts: list[float]):
    """Their sum is off by less than one, at any time."""
    evenly, given_, wanted = Evenly(), 0, 0.0
    for amount in amounts:
        given_ += evenly.take(amount)
        wanted += amount
        assert -1e-6 < wanted - given_ < 1.0


@given(st.floats(10, 1e4), st.lists(st.integers(0, 400), min_size=20, max_size=40))
def test_latencies_by_hand_have_the_p99_that_was_written(p99: float, sizes: list[int]):
    """However few come at a time: one in a hundred is above."""
    seen = above = n = 0
    for size in sizes:
        found = latencies(p99, size, seen)
        seen += size
        n += sum(found.values())
        above += sum(count for value, count in found.items() if value > p99)
    assert abs(n - seen) <= 400
    assert above <= 0.01 * seen + 5


def test_rules_that_do_as_expected_pass(tmp_path: Path):
    """States at times, until times, never; and every notice."""
    done = run(
        tmp_path,
        """
    expect:
      - {rule: many-errors, at: 10m, state: inactive}
      - {rule: many-errors, at: 11m, state: pending}
      - {rule: many-errors, at: 12m, state: firing, severity: SEV2}
      - {rule: many-errors, by: 30m, state: resolved}
      - {rule: many-errors, never: firing, place: {variant: canary}}
    told:
      - {at: 12m, severity: SEV2, channels: [on-call], rules: [many-errors]}
      - {by: 30m, cause: resolved}
""",
    )
    assert done.exit_code == 0, done.output
    assert done.stdout == "passed  errors\n1 passed, 0 failed\n"


def test_a_failure_is_one_line_with_file_line_what_was_expected_and_what_was(tmp_path: Path):
    """With the alert's own reason."""
    done = run(
        tmp_path,
        """
    expect:
      - {rule: many-errors, at: 10m, state: firing}
      - {rule: many-errors, never: firing}
      - {rule: many-error, at: 10m, state: inactive}
    told: []
""",
        "--json",
    )
    assert done.exit_code == 1
    (told,) = json.loads(done.stdout)
    file = f"{tmp_path}/tests.yaml"
    lines = [line.removeprefix(file) for line in told["failures"]]
    assert lines[0].startswith(":8:9: tests[0].expect[0]: test 'errors': expected many-errors to be firing at 10m; "
                               "at 10m it was inactive: error_rate over 2m is 0.01 of 200 calls")  # fmt: skip
    assert lines[1].startswith(
        ":9:9: tests[0].expect[1]: test 'errors': expected many-errors never to be firing; at 12m"
    )
    assert "there is no rule 'many-error'; there are: many-errors" in lines[2]
    assert lines[3].startswith(
        ":11:11: tests[0].told: test 'errors': told was 'first SEV2 many-errors' to on-call at 12m"
    )
    assert (told["passed"], told["line"]) == (False, 3)


def test_what_cannot_be_a_test_is_said_with_its_place(tmp_path: Path):
    """All of it at once."""
    done = run(
        tmp_path,
        """
      - calls: {call: 3}
        scores: {c: 20@1.5}
    expect:
      - {rule: many-errors, at: 1m, by: 2m, state: firing}
      - {rule: many-errors, at: 1m}
    seeed: 3
""",
    )
    assert isinstance(done.exception, ScorecardError)
    said = str(done.exception)
    assert "tests.yaml:7:17: tests[0].series[1].calls.call: there is no 'call'; did you mean 'calls'?" in said
    assert "'20@1.5', which is no cell of a series" in said
    assert "needs exactly one of 'at', 'by' and 'never'" in said
    assert "'state' goes with 'at' or 'by'" in said
    assert "did you mean 'seed'?" in said


def test_the_log_says_what_happened(tmp_path: Path):
    """Each change, and each notice."""
    done = run(tmp_path, "    expect: []\n", "--log", "--only", "err")
    assert re.search(r"12m  app/production/baseline//many-errors is firing SEV2: error_rate", done.stdout)
    assert "told first SEV2 many-errors to on-call" in done.stdout
    assert "no test with 'none such'" in str(run(tmp_path, "", "--only", "none such").exception)


def test_people_act_and_a_rule_that_fails_is_a_failure():
    """An acknowledgement is told, a silence mutes; what a detector raises fails the test."""
    bad = {"criterion": "tone", "mean": {"below": 0.8}, "window": "1m", "min_sample": 5, "severity": "SEV1"}
    series = [{"scores": {"tone": "10@0.5x60"}}]
    done = played(bad, series=series, acts=[{"at": "5m", "ack": "it"}],
                  told=[{"at": "1m"}, {"at": "6m", "cause": "acknowledged"}])  # fmt: skip
    assert done.passed, done.failures
    muted = played(
        bad, series=series, acts=[{"at": "0m", "silence": {"rule": "i*"}, "lasts": "30m"}], told=[{"by": "31m"}]
    )
    assert [(f.loc, "escalated" in f.message) for f in muted.failures] == [(("told",), True)]
    assert muted.notices[0]["after"] == "30m"


def test_scores_that_no_rule_reads_are_a_failure():
    """A name that is misspelt would be a test that cannot fail."""
    rule = {"detect": "burn_rate", "params": {"criterion": "grounded", "objective": 0.9}}
    row = {"scores": {"groundet": "5@0.9x3"}}
    found = played(rule, series=[row], normal={"scores": {"grounded": "50@0.9", "other": "9@0.5"}})
    assert [(failure.loc, failure.message) for failure in found.failures] == [
        (("normal", "scores", "other"), "no rule reads scores of 'other'; there are: grounded"),
        (("series", 0, "scores", "groundet"), "no rule reads scores of 'groundet'; did you mean 'grounded'?"),
    ]  # fmt: skip


def test_the_same_seed_gives_the_same_and_another_one_other_scores():
    """Chance is in ``~`` alone."""
    line = {"criterion": "tone", "mean": {"below": 0.5}, "window": "1m", "min_sample": 5}

    def reasons(values: str, seed: int) -> list[str]:
        done = played(line, series=[{"scores": {"tone": values}}], seed=seed)
        return [change["reason"] for change in done.log]

    assert reasons("20~0.5x60", 1) == reasons("20~0.5x60", 1) != reasons("20~0.5x60", 2)
    assert reasons("20@0.45x5", 1) == reasons("20@0.45x5", 2) != []


def test_the_shipped_rules_are_right_and_their_tests_pass():
    """As a user runs them."""
    checked = CliRunner().invoke(app, ["alerts", "check", str(SHIPPED / "support.yaml"), "--scorecards",
                                       str(ROOT / "scorecards")])  # fmt: skip
    assert checked.exit_code == 0, checked.exception
    assert "cost-explodes: cost, severity by the table, kill switch" in checked.stdout
    assert "support-bot/answers-long: quality, SEV3, dry run" in checked.stdout
    done = CliRunner().invoke(app, ["alerts", "test", *map(str, sorted((SHIPPED / "tests").glob("*.yaml")))])
    assert done.exit_code == 0, done.stderr
    tests = (SHIPPED / "tests/support-test.yaml").read_text()
    rules = re.findall(r"^  - name: (\S+)", (SHIPPED / "support.yaml").read_text(), re.MULTILINE)
    assert [rule for rule in rules if not re.search(rf"rules?: \[?{rule}\b", tests)] == []


def test_the_manual_names_every_detector_with_each_of_its_parameters():
    """No other, and none twice."""
    manual = (ROOT / "docs/alerts.md").read_text()
    for name in detectors:
        part = manual.partition(f"\n### {name}\n")[2].partition("\n### ")[0].partition("\n## ")[0]
        named = re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE)
        assert sorted(named) == sorted(detectors.get(name).Params.model_fields), name


def test_the_test_in_the_manual_passes(tmp_path: Path):
    """Up to the file of rules that it names."""
    manual = (ROOT / "docs/alerts.md").read_text()
    text = next(part for part in re.findall(r"```yaml\n(.*?)```", manual, re.DOTALL) if part.startswith("rules:"))
    text = text.replace("../alerts.yaml", str(SHIPPED / "support.yaml"))
    text = re.sub(r"    told:.*", "", text.replace("../scorecards", str(ROOT / "scorecards")), flags=re.DOTALL)
    (tmp_path / "tests.yaml").write_text(text)
    done = CliRunner().invoke(app, ["alerts", "test", str(tmp_path / "tests.yaml")])
    assert done.exit_code == 0, done.output
