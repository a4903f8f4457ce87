"""What the meters count of a rollout: every call of both arms, once; and whether a rollback took effect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from stages import World, at_once

from evalpipe.channels.stdout import Stdout
from evalpipe.pipeline import start_rollout
from evalpipe.record import Release
from evalpipe.rollout.inputs import MeterReading, Override
from evalpipe.rollout.plan import Gate, RolloutPlan, Shadow, Step
from evalpipe.sketch import Sketch
from evalpipe.store import rollout_log, rollouts
from evalpipe.store import tables as t

CARD = """
name: support
match: {service: desk}
criteria:
  - {name: length, heuristic: length, params: {max: 200}}
"""
P99 = Gate("p99", "latency_ms", "latency", margin=0.2, direction="rise")
PLAN = RolloutPlan("r1", "desk", "baseline", "canary", (P99,), (Step(50),))
BASELINE, CANARY = Release("desk", "baseline"), Release("desk", "canary", prompt="v2")


@pytest.fixture
def world(migrated_url: str, tmp_path: Path) -> Iterator[World]:
    """Stages on a database of its own, with a channel."""
    made = World(migrated_url, tmp_path, card=CARD, channels={"out": Stdout(Stdout.Config())})
    yield made
    made.close()


def start(world: World, plan: RolloutPlan = PLAN, **options: Any) -> None:
    """Start a rollout of the canary release."""
    given = {"scorecard": "support", "environment": "production", "canary_release_id": CANARY.release_id, **options}
    with world.store.begin() as tx:
        start_rollout.start(tx, plan, actor="ada", reason="v2", now=world.clock(), **given)


def meter(world: World, sequence: int, *rows: tuple[Release, list[float]], **fields: Any) -> str:
    """A meter message: the latencies of all calls so far, by release."""
    body = orjson.loads(world.meter(sequence=sequence, at=world.clock()))
    (row,) = body["rows"]
    body["service"], body["rows"] = "desk", []
    for release, latencies in rows:
        sketch = Sketch()
        for ms in latencies:
            sketch.add(ms)
        told = {name: getattr(release, name) for name in Release.__slots__ if name != "service"}
        body["rows"].append({**row, "release": told, "calls": len(latencies), "latency": sketch.to_wire(), **fields})
    return orjson.dumps(body).decode()


def folded(world: World) -> list[MeterReading]:
    """The readings in the rollout's log."""
    with world.store.read() as tx:
        return [reading for batch in rollout_log.inputs(tx, "r1") for reading in batch.meter]


def test_every_call_of_both_arms_is_folded_once(world: World) -> None:
    """Counters are cumulative and messages come twice: what is folded is their growth, merged by arm."""
    start(world)
    first = meter(world, 1, (BASELINE, [100.0] * 5), (CANARY, [200.0] * 2))
    second = meter(world, 2, (BASELINE, [100.0] * 5 + [120.0]), (CANARY, [200.0] * 4))
    for message in (first, first, second, first, second):
        world.measure(message, world.clock())
    world.evaluate(world.clock.pass_(seconds=1))
    world.measure(second, world.clock())
    world.evaluate(world.clock.pass_(seconds=1))
    calls = {reading.arm: (reading.calls, sum(reading.latency.values())) for reading in folded(world)}
    assert calls == {"baseline": (6, 6), "canary": (4, 4)}
    assert len(folded(world)) == 2
    assert world.count(t.rollout_readings) == 0


def test_messages_taken_in_at_the_same_moment_count_once(world: World) -> None:
    """Two workers with the same message, and an evaluator beside them."""
    start(world)
    message = meter(world, 1, (BASELINE, [100.0] * 5), (CANARY, [200.0] * 2))
    now = world.clock()
    at_once(*[lambda: world.measure(message, now)] * 3, lambda: world.evaluate(now))
    world.evaluate(world.clock.pass_(seconds=1))
    assert {r.arm: r.calls for r in folded(world)} == {"baseline": 5, "canary": 2}
    assert len(folded(world)) == 2


