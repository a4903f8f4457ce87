"""The stages of the pipeline on PostgreSQL and SQLite, called directly: what each promises about counting once."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from sqlalchemy import event, insert, update
from stages import AT, World, assert_rollups_are_the_sums_of_the_scores, at_once, message, record, records
from stopwatch import TookTooLongError, assert_quick

from evalpipe.channels.base import Delivery
from evalpipe.channels.schedule import URGENT_S
from evalpipe.errors import JudgeRejected, JudgeUnavailable, PermanentError
from evalpipe.judges.base import Answer, Prompt
from evalpipe.notification import ROLLBACK, Notification
from evalpipe.pipeline.deliver import Deliver
from evalpipe.pipeline.judge import Drained
from evalpipe.pipeline.maintain import Maintain, erase_user
from evalpipe.pipeline.redrive import redrive
from evalpipe.pipeline.rescore import rescore
from evalpipe.record import Record, Release
from evalpipe.score import scored
from evalpipe.scorecard.model import Scorecard
from evalpipe.scorers.plan import ScoringPlan
from evalpipe.store import ledgers, outbox, series, works
from evalpipe.store.ledgers import OUTCOMES
from evalpipe.store.queue import Queue, quarantine
from evalpipe.store.rollout_evidence import readings
from evalpipe.store.tables import (
    alerts,
    dead_letters,
    decisions,
    deliveries,
    evidence,
    grades,
    incidents,
    meters,
    receipts,
    rollouts,
    scorecards,
    scores,
    work,
)
from evalpipe.store.tables import ledger as ledger_table
from evalpipe.store.tables import outbox as outbox_table
from evalpipe.store.tables import records as records_table

HEURISTICS = """
name: support
match: {service: desk}
criteria:
  - {name: length, heuristic: length, params: {max: 200}}
"""


class Judge:
    """A judge of the test's own: ``says`` gives the grade, an exception to raise, or seconds to take."""

    gives_logprobs = False

    def __init__(self, says: Callable[[str], Any] = lambda _: "pass") -> None:
        self.version = "test:judge"
        self.says = says
        self.calls: list[str] = []

    async def ask(self, prompt: Prompt) -> Answer:
        """The answer by ``says``."""
        self.calls.append(prompt.user)
        said = self.says(prompt.user)
        if isinstance(said, Exception):
            raise said
        if isinstance(said, float):
            await asyncio.sleep(said)
            said = "pass"
        text = json.dumps({"explanation": "because", "quotation": "", "grade": said})
        return Answer(text=text, model="m", cost_usd=0.01)

    async def aclose(self) -> None:
        """Nothing is open."""


class Channel:
    """Keeps what it is sent; ``results`` are what the next sends give, then all is well."""

    def __init__(self, *results: Delivery) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.results = list(results)

    def render(self, notification: Any) -> bytes:
        """JSON."""
        return orjson.dumps({"type": notification.type, "data": notification.data})

    def send(self, body: bytes, *, event_id: str, at: Any) -> Delivery:
        """Keep it."""
        self.sent.append((event_id, body))
        return self.results.pop(0) if self.results else Delivery(ok=True, status=200)


@pytest.fixture
def make_world(migrated_url: str, tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Makes the world of a test, once."""
    made: list[World] = []

    def make(**options: Any) -> World:
        made.append(World(migrated_url, tmp_path, **options))
        return made[-1]

    yield make
    for world in made:
        world.close()


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """A world with a judge that passes what does not say REFUND."""
    return make_world()


@pytest.fixture
def queue(redis_url: str) -> Iterator[Queue]:
    """An empty queue."""
    opened = Queue(redis_url)
    yield opened
    opened.close()


def assert_adds_up(world: World, sampled: int, **terms: int) -> None:
    """The scorecard's line has exactly these terms, and both it and the line of whole records add up."""
    for scorecard in ("", "support"):
        line = world.lines()[scorecard]
        assert line.difference == 0, line
        assert line.sampled == sampled, line
        found = {name: n for name in (*OUTCOMES, "in_flight", "lost", "shed") if (n := getattr(line, name))}
        assert found == terms, (scorecard, line)


# ----------------------------------------------------------------------------------------------------------- ingest


def test_a_message_that_comes_again_changes_nothing(world: World) -> None:
    """Records, scores, rollups, ledger, work, evidence, receipts: every table is as it was, rejects and all."""
    found = [
        *records(10),
        *records(10, start=100, variant="canary"),
        {"trace_id": "no-record-id"},
        record("x", output="a" * 30_000),
    ]
    first = world.ingest(*found, sequence=1)
    assert (first.new, first.owed, first.dead) == (20, 40, 2)
    before = world.everything()
    world.clock.pass_(minutes=5)
    again = world.ingest(*found, sequence=1)
    assert (again.new, again.owed, again.dead) == (0, 0, 0)
    assert world.everything() == before
    assert len(before["evidence"]) == 20
    assert [row["n"] for row in before["receipts"]] == [20]


def test_the_same_message_in_two_workers_at_once_counts_once(make_world: Callable[..., World]) -> None:
    """Whichever commits first has it all; so with messages that overlap in part."""
    world = make_world(judge="")
    ones = [records(20, variant="canary"), records(20, start=10, variant="canary")]
    runs = [partial(world.ingest, *found, sequence=n) for n, found in enumerate(ones, 1) for _ in range(2)]
    assert sum(done.new for done in at_once(*runs)) == 30
    assert world.count(records_table) == 30
    assert world.count(evidence) == 30
    assert sum(row["n"] for row in world.rows(receipts)) == 30
    assert_adds_up(world, 30, scored=30)
    assert_rollups_are_the_sums_of_the_scores(world.store)


def test_a_record_that_is_twice_in_a_message_is_one_record(world: World) -> None:
    """The hook does not do that, but a re-driven message may."""
    assert world.ingest(record(1), record(1), record(2)).new == 2
    assert world.count(work) == 4
    assert_adds_up(world, 2, in_flight=2)


GOOD = {"record_id": "b", "trace_id": "t", "captured_at": AT.timestamp(), "release": {"service": "desk"}}


@pytest.mark.parametrize(
    "bad",
    [
        None,
        {"trace_id": "t"},
        {**GOOD, "captured_at": 1e99},
        {**GOOD, "messages": ["x"]},
        {**GOOD, "probability": 1e-300},
        {**GOOD, "record_id": "b\x00"},
        {**GOOD, "release": {"service": "desk", "model": "\x00"}},
    ],
)
def test_one_bad_record_becomes_a_dead_letter_and_the_rest_is_kept(world: World, bad: Any) -> None:
    """Booked where the message's headers say that it belongs, so that the ledger adds up."""
    blob, headers = message([record(1), {}, record(2)], sequence=7)
    body = json.loads(blob)
    body["records"][1] = bad
    done = world.ingest_stage(json.dumps(body), headers, world.clock())
    assert (done.new, done.dead) == (2, 1)
    (letter,) = world.rows(dead_letters)
    assert (letter["kind"], letter["service"], letter["hour_at"], letter["n_records"]) == ("record", "desk", AT, 1)
    assert json.loads(letter["payload"]) == bad
    world.measure(world.meter(calls=3, sampled=3, enqueued=3), world.clock.pass_(minutes=10))
    line = world.lines()[""]
    assert (line.sampled, line.dead, line.in_flight, line.lost, line.difference) == (3, 1, 2, 0, 0)


def test_text_that_no_database_takes_costs_nothing_else(world: World) -> None:
    """A NUL in an output is the user's right; the record and all others are scored."""
    assert world.ingest(record(1, output="a\x00b REFUND"), record(2)).new == 2
    world.drain(Judge(lambda user: RuntimeError("broke on \x00\ud800") if "REFUND" in user else "pass"))
    assert_adds_up(world, 2, scored=1, dead=1)


def test_an_oversized_record_is_a_dead_letter_of_its_own_service_and_hour(world: World) -> None:
    """With the limit's name in the reason."""
    assert world.ingest(record(1), record(2, output="x" * 30_000)).dead == 1
    (letter,) = world.rows(dead_letters)
    assert "EVALPIPE_MAX_RECORD_BYTES=20000" in letter["reason"]
    assert (letter["service"], letter["hour_at"]) == ("desk", AT)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 99, "records": []}', '{"schema": 1}', "\ud800", "[" * 100_000])
