"""Judging where it could go wrong unseen: calls that are split, paid twice, postponed for ever, or given up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import timedelta

import pytest
from judged_worlds import boolean, judged
from sqlalchemy import update
from stages import AT, World, record, records

from evalpipe.errors import ConfigError
from evalpipe.judges.base import Judge, Prompt
from evalpipe.judges.desk import Call, Desk
from evalpipe.pipeline.budget import Budget
from evalpipe.pipeline.judging import Tasks
from evalpipe.pipeline.redrive import redrive
from evalpipe.scorers.grader import Grader
from evalpipe.store import judge_states, works
from evalpipe.store.queue import Queue
from evalpipe.store.tables import grades, judge_calls, work

PASS = "fake:good?acts=pass"
STOPPED = "fake:stopped?acts=pass"


def calls(world: World, judge: str = "") -> int:
    """How many calls were made, of one judge or of all."""
    return sum(row["n"] for row in world.rows(judge_calls) if judge in row["judge"])


def stop(world: World) -> None:
    """Nobody is to ask the judge ``STOPPED``."""
    with world.store.begin() as tx:
        judge_states.stop(tx, version(world), "under repair", "me", world.clock())


def resume(world: World) -> None:
    """It may be asked again."""
    with world.store.begin() as tx:
        judge_states.resume(tx, version(world), "mended", "me", world.clock())


def version(world: World) -> str:
    """The version of the judge ``STOPPED``."""
    judge = world.open_judge(STOPPED)
    assert judge is not None
    return judge.version


def test_a_claim_that_ends_within_a_shared_call_takes_the_rest_of_it(make_world: Callable[..., World]) -> None:
    """Whatever the order of the records: three criteria of nine records are nine calls."""
    together = [boolean(model=f'"{PASS}"', together="x").replace("right", word) for word in ("right", "kind", "short")]
    world = make_world(*together)
    # The last in the order of their ids was captured first.
    world.ingest(*(record(n, captured_at=AT + timedelta(seconds=60 - n), output=f"answer {n}") for n in range(1, 10)))
    world.drain(concurrency=4)
    assert len(judged(world)) == 27
    assert calls(world) == 9


def test_a_vote_that_is_no_grade_is_final_also_where_another_judge_keeps_the_work(
    make_world: Callable[..., World],
) -> None:
    """It was asked for twice, in vain; that the panel waits for somebody else is no reason to pay for it again."""
    world = make_world(
        boolean(panel=f'["fake:talks?acts=garbage", "{PASS}", "{PASS}&usd_per_mtok=0", "fake:late?acts=503,503,pass"]')
    )
    world.ingest(record(1))
    stage = world.judge_stage(attempts=3)
    for _ in range(4):
        world.drain_with(stage)
        world.clock.pass_(seconds=200)
    (score,) = judged(world)
    assert (score["status"], score["value"]) == ("scored", 1.0)
    assert calls(world, "fake:talks") == 2
    assert calls(world, "fake:late") == 3
    found = sorted((row["judge_version"].partition("/")[0], row["vote"], row["status"]) for row in world.rows(grades))
    assert [row[1:] for row in found] == [(0, "scored"), (1, "scored"), (0, "scored"), (0, "error")]


def test_a_record_that_owes_one_of_two_criteria_is_not_asked_about_twice(make_world: Callable[..., World]) -> None:
    """Equal questions are paid for once, also where a call is shared and only a part of it is owed."""
    world = make_world(
        boolean(model=f'"{PASS}"', together="x"),
        boolean(model=f'"{PASS}"', together="x", needs="[context]"),
    )
    stage = world.judge_stage()
    same = {"messages": [{"role": "user", "content": "refund?"}], "output": "the same"}
    for n in (1, 2):
        world.ingest(record(n, **same))
        world.drain_with(stage)
    assert calls(world) == 1
    assert [(row["criterion"], row["status"]) for row in judged(world)] == [("c0", "scored"), ("c1", "skipped")] * 2


def test_work_of_a_stopped_judge_is_put_off_at_once_and_nothing_starves_behind_it(
    make_world: Callable[..., World],
) -> None:
    """More urgent, and so first in every claim: one look is enough for all of it, and for as long as it is stopped."""
    world = make_world(boolean(model=f'"{STOPPED}"', priority="0"), boolean(model=f'"{PASS}"'))
    stop(world)
    world.ingest(*records(60))
    before = {row["work_id"]: row["fence"] for row in world.rows(work)}
    world.drain(concurrency=8)
    touched = [row for row in world.rows(work, criterion="c0") if row["fence"] != before[row["work_id"]]]
    assert len(touched) == 8
    waiting = world.rows(work, criterion="c0")
    assert {(row["state"], row["attempts"], row["due_at"]) for row in waiting} == {
        ("pending", 0, world.clock() + timedelta(seconds=15))
    }
    assert all("under repair" in row["reason"] for row in waiting)
    assert world.count(work, criterion="c1", state="done") == 60
    resume(world)
    world.clock.pass_(seconds=15)
    world.drain(concurrency=8)
    assert world.count(work, state="done") == 120


def test_what_is_put_off_keeps_calls_whole(make_world: Callable[..., World]) -> None:
    """Criteria that share a call come back together."""
    both = [boolean(model=f'"{STOPPED}"', together="x").replace("right", word) for word in ("right", "kind")]
    world = make_world(*both)
    stop(world)
    world.ingest(*records(20))
    world.drain(concurrency=7)
    resume(world)
    world.clock.pass_(seconds=15)
    world.drain(concurrency=7)
    assert (len(judged(world)), calls(world)) == (40, 20)


def test_who_probes_a_judge_is_left_to_chance(make_world: Callable[..., World]) -> None:
    """Else one request that its provider always refuses could be the only one that a stopped judge is ever asked."""
    world = make_world(boolean(model=f'"{STOPPED}"'))
    world.ingest(*records(8))
    with world.store.begin() as tx:
        judge_states.add_calls(tx, [Call(world.clock(), version(world), "", "key", None, 1.0)], world.clock())
    now = world.clock.pass_(minutes=11)
    desk = Desk(world.open_judge, clock=world.clock)
    tasks = Tasks(desk, Grader(desk), attempts=99)
    probed = set()
    with world.store.begin() as tx:
        for n in range(30):
            claimed = works.claim(tx, 8, now + n * timedelta(hours=1), timedelta(minutes=1))
            found = tasks.make(tx, claimed, now, Counter())
            assert [task.works[0].record_id for task in found] == [item.record_id for item in claimed]
            (probe,) = (task for task in found if task.plan is not None)
            probed.add(probe.works[0].record_id)
    assert len(probed) > 1


def test_a_judge_without_a_price_ends_its_own_work_and_no_others(make_world: Callable[..., World]) -> None:
    """A scorecard that is no longer there is not checked at the start: what it still owes must not stop the stage."""
    world = make_world(boolean(model='"fake:unpriced?acts=pass"'), boolean(model=f'"{PASS}"'))
    world.ingest(*records(5))

    def worst_case(model: str, _: Prompt) -> float:
        if "unpriced" in model:
            raise ConfigError("has no known price")
        return 0.001

    world.drain(budget=Budget({"all": 10.0}, worst_case))
    found = {(row["criterion"], row["state"], row["reason"]) for row in world.rows(work)}
    assert found == {("c0", "dead", "has no known price"), ("c1", "done", "")}


def test_somebody_to_turn_to_who_is_not_configured_ends_no_work(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work waits for the first judge; the ladder is one step shorter."""
    world = make_world(boolean(model=f'"{STOPPED}"', fallback="[default]"))
    opened = world.open_judge

    def without_default(model: str) -> Judge | None:
        return None if model == "default" else opened(model)

    stop(world)
    monkeypatch.setattr(world, "open_judge", without_default)
    world.ingest(record(1))
    world.drain()
    assert {row["state"] for row in world.rows(work)} == {"pending"}


