"""Alerts from the call to the page and back, with real services: the hook, Redis, PostgreSQL, workers, a receiver."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import pytest
from fastapi.testclient import TestClient
from services import Postgres, Valkey, create_database
from spine_fleet import AT_ONCE, Fleet, wait_until
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.exc import DBAPIError
from typer.testing import CliRunner

from evalpipe import Hook, Release
from evalpipe.api.app import make_api
from evalpipe.cli.app import app
from evalpipe.errors import CallRefused
from evalpipe.incidents.incident import id_of_alert
from evalpipe.notification import ALERT_FIRING, ALERT_RESOLVED
from evalpipe.receiver import Receiver
from evalpipe.signing import new_secret
from evalpipe.store import alerting
from evalpipe.store import tables as t
from evalpipe.store.meter_slots import SLOT

CARD = """
name: answers
match: {service: "*"}
criteria:
  - {name: short, heuristic: length, params: {max: 3}}
"""
RULES = """
alerts:
  - name: got-longer
    scorecard: answers
    match: {service: [desk, sturdy]}
    detect: quality
    params: {criterion: short, average_run_length: 10000}
    normal: {baseline: latest}
    runbook: https://wiki.example/got-longer
  - name: cost-explosion
    match: {service: dear}
    detect: cost
    params: {settle: 10s}
    by: [feature]
    kill_switch: true
  - name: other-model
    detect: fingerprint
    params: {fingerprint: fixed}
  - {name: too-long, scorecard: answers, match: {service: plain}, criterion: short, mean: {below: 0.5}, min_sample: 10}
"""
"""The third fails when the table that it reads is away."""
SHORT, LONG = "Yes.", "word " * 40
ENOUGH = 1_000
"""Scores of a baseline."""
GAP_S = 60 / 1000


class House:
    """A fleet, the services that it watches, and who is paged."""

    def __init__(self, fleet: Fleet, receiver: Receiver, api: TestClient) -> None:
        self.fleet, self.receiver, self.api = fleet, receiver, api
        self.hooks = {name: self.hook(name) for name in ("desk", "sturdy", "plain")}
        self.fell_at: datetime | None = None

    def hook(self, service: str, **options: Any) -> Hook:
        """Of a service, that samples everything and sends it when it is told to."""
        settings = {"sample_rate": 1.0, "flush_interval_s": 600.0, **options}
        made = Hook(service, Release(variant="v1"), redis_url=self.fleet.settings.redis_url, **settings)
        self.fleet.hooks.append(made)
        return made

    def answer(self, service: str, n: int, said: Callable[[int], str]) -> None:
        """So many calls, up to 64 of them in one message, and their scores."""
        before = self.scored(service)
        for i in range(n):
            with self.hooks[service].call(feature="chat") as call:
                call.messages = [{"role": "user", "content": f"question {i}"}]
                call.output = said(i)
        assert self.hooks[service].flush(30)
        assert wait_until(lambda: self.scored(service) >= before + n), self.tail()

    def scored(self, service: str) -> int:
        """How many scores a service has."""
        return self.fleet.count(t.scores, service=service)

    def learn(self, service: str) -> None:
        """Capture what is normal of a service: one answer in twenty is too long."""
        self.answer(service, ENOUGH, lambda i: LONG if i % 20 == 0 else SHORT)
        assert wait_until(self.folded), self.tail()
        done = CliRunner().invoke(
            app, ["baseline", "capture", f"{service}-normal", "--service", service, "--variant", "v1", "--json"],
            env=self.fleet.environ,
        )  # fmt: skip
        assert done.exit_code == 0, (done.output, done.exception)
        assert json.loads(done.stdout)["n_scores"] == ENOUGH

    def folded(self) -> bool:
        """Whether all growth was given to the rules."""
        return self.fleet.count(t.growths) == 0

    def alert(self, rule: str, service: str) -> Any:
        """The row of an alert; None if there is none."""
        query = select(t.alerts).where(t.alerts.c.rule == rule, t.alerts.c.service == service)
        with self.fleet.store.read() as tx:
            return tx.connection.execute(query).first()

    def status(self, rule: str, service: str) -> str:
        """Of an alert; "" if there is none."""
        row = self.alert(rule, service)
        return row.status if row is not None else ""

    def told(self, type_: str, rule: str, service: str) -> list[Any]:
        """The data of what the receiver took of an alert."""
        found = (e["data"] for e in self.receiver.events if e["type"] == type_)
        return [data for data in found if (data["rule"], data["service"]) == (rule, service)]

    def tail(self) -> str:
        """Of the fleet's log."""
        return self.fleet.log.read_text()[-3000:]

    def fall(self) -> None:
        """The desk's answers get too long, once in the life of this house."""
        if self.fell_at is None:
            self.learn("desk")
            self.answer("desk", 60, lambda _: LONG)
            self.fell_at = datetime.now(UTC)
            assert wait_until(lambda: bool(self.told(ALERT_FIRING, "got-longer", "desk"))), self.tail()