def test_a_message_that_cannot_be_read_is_booked_by_its_headers(world: World, text: str) -> None:
    """Byte for byte, once, for each service and hour that they name; and re-driven it waits again."""
    hour = int(AT.timestamp())
    headers = {"origin": "app-1", "evalpipe_hours": {f"desk|{hour}": 3, f"desk|{hour + 3600}": 2}}
    assert world.ingest_stage(text, headers, world.clock()).dead == 2
    assert world.ingest_stage(text, headers, world.clock()).dead == 0
    letters = world.rows(dead_letters)
    assert {bytes(letter["payload"]).decode("utf-8", "surrogatepass") for letter in letters} == {text}
    world.measure(world.meter(calls=3, sampled=3, enqueued=3), world.clock.pass_(minutes=10))
    line = world.lines()[""]
    assert (line.sampled, line.dead, line.lost, line.difference) == (3, 3, 0, 0)
    assert world.ingest_stage(text, {}, world.clock()).dead == 1


def test_records_that_no_scorecard_matches_are_skipped_and_counted(world: World) -> None:
    """They are stored, and the ledger says what became of them."""
    assert world.ingest(record(1, release=Release("other"))).new == 1
    assert world.rows(records_table)[0]["outcome"] == "skipped"
    with world.store.read() as tx:
        (line,) = ledgers.read(tx, ledgers.Queued({}), world.clock())
    assert (line.service, line.skipped, line.difference) == ("other", 1, 0)


def test_a_failure_half_way_leaves_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One transaction: if the last step fails, the first has not happened."""
    before = world.everything()
    monkeypatch.setattr("evalpipe.store.intake.add_receipts", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        world.ingest(*records(5, variant="canary"), {"bad": 1})
    assert world.everything() == before


def test_ingest_and_judging_at_once_do_not_wait_for_each_other_in_a_circle(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Both write whole records' and scorecards' ledger lines and the same rollups; no deadlock, and all adds up."""
    world.ingest(*records(40))
    judge = Judge()

    def ingest(start: int) -> None:
        for i in range(6):
            world.ingest(*records(8, start=1000 + start + 8 * i), {}, process=f"p{start}", sequence=i + 1)

    at_once(lambda: ingest(0), lambda: ingest(500), lambda: world.drain(judge), lambda: world.drain(judge))
    world.drain(judge)
    line = world.lines()["support"]
    assert (line.sampled, line.scored, line.difference) == (136, 136, 0)
    whole = world.lines()[""]
    assert (whole.scored, whole.dead, whole.difference) == (136, 12, 0)
    assert "deadlock" not in caplog.text
    assert_rollups_are_the_sums_of_the_scores(world.store)


def test_messages_cost_a_bounded_number_of_statements(world: World) -> None:
    """However many records are in them: none is looked up by itself."""
    counted: dict[int, int] = {}
    world.ingest(*records(2, start=5000))
    for n in (8, 64):
        statements: list[str] = []
        listener = lambda *arguments, into=statements: into.append(arguments[2])  # noqa: E731
        event.listen(world.store.engine, "before_cursor_execute", listener)
        world.ingest(*[record(i + 100 * n, captured_at=AT) for i in range(n)])
        event.remove(world.store.engine, "before_cursor_execute", listener)
        counted[n] = len(statements)
    assert counted[64] <= counted[8] + 4, counted


# ------------------------------------------------------------------------------------------------------------ meter


def test_what_a_hook_counts_is_read_whatever_newer_fields_it_has(world: World) -> None:
    """Unknown keys are ignored, in the release too: hooks and workers are upgraded in any order."""
    body = json.loads(world.meter(calls=5, sampled=1, not_sampled=4, enqueued=1))
    body["rows"][0] |= {"release": {"model": "m", "from_the_future": "x"}, "new": [1]}
    assert world.measure(json.dumps(body | {"also": 1}), world.clock()).rows == 1
    (row,) = world.rows(meters)
    assert (row["calls"], row["enqueued"]) == (5, 1)
    assert world.count(dead_letters) == 0


@pytest.mark.parametrize(
    "broken", ["x", "[]", "{}", '{"schema": 9, "rows": []}', '{"schema": 1, "rows": [{}]}', "\ud83d"]
)
def test_a_meter_message_that_cannot_be_read_is_a_dead_letter(world: World, broken: str) -> None:
    """With no records in it: counters are cumulative, the next message has them."""
    assert world.measure(broken, world.clock()).rows == 0
    assert world.measure(broken, world.clock()).rows == 0
    assert [(row["kind"], row["n_records"]) for row in world.rows(dead_letters)] == [("meter", 0)]


