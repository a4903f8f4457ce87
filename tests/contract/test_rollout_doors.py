"""Rollouts from outside: the command line, the API, Argo's question, Flagger's hooks, the job, the page."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from browsing import browse, needs_browser
from intake_api import KEY, Door
from rollout_desk import GATE, STEPS, RolloutDesk
from sqlalchemy import delete, insert, select, update
from starlette.testclient import TestClient
from typer.testing import CliRunner

from evalpipe.api.app import make_api
from evalpipe.cli.app import app
from evalpipe.errors import ConfigError
from evalpipe.rollout.plan import Shadow, Step
from evalpipe.scorecard.policy import load_rollouts
from evalpipe.store import rollout_log, rollouts, tables
from evalpipe.wiring import Wiring, now

AUTH = {"Authorization": f"Bearer {KEY}"}
GATE_KEY = {"Authorization": "Bearer key-argo"}
FLAGGER = {"Authorization": "Basic " + base64.b64encode(b"flagger:key-argo").decode()}
HOOKS = ("rollback", "confirm-rollout", "confirm-traffic-increase", "confirm-promotion", "pre-rollout", "rollout",
         "post-rollout", "event")  # fmt: skip


@pytest.fixture
def desk(migrated_url: str, redis_url: str, tmp_path: Path) -> Iterator[RolloutDesk]:
    """A rollout's database, and the stage that folds."""
    made = RolloutDesk(migrated_url, redis_url, tmp_path, api_gate_keys=("key-argo",))
    yield made
    made.close()


@pytest.fixture
def client(desk: RolloutDesk) -> Iterator[TestClient]:
    """The API on it."""
    with TestClient(make_api(desk.settings), raise_server_exceptions=False, headers=AUTH) as opened:
        yield opened


