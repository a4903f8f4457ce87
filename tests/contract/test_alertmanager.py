"""Alertmanager and evalpipe tell one another: its webhook in, what forgets is told again, and the real one."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import jsonschema_rs
import pytest
import uvicorn
from channel_schemas import ALERTMANAGER, PAGERDUTY, SLACK
from notices import AT, alert, notice
from recording import Recorder, Seen, always
from sqlalchemy import insert, select, update
from starlette.testclient import TestClient

from evalpipe.api.app import make_api
from evalpipe.channels.alertmanager import Alertmanager, AlertmanagerConfig
from evalpipe.channels.base import Channel
from evalpipe.channels.pagerduty import PagerDuty, PagerDutyConfig
from evalpipe.channels.slack import Slack, SlackConfig
from evalpipe.notification import Notification
from evalpipe.pipeline.deliver import Deliver
from evalpipe.pipeline.notify import Notify
from evalpipe.settings import Settings
from evalpipe.store import outbox
from evalpipe.store.sql import Store
from evalpipe.store.tables import alerts, controls, incidents
from evalpipe.wiring import now

KEY = {"Authorization": "Bearer intake-key"}
EPISODE = "2026-11-22T03:30:00.123456789Z"
FINGERPRINT = "8f1cab7d0e1f2a3b"


def message(*found: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What Alertmanager's webhook sends, with fields that are newer than this test."""
    return {
        "version": "4", "groupKey": '{}:{alertname="HighErrors"}', "truncatedAlerts": 0, "status": "firing",
        "receiver": "evalpipe", "notification_reason": "first notification", "routeLabels": {}, "groupLabels": {},
        "commonLabels": {}, "commonAnnotations": {}, "externalURL": "http://am:9093", "alerts": list(found), **more,
    }  # fmt: skip


def external(status: str = "firing", starts_at: str = EPISODE, **more: Any) -> dict[str, Any]:
    """One alert of it."""
    return {
        "status": status, "startsAt": starts_at, "fingerprint": FINGERPRINT, "generatorURL": "http://prometheus/graph",
        "labels": {"alertname": "HighErrors", "severity": "critical", "service": "desk", "env": "production"},
        "annotations": {"summary": "5 % of the requests fail", "runbook_url": "https://wiki.example.com/errors"},
        "endsAt": "0001-01-01T00:00:00Z" if status == "firing" else "2026-11-22T04:00:00Z", "novelty": 1, **more,
    }  # fmt: skip


@pytest.fixture
def client(migrated_url: str, redis_url: str) -> Iterator[TestClient]:
    """The API over each database."""
    settings = Settings(
        database_url=migrated_url, redis_url=redis_url, api_keys=("k",), api_intake_keys=("intake-key",)
    )
    with TestClient(make_api(settings), raise_server_exceptions=False) as made:
        yield made


def post(client: TestClient, body: Any, expected: int = 200) -> Any:
    """What is answered."""
    answer = client.post("/v1/alertmanager", json=body, headers=KEY)
    assert answer.status_code == expected, answer.text
    return answer.json()


def rows(client: TestClient, table: Any = alerts) -> list[dict[str, Any]]:
    """What is stored."""
    with client.app.state.wiring.store.read() as tx:  # type: ignore[attr-defined]
        return [dict(row) for row in tx.connection.execute(select(table)).mappings()]


def test_an_alert_of_alertmanager_is_an_alert_with_an_incident(client: TestClient) -> None:
    """With the severity, service and environment of its labels."""
    assert post(client, message(external()))["firing"] == 1
    (row,) = rows(client)
    assert {name: row[name] for name in ("alert_id", "scorecard", "rule", "kind", "severity", "status", "service")} == {
        "alert_id": f"external/{FINGERPRINT}", "scorecard": "", "rule": "HighErrors", "kind": "external",
        "severity": "SEV1", "status": "firing", "service": "desk",
    }  # fmt: skip
    assert (row["environment"], row["summary"], row["labels"]["env"]) == (
        "production",
        "5 % of the requests fail",
        "production",
    )
    (incident,) = rows(client, incidents)
    assert (incident["severity"], incident["title"], incident["resolved_at"]) == ("SEV1", "desk: HighErrors", None)


def test_what_comes_again_changes_nothing(client: TestClient) -> None:
    """Alertmanager repeats: the same group, alert, status and start; two that are clustered both tell."""
    post(client, message(external()))
    before = rows(client)
    assert post(client, message(external(), external()))["unchanged"] == 2
    assert post(client, message(external(), notification_reason="repeat interval elapsed"))["unchanged"] == 1
    assert rows(client) == before
    assert len(rows(client, incidents)) == 1