# ----------------------------------------------------------------------------------------------------------- ledger


def test_the_ledger_tells_every_way_that_a_record_can_go(make_world: Callable[..., World]) -> None:
    """Observed is sampled and not sampled; sampled is scored, skipped, error, dead, shed, lost or in flight."""
    world = make_world()
    says = {"one": "pass", "two": "cannot_tell", "three": PermanentError("no"), "four": RuntimeError("bug")}
    judge = Judge(lambda user: next(v for k, v in says.items() if k in user))
    world.ingest(record(1, output="one"), record(2, output="two"), record(3, output="three"), record(4, output="four"))
    world.drain(judge)
    world.ingest(record(5, output="one"), {"not": "a record"})
    world.measure(
        world.meter(calls=100, sampled=12, not_sampled=88, enqueued=10, shed={"queue": 1, "buffer": 1}), world.clock()
    )
    assert world.lines()[""].lost == 0
    world.clock.pass_(seconds=61)
    line = world.lines({("desk", AT): 3})[""]
    assert (line.observed, line.not_sampled, line.sampled) == (100, 88, 12)
    # 1: scored. 2: its heuristic is scored. 3: the judge refused one request. 4: given up, and a bad record. 5: owed.
    assert (line.scored, line.error, line.dead, line.shed, line.in_flight, line.lost) == (2, 1, 2, 2, 1 + 3, 1)
    assert line.difference == 0
    assert world.lines()["support"].difference == 0


def test_records_that_arrive_before_their_hook_tells_are_counted_as_unmetered(world: World) -> None:
    """Until the meter comes; then they are sampled like the others."""
    world.ingest(*records(4))
    world.drain()
    line = world.lines()[""]
    assert (line.unmetered, line.observed, line.sampled, line.difference) == (4, 4, 4, 0)
    world.measure(world.meter(calls=40, sampled=4, not_sampled=36, enqueued=4), world.clock())
    line = world.lines()[""]
    assert (line.unmetered, line.observed, line.sampled, line.difference) == (0, 40, 4, 0)


def test_what_never_arrived_is_lost_only_after_the_lag_and_not_while_it_waits(world: World) -> None:
    """A hook that has just spoken may be ahead of its records."""
    world.ingest(*records(4))
    world.measure(world.meter(calls=6, sampled=6, enqueued=6), world.clock())
    assert world.lines()[""].lost == 0
    world.clock.pass_(seconds=59)
    assert world.lines()[""].lost == 0
    world.clock.pass_(seconds=1)
    assert world.lines({("desk", AT): 2})[""].lost == 0
    assert world.lines({("desk", AT): 1})[""].lost == 1
    assert world.lines()[""].lost == 2


def test_a_shorter_ledger_has_the_same_lines_as_the_long_one(world: World) -> None:
    """``since`` leaves out hours, and changes none."""
    for hours in range(3):
        at = AT + timedelta(hours=hours)
        world.ingest(*(record(f"{hours}-{i}", captured_at=at) for i in range(3)), {"release": {"service": "desk"}})
    with world.store.read() as tx:
        whole = ledgers.read(tx, ledgers.Queued({}), world.clock())
        late = ledgers.read(tx, ledgers.Queued({}), world.clock(), since=AT + timedelta(hours=1))
    assert late == [line for line in whole if line.hour_at >= AT + timedelta(hours=1)]
    assert len(late) == 4


# ------------------------------------------------------------------------------------------------------------ judge


def test_two_workers_grade_everything_once(world: World) -> None:
    """One score for each record and criterion, and each record is closed once."""
    world.ingest(*records(30))
    judge = Judge()
    at_once(*[lambda: world.drain(judge, concurrency=4)] * 3)
    assert len(judge.calls) == 60
    assert world.count(grades) == 60
    assert world.count(scores, status="scored") == 90
    assert_adds_up(world, 30, scored=30)
    assert_rollups_are_the_sums_of_the_scores(world.store)


def test_the_last_two_works_of_a_record_ended_at_once_close_it_once(world: World) -> None:
    """Each transaction sees only its own end, unless the second waits for the first."""
    for i in range(8):
        world.ingest(record(i))
        stages = [world.judge_stage(Judge(), concurrency=1) for _ in range(2)]
        claimed = [stage._claim(1) for stage in stages]
        graded = [asyncio.run(stage._run(held[0])) for stage, held in zip(stages, claimed, strict=True)]
        at_once(*(partial(s._commit, [g], Drained()) for s, g in zip(stages, graded, strict=True)))
    assert_adds_up(world, 8, scored=8)
    assert {row["outcome"] for row in world.rows(records_table)} == {"scored"}


def test_a_holder_whose_lease_has_lapsed_changes_nothing(world: World) -> None:
    """Its grade is no grade, its score no score; the new holder's counts. Its call was made, and is counted."""
    world.ingest(record(1))
    stale, fresh = world.judge_stage(Judge(lambda _: "fail")), world.judge_stage(Judge())
    old = [asyncio.run(stale._run(held)) for held in stale._claim(9)]
    world.clock.pass_(seconds=61)
    new = [asyncio.run(fresh._run(held)) for held in fresh._claim(9)]
    before = world.everything("judge_calls", "judge_spend")
    stale._commit(old, Drained())
    assert world.everything("judge_calls", "judge_spend") == before
    fresh._commit(new, Drained())
    after = world.everything("judge_calls", "judge_spend")
    stale._commit(old, Drained())
    assert world.everything("judge_calls", "judge_spend") == after
    assert {row["value"] for row in after["grades"]} == {1.0}
    assert_adds_up(world, 1, scored=1)


def test_one_slow_call_keeps_neither_the_others_nor_new_work_waiting(world: World) -> None:
    """While it hangs, all else is graded, also what is owed only then."""
    world.ingest(record(1, output="SLOW"), *records(20, start=10))
    judge = Judge(lambda user: 2.5 if "SLOW" in user else "pass")
    seen: list[int] = []

    def committed() -> None:
        seen.append(world.count(grades))
        if len(seen) == 1:
            world.ingest(*records(5, start=100))

    started = time.monotonic()
    asyncio.run(world.judge_stage(judge, concurrency=4).drain(20, committed))
    assert world.count(grades) == 52
    if max(n for n in seen if n < 51) != 50:
        raise TookTooLongError(f"the slow call was over before the others: {seen}")
    assert_quick(time.monotonic() - started, 15)
    assert_adds_up(world, 26, scored=26)


