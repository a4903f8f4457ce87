"""The tests that scorecards carry."""

from __future__ import annotations

import pytest

from evalpipe.score import abstained, failed, scored, skipped
from evalpipe.scorecard.model import Expectation, Scorecard
from evalpipe.scorecard.testing import mismatch, run_tests
from evalpipe.scorers.base import heuristics

JUDGE = {"kind": "boolean", "rubric": "Is it kind?"}


def card(*tests: dict, criteria=()):
    """A scorecard with a heuristic, a judged criterion, and these tests."""
    given = [{"name": "short", "heuristic": "length", "params": {"max": 3}}, {"name": "kind", "judge": JUDGE}]
    body = {"name": "desk", "criteria": [*given, *criteria]}
    return Scorecard.model_validate({**body, "tests": [{"name": f"t{n}", **test} for n, test in enumerate(tests)]})


def outcomes(found):
    """Test, criterion and outcome."""
    return [(r.test, r.criterion, r.outcome) for r in found]


def test_heuristics_are_run_and_judged_criteria_are_skipped_without_a_judge():
    """A skipped expectation is reported as such, never as passed."""
    tested = card(
        {"record": {"output": "one two three"}, "expect": {"short": {"value": 1, "label": "ok"}, "kind": {"value": 1}}},
        {"record": {"output": "one two three four"}, "expect": {"short": {"value": 1}}},
    )
    found = list(run_tests(tested, heuristics))
    assert outcomes(found) == [("t0", "short", "passed"), ("t0", "kind", "skipped"), ("t1", "short", "failed")]
    assert found[1].message == "no judge configured"
    assert found[2].message == "expected value 1, but it is 0.75 (4 words, at most 3 wanted)"


def test_a_judge_is_given_all_work_at_once_and_may_answer_in_any_order():
    """So that its calls can be in flight together."""
    tested = card(
        {"record": {"output": "you are nice"}, "expect": {"kind": {"label": "pass"}, "short": {"value": 1}}},
        {"record": {"output": "go away"}, "expect": {"kind": {"label": "pass"}}},
    )
    asked = []

    def grader(work):
        asked.append([(criterion.name, record.output) for criterion, record, _ in work])
        for place in reversed(range(len(work))):
            nice = "nice" in work[place][1].output
            yield place, scored(float(nice), "pass" if nice else "fail")

    found = list(run_tests(tested, heuristics, grader))
    assert asked == [[("kind", "you are nice"), ("kind", "go away")]]
    assert outcomes(found) == [("t0", "kind", "passed"), ("t0", "short", "passed"), ("t1", "kind", "failed")]


@pytest.mark.parametrize(
    ("expected", "score", "said"),
    [
        ({"value": 0.5}, scored(0.5), ""),
        ({"value": 0.5}, scored(0.6), "expected value 0.5, but it is 0.6"),
        ({"at_least": 0.5}, scored(0.5), ""),
        ({"at_least": 0.5}, scored(0.4), "expected at least 0.5, but it is 0.4"),
        ({"at_most": 0.5}, scored(0.6, "", "why"), "expected at most 0.5, but it is 0.6 (why)"),
        ({"at_least": 0.2, "at_most": 0.4}, scored(0.3), ""),
        ({"label": "pass"}, scored(1, "fail"), "expected label 'pass', but it is 'fail'"),
        ({"value": 1}, skipped("no context"), "expected status 'scored', but it is 'skipped' (no context)"),
        (
            {"label": "x"},
            failed("broken"),
            "expected status 'scored', but it is 'error'; label 'x', but it is '' (broken)",
        ),
        ({"status": "skipped"}, skipped("no context"), ""),
        ({"status": "abstained"}, abstained("unsure"), ""),
        ({"status": "skipped"}, scored(1), "expected status 'skipped', but it is 'scored'"),
    ],
)
def test_a_mismatch_says_what_was_expected_and_what_came(expected, score, said):
    """An unknown score never meets an expected value."""
    assert mismatch(Expectation.model_validate(expected), score) == said