def test_it_resolves_and_fires_again_and_what_comes_late_does_nothing(client: TestClient) -> None:
    """An episode has one incident; neither an old message nor an end without a beginning counts."""
    assert post(client, message(external("resolved")))["unchanged"] == 1
    assert rows(client) == []
    post(client, message(external()))
    assert post(client, message(external("resolved"), status="resolved"))["resolved"] == 1
    (row,) = rows(client)
    assert (row["status"], row["resolved_at"] is not None) == ("resolved", True)
    assert rows(client, incidents)[0]["resolved_at"] is not None
    assert post(client, message(external()))["unchanged"] == 1
    assert post(client, message(external("resolved")))["unchanged"] == 1
    assert post(client, message(external(starts_at="2026-11-22T05:00:00Z")))["firing"] == 1
    assert post(client, message(external("resolved")))["unchanged"] == 1
    assert (rows(client)[0]["status"], len(rows(client, incidents))) == ("firing", 2)


def test_an_end_does_not_let_a_canary_return(client: TestClient) -> None:
    """Whatever Alertmanager says is resolved, a latch is lifted by a person."""
    body = {"weights": {"canary": 0, "baseline": 100}}
    row = {"service": "desk", "kind": "weights", "name": "refund", "environment": "", "body": body, "revision": 1,
           "latched": {"canary": "worse"}, "actor": "evalpipe", "reason": "worse", "updated_at": AT}  # fmt: skip
    with client.app.state.wiring.store.begin() as tx:  # type: ignore[attr-defined]
        tx.connection.execute(insert(controls).values(row))
    before = rows(client, controls)
    labels = {"alertname": "canary-rolled-back", "service": "desk", "canary": "canary"}
    post(client, message(external(labels=labels)))
    post(client, message(external("resolved", labels=labels)))
    assert rows(client, controls) == before


@pytest.mark.parametrize(
    ("labels", "severity"),
    [
        ({"severity": "critical"}, "SEV1"), ({"severity": "page"}, "SEV1"), ({"severity": "error"}, "SEV2"),
        ({"severity": "Warning"}, "SEV3"), ({"severity": "info"}, "SEV4"), ({"severity": "SEV2"}, "SEV2"),
        ({"sev": "4", "severity": "critical"}, "SEV4"), ({"priority": "P1"}, "SEV1"), ({}, "SEV3"),
        ({"severity": "purple"}, "SEV3"),
    ],
)  # fmt: skip
def test_severities_of_every_house_have_one_of_ours(labels: dict[str, str], severity: str) -> None:
    """What is not known is neither a page at night nor nothing."""
    from evalpipe.store.external_alerts import severity_of

    assert severity_of(labels) == severity


def test_our_own_alerts_do_not_come_back(client: TestClient) -> None:
    """Alertmanager, told by evalpipe, tells evalpipe: that would never end."""
    channel = Alertmanager(AlertmanagerConfig(url="http://127.0.0.1:1"))
    labels = json.loads(channel.render(notice()))[0]["labels"]
    assert post(client, message(external(labels=labels)))["own"] == 1
    assert rows(client) == []


def test_one_bad_alert_costs_no_other(client: TestClient) -> None:
    """Only a message in which nothing can be used is refused: what is refused never comes again."""
    nul = external(labels={"alertname": "a\x00b", "severity": "info"}, fingerprint="")
    answer = post(client, message(external(), {"status": "odd", "labels": {}}, nul, truncatedAlerts=3))
    assert (answer["firing"], answer["truncated"], len(answer["rejected"])) == (2, 3, 1)
    assert answer["rejected"][0].startswith("alerts.1.status")
    for body in (message({"status": "odd"}), {"alerts": "none"}, [1]):
        post(client, body, 422)
    assert post(client, message())["firing"] == 0


def test_it_needs_a_key_and_an_intake_key_is_enough(client: TestClient) -> None:
    """Alertmanager sends it as ``authorization: {credentials: KEY}``."""
    assert client.post("/v1/alertmanager", json=message()).status_code == 401
    assert client.post("/v1/alertmanager", json=message(), headers={"Authorization": "Bearer no"}).status_code == 401
    assert client.post("/v1/alertmanager", json=message(), headers={"Authorization": "Bearer k"}).status_code == 200


