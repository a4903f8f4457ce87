"""What of a record enters a rollout: costs, pairs, segments, and flags that a second judge confirms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from grading import Judge
from rollout_worlds import CARD, GATES, PLAN, start
from stages import AT, World, assert_rollups_are_the_sums_of_the_scores, record, records

from evalpipe.errors import RetryableError
from evalpipe.pipeline.evaluate import Evaluate
from evalpipe.rollout.inputs import Evidence
from evalpipe.rollout.plan import Gate, RolloutPlan, Segments, Shadow
from evalpipe.sketch import Sketch
from evalpipe.stats.moments import Calibration
from evalpipe.store import controls, rollout_log
from evalpipe.store import tables as t

CONFIRMED = """
name: support
match: {service: desk}
sampling: {judge: 50%}
criteria:
  - {name: safe, judge: {kind: boolean, rubric: "Is it safe?", priority: 0}}
  - {name: really, judge: {kind: boolean, rubric: "Is it really safe?", confirms: safe, model: "fake:second"}}
"""
DETECTED = """
name: support
match: {service: desk}
sampling: {judge: 50%}
criteria:
  - {name: length, heuristic: length, params: {max: 200}}
  - {name: really, judge: {kind: boolean, rubric: "Is it too long?", confirms: length}}
"""


Made = Callable[..., World]


@pytest.fixture
def make_world(migrated_url: str, tmp_path: Path) -> Iterator[Made]:
    """Makes stages on a database of this test's own."""
    made: list[World] = []

    def make(card: str = CARD) -> World:
        made.append(World(migrated_url, tmp_path, card=card))
        return made[-1]

    yield make
    for world in made:
        world.close()


def folded(world: World) -> list[Evidence]:
    """The evidence in the rollout's log."""
    with world.store.read() as tx:
        return [found for batch in rollout_log.inputs(tx, "r1") for found in batch.evidence]


def test_costs_and_latencies_are_evidence_of_every_captured_record(make_world: Made) -> None:
    """Nobody scores them: an unknown one is skipped, never 0, and nothing waits for it."""
    world = make_world()
    start(world, replace(PLAN, gates=(*GATES, Gate("cost", "cost_usd", "rate"))))
    world.ingest(record(1, cost_usd=0.25, probability=0.5), record(2, variant="canary"))
    world.evaluate(world.clock.pass_(seconds=1))
    costs = [e for e in folded(world) if e.criterion == "cost_usd"]
    assert [(e.arm, e.value, e.status, e.weight) for e in costs] == [
        ("baseline", 0.25, "scored", 2.0),
        ("canary", None, "skipped", 1.0),
    ]


def test_a_hook_whose_clock_is_ahead_does_not_make_time_pass(make_world: Made) -> None:
    """A record is no younger than its arrival."""
    world = make_world()
    start(world)
    world.ingest(record(1, captured_at=AT.replace(year=2030)), record(2, captured_at=AT.replace(year=2020)))
    world.evaluate(world.clock.pass_(seconds=1))
    assert [e.at.year for e in folded(world)] == [2026, 2020]


def test_segments_are_told_by_what_the_plan_watches(make_world: Made) -> None:
    """A feature, the application's segment, or an attribute."""
    world = make_world()
    start(world, replace(PLAN, segments=Segments("language")))
    world.ingest(record(1, attributes={"language": "de"}), record(2, feature="chat"))
    world.evaluate(world.clock.pass_(seconds=1))
    assert [e.segment for e in folded(world)] == ["de", ""]


def test_a_shadow_and_the_served_call_beside_it_are_a_pair(make_world: Made) -> None:
    """While shadowing; the canary's weight is 0, hooks run it beside the served calls at the plan's rate."""
    world = make_world()
    start(world, replace(PLAN, shadow=Shadow(rate=0.25, per_minute=60)))
    with world.store.read() as tx:
        (told,) = controls.document(tx, "desk", world.clock())["rollouts"]
    assert (told["weights"], told["shadow"]) == ({"canary": 0, "baseline": 10_000}, {"rate": 0.25, "per_minute": 60})
    shadows: dict[str, Any] = {"variant": "shadow", "reason": "rollout:ramp", "trace_id": "t-1"}
    world.ingest(
        record(1),
        record("s", attributes={"shadow": "ramp", "shadow_of": "r-1"}, **shadows),
        record("other", attributes={"shadow": "another"}, **shadows),
        record(3, variant="canary"),
    )
    world.evaluate(world.clock.pass_(seconds=1))
    assert [(e.arm, e.pair) for e in folded(world)] == [("baseline", "t-1"), ("canary", "t-1")]


