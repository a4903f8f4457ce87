"""A rollout that a person starts on a ``World``, its traffic, its orders, and its log played again."""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from stages import World, record

from evalpipe.channels.stdout import Stdout
from evalpipe.pipeline import start_rollout
from evalpipe.record import Record
from evalpipe.rollout.fold import replay
from evalpipe.rollout.inputs import Override, OverrideAction
from evalpipe.rollout.plan import Gate, RolloutPlan, Step
from evalpipe.store import rollout_log, rollouts
from evalpipe.store import tables as t

CARD = """
name: support
match: {service: desk}
criteria:
  - {name: length, heuristic: length, params: {max: 200}}
  - {name: grounded, judge: {kind: boolean, rubric: "Is it grounded?"}}
"""
LONG = "far too long " * 100
GATES = (Gate("length", "length", min_canary=20),)
RAMP = (Step(1, bake=timedelta(minutes=1), min_canary=10), Step(10, bake=timedelta(minutes=1), min_canary=10))
PLAN = RolloutPlan("r1", "desk", "baseline", "canary", GATES, RAMP, weights="ramp")


def start(world: World, plan: RolloutPlan = PLAN, **options: Any) -> start_rollout.Started:
    """Start a rollout as a person does."""
    given = {"scorecard": "support", "environment": "production", "actor": "ada", "reason": "v2", **options}
    with world.store.begin() as tx:
        return start_rollout.start(tx, plan, now=world.clock(), **given)


def both_arms(world: World, n: int, *, first: int, output: str = "fine") -> list[Record]:
    """So many records of each arm, one after the other; ``output`` is the canary's."""
    found = []
    for i in range(first, first + n):
        at = world.clock() + timedelta(milliseconds=i)
        fields: dict[str, Any] = {"captured_at": at, "reason": "rollout:ramp", "session_id": f"s{i}"}
        found.append(record(f"b{i}", **fields))
        found.append(record(f"c{i}", variant="canary", output=output, **{**fields, "session_id": f"t{i}"}))
    return found


def order(world: World, action: OverrideAction, *, hours: float = 1, rollout_id: str = "r1") -> str:
    """What a person orders."""
    now = world.clock()
    with world.store.begin() as tx:
        override = Override(action, "ada", f"{action} please", now, now + timedelta(hours=hours))
        return rollouts.order(tx, rollout_id, override)


def replayed(world: World, rollout_id: str = "r1") -> Sequence[tuple[int, str, str]]:
    """Every decision made again from the log, with its hash."""
    (row,) = world.rows(t.rollouts, rollout_id=rollout_id)
    with world.store.read() as tx:
        batches = list(rollout_log.inputs(tx, rollout_id))
    state, made = replay(RolloutPlan.from_dict(row["plan"]), row["started_at"], batches)
    assert state.to_state(RolloutPlan.from_dict(row["plan"])) == row["state"]
    return [(d.seq, d.action, d.inputs_hash) for d in made]


def made(world: World, rollout_id: str = "r1") -> Sequence[tuple[int, str, str]]:
    """The decisions in the database."""
    rows = sorted(world.rows(t.decisions, rollout_id=rollout_id), key=lambda row: row["seq"])
    return [(row["seq"], row["action"], row["inputs_hash"]) for row in rows]


def evaluate_until(url: str, folder: str, where: str) -> None:
    """Evaluate in this process, which dies as by ``kill -9`` at ``where``: ``publish``, or a function of the store."""

    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    world = World(url, Path(folder), card=CARD, channels={"out": Stdout(Stdout.Config())})
    world.clock.pass_(seconds=1)
    if where != "publish":
        module, _, name = where.rpartition(".")
        setattr(importlib.import_module(f"evalpipe.store.{module}"), name, die)
    world.evaluation(publish=die)(world.clock())