def test_new_work_is_taken_up_while_the_only_call_in_flight_is_slow(make_world: Callable[..., World]) -> None:
    """Nothing else ends, so nothing is committed: the worker must look for itself."""
    world = make_world(card=world_card_of_one_judge())
    world.ingest(record(1, output="SLOW"))
    judge = Judge(lambda user: 2.0 if "SLOW" in user else "pass")

    async def run() -> list[int]:
        stage = world.judge_stage(judge, concurrency=4)
        drain = asyncio.create_task(stage.drain(10, lambda: None))
        await asyncio.sleep(0.5)
        await asyncio.to_thread(world.ingest, record(2))
        await asyncio.sleep(1.0)
        before_the_slow_one = world.count(grades)
        await drain
        return [before_the_slow_one, world.count(grades)]

    if asyncio.run(run()) != [1, 2]:
        raise TookTooLongError("the slow call was over before the other")
    assert world.count(grades) == 2


def world_card_of_one_judge() -> str:
    """A scorecard with one judged criterion and nothing else."""
    return HEURISTICS.replace(
        "length, heuristic: length, params: {max: 200}", "grounded, judge: {kind: boolean, rubric: x}"
    )


def test_a_judge_that_is_down_costs_attempts_and_then_the_work_is_dead(world: World) -> None:
    """Postponed further and further; dead with the reason; the other criterion's score stays."""
    world.ingest(record(1, output="one"))
    judge = Judge(lambda user: JudgeUnavailable("503") if "polite" in user else "pass")
    judge.says = lambda _: JudgeUnavailable("it answers 503")
    for attempt in range(3):
        done = world.drain(judge)
        assert (done.postponed, done.dead) == ((2, 0) if attempt < 2 else (0, 2))
        if attempt < 2:
            assert world.drain(judge).postponed == 0
        world.clock.pass_(seconds=15)
    assert {row["reason"] for row in world.rows(work)} == {"it answers 503"}
    assert_adds_up(world, 1, dead=1)
    assert world.rows(records_table)[0]["outcome"] == "dead"


def test_a_judge_that_asks_for_time_gets_it(world: World) -> None:
    """At least as long as it said."""
    world.ingest(record(1))
    judge = Judge(lambda _: JudgeUnavailable("429", retry_after_s=30))
    world.drain(judge)
    world.clock.pass_(seconds=29)
    assert world.drain(Judge()).graded == 0
    world.clock.pass_(seconds=17)
    assert world.drain(Judge()).graded == 2


def test_a_judge_that_rejects_us_is_left_alone_and_no_work_loses_an_attempt(world: World) -> None:
    """A wrong key is a human's matter, however long it takes."""
    world.ingest(*records(10))
    judge = Judge(lambda _: JudgeRejected("wrong key"))
    stage = world.judge_stage(judge)
    for _ in range(5):
        asyncio.run(stage.drain(5, lambda: None))
        world.clock.pass_(seconds=100)
    assert len(judge.calls) <= 5 * 8
    assert {row["state"] for row in world.rows(work)} == {"pending"}
    assert max(row["attempts"] for row in world.rows(work)) == 0
    assert_adds_up(world, 10, in_flight=10)
    world.clock.pass_(seconds=100)
    world.drain()
    assert_adds_up(world, 10, scored=10)


def test_work_that_kills_its_workers_is_given_up(world: World) -> None:
    """It is claimed, and nobody ever ends it: after its attempts it is dead, and no further worker is lost on it."""
    world.ingest(record(1))
    for _ in range(3):
        assert len(world.judge_stage()._claim(9)) == 2
        world.clock.pass_(seconds=61)
    judge = Judge()
    assert world.drain(judge).dead == 2
    assert judge.calls == []
    assert_adds_up(world, 1, dead=1)


def test_work_of_a_scorecard_that_this_code_cannot_read_stops_no_other_work(world: World) -> None:
    """It may have been written by another version of evalpipe; it is dead with that reason."""
    world.ingest(record(1))
    with world.store.begin() as tx:
        tx.connection.execute(
            insert(scorecards), {"version": "old", "name": "old", "body": {"was": "another"}, "first_seen_at": AT}
        )
        works.add_work(tx, [works.Work("r-1", "old", "old", "c", "desk", AT, 1.0, 0, "rescore")], AT)
    done = world.drain()
    assert (done.graded, done.dead) == (2, 1)
    assert "cannot read scorecard old@old" in world.rows(work, state="dead")[0]["reason"]


@pytest.mark.parametrize(
    ("grounded", "polite", "outcome"),
    [
        ("pass", "pass", "scored"),
        ("cannot_tell", "cannot_tell", "scored"),
        ("pass", "garbage", "error"),
        (RuntimeError("x"), "garbage", "dead"),
        (RuntimeError("x"), "pass", "dead"),
    ],
)
def test_the_worst_that_happened_names_the_record(world: World, grounded: Any, polite: Any, outcome: str) -> None:
    """Dead before error before scored; a criterion that was scored wins over one that was not."""
    world.ingest(record(1))
    by_priority = iter([grounded, polite, polite])  # what is no grade is asked for once more
    world.drain(Judge(lambda _: next(by_priority)), concurrency=1)
    assert_adds_up(world, 1, **{outcome: 1})
    assert world.rows(records_table)[0]["outcome"] == outcome