def test_while_the_database_is_away_it_is_told_to_come_again(tmp_path: Path, redis_url: str) -> None:
    """5xx is repeated, 4xx would be dropped."""
    settings = Settings(
        database_url=f"sqlite:///{tmp_path}/none/evalpipe.db", redis_url=redis_url, api_intake_keys=("intake-key",)
    )
    with TestClient(make_api(settings), raise_server_exceptions=False) as client:
        post(client, message(external()), 503)


def test_what_alertmanager_found_is_told_to_everybody_but_alertmanager(client: TestClient, server: Recorder) -> None:
    """Through groups, outbox and delivery, in each channel's own shape; the end too, after the group's interval."""
    url = server.url
    channels: dict[str, Channel] = {
        "slack": Slack(SlackConfig(url=f"{url}/slack")),
        "pagerduty": PagerDuty(PagerDutyConfig(routing_key="k" * 32, api_url=url)),
        "am": Alertmanager(AlertmanagerConfig(url=url)),
    }
    schemas = {"/slack": SLACK, "/v2/enqueue": PAGERDUTY, "/api/v2/alerts": ALERTMANAGER}
    store = client.app.state.wiring.store  # type: ignore[attr-defined]
    notify = Notify(store, channels, source="/test", url="https://evalpipe.example.com")

    def told(at: datetime) -> list[Seen]:
        before = len(server.seen)
        assert len(notify(at)) == 1
        Deliver(store, channels, lambda: at)()
        return server.seen[before:]

    ours = {"alert_id": "a/b", "rule": "too-low", "service": "desk", "environment": "production", "severity": "SEV1",
            "status": "firing", "state": {}, "summary": "worse", "fired_at": now(), "updated_at": now(),
            "labels": {"team": "t"}, "explanation": {"value": 0.7, "n": 10, "criterion": "grounded"}}  # fmt: skip
    with store.begin() as tx:
        tx.connection.execute(insert(alerts).values(ours))
    post(client, message(external()))
    by_path = {}
    for seen in told(now() + timedelta(seconds=1)):
        jsonschema_rs.validator_for(schemas[seen.path], validate_formats=True).validate(seen.json)
        by_path[seen.path] = seen.json
    assert by_path.keys() == schemas.keys()
    assert [alert["labels"]["alertname"] for alert in by_path["/api/v2/alerts"]] == ["too-low"]
    shown = json.dumps(by_path["/slack"])
    assert "HighErrors" in shown
    assert "too-low" in shown
    assert shown.count("SEV1 desk/production") == 2  # header and fallback, without saying the severity twice
    assert by_path["/v2/enqueue"]["client_url"].startswith("https://evalpipe.example.com/alerts#")
    post(client, message(external("resolved")))
    with store.begin() as tx:
        tx.connection.execute(update(alerts).where(alerts.c.rule == "too-low").values(status="resolved"))
    ended = {seen.path: seen.json for seen in told(now() + timedelta(minutes=6))}
    assert ended["/v2/enqueue"] == {
        "event_action": "resolve",
        "dedup_key": by_path["/v2/enqueue"]["dedup_key"],
        "routing_key": "k" * 32,
    }
    assert all("endsAt" in alert for alert in ended["/api/v2/alerts"])


# ------------------------------------------------------------------------------------------- what forgets is told again


class Desk:
    """An outbox with a channel to Alertmanager, and a clock."""

    def __init__(self, url: str, channel: Channel) -> None:
        self.store, self.at, self.channels = Store(url), AT, {"am": channel, "quiet": channel}
        self.channel = channel

    def owe(self, told: Notification) -> None:
        """Commit a notice of now."""
        told = replace(told, at=self.at)
        with self.store.begin() as tx:
            outbox.post(tx, told, "am", self.channel.render(told))

    def deliver(self, **later: float) -> int:
        """A round of a worker that has just started; how many letters it sent."""
        self.at += timedelta(**later)
        return Deliver(self.store, self.channels, lambda: self.at)().delivered


@pytest.fixture
def server() -> Iterator[Recorder]:
    """A recording server."""
    with Recorder(always(200)) as recorder:
        yield recorder


@pytest.fixture
def desk(migrated_url: str, server: Recorder) -> Iterator[Desk]:
    """A desk over each database."""
    made = Desk(migrated_url, Alertmanager(AlertmanagerConfig(url=server.url)))
    yield made
    made.store.close()


