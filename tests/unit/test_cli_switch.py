"""``evalpipe switch engage``: what it says that it stops, and in which processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert
from typer.testing import CliRunner, Result

from evalpipe.cli.app import app
from evalpipe.store import migrate
from evalpipe.store.sql import Store
from evalpipe.store.tables import processes


@pytest.fixture
def store(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A database that has heard of two processes of support-bot, one of them long ago."""
    monkeypatch.setenv("EVALPIPE_DATABASE_URL", f"sqlite:///{tmp_path / 'evalpipe.db'}")
    monkeypatch.setenv("EVALPIPE_REDIS_URL", redis_url)
    made = Store(f"sqlite:///{tmp_path / 'evalpipe.db'}")
    migrate.upgrade(made)
    at = datetime.now(UTC)
    rows: list[dict[str, Any]] = [
        {"process_id": str(n), "service": "support-bot", "hook_version": "1", "started_at": at - age,
         "sent_at": at - age, "sequence": 1, "messages": 1, "ended_at": None, "feedback": {}}
        for n, age in enumerate([timedelta(seconds=1), timedelta(hours=3)])
    ]  # fmt: skip
    with made.begin() as tx:
        tx.connection.execute(insert(processes), rows)
    yield made
    made.close()


def switch(action: str, service: str, *words: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(app, ["switch", action, service, "stop", "--reason", "r", *words])


@pytest.mark.usefixtures("store")
def test_engaging_says_what_is_stopped_and_in_how_many_processes() -> None:
    """The whole service, unless something narrower is given."""
    whole = switch("engage", "support-bot")
    assert "The switch 'stop' stops the whole service 'support-bot'; 1 process of it is running." in whole.stdout
    part = switch("engage", "support-bot", "--feature", "agent", "--variant", "canary", "--environment", "staging")
    assert "'stop' stops feature 'agent', variant 'canary' of 'support-bot' in 'staging'; 1 process" in part.stdout
    assert whole.stderr == part.stderr == ""
    told = switch("engage", "support-bot", "--json")
    assert (json.loads(told.stdout)["running"], told.stderr) == (1, "")


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("machine", [[], ["--json"]])
def test_a_service_that_nobody_ever_heard_of_is_a_warning_with_what_may_be_meant(machine: list[str]) -> None:
    """It is engaged all the same: its first process may be about to start."""
    done = switch("engage", "suport-bot", *machine)
    assert done.exit_code == 0
    assert "WARNING: no process of 'suport-bot' was ever heard of" in done.stderr
    assert "Did you mean 'support-bot'?" in done.stderr
    assert "Did you mean" not in switch("engage", "xyz", *machine).stderr


@pytest.mark.usefixtures("store")
def test_a_switch_that_was_released_starts_from_nothing() -> None:
    """The feature and the incident of last month are not those of today; an engaged one keeps what is not given."""

    def engaged(*words: str) -> tuple[str, str]:
        control = json.loads(switch("engage", "support-bot", *words, "--json").stdout)["control"]
        return control["feature"], control["incident"]

    assert engaged("--feature", "agent", "--incident", "https://i/1") == ("agent", "https://i/1")
    assert engaged("--incident", "https://i/2") == ("agent", "https://i/2")
    assert switch("release", "support-bot").exit_code == 0
    assert engaged("--feature", "search") == ("search", "")
    assert switch("release", "support-bot").exit_code == 0
    assert engaged() == ("", "")
