"""Alerts from outside: the command line, the API, and the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from browsing import browse, needs_browser
from intake_api import CARD, KEY, Door
from notify_desk import NotifyDesk
from starlette.testclient import TestClient
from typer.testing import CliRunner

from evalpipe.api.app import make_api
from evalpipe.api.bodies import MAX_BYTES, MAX_JSON_BYTES
from evalpipe.api.pages import page
from evalpipe.cli.app import app
from evalpipe.settings import Settings
from evalpipe.store import silences
from evalpipe.wiring import Wiring, now

AUTH = {"Authorization": f"Bearer {KEY}"}
TOO_LOW = "desk/prod/v7/support/too-low"


def settings_of(url: str, folder: Path) -> Settings:
    """With a scorecard, and a Redis that nobody needs."""
    cards = folder / "scorecards"
    cards.mkdir(exist_ok=True)
    (cards / "desk.yaml").write_text(CARD)
    return Settings(home=folder, database_url=url, redis_url="redis://127.0.0.1:1/0", scorecards=cards,
                    api_keys=(KEY,), api_gate_keys=("key-argo",))  # fmt: skip


def filled(url: str) -> NotifyDesk:
    """Two alerts that fire, one of them a dry run, and one that is over; told a minute ago."""
    made = NotifyDesk(url)
    made.now = now() - timedelta(minutes=1)
    made.fire("too-low")
    made.fire("tried", "SEV1", dry_run=1)
    made.resolve("over", "SEV3", fired_at=made.now)
    made.tell()
    return made


@pytest.fixture
def desk(migrated_url: str) -> Iterator[NotifyDesk]:
    """Alerts on each database."""
    made = filled(migrated_url)
    yield made
    made.close()


@pytest.fixture
def run(desk: NotifyDesk, migrated_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run ``evalpipe alerts`` with these words: output, or the error; JSON where ``--json`` is among them."""
    del desk
    monkeypatch.setenv("EVALPIPE_DATABASE_URL", migrated_url)
    monkeypatch.setenv("COLUMNS", "180")

    def call(*words: str) -> Any:
        done = CliRunner().invoke(app, ["alerts", *words])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            return str(done.exception)
        assert done.exit_code == 0 or "Error" in done.output, done.output
        return json.loads(done.stdout) if "--json" in words else done.output

    return call


@pytest.fixture
def client(desk: NotifyDesk, migrated_url: str, tmp_path: Path) -> Iterator[TestClient]:
    """The API on it."""
    del desk
    with TestClient(make_api(settings_of(migrated_url, tmp_path)), raise_server_exceptions=False, headers=AUTH) as it:
        yield it


# The command line


def test_the_list_has_what_fires_first_and_says_who_has_it(run: Callable[..., Any]):
    """What is told on top, then dry runs, then what is over."""
    rows = run("--json")
    assert [(row["rule"], row["status"], row["dry_run"]) for row in rows] == [
        ("too-low", "firing", False), ("tried", "firing", True), ("over", "resolved", False)]  # fmt: skip
    assert rows[0]["respond_by"] is not None
    assert [row["rule"] for row in run("list", "--firing", "--json")] == ["too-low", "tried"]
    table = run("list")
    assert {"too-low", "SEV2", "dry", "run", "respond"} <= set(table.split())


def test_an_alert_is_shown_with_its_numbers_and_its_worst_records(run: Callable[..., Any]):
    """By its id, the end of it, or its rule; control characters of models do not reach the terminal."""
    shown = run("show", "too-low")
    for words in (TOO_LOW, "firing  SEV2", "normal     0.91 of 3,000", "affected   40% (30% to 50%)", "team=care",
                  "r-1  0  <b>no source</b>", "told to chat (first)", "somebody must answer by"):  # fmt: skip
        assert words in shown, words
    assert run("show", "support/too-low", "--json")["alert_id"] == TOO_LOW
    assert "did you mean 'too-low'? 'evalpipe alerts' lists" in run("show", "too-lo")


def test_an_alert_is_taken_on_the_command_line(run: Callable[..., Any], desk: NotifyDesk):
    """With a reason, which stands in the incident."""
    assert run("ack", "too-low", "--reason", "rolling back", "--actor", "ada") == f"{TOO_LOW} is acknowledged\n"
    assert run("list", "--json")[0]["acked_by"] == "ada"
    assert "ada has it" in run("list")
    assert desk.timeline(TOO_LOW, desk.now) == ["ada acknowledged too-low: rolling back"]
    assert "a reason" in run("ack", "too-low", "--reason", " ")
    assert "it does not fire" in run("ack", "over", "--reason", "x")