class Dear(threading.Thread):
    """An application with 1,000 calls a minute of about a cent each, until they explode."""

    def __init__(self, hook: Hook) -> None:
        super().__init__(daemon=True)
        self.hook, self.factor, self.exploded_at, self.refused_at = hook, 1.0, 0.0, 0.0
        self.over, self.random = threading.Event(), random.Random(1)

    def run(self) -> None:
        """Call after call."""
        while not self.over.wait(GAP_S):
            try:
                with self.hook.call(feature="agent", user_id=f"u{self.random.randrange(50)}", enforce=True) as call:
                    call.output, call.input_tokens, call.output_tokens = SHORT, 400, int(200 * self.factor)
                    call.cost_usd = 0.01 * self.factor * self.random.lognormvariate(-0.5, 1.0)
            except CallRefused:
                self.refused_at = self.refused_at or time.time()

    def explode(self) -> None:
        """From now on each call costs ten times as much."""
        self.exploded_at, self.factor = time.time(), 10.0

    def remember(self, house: House) -> None:
        """The hour and a half before, as its meter would have told it."""
        assert wait_until(lambda: house.fleet.count(t.releases, service="dear") == 1), house.tail()
        now = datetime.now(UTC).replace(microsecond=0)
        first = now - timedelta(seconds=now.second % 5, minutes=90)
        calls = SLOT.total_seconds() / GAP_S
        with house.fleet.store.begin() as tx:
            release_id = tx.connection.scalar(select(t.releases.c.release_id).where(t.releases.c.service == "dear"))
            slots = [
                {"slot_at": first + SLOT * number, "release_id": release_id, "feature": "agent", "calls": round(calls),
                 "tokens": round(600 * calls), "cost_usd": 0.01 * calls, "cost_squares": 2.7e-4 * calls}
                for number in range(88 * 12)
            ]  # fmt: skip
            tx.connection.execute(insert(t.meter_slots), slots)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()


