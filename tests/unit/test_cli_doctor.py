"""``evalpipe doctor`` and ``evalpipe settings``: what is wrong is told once, and no password is shown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evalpipe.cli import up
from evalpipe.cli.app import app
from evalpipe.settings import masked

AWAY = "redis://:HIDDEN-1@127.0.0.1:1/0"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that is not there, with the scorecards that ship, and a Redis that is away."""
    monkeypatch.setenv("EVALPIPE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EVALPIPE_SCORECARDS", str(up.shipped_scorecards()))
    monkeypatch.setenv("EVALPIPE_REDIS_URL", AWAY)
    return tmp_path / "home"


def examined() -> dict[str, tuple[str, str, str]]:
    """State, detail and advice of each part."""
    done = CliRunner().invoke(app, ["doctor", "--json"])
    assert done.exit_code == 1
    return {f["what"]: (f["state"], f["detail"], f["advice"]) for f in json.loads(done.output)}


def test_what_follows_from_another_failure_is_not_checked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own advice would be wrong."""
    assert CliRunner().invoke(app, ["migrate"]).exit_code == 0
    monkeypatch.setenv("EVALPIPE_SCORECARDS", str(home / "none"))
    found = examined()
    assert found["redis"][0] == found["scorecards"][0] == "bad"
    assert found["database"][0] == found["progress"][0] == "ok"
    assert found["ledger"] == ("warn", "not checked: see redis above", "")
    assert found["judge"] == ("warn", "not checked: see scorecards above", "")


def test_without_data_the_doctor_says_so_once_and_makes_none(home: Path) -> None:
    """The database is absent: the parts that live in it are not looked at."""
    found = examined()
    advice = "run `evalpipe up` here, set EVALPIPE_HOME, or run `evalpipe migrate`"
    assert found["database"] == ("bad", f"no evalpipe data in {home}", advice)
    assert {found[name][1] for name in ("progress", "ledger")} == {"not checked: see database above"}
    assert not home.exists()


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("machine", [[], ["--json"]])
def test_passwords_in_urls_are_not_shown(monkeypatch: pytest.MonkeyPatch, machine: list[str]) -> None:
    """Neither by the settings nor by the doctor, whose output ends up in tickets."""
    monkeypatch.setenv("EVALPIPE_WEBHOOK_URL", "https://user:HIDDEN-2@hooks.example/x")
    monkeypatch.setenv("EVALPIPE_WEBHOOK_SECRET", "whsec_" + "U0VDUkVULTM" * 4)
    monkeypatch.setenv("EVALPIPE_API_INTAKE_KEYS", "HIDDEN-4")
    monkeypatch.setenv("EVALPIPE_API_LABEL_KEYS", "HIDDEN-6")
    monkeypatch.setenv("EVALPIPE_API_GATE_KEYS", "HIDDEN-7")
    monkeypatch.setenv("COLUMNS", "200")
    assert CliRunner().invoke(app, ["migrate"]).exit_code == 0
    assert "HIDDEN" not in CliRunner().invoke(app, ["doctor", *machine]).output
    monkeypatch.setenv("EVALPIPE_DATABASE_URL", "postgresql+psycopg://user:HIDDEN-5@127.0.0.1:1/evalpipe")
    for command in ("settings", "doctor"):
        told = CliRunner().invoke(app, [command, *machine]).output
        assert "HIDDEN" not in told
        assert "U0VDUkVULTM" not in told
    shown = CliRunner().invoke(app, ["settings"]).output
    assert "redis://:***@127.0.0.1:1/0" in shown
    assert "postgresql+psycopg://user:***@127.0.0.1:1/evalpipe" in shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://user@host:6379/0", "redis://user@host:6379/0"),
        ("rediss://:a:b/c@d@host/0", "rediss://:***@host/0"),
        ("postgresql://host/db?user=u&password=p&sslmode=require", "postgresql://host/db?user=u&password=***&sslmode=require"),
        ("sqlite:////data/evalpipe.db", "sqlite:////data/evalpipe.db"),
        ("", ""),
    ],
)  # fmt: skip
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    """Whatever characters are in it, and also as a parameter."""
    assert masked(url) == shown


READING = ["ledger", "meter", "processes", "scores", "plot polite", "why t-1", "decisions", "alerts", "incidents",
           "deliveries", "deliveries redeliver e", "dead-letters list", "dead-letters show d",
           "dead-letters redrive"]  # fmt: skip


@pytest.mark.parametrize("command", READING)
def test_a_command_without_data_says_where_it_looked_and_makes_nothing(home: Path, command: str) -> None:
    """Neither the home nor an empty database, and no traceback."""
    done = CliRunner().invoke(app, command.split())
    expected = f"no evalpipe data in {home}: run `evalpipe up` here, set EVALPIPE_HOME, or run `evalpipe migrate`"
    assert str(done.exception) == expected
    assert not home.exists()


def test_an_empty_database_is_one_line_and_exit_code_2(home: Path) -> None:
    """One that was made before it was migrated."""
    home.mkdir()
    (home / "evalpipe.db").touch()
    command = [sys.executable, "-m", "evalpipe", "meter"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        f"evalpipe: no evalpipe data in {home}: run `evalpipe up` here, set EVALPIPE_HOME, or run `evalpipe migrate`\n"
    )


def test_criteria_without_a_judge_are_counted_beside_those_that_name_their_own(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of them are graded, and half are not."""
    own = '{name: kind, judge: {kind: boolean, rubric: Is it kind?, model: "fake:own"}}'
    default = "{name: brief, judge: {kind: boolean, rubric: Is it brief?}}"
    (tmp_path / "card.yaml").write_text(f"name: desk\ncriteria:\n  - {own}\n  - {default}\n")
    monkeypatch.setenv("EVALPIPE_SCORECARDS", str(tmp_path))
    detail = "fake:own, for 1 criteria; no default judge: 1 judged criteria are skipped (desk/brief)"
    assert examined()["judge"] == ("warn", detail, "set EVALPIPE_JUDGE")
    monkeypatch.setenv("EVALPIPE_JUDGE", "fake:x")
    assert examined()["judge"] == ("ok", "fake:x, fake:own, for 2 criteria", "")
    assert not home.exists()
