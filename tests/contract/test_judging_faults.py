"""What must not stop judging, cost what no cap knows of, or be lost: a bad record, a late judge, a failed commit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text, update
from sqlalchemy.exc import DBAPIError
from stages import World, record, records

from evalpipe.errors import ConfigError
from evalpipe.pipeline.budget import LESS_URGENT, Budget
from evalpipe.pipeline.findings import Scored, add_findings
from evalpipe.settings import Settings
from evalpipe.store import judge_states
from evalpipe.store.judge_states import JudgeState
from evalpipe.store.tables import judge_calls, judge_spend, rollups, scores, work
from evalpipe.wiring import Wiring

CARD = """
name: support
match: {{service: desk}}
criteria:
  - {{name: c0, judge: {{kind: boolean, rubric: "Is it right?", {judge}}}}}
"""
PASS = "model: 'fake:good?acts=pass'"
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
    world = make_world("model: 'fake:mad?acts=400&latency_ms=20'")
    world.ingest(*records(100))
    world.drain(concurrency=1)
    assert [(state.state, state.cause) for state in states(world)] == [("open", "request")]
    assert calls(world) < 60
    assert world.count(work, state="pending") == 100 - calls(world)


@pytest.mark.parametrize("priority", [5, 8, 9])
def test_work_of_a_running_rollout_is_never_thinned(make_world: Callable[..., World], priority: int) -> None:
    """Whatever the criterion's priority is: below 5 nothing is left out for want of money."""
    world = make_world(f"{PASS}, priority: {priority}")
    plan = world.plans[0]
    scored = [Scored(r, b"", [(plan.scorecard, plan.score(r))]) for r in (record(0), record(1))]
    with world.store.begin() as tx:
        add_findings(tx, scored, world.clock(), urgent=frozenset({"r-0"}))
    assert work_of(world, "r-0")["priority"] < LESS_URGENT
    assert work_of(world, "r-1")["priority"] == priority


def test_calls_whose_commit_failed_are_counted_by_the_next(make_world: Callable[..., World]) -> None:
    """They were made and paid for: the breaker and the costs of the day must hear of them."""
    world = make_world(PASS)
    world.ingest(*records(3))
    stage = world.judge_stage()
    away, back = "ALTER TABLE judge_calls RENAME TO away", "ALTER TABLE away RENAME TO judge_calls"
    with world.store.begin() as tx:
        tx.connection.execute(text(away))
    with pytest.raises(DBAPIError):
        world.drain_with(stage)
    with world.store.begin() as tx:
        tx.connection.execute(text(back))
    world.clock.pass_(seconds=61)
    world.drain_with(stage)
    assert world.count(work, state="done") == 3
    assert calls(world) == 6


def test_what_is_told_of_a_commit_may_fail_without_booking_it_twice(make_world: Callable[..., World]) -> None:
    """Grades are kept once, and so is what they cost."""
    world = make_world("model: 'fake:dear?acts=pass&usd_per_mtok=100'")
    world.ingest(*records(3))
    stage = world.judge_stage()

    def broken() -> None:
        raise OSError("nobody is there to be told")

    with pytest.raises(OSError, match="nobody"):
        asyncio.run(stage.drain(20, broken))
    assert world.count(work, state="done") == 3
    cost = sum(row["cost_usd"] for row in world.rows(judge_calls))
    assert cost > 0
    assert [row["spent_usd"] for row in world.rows(judge_spend, scope="all")] == [pytest.approx(cost)]


def test_what_was_put_off_for_a_judge_is_due_when_a_human_resumes_it(make_world: Callable[..., World]) -> None:
    """Not a quarter of an hour later; what waits for another reason waits on."""
    world = make_world(PASS)
    world.ingest(*records(3))
    (judge,) = [world.open_judge("fake:good?acts=pass")]
    assert judge is not None
    with world.store.begin() as tx:
        judge_states.stop(tx, judge.version, "too costly", "ada", world.clock())
    world.drain()
    world.clock.pass_(seconds=1)
    assert world.drain().graded == 0
    with world.store.begin() as tx:
        tx.connection.execute(update(work).where(work.c.record_id == "r-2").values(reason="judge x is open"))
        judge_states.resume(tx, judge.version, "paid", "ada", world.clock())
    assert world.drain().graded == 2


def test_a_score_has_the_cost_of_votes_from_earlier_attempts(make_world: Callable[..., World]) -> None:
    """One judge of a panel was late: the other's vote was paid for once, and belongs to the score."""
    world = make_world(
        "panel: ['fake:a?acts=pass&usd_per_mtok=5', 'fake:late?acts=503,pass&usd_per_mtok=5'], combine: mean"
    )
    world.ingest(record(1))
    stage = world.judge_stage()
    world.drain_with(stage)
    world.clock.pass_(seconds=60)
    world.drain_with(stage)
    paid = sum(row["cost_usd"] for row in world.rows(judge_calls))
    assert paid > 0
    assert [row["cost_usd"] for row in world.rows(scores)] == [pytest.approx(paid)]
    assert sum(row["cost_usd"] for row in world.rows(rollups)) == pytest.approx(paid)