@pytest.fixture(scope="module")
def house(postgres_server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A worker that takes in and delivers, another that evaluates and may be killed, and the beat."""
    folder = tmp_path_factory.mktemp("house")
    postgres_server.start()
    secret = new_secret()
    with Valkey(folder / "valkey") as valkey, Receiver(secrets=secret) as receiver:
        environ = {
            "EVALPIPE_WEBHOOK_URL": receiver.url,
            "EVALPIPE_WEBHOOK_SECRET": secret,
            "EVALPIPE_API_KEYS": "key-one",
            "EVALPIPE_URL": "https://evals.example",
        }
        url = create_database(postgres_server.url(), f"house_{folder.name}")
        fleet = Fleet(folder, valkey.url, url, environ)
        (fleet.settings.scorecards / "support.yaml").write_text(CARD)
        (folder / "alerts.yaml").write_text(AT_ONCE + RULES)
        try:
            fleet.start("worker", "worker", "--queues", "ingest,measure,oversee,deliver,publish", "--processes", "1")
            start_evaluator(fleet)
            fleet.start("beat", "beat")
            api = TestClient(make_api(fleet.settings), headers={"Authorization": "Bearer key-one"})
            with api:
                yield House(fleet, receiver, api)
        finally:
            fleet.close()


def start_evaluator(fleet: Fleet) -> None:
    """The worker that evaluates."""
    fleet.start("evaluator", "worker", "--queues", "evaluate", "--processes", "1")


@pytest.fixture(scope="module")
def dear(house: House) -> Iterator[Dear]:
    """An application that has run for a while."""
    with Dear(house.hook("dear", sample_rate=0.02, flush_interval_s=1.0)) as made:
        made.remember(house)
        yield made


def test_a_drop_against_a_captured_baseline_pages_once_and_is_acknowledged(house: House, dear: Dear) -> None:
    """The page has the numbers, the records and the runbook; who takes it is told to the receiver too."""
    assert dear.is_alive()
    house.fall()
    (page,) = house.told(ALERT_FIRING, "got-longer", "desk")
    (alert,) = page["alerts"]
    assert (page["cause"], page["severity"], alert["kind"]) == ("first", "SEV2", "quality")
    assert alert["runbook"] == "https://wiki.example/got-longer"
    assert alert["value"] < 0.6 < alert["threshold"]
    assert len(alert["explanation"]["examples"]) == 10
    assert page["url"].startswith("https://evals.example/alerts#desk%2F")
    taken = house.api.post(f"/v1/alerts/{alert['alert_id']}/ack", json={"actor": "ada", "reason": "rolling back"})
    assert (taken.status_code, taken.json()["acknowledged"]) == (200, [alert["alert_id"]])
    assert wait_until(lambda: len(house.told(ALERT_FIRING, "got-longer", "desk")) == 2), house.tail()
    assert house.told(ALERT_FIRING, "got-longer", "desk")[1]["cause"] == "acknowledged"
    assert not house.told(ALERT_FIRING, "got-longer", "sturdy")


def test_ten_times_the_cost_stops_the_calls_in_the_application_and_pages(house: House, dear: Dear) -> None:
    """Within seconds of one another; how soon is measured by ``bench/cost_alarm.py``."""
    assert wait_until(lambda: "the usual" in (row.summary if (row := house.alert("cost-explosion", "dear")) else ""))
    assert house.status("cost-explosion", "dear") == "inactive"
    dear.explode()
    assert wait_until(lambda: dear.refused_at > 0), (house.alert("cost-explosion", "dear"), house.tail())
    assert wait_until(lambda: bool(house.told(ALERT_FIRING, "cost-explosion", "dear"))), house.tail()
    (page,) = house.told(ALERT_FIRING, "cost-explosion", "dear")
    assert page["severity"] == "SEV2"
    assert page["alerts"][0]["feature"] == "agent"
    (switch,) = [c for c in house.api.get("/v1/controls").json()["controls"] if c["service"] == "dear"]
    assert (switch["kind"], switch["actor"]) == ("switch", "evalpipe")


def test_an_evaluator_that_is_killed_and_a_database_that_restarts_lose_no_score_and_page_once(
    house: House, postgres_server: Postgres
) -> None:
    """Both in the midst of an evaluation that has taken growth out of its queue."""
    house.learn("sturdy")

    def since_the_change() -> float:
        assert wait_until(house.folded), house.tail()
        runs = house.alert("got-longer", "sturdy").state["detector"]["series"]["short"]["runs"]
        return max(float(n) for _, n, *_ in runs)

    house.answer("sturdy", 20, lambda _: SHORT)
    before = since_the_change()
    with in_the_midst_of_an_evaluation(house):
        house.fleet.kill("evaluator")
    start_evaluator(house.fleet)
    assert since_the_change() == before + 30
    with contextlib.suppress(DBAPIError), in_the_midst_of_an_evaluation(house):
        postgres_server.stop()
    postgres_server.start()
    assert since_the_change() == before + 60
    assert wait_until(lambda: bool(house.told(ALERT_FIRING, "got-longer", "sturdy"))), house.tail()
    house.answer("sturdy", 10, lambda _: LONG)
    assert since_the_change() == before + 70
    assert [page["cause"] for page in house.told(ALERT_FIRING, "got-longer", "sturdy")] == ["first"]
    assert house.fleet.count(t.incidents, service="sturdy") == 1


@contextlib.contextmanager
def in_the_midst_of_an_evaluation(house: House) -> Iterator[None]:
    """Thirty answers that are too long, and an evaluation that has folded them and cannot write what it found."""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT INTO alerts%'"
    with house.fleet.store.begin() as tx:
        tx.connection.execute(text("LOCK TABLE alerts IN EXCLUSIVE MODE"))
        house.answer("sturdy", 30, lambda _: LONG)

        def waits() -> bool:
            with house.fleet.store.read() as look:
                return look.connection.scalar(text(waiting)) == 1

        assert wait_until(waits), house.tail()
        yield


def test_a_rule_whose_table_is_away_stops_no_other(house: House) -> None:
    """It is counted as an error while that lasts, and the rules beside it page."""

    def errors() -> dict[str, int]:
        with house.fleet.store.read() as tx:
            return dict(tx.connection.scalar(select(t.evaluations.c.errors)) or {})

    rename(house, "print_sets", "print_sets_away")
    try:
        assert wait_until(lambda: errors() == {"/other-model": 1}), (errors(), house.tail())
        house.answer("plain", 12, lambda _: LONG)
        assert wait_until(lambda: bool(house.told(ALERT_FIRING, "too-long", "plain"))), house.tail()
        assert wait_until(house.folded), house.tail()
    finally:
        rename(house, "print_sets_away", "print_sets")
    assert wait_until(lambda: errors() == {}), errors()


def rename(house: House, one: str, other: str) -> None:
    """A table."""
    with house.fleet.store.begin() as tx:
        tx.connection.execute(text(f"ALTER TABLE {one} RENAME TO {other}"))


def test_what_recovers_resolves_in_the_receiver(house: House) -> None:
    """A minute after it fired, at the soonest (it is made older); nothing was paged twice meanwhile."""
    house.fall()
    assert wait_until(lambda: make_older(house, house.alert("got-longer", "desk").alert_id))
    house.answer("desk", 600, lambda i: LONG if i % 20 == 0 else SHORT)
    assert wait_until(lambda: bool(house.told(ALERT_RESOLVED, "got-longer", "desk"))), house.alert("got-longer", "desk")
    (over,) = house.told(ALERT_RESOLVED, "got-longer", "desk")
    fired = house.told(ALERT_FIRING, "got-longer", "desk")
    assert over["dedup_key"] == fired[0]["dedup_key"]
    assert len({e["id"] for e in house.receiver.events}) == len(house.receiver.events)
    assert [data["cause"] for data in fired] == ["first", "acknowledged"][: len(fired)]
    query = select(func.count()).where(t.incidents.c.service == "desk", t.incidents.c.resolved_at.is_not(None))
    with house.fleet.store.read() as tx:
        assert tx.connection.scalar(query) == 1


def make_older(house: House, alert_id: str) -> bool:
    """An alert fired a minute earlier than it did, its incident, whose id has the time, with it; not while one looks.

    Says whether it was done.
    """
    with house.fleet.store.begin() as tx:
        if not alerting.try_lock(tx):
            return False
        alert = tx.connection.execute(select(t.alerts).where(t.alerts.c.alert_id == alert_id)).one()
        earlier = alert.fired_at - timedelta(minutes=1)
        state = {**alert.state, "fired_at": earlier.isoformat()}
        mine = update(t.alerts).where(t.alerts.c.alert_id == alert.alert_id)
        tx.connection.execute(mine.values(state=state, fired_at=earlier))
        old, new = (id_of_alert(alert.alert_id, at) for at in (alert.fired_at, earlier))
        tx.connection.execute(update(t.incidents).where(t.incidents.c.incident_id == old).values(incident_id=new))
    return True
