"""Orders of people: who may give which, and that an evaluation is asked for at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import redis
from celery import Celery
from rollout_worlds import CARD, order, start
from stages import World

from evalpipe.errors import ConfigError
from evalpipe.pipeline import start_rollout
from evalpipe.rollout.inputs import Override
from evalpipe.store import rollouts
from evalpipe.store import tables as t
from evalpipe.store.queue import Queue


@pytest.fixture
def world(migrated_url: str, tmp_path: Path) -> Iterator[World]:
    """Stages on a database of its own."""
    made = World(migrated_url, tmp_path, card=CARD)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("actor", "reason", "message"),
    [
        ("", "why", "an actor is needed"),
        ("evalpipe", "why", "a person must stand for this"),
        ("ada", "", "a reason is"),
    ],
)
def test_an_order_needs_a_person_and_a_reason(world: World, actor: str, reason: str, message: str) -> None:
    """Nobody orders anonymously, or in the name of evalpipe."""
    start(world)
    now = world.clock()
    override = Override("advance", actor, reason, now, now + timedelta(hours=1))
    with world.store.begin() as tx, pytest.raises(ConfigError, match=message):
        rollouts.order(tx, "r1", override)
    assert world.count(t.rollout_orders) == 0


def test_what_is_over_takes_no_orders(world: World) -> None:
    """And the refusal says what to do."""
    with pytest.raises(ConfigError, match="there is none"):
        order(world, "advance")
    start(world)
    order(world, "abort")
    world.evaluate(world.clock.pass_(seconds=1))
    with pytest.raises(ConfigError, match="is aborted and takes no 'advance'; it has ended: start a new one"):
        order(world, "advance")


def test_an_order_with_an_id_is_taken_once(world: World) -> None:
    """However often a client that got no answer repeats it, and whenever."""
    start(world)
    override = Override("freeze", "ada", "lunch", world.clock(), world.clock() + timedelta(hours=1))
    for _ in range(2):
        with world.store.begin() as tx:
            assert rollouts.order(tx, "r1", override, order_id="mine") == "mine"
        world.evaluate(world.clock.pass_(seconds=1))
    assert (world.count(t.rollout_orders), world.count(t.decisions, actor="ada")) == (1, 1)


def test_an_evaluation_is_asked_for_once_in_celerys_own_form(redis_url: str) -> None:
    """As the worker would ask; a second one waits for the first to begin, and a Redis that is gone is no error."""
    app = Celery("evalpipe", broker=redis_url)
    app.conf.broker_transport_options = {"body_encoding": "utf-8"}
    app.send_task("evalpipe.evaluate", queue="evalpipe.evaluate")
    app.close()
    queue = Queue(redis_url)
    with redis.Redis.from_url(redis_url) as client:
        theirs = json.loads(client.rpop("evalpipe.evaluate"))
        start_rollout.ask(queue)
        start_rollout.ask(queue)
        (ours,) = map(json.loads, client.lrange("evalpipe.evaluate", 0, -1))
    queue.close()
    assert json.loads(ours["body"]) == json.loads(theirs["body"])
    assert set(theirs["headers"]) == set(ours["headers"])
    gone = Queue("redis://localhost:1/0")
    start_rollout.ask(gone)
    gone.close()