def test_only_what_the_rollout_compares_counts(world: World) -> None:
    """Not other releases of the canary's name, other environments, or features that do not get the canary."""
    start(world, features=["chat"])
    other = Release("desk", "canary", prompt="v1")
    elsewhere = Release("desk", "baseline", environment="staging")
    world.measure(meter(world, 1, (other, [1.0]), (elsewhere, [1.0]), (CANARY, [2.0]), feature="chat"), world.clock())
    world.measure(meter(world, 2, (BASELINE, [3.0]), feature="search"), world.clock())
    world.evaluate(world.clock.pass_(seconds=1))
    assert [(reading.arm, reading.calls) for reading in folded(world)] == [("canary", 1)]


def test_while_shadowing_the_shadows_are_the_canary(world: World) -> None:
    """No user gets the canary then; what runs beside the served calls is compared with them."""
    start(world, replace(PLAN, shadow=Shadow(), weights="ramp"))
    shadow = Release("desk", "shadow", prompt="v2")
    world.measure(meter(world, 1, (BASELINE, [1.0] * 3), (shadow, [1.0] * 2), (CANARY, [5.0])), world.clock())
    world.evaluate(world.clock.pass_(seconds=1))
    assert {reading.arm: reading.calls for reading in folded(world)} == {"baseline": 3, "canary": 2}


def test_a_slower_tail_rolls_back_by_the_meters_alone(world: World) -> None:
    """No record was captured; 100 % of the calls tell."""
    start(world)
    latencies = [float(100 + i % 100) for i in range(20_000)]
    slower = [2 * ms for ms in latencies]
    for sequence in range(1, 6):
        n = 4_000 * sequence
        world.clock.pass_(seconds=3)
        world.measure(meter(world, sequence, (BASELINE, latencies[:n]), (CANARY, slower[:n])), world.clock())
        world.evaluate(world.clock())
    (row,) = world.rows(t.rollouts)
    assert (row["phase"], row["evidence_seq"]) == ("rolled_back", 0)


def rolled_back(world: World, **changes: Any) -> None:
    """A rollout whose canary was called 300 times in the minutes before a person rolled it back."""
    start(world, replace(PLAN, **changes))
    world.clock.pass_(minutes=2)
    world.measure(meter(world, 1, (BASELINE, [1.0] * 300), (CANARY, [1.0] * 300)), world.clock())
    now = world.clock.pass_(seconds=1)
    with world.store.begin() as tx:
        rollouts.order(tx, "r1", Override("rollback", "ada", "it is bad", now, now + timedelta(hours=1)))
    world.evaluate(now)


def calls(world: World, sequence: int, baseline: int, canary: int) -> None:
    """What a hook has counted by now, and what follows."""
    world.measure(meter(world, sequence, (BASELINE, [1.0] * baseline), (CANARY, [1.0] * canary)), world.clock())
    world.evaluate(world.clock())


def told(world: World) -> list[str]:
    """Types of the notifications about the rollback itself."""
    return sorted(row["type"].split(".")[-2] for row in world.rows(t.outbox) if ".evalpipe.rollback." in row["type"])


def test_a_rollback_is_verified_once_the_canarys_calls_have_ended(world: World) -> None:
    """Soon after its last call where calls came fast; told once, and a late evaluation tells nothing more."""
    rolled_back(world)
    for sequence in range(2, 8):
        world.clock.pass_(seconds=3)
        calls(world, sequence, 300 + sequence, 300 + min(sequence, 3))
    (row,) = world.rows(t.rollouts)
    assert (row["verified"], row["verified_at"]) == ("verified", world.clock())
    world.evaluate(world.clock.pass_(minutes=9))
    assert (told(world), world.count(t.incidents)) == (["verified"], 1)


def test_a_rollback_that_nobody_obeys_is_an_incident_until_somebody_does(world: World) -> None:
    """Calls that began after they had to have ended: SEV1, told once; resolved when they stop."""
    rolled_back(world)
    for sequence in range(2, 13):
        world.clock.pass_(seconds=15)
        calls(world, sequence, 300, 300 + sequence)
    (row,) = world.rows(t.rollouts)
    assert row["verified"] == "ineffective"
    opened = [row for row in world.rows(t.incidents) if "ineffective" in row["title"]]
    assert [(row["severity"], row["resolved_at"]) for row in opened] == [("SEV1", None)]
    for sequence in range(13, 17):
        world.clock.pass_(seconds=5)
        calls(world, sequence, 300 + sequence, 312)
    (row,) = world.rows(t.rollouts)
    (incident,) = [row for row in world.rows(t.incidents) if "ineffective" in row["title"]]
    assert (row["verified"], incident["resolved_at"]) == ("verified", row["verified_at"])
    assert told(world) == ["ineffective", "verified"]