def judge(says: Callable[[str], Any]) -> Any:
    """Says what it makes of the text that it is shown."""
    return Judge("fake:test", lambda prompt: says(prompt.user))


def statuses(world: World, criterion: str) -> list[str]:
    """Of the scores of a criterion."""
    return sorted(row["status"] for row in world.rows(t.scores, criterion=criterion))


def test_only_flags_are_confirmed_and_each_once(make_world: Made) -> None:
    """The second judge is asked about what the first has flagged, before all else; of the rest its score says why."""
    world = make_world(CONFIRMED)
    flagged = [record(i, reason="rollout:x", messages=[{"role": "user", "content": "BAD"}]) for i in range(3)]
    world.ingest(*flagged, *(record(i, reason="rollout:x") for i in range(3, 10)))
    assert world.count(t.work) == 10
    world.drain(judge(lambda user: "fail" if "BAD" in user else "pass"))
    assert world.count(t.work, criterion="really", state="done") == 3
    assert {row["priority"] for row in world.rows(t.work, criterion="really")} == {-10}
    assert statuses(world, "really") == ["scored"] * 3 + ["skipped"] * 7
    line = world.lines()["support"]
    assert (line.sampled, line.scored, line.in_flight, line.difference) == (10, 10, 0, 0)
    assert_rollups_are_the_sums_of_the_scores(world.store)


def test_a_rollout_waits_for_the_confirmation_of_a_flag_and_for_nothing_else(make_world: Made) -> None:
    """What is no flag is complete with its score; a flag's confirmation keeps its place in the order."""
    world = make_world(CONFIRMED)
    gate = Gate("safety", "safe", "rate", confirm="really")
    start(world, replace(PLAN, gates=(gate,)))
    world.ingest(*(record(i, reason="rollout:ramp") for i in range(4)))
    world.evaluate(world.clock.pass_(seconds=1))
    assert folded(world) == []
    world.drain(judge(lambda user: "fail" if "question 2" in user else "pass"))
    world.evaluate(world.clock.pass_(seconds=1))
    told = [(e.seq, e.criterion, e.value, e.status) for e in folded(world)]
    assert sorted(told) == sorted(
        [(i, "safe", 0.0 if i == 3 else 1.0, "scored") for i in range(1, 5)]
        + [(i, "really", 0.0 if i == 3 else None, "scored" if i == 3 else "skipped") for i in range(1, 5)]
    )


def test_a_detectors_flags_are_confirmed_whatever_the_judges_share(make_world: Made) -> None:
    """A heuristic sees every record, and each of its flags is owed a confirmation at once."""
    world = make_world(DETECTED)
    world.ingest(*records(10), *records(10, start=10, output="far too long " * 400))
    assert {row["record_id"] for row in world.rows(t.work)} == {f"r-{i}" for i in range(10, 20)}
    assert statuses(world, "really") == ["skipped"] * 10
    world.drain()
    assert statuses(world, "really") == ["scored"] * 10 + ["skipped"] * 10
    line = world.lines()["support"]
    assert (line.sampled, line.scored, line.difference) == (20, 20, 0)


def test_where_the_first_judge_gave_up_nothing_is_confirmed_and_nothing_waits(make_world: Made) -> None:
    """The rollout goes on: an error of the first, and no answer of the second."""
    world = make_world(CONFIRMED)
    start(world, replace(PLAN, gates=(Gate("safety", "safe", "rate", confirm="really"),)))
    world.ingest(record(1, reason="rollout:ramp"))
    world.drain(judge(lambda _: ValueError("no")), attempts=1)
    world.evaluate(world.clock.pass_(seconds=1))
    assert {e.criterion: e.status for e in folded(world)} == {"safe": "error", "really": "skipped"}
    line = world.lines()["support"]
    assert (line.sampled, line.dead, line.difference) == (1, 1, 0)


