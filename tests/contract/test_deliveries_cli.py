"""`evalpipe deliveries`: the log of what was told, sending again, and enabling a channel."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from recording import Recorder, always
from typer.testing import CliRunner

from evalpipe.channels.webhook import Webhook, WebhookConfig
from evalpipe.cli.deliveries import app
from evalpipe.errors import ConfigError
from evalpipe.notification import ADVANCE, ROLLBACK, Notification
from evalpipe.pipeline.deliver import Deliver
from evalpipe.signing import new_secret
from evalpipe.store import endpoints, outbox
from evalpipe.store.sql import Store
from evalpipe.wiring import Wiring, now

SECRET = new_secret()


@pytest.fixture
def store(migrated_sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A database that the commands use."""
    monkeypatch.setenv("EVALPIPE_DATABASE_URL", migrated_sqlite_url)
    monkeypatch.setenv("COLUMNS", "200")
    made = Store(migrated_sqlite_url)
    yield made
    made.close()


def run(*arguments: str) -> str:
    """What a command says."""
    done = CliRunner().invoke(app, list(arguments))
    if done.exception is not None:
        raise done.exception
    return done.output


def trouble(store: Store) -> None:
    """A rollback that was answered with 410, and an advance of another rollout that was not sent any more."""
    with Recorder(always(410, b"\x1b[2Jgone")) as server:
        channels = {"hook": Webhook(WebhookConfig(url=server.url, secrets=(SECRET,)))}
        for event_id, type_, subject in [("evt_r", ROLLBACK, "ro-1"), ("evt_a", ADVANCE, "ro-2")]:
            note = Notification(event_id, type_, subject, now(), {"seq": 4, "reason": "worse"}, "/t")
            with store.begin() as tx:
                outbox.post(tx, note, "hook", channels["hook"].render(note))
            Deliver(store, channels, now)()


def test_the_log_lists_letters_and_shows_one_with_every_attempt(store: Store) -> None:
    """For people and for programs; what a receiver answered cannot play with the terminal."""
    trouble(store)
    assert re.search(r"evt_r .*dead", run())
    rows = json.loads(run("--json"))
    assert {row["event_id"]: (row["state"], row["seq"], row["attempts"]) for row in rows} == {
        "evt_r": ("dead", 4, 1),
        "evt_a": ("dead", 4, 0),
    }
    assert json.loads(run("list", "--state", "delivered", "--json")) == []
    assert len(json.loads(run("list", "--channel", "hook", "--limit", "1", "--json"))) == 1
    shown = run("show", "evt_r")
    assert "evt_r  io.evalpipe.decision.rollback.v1  ro-1 number 4" in shown
    assert "HTTP 410" in shown
    assert "\x1b" not in shown
    told = json.loads(run("show", "evt_r", "--json"))
    assert [(t["attempt"], t["status"], t["ok"]) for t in told["tried"]] == [(1, 410, False)]
    assert json.loads(told["body"])["data"]["reason"] == "worse"
    with pytest.raises(ConfigError, match="no event 'none'"):
        run("show", "none")
    with pytest.raises(ConfigError, match="'lost' is not one of pending"):
        run("list", "--state", "lost")


def test_a_channel_is_looked_at_enabled_and_sent_what_it_missed(store: Store) -> None:
    """With who did it and why; what was given up is named, not sent by itself."""
    trouble(store)
    (row,) = json.loads(run("endpoints", "--json"))
    assert (row["channel"], row["state"], row["actor"]) == ("hook", "disabled", "evalpipe")
    assert "HTTP 410" in row["reason"]
    with pytest.raises(SystemExit):
        run("enable", "hook")
    said = run("enable", "hook", "--reason", "moved", "--actor", "ada")
    assert said.startswith("hook is enabled; 2 given up")
    with store.read() as tx:
        (kept,) = endpoints.listing(tx)
    assert (kept["disabled_at"], kept["actor"], kept["reason"]) == (None, "ada", "moved")
    assert run("redeliver", "--since", "1h", "--channel", "elsewhere") == "0 to be sent again\n"
    assert run("redeliver", "--since", "1h") == "2 to be sent again\n"
    with Recorder() as server:
        channel = Webhook(WebhookConfig(url=server.url, secrets=(SECRET,)))
        Deliver(store, {"hook": channel}, lambda: now() + timedelta(seconds=1))()
        assert sorted(seen.headers["webhook-id"] for seen in server.seen) == ["evt_a", "evt_r"]
    assert [row["state"] for row in json.loads(run("endpoints", "--json"))] == ["well"]


def test_sending_again_is_of_events_that_are_known(store: Store) -> None:
    """All or none; and either events or a time."""
    trouble(store)
    with pytest.raises(ConfigError, match="1 of these ids are unknown, so none is sent"):
        run("redeliver", "evt_r", "evt_x")
    assert {row["state"] for row in json.loads(run("--json"))} == {"dead"}
    assert run("redeliver", "evt_r") == "1 to be sent again\n"
    for arguments in ([], ["evt_r", "--since", "1h"]):
        with pytest.raises(ConfigError, match="one of the two"):
            run("redeliver", *arguments)


def test_channels_of_the_file_stand_beside_the_webhook_of_the_environment(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EVALPIPE_CHANNELS adds to EVALPIPE_WEBHOOK_URL; one name cannot be both."""
    del store
    file = tmp_path / "channels.yaml"
    file.write_text("log: {channel: stdout}\n")
    monkeypatch.setenv("EVALPIPE_CHANNELS", str(file))
    assert [row["channel"] for row in json.loads(run("endpoints", "--json"))] == ["log"]
    monkeypatch.setenv("EVALPIPE_WEBHOOK_URL", "http://127.0.0.1:1/")
    monkeypatch.setenv("EVALPIPE_WEBHOOK_SECRET", SECRET)
    assert list(Wiring().channels) == ["webhook", "log"]
    file.write_text("webhook: {channel: stdout}\n")
    with pytest.raises(ConfigError, match="names a channel 'webhook'"):
        assert Wiring().channels
    assert "Only channels that have, or had, trouble are listed" in run("endpoints")