def test_rare_calls_are_waited_for_and_silent_meters_prove_nothing(world: World) -> None:
    """A canary that was called once in a minute is not gone after ten seconds; and no report is no proof."""
    start(world)
    world.clock.pass_(minutes=2)
    world.measure(meter(world, 1, (BASELINE, [1.0]), (CANARY, [1.0])), world.clock())
    now = world.clock.pass_(seconds=1)
    with world.store.begin() as tx:
        rollouts.order(tx, "r1", Override("rollback", "ada", "it is bad", now, now + timedelta(hours=1)))
    world.evaluate(now)
    world.clock.pass_(seconds=30)
    calls(world, 2, 5, 1)
    assert world.rows(t.rollouts)[0]["verified"] == "waiting"
    world.clock.pass_(seconds=110)
    calls(world, 3, 9, 1)
    assert world.rows(t.rollouts)[0]["verified"] == "verified"


def test_where_no_meter_reports_nobody_can_tell(world: World) -> None:
    """Neither verified nor ineffective, and not looked at forever."""
    rolled_back(world)
    world.evaluate(world.clock.pass_(minutes=5))
    assert world.rows(t.rollouts)[0]["verified"] == "waiting"
    world.evaluate(world.clock.pass_(minutes=10))
    assert (world.rows(t.rollouts)[0]["verified"], told(world)) == ("unknown", [])


def test_shadows_after_a_rollback_are_nobodys_harm(world: World) -> None:
    """They run beside served calls, under a variant of their own."""
    rolled_back(world)
    shadow = Release("desk", "shadow", prompt="v2")
    for sequence in range(2, 9):
        world.clock.pass_(seconds=3)
        rows = (BASELINE, [1.0] * (300 + sequence)), (CANARY, [1.0] * 300), (shadow, [1.0] * sequence)
        world.measure(meter(world, sequence, *rows), world.clock())
        world.evaluate(world.clock())
    assert world.rows(t.rollouts)[0]["verified"] == "verified"


def test_meters_of_another_environment_say_nothing_of_a_rollback(world: World) -> None:
    """Those that called the canary may be cut off, and go on."""
    rolled_back(world)
    staging = Release("desk", "baseline", environment="staging")
    for sequence in range(1, 8):
        body = orjson.loads(meter(world, sequence, (staging, [1.0] * sequence)))
        world.measure(orjson.dumps({**body, "process": "elsewhere"}).decode(), world.clock.pass_(seconds=3))
        world.evaluate(world.clock())
    assert world.rows(t.rollouts)[0]["verified"] == "waiting"


def test_a_canary_that_is_started_again_is_not_one_that_a_rollback_missed(world: World) -> None:
    """Its calls are wanted again, so nobody can tell what became of the rollback before."""
    rolled_back(world)
    start(world, replace(PLAN, rollout_id="r2"))
    for sequence in range(2, 13):
        world.clock.pass_(seconds=15)
        calls(world, sequence, 300, 300 + sequence)
    assert {row["rollout_id"]: row["verified"] for row in world.rows(t.rollouts)} == {"r1": "unknown", "r2": ""}
    assert not [row for row in world.rows(t.incidents) if "ineffective" in row["title"]]


def test_a_message_says_whether_a_rollout_has_new_calls_to_compare(world: World) -> None:
    """Then an evaluation is due at once."""
    message = meter(world, 1, (BASELINE, [100.0]))
    assert not world.measure(message, world.clock()).compared
    start(world)
    assert [world.measure(m, world.clock()).compared for m in (message, meter(world, 2, (BASELINE, [1.0] * 2)))] == [
        False,
        True,
    ]