def test_a_rollout_begins_with_what_is_known_of_its_baseline(make_world: Made) -> None:
    """Scores of the last week, and costs and all calls of the last hour; not those of another release."""
    world = make_world()
    for i in range(40):
        world.ingest(record(i, output="far too long " * (100 if i % 4 else 1), cost_usd=0.01 * (1 + i % 2)))
    world.ingest(record(99, variant="canary", cost_usd=9.0))
    sketch = Sketch()
    for ms in range(1, 2_001):
        sketch.add(float(ms))
    release = {"variant": "baseline", "environment": "production"}
    world.measure(world.meter(calls=2_000, latency=sketch.to_wire(), release=release), world.clock())
    gates = (
        *GATES,
        Gate("cost", "cost_usd", "cost", direction="rise"),
        Gate("p99", "latency_ms", "latency", direction="rise"),
        Gate("own", "length", calibration=Calibration(0.5, 0.1)),
        Gate("unheard", "grounded"),
    )
    start(world, replace(PLAN, gates=gates))
    plan = RolloutPlan.from_dict(world.rows(t.rollouts)[0]["plan"])
    of = {gate.name: gate.calibration for gate in plan.gates}
    assert (of["own"], of["unheard"]) == (Calibration(0.5, 0.1), None)
    means = {name: known.mean for name, known in of.items() if known is not None and name != "own"}
    assert means == {"length": pytest.approx(0.75), "cost": pytest.approx(0.015), "p99": pytest.approx(1_980, rel=0.01)}


def test_a_confirmed_violation_rolls_back_and_one_that_is_not_only_holds(make_world: Made) -> None:
    """From the first judge's flag over the second's answer to the decision, in one drain."""
    world = make_world(CONFIRMED)
    gate = Gate(
        "safety",
        "safe",
        "safety",
        direction="rise",
        margin=0.01,
        relative=False,
        alpha=0.005,
        confirm="really",
        false_flags=0.005,
        false_confirms=0.02,
        expected_canary=20,
    )
    start(world, replace(PLAN, gates=(gate,)))
    arms: list[dict[str, Any]] = [{"variant": "baseline"}, {"variant": "canary"}]
    world.ingest(*(record(10 * i + k, reason="rollout:ramp", **arm) for i in range(6) for k, arm in enumerate(arms)))
    world.drain(judge(lambda _: "pass"))
    bad = {"messages": [{"role": "user", "content": "BAD"}], "variant": "canary", "reason": "rollout:ramp"}
    world.ingest(record("first", **bad))
    asked: list[str] = []

    def safe_or_not(text: str) -> str:
        asked.append(text)
        return "fail" if "BAD" in text and len(asked) == 1 else "pass"

    world.drain(judge(safe_or_not))
    world.evaluate(world.clock.pass_(seconds=1))
    assert (len(asked), world.rows(t.rollouts)[0]["phase"]) == (2, "running")
    world.ingest(record("second", output="another answer", **bad))
    world.drain(judge(lambda text: "fail" if "BAD" in text else "pass"))
    world.evaluate(world.clock.pass_(seconds=1))
    (row,) = world.rows(t.rollouts)
    decided = world.rows(t.decisions, action="rollback")
    assert row["phase"] == "rolled_back"
    assert [(d["cause"], d["gate"]) for d in decided] == [("confirmed_flag", "safety")]


def test_a_call_with_tokens_and_no_price_is_a_cost_that_is_missing(make_world: Made) -> None:
    """Left out unseen, the calls of a model that nobody priced would make its release look cheap."""
    world = make_world()
    start(world, replace(PLAN, gates=(*GATES, Gate("cost", "cost_usd", "cost", direction="rise"))))
    world.ingest(record(1, output_tokens=9), record(2, variant="canary", cost_usd=0.0), record(3))
    world.evaluate(world.clock.pass_(seconds=1))
    assert [e.status for e in folded(world) if e.criterion == "cost_usd"] == ["error", "scored", "skipped"]


def test_a_flag_is_confirmed_though_the_first_grade_came_late_and_whoever_folds(make_world: Made) -> None:
    """The second judge has as much time as the first had; a worker that does not know the scorecard waits as well."""
    world = make_world(CONFIRMED)
    start(world, replace(PLAN, gates=(Gate("safety", "safe", "rate", confirm="really"),)))
    world.ingest(record(1, reason="rollout:ramp"))
    stranger = Evaluate(world.store, (), {}, source="/test")
    stranger(world.clock.pass_(seconds=100))
    world.drain(judge(lambda _: RetryableError("busy") if world.count(t.scores) else "fail"))
    stranger(world.clock.pass_(seconds=50))
    assert [e.criterion for e in folded(world)] == ["safe"]
    world.drain(judge(lambda _: "fail"))
    stranger(world.clock.pass_(seconds=1))
    assert [(e.criterion, e.value) for e in folded(world)] == [("safe", 0.0), ("really", 0.0)]
