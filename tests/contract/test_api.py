"""The HTTP API over real servers: keys, health that proves progress, pages, metrics, errors."""

from __future__ import annotations

import asyncio
import json
import math
import re
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.samples import Sample
from services import Postgres
from sqlalchemy import insert, update
from starlette.testclient import TestClient
from stopwatch import assert_quick

from evalpipe.api import totals
from evalpipe.api.access import OPEN
from evalpipe.api.app import make_api
from evalpipe.hook.message import task_message
from evalpipe.notification import ROLLBACK, Notification
from evalpipe.record import encode_batch
from evalpipe.settings import Settings
from evalpipe.store import alerting, migrate, outbox, rollouts, tables
from evalpipe.store.intake import DeadLetter, add_dead_letters
from evalpipe.store.sql import Store
from evalpipe.store.tables import growths
from evalpipe.wiring import Wiring, now

KEY = {"Authorization": "Bearer key-one"}
CARD = """
name: desk
description: Short answers that keep to the policy.
owner: support
match: {service: support-desk}
sampling: {judge: 100%}
criteria:
  - name: grounded
    description: Promises only what the policy gives.
    judge:
      kind: boolean
      needs: [output]
      rubric: Everything that the answer promises is in the policy.
  - name: brief
    description: Short.
    heuristic: length
    params: {max: 5}
alerts:
  - name: too-long
    criterion: brief
    mean: {below: 0.9}
    window: 1h
    min_sample: 2
    severity: SEV2
rollout:
  baseline: baseline
  canary: canary
  gates:
    - {criterion: brief, margin: 5%, min_canary: 30}
"""