def test_every_failure_of_a_commit_leaves_the_work_to_be_done_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grades, scores, rollups and ledger are one transaction."""
    world.ingest(record(1))
    before = world.everything("work")
    with monkeypatch.context() as patch:
        patch.setattr("evalpipe.store.ledgers.set_outcomes", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            world.drain()
    assert world.everything("work") == before
    world.clock.pass_(seconds=61)
    world.drain()
    assert_adds_up(world, 1, scored=1)


# ---------------------------------------------------------------------------------------------------------- redrive


def test_dead_work_that_is_redriven_leaves_the_ledger_exact(world: World, queue: Queue) -> None:
    """The record is in flight again, then scored; it is never both, and never less than nothing."""
    world.ingest(*records(5))
    world.drain(Judge(lambda _: RuntimeError("bug")))
    assert_adds_up(world, 5, dead=5)
    assert redrive(world.store, queue, None, world.clock()).work == 10
    assert_adds_up(world, 5, in_flight=5)
    assert redrive(world.store, queue, None, world.clock()).work == 0
    world.drain()
    assert_adds_up(world, 5, scored=5)
    assert min(row["n"] for row in world.rows(ledger_table)) >= 0


def test_redriving_one_of_two_dead_works_at_a_time_leaves_the_ledger_exact(world: World, queue: Queue) -> None:
    """In whatever order they die and are owed again."""
    world.ingest(record(1))
    world.drain(Judge(lambda _: RuntimeError("bug")))
    first, second = (row["work_id"] for row in world.rows(work))
    redrive(world.store, queue, [first], world.clock())
    assert_adds_up(world, 1, in_flight=1)
    redrive(world.store, queue, [second], world.clock())
    assert_adds_up(world, 1, in_flight=1)
    world.drain(Judge(lambda _: RuntimeError("bug")), concurrency=1)
    assert_adds_up(world, 1, dead=1)
    redrive(world.store, queue, [first], world.clock())
    world.drain()
    assert_adds_up(world, 1, dead=1)
    redrive(world.store, queue, [second], world.clock())
    world.drain()
    assert_adds_up(world, 1, scored=1)


def test_dead_work_redriven_while_the_record_owes_other_work_is_not_taken_back_twice(
    world: World, queue: Queue
) -> None:
    """The record was never booked as dead, so there is nothing to take back."""
    world.ingest(record(1))
    by_priority = iter([RuntimeError("bug"), JudgeUnavailable("later")])
    world.drain(Judge(lambda _: next(by_priority)), concurrency=1)
    assert Counter(row["state"] for row in world.rows(work)) == {"dead": 1, "pending": 1}
    assert_adds_up(world, 1, in_flight=1)
    assert redrive(world.store, queue, None, world.clock()).work == 1
    assert_adds_up(world, 1, in_flight=1)
    world.clock.pass_(seconds=10)
    world.drain()
    assert_adds_up(world, 1, scored=1)


def play(world: World, queue: Queue) -> int:
    """Ingest what waits in the queue, as a worker would."""
    n = 0
    while raw := queue.client.rpop("evalpipe.ingest"):
        envelope = json.loads(raw)
        blob = json.loads(envelope["body"])[0][0]
        world.ingest_stage(blob, envelope["headers"], world.clock())
        n += 1
    return n


def test_a_message_that_fails_again_can_be_redriven_again_until_it_is_read(world: World, queue: Queue) -> None:
    """The workers were not upgraded yet: nothing is forgotten, and at the end every record is counted once."""
    hour = int(AT.timestamp())
    later = record(2, captured_at=AT + timedelta(hours=1))
    blob, headers = message([record(1), later])
    assert headers["evalpipe_hours"] == {f"desk|{hour}": 1, f"desk|{hour + 3600}": 1}
    newer = blob.replace('"schema":1', '"schema":2')
    world.ingest_stage(newer, headers, world.clock())
    for _ in range(2):
        (one, _other) = world.rows(dead_letters)
        assert redrive(world.store, queue, [one["dead_letter_id"]], world.clock.pass_(minutes=1)).messages == 2
        assert sum(queue.queued().counts.values()) == 2
        play(world, queue)
        assert [row["redriven_at"] for row in world.rows(dead_letters)] == [None, None]
    world.ingest_stage(blob, headers, world.clock())  # as an upgraded worker reads it
    redrive(world.store, queue, None, world.clock())
    queue.client.delete("evalpipe.ingest")
    world.drain()
    assert_adds_up(world, 1, scored=1)


def test_records_that_fail_again_are_dead_again_each_by_itself(world: World, queue: Queue) -> None:
    """Equal bytes or not: so many bad records, so many dead letters, however often they are tried."""
    good, headers = message([record(1), {}, {}, record(3, output="x" * 30_000)])
    world.ingest_stage(good, headers, world.clock())
    world.measure(world.meter(calls=4, sampled=4, enqueued=4), world.clock())
    world.drain()
    for _ in range(3):
        world.clock.pass_(minutes=5)
        line = world.lines()[""]
        assert (line.dead, line.scored, line.lost, line.difference) == (3, 1, 0, 0)
        assert redrive(world.store, queue, None, world.clock()).messages == 3
        line = world.lines(queue.queued().counts)[""]
        assert (line.in_flight, line.lost, line.difference) == (3, 0, 0)
        assert play(world, queue) == 3
        again = world.everything()
        assert redrive(world.store, queue, ["none"], world.clock()).messages == 0
        assert world.everything() == again


# ---------------------------------------------------------------------------------------------------------- rescore


STRICTER = HEURISTICS.replace("max: 200", "max: 5") + '  - {name: kind, judge: {kind: boolean, rubric: "kind?"}}\n'


def stricter(world: World) -> ScoringPlan:
    """The scorecard as it is after an edit."""
    card = Scorecard.model_validate_json(json.dumps(yaml.safe_load(STRICTER)))
    return ScoringPlan(card, lambda _: bool(world.settings.judge))


def test_rescoring_twice_or_twice_at_once_counts_once(world: World) -> None:
    """New scores beside the old ones, with ledger lines of their own; the old ones stay."""
    world.ingest(*records(30))
    world.drain()
    plan = stricter(world)
    run = partial(rescore, world.store, plan, since=AT, now=world.clock, progress=lambda _: None)
    done = at_once(run, run)
    assert sum(d.rescored for d in done) == 30
    again = run()
    assert (again.rescored, again.known, again.owed) == (0, 30, 0)
    assert world.lines()[f"support@{plan.scorecard.version}"].in_flight == 30
    world.drain()
    assert_adds_up(world, 30, scored=30)
    line = world.lines()[f"support@{plan.scorecard.version}"]
    assert (line.sampled, line.scored, line.difference) == (30, 30, 0)
    assert_rollups_are_the_sums_of_the_scores(world.store)


def test_rescoring_a_record_whose_payload_cannot_be_read_leaves_it_alone(world: World) -> None:
    """Another version of evalpipe may have written it."""
    world.ingest(*records(3))
    with world.store.begin() as tx:
        broken = update(records_table).where(records_table.c.record_id == "r-1")
        tx.connection.execute(broken.values(payload=b'{"record_id": 5}'))
    done = rescore(world.store, stricter(world), since=AT, now=world.clock, progress=lambda _: None)
    assert (done.rescored, done.known) == (2, 0)
    world.drain()
    assert world.count(work, state="dead") == 2


# --------------------------------------------------------------------------------------------------------- evaluate


def arms(start: int, stop: int) -> list[Record]:
    """A canary that promises refunds, beside a baseline that does not."""
    return [
        record(i + arm, variant=variant, output=output, captured_at=AT + timedelta(seconds=2 * i))
        for i in range(start, stop)
        for arm, variant, output in ((0, "baseline", "Within 30 days."), (1000, "canary", "REFUND"))
    ]


def scored_of_canary(row: dict[str, Any]) -> int:
    """Scores of the canary that a rollout's gate has taken."""
    return int(row["state"]["gates"]["grounded"]["arms"]["canary"]["scored"])


