"""``evalpipe rollout test``: streams that policies are tested on, and what they must decide."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from evalpipe.cli.app import app
from evalpipe.errors import ConfigError
from evalpipe.rollout.streams import drawn, streamed, tilted
from evalpipe.scorecard.policy import load_policy
from evalpipe.scorecard.policy_test import Distribution, PolicyTest
from evalpipe.scorers.base import heuristics

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "rollouts.md").read_text(encoding="utf-8")
POLICY = """\
gates:
  - {criterion: quality, margin: 5%}
tests:
  - name: a broken canary goes
    streams:
      - {criterion: quality, baseline: {rate: 0.95}, canary: {rate: 0.4}}
    repeat: 5
    expect: {decision: rollback, gate: quality, within: 100}
  - name: a healthy canary goes too
    streams:
      - {criterion: quality, baseline: {rate: 0.95}}
    units: 300
    expect: {decision: rollback, at_least: 50%}
"""


def run(*args: object):
    """The command's result."""
    return CliRunner().invoke(app, ["rollout", "test", *map(str, args)])


def policy_test(**values):
    """A test of a policy."""
    return PolicyTest.model_validate({"name": "t", "expect": {"decision": "hold"}, **values})


@pytest.fixture
def policy(tmp_path, monkeypatch):
    """A policy with a test that passes and one that cannot."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "p.yaml"
    path.write_text(POLICY, encoding="utf-8")
    return Path("p.yaml")


def test_a_failure_is_a_line_with_file_and_line(policy):
    """What was expected, how often it came, and what came instead; the others pass."""
    result = run(policy)
    assert result.exit_code == 1
    assert "passed  a broken canary goes: 5 of 5 runs" in result.stdout
    assert "1 passed, 1 failed" in result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith("p.yaml:9: test 'a healthy canary goes too': ")
    assert "expected rollback in at least 0.5 of the runs; it came in 0 of 1 runs: 1 hold" in line


def test_machines_get_every_test_with_its_numbers(policy):
    """One object each."""
    result = run(policy, "--json")
    first, second = json.loads(result.stdout)
    assert (first["passed"], first["line"], first["runs"], first["share"]) == (True, 4, 5, 1.0)
    assert first["decisions"] == {"rollback by quality (catastrophic_harm)": 5} or first["median_canary"] >= 5
    assert not second["passed"]


def test_only_some_tests_can_be_run_and_more_often(policy):
    """By a part of the name."""
    result = run(policy, "--only", "broken", "--repeat", 8)
    assert result.exit_code == 0
    assert "8 of 8 runs" in result.stdout


def test_a_policy_without_tests_is_a_message(policy):
    """And so is a name that none has."""
    result = run(policy, "--only", "nothing")
    assert isinstance(result.exception, ConfigError)
    assert "no tests in p.yaml with 'nothing' in the name" in str(result.exception)


def test_a_mistake_in_a_test_has_its_place(policy):
    """As everywhere."""
    policy.write_text(POLICY.replace("rate: 0.4", "rat: 0.4"), encoding="utf-8")
    result = run(policy)
    assert "p.yaml:6:63: tests[0].streams[0].canary.rat: is no field; did you mean 'rate'?" in str(result.exception)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            "rows: [{arm: canary, criterion: quality, value: 7}]",
            "tests[0].rows[0].value: 7 is out of range: scores are",
        ),
        ("streams: [{criterion: quality, baseline: {scores: [0, 2], shares: [1, 1]}}]", "scores: 2 is out of range"),
        ("streams: [{criterion: quality, baseline: {scores: [0, 1], shares: [0, 0]}}]", "shares: are all 0: none of"),
    ],
)
def test_a_stream_of_what_cannot_be_is_a_mistake(wrong, said, tmp_path):
    """It would test nothing, or end in a traceback."""
    path = tmp_path / "p.yaml"
    path.write_text(
        f"gates: [{{criterion: quality}}]\ntests: [{{name: x, {wrong}, expect: {{decision: hold}}}}]\n",
        encoding="utf-8",
    )
    assert said in str(run(path).exception)


def test_what_comes_too_late_does_not_count(tmp_path):
    """A limit in canary values, and one in time."""
    path = tmp_path / "p.yaml"
    path.write_text(POLICY.replace("within: 100", "within: 5"), encoding="utf-8")
    assert "0 of 5 runs" in run(path).stderr
    path.write_text(POLICY.replace("within: 100", "within: 10s"), encoding="utf-8")
    assert "0 of 5 runs" in run(path).stderr
    path.write_text(POLICY.replace("within: 100", "within: 30m"), encoding="utf-8")
    assert "5 of 5 runs" in run(path).stdout


def test_rows_stand_for_themselves():
    """One after the other, a second apart; a null is an error."""
    rows = [{"arm": arm, "criterion": "q", "value": value} for arm, value in (("baseline", 1.0), ("canary", None))]
    stream = streamed(policy_test(rows=rows), 0)
    first, second = stream.evidence
    assert (second.at - first.at).total_seconds() == 1
    assert (second.value, second.status.value) == (None, "error")
    assert stream.canary.tolist() == [0, 1]


def test_the_same_seed_gives_the_same_stream_and_each_run_another():
    """So a failure can be looked at again."""
    test = policy_test(streams=[{"criterion": "q", "baseline": {"mean": 0.8, "sd": 0.2}}], units=50, seed=3)
    first, again, other = ([e.value for e in streamed(test, run).evidence] for run in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("written", "mean", "sd"),
    [
        ({"rate": 0.9}, 0.9, 0.3),
        ({"scores": [0, 0.5, 1], "shares": [1, 1, 2]}, 0.625, 0.4146),
        ({"mean": 0.85, "sd": 0.2}, 0.85, 0.2),
    ],
)
def test_a_distribution_has_the_mean_and_spread_that_are_written(written, mean, sd):
    """And a drop of its mean is a drop of its mean."""
    of, rng = Distribution.model_validate(written), np.random.default_rng(1)
    values = drawn(of, 200_000, rng)
    assert values.mean() == pytest.approx(mean, rel=0.01)
    assert values.std() == pytest.approx(sd, rel=0.02)
    assert drawn(of, 200_000, rng, factor=0.9).mean() == pytest.approx(0.9 * mean, rel=0.01)


def test_costs_are_log_normal():
    """With the mean and standard deviation of the costs, not of their logarithm."""
    of = Distribution(mean=0.02, sd=0.015)
    values = drawn(of, 400_000, np.random.default_rng(1), factor=1.5, measured=True)
    assert values.mean() == pytest.approx(0.03, rel=0.01)
    assert values.std() / values.mean() == pytest.approx(0.75, rel=0.03)


def test_a_tilt_changes_the_mean_and_keeps_the_scores():
    """The least change of the shares, in the sense of Kullback and Leibler."""
    scores, shares = np.array([0, 0.25, 0.5, 0.75, 1]), np.array([0.1, 0.1, 0.2, 0.2, 0.4])
    mean = (scores * shares).sum()
    for factor in (0.5, 0.95, 1.0, 1.2):
        assert (scores * tilted(scores, shares, factor)).sum() == pytest.approx(factor * mean, rel=1e-6)
    assert tilted(scores, shares, 1.0) == pytest.approx(shares, abs=1e-6)


def test_the_shipped_default_policy_passes_its_tests():
    """A few runs of each; all of them by hand, or in the build."""
    found = load_policy(ROOT / "scorecards" / "policies" / "default.yaml", heuristics)
    assert len(found.policy.tests) >= 5
    result = run(ROOT / "scorecards" / "policies" / "default.yaml", "--repeat", 10, "--only", "is ")
    assert result.exit_code == 0, result.output


BLOCKS = [block for block in PAGE.split("```yaml\n")[1:] if "gates:" in block.split("```")[0]]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_every_policy_on_the_page_can_be_read(block, tmp_path):
    """So that what is copied works; the one of a scorecard needs a name."""
    text = block.split("```")[0]
    path = tmp_path / "p.yaml"
    path.write_text(f"name: desk\n{text}" if "criteria:" in text else text, encoding="utf-8")
    assert load_policy(path, heuristics).policy.gates


@pytest.mark.parametrize("written", ["RampStep", "ShadowPhase", "SegmentSpec", "PolicyTest", "PolicyExpectation",
                                     "Stream", "Distribution", "Row"])  # fmt: skip
def test_the_page_names_every_field(written):
    """A new field needs a line in docs/rollouts.md."""
    from evalpipe.scorecard import policy_test, rollout

    model = getattr(policy_test, written, None) or getattr(rollout, written)
    left_out = {"name"} if written == "PolicyTest" else set()
    assert [name for name in model.model_fields if f"`{name}`" not in PAGE and name not in left_out] == []