def test_silences_are_made_listed_and_ended_on_the_command_line(run: Callable[..., Any]):
    """Who, why, until when; what is over stays in the list."""
    words = ("--match", "rule=too-*", "--match", "service=desk", "--for", "2h", "--reason", "load test")
    made = run("silence", *words, "--actor", "ada", "--json")
    assert (made["matchers"], made["state"]) == ({"rule": "too-*", "service": "desk"}, "active")
    assert "rule=too-*, service=desk" in run("silences")
    assert f"{made['silence_id']} has ended" in run("unsilence", made["silence_id"], "--reason", "done")
    assert run("silences", "--json") == []
    assert [row["state"] for row in run("silences", "--all", "--json")] == ["ended"]
    assert "it is over since" in run("unsilence", made["silence_id"])
    assert "there is no such silence" in run("unsilence", "sil_0")
    for wrong, said in (("too-low", "is not label=glob"), ("rule=*", "mute every alert")):
        assert said in run("silence", "--match", wrong, "--for", "2h", "--reason", "x")
    assert "names 'rule' twice" in run("silence", "--match", "rule=a", "--match", "rule=b", "--for", "1h", "--reason",
                                       "x")  # fmt: skip
    assert "no alert has a label 'servce'; did you mean 'service'?" in run(
        "silence", "--match", "servce=desk", "--for", "2h", "--reason", "x"
    )
    assert run("silence", "--match", "rule=a", "--for", "soon", "--reason", "x").startswith("--for 'soon' is not a")
    assert "at most 30 days" in run("silence", "--match", "rule=a", "--for", "31d", "--reason", "x")


# The API


def test_the_api_lists_shows_and_takes_alerts(client: TestClient):
    """Ids have slashes; filters are as elsewhere; what people did wrong has its status."""
    listed = client.get("/v1/alerts", params={"status": "firing", "service": "desk"}).json()["alerts"]
    assert [row["rule"] for row in listed] == ["too-low", "tried"]
    assert client.get("/v1/alerts", params={"statu": "firing"}).status_code == 422
    shown = client.get(f"/v1/alerts/{TOO_LOW}").json()
    assert (shown["explanation"]["value"], shown["acked"], shown["groups"]) == (
        0.7, False, ["default{service=desk,environment=prod,variant=v7}"])  # fmt: skip
    assert shown["timeline"][-1]["text"] == "told to chat (first)"
    who = {"actor": "ada", "reason": "mine"}
    assert client.post(f"/v1/alerts/{TOO_LOW}/ack", json=who).json() == {"acknowledged": [TOO_LOW]}
    assert client.get(f"/v1/alerts/{TOO_LOW}").json()["acked_by"] == "ada"
    assert client.post("/v1/alerts/desk/prod/v7/support/over/ack", json=who).status_code == 409
    missing = client.post("/v1/alerts/nope/ack", json=who)
    assert (missing.status_code, missing.json()["error"]["what"]) == (404, "there is no such alert")
    assert client.get("/v1/alerts/no/such").status_code == 404
    assert client.post(f"/v1/alerts/{TOO_LOW}/ack", json={"actor": "ada"}).status_code == 422


def test_the_api_makes_lists_and_ends_silences(client: TestClient):
    """As on the command line."""
    body = {"actor": "ada", "reason": "load test", "match": {"rule": "too-low"}, "lasts": "90m"}
    made = client.post("/v1/silences", json=body).json()
    assert (made["author"], made["state"]) == ("ada", "active")
    assert [row["silence_id"] for row in client.get("/v1/silences?active=true").json()["silences"]] == [
        made["silence_id"]
    ]
    path = f"/v1/silences/{made['silence_id']}"
    assert client.delete(path).status_code == 422
    assert client.delete(path, params={"actor": "bob"}).json()["ended_by"] == "bob"
    assert client.delete(path, params={"actor": "bob"}).status_code == 409
    assert client.delete("/v1/silences/sil_0", params={"actor": "bob"}).status_code == 404
    assert client.get("/v1/silences?active=true").json() == {"silences": []}
    wrong = client.post("/v1/silences", json={**body, "match": {"rule": "*"}})
    assert (wrong.status_code, wrong.json()["error"]["where"]) == (422, "match")
    assert client.post("/v1/silences", json={**body, "lasts": "60d"}).status_code == 422


@pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
def test_alerts_need_a_key_that_opens_everything(client: TestClient):
    """A deployer's key neither sees nor silences them."""
    for method, path in (("GET", "/v1/alerts"), ("GET", f"/v1/alerts/{TOO_LOW}"), ("POST", "/v1/silences"),
                         ("POST", f"/v1/alerts/{TOO_LOW}/ack"), ("DELETE", "/v1/silences/s")):  # fmt: skip
        assert client.request(method, path, headers={"Authorization": ""}).status_code == 401
        assert client.request(method, path, headers={"Authorization": "Bearer key-argo"}).status_code == 403


@pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("is_told", [True, False], ids=["with its length", "in chunks"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/silences"),
        ("POST", f"/v1/alerts/{TOO_LOW}/ack"),
        ("POST", "/v1/alertmanager"),
        ("PUT", "/v1/controls/desk/switch/stop"),
        ("POST", "/v1/labels"),
        ("POST", "/v1/baselines"),
        ("POST", "/v1/rollouts"),
        ("POST", "/v1/flagger/rollback"),
        ("POST", "/v1/records"),
    ],
)
def test_a_body_that_is_too_large_is_a_problem_like_any_other(
    client: TestClient, method: str, path: str, is_told: bool
):
    """In words, as JSON, whether the request says its length or not."""
    most = MAX_BYTES if path in {"/v1/alertmanager", "/v1/records"} else MAX_JSON_BYTES
    body = b" " * (most + 1)
    pieces = (body[at : at + 65_536] for at in range(0, len(body), 65_536))
    answer = client.request(
        method, path, content=body if is_told else pieces, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413
    problem = answer.json()["error"]
    assert set(problem) == {"what", "where", "value", "advice"}
    assert (problem["where"], problem["what"].startswith("the body ")) == ("body", True)
    assert problem["advice"].startswith("send ")


# Files


@pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
def test_who_is_told_comes_from_a_file(migrated_url: str, tmp_path: Path):
    """A channel that is not configured is named with file and line."""
    from dataclasses import replace

    from evalpipe.errors import ScorecardError

    file = tmp_path / "alerts.yaml"
    file.write_text("notify:\n  routes:\n    - {name: all, channels: [pager], group_wait: 0s}\n")
    made = Wiring(replace(settings_of(migrated_url, tmp_path), alerts=file))
    with pytest.raises(ScorecardError, match=r"alerts.yaml:3:\d+: notify.routes.*there is no channel 'pager'"):
        _ = made.notify
    file.write_text("notify:\n  routes:\n    - {name: all, group_wait: 0s}\n")
    again = Wiring(made.settings)
    assert again.notify(now()) == []
    again.close()


# The page


def test_what_pages_have_in_common_is_in_each_of_them():
    """Each is one file: no comment is left where the common style and scripts belong."""
    for name in ("alerts.html", "rollouts.html"):
        html, _ = page(name)
        assert "/* base." not in html
        assert (html.count("async function call("), html.count("dialog::backdrop")) == (1, 1), name


BROWSE = """
page.locator("#id", has_text="too-low").wait_for()
seen = {"title": page.title(), "rows": page.locator("#rows button").count(),
        "said": page.locator("#said").inner_text(), "clock": page.locator("#clock").inner_text(),
        "facts": page.locator("#facts").inner_text(),
        "worst": page.locator("#worst").inner_text(), "log": page.locator("#log").inner_text()}
page.click("#take"); page.fill("#reason", "<b>mine</b>"); page.click("#send")
page.locator("#clock", has_text="has taken it").wait_for()
seen["taken"] = page.locator("#clock").inner_text()
page.click("#mute"); seen["match"] = page.input_value("#match"); page.fill("#reason", "test"); page.click("#send")
page.locator("#silences", has_text="rule=too-low").wait_for()
page.set_viewport_size({"width": 380, "height": 800})
seen["overflow"] = page.evaluate("document.documentElement.scrollWidth - innerWidth")
"""


@needs_browser
def test_the_page_shows_an_alert_and_takes_and_silences_it(migrated_sqlite_url: str, tmp_path: Path):
    """Reason, countdown, numbers, records and history; what a model wrote stays text. It fits on a telephone."""
    made = filled(migrated_sqlite_url)
    opened = Door(settings_of(migrated_sqlite_url, tmp_path))
    try:
        seen = browse(opened.url + "/alerts", KEY, BROWSE)
    finally:
        opened.close()
    assert (seen["errors"], seen["overflow"], seen["rows"]) == ([], 0, 3)
    assert seen["title"] == "(2) too-low · Alerts · evalpipe"
    assert seen["said"] == "too-low: 0.70 is below 0.80"
    assert seen["clock"].startswith("Somebody must answer within 5")
    assert "0.91 of 3,000" in seen["facts"]
    assert "40 % (30 % to 50 %)" in seen["facts"]
    assert "<b>no source</b>" in seen["worst"]
    assert "told to chat (first)" in seen["log"]
    assert seen["taken"].startswith("Ada has taken it: <b>mine</b>")
    assert seen["match"] == "rule=too-low\nservice=desk\nenvironment=prod\nvariant=v7"
    with made.store.read() as tx:
        (silence,) = silences.active(tx, now())
    assert (silence.author, silence.reason) == ("Ada", "test")
    made.close()
