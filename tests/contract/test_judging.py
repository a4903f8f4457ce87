"""Judging through the store: votes and panels, cascades, ladders, pairs, shared calls, what is known, and money."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from judged_worlds import boolean, judged
from stages import World, record, records

from evalpipe.pipeline.budget import Budget
from evalpipe.store import judge_states
from evalpipe.store.tables import grades, judge_calls, judge_spend, work

DOWN = "fake:down?acts=503"
NO_KEY = "fake:nokey?acts=401"
PASS = "fake:good?acts=pass"
FAIL = "fake:bad?acts=fail"


def test_votes_and_their_disagreement_are_stored(make_world: Callable[..., World]) -> None:
    """Each vote is a grade, the score is one, and it says how far they were apart."""
    world = make_world(boolean(model='"fake:a?acts=pass,fail,pass"', votes="3"))
    world.ingest(record(1))
    world.drain()
    assert sorted((g["vote"], g["label"]) for g in world.rows(grades)) == [(0, "pass"), (1, "fail"), (2, "pass")]
    (score,) = judged(world)
    assert (score["value"], score["disagreement"]) == (1.0, pytest.approx(2 / 3))


def test_a_panel_waits_for_all_and_pays_for_none_twice(make_world: Callable[..., World]) -> None:
    """One judge of it is down: what the other said is kept, and not asked for again."""
    world = make_world(boolean(panel=f'["{PASS}", "fake:late?acts=503,pass"]'))
    world.ingest(record(1))
    stage = world.judge_stage()
    world.drain_with(stage)
    assert judged(world) == []
    assert [g["label"] for g in world.rows(grades)] == ["pass"]
    world.clock.pass_(seconds=60)
    world.drain_with(stage)
    (score,) = judged(world)
    assert score["value"] == 1.0
    asked = {row["judge"]: 0 for row in world.rows(judge_calls)}
    for row in world.rows(judge_calls):
        asked[row["judge"]] += row["n"]
    assert sorted(asked.values()) == [1, 2]


def test_the_share_escalated_is_in_the_scores(make_world: Callable[..., World]) -> None:
    """The strong judge decides where the cheap one is unsure; both are one series."""
    cheap = """'fake:cheap?rules={"MAYBE":"cannot_tell"}&acts=pass'"""
    world = make_world(boolean(model=cheap, escalate=f'{{to: "{FAIL}"}}'))
    world.ingest(*records(3), record(9, output="MAYBE"))
    world.drain()
    found = {row["record_id"]: (row["value"], row["escalated"]) for row in judged(world)}
    assert sorted(found.values()) == [(0.0, 1), (1.0, 0), (1.0, 0), (1.0, 0)]
    assert len({row["epoch"] for row in judged(world)}) == 1
    assert {g["role"] for g in world.rows(grades)} == {"first", "escalated"}


def test_a_failing_judge_gives_way_to_the_next_of_the_ladder_and_comes_back(make_world: Callable[..., World]) -> None:
    """The step is stored with the score, and is an epoch of its own; when the first answers again it is asked again."""
    first = "fake:first?acts=503,503,503,503,503,503,503,503,pass"
    world = make_world(boolean(model=f'"{first}"', fallback=f'["{PASS}"]'))
    world.ingest(*records(8))
    stage = world.judge_stage(attempts=5)
    world.drain_with(stage)
    assert judged(world) == []
    world.clock.pass_(seconds=30)
    world.drain_with(stage)
    assert {(row["step"], row["scorer"].startswith("fake:good")) for row in judged(world)} == {(1, True)}
    world.clock.pass_(seconds=60)
    world.ingest(*records(8, start=20))
    for _ in range(3):
        world.drain_with(stage)
        world.clock.pass_(seconds=20)
    steps = {row["step"] for row in judged(world)}
    assert steps == {0, 1}
    assert len({row["epoch"] for row in judged(world)}) == 2
    assert len(judged(world)) == 16


def test_a_judge_without_a_key_is_stopped_and_burns_no_attempt(make_world: Callable[..., World]) -> None:
    """One call told it; the work waits, and nothing is scored."""
    world = make_world(boolean(model=f'"{NO_KEY}"'))
    world.ingest(*records(20))
    stage = world.judge_stage(concurrency=1)
    for _ in range(3):
        world.drain_with(stage)
        world.clock.pass_(seconds=60)
    assert sum(row["n"] for row in world.rows(judge_calls)) == 1
    with world.store.read() as tx:
        (state,) = judge_states.read(tx).values()
    assert (state.state, state.cause) == ("stopped", "key")
    assert {(row["state"], row["attempts"]) for row in world.rows(work)} == {("pending", 0)}
    assert judged(world) == []


def test_a_stopped_judge_with_a_ladder_costs_nothing_but_an_epoch(make_world: Callable[..., World]) -> None:
    """The next one grades at once."""
    world = make_world(boolean(model=f'"{NO_KEY}"', fallback=f'["{PASS}"]'))
    world.ingest(*records(20))
    stage = world.judge_stage(concurrency=4)
    for _ in range(3):
        world.drain_with(stage)
        world.clock.pass_(seconds=16)
    assert {row["step"] for row in judged(world)} == {1}
    assert len(judged(world)) == 20


def test_an_outage_never_makes_a_score(make_world: Callable[..., World]) -> None:
    """After its attempts the work is dead, with the reason; it can be re-driven."""
    world = make_world(boolean(model=f'"{DOWN}"'))
    world.ingest(record(1))
    stage = world.judge_stage(attempts=3)
    for _ in range(12):
        world.drain_with(stage)
        world.clock.pass_(seconds=200)
    assert judged(world) == []
    (owed,) = world.rows(work)
    assert owed["state"] == "dead"
    assert "503" in owed["reason"]
    assert sum(row["n"] for row in world.rows(judge_calls)) == 3


def test_criteria_that_go_together_take_one_call_and_each_has_its_score(make_world: Callable[..., World]) -> None:
    """Also where a record owes only one of them: the question stays the same, and so does the epoch."""
    world = make_world(
        boolean(model=f'"{PASS}"', together="x"),
        boolean(model=f'"{PASS}"', together="x", needs="[context]"),
        boolean(model=f'"{PASS}"'),
    )
    world.ingest(record(1, context=[{"id": "a", "text": "b"}]), *records(9, start=2, context=[]))
    world.drain(concurrency=3)
    assert sum(row["n"] for row in world.rows(judge_calls)) == 20
    found = judged(world)
    assert len([row for row in found if row["status"] == "scored"]) == 10 + 1 + 10
    assert {name: len({row["epoch"] for row in found if row["criterion"] == name and row["status"] == "scored"})
            for name in ("c0", "c1", "c2")} == {"c0": 1, "c1": 1, "c2": 1}  # fmt: skip


def test_equal_questions_are_asked_once(make_world: Callable[..., World]) -> None:
    """The second record with the same words gets the first one's grade, for nothing, and says so."""
    world = make_world(boolean(model='"fake:a?acts=fail,pass&usd_per_mtok=5"'))
    asked = {"messages": [{"role": "user", "content": "refund?"}]}
    stage = world.judge_stage()
    world.ingest(record(1, output="the same", **asked))
    world.drain_with(stage)
    world.ingest(record(2, output="the same", **asked), record(3, output="another", **asked))
    world.drain_with(stage)
    assert sum(row["n"] for row in world.rows(judge_calls)) == 2
    found = {row["record_id"]: row for row in judged(world)}
    assert sorted((row["value"], row["cost_usd"] > 0) for row in found.values()) == [
        (0.0, False),
        (0.0, True),
        (1.0, True),
    ]
    assert sorted((g["reused"], g["attempts"]) for g in world.rows(grades)) == [(0, 1), (0, 1), (1, 0)]


