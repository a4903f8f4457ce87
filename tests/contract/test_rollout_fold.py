"""From stored evidence to decisions, weights and the log: one transaction, once, whoever folds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rollout_worlds import CARD, GATES, LONG, PLAN, both_arms, made, order, replayed, start
from sqlalchemy import update
from stages import World, at_once

from evalpipe.channels.stdout import Stdout
from evalpipe.controls import ControlError
from evalpipe.errors import ConfigError
from evalpipe.pipeline import start_rollout
from evalpipe.pipeline.maintain import Maintain, erase_user
from evalpipe.record import Release
from evalpipe.rollout.plan import Gate
from evalpipe.store import controls, rollout_log
from evalpipe.store import rollouts as stored
from evalpipe.store.queue import Queue
from evalpipe.store.tables import (
    control_changes,
    decisions,
    evidence,
    incidents,
    outbox,
    rollout_inputs,
    rollout_orders,
    rollouts,
)


@pytest.fixture
def world(migrated_url: str, tmp_path: Path) -> Iterator[World]:
    """Stages on a database of its own, with a channel."""
    made = World(migrated_url, tmp_path, card=CARD, channels={"out": Stdout(Stdout.Config())})
    yield made
    made.close()


def weights(world: World) -> dict[str, int]:
    """As hooks read them."""
    with world.store.read() as tx:
        (found,) = controls.document(tx, "desk", world.clock())["rollouts"]
    told: dict[str, int] = found["weights"]
    return told


def test_the_weights_follow_the_ramp_to_the_end(world: World) -> None:
    """Set at the start, raised with each advance, and 100 % at the end: in the transaction of the decision."""
    assert start(world).steered
    assert weights(world) == {"canary": 100, "baseline": 9_900}
    shares: list[int] = []
    n = 0
    while len(shares) < 3 and n < 3_000:
        world.clock.pass_(seconds=30)
        world.ingest(*both_arms(world, 50, first=n))
        n += 50
        world.evaluate(world.clock())
        if weights(world)["canary"] not in shares:
            shares.append(weights(world)["canary"])
    assert shares == [100, 1_000, 10_000]
    (row,) = world.rows(rollouts)
    assert (row["phase"], row["percent"], row["folded_seq"]) == ("complete", 100.0, row["evidence_seq"])
    assert [d[1] for d in made(world)][-1] == "advance"
    assert replayed(world) == made(world)
    assert {row["actor"] for row in world.rows(control_changes)} == {"evalpipe"}


def test_a_rollback_takes_the_weight_away_latched_and_opens_one_incident(world: World) -> None:
    """Decision, incident, outbox row and weights are one; a second evaluator at the same moment adds nothing."""
    published: list[tuple[str, datetime]] = []
    start(world)
    world.ingest(*both_arms(world, 200, first=0, output=LONG))
    stage = world.evaluation(publish=lambda service, now: published.append((service, now)))
    at_once(lambda: stage(world.clock()), lambda: stage(world.clock()))
    (row,) = world.rows(rollouts)
    assert (row["phase"], row["verified"], row["percent"]) == ("rolled_back", "waiting", 0.0)
    assert [d[1] for d in made(world)].count("rollback") == 1
    assert world.count(incidents) == 1
    assert {letter["type"] for letter in world.rows(outbox)} >= {"io.evalpipe.decision.rollback.v1"}
    assert weights(world) == {"canary": 0, "baseline": 10_000}
    assert {service for service, _ in published} == {"desk"}
    again = {"weights": {"canary": 1, "baseline": 9}, "environment": "production"}
    with world.store.begin() as tx, pytest.raises(ControlError, match="was rolled back"):
        controls.put(tx, "desk", "weights", "ramp", again, actor="eve", now=world.clock())
    assert replayed(world) == made(world)


def test_a_rolled_back_rollout_takes_no_evidence_and_its_release_starts_none(world: World) -> None:
    """The latch holds whatever arrives."""
    start(world)
    world.ingest(*both_arms(world, 200, first=0, output=LONG))
    world.evaluate(world.clock())
    before = world.count(evidence)
    world.ingest(*both_arms(world, 5, first=900))
    world.evaluate(world.clock.pass_(hours=1))
    assert (world.count(rollouts), world.count(evidence)) == (1, before)


def test_an_order_is_folded_once_and_becomes_a_decision_of_that_person(world: World) -> None:
    """An advance by hand moves the weights; the same order given twice moves them once."""
    start(world)
    assert order(world, "advance") == order(world, "advance")
    world.evaluate(world.clock.pass_(seconds=1))
    world.evaluate(world.clock.pass_(seconds=1))
    (decision,) = [d for d in world.rows(decisions) if d["actor"] == "ada"]
    assert (decision["action"], decision["cause"], decision["phase"]) == ("advance", "override", "running")
    assert decision["expires_at"] is not None
    assert weights(world)["canary"] == 1_000
    (waited,) = world.rows(rollout_orders)
    assert waited["folded_at"] is not None
    assert replayed(world) == made(world)


def test_a_person_resumes_what_was_rolled_back_and_the_latch_is_lifted(world: World) -> None:
    """By name and with a reason, in the log of the weights too."""
    start(world)
    order(world, "rollback")
    world.evaluate(world.clock.pass_(seconds=1))
    assert weights(world)["canary"] == 0
    with pytest.raises(ConfigError, match="only 'resume' leaves a rollback"):
        order(world, "advance")
    order(world, "resume")
    world.evaluate(world.clock.pass_(seconds=1))
    (row,) = world.rows(rollouts)
    assert (row["phase"], row["verified"]) == ("running", "")
    assert weights(world)["canary"] == 100
    resumed = [row for row in world.rows(control_changes) if row["action"] == "resume"]
    assert [(row["actor"], row["after"]["latched"]) for row in resumed] == [("ada", {})]
    assert replayed(world) == made(world)


def test_an_abort_gives_the_traffic_back_without_an_incident(world: World) -> None:
    """It ends the rollout, and nothing is latched."""
    start(world)
    order(world, "abort")
    world.evaluate(world.clock.pass_(seconds=1))
    (row,) = world.rows(rollouts)
    assert (row["phase"], weights(world)["canary"], world.count(incidents)) == ("aborted", 0, 0)


def test_a_gate_on_a_heuristic_does_not_wait_for_a_judge(world: World) -> None:
    """Each criterion is folded in its own order, up to the first score that is still owed."""
    gates = (*GATES, Gate("grounded", "grounded", min_canary=20))
    start(world, replace(PLAN, gates=gates))
    world.ingest(*both_arms(world, 200, first=0, output=LONG))
    world.evaluate(world.clock())
    (row,) = world.rows(rollouts)
    assert row["phase"] == "rolled_back"
    assert (row["folded"]["length"], row["folded"]["grounded"], row["folded_seq"]) == (400, 0, 0)
    assert replayed(world) == made(world)


def test_a_grade_that_is_too_late_closes_as_an_error_and_its_grade_changes_nothing(world: World) -> None:
    """So that one stuck call cannot hold a rollout; the log has it as it was folded."""
    start(world, replace(PLAN, gates=(Gate("grounded", "grounded", min_canary=20),)))
    world.ingest(*both_arms(world, 3, first=0))
    world.evaluate(world.clock.pass_(seconds=30))
    assert world.rows(rollouts)[0]["folded_seq"] == 0
    world.evaluate(world.clock.pass_(minutes=3))
    world.drain()
    world.evaluate(world.clock.pass_(seconds=1))
    with world.store.read() as tx:
        folded = [e.status.value for batch in rollout_log.inputs(tx, "r1") for e in batch.evidence]
    assert folded == ["error"] * 6
    assert replayed(world) == made(world)


def test_rollouts_with_nothing_new_are_left_alone(world: World) -> None:
    """No state is written and no batch is kept where nothing came, and time alone changed nothing."""
    start(world)
    world.ingest(*both_arms(world, 5, first=0))
    world.evaluate(world.clock.pass_(seconds=1))
    before = world.rows(rollouts), world.rows(rollout_inputs)
    world.evaluate(world.clock.pass_(seconds=1))
    assert (world.rows(rollouts), world.rows(rollout_inputs)) == before
    world.evaluate(world.clock.pass_(seconds=45))
    (row,), (was,) = world.rows(rollouts), before[0]
    assert {name for name in row if row[name] != was[name]} == {"due_at"}
    assert world.rows(rollout_inputs) == before[1]


def test_a_rollout_that_expires_gives_the_traffic_back(world: World) -> None:
    """By time alone, without an incident; and that is in its log."""
    start(world)
    world.evaluate(world.clock.pass_(days=15))
    (row,) = world.rows(rollouts)
    assert (row["phase"], weights(world)["canary"], world.count(incidents)) == ("expired", 0, 0)
    assert replayed(world) == made(world)


def test_starting_the_same_rollout_twice_changes_nothing(world: World) -> None:
    """By its id; another one of the same scorecard supersedes it, and orders to it are void."""
    assert start(world).new
    before = world.everything()
    assert not start(world, replace(PLAN, steps=())).new
    assert world.everything() == before
    order(world, "advance")
    again = start(world, replace(PLAN, rollout_id="r2"))
    assert again.superseded == ("r1",)
    world.evaluate(world.clock.pass_(seconds=1))
    assert {row["rollout_id"]: row["phase"] for row in world.rows(rollouts)} == {"r1": "superseded", "r2": "running"}
    assert all(row["folded_at"] for row in world.rows(rollout_orders))
    assert not made(world)


def test_two_rollouts_cannot_move_the_same_weights(world: World) -> None:
    """Each would undo what the other does."""
    start(world)
    with pytest.raises(ConfigError, match="are moved by rollout 'r1'"):
        start(world, replace(PLAN, rollout_id="r2"), scorecard="other")
    assert world.count(rollouts) == 1


def test_a_new_canary_may_start_where_the_last_one_was_rolled_back(world: World) -> None:
    """Who starts it lifts the latch, and is in the log of the weights."""
    start(world)
    order(world, "rollback")
    world.evaluate(world.clock.pass_(seconds=1))
    start(world, replace(PLAN, rollout_id="r2"))
    assert weights(world)["canary"] == 100


def test_the_first_release_that_is_seen_is_the_canary_where_nobody_named_one(world: World) -> None:
    """From then on another release of that variant is not compared with it, and starts nothing beside it."""
    start(world)
    one, other = both_arms(world, 2, first=0)[1::2]
    world.ingest(one)
    world.ingest(replace(other, release=Release("desk", "canary", prompt="v9")))
    (row,) = world.rows(rollouts)
    assert row["canary_release_id"] == one.release.release_id
    assert [entry["record_id"] for entry in world.rows(evidence)] == [one.record_id]


def test_what_a_rollout_keeps_names_no_user(world: World) -> None:
    """Evidence and log hold a unit that nobody can read, so erasing a user need not rewrite decisions."""
    start(world)
    world.ingest(*both_arms(world, 1, first=7))
    world.evaluate(world.clock.pass_(seconds=1))
    (row,) = world.rows(rollout_inputs)
    with world.store.read() as tx:
        units = {e.unit for batch in rollout_log.inputs(tx, "r1") for e in batch.evidence}
    assert units == {entry["unit"] for entry in world.rows(evidence)}
    assert not {"s7", "t7"} & units
    assert b"s7" not in row["body"]


def test_a_rollout_that_is_superseded_while_it_is_folded_stays_so(world: World) -> None:
    """Nothing of that fold may stand: who supersedes it comes between its reading and its writing."""
    start(world)
    with world.store.begin() as tx:
        row = stored.lock(tx, "r1")
        start_rollout.start(
            tx,
            replace(PLAN, rollout_id="r2"),
            scorecard="support",
            environment="production",
            actor="ada",
            reason="v3",
            now=world.clock(),
        )
        assert not stored.save(tx, row, {"phase": "running"}, world.clock())
    assert {row["rollout_id"]: row["phase"] for row in world.rows(rollouts)} == {"r1": "superseded", "r2": "running"}


def test_the_log_goes_with_its_rollouts_evidence_and_decisions_stay(world: World, redis_url: str) -> None:
    """Past the retention of a rollout that has ended; one that goes on keeps all it needs to be played again."""
    start(world)
    world.ingest(*both_arms(world, 200, first=0, output=LONG))
    world.evaluate(world.clock.pass_(seconds=1))
    start(world, replace(PLAN, rollout_id="r2", weights=""), scorecard="other")
    order(world, "freeze", rollout_id="r2", hours=24 * 90)
    world.evaluate(world.clock.pass_(seconds=1))
    assert {row["rollout_id"] for row in world.rows(rollout_inputs)} == {"r1", "r2"}
    queue = Queue(redis_url)
    Maintain(world.store, queue, timedelta(days=5))(world.clock.pass_(days=6))
    queue.close()
    assert {row["rollout_id"] for row in world.rows(rollout_inputs)} == {"r2"}
    assert {row["rollout_id"] for row in world.rows(rollout_orders)} == {"r2"}
    assert (world.count(evidence), len(made(world)) > 0) == (0, True)


def spoil(world: World, rollout_id: str = "r1", **values: Any) -> None:
    """Write into a rollout what this version of the code does not write."""
    with world.store.begin() as tx:
        tx.connection.execute(update(rollouts).where(rollouts.c.rollout_id == rollout_id).values(**values))


def test_a_state_of_another_version_is_made_again_from_the_log(world: World) -> None:
    """An upgrade in the middle of a rollout changes no decision; where it would, nothing is decided any more."""
    start(world)
    world.ingest(*both_arms(world, 100, first=0))
    world.evaluate(world.clock.pass_(minutes=2))
    (before,) = world.rows(rollouts)
    assert before["step"] == 1
    spoil(world, state={"version": 1})
    world.ingest(*both_arms(world, 100, first=200, output=LONG))
    world.evaluate(world.clock.pass_(seconds=30))
    (row,) = world.rows(rollouts)
    assert (row["phase"], row["state"]["version"]) == ("rolled_back", before["state"]["version"])
    assert replayed(world) == made(world)


def test_trouble_with_one_rollout_holds_no_other(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, its evidence waits, and it is named among those that nobody attends to."""
    start(world, replace(PLAN, rollout_id="r0", weights=""), scorecard="other")
    start(world, replace(PLAN, rollout_id="r1", weights=""), scorecard="third")
    start(world, replace(PLAN, rollout_id="r2"))
    spoil(world, "r0", state={"version": 2})
    spoil(world, "r1", state={"version": 1}, decision_seq=7)
    order(world, "advance", rollout_id="r0")
    world.ingest(*both_arms(world, 200, first=0, output=LONG))
    world.evaluate(world.clock.pass_(seconds=1))
    assert {row["rollout_id"]: row["phase"] for row in world.rows(rollouts)}["r2"] == "rolled_back"
    assert "no decisions on rollout r0" in caplog.text
    assert "not running after 7" in caplog.text
    with world.store.read() as tx:
        assert stored.unattended(tx, world.clock()) == []
        assert stored.unattended(tx, world.clock.pass_(minutes=2)) == ["r0", "r1"]