def test_work_that_was_shed_is_owed_again_where_it_is_named(make_world: Callable[..., World], redis_url: str) -> None:
    """The ledger stays whole; what chance left out is not owed again, and without names only dead work is."""
    world = make_world(boolean(model=f'"{PASS}"'))
    world.ingest(*records(3))
    world.drain(budget=Budget({"all": 0.001}, lambda _model, _prompt: 1.0))
    assert {row["state"] for row in world.rows(work)} == {"shed"}
    ids = [row["work_id"] for row in world.rows(work)]
    queue = Queue(redis_url)
    with world.store.begin() as tx:
        tx.connection.execute(
            update(work).where(work.c.work_id == ids[0]).values(reason="thinned: 0.5 of such work is judged")
        )
    assert redrive(world.store, queue, None, world.clock()).work == 0
    assert redrive(world.store, queue, ids, world.clock()).work == 2
    line = world.lines()["support"]
    assert (line.sampled, line.in_flight, line.difference) == (3, 2, 0)
    world.drain()
    for line in world.lines().values():
        assert (line.scored, line.shed, line.in_flight, line.difference) == (3, 0, 0, 0)
    assert len(judged(world)) == 2
    queue.close()


def test_what_is_redriven_is_asked_anew_where_it_had_failed(make_world: Callable[..., World], redis_url: str) -> None:
    """The cause is mended: a vote that was an error before is cast again, and one that was a grade is not."""
    first, late = '"fake:first?acts=400,pass"', '"fake:late?acts=503,503,pass"'
    world = make_world(boolean(panel=f'[{first}, {late}, "{PASS}"]'))
    world.ingest(record(1))
    stage = world.judge_stage(attempts=2)
    for _ in range(2):
        world.drain_with(stage)
        world.clock.pass_(seconds=200)
    assert [(row["state"], row["attempts"]) for row in world.rows(work)] == [("dead", 2)]
    queue = Queue(redis_url)
    assert redrive(world.store, queue, None, world.clock()).work == 1
    queue.close()
    world.drain_with(stage)
    (score,) = judged(world)
    assert (score["status"], score["disagreement"]) == ("scored", 0.0)
    assert {row["status"] for row in world.rows(grades)} == {"scored"}
    assert [calls(world, f"fake:{name}") for name in ("first", "late", "good")] == [2, 3, 1]