def test_what_fires_is_told_again_every_five_minutes_until_it_is_resolved(desk: Desk, server: Recorder) -> None:
    """Alertmanager forgets all when it restarts; the end is told once, and lasts."""
    desk.owe(notice())
    assert [desk.deliver(), desk.deliver(seconds=200), desk.deliver(seconds=110)] == [1, 0, 1]
    ends = [seen.json[0]["endsAt"] for seen in server.seen]
    assert ends == ["2026-11-23T03:30:00Z", "2026-11-23T03:35:10Z"]
    assert server.seen[0].json[0]["labels"] == server.seen[1].json[0]["labels"]
    desk.owe(notice("resolved", alert(resolved_at="2026-11-22T03:36:00+00:00"), event_id="evt_2"))
    assert [desk.deliver(), desk.deliver(seconds=400), desk.deliver(hours=5)] == [1, 0, 0]


def test_the_other_side_hears_in_the_order_in_which_it_happened(desk: Desk, server: Recorder) -> None:
    """A firing that waits for its next attempt goes before the resolution: it would fire for a day in Alertmanager."""
    server.answering = always(503)
    desk.owe(notice())
    assert desk.deliver() == 0
    server.answering = always(200)
    desk.at += timedelta(seconds=1)
    desk.owe(notice("resolved", alert(resolved_at="2026-11-22T03:30:01+00:00"), event_id="evt_2"))
    assert desk.deliver() == 2
    assert [seen.json[0]["endsAt"][:10] for seen in server.seen] == ["2026-11-23", "2026-11-23", "2026-11-22"]
    assert [desk.deliver(seconds=20), desk.deliver(hours=1)] == [0, 0]


def test_a_firing_that_nobody_took_is_given_up_once_its_end_is_told(desk: Desk, server: Recorder) -> None:
    """Nobody is paged for what is over."""
    server.answering = lambda seen: (503 if seen.json[0]["endsAt"] > "2026-11-23" else 200, {}, b"")
    desk.owe(notice())
    desk.owe(notice("resolved", alert(resolved_at="2026-11-22T03:30:01+00:00"), event_id="evt_2"))
    desk.at += timedelta(seconds=1)
    desk.owe(notice("resolved", alert(resolved_at="2026-11-22T03:30:01+00:00"), event_id="evt_3"))
    assert [desk.deliver(), desk.deliver(seconds=20), desk.deliver(hours=1)] == [2, 0, 0]
    with desk.store.read() as tx:
        assert sorted(row["state"] for row in outbox.listing(tx)) == ["delivered", "delivered", "overtaken"]


def test_an_alertmanager_that_was_away_for_days_hears_what_fires_within_five_minutes(
    desk: Desk, server: Recorder
) -> None:
    """The schedule of other letters would have given up."""
    server.answering = always(503)
    desk.owe(notice())
    for _ in range(11):
        assert desk.deliver(hours=8) == 0
    server.answering = always(200)
    assert desk.deliver(seconds=301) == 1


# ------------------------------------------------------------------------------------------------------ the real one

BINARY = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")


def free_port() -> int:
    """A port that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


@contextmanager
def alertmanager(folder: Path, config: str, port: int = 0) -> Iterator[str]:
    """The URL of a real Alertmanager."""
    assert BINARY is not None
    port = port or free_port()
    file = folder / "alertmanager.yml"
    file.write_text(config)
    command = [BINARY, f"--config.file={file}", f"--storage.path={folder}/data", "--cluster.listen-address=",
               f"--web.listen-address=127.0.0.1:{port}"]  # fmt: skip
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            until(lambda: ready(url))
            yield url
        finally:
            process.terminate()
            process.wait(10)


def ready(url: str) -> bool:
    """Whether it answers."""
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=2):
            return True
    except OSError:
        return False


def until(holds: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """Wait for it, and return it."""
    deadline = time.monotonic() + timeout_s
    while not (found := holds()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def active(url: str) -> dict[str, dict[str, Any]]:
    """What fires in Alertmanager, by ``alertname``."""
    with urllib.request.urlopen(f"{url}/api/v2/alerts", timeout=30) as answer:
        return {found["labels"]["alertname"]: found for found in json.load(answer)}


def put(url: str, found: list[dict[str, Any]]) -> None:
    """Tell Alertmanager of these, as Prometheus does."""
    body = json.dumps(found).encode()
    sent = urllib.request.Request(f"{url}/api/v2/alerts", body, {"content-type": "application/json"})
    urllib.request.urlopen(sent, timeout=30).close()


CONFIG = """
route: {receiver: evalpipe, group_by: [alertname], group_wait: 0s, group_interval: 1s, repeat_interval: 1h}
receivers:
  - name: evalpipe
    webhook_configs:
      - url: URL/v1/alertmanager
        http_config: {authorization: {credentials: intake-key}}
