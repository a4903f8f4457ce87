"""What must not bring judging down, cost what no cap knows of, or be lost: one bad record, a late judge, a failed commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stages import World, record, records

from evalpipe.store import judge_states
from evalpipe.store.judge_states import JudgeState
from evalpipe.store.tables import judge_calls, scores, work

CARD = """
name: support
match: {{service: desk}}
criteria:
  - {{name: c0, judge: {{kind: boolean, rubric: "Is it right?", {judge}}}}}
"""
WAF = """model: 'fake:waf?rules={"EVIL":"403"}&acts=pass'"""


@pytest.fixture
def make_world(migrated_url: str, tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Makes a world whose only criterion is judged so."""
    made: list[World] = []

    def make(judge: str, **options: Any) -> World:
        made.append(World(migrated_url, tmp_path, card=CARD.format(judge=judge), **options))
        return made[-1]

    yield make
    for world in made:
        world.close()


def states(world: World) -> list[JudgeState]:
    """Of the judges that ever had one."""
    with world.store.read() as tx:
        return list(judge_states.read(tx).values())


def calls(world: World, **where: str) -> int:
    """How many calls were made."""
    return sum(row["n"] for row in world.rows(judge_calls, **where))


def work_of(world: World, record_id: str) -> dict[str, Any]:
    """The only work of a record."""
    (row,) = world.rows(work, record_id=record_id)
    return row


def test_a_record_that_a_gateway_forbids_stops_nobody(make_world: Callable[..., World]) -> None:
    """It is tried as often as any work, and the judge grades all others."""
    world = make_world(WAF)
    world.ingest(record(0, output="EVIL"))
    stage = world.judge_stage(concurrency=4)
    for minute in range(10):
        world.ingest(*records(4, start=1 + 4 * minute))
        world.drain_with(stage)
        world.clock.pass_(seconds=60)
    assert world.count(work, state="done") == 40
    poison = work_of(world, "r-0")
    assert (poison["state"], poison["attempts"]) == ("dead", 3)
    assert "HTTP 403" in poison["reason"]
    assert calls(world, outcome="forbidden") == 3
    assert {state.state for state in states(world)} == {"closed"}


def test_a_forbidden_record_alone_stops_its_judge_only_until_another_is_answered(
    make_world: Callable[..., World],
) -> None:
    """It cannot be told from a key that may not use the model until then: it waits without losing an attempt."""
    world = make_world(WAF)
    world.ingest(record(0, output="EVIL"))
    stage = world.judge_stage(concurrency=4)
    for _ in range(6):
        world.drain_with(stage)
        world.clock.pass_(minutes=5)
    assert [(state.state, state.cause) for state in states(world)] == [("stopped", "forbidden")]
    assert (work_of(world, "r-0")["state"], work_of(world, "r-0")["attempts"]) == ("pending", 0)
    for minute in range(60):
        if minute % 20 == 0:
            world.ingest(*records(3, start=1 + minute))
        world.drain_with(stage)
        world.clock.pass_(minutes=5)
    assert world.count(work, state="done") == 9
    assert work_of(world, "r-0")["state"] == "dead"
    assert [state.state for state in states(world)] == ["closed"]


def test_a_key_that_may_not_use_the_model_costs_no_attempt(make_world: Callable[..., World]) -> None:
    """Nothing was ever answered: the judge stops at its first call, and the works wait."""
    world = make_world("model: 'fake:shut?acts=403'")
    world.ingest(*records(20))
    stage = world.judge_stage(concurrency=1)
    for _ in range(3):
        world.drain_with(stage)
        world.clock.pass_(seconds=60)
    assert calls(world) == 1
    assert [(state.state, state.cause) for state in states(world)] == [("stopped", "forbidden")]
    assert {(row["state"], row["attempts"]) for row in world.rows(work)} == {("pending", 0)}
    assert world.rows(scores) == []


def test_a_gateway_that_refuses_everything_ends_few_works(make_world: Callable[..., World]) -> None:
    """Each refusal is the end of a work: the judge is left alone after eight in a row."""
    world = make_world("model: 'fake:mad?acts=400'")
    world.ingest(*records(100))
    world.drain(concurrency=1)
    assert [(state.state, state.cause) for state in states(world)] == [("open", "request")]
    assert calls(world) < 60
    assert world.count(work, state="pending") == 100 - calls(world)