@dataclass
class Desk:
    """A migrated database with a scorecard, whose stages are run by hand, and its API."""

    wiring: Wiring
    client: TestClient

    def ingest(self, outputs: list[str], *, variant: str = "baseline", at: datetime | None = None) -> list[str]:
        """Take records in as a worker does; their trace ids."""
        wires = [record_wire(output, variant, at or now()) for output in outputs]
        blob = encode_batch(wires, process_id="p1", sequence=0, sent_at=time.time(), hook_version="0.1.0")
        assert self.wiring.ingest(blob, {}, now()).new == len(outputs)
        return [wire["trace_id"] for wire in wires]

    def judge(self) -> None:
        """Grade what is owed."""
        asyncio.run(self.wiring.judge.drain(5.0, lambda: None))

    def measure(self, *, calls: int, sampled: int, enqueued: int, cost_usd: float = 0.5) -> None:
        """Take one meter message in."""
        row = {
            "service": "support-desk", "release": {"variant": "baseline"}, "feature": "refunds",
            "hour": int(time.time() // 3600) * 3600, "calls": calls, "errors": 1, "sampled": sampled,
            "not_sampled": calls - sampled, "enqueued": enqueued, "shed": {"buffer": 0, "queue": sampled - enqueued},
            "input_tokens": 900, "output_tokens": 90, "cost_usd": cost_usd,
        }  # fmt: skip
        message = {"schema": 1, "process": "p1", "seq": 1, "sent_at": time.time(), "rows": [row]}
        assert self.wiring.measure(json.dumps(message), now()).rows == 1

    def get(self, path: str, expected: int = 200, **params: Any) -> Any:
        """The JSON of an answer with that status code, checked to be strict."""
        answer = self.client.get(path, params=params, headers=KEY)
        assert answer.status_code == expected, answer.text
        return json.loads(answer.text, parse_constant=pytest.fail)

    def metrics(self) -> Scrape:
        """One scrape."""
        answer = self.client.get("/metrics", headers=KEY)
        assert answer.status_code == 200, answer.text
        return Scrape([sample for family in parse_text(answer.text) for sample in family.samples])


@dataclass
class Scrape:
    """The samples of one scrape."""

    samples: list[Sample]

    def all(self, name: str, **labels: str) -> dict[str, float]:
        """Values of a metric where ``labels`` hold, by its other labels."""
        found = [s for s in self.samples if s.name == f"evalpipe_{name}" and labels.items() <= s.labels.items()]
        return {",".join(v for k, v in s.labels.items() if k not in labels): s.value for s in found}

    def one(self, name: str, **labels: str) -> float:
        """The only value of a metric where ``labels`` hold."""
        (value,) = self.all(name, **labels).values()
        return value


def record_wire(output: str, variant: str, at: datetime) -> dict[str, Any]:
    """A record as the hook sends it."""
    return {
        "record_id": uuid.uuid4().hex, "trace_id": uuid.uuid4().hex, "captured_at": at.timestamp(),
        "release": {"service": "support-desk", "variant": variant}, "feature": "refunds", "output": output,
        "messages": [{"role": "user", "content": "May I send it back?"}], "probability": 0.5, "user_id": "user-7",
    }  # fmt: skip


@pytest.fixture
def settings(database_url: str, redis_url: str, tmp_path: Path) -> Settings:
    """Settings of a fleet with two API keys and a fake judge."""
    (tmp_path / "scorecards").mkdir()
    (tmp_path / "scorecards" / "desk.yaml").write_text(CARD)
    return Settings(
        home=tmp_path,
        database_url=database_url,
        redis_url=redis_url,
        scorecards=tmp_path / "scorecards",
        judge="fake:test",
        api_keys=("key-one", "key-two"),
        api_intake_keys=("key-app",),
        api_label_keys=("key-ada",),
    )


@pytest.fixture
def desk(settings: Settings) -> Iterator[Desk]:
    """The whole, migrated and empty."""
    wiring = Wiring(settings)
    migrate.upgrade(wiring.store)
    with TestClient(make_api(settings), raise_server_exceptions=False) as client:
        yield Desk(wiring, client)
    wiring.close()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port where a server takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield server.getsockname()[1]


def stale(seconds: float) -> datetime:
    """The instant so long ago."""
    return now() - timedelta(seconds=seconds)


def fresh() -> None:
    """Wait until health looks again."""
    time.sleep(1.05)


# Keys


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("path", ["/metrics", "/v1/scores", "/v1/ledger", "/openapi.json", "/docs", "/no-such-path"])
def test_every_path_but_health_needs_a_key(desk: Desk, path: str):
    """A path that nobody thought of is closed too; the answer says what to send."""
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic key-one"},
        {"Authorization": "key-one"},
    ):
        answer = desk.client.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "EVALPIPE_API_KEYS" in answer.json()["error"]["advice"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_each_key_opens_and_a_part_of_one_does_not(desk: Desk):
    """Two keys, so that they can be changed without a gap."""
    for key, status in (("key-one", 200), ("key-two", 200), ("key", 401), ("", 401), ("key-one key-two", 401)):
        answer = desk.client.get("/v1/alerts", headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == status, key


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_intake_key_opens_the_way_in_and_nothing_else(desk: Desk, settings: Settings):
    """Applications have it: whoever finds it there can neither read anything nor release a kill switch."""
    app = {"Authorization": "Bearer key-app"}
    for path in ("/v1/traces", "/v1/records", "/v1/feedback"):
        assert desk.client.post(path, headers=app, json={}).status_code in {200, 400}, path
        assert desk.client.get(path, headers=app).status_code == 403
        assert desk.client.post(path, headers={"Authorization": "Bearer key-one"}, json={}).status_code != 403
    for method, path in (
        ("GET", "/metrics"), ("GET", "/v1/scores"), ("GET", "/openapi.json"), ("GET", "/v1/controls"),
        ("POST", "/v1/controls"), ("PUT", "/v1/controls/desk/switch/stop"), ("POST", "/v1/records/x"), ("POST", "/no"),
        ("POST", "/v1/records/"), ("DELETE", "/v1/records"),
    ):  # fmt: skip
        answer = desk.client.request(method, path, headers=app)
        assert answer.status_code == 403, path
        assert "EVALPIPE_API_KEYS" in answer.json()["error"]["advice"]
    assert desk.client.get("/healthz", headers=app).status_code != 403
    with TestClient(make_api(replace(settings, api_keys=()))) as client:
        assert client.post("/v1/records", headers=app, json={}).status_code == 400
        assert client.get("/v1/scores", headers={"Authorization": "Bearer key-one"}).status_code == 401


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_labelling_key_opens_what_the_page_asks_for_and_nothing_else(desk: Desk, settings: Settings):
    """Who labels can neither see grades and what others said nor act on production."""
    ada = {"Authorization": "Bearer key-ada"}
    assert desk.client.get("/v1/labels/criteria", headers=ada).json()["criteria"][0]["criterion"] == "grounded"
    shown = desk.client.get(
        "/v1/labels/next", headers=ada, params={"criterion": "grounded", "annotator": "ada", "limit": 1}
    )
    assert (shown.status_code, shown.json()["records"]) == (200, [])
    assert desk.client.post("/v1/labels", headers=ada, json={}).status_code == 422
    for method, path in (
        ("GET", "/v1/labels"), ("POST", "/v1/labels/next"), ("DELETE", "/v1/labels"), ("GET", "/v1/labels/"),
        ("GET", "/v1/scores"), ("GET", "/v1/records/t-1"), ("GET", "/metrics"), ("GET", "/openapi.json"),
        ("POST", "/v1/records"), ("POST", "/v1/feedback"), ("PUT", "/v1/controls/desk/switch/stop"), ("GET", "/no"),
    ):  # fmt: skip
        answer = desk.client.request(method, path, headers=ada)
        assert answer.status_code == 403, path
        advice = answer.json()["error"]["advice"]
        assert "GET /v1/labels/next, POST /v1/labels; use a key of EVALPIPE_API_KEYS" in advice
        assert answer.json()["error"]["where"] == "header.authorization"
    app = {"Authorization": "Bearer key-app"}
    assert desk.client.get("/v1/labels/criteria", headers=app).status_code == 403
    assert desk.client.get("/label", headers=ada).status_code == 200
    with TestClient(make_api(replace(settings, api_keys=(), api_intake_keys=("key-ada",)))) as client:
        assert client.get("/v1/labels/criteria", headers=ada).status_code == 200
        assert client.post("/v1/records", headers=ada, json={}).status_code == 400, "a key of two kinds opens both"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_api_without_keys_answers_nobody_and_says_why(settings: Settings):
    """Forgetting the keys must not open the door."""
    with TestClient(make_api(replace(settings, api_keys=(), api_intake_keys=(), api_label_keys=()))) as client:
        answer = client.get("/v1/scores", headers={"Authorization": "Bearer "})
        assert answer.status_code == 503
        assert "set EVALPIPE_API_KEYS" in answer.json()["error"]["advice"]
        assert client.get("/healthz").json()["status"] == "failing"  # the database is empty


# Health


def test_a_fresh_and_idle_installation_is_healthy_and_ready(desk: Desk):
    """Nothing to do is not a fault; what is not known is null."""
    body = desk.client.get("/healthz").json()
    assert body["status"] == "ok"
    assert body["reasons"] == []
    assert (body["oldest_unscored_s"], body["owed"], body["newest_record_s"]) == (0.0, 0, None)
    ready = desk.client.get("/readyz")
    assert (ready.status_code, ready.json()["revision"]) == (200, migrate.head())
    assert ready.headers["cache-control"] == "no-store"


def test_health_fails_while_the_oldest_unscored_record_is_too_old(desk: Desk):
    """The limit is the caller's; once the judge has caught up it is healthy again."""
    desk.ingest(["Yes."], at=stale(400))
    answer = desk.client.get("/healthz")
    assert answer.status_code == 503
    assert "oldest unscored record" in answer.json()["reasons"][0]
    assert answer.json()["owed"] == 1
    assert desk.client.get("/healthz", params={"max_age_s": 4000}).status_code == 200
    desk.judge()
    fresh()
    assert desk.client.get("/healthz").json()["oldest_unscored_s"] == 0.0


def test_health_fails_while_nobody_looks_at_what_the_alert_rules_should_see(desk: Desk):
    """Scores arrive and no worker evaluates: silence would be the worst failure."""
    desk.ingest(["Yes."])
    desk.judge()
    with desk.wiring.store.begin() as tx:
        tx.connection.execute(growths.update().values(at=stale(400)))
    answer = desk.client.get("/healthz")
    assert answer.status_code == 503
    assert any("alert rules" in reason for reason in answer.json()["reasons"])


def test_health_fails_while_a_notification_waits_for_more_than_a_minute(desk: Desk):
    """A rollback that nobody is told of is no rollback."""
    with desk.wiring.store.begin() as tx:
        outbox.post(tx, Notification("evt_1", ROLLBACK, "r", stale(61), {}, "/test"), "webhook", b"{}")
    answer = desk.client.get("/healthz")
    assert answer.status_code == 503
    assert "notifications wait" in answer.json()["reasons"][0]
    assert desk.get("/v1/deliveries")["deliveries"][0]["state"] == "pending"


def test_health_fails_while_records_wait_in_the_queue_for_too_long(desk: Desk):
    """With no ingest worker the database looks idle: the queue itself must tell."""
    sent_at = time.time() - 500
    blob = encode_batch(
        [record_wire("x", "baseline", now())], process_id="p1", sequence=0, sent_at=sent_at, hook_version="0"
    )
    message = task_message("evalpipe.ingest", blob, message_id=str(uuid.uuid4()), origin="p1", summary="", headers={})
    desk.wiring.queue.client.lpush("evalpipe.ingest", message)
    body = desk.client.get("/healthz").json()
    assert body["status"] == "failing"
    assert 499 < body["oldest_queued_s"] < 520
    assert "serve 'ingest'" in body["reasons"][0]
    desk.wiring.queue.client.lpush("evalpipe.ingest", "not a message")
    desk.wiring.queue.client.rpop("evalpipe.ingest")
    fresh()
    assert desk.client.get("/healthz").json()["oldest_queued_s"] == 0.0


def test_health_fails_while_evidence_waits_for_its_decision(desk: Desk):
    """Scores that nobody decides on do not protect anybody."""
    desk.ingest(["Yes."], variant="canary")
    with desk.wiring.store.begin() as tx:
        tx.connection.execute(update(tables.evidence).values(at=stale(400)))
    body = desk.client.get("/healthz").json()
    assert "serve 'evaluate'" in body["reasons"][0]
    assert body["oldest_undecided_s"] > 399


def test_health_fails_when_nobody_takes_the_starts_of_a_stage(desk: Desk):
    """The beat goes on asking for a stage that no worker serves."""
    desk.wiring.queue.client.lpush("evalpipe.deliver", *["start"] * 151)
    assert desk.client.get("/healthz").json()["reasons"] == ["151 messages wait for 'deliver': no worker serves it"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_redis_that_never_answers_costs_three_seconds_at_the_most(settings: Settings, silent_port: int):
    """Health and readiness say so in words; what the database knows is still told."""
    store = Store(settings.database_url)
    migrate.upgrade(store)
    store.close()
    with TestClient(make_api(replace(settings, redis_url=f"redis://127.0.0.1:{silent_port}/0"))) as client:
        started = time.monotonic()
        health, ready = client.get("/healthz"), client.get("/readyz")
        assert_quick(time.monotonic() - started, 6.0)
    assert (health.status_code, ready.status_code) == (503, 503)
    assert health.json()["reasons"] == ["redis has not answered within 2.5 s"]
    assert (health.json()["owed"], health.json()["queues"]) == (0, None)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_database_that_never_answers_costs_three_seconds_at_the_most(settings: Settings, silent_port: int):
    """So does one behind a dead network."""
    url = f"postgresql+psycopg://evalpipe@127.0.0.1:{silent_port}/evalpipe"
    with TestClient(make_api(replace(settings, database_url=url))) as client:
        started = time.monotonic()
        health = client.get("/healthz")
        assert_quick(time.monotonic() - started, 3.0)
    assert health.json()["reasons"] == ["the database has not answered within 2.5 s"]
    assert (health.json()["owed"], health.json()["queues"]["ingest"]) == (None, 0)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_health_fails_without_the_database_and_recovers_with_it(desk: Desk, postgres: Postgres):
    """No restart of the API is needed, and no host name is told to strangers."""
    assert desk.client.get("/healthz").status_code == 200
    postgres.stop()
    fresh()
    gone = desk.client.get("/healthz")
    assert gone.status_code == 503
    assert gone.json()["reasons"][0].startswith("the database does not answer")
    assert str(postgres.folder) not in gone.text
    refused = desk.get("/v1/scores", expected=503)
    assert refused["error"]["what"] == "the database does not answer"
    assert desk.metrics().one("database_up") == 0
    postgres.start()
    fresh()
    assert desk.client.get("/healthz").status_code == 200
    assert desk.client.get("/readyz").status_code == 200


def test_an_empty_database_is_not_ready_and_a_newer_one_is(settings: Settings):
    """Not ready before the migration; ready while newer workers already run."""
    store = Store(settings.database_url)
    with TestClient(make_api(settings)) as client:
        empty = client.get("/readyz")
        assert (empty.status_code, empty.json()["revision"]) == (503, None)
        assert "run 'evalpipe migrate'" in empty.json()["reasons"][0]
        migrate.upgrade(store)
        with store.begin() as tx:
            tx.connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        fresh()
        assert client.get("/readyz").status_code == 200
    store.close()


# Reading


def test_scores_come_newest_first_and_page_by_page_without_gap_or_repetition(desk: Desk):
    """Pages joined are the whole, also where several scores have the same time."""
    at = now()
    for i in range(4):
        desk.ingest(
            ["Yes.", "No.", "Perhaps, but that depends on very many things."], at=at - timedelta(minutes=i // 2)
        )
    desk.judge()
    whole = desk.get("/v1/scores", limit=1000)
    assert whole["next"] is None
    assert len(whole["scores"]) == 24
    pages, cursor = [], None
    while True:
        page = desk.get("/v1/scores", limit=7, **({"cursor": cursor} if cursor else {}))
        pages += page["scores"]
        cursor = page["next"]
        if cursor is None:
            break
    assert pages == whole["scores"]
    times = [score["captured_at"] for score in pages]
    assert times == sorted(times, reverse=True)
    assert datetime.fromisoformat(times[0]).tzinfo is not None


def test_scores_are_filtered_by_what_is_asked(desk: Desk):
    """Every filter narrows; since and until take instants and ages."""
    desk.ingest(["Yes."], variant="baseline", at=stale(7200))
    desk.ingest(["Yes."], variant="canary")
    desk.judge()

    def count(**params: str) -> int:
        return len(desk.get("/v1/scores", **params)["scores"])

    assert count() == 4
    assert count(variant="canary") == 2
    assert count(criterion="brief", variant="canary", service="support-desk") == 1
    assert count(scorecard="desk", status="scored", feature="refunds") == 4
    assert count(service="other") == 0
    assert count(since="1h") == 2
    assert count(since="3h", until=stale(3600).isoformat()) == 2
    assert count(since=stale(3600).astimezone(UTC).isoformat()) == 2


def test_a_control_character_is_the_askers_fault(desk: Desk):
    """PostgreSQL refuses NUL; that is no outage."""
    assert desk.client.get("/v1/scores?service=a%00b", headers=KEY).status_code in {200, 422}
    assert desk.client.get("/v1/records/a%00b", headers=KEY).status_code in {404, 422}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_plus_that_nobody_quoted_is_understood(desk: Desk):
    """``+00:00`` in a URL arrives as a space."""
    answer = desk.client.get("/v1/scores?since=2026-01-01T00:00:00+00:00", headers=KEY)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("path", "where", "value", "telling"),
    [
        ("/v1/scores?since=yesterday", "query.since", "yesterday", "write so long ago as"),
        ("/v1/scores?since=2026-11-22T03:00:00", "query.since", "2026-11-22T03:00:00", "2026-11-22T03:00:00Z"),
        ("/v1/scores?limit=5000", "query.limit", "5000", "less than or equal to 1000"),
        ("/v1/scores?servise=x", "query.servise", "x", "did you mean 'service'?"),
        ("/v1/scores?cursor=abc", "query.cursor", "abc", "`next` of the page before"),
        ("/v1/scores?cursor=WyIyMDI2LTAxLTAxVDAwOjAwOjAwIiwiYSIsImIiLCJjIiwiZCJd", "query.cursor", None, "`next` of"),
        ("/v1/scores?since=0001-01-01T00:00:00Z", "query.since", "0001-01-01T00:00:00Z", "write so long ago"),
        ("/v1/scores?status=good", "query.status", "good", "'scored'"),
        ("/v1/series", "query.criterion", None, "Field required"),
        ("/v1/series?criterion=brief&bucket=90s", "query", None, "whole minutes"),
        ("/v1/series?criterion=brief&bucket=1m&since=30d", "query", None, "make bucket larger"),
        ("/v1/scores?since=1h&until=2h", "query", None, "must be after since"),
        ("/healthz?max_age_s=0", "query.max_age_s", "0", "greater than or equal to 1"),
        ("/v1/nothing", "/v1/nothing", None, "/openapi.json"),
    ],
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_request_that_cannot_be_used_is_told_what_is_wrong(desk: Desk, path, where, value, telling):
    """What, where, which value, and what to do: never a traceback, never a filter that silently does nothing."""
    answer = desk.client.get(path, headers=KEY)
    assert answer.status_code in {404, 422}
    error = answer.json()["error"]
    assert set(error) == {"what", "where", "value", "advice"}
    assert error["where"] == where
    assert value is None or error["value"] == value
    assert telling in f"{error['what']} {error['advice']}"


def test_series_are_means_with_intervals_that_never_cross_an_epoch(desk: Desk):
    """One line for each variant; scores that did not come out are counted and not averaged."""
    at = now().replace(second=0, microsecond=0) - timedelta(minutes=30)
    long = "This answer goes on and on and on, for far more than five words."
    desk.ingest(["Yes.", "No.", long, "Yes."], at=at)
    desk.ingest(["Yes."], at=at + timedelta(minutes=10))
    desk.ingest([long], variant="canary", at=at)
    found = desk.get("/v1/series", criterion="brief", bucket="5m", since="1h")
    assert found["bucket_s"] == 300
    series = {line["variant"]: line for line in found["series"]}
    first, second = series["baseline"]["points"]
    assert first["n_scored"] == 4
    assert first["low"] < first["mean"] < first["high"]
    assert second["n_scored"] == 1
    assert first["at"] < second["at"]
    assert series["canary"]["points"][0]["mean"] < first["mean"]
    with desk.wiring.store.begin() as tx:
        tx.connection.execute(update(tables.series).where(tables.series.c.variant == "canary").values(epoch="other"))
    assert {line["epoch"] for line in desk.get("/v1/series", criterion="brief", since="1h")["series"]} >= {"other"}
    assert desk.get("/v1/series", criterion="grounded", since="1h")["series"] == []


def test_the_ledger_tells_where_every_record_is_and_balances(desk: Desk):
    """In flight before the judge, scored after; difference 0 throughout."""
    desk.ingest(["Yes.", "No."])
    desk.measure(calls=50, sampled=3, enqueued=2)
    before = desk.get("/v1/ledger")
    whole = next(line for line in before["lines"] if line["scorecard"] == "")
    assert {k: whole[k] for k in ("observed", "not_sampled", "sampled", "in_flight", "shed", "scored")} == {
        "observed": 50, "not_sampled": 47, "sampled": 3, "in_flight": 2, "shed": 1, "scored": 0,
    }  # fmt: skip
    assert before["difference"] == 0
    desk.judge()
    after = desk.get("/v1/ledger", service="support-desk", since="2h")
    by_card = {line["scorecard"]: line for line in after["lines"]}
    assert (by_card[""]["scored"], by_card[""]["in_flight"], by_card["desk"]["scored"]) == (2, 0, 2)
    assert after["difference"] == 0
    assert desk.get("/v1/ledger", service="other")["lines"] == []


def test_one_records_story_is_told_and_an_unknown_one_is_explained(desk: Desk):
    """By trace or by record; what was said is not in it."""
    (trace_id,) = desk.ingest(["Yes."], variant="canary")
    desk.judge()
    told = desk.get(f"/v1/records/{trace_id}")
    (record,) = told["records"]
    assert record["outcome"] == "scored"
    assert {score["criterion"] for score in record["scores"]} == {"grounded", "brief"}
    assert record["work"][0]["state"] == "done"
    assert record["grades"][0]["judge_version"]
    assert record["rollouts"][0]["arm"] == "canary"
    assert "user-7" not in json.dumps(told)
    assert desk.get(f"/v1/records/{record['record_id']}")["records"] == told["records"]
    error = desk.get("/v1/records/unknown", expected=404)["error"]
    assert error["value"] == "unknown"
    assert "/v1/ledger" in error["advice"]


def test_a_trace_in_a_dead_letter_is_found_there(desk: Desk):
    """The last place where a record can be."""
    with desk.wiring.store.begin() as tx:
        add_dead_letters(tx, [DeadLetter("message", "k", "is not JSON", b"...trace-77...")], now())
    told = desk.get("/v1/records/trace-77")
    assert told["records"] == []
    assert told["dead_letters"][0]["reason"] == "is not JSON"


def a_decision(rollout_id: str, seq: int, evidence: dict[str, Any]) -> dict[str, Any]:
    """A row of decisions."""
    return {
        "decision_id": f"dec_{seq}", "rollout_id": rollout_id, "seq": seq, "action": "hold", "reason": "too early",
        "evidence": evidence, "inputs_hash": "abc", "decided_at": now(),
    }  # fmt: skip


def test_rollouts_decisions_alerts_and_incidents_are_read_newest_first(desk: Desk):
    """What an evaluation left behind, as the webhooks told it."""
    desk.ingest(["This is a long answer of many more words than five."] * 4, variant="canary")
    desk.wiring.evaluate(now())
    (rollout,) = desk.get("/v1/rollouts")["rollouts"]
    assert (rollout["canary"], rollout["phase"], rollout["evidence_seq"]) == ("canary", "running", 4)
    assert "state" not in rollout
    assert desk.get("/v1/rollouts", phase="rolled_back")["rollouts"] == []
    assert len(desk.get("/v1/rollouts", variant="canary", service="support-desk")["rollouts"]) == 1
    with desk.wiring.store.begin() as tx:
        for seq in (901, 902):
            rollouts.add_decision(tx, a_decision(rollout["rollout_id"], seq, {"seq": seq}))
    decisions = desk.get("/v1/decisions", rollout=rollout["rollout_id"], limit=2)["decisions"]
    assert [decision["seq"] for decision in decisions] == [902, 901]
    assert desk.get("/v1/decisions", rollout="other")["decisions"] == []
    (alert,) = desk.get("/v1/alerts", status="firing", variant="canary")["alerts"]
    assert (alert["rule"], alert["severity"], alert["state"]["n"]) == ("too-long", "SEV2", 4)
    assert desk.get("/v1/alerts", status="resolved")["alerts"] == []
    (incident,) = desk.get("/v1/incidents")["incidents"]
    assert (incident["severity"], incident["source"]) == ("SEV2", "alert")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_nan_in_stored_evidence_becomes_null(desk: Desk):
    """SQLite keeps what strict JSON does not know; the API must not pass it on."""
    with desk.wiring.store.begin() as tx:
        rollouts.add_decision(tx, a_decision("r", 1, {"mean": math.nan, "high": [math.inf]}))
        alerting.open_incident(
            tx,
            {
                "incident_id": "i", "service": "s", "severity": "SEV1", "title": "t", "source": "alert",
                "evidence": {"value": -math.inf}, "timeline": [], "opened_at": now(),
            },
        )  # fmt: skip
    assert desk.get("/v1/decisions")["decisions"][0]["evidence"] == {"mean": None, "high": [None]}
    assert desk.get("/v1/incidents")["incidents"][0]["evidence"] == {"value": None}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_openapi_document_describes_every_parameter_and_answer(desk: Desk):
    """Descriptions teach: no parameter and no path without one."""
    document = desk.get("/openapi.json")
    assert {"/healthz", "/readyz", "/metrics", "/v1/scores", "/v1/ledger"} <= set(document["paths"])
    for path, operation in ((path, one) for path, methods in document["paths"].items() for one in methods.values()):
        assert len(operation["description"]) > 20, path
        assert ("security" in operation) == (path not in {"/healthz", "/readyz"}), path
        for parameter in operation.get("parameters", []):
            assert parameter.get("description"), (path, parameter["name"])


# Metrics


def test_metrics_say_what_waits_what_came_out_and_what_it_cost(desk: Desk):
    """Gauges from one reading, counters since midnight; every family has a help text."""
    desk.ingest(["Yes.", "No.", "This is a long answer of many more words than five."])
    desk.ingest(["Yes."], variant="canary")
    desk.measure(calls=80, sampled=5, enqueued=4, cost_usd=0.1 + 0.2)
    desk.wiring.queue.nudge("judge")
    desk.wiring.queue.client.lpush("evalpipe.judge", "start")
    desk.wiring.evaluate(now())
    seen = desk.metrics()
    place = {"service": "support-desk", "environment": "production", "variant": "baseline"}
    brief = {**place, "scorecard": "desk", "criterion": "brief"}
    assert seen.one("database_up") == seen.one("redis_up") == 1
    assert seen.one("work_owed") == 4
    assert seen.one("queue_messages", stage="judge") == 1
    assert seen.one("calls_total", **place) == 80
    assert seen.all("records_shed_total", **place) == {"buffer": 0, "queue": 1, "oversized": 0, "failed": 0, "ended": 0}
    assert seen.one("call_cost_usd_total", **place) == pytest.approx(0.3)
    assert seen.one("ledger_records", scorecard="", term="in_flight") == 4
    assert seen.one("ledger_difference", service="support-desk", scorecard="") == 0
    assert seen.all("scores_total", **brief) == {"scored": 3, "skipped": 0, "abstained": 0, "error": 0}
    assert seen.one("score_mean_low", **brief) < seen.one("score_mean", **brief) < seen.one("score_mean_high", **brief)
    assert seen.one("score_mean_records", **brief) == 3
    assert seen.all("score_mean", criterion="grounded") == {}
    which = {**place, "scorecard": "desk", "rule": "too-long", "kind": "quality", "severity": "SEV2"}
    states = seen.all("alert_state", **which, feature="", dry_run="false")
    assert states == {"inactive": 0, "pending": 0, "firing": 1, "resolved": 0}
    (rollout,) = desk.get("/v1/rollouts")["rollouts"]
    of = {"rollout": rollout["rollout_id"], "service": "support-desk", "environment": "production"}
    assert {phase for phase, is_in in seen.all("rollout_phase", **of).items() if is_in} == {"running"}
    assert all(math.isfinite(sample.value) for sample in seen.samples)


def test_metrics_are_also_openmetrics(desk: Desk):
    """As Prometheus asks by default; the strict parser finds nothing wrong."""
    desk.ingest(["Yes."])
    desk.wiring.evaluate(now())
    answer = desk.client.get(
        "/metrics", headers={**KEY, "Accept": "application/openmetrics-text; version=1.0.0,text/plain;q=0.5"}
    )
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    families = list(parse_openmetrics(answer.text))
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    names = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    assert {name for name in names if f"`{name}`" not in page} == set()
    assert set(re.findall(r"`(evalpipe_[a-z_]+)`", page)) - names <= {"evalpipe_newest_record_seconds"}
    assert all(family.documentation for family in families)
    assert len(families) > 25


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_operators_page_names_every_path(desk: Desk):
    """As far as the part of a path that does not vary."""
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    paths = {path.split("/{")[0] for path in desk.get("/openapi.json")["paths"]} | OPEN
    assert {path for path in paths if not re.search(rf"`[^`]*{path}\b", page)} == set()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_many_scrapers_cost_one_reading(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    """Within five seconds the same reading is told again."""
    calls = []
    real = totals.means
    monkeypatch.setattr(totals, "means", lambda tx, at: calls.append(at) or real(tx, at))
    for _ in range(5):
        desk.metrics()
    assert len(calls) == 1


def test_metrics_without_redis_leave_the_ledger_out_rather_than_wrong(desk: Desk, settings: Settings):
    """Without the queue, what waits in it would count as lost."""
    desk.ingest(["Yes."])
    with TestClient(make_api(replace(settings, redis_url="redis://127.0.0.1:1/0"))) as client:
        text = client.get("/metrics", headers=KEY).text
        refused = client.get("/v1/ledger", headers=KEY)
    names = {sample.name for family in parse_text(text) for sample in family.samples}
    assert "evalpipe_redis_up 0.0" in text
    assert "evalpipe_work_owed" in names
    assert not {"evalpipe_ledger_records", "evalpipe_queue_messages"} & names
    assert (refused.status_code, refused.json()["error"]["what"]) == (503, "redis does not answer")


def test_sums_of_money_never_fall_whatever_the_order(desk: Desk):
    """A counter that seems to fall by a rounding error would count as a restart, and all of it as new."""
    hour_at = now().replace(minute=0, second=0, microsecond=0)
    release = {"release_id": "r", "service": "s", "variant": "v", "environment": "e", "first_seen_at": hour_at}
    row = {
        "release_id": "r", "service": "s", "feature": "", "hour_at": hour_at, "sent_at": hour_at, "shed_by_reason": {},
        "blocked": {}, "finish_reasons": {},
    }  # fmt: skip
    with desk.wiring.store.begin() as tx:
        tx.connection.execute(insert(tables.releases).values(release))
        rows = [{**row, "process_id": f"p{i}", "cost_usd": 0.1 * (i + 1)} for i in range(50)]
        tx.connection.execute(insert(tables.meters), rows)
    with desk.wiring.store.read() as tx:
        (found,) = totals.calls_since(tx, hour_at)
    assert int(found.nano_usd) == 127_500_000_000
    assert found.shed_queue == 0


def test_quarantine_and_dead_letters_show_in_health_and_metrics(desk: Desk):
    """What could not be read is not forgotten."""
    client: redis.Redis = desk.wiring.queue.client
    client.lpush("evalpipe:quarantine", json.dumps(["bad", "AAEC"]))
    desk.wiring.maintain(now())
    assert desk.client.get("/healthz").json()["dead_letters"] == 1
    assert desk.metrics().one("dead_letters") == 1