def test_one_judge_with_two_caps_is_a_mistake(tmp_path: Path) -> None:
    """Both are named: neither may win in silence. The same cap twice is none, and a judge that differs has its own."""
    words = {"c0": "fake:x?usd_per_day=5&acts=pass", "c1": "fake:x?usd_per_day=50&acts=pass"}
    line = '  - {{name: {0}, judge: {{kind: boolean, rubric: "Is it right?", model: "{1}"}}}}'
    head = "name: support\nmatch: {service: desk}\ncriteria:\n"

    def caps() -> dict[str, float]:
        (tmp_path / "support.yaml").write_text(head + "\n".join(line.format(*item) for item in words.items()))
        return Wiring(Settings(scorecards=tmp_path)).caps

    with pytest.raises(ConfigError, match=r"usd_per_day=50&acts=pass' .*usd_per_day=5&acts|usd_per_day=5&.*=50&"):
        caps()
    words["c1"] = "fake:x?acts=pass&usd_per_day=5"
    assert caps() == {"judge:fake:x?acts=%5B%22pass%22%5D": 5.0}
    words["c1"] = "fake:x?acts=fail&usd_per_day=50"
    assert sorted(caps().values()) == [5.0, 50.0]


def test_calls_that_were_not_answered_may_be_billed_and_are_booked(make_world: Callable[..., World]) -> None:
    """A timeout costs what was reserved for the call that was made; a call that was turned away costs nothing."""
    world = make_world("model: 'fake:dear?acts=504,503,pass&usd_per_mtok=100'")
    world.ingest(record(1))
    stage = world.judge_stage(budget=Budget({"all": 10.0}, lambda _model, _prompt: 0.5), attempts=5)
    booked = []
    for _ in range(3):
        world.drain_with(stage)
        world.clock.pass_(seconds=60)
        (row,) = world.rows(judge_spend, scope="all")
        booked.append(row["spent_usd"])
        assert row["reserved_usd"] == 0.0
    cost = sum(row["cost_usd"] for row in world.rows(judge_calls))
    assert booked == [0.5, 0.5, pytest.approx(0.5 + cost)]
    assert world.count(work, state="done") == 1


def test_a_cap_holds_also_where_nothing_is_answered(make_world: Callable[..., World]) -> None:
    """Without it, timeouts could be made and billed without end."""
    world = make_world("model: 'fake:slow?acts=504', priority: 1")
    world.ingest(*records(7))
    stage = world.judge_stage(budget=Budget({"all": 4.0}, lambda _model, _prompt: 0.5), attempts=5, concurrency=1)
    for _ in range(8):
        world.drain_with(stage)
        world.clock.pass_(seconds=10)
    (row,) = world.rows(judge_spend, scope="all")
    assert row["spent_usd"] <= 4.0
    assert calls(world) == 2 * row["spent_usd"]
    assert world.count(work, state="shed") > 0


CASCADE = """model: 'fake:cheap?rules={"HARD":"fail"}&acts=pass', escalate: {to: 'fake:dear?acts=pass', when: [fail]}"""


def stop(world: World, model: str) -> str:
    """Nobody is to ask it; its version."""
    judge = world.open_judge(model)
    assert judge is not None
    with world.store.begin() as tx:
        judge_states.stop(tx, judge.version, "too costly", "ada", world.clock())
    return judge.version


def test_only_records_that_need_the_second_judge_wait_for_it(make_world: Callable[..., World]) -> None:
    """The others are graded; of those the first vote is kept, and not paid for again."""
    world = make_world(CASCADE)
    second = stop(world, "fake:dear?acts=pass")
    world.ingest(*records(5), *(record(n, output=f"HARD {n}") for n in (7, 8)))
    stage = world.judge_stage()
    for _ in range(3):
        world.drain_with(stage)
        world.clock.pass_(seconds=1)
    assert world.count(work, state="done") == 5
    waiting = [work_of(world, record_id) for record_id in ("r-7", "r-8")]
    assert {(row["state"], row["attempts"]) for row in waiting} == {("pending", 0)}
    assert all(row["reason"].startswith(f"judge {second} is stopped") for row in waiting)
    assert {row["due_at"] > world.clock() for row in waiting} == {True}
    first_calls = calls(world)
    with world.store.begin() as tx:
        judge_states.resume(tx, second, "paid", "ada", world.clock())
    world.drain_with(stage)
    assert world.count(work, state="done") == 7
    assert calls(world) - first_calls == calls(world, judge=second) <= 2
    assert len({row["scorer"] for row in world.rows(scores)}) == 1
    assert {row["record_id"] for row in world.rows(scores) if row["escalated"]} == {"r-7", "r-8"}