def test_the_canary_of_a_superseded_rollout_gets_no_more_traffic(world: World) -> None:
    """Also where the new one moves other weights, or none: nobody watches it any more."""
    start(world)
    assert start(world, replace(PLAN, rollout_id="r2", weights="other")).steered
    assert start(world, replace(PLAN, rollout_id="r3", weights="", steps=())).steered
    with world.store.read() as tx:
        found = controls.document(tx, "desk", world.clock())["rollouts"]
    assert {entry["name"]: entry["weights"]["canary"] for entry in found} == {"ramp": 0, "other": 0}


def test_of_two_people_who_start_on_the_same_weights_at_once_one_is_refused(world: World) -> None:
    """Each would undo what the other does, and neither saw the other when they began."""

    def begin(rollout_id: str, scorecard: str) -> str:
        try:
            return start(world, replace(PLAN, rollout_id=rollout_id), scorecard=scorecard).rollout_id
        except ConfigError as error:
            return str(error)

    told = at_once(lambda: begin("r1", "support"), lambda: begin("r2", "other"))
    assert world.count(rollouts) == 1
    assert sorted(("are moved by rollout" in said, said in {"r1", "r2"}) for said in told) == [
        (False, True),
        (True, False),
    ]


def test_a_late_record_of_the_canary_before_is_not_taken_for_the_new_one(world: World) -> None:
    """It was captured before the start: it says nothing about which release the canary is."""
    start(world)
    one, other = both_arms(world, 2, first=0)[1::2]
    late = {"captured_at": world.clock() - timedelta(seconds=5), "release": Release("desk", "canary", prompt="v1")}
    world.ingest(replace(one, **late), other)
    (row,) = world.rows(rollouts)
    assert row["canary_release_id"] == other.release.release_id
    assert [entry["record_id"] for entry in world.rows(evidence)] == [other.record_id]


def test_what_is_erased_while_a_rollout_runs_changes_no_decision(world: World) -> None:
    """Payloads and keys go; what was folded stands, and what waits is folded."""
    start(world)
    some = [replace(r, user_id="eve") for r in both_arms(world, 200, first=0, output=LONG)]
    world.ingest(*some[:100])
    world.evaluate(world.clock.pass_(seconds=1))
    world.ingest(*some[100:])
    with world.store.begin() as tx:
        assert erase_user(tx, "eve") == 400
    world.evaluate(world.clock.pass_(seconds=1))
    assert world.rows(rollouts)[0]["phase"] == "rolled_back"
    assert replayed(world) == made(world)


def test_a_rollout_whose_place_another_has_taken_is_not_begun_again(world: World) -> None:
    """Both would move the same weights, and compare the same traffic."""
    start(world)
    order(world, "rollback")
    world.evaluate(world.clock.pass_(seconds=1))
    start(world, replace(PLAN, rollout_id="r2"))
    with pytest.raises(ConfigError, match="rollout 'r2' has taken its place"):
        order(world, "resume")
