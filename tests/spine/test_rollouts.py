"""Rollouts under faults and end to end: no decision is lost, none is made twice, and their order stays."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from rollout_worlds import CARD, LONG, both_arms, evaluate_until, made, replayed, start
from services import Postgres
from spine_fleet import PATIENCE_S, Fleet, wait_until
from stages import World

from evalpipe.channels.stdout import Stdout
from evalpipe.pipeline import start_rollout
from evalpipe.receiver import Receiver
from evalpipe.rollout.inputs import Override
from evalpipe.rollout.plan import Gate, RolloutPlan, Step
from evalpipe.signing import new_secret
from evalpipe.store import controls, migrate, rollouts
from evalpipe.store import outbox as store_outbox
from evalpipe.store import tables as t
from evalpipe.store.sql import Store
from evalpipe.wiring import now

_FORKS = multiprocessing.get_context("forkserver")
INSIDE = (
    "rollout_log.append",
    "rollouts.save",
    "rollouts.add_decision",
    "outbox.post",
    "alerting.open_incident",
    "controls.roll_back",
)
"""Steps between the decision and its commit."""


def bad_canary(url: str, folder: Path) -> World:
    """A rollout whose canary is about to be rolled back."""
    store = Store(url)
    migrate.upgrade(store)
    store.close()
    world = World(url, folder, card=CARD, channels={"out": Stdout(Stdout.Config())})
    start(world)
    world.ingest(*both_arms(world, 200, first=0, output=LONG))
    world.clock.pass_(seconds=1)
    return world


def assert_rolled_back_once(world: World) -> None:
    """Decision, incident, letter, log and weights are there, and each once."""
    assert [action for _, action, _ in made(world)].count("rollback") == 1
    assert [seq for seq, _, _ in made(world)] == list(range(1, len(made(world)) + 1))
    assert replayed(world) == made(world)
    assert (world.count(t.incidents), world.count(t.outbox)) == (1, len(made(world)))
    (control,) = world.rows(t.controls, kind="weights")
    assert control["body"]["weights"] == {"canary": 0, "baseline": 10_000}
    assert set(control["latched"]) == {"canary"}


@pytest.mark.parametrize("database", ["sqlite_url", "postgres_url"])
def test_an_evaluator_killed_at_any_step_loses_no_decision_and_makes_none_twice(
    request: pytest.FixtureRequest, tmp_path: Path, database: str
) -> None:
    """Before the commit nothing has happened; after it all of it has, and the next one only publishes."""
    url: str = request.getfixturevalue(database)
    world = bad_canary(url, tmp_path)
    for where in (*INSIDE, "publish"):
        process = _FORKS.Process(target=evaluate_until, args=(url, str(tmp_path), where))
        process.start()
        process.join(100)
        assert process.exitcode == -signal.SIGKILL, where
        assert bool(made(world)) == (where == "publish"), where
    assert_rolled_back_once(world)
    before = world.everything("alerts", "evaluations", "growths")
    world.evaluate(world.clock.pass_(seconds=1))
    assert world.everything("alerts", "evaluations", "growths") == before
    world.close()


def test_a_database_that_fails_over_in_the_middle_of_a_decision_is_waited_for(
    postgres: Postgres, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is killed between the decision and its commit: it is made again, and it is the same one."""
    world = bad_canary(postgres_url, tmp_path)
    post, killed = store_outbox.post, threading.Event()

    def lose_the_server(*arguments: Any) -> None:
        if not killed.is_set():
            killed.set()
            postgres.kill()
            threading.Timer(1.0, postgres.start).start()
        post(*arguments)

    monkeypatch.setattr(store_outbox, "post", lose_the_server)
    world.evaluate(world.clock())
    assert killed.is_set()
    assert_rolled_back_once(world)
    world.close()


def test_a_broken_canary_loses_its_traffic_within_seconds_and_the_meters_prove_it(
    make_fleet: Callable[..., Fleet], redis_url: str, sqlite_url: str
) -> None:
    """A hook asks for its arms, a person starts the rollout: weights, rollback, no more canary, verified."""
    secret = new_secret()
    with Receiver(secrets=secret) as consumer:
        fleet = make_fleet(redis_url, sqlite_url, EVALPIPE_WEBHOOK_URL=consumer.url, EVALPIPE_WEBHOOK_SECRET=secret)
        gates = (Gate("grounded", "grounded", min_canary=20),)
        steps = (Step(50, bake=timedelta(hours=1)),)
        plan = RolloutPlan("r1", "support-desk", "baseline", "canary", gates, steps, weights="ramp")
        with fleet.store.begin() as tx:
            start_rollout.start(
                tx, plan, scorecard="support", environment="production", actor="ada", reason="v2", now=now()
            )
        fleet.start_all()
        hook = fleet.hook()
        assert wait_until(lambda: any(hook.variant("ramp", f"u{i}") == "canary" for i in range(20)))
        served: list[tuple[float, str]] = []
        told_at, turn = 0.0, 0
        deadline = time.monotonic() + PATIENCE_S
        # Until a hundred in a row got the baseline: of half of the users that is no chance.
        while time.monotonic() < deadline and not (told_at and {arm for _, arm in served[-100:]} == {"baseline"}):
            turn += 1
            arm = hook.variant("ramp", f"u{turn}")
            served.append((time.monotonic(), arm))
            with hook.call(feature="chat", session_id=f"u{turn}", release={"variant": arm}) as call:
                call.messages = [{"role": "user", "content": "question"}]
                call.output = "A REFUND is on its way" if arm == "canary" else "Within 30 days."
            if not told_at and any(e["type"].endswith("rollback.v1") for e in consumer.events):
                told_at = time.monotonic()
            time.sleep(0.02)
        last = max(at for at, arm in served if arm == "canary")
        assert told_at, "no rollback"
        assert last < told_at + 10.0  # two on a machine that has the time

        def verified() -> bool:
            with hook.call(feature="chat", session_id="x", release={"variant": "baseline"}) as call:
                call.output = "Within 30 days."
            return any(e["type"] == "io.evalpipe.rollback.verified.v1" for e in consumer.events)

        assert wait_until(verified)
        with fleet.store.read() as tx:
            row = rollouts.get(tx, "r1")
            assert row is not None
            assert (row["phase"], row["verified"]) == ("rolled_back", "verified")
            (control,) = controls.entries(tx, "support-desk", "weights")
            assert set(control.latched) == {"canary"}
        at = now()
        with fleet.store.begin() as tx:
            rollouts.order(tx, "r1", Override("resume", "ada", "mended", at, at + timedelta(hours=1)))
        start_rollout.ask(fleet.queue)
        assert wait_until(lambda: any(hook.variant("ramp", f"u{i}") == "canary" for i in range(20)))