def test_a_shadow_is_compared_with_what_was_served(make_world: Callable[..., World]) -> None:
    """In both orders; a served record is no pair, and a shadow waits until its partner is there."""
    world = make_world('kind: pairwise, rubric: "More helpful?", model: "fake:a?first=1"')
    world.ingest(record(2, variant="shadow", output="mine", attributes={"shadow_of": "r-1"}))
    world.drain()
    assert judged(world) == []
    world.ingest(record(1, output="theirs"))
    world.clock.pass_(seconds=20)
    world.drain()
    found = {row["record_id"]: row for row in judged(world)}
    assert found["r-1"]["status"] == "skipped"
    assert (found["r-2"]["value"], found["r-2"]["label"], found["r-2"]["disagreement"]) == (0.5, "tie", 1.0)
    assert {(g["role"], g["label"]) for g in world.rows(grades)} == {("first", "first"), ("swapped", "first")}


def test_a_cap_is_never_exceeded_and_what_it_sheds_is_in_the_ledger(make_world: Callable[..., World]) -> None:
    """Less urgent work gets four fifths of it; the rest of that work is shed, and counted."""
    world = make_world(boolean(model='"fake:a?acts=pass&usd_per_mtok=1"', priority="5"))
    world.ingest(*records(40))
    budget = Budget({"scorecard:support": 0.004}, lambda _model, _prompt: 0.0003)
    stage = world.judge_stage(budget=budget, concurrency=8)
    for _ in range(8):
        world.drain_with(stage)
        world.clock.pass_(seconds=10)
    spent = {row["scope"]: row for row in world.rows(judge_spend)}
    assert 0 < spent["scorecard:support"]["spent_usd"] <= 0.004
    assert all(row["reserved_usd"] == pytest.approx(0.0) for row in spent.values())
    line = world.lines()["support"]
    n = len(judged(world))
    assert (line.sampled, line.in_flight, line.difference) == (40, 0, 0)
    # A record has its heuristic score, so it counts as scored; its judged criterion was shed.
    assert {row["state"] for row in world.rows(work)} == {"done", "shed"}
    assert sum(row["state"] == "shed" for row in world.rows(work)) == 40 - n


def test_what_is_urgent_goes_on_when_the_cap_bites(make_world: Callable[..., World]) -> None:
    """The last fifth of a cap is for safety and rollouts."""
    world = make_world(
        boolean(model='"fake:a?acts=pass&usd_per_mtok=1"'),
        boolean(model='"fake:b?acts=pass&usd_per_mtok=1"', priority="0"),
    )
    world.ingest(record(1))
    budget = Budget({"all": 1.0}, lambda _model, _prompt: 0.45)
    world.drain_with(world.judge_stage(budget=budget, concurrency=1))
    found = {row["criterion"]: row["state"] for row in world.rows(work)}
    assert found == {"c0": "shed", "c1": "done"}