@pytest.fixture
def run(desk: RolloutDesk, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run ``evalpipe`` with these words: exit code and output; JSON where ``--json`` is among them."""
    monkeypatch.setenv("EVALPIPE_DATABASE_URL", desk.settings.database_url)
    monkeypatch.setenv("EVALPIPE_REDIS_URL", desk.settings.redis_url)
    monkeypatch.setenv("EVALPIPE_SCORECARDS", str(desk.settings.scorecards))
    monkeypatch.setenv("COLUMNS", "160")

    def call(*words: str) -> tuple[int, Any]:
        done = CliRunner().invoke(app, list(words))
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            return 2, str(done.exception)
        return done.exit_code, json.loads(done.stdout) if "--json" in words else done.output

    return call


@pytest.fixture
def quick_sqlite(migrated_sqlite_url: str, redis_url: str, tmp_path: Path) -> Iterator[RolloutDesk]:
    """The same on SQLite alone, for what does not depend on the database."""
    made = RolloutDesk(migrated_sqlite_url, redis_url, tmp_path, api_gate_keys=("key-argo",))
    yield made
    made.close()


def ask(client: TestClient, name: str = "r-1", expected: int = 200, **params: Any) -> dict[str, Any]:
    """What Argo gets, checked to be strict and small."""
    answer = client.get(f"/v1/canaries/{name}/verdict", params=params, headers=GATE_KEY)
    assert answer.status_code == expected, answer.text
    assert len(answer.content) <= 2_000
    body: dict[str, Any] = json.loads(answer.text, parse_constant=pytest.fail)
    return body["data"] if expected == 200 else body["error"]


def hook(client: TestClient, name: str, checksum: str = "85d557f47b", **metadata: str) -> int:
    """What Flagger understands of a hook: the code of the answer."""
    body = {"name": "desk", "namespace": "prod", "phase": "Progressing", "checksum": checksum,
            "metadata": {"canary": "v7", **metadata}}  # fmt: skip
    answer = client.post(f"/v1/flagger/{name}", json=body, headers=FLAGGER)
    return answer.status_code


# The command line


def test_a_rollout_is_started_from_a_scorecard_and_says_what_it_will_do(desk: RolloutDesk, run: Callable[..., Any]):
    """Steps, gates, and how often it may err; the same id twice changes nothing."""
    code, told = run("rollout", "start", "desk", "--service", "desk", "--reason", "prompt v7", "--id", "r-9")
    assert code == 0, told
    assert "step 1: 5% for 0s and 40 records, until no harm is seen" in told
    assert "step 2: 50%" in told
    assert "until no harm is proven" in told
    assert "sets no weights: others move the traffic" in told
    assert "rolled back with a probability of 1.00% at the most" in told
    with desk.wiring.store.read() as tx:
        row = rollouts.get(tx, "r-9")
    assert row is not None
    assert (row["phase"], row["service"], row["reason"], row["scorecard"]) == ("running", "desk", "prompt v7", "desk")
    code, told = run("rollout", "start", "desk", "--service", "desk", "--reason", "again", "--id", "r-9")
    assert (code, "nothing changed" in told) == (0, True)
    code, told = run("rollout", "start", "desk", "--service", "desk", "--reason", "v8", "--id", "r-10", "--json")
    assert (code, told["new"], told["superseded"]) == (0, True, ["r-9"])


@pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
def test_a_rollout_is_started_from_a_file_of_rollouts(desk: RolloutDesk, run: Callable[..., Any], tmp_path: Path):
    """An entry has its own policy, service and name; a wrong name is answered with those that there are."""
    file = tmp_path / "rollouts.yaml"
    file.write_text(
        "rollouts:\n- {name: desk-prompt, service: desk, scorecard: desk, baseline: v6, canary: v9, ramp: [10, 100],\n"
        "   gates: [{criterion: brief, margin: 10%}]}\n"
    )
    code, told = run("rollout", "start", "desk-prompt", "--file", str(file), "--reason", "v9", "--json", "--dry-run")
    assert (code, told["plan"]["canary"], [s["percent"] for s in told["plan"]["steps"]]) == (0, "v9", [10.0])
    with desk.wiring.store.read() as tx:
        assert rollouts.listing(tx) == []
    code, told = run("rollout", "start", "desk-prompt", "--file", str(file), "--reason", "v9", "--json")
    assert told["rollout_id"].startswith("desk-prompt-")
    assert "has no rollout 'nope'; it has: desk-prompt" in run("rollout", "start", "nope", "--file", str(file),
                                                               "--reason", "x")[1]  # fmt: skip
    assert "there is no scorecard 'desc'; did you mean 'desk'?" in run("rollout", "start", "desc", "--reason", "x")[1]
    assert run("rollout", "start", "desk", "--reason", "x") == (2, "which service? Say it with --service")


@pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
def test_list_and_show_say_where_a_rollout_stands(desk: RolloutDesk, run: Callable[..., Any], tmp_path: Path):
    """Phase, step, last decision; gates with estimate, interval and evidence; and a picture of them."""
    desk.start()
    assert "Nothing has been decided yet" in run("rollout", "show", "r-1")[1]
    desk.feed(60)
    code, listed = run("rollout", "list", "--json")
    assert (code, len(listed), listed[0]["decision"]["action"]) == (0, 1, "hold")
    table = run("rollout", "list")[1]
    assert {"r-1", "2/2", "50"} <= set(table.split())
    shown = run("rollout", "show", "r", "--plot", str(tmp_path / "r.png"))[1]
    for words in ("✓5%  ▶50%", "brief", "-5.0%", "●", "decisions, newest first", "advance", "sets no weights itself"):
        assert words in shown
    assert (tmp_path / "r.png").read_bytes()[:4] == b"\x89PNG"
    found = run("rollout", "show", "r-1", "--json")[1]
    assert found["gates"][0]["n_canary"] == 60
    assert [step["state"] for step in found["steps"]] == ["done", "now", "ahead"]
    assert [decision["seq"] for decision in found["decisions"]] == [3, 2, 1]
    assert "there is no rollout 'q-1'; did you mean 'r-1'?" in run("rollout", "show", "q-1")[1]


def test_an_order_is_stored_and_the_command_says_when_nobody_evaluates(desk: RolloutDesk, run: Callable[..., Any]):
    """Then it waits, and whoever asks meanwhile is told to hold."""
    desk.start()
    code, told = run("rollout", "freeze", "r-1", "--reason", "fire drill", "--for", "2h", "--timeout-s", "0.1",
                     "--actor", "ada")  # fmt: skip
    assert code == 1
    assert "nothing took it up within 0.1 s. Does a worker serve 'evaluate'?" in told
    code, told = run("gate", "--canary", "r-1")
    assert (code, told) == (3, "hold: ada ordered: freeze (fire drill); it waits to be carried out\n")
    assert run("rollout", "advance", "r-1", "--reason", "x", "--for", "soon")[1].startswith("--for 'soon' is not a")
    assert "at most 30 days" in run("rollout", "freeze", "r-1", "--reason", "x", "--for", "60d")[1]
    assert "a reason is needed" in run("rollout", "advance", "r-1", "--reason", "")[1]


def test_an_order_waits_for_its_decision_and_prints_it(
    desk: RolloutDesk, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    """Each is a decision with actor, reason and expiry; one that is refused ends with 1."""
    from evalpipe.cli import rollout_orders

    desk.start()
    desk.feed(60)
    # The worker, at the moment at which the command has asked for it.
    monkeypatch.setattr(rollout_orders, "ask", lambda _: desk.wiring.evaluate(rollout_orders.now()))
    code, told = run("rollout", "rollback", "r-1", "--reason", "customers call", "--actor", "ada")
    assert (code, told) == (0, "rollback: ada ordered rollback (customers call): rolled back\n")
    assert (
        "is rolled back and takes no 'advance'; only 'resume'" in run("rollout", "advance", "r-1", "--reason", "x")[1]
    )
    code, told = run("rollout", "resume", "r-1", "--reason", "fixed", "--actor", "bob", "--json")
    assert (code, told["decision"]["cause"], told["decision"]["phase"]) == (0, "resumed", "running")
    code, told = run("rollout", "resume", "r-1", "--reason", "again", "--actor", "bob")
    assert (code, "refused: nothing is frozen or rolled back" in told) == (1, True)
    assert run("rollout", "abort", "r-1", "--reason", "v8 is better", "--timeout-s", "5")[0] == 0
    assert run("gate", "--canary", "r-1")[0] == 1


def test_a_replay_makes_every_decision_again(desk: RolloutDesk, run: Callable[..., Any]):
    """Orders, holds of time and the rollback included, with the same hashes."""
    desk.start()
    desk.feed(60)
    desk.order("freeze", holds_for=timedelta(minutes=5))
    desk.feed(80)
    desk.at += timedelta(minutes=6)
    desk.fold()
    desk.feed(120, canary=0.5)
    code, told = run("rollout", "replay", "r-1", "--json")
    assert (code, told["equal"], told["difference"]) == (0, True, None)
    assert told["evidence"] == 520
    assert told["decisions"] >= 5
    assert "hash by hash" in run("rollout", "replay", "r-1")[1]


@pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("what", ["reason", "inputs", "estimate", "lost", "plan", "state"])
def test_a_replay_finds_a_row_that_was_tampered_with(desk: RolloutDesk, run: Callable[..., Any], what: str):
    """In the decisions, in the log of inputs, or in the rollout: exit code 1, and the place."""
    desk.start()
    desk.feed(60)
    desk.feed(120, canary=0.5)
    with desk.wiring.store.begin() as tx:
        tamper(tx, what)
    code, told = run("rollout", "replay", "r-1", "--json")
    assert (code, told["equal"]) == (1, False)
    found = told["difference"]
    expected = {"reason": (2, "reason"), "estimate": (2, "evidence.evidence.estimate"), "lost": (2, "decision"),
                "plan": (1, "inputs_hash"), "state": (None, "state.evidence_seq")}  # fmt: skip
    if what in expected:
        assert (found["seq"], found["field"]) == expected[what]
    assert "differs in" in run("rollout", "replay", "r-1")[1]


def tamper(tx: Any, what: str) -> None:
    """Change one stored thing of the rollout r-1."""
    decisions = tables.decisions
    second = (decisions.c.rollout_id == "r-1") & (decisions.c.seq == 2)
    if what == "reason":
        tx.connection.execute(update(decisions).where(second).values(reason="all is well"))
    elif what == "lost":
        tx.connection.execute(delete(decisions).where(second))
    elif what == "estimate":
        body = tx.connection.scalar(select(decisions.c.evidence).where(second))
        body["evidence"]["estimate"] = 0.5
        tx.connection.execute(update(decisions).where(second).values(evidence=body))
    elif what == "inputs":
        row = tx.connection.execute(select(tables.rollout_inputs).order_by(tables.rollout_inputs.c.n)).first()
        batch = rollout_log.decode(row.body)
        flipped = tuple(e._replace(value=1.0 - e.value) for e in batch.evidence)
        changed = rollout_log.encode(type(batch)(batch.now, batch.health, batch.overrides, batch.meter, flipped))
        tx.connection.execute(
            update(tables.rollout_inputs).where(tables.rollout_inputs.c.n == row.n).values(body=changed)
        )
    else:
        body = tx.connection.scalar(select(tables.rollouts.c[what]))
        if what == "plan":
            body["gates"][0]["severity"] = "SEV3"
        else:
            body["evidence_seq"] += 1
        tx.connection.execute(update(tables.rollouts).values({what: body}))


# The API


def test_the_api_starts_shows_and_takes_orders(desk: RolloutDesk, client: TestClient):
    """With actor and reason; the order waits, and is a decision after the next evaluation."""
    body = {"scorecard": "desk", "service": "desk", "actor": "ada", "reason": "v7", "rollout_id": "r-1"}
    done = client.post("/v1/rollouts", json=body)
    assert (done.status_code, done.json()) == (
        200, {"rollout_id": "r-1", "new": True, "superseded": [], "published": None})  # fmt: skip
    assert client.post("/v1/rollouts", json=body).json()["new"] is False
    desk.feed(60)
    found = client.get("/v1/rollouts/r-1").json()
    assert (found["phase"], found["percent"], found["decision"]["action"]) == ("running", 50.0, "hold")
    assert found["gates"][0]["gate"] == "brief"
    assert client.get("/v1/rollouts").json()["rollouts"][0]["decision"]["cause"] == "insufficient_evidence"
    order = {"actor": "ada", "reason": "quiet night", "holds_for": "2h", "order_id": "o-1"}
    for _ in range(2):
        assert client.post("/v1/rollouts/r-1/freeze", json=order).json()["folded_at"] is None
    desk.at += timedelta(hours=3)
    desk.order("freeze", holds_for=timedelta(hours=1))
    found = client.get("/v1/rollouts/r-1").json()
    assert found["phase"] == "paused"
    assert [o["order_id"] for o in found["orders"]].count("o-1") == 1
    assert [d["expires_at"] is not None for d in found["decisions"] if d["actor"] == "ada"] == [True, True]
    assert client.get("/v1/decisions", params={"rollout": "r-1"}).json()["decisions"][0]["phase"] == "paused"


def test_the_api_refuses_in_words(desk: RolloutDesk, client: TestClient):
    """404 for what is not there, 409 for what has ended, 422 for what is not said."""
    who = {"actor": "ada", "reason": "x"}
    assert client.get("/v1/rollouts/r-1").status_code == 404
    assert client.post("/v1/rollouts/r-1/advance", json=who).json()["error"]["what"] == "there is no such rollout"
    desk.start()
    desk.order("abort")
    ended = client.post("/v1/rollouts/r-1/advance", json=who)
    assert (ended.status_code, "is aborted and takes no 'advance'" in ended.json()["error"]["what"]) == (409, True)
    for wrong in ({"actor": "ada"}, {**who, "holds_for": "0s"}, {**who, "holds_for": "60d"}, {**who, "why": "x"}):
        assert client.post("/v1/rollouts/r-1/rollback", json=wrong).status_code == 422
    unknown = client.post("/v1/rollouts", json={**who, "scorecard": "desc", "service": "desk"})
    assert (unknown.status_code, unknown.json()["error"]["advice"]) == (422, "there are: desk")
    assert client.post("/v1/rollouts/r-1/advance", json=who, headers=GATE_KEY).status_code == 403


def test_a_change_event_starts_the_rollout_that_is_declared_for_it(client: TestClient, desk: RolloutDesk):
    """Once, however often it is told; a change of another service or variant starts nothing."""
    event = {"change_id": "c-1", "service": "desk", "variant": "v7", "kind": "prompt", "version": "v7", "source": "ci"}
    done = client.post("/v1/changes", json=event).json()
    assert (done["new"], len(done["started"])) == (True, 1)
    assert client.post("/v1/changes", json=event).json() == {"change_id": "c-1", "new": False, "started": []}
    for number, other in enumerate(({"service": "till"}, {"variant": "v6"}), 2):
        told = client.post("/v1/changes", json={**event, "change_id": f"c-{number}", **other})
        assert told.json()["started"] == []
    (row,) = client.get("/v1/rollouts").json()["rollouts"]
    assert (row["actor"], row["reason"], row["plan"]["steps"][0]["percent"]) == ("ci", "change c-1", 5.0)
    first = client.get("/v1/changes").json()["changes"][-1]
    assert (first["change_id"], first["rollout_id"], first["body"]) == ("c-1", row["rollout_id"], {"version": "v7"})
    assert client.get("/v1/changes", params={"service": "desk"}).json()["changes"][0]["service"] == "desk"
    desk.wiring.maintain(now() + desk.settings.retention + timedelta(days=1))
    assert client.get("/v1/changes").json() == {"changes": []}


def test_a_change_event_starts_what_a_file_of_rollouts_declares(desk: RolloutDesk, tmp_path: Path):
    """Of its service and canary, in its environment, under its own policy; an entry without a scorecard is told."""
    file = tmp_path / "rollouts.yaml"
    entry = "{name: till-prompt, service: desk, scorecard: desk, canary: v9, baseline: v6, ramp: [10, 100]"
    file.write_text(f"rollouts:\n- {entry}, environment: staging}}\n- {entry.replace('till', 'desk')}}}\n")
    with TestClient(make_api(replace(desk.settings, rollouts=file)), headers=AUTH) as client:
        event = {"change_id": "c-1", "service": "desk", "variant": "v9", "kind": "prompt", "environment": "production"}
        (started,) = client.post("/v1/changes", json=event).json()["started"]
        assert client.post("/v1/changes", json={**event, "change_id": "c-2", "service": "x"}).json()["started"] == []
        plan = client.get(f"/v1/rollouts/{started['rollout_id']}").json()
    assert started["rollout_id"].startswith("desk-prompt")
    assert [step["percent"] for step in plan["steps"]] == [10.0, 100.0]
    file.write_text(f"rollouts:\n- {entry.replace('scorecard: desk, ', '')}}}\n")
    with pytest.raises(ConfigError, match="'till-prompt' names no scorecard"):
        _ = Wiring(replace(desk.settings, rollouts=file)).rollouts


def test_a_rollout_is_where_the_traffic_of_its_service_comes_from(desk: RolloutDesk, run: Callable[..., Any]):
    """Else it would wait for records of an environment that has none; of several one has to be named."""

    def seen(environment: str) -> None:
        with desk.wiring.store.begin() as tx:
            row = {"release_id": environment, "service": "desk", "environment": environment, "first_seen_at": desk.at}
            tx.connection.execute(insert(tables.releases).values(row))

    def started(rollout_id: str, *more: str) -> str:
        code, told = run("rollout", "start", "desk", "--service", "desk", "--reason", "v7", "--id", rollout_id, *more)
        if code:
            return str(told)
        with desk.wiring.store.read() as tx:
            row = rollouts.get(tx, rollout_id)
        assert row is not None
        return str(row["environment"])

    assert started("r-1") == "production", "what hooks say that nobody told"
    seen("europe")
    assert (started("r-2"), started("r-3", "--environment", "asia")) == ("europe", "asia")
    seen("staging")
    assert "in several environments ('europe', 'staging')" in started("r-4")


# Argo


def test_argo_is_told_hold_advance_and_rollback_with_small_evidence(desk: RolloutDesk, client: TestClient):
    """The body as its ``web`` provider reads it: strict JSON under ``data``."""
    desk.start()
    assert ask(client)["decision"] == "hold"
    desk.feed(60)
    found = ask(client, step=5)
    assert {key: found[key] for key in ("decision", "step", "rollout", "phase", "policy")} == {
        "decision": "advance", "step": 5.0, "rollout": "r-1", "phase": "running", "policy": "desk@1a2b"}  # fmt: skip
    assert found["decision_id"] == "dec_r-1_2"
    assert found["reason"].startswith("on from 5 % to 50 %")
    assert list(found["evidence"][0]) == ["gate", "change", "interval", "margin", "e_value", "threshold", "n_baseline",
                                          "n_canary"]  # fmt: skip
    assert found["data_through"].endswith("+00:00")
    desk.feed(120, canary=0.5)
    for step in (5, 50, None):
        bad = ask(client, **({} if step is None else {"step": step}))
        assert (bad["decision"], bad["phase"]) == ("rollback", "rolled_back")


def test_the_advance_of_another_step_is_a_hold(desk: RolloutDesk, client: TestClient):
    """Each step is left when the rollout has gone beyond it; without a step all of the traffic is asked for."""
    desk.start()
    desk.feed(60)
    assert ask(client, step=5)["decision"] == "advance"
    assert ask(client, step=50)["decision"] == "hold"
    assert ask(client)["decision"] == "hold"
    desk.order("rollback")
    desk.order("resume")
    ahead = ask(client, step=50)
    assert (ahead["decision"], ahead["reason"]) == (
        "hold", "the rollout is at 5 %, so the canary should get that, not 50 %")  # fmt: skip


def test_a_freeze_and_every_end_reach_argo(desk: RolloutDesk, client: TestClient):
    """Frozen holds also what was passed; aborted and expired are a rollback for whoever moves the traffic."""
    desk.start()
    desk.feed(60)
    desk.order("freeze", holds_for=timedelta(days=2))
    assert (ask(client, step=5)["decision"], ask(client, step=5)["reason"][:12]) == ("hold", "frozen until")
    desk.order("abort")
    assert ask(client, step=5)["decision"] == "rollback"
    desk.start("r-2", shadow=Shadow())
    desk.fold()
    assert "shadow phase" in ask(client, "r-2", step=5)["reason"]
    desk.start("r-3", max_duration=timedelta(hours=1))
    desk.at += timedelta(hours=2)
    desk.fold()
    assert (ask(client, "r-3")["phase"], ask(client, "r-3")["decision"]) == ("expired", "rollback")
    assert (ask(client, "r-2")["phase"], ask(client, "r-2")["decision"]) == ("superseded", "hold")


def test_an_answer_rests_on_what_led_here_and_not_on_what_is_past(desk: RolloutDesk, client: TestClient):
    """The hold of an earlier step is no reason to stay at this one, nor a lifted rollback one to go back."""
    desk.start(steps=tuple(Step(percent, timedelta(hours=1), 40) for percent in (5, 50)))
    desk.feed(5)
    desk.order("advance")
    told = ask(client, step=50)
    assert (told["decision"], told["reason"][:32]) == ("hold", "nothing decided since: ada order")
    desk.order("rollback")
    assert "ordered rollback" in ask(client)["reason"]
    desk.order("resume")
    desk.order("abort")
    assert (ask(client)["decision"], "ordered abort" in ask(client)["reason"]) == ("rollback", True)


def test_a_comparison_without_steps_advances_once_it_is_proven(desk: RolloutDesk, client: TestClient):
    """Where others split the traffic there is one advance; harm that comes later still rolls back."""
    desk.start(steps=())
    desk.feed(500, baseline=0.97, canary=0.97)
    assert (ask(client)["decision"], ask(client, step=20)["decision"]) == ("advance", "advance")
    desk.feed(120, baseline=0.97, canary=0.4)
    assert ask(client, step=20)["decision"] == "rollback"


def test_a_canary_is_found_by_its_variant_and_deployment(desk: RolloutDesk, client: TestClient):
    """What ended before a deployment was first asked about is none of its business."""
    assert ask(client, "v7", 404)["what"] == "there is no rollout, and no release, that is called 'v7'"
    desk.start("r-1")
    desk.feed(120, canary=0.5)
    assert ask(client, "v7", service="desk")["decision"] == "rollback"
    new = {"service": "desk", "deployment": "hash-2"}
    fresh = ask(client, "v7", **new)
    assert (fresh["decision"], fresh["rollout"]) == ("hold", "")
    assert "no record of it has arrived yet" in fresh["reason"]
    desk.start("r-2")
    assert (ask(client, "v7", **new)["rollout"], ask(client, "v7", **new)["decision"]) == ("r-2", "hold")
    desk.start("r-3", environment="staging")
    assert "several canaries are called 'v7'" in ask(client, "v7", 422)["what"]
    assert ask(client, "v7", environment="staging")["rollout"] == "r-3"
    assert ask(client, "r-1", 422, steps=5)["what"] == "there is no parameter 'steps'"


@pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
def test_a_complete_rollout_of_a_name_that_was_used_again_does_not_advance(desk: RolloutDesk, client: TestClient):
    """Nobody can tell which release is meant: the id or the deployment says it."""
    for number in (1, 2):
        desk.start(f"r-{number}")
        desk.feed(60, rollout_id=f"r-{number}")
        desk.feed(500, baseline=0.97, canary=0.97, rollout_id=f"r-{number}")
        assert ask(client, f"r-{number}")["phase"] == "complete"
    assert "name the rollout's id, or the deployment" in ask(client, "v7")["reason"]
    assert ask(client, "r-2")["decision"] == "advance"


@pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
def test_an_answer_stays_small_with_many_gates_and_long_reasons(desk: RolloutDesk, client: TestClient):
    """Argo keeps it in the cluster's database: gates go first, then the end of the reason."""
    from dataclasses import replace

    gates = tuple(replace(GATE, name=f"gate-{'x' * 50}-{i}") for i in range(12))
    desk.start(gates=gates)
    desk.feed(60)
    found = ask(client, step=50)
    assert 0 < len(found["evidence"]) < 12
    assert found["reason"].endswith("…")


# Flagger

STATES: dict[str, dict[str, int]] = {
    # hook:        rollback, confirm-rollout, -traffic-increase, -promotion, pre-rollout, rollout, post-rollout, event
    "nothing yet": dict(zip(HOOKS, (403, 200, 200, 403, 200, 200, 200, 200), strict=True)),
    "shadow": dict(zip(HOOKS, (403, 200, 403, 403, 200, 200, 200, 200), strict=True)),
    "first step": dict(zip(HOOKS, (403, 200, 200, 403, 200, 200, 200, 200), strict=True)),
    "frozen": dict(zip(HOOKS, (403, 403, 403, 403, 200, 200, 200, 200), strict=True)),
    "complete": dict(zip(HOOKS, (403, 200, 200, 200, 200, 200, 200, 200), strict=True)),
    "rolled back": dict(zip(HOOKS, (200, 200, 403, 403, 403, 403, 200, 200), strict=True)),
    "aborted": dict(zip(HOOKS, (200, 200, 403, 403, 403, 403, 200, 200), strict=True)),
}


@pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("state", STATES)
def test_each_hook_of_flagger_is_answered_with_the_code_that_it_understands(
    desk: RolloutDesk, client: TestClient, state: str
):
    """200 is yes and 403 is no, in every state of a rollout."""
    assert hook(client, "event") == 200
    hook(client, "rollout")  # Flagger has asked about this deployment before
    if state != "nothing yet":
        desk.at += timedelta(hours=3)  # later than the deployment was first asked about
        desk.start(shadow=Shadow() if state == "shadow" else None)
    if state == "frozen":
        desk.order("freeze", holds_for=timedelta(days=1))
    if state == "complete":
        desk.feed(60)
        desk.feed(500, baseline=0.97, canary=0.97)
    if state == "rolled back":
        desk.feed(120, canary=0.5)
    if state == "aborted":
        desk.order("abort")
    assert {name: hook(client, name) for name in HOOKS} == STATES[state]


def test_flagger_raises_the_traffic_once_for_each_step(desk: RolloutDesk, client: TestClient, monkeypatch: Any):
    """It does not say where it is, so each leave is given once; the first without evidence, since there is none."""
    from evalpipe.api import canaries

    monkeypatch.setattr(canaries, "now", lambda: desk.at)

    def later() -> int:
        desk.at += timedelta(seconds=30)
        return hook(client, "confirm-traffic-increase")

    assert [later(), later()] == [200, 403], "one leave before any evidence"
    desk.start()
    assert later() == 403
    desk.feed(60)
    assert [later(), later(), later()] == [200, 403, 403], "the second when the rollout has left its first step"
    desk.at += timedelta(seconds=30)
    assert hook(client, "confirm-traffic-increase", checksum="another") == 200, "another deployment begins anew"
    assert hook(client, "confirm-traffic-increase", checksum="another") == 200, "an answer that was lost is repeated"


def test_a_deployers_key_opens_its_questions_and_nothing_else(quick_sqlite: RolloutDesk):
    """Flagger can only send it as the password of basic authentication, which opens nothing anywhere else."""
    quick_sqlite.start()
    with TestClient(make_api(quick_sqlite.settings)) as client:
        assert client.get("/v1/canaries/r-1/verdict", headers=GATE_KEY).status_code == 200
        assert client.get("/v1/canaries/r-1/verdict", headers=FLAGGER).status_code == 401
        assert client.get("/v1/flags/desk", headers=GATE_KEY).status_code == 200, "flagd holds a deployer's key too"
        for path in (
            "/v1/rollouts",
            "/v1/canaries/r-1",
            "/v1/canaries//verdict",
            "/v1/canaries/a/b/verdict",
            "/metrics",
        ):
            assert client.get(path, headers=GATE_KEY).status_code == 403, path
        for path in ("/v1/rollouts", "/v1/rollouts/r-1/advance", "/v1/changes"):
            assert client.post(path, json={}, headers=GATE_KEY).status_code == 403, path
        body = {"name": "desk"}
        assert client.post("/v1/flagger/rollout", json=body, headers=FLAGGER).status_code == 200
        for wrong in ("Basic ???", "Basic " + base64.b64encode(b"key-argo").decode(), "Basic", "Bearer nope"):
            refused = client.post("/v1/flagger/rollback", json=body, headers={"Authorization": wrong})
            assert refused.status_code == 401, wrong
        assert client.post("/v1/flagger/nope", json=body, headers=FLAGGER).status_code == 422
        large = client.post("/v1/flagger/rollback", content=b" " * 1_000_001, headers=FLAGGER)
        assert large.status_code == 413
        full = {"Authorization": "Basic " + base64.b64encode(f"x:{KEY}".encode()).decode()}
        assert client.get("/v1/rollouts", headers=full).status_code == 401


# The job


def test_the_gate_ends_with_a_code_for_each_answer(desk: RolloutDesk, run: Callable[..., Any], monkeypatch: Any):
    """0 advance, 1 rollback, 2 a wrong command, 3 still on hold, 4 nobody knows."""
    assert run("gate", "--canary", "v7")[0] == 4
    desk.start()
    desk.feed(60)
    code, told = run("gate", "--canary", "v7", "--service", "desk", "--step", "5", "--json")
    assert (code, told["decision"], told["rollout"]) == (0, "advance", "r-1")
    assert run("gate", "--canary", "r-1", "--wait", "200ms")[1] == (
        "--wait '200ms' is not a duration; write 90s, 10m, 1h30m or 7d")  # fmt: skip
    code, told = run("gate", "--canary", "r-1", "--wait", "1s", "--every", "1s")
    assert (code, told.startswith("hold: ")) == (3, True)
    desk.feed(120, canary=0.5)
    assert run("gate", "--canary", "r-1")[0] == 1
    monkeypatch.setenv("EVALPIPE_DATABASE_URL", "postgresql+psycopg://nobody@127.0.0.1:1/none")
    assert run("gate", "--canary", "r-1")[0] == 4
    monkeypatch.setenv("EVALPIPE_DATABASE_URL", "sqlite:////nowhere/evalpipe.db")
    assert run("gate", "--canary", "r-1")[0] == 4


def test_the_gate_asks_an_api_as_well(quick_sqlite: RolloutDesk, run_sqlite: Callable[..., Any]):
    """With a deployer's key, over the network, and without a database of its own."""
    quick_sqlite.start()
    quick_sqlite.feed(60)
    opened = Door(quick_sqlite.settings)
    try:
        words = ("gate", "--canary", "r-1", "--url", opened.url + "/", "--key", "key-argo")
        assert run_sqlite(*words, "--step", "5")[0] == 0
        code, told = run_sqlite(*words)
        assert (code, told.startswith("hold: not enough evidence yet")) == (3, True)
        assert run_sqlite("gate", "--canary", "r-2", "--url", opened.url, "--key", "key-argo")[0] == 4
        assert "a key is needed" in run_sqlite("gate", "--canary", "r-1", "--url", opened.url)[1]
        assert run_sqlite("gate", "--canary", "r-1", "--url", opened.url, "--key", "no")[0] == 2
    finally:
        opened.close()
    code, told = run_sqlite(*words)
    assert (code, "does not answer" in told) == (4, True)


@pytest.fixture
def run_sqlite() -> Callable[..., Any]:
    """Run ``evalpipe`` without any settings: exit code and output."""

    def call(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, list(words), env={"EVALPIPE_DATABASE_URL": "sqlite:////nowhere/x.db"})
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            return 2, str(done.exception)
        return done.exit_code, done.output

    return call


# The page


BROWSE = """
page.wait_for_selector(".gate")
seen = {"title": page.title(), "gates": page.locator("#gates").inner_text(),
        "log": page.locator("#log").inner_text(), "newest": page.locator("#newest").inner_text(),
        "steps": page.locator("#ramp li").count()}
page.click("#orders button[data-action=freeze]")
page.fill("#reason", "<b>fire</b> drill"); page.fill("#for", "2h"); page.click("#send")
page.locator("#waits", has_text="fire").wait_for()
seen["waits"] = page.locator("#waits").inner_text()
page.set_viewport_size({"width": 380, "height": 800})
seen["overflow"] = page.evaluate("document.documentElement.scrollWidth - innerWidth")
"""


@needs_browser
def test_the_page_shows_a_rollout_and_takes_an_order(quick_sqlite: RolloutDesk):
    """Gates, decisions and ramp; an order with its reason waits in the database. It fits on a telephone."""
    quick_sqlite.start()
    quick_sqlite.feed(60)
    opened = Door(quick_sqlite.settings)
    try:
        seen = browse(opened.url + "/rollouts", KEY, BROWSE)
    finally:
        opened.close()
    assert (seen["errors"], seen["overflow"], seen["steps"]) == ([], 0, len(STEPS) + 1)
    assert seen["title"] == "r-1 · Rollouts · evalpipe"
    assert "5.0 %" in seen["gates"].partition("margin")[2]
    assert "advance" in seen["log"]
    assert seen["newest"].startswith("hold: not enough evidence")
    assert seen["waits"] == "Ada ordered freeze (<b>fire</b> drill); it waits to be carried out."
    with quick_sqlite.wiring.store.read() as tx:
        (order,) = rollouts.orders(tx, "r-1")
    assert (order["action"], order["actor"], order["expires_at"] - order["at"]) == ("freeze", "Ada", timedelta(hours=2))


# Examples and docs

ROOT = Path(__file__).parents[2]


def test_the_examples_ask_for_what_there_is_and_agree_with_their_ramp():
    """Paths of the API, hooks of Flagger, and the steps of Argo's Rollout as the policy beside it has them."""
    argo = ROOT / "examples" / "argo"
    (entry,) = load_rollouts(argo / "rollouts.yaml")
    steps = yaml.safe_load((argo / "rollout.yaml").read_text())["spec"]["strategy"]["canary"]["steps"]
    weights = [step["setWeight"] for step in steps if "setWeight" in step]
    assert weights == [step.percent for step in entry.climb]
    asked = [{arg["name"]: arg["value"] for arg in step["analysis"]["args"]} for step in steps if "analysis" in step]
    assert [int(args["step"]) for args in asked] == weights
    templates = (argo / "analysis-templates.yaml").read_text()
    assert re.findall(r"example\.com(/v1/canaries/)\{\{args\.rollout\}\}(/verdict)", templates) == [
        ("/v1/canaries/", "/verdict")] * 2  # fmt: skip
    flagger = yaml.safe_load((ROOT / "examples" / "flagger" / "canary.yaml").read_text())
    for found in flagger["spec"]["analysis"]["webhooks"]:
        assert found["url"] == f"https://flagger:KEY@evalpipe.example.com/v1/flagger/{found['type']}"
        assert found["type"] in HOOKS


def test_the_docs_have_flaggers_codes_as_they_are():
    """The table of states, row by row."""
    told = (ROOT / "docs" / "integrations.md").read_text()
    rows = {"no record of the canary yet": "nothing yet", "shadow phase": "shadow", "at a step": "first step",
            "frozen": "frozen", "complete": "complete", "rolled back, aborted, expired": "rolled back"}  # fmt: skip
    for words, state in rows.items():
        cells = [cell.strip() for cell in next(x for x in told.splitlines() if x.startswith(f"| {words} |")).split("|")]
        codes = [
            STATES[state][name] for name in ("rollback", "confirm-traffic-increase", "confirm-promotion", "rollout")
        ]
        assert [int(cell[:3]) for cell in cells[2:6]] == codes, state