"""


@pytest.mark.skipif(BINARY is None, reason="no Alertmanager here: apt-get install prometheus-alertmanager")
def test_the_real_alertmanager_takes_our_alerts_and_tells_us_its_own(
    migrated_sqlite_url: str, redis_url: str, tmp_path: Path
) -> None:
    """There and back: fires, gets worse, survives its restart, resolves; and an alert of its own, to the end."""
    settings = Settings(
        database_url=migrated_sqlite_url, redis_url=redis_url, api_keys=("k",), api_intake_keys=("intake-key",)
    )
    since = {"fired_at": (now() - timedelta(minutes=1)).isoformat()}
    api = uvicorn.Server(uvicorn.Config(make_api(settings), port=0, log_level="error", lifespan="on"))
    thread = Thread(target=api.run, daemon=True)
    thread.start()
    until(lambda: api.started)
    own = f"http://127.0.0.1:{api.servers[0].sockets[0].getsockname()[1]}"
    store = Store(migrated_sqlite_url)

    def received(rule: str, status: str) -> bool:
        with store.read() as tx:
            found = tx.connection.execute(select(alerts.c.status).where(alerts.c.rule == rule)).scalars().all()
        return found == [status]

    with alertmanager(tmp_path, CONFIG.replace("URL", own)) as url:
        channel = Alertmanager(AlertmanagerConfig(url=url))

        def tell(cause: str, *listed: dict[str, Any]) -> None:
            told = replace(notice(cause, *listed, event_id=f"evt_{cause}"), at=datetime.now(UTC))
            done = channel.send(channel.render(told), event_id=told.event_id, at=datetime.now(UTC))
            assert done.ok, done.error

        tell("first", alert(**since), alert(rule="slow", alert_id="b", **since))
        found = until(lambda: active(url))
        assert set(found) == {"too-low", "slow"}
        assert found["too-low"]["labels"]["severity"] == "error"
        assert found["too-low"]["annotations"]["value"] == "0.712345"
        tell("raised", alert(severity="SEV1", **since), alert(rule="slow", alert_id="b", **since))
        assert [(found["labels"]["sev"], name) for name, found in sorted(active(url).items())] == [
            ("2", "slow"),
            ("1", "too-low"),
        ]
        ended = {"status": "resolved", "resolved_at": datetime.now(UTC).isoformat()}
        tell("resolved", alert(severity="SEV1", **since, **ended), alert(rule="slow", alert_id="b", **since, **ended))
        until(lambda: not active(url))

        theirs = [{"labels": {"alertname": "DiskFull", "severity": "warning", "service": "desk"}}]
        send = urllib.request.Request(
            f"{url}/api/v2/alerts", json.dumps(theirs).encode(), {"content-type": "application/json"}
        )
        urllib.request.urlopen(send, timeout=30).close()
        until(lambda: received("DiskFull", "firing"))
        theirs[0]["endsAt"] = datetime.now(UTC).isoformat()
        send = urllib.request.Request(
            f"{url}/api/v2/alerts", json.dumps(theirs).encode(), {"content-type": "application/json"}
        )
        urllib.request.urlopen(send, timeout=30).close()
        until(lambda: received("DiskFull", "resolved"))
        with store.read() as tx:
            assert tx.connection.execute(select(alerts.c.rule)).scalars().all() == ["DiskFull"]
    api.should_exit = True
    thread.join(20)
    store.close()


@pytest.mark.skipif(BINARY is None, reason="no Alertmanager here: apt-get install prometheus-alertmanager")
def test_the_real_alertmanager_knows_what_fires_after_its_restart(migrated_sqlite_url: str, tmp_path: Path) -> None:
    """It keeps alerts in its memory alone; an evalpipe that is silent meanwhile resolves nothing."""
    port = free_port()
    config = "{route: {receiver: none}, receivers: [{name: none}]}"
    desk = Desk(migrated_sqlite_url, Alertmanager(AlertmanagerConfig(url=f"http://127.0.0.1:{port}")))
    desk.at = now()
    with alertmanager(tmp_path, config, port) as url:
        desk.owe(notice("first", alert(fired_at=desk.at.isoformat())))
        assert desk.deliver() == 1
        found = until(lambda: active(url))["too-low"]
        assert datetime.fromisoformat(found["endsAt"]) > now() + timedelta(hours=23)
    with alertmanager(tmp_path, config, port) as url:
        assert active(url) == {}
        assert desk.deliver(seconds=301) == 1
        assert until(lambda: active(url))["too-low"]["fingerprint"] == found["fingerprint"]
    desk.store.close()