def bad_canary(world: World, n: int = 60) -> None:
    """Both arms, graded."""
    for start in range(0, n, 30):
        world.ingest(*arms(start, start + 30))
    world.drain(concurrency=64)
    world.clock.pass_(minutes=3)


def test_a_bad_canary_is_rolled_back_once_however_many_evaluate(make_world: Callable[..., World]) -> None:
    """Two evaluators at once, again, and after a restart: one rollback, one incident, told once on each channel."""
    world = make_world(channels={"one": Channel(), "two": Channel()})
    bad_canary(world)
    at_once(*[lambda: world.evaluate(world.clock())] * 3)
    world.evaluate(world.clock.pass_(seconds=40))
    made = world.rows(decisions)
    assert [row["action"] for row in made].count("rollback") == 1
    assert [row["seq"] for row in made] == list(range(1, len(made) + 1))
    assert world.rows(rollouts)[0]["phase"] == "rolled_back"
    told = [row for row in world.rows(outbox_table) if row["type"] == ROLLBACK]
    assert sorted(row["channel"] for row in told) == ["one", "two"]
    assert len({row["event_id"] for row in told}) == 2
    assert [row["source"] for row in world.rows(incidents)].count("rollback") == 1
    before = world.everything("alerts", "evaluations")
    world.evaluate(world.clock.pass_(seconds=40))
    assert world.everything("alerts", "evaluations") == before


