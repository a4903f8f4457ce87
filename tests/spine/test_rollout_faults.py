"""Decisions under faults, with real services: none is lost, none is made or told twice, and their order stays."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import halting
import pytest
from halting import Halts, killed_at
from services import Postgres
from spine_fleet import PATIENCE_S, Fleet, wait_until
from sqlalchemy import select, update
from typer.testing import CliRunner

from evalpipe import Hook, receiver
from evalpipe.cli.app import app
from evalpipe.notification import ADVANCE, ROLLBACK, ROLLBACK_VERIFIED
from evalpipe.pipeline import start_rollout
from evalpipe.receiver import Event, Receiver
from evalpipe.rollout.plan import Gate, RolloutPlan, Step
from evalpipe.signing import new_secret, verify_signature
from evalpipe.store import controls
from evalpipe.store import tables as t
from evalpipe.wiring import now

BEFORE_COMMIT = (
    "evalpipe.store.rollout_log:append",
    "evalpipe.store.rollouts:add_decision",
    "evalpipe.store.outbox:post",
    "evalpipe.store.controls:roll_back",
)
BEFORE_PUBLISHING = "evalpipe.pipeline.publish:Publish.soon"
BEFORE_SENDING = "evalpipe.pipeline.deliver:Deliver._send"
BEFORE_RECORDING = "evalpipe.pipeline.deliver:Deliver._settle"
BEFORE_RECORDED = "evalpipe.store.endpoints:went_well"
PLAN = RolloutPlan(
    "r1",
    "support-desk",
    "baseline",
    "canary",
    (Gate("grounded", "grounded", min_canary=20),),
    (Step(50, bake=timedelta(hours=1)),),
    weights="ramp",
    verify_within=timedelta(seconds=10),
)


class Consumer(Receiver):
    """Takes what is signed, and counts what came for it, repetitions too."""

    def __init__(self) -> None:
        self.secret = new_secret()
        self.came: list[str] = []
        self.answers: list[int] = []
        super().__init__(secrets=self.secret, respond=self._note)

    def _note(self, event: Event) -> int | None:
        self.came.append(event["id"])
        return self.answers.pop(0) if self.answers and event["type"] == ROLLBACK else None

    def of_type(self, type_: str) -> list[Event]:
        """What was taken."""
        return [event for event in self.events if event["type"] == type_]


@pytest.fixture
def consumer() -> Iterator[Consumer]:
    """Of webhooks."""
    with Consumer() as made:
        yield made


def begin(make_fleet: Callable[..., Fleet], redis_url: str, database_url: str, consumer: Consumer) -> Fleet:
    """A fleet without a worker that decides, and a rollout that was started by a person."""
    fleet = make_fleet(
        redis_url, database_url, EVALPIPE_WEBHOOK_URL=consumer.url, EVALPIPE_WEBHOOK_SECRET=consumer.secret
    )
    with fleet.store.begin() as tx:
        start_rollout.start(
            tx, PLAN, scorecard="support", environment="production", actor="ada", reason="v2", now=now()
        )
    fleet.start("judge", "worker", "--queues", "judge,anchors", "--processes", "1")
    fleet.start("beat", "beat")
    return fleet


def judged(fleet: Fleet, n: int = 40) -> None:
    """Have as many answers of each arm judged, those of the canary bad, and nothing decided yet."""
    fleet.start("intake", "worker", "--queues", "ingest", "--processes", "1")
    hook = fleet.hook()
    for i in range(2 * n):
        serve(hook, i)
    assert wait_until(lambda: fleet.count(t.scores, criterion="grounded") == 2 * n), fleet.log.read_text()[-3000:]
    fleet.kill("intake")


def serve(hook: Hook, i: int) -> None:
    """Answer the ``i``-th user: the arms take turns, and the canary is bad."""
    arm, answer = ("canary", "A REFUND is on its way") if i % 2 else ("baseline", "Within 30 days.")
    with hook.call(feature="chat", session_id=f"s{i}", release={"variant": arm}) as call:
        call.messages = [{"role": "user", "content": f"question {i}"}]
        call.output = answer


def release_leases(fleet: Fleet) -> None:
    """Let the time pass in which a deliverer that died still owns its letter."""
    with fleet.store.begin() as tx:
        tx.connection.execute(update(t.outbox).values(lease_until=None))


def rows(fleet: Fleet, table: Any, **where: Any) -> list[Any]:
    """Rows of a table in the order of their keys."""
    query = select(table).where(*(table.c[name] == value for name, value in where.items()))
    with fleet.store.read() as tx:
        return list(tx.connection.execute(query.order_by(*table.primary_key)))


def all_told(fleet: Fleet) -> bool:
    """Whether there is a rollback and nothing is owed to anybody."""
    return fleet.count(t.decisions, action="rollback") == 1 and not fleet.count(t.outbox, state="pending")


def assert_decided_once(fleet: Fleet, consumer: Consumer) -> None:
    """No decision lost, none doubled, order kept: in the log, the outbox, the weights, the replay, and the consumer."""
    made = sorted(rows(fleet, t.decisions, rollout_id="r1"), key=lambda row: row.seq)
    assert [row.seq for row in made] == list(range(1, len(made) + 1))
    assert [row.action for row in made].count("rollback") == 1
    assert made[-1].action == "rollback"
    letters = sorted((row.channel, row.seq) for row in rows(fleet, t.outbox, subject="r1") if row.seq is not None)
    assert letters == [("webhook", row.seq) for row in made]
    assert len(rows(fleet, t.incidents, source="rollback")) == 1
    with fleet.store.read() as tx:
        (control,) = controls.entries(tx, "support-desk", "weights")
    assert (control.body["weights"], set(control.latched)) == ({"canary": 0, "baseline": 10_000}, {"canary"})
    seen = [event["data"]["seq"] for event in consumer.events if "seq" in event["data"]]
    assert seen == sorted(set(seen))
    assert len(consumer.of_type(ROLLBACK)) == 1
    assert not consumer.of_type(ADVANCE)
    done = CliRunner().invoke(app, ["rollout", "replay", "r1", "--json"], env=fleet.environ)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["decisions"] == len(made)


def came(consumer: Consumer, letter: Any, times: int) -> bool:
    """Whether a letter came so often."""
    return consumer.came.count(letter.event_id) == times


def test_a_worker_killed_between_any_two_steps_of_a_decision_loses_nothing_and_tells_it_once(
    make_fleet: Callable[..., Fleet], redis_url: str, postgres_url: str, consumer: Consumer, tmp_path: Path
) -> None:
    """Decide, commit, publish, send, record: kill -9 before each, one after the other; hooks and consumer obey."""
    fleet = begin(make_fleet, redis_url, postgres_url, consumer)
    judged(fleet)
    for number, point in enumerate(BEFORE_COMMIT):
        killed_at(fleet, tmp_path / f"halts-{number}", point)
        assert fleet.count(t.decisions) == fleet.count(t.outbox, subject="r1") == 0, point
    killed_at(fleet, tmp_path / "publish", BEFORE_PUBLISHING)
    assert fleet.count(t.decisions, action="rollback") == 1
    assert not consumer.came
    # The alert's letter has a lane of its own, which may be the first at a point.
    (letter,) = rows(fleet, t.outbox, type=ROLLBACK)
    killed_at(fleet, tmp_path / "send", BEFORE_SENDING, lambda: fleet.count(t.outbox, type=ROLLBACK, attempts=1) == 1)
    assert not consumer.came
    for number, point in enumerate((BEFORE_RECORDING, BEFORE_RECORDED), start=1):
        release_leases(fleet)
        killed_at(fleet, tmp_path / f"record-{number}", point, partial(came, consumer, letter, number))
        assert len(consumer.of_type(ROLLBACK)) == 1
        assert fleet.count(t.deliveries) == 0
    release_leases(fleet)
    halting.start(fleet, "worker")
    assert wait_until(lambda: all_told(fleet)), fleet.log.read_text()[-3000:]
    assert_decided_once(fleet, consumer)
    (letter,) = rows(fleet, t.outbox, type=ROLLBACK)
    assert consumer.came.count(letter.event_id) == letter.attempts - 1 == 3  # of the first it got nothing
    hook = fleet.hooks[0]
    assert wait_until(lambda: {hook.variant("ramp", f"u{i}") for i in range(50)} == {"baseline"})


def test_a_database_that_fails_over_at_any_step_of_a_decision_costs_time_and_nothing_else(
    make_fleet: Callable[..., Fleet],
    redis_url: str,
    postgres: Postgres,
    postgres_url: str,
    consumer: Consumer,
    tmp_path: Path,
) -> None:
    """PostgreSQL is killed between decision and commit, after the commit, and between sending and recording."""
    fleet = begin(make_fleet, redis_url, postgres_url, consumer)
    judged(fleet)
    halts = Halts(tmp_path / "halts", ["evalpipe.store.outbox:post", BEFORE_PUBLISHING, BEFORE_RECORDING])
    halting.start(fleet, "worker", halts)
    for point in halts.points:
        assert wait_until(partial(halts.reached, point)), f"{point}\n{fleet.log.read_text()[-3000:]}"
        postgres.kill()
        postgres.start()
        halts.go(point)
    assert wait_until(lambda: all_told(fleet)), fleet.log.read_text()[-3000:]
    assert_decided_once(fleet, consumer)
    hook = fleet.hooks[0]
    assert wait_until(lambda: {hook.variant("ramp", f"u{i}") for i in range(50)} == {"baseline"})


@pytest.mark.parametrize("minutes", [2, -2], ids=["worker ahead", "worker behind"])
def test_clocks_that_differ_by_minutes_change_no_decision_and_delay_none(
    make_fleet: Callable[..., Fleet],
    redis_url: str,
    sqlite_url: str,
    consumer: Consumer,
    monkeypatch: pytest.MonkeyPatch,
    minutes: int,
) -> None:
    """Hook and beat here, workers two minutes away, the consumer as far in the other direction and failing first."""
    away = timedelta(minutes=minutes)

    def elsewhere(body: bytes, headers: Any, secrets: Any) -> dict[str, Any]:
        return verify_signature(body, headers, secrets, now=now() - away)

    monkeypatch.setattr(receiver, "verify_signature", elsewhere)
    consumer.answers = [500, 503]
    fleet = begin(make_fleet, redis_url, sqlite_url, consumer)
    fleet.kill("judge")
    halting.start(fleet, "worker", ahead=away)
    halting.start(fleet, "judge", queues="judge,anchors", ahead=away)
    hook = fleet.hook()
    assert abs(away).total_seconds() > PATIENCE_S, "who waits for the other clock has failed"
    turns = itertools.count()

    def decided() -> bool:
        for i in itertools.islice(turns, 5):
            serve(hook, i)
        return fleet.count(t.decisions, action="rollback") == 1

    assert wait_until(decided), fleet.log.read_text()[-3000:]
    assert wait_until(lambda: all_told(fleet)), fleet.log.read_text()[-3000:]
    assert wait_until(lambda: {hook.variant("ramp", f"u{i}") for i in range(50)} == {"baseline"})
    assert_decided_once(fleet, consumer)
    assert [row.ok for row in rows(fleet, t.deliveries) if row.status in {500, 503}] == [0, 0]
    if minutes < 0:  # by the other clock it takes two minutes more
        assert wait_until(lambda: bool(consumer.of_type(ROLLBACK_VERIFIED)))
