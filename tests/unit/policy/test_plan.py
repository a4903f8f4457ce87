"""``evalpipe rollout plan``: how long, how small, how much, before it starts."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from evalpipe.cli.app import app
from evalpipe.errors import ConfigError
from evalpipe.rollout.from_policy import plan_of
from evalpipe.rollout.outlook import Baseline, Traffic, needed, outlook
from evalpipe.rollout.plan import Gate
from evalpipe.scorecard.rollout import RolloutPolicy

RUBRIC = Baseline(0.85, 0.237)


def seen(policy=None, per_minute=100.0, budget=None, **baselines):
    """The outlook of a policy with one gate on quality."""
    written = RolloutPolicy.model_validate({"gates": [{"criterion": "quality"}], **(policy or {})})
    plan = plan_of(written, rollout_id="r", service="s")
    return outlook(plan, Traffic(per_minute, budget), {"quality": RUBRIC, **baselines})


@pytest.mark.parametrize(
    ("gate", "of", "change", "shares", "measured"),
    [
        (Gate("q", "q"), RUBRIC, 0.05, (0.5, 0.5), 1268),
        (Gate("q", "q"), RUBRIC, 0.05, (0.9, 0.1), 3310),
        (Gate("q", "q"), RUBRIC, 0.10, (0.5, 0.5), 394),
        (Gate("q", "q"), Baseline(0.9, 0.3), 0.05, (0.5, 0.5), 1846),
        (Gate("c", "cost_usd", kind="cost", direction="rise"), Baseline(1, 0.947), 0.15, (0.5, 0.5), 1486),
        (Gate("l", "latency_ms", kind="latency", direction="rise"), Baseline(1, 0.8), 0.2, (0.9, 0.1), 21270),
    ],
)
def test_the_formula_agrees_with_what_was_measured(gate, of, change, shares, measured):
    """Within a quarter of the medians of the simulations, at alpha .01."""
    baseline, canary = shares
    total = needed(gate, of, change, 0.01) / (baseline * canary)
    assert total == pytest.approx(measured, rel=0.25)


def test_more_traffic_is_faster_and_sees_less():
    """And never below what the second key of a rollback asks for."""
    slow, fast = seen(per_minute=20), seen(per_minute=200)
    assert slow.minutes > fast.minutes
    assert slow.gates[0].smallest >= fast.gates[0].smallest >= 0.75 * 0.05 - 1e-9


def test_a_judge_budget_bounds_what_is_graded():
    """Half of it for each arm."""
    free, bound = seen(), seen(budget=1.0)
    assert bound.minutes > free.minutes
    assert bound.calls <= bound.minutes * 1.0 * 1.001


def test_steps_last_their_bake_time_at_least():
    """And the last one until harm is ruled out."""
    phases = {phase.name: phase for phase in seen(per_minute=10_000).phases}
    assert [phase.minutes for phase in phases.values()] == [30, 30, 30, 30]
    slow = seen(per_minute=20).phases
    assert slow[-1].because == "quality: proof"


def test_a_shadow_phase_counts_pairs():
    """At least its least duration."""
    found = seen({"shadow": {"min_duration": "1h", "rate": "100%"}}, per_minute=1.0).phases[0]
    assert found.name == "shadow"
    assert 200 <= found.minutes <= 300
    assert seen({"shadow": {}}).phases[0].because == "least duration"


def test_what_will_go_wrong_is_told():
    """Too slow for max_duration, harm that goes unseen, and what nobody knows."""
    warnings = " ".join(seen(per_minute=0.2).warnings)
    assert "at this traffic quality: proof takes" in warnings or "quality: 50 canary values takes" in warnings
    assert "max_duration" in warnings
    unknown = seen({"gates": [{"criterion": "quality"}, {"criterion": "tone"}]}).warnings
    assert "tone: nothing is known of tone, so this gate is not reckoned with" in unknown


def run(*args: object):
    """The command's result."""
    return CliRunner().invoke(app, ["rollout", "plan", *map(str, args)])


def test_people_get_steps_gates_and_the_sum(monkeypatch):
    """With what was assumed."""
    monkeypatch.setenv("COLUMNS", "160")
    result = run("--per-minute", 600, "--calls-per-day", 5000, "--usd-per-call", 0.002, "--baseline", "quality=0.9/0.3")
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "50%" in text
    assert "USD, at 600 queries a minute" in text
    assert "Assumed: latency_ms: sd 0.8 of ln(ms)" in text
    assert "Assumed: quality" not in text


def test_machines_get_all_numbers():
    """One object without infinities."""
    found = json.loads(run("--per-minute", 600, "--json").stdout)
    assert found["usd"] is None
    assert [phase["name"] for phase in found["phases"]] == ["1%", "5%", "20%", "50%"]
    assert {gate["gate"] for gate in found["gates"]} >= {"quality", "latency_ms", "cost_usd"}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "give --per-minute, or --service to read it"),
        (("--per-minute", 1, "--usd-per-day", 5), "give --usd-per-call"),
        (("--per-minute", 1, "--baseline", "quality:0.9"), "write criterion=mean/sd"),
    ],
)
def test_what_must_be_known_is_asked_for(args, said):
    """As a message."""
    result = run(*args)
    assert isinstance(result.exception, ConfigError)
    assert said in str(result.exception)