@pytest.mark.parametrize("where", ["outbox.post", "alerting.open_incident", "rollouts.add_decision"])
def test_a_decision_and_its_telling_are_one_transaction(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """If any of it fails nothing has happened, and it is logged; afterwards it happens, the same."""
    world = make_world(channels={"one": Channel()})
    bad_canary(world)
    before = world.everything()
    with monkeypatch.context() as patch:
        patch.setattr(f"evalpipe.store.{where}", lambda *_, **__: 1 / 0)
        with suppress(ZeroDivisionError):  # of the alerts' turn
            world.evaluate(world.clock())
    assert "no decisions on rollout" in caplog.text
    after = world.everything()
    changed = {name for name, rows in after.items() if rows != before[name]}
    assert changed <= {"alerts", "evaluations", "growths", "incidents"}
    assert {row["source"] for row in after["incidents"]} <= {"alert"}
    world.evaluate(world.clock())
    assert "rollback" in {row["action"] for row in world.rows(decisions)}


def test_decisions_do_not_depend_on_how_often_one_looks(
    make_world: Callable[..., World], migrated_file: Path, tmp_path: Path
) -> None:
    """Evaluated after every message or once at the end: the same rollback, by the same evidence, with the same hash."""
    (tmp_path / "once").mkdir()
    second = shutil.copy(migrated_file, tmp_path / "second.db")
    often, once = make_world(), World(f"sqlite:///{second}", tmp_path / "once")
    hashes = []
    for world in (often, once):
        for start in range(0, 60, 10):
            world.ingest(*arms(start, start + 10))
            world.drain(concurrency=64)
            if world is often:
                world.evaluate(world.clock())
        world.evaluate(world.clock())
        hashes += [row["inputs_hash"] for row in world.rows(decisions, action="rollback")]
    once.close()
    assert len(hashes) == 2
    assert hashes[0] == hashes[1]


def test_a_score_that_waits_holds_the_order_and_one_that_is_too_late_is_an_error(world: World) -> None:
    """Order is that of arrival; after two minutes the fold goes on without it, and it never counts against an arm."""
    world.ingest(record(1, variant="canary", output="SLOW"))
    world.ingest(*records(4, start=10, variant="canary"))
    judge = Judge(lambda user: JudgeUnavailable("slow", retry_after_s=900) if "SLOW" in user else "pass")
    world.drain(judge)
    world.evaluate(world.clock())
    assert world.rows(rollouts)[0]["folded_seq"] == 0
    world.evaluate(world.clock.pass_(seconds=90))
    assert world.rows(rollouts)[0]["state"]["health"][0] == "outage"
    assert world.rows(rollouts)[0]["folded_seq"] == 0
    world.evaluate(world.clock.pass_(seconds=31))
    row = world.rows(rollouts)[0]
    assert row["folded_seq"] == 5
    assert scored_of_canary(row) == 4
    world.clock.pass_(seconds=1800)
    world.drain()
    world.evaluate(world.clock())
    assert scored_of_canary(world.rows(rollouts)[0]) == 4


def test_dead_work_of_another_scorecard_with_the_same_criterion_closes_nothing(world: World) -> None:
    """Nor does a later score of a rescoring replace the one that the decision stands on."""
    world.ingest(*records(3, variant="canary"))
    with world.store.begin() as tx:
        other = works.Work("r-0", "other", "v", "grounded", "desk", AT, 1.0, 5)
        works.add_work(tx, [other], AT)
        tx.connection.execute(update(work).where(work.c.work_id == other.work_id).values(state="dead"))
    world.evaluate(world.clock())
    assert world.rows(rollouts)[0]["folded_seq"] == 0
    world.drain()
    world.clock.pass_(seconds=1)
    row = world.rows(scores, record_id="r-0", criterion="grounded")[0]
    with world.store.begin() as tx:
        late = {**row, "scorecard_version": "v2", "epoch": "e2", "value": 0.0, "scored_at": world.clock()}
        tx.insert_new(scores, [late])
        rollout_id = world.rows(rollouts)[0]["rollout_id"]
        found = readings(tx, rollout_id, {"grounded": 0}, "support", 10)["grounded"]
    assert {(r.value, r.epoch) for r in found} == {(1.0, row["epoch"])}


def test_a_rollout_that_cannot_be_read_stops_no_other_decision(make_world: Callable[..., World]) -> None:
    """Its state is of another version, say; alerts and other rollouts are evaluated all the same."""
    world = make_world(channels={"one": Channel()})
    bad_canary(world)
    good = world.rows(rollouts)[0]
    broken = {**good, "rollout_id": "a-broken-one", "state": {"version": 99, "plan_hash": "x"}}
    with world.store.begin() as tx:
        tx.connection.execute(insert(rollouts), broken)
    world.clock.pass_(seconds=60)
    world.evaluate(world.clock())
    assert {row["rollout_id"]: row["phase"] for row in world.rows(rollouts)} == {
        "a-broken-one": "running", good["rollout_id"]: "rolled_back",
    }  # fmt: skip
    assert "firing" in {row["status"] for row in world.rows(alerts)}


def test_an_alert_fires_once_and_resolves_once_however_many_evaluate(make_world: Callable[..., World]) -> None:
    """Two evaluators at once, and new ones each time as after a restart."""
    world = make_world(channels={"one": Channel()}, card=HEURISTICS.replace("max: 200", "max: 1") + ALERT)
    world.ingest(*records(20))
    for _ in range(3):
        world.clock.pass_(seconds=10)
        at_once(*[lambda: world.evaluate(world.clock())] * 3)
    assert [row["status"] for row in world.rows(alerts)] == ["firing"]
    assert [row["resolved_at"] for row in world.rows(incidents)] == [None]
    world.clock.pass_(minutes=20)
    world.ingest(*(record(500 + i, output="ok", captured_at=world.clock()) for i in range(20)))
    for _ in range(3):
        at_once(*[lambda: world.evaluate(world.clock())] * 2)
        world.clock.pass_(seconds=10)
    assert [row["status"] for row in world.rows(alerts)] == ["resolved"]
    assert [len(row["timeline"]) for row in world.rows(incidents)] == [2]


ALERT = "alerts:\n  - {name: too-long, criterion: length, mean: {below: 0.5}, min_sample: 10, severity: SEV3}\n"


def test_an_alert_looks_at_the_newest_epoch_only(make_world: Callable[..., World]) -> None:
    """Scores of before an edit of the criterion are not mixed with those after it."""
    world = make_world(judge="", card=HEURISTICS.replace("max: 200", "max: 1") + ALERT)
    world.ingest(*records(20))
    world.evaluate(world.clock.pass_(seconds=1))
    world.clock.pass_(minutes=4)
    row = world.rows(scores)[0]
    with world.store.begin() as tx:
        of = series.Series("desk", "", "production", "baseline", row["release_id"], "support", "length", "e-new")
        fresh = [series.Entry(f"n-{i}", "v2", of, AT + timedelta(minutes=3), scored(1.0), 1.0, "s") for i in range(12)]
        series.add_scores(tx, fresh, world.clock())
    world.evaluate(world.clock())
    (alert,) = world.rows(alerts)
    assert (alert["state"]["n"], alert["state"]["value"]) == (12, 1.0)


# ---------------------------------------------------------------------------------------------------------- deliver


def posted(world: World, channel: Channel) -> Deliver:
    """A rollback that is owed, and the stage to deliver it."""
    with world.store.begin() as tx:
        note = Notification("evt_1", ROLLBACK, "s", world.clock(), {}, "/t")
        outbox.post(tx, note, "one", b"the bytes")
    return Deliver(world.store, {"one": channel}, world.clock)


def test_a_notification_is_delivered_once_and_every_attempt_is_logged(world: World) -> None:
    """A failure is tried again on the schedule, with the same bytes and id."""
    channel = Channel(Delivery(ok=False, status=500, error="HTTP 500", recoverable=True))
    deliver = posted(world, channel)
    assert deliver().failed == 1
    assert deliver() == deliver.__class__(world.store, {"one": channel}, world.clock)()
    world.clock.pass_(seconds=1.2)
    assert deliver().delivered == 1
    world.clock.pass_(days=9)
    assert deliver().delivered == 0
    assert channel.sent == [("evt_1", b"the bytes")] * 2
    assert [(row["attempt"], row["ok"], row["status"]) for row in world.rows(deliveries)] == [(1, 0, 500), (2, 1, 200)]
    assert [(row["state"], row["attempts"]) for row in world.rows(outbox_table)] == [("delivered", 2)]


def test_a_receiver_that_never_answers_is_given_up_and_can_be_tried_again_by_hand(world: World) -> None:
    """After the whole schedule it is dead with the reason; redelivery begins the schedule anew."""
    channel = Channel(*[Delivery(ok=False, status=503, error="HTTP 503", recoverable=True)] * 100)
    deliver = posted(world, channel)
    for _ in range(len(URGENT_S) + 3):
        deliver()
        world.clock.at = max(world.clock.at, world.rows(outbox_table)[0]["next_attempt_at"])
    (row,) = world.rows(outbox_table)
    assert (row["state"], row["attempts"], row["reason"]) == ("dead", len(URGENT_S) + 1, "HTTP 503")
    with world.store.begin() as tx:
        assert outbox.redeliver(tx, ["evt_1", "none"], world.clock()) == 1
    deliver()
    assert world.rows(outbox_table)[0]["state"] == "pending"
    channel.results.clear()
    world.clock.pass_(seconds=2)
    assert deliver().delivered == 1


@pytest.mark.parametrize(
    "result",
    [
        Delivery(ok=False, status=410, error="gone", recoverable=True, disable=True),
        Delivery(ok=False, status=400, error="bad request", recoverable=False),
    ],
)
def test_a_receiver_that_wants_no_more_is_not_asked_again(world: World, result: Delivery) -> None:
    """A refusal is final."""
    deliver = posted(world, Channel(result))
    deliver()
    assert [(row["state"], row["reason"]) for row in world.rows(outbox_table)] == [("dead", result.error)]


def test_a_deliverer_that_lost_its_lease_does_not_undo_what_the_next_one_did(world: World) -> None:
    """It sent twice, which receivers know; the state is that of the holder of the lease."""
    deliver = posted(world, Channel())
    with world.store.begin() as tx:
        stale = outbox.claim(tx, outbox.Lane("one", True), world.clock(), timedelta(seconds=60))
    assert stale is not None
    world.clock.pass_(seconds=61)
    assert deliver().delivered == 1
    deliver._settle(stale, Delivery(ok=False, status=500, error="HTTP 500", recoverable=True))
    assert [row["state"] for row in world.rows(outbox_table)] == ["delivered"]
    assert [(row["attempt"], row["ok"]) for row in world.rows(deliveries)] == [(1, 0), (2, 1)]


def test_a_channel_that_is_not_configured_any_more_keeps_its_notifications(world: World) -> None:
    """They wait with the reason, for the schedule's length."""
    posted(world, Channel())
    Deliver(world.store, {}, world.clock)()
    (row,) = world.rows(outbox_table)
    assert row["state"] == "pending"
    assert "no channel named 'one'" in row["reason"]


# --------------------------------------------------------------------------------------------- retention and erasure


def test_what_is_past_its_retention_goes_and_what_is_in_flight_stays(
    world: World, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches; rollups and ledger keep the numbers, so that old hours still add up."""
    monkeypatch.setattr("evalpipe.pipeline.maintain.BATCH", 4)
    world.ingest(*records(10), {})
    world.drain()
    world.measure(world.meter(calls=13, sampled=13, enqueued=13), world.clock())
    world.ingest(record(100), record(101))
    rescored = stricter(world)
    rescore(world.store, rescored, since=AT, now=world.clock, progress=lambda _: None)
    with world.store.begin() as tx:
        owing = update(work).where(work.c.origin == "rescore", work.c.record_id != "r-3")
        tx.connection.execute(owing.values(state="done"))
    before = world.lines()[""]
    world.clock.pass_(days=91)
    removed = Maintain(world.store, queue, timedelta(days=90))(world.clock())
    assert (removed.records, removed.dead_letters) == (9, 1)
    assert {row["record_id"] for row in world.rows(records_table)} == {"r-3", "r-100", "r-101"}
    for table in (scores, grades, work):
        assert {row["record_id"] for row in world.rows(table)} <= {"r-3", "r-100", "r-101"}
    after = world.lines()[""]
    assert after == before
    assert (after.scored, after.dead, after.in_flight, after.lost, after.difference) == (10, 1, 2, 0, 0)
    assert Maintain(world.store, queue, timedelta(days=90))(world.clock()).records == 0


def test_quarantine_becomes_dead_letters_whatever_it_holds(world: World, queue: Queue) -> None:
    """Headers that tell nonsense, reasons that no database takes, bytes that are no text: nothing stops upkeep."""
    hour = int(AT.timestamp())
    good = json.dumps({"headers": {"origin": "app-1", "evalpipe_hours": {f"desk|{hour}": 7}}}).encode()
    odd = [b"\xff\xfe", b"[" * 100_000, b"null",
           b'{"headers": {"evalpipe_hours": {"desk|x": "y", "a|1": -1}, "origin": 5}}',
           json.dumps({"headers": {"origin": "\x00", "evalpipe_hours": {f"de\x00|{hour}": 1}}}).encode()]  # fmt: skip
    for raw in (good, *odd):
        quarantine(queue.client, raw, "cannot be decoded: \x00" + "x" * 10_000)
    maintain = Maintain(world.store, queue, timedelta(days=90))
    maintain(world.clock())
    maintain(world.clock())
    assert queue.quarantined(10) == []
    letters = world.rows(dead_letters)
    assert Counter(bytes(row["payload"]) for row in letters) == Counter([good, *odd])
    assert world.lines()[""].dead == 7
    assert max(len(row["reason"]) for row in letters) <= 2000


def bytes_of_everything(world: World) -> str:
    """Every value of every table, as text."""
    values = [value for rows in world.everything().values() for row in rows for value in row.values()]
    return "\n".join(
        bytes(value).decode("utf-8", "replace") if isinstance(value, bytes | memoryview) else str(value)
        for value in values
    )


def test_erasing_a_user_leaves_nothing_of_theirs_anywhere(world: World, queue: Queue) -> None:
    """Payloads, grades, scores, reasons, dead letters of each kind, and keys; other users' stay, and all adds up."""
    mine = {"user_id": 'u-"MARKER"é', "session_id": "MARKER-session"}
    theirs = {"user_id": "u-other", "session_id": "KEEP-session"}
    said = {"output": "MARKER said this", "messages": [{"role": "user", "content": "MARKER asked"}]}
    world.ingest(
        *(record(i, variant="canary", **mine, **said) for i in range(3)), record(9, **theirs, output="KEEP this")
    )
    world.ingest(record("big", **mine, output="MARKER" * 9_000), process="app-2")
    blob, headers = message([record("m1", **mine, **said), record("m2", **theirs)], process="app-3")
    world.ingest_stage(blob.replace('"schema":1', '"schema":9'), headers, world.clock())
    quarantine(queue.client, json.dumps({"body": json.dumps([[blob], {}, {}]), "headers": headers}).encode(), "odd")
    Maintain(world.store, queue, timedelta(days=90))(world.clock())
    world.ingest_stage(message([{"only": "KEEP-letter"}])[0], {}, world.clock())

    def says(user: str) -> Any:
        if "MARKER" not in user:
            return "pass"
        return JudgeUnavailable("cannot grade 'MARKER'") if len(judge.calls) % 2 else "MARKER"

    judge = Judge(says)
    world.drain(judge)
    world.clock.pass_(seconds=1)
    assert "MARKER" in bytes_of_everything(world)
    before = world.lines()[""]
    with world.store.begin() as tx:
        assert erase_user(tx, mine["user_id"]) == 3
    left = bytes_of_everything(world)
    assert "MARKER" not in left
    assert left.count("KEEP") >= 3
    assert world.lines()[""] == before
    assert redrive(world.store, queue, None, world.clock()).messages == 1
    world.clock.pass_(seconds=60)
    world.drain(Judge())
    assert "MARKER" not in bytes_of_everything(world)


def test_a_grade_that_comes_after_the_erasure_quotes_nothing(world: World) -> None:
    """The judge was reading while the user was erased."""
    world.ingest(record(1, user_id="me"))
    stage = world.judge_stage(Judge(lambda _: "MARKER is no grade"))
    ended = [asyncio.run(stage._run(held)) for held in stage._claim(9)]
    with world.store.begin() as tx:
        erase_user(tx, "me")
    stage._commit(ended, Drained())
    assert world.count(grades) == 2
    assert "MARKER" not in bytes_of_everything(world)
    assert_adds_up(world, 1, error=1)


def test_erasure_and_judging_at_once_leave_nothing(world: World) -> None:
    """Whichever is first, at the end no grade of the user's records quotes anything."""
    world.ingest(*(record(i, user_id="me") for i in range(30)))

    def erase() -> None:
        time.sleep(0.05)
        world.store.patiently(lambda tx: erase_user(tx, "me"))

    judge = Judge(lambda _: "MARKER")
    at_once(lambda: world.drain(judge, concurrency=4), erase)
    world.drain(judge)
    assert "MARKER" not in bytes_of_everything(world)
    line = world.lines()["support"]
    assert (line.error + line.dead, line.difference) == (30, 0)
