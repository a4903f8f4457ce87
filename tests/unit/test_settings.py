"""Settings come from EVALPIPE_* variables; what is wrong is named, and secrets are not shown."""

from __future__ import annotations

from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.errors import ConfigError
from evalpipe.settings import Settings

NUMBERS = {
    "JUDGE_CONCURRENCY": "judge_concurrency",
    "JUDGE_TIMEOUT_S": "judge_timeout_s",
    "LEASE_S": "lease",
    "ATTEMPTS": "attempts",
    "RETENTION_DAYS": "retention",
    "MAX_RECORD_BYTES": "max_record_bytes",
}
WHOLE = ("JUDGE_CONCURRENCY", "ATTEMPTS", "MAX_RECORD_BYTES")


def test_without_variables_every_setting_has_its_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The embedded default: SQLite in the home folder, Redis on this machine, where no ``evalpipe up`` ever ran."""
    monkeypatch.chdir(tmp_path)
    found = Settings.from_env({})
    assert found.database_url == "sqlite:///.evalpipe/evalpipe.db"
    assert all(getattr(found, f.name) == getattr(Settings(), f.name) for f in fields(found) if f.name != "database_url")


def test_an_empty_variable_is_one_that_is_not_set():
    """As Compose files write it."""
    names = [
        *NUMBERS,
        "HOME",
        "DATABASE_URL",
        "REDIS_URL",
        "SCORECARDS",
        "JUDGE",
        "WEBHOOK_SECRET",
        "API_KEYS",
        "API_INTAKE_KEYS",
        "API_LABEL_KEYS",
        "SOURCE",
    ]
    assert Settings.from_env({f"EVALPIPE_{name}": "" for name in names}) == Settings.from_env({})


def test_every_variable_is_read():
    """Each sets its own setting and no other."""
    environ = {
        "EVALPIPE_HOME": "/data",
        "EVALPIPE_REDIS_URL": "redis://r",
        "EVALPIPE_SCORECARDS": "/cards",
        "EVALPIPE_JUDGE": "openai:gpt",
        "EVALPIPE_JUDGE_BASE_URL": "http://j",
        "EVALPIPE_JUDGE_API_KEY": "k",
        "EVALPIPE_JUDGE_CONCURRENCY": "4",
        "EVALPIPE_JUDGE_TIMEOUT_S": "2.5",
        "EVALPIPE_WEBHOOK_URL": "https://w",
        "EVALPIPE_WEBHOOK_SECRET": "whsec_a whsec_b",
        "EVALPIPE_API_KEYS": "one\ntwo",
        "EVALPIPE_API_INTAKE_KEYS": "three four",
        "EVALPIPE_API_LABEL_KEYS": "five six",
        "EVALPIPE_LEASE_S": "30",
        "EVALPIPE_ATTEMPTS": "7",
        "EVALPIPE_RETENTION_DAYS": "0.5",
        "EVALPIPE_MAX_RECORD_BYTES": "2048",
        "EVALPIPE_SOURCE": "/here",
    }
    assert Settings.from_env(environ) == Settings(
        home=Path("/data"),
        database_url="sqlite:////data/evalpipe.db",
        redis_url="redis://r",
        scorecards=Path("/cards"),
        judge="openai:gpt",
        judge_base_url="http://j",
        judge_api_key="k",
        judge_concurrency=4,
        judge_timeout_s=2.5,
        webhook_url="https://w",
        webhook_secrets=("whsec_a", "whsec_b"),
        api_keys=("one", "two"),
        api_intake_keys=("three", "four"),
        api_label_keys=("five", "six"),
        lease=timedelta(seconds=30),
        attempts=7,
        retention=timedelta(hours=12),
        max_record_bytes=2048,
        source="/here",
    )
    assert Settings.from_env({"EVALPIPE_DATABASE_URL": "postgresql://d"}).database_url == "postgresql://d"


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("text", ["many", "-1", "nan", "inf", "-inf", "1e300", "1_0x", "ten"])
def test_a_number_that_is_none_is_told_with_its_variable_and_value(name: str, text: str):
    """Never a traceback."""
    with pytest.raises(ConfigError) as raised:
        Settings.from_env({f"EVALPIPE_{name}": text})
    assert f"EVALPIPE_{name}" in str(raised.value)
    assert repr(text) in str(raised.value)


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_counted_must_be_a_whole_number(name: str):
    """2.7 attempts are not 2."""
    with pytest.raises(ConfigError, match="whole number"):
        Settings.from_env({f"EVALPIPE_{name}": "2000.7"})
    assert getattr(Settings.from_env({f"EVALPIPE_{name}": "2e3"}), NUMBERS[name]) == 2000


@given(st.sampled_from(sorted(NUMBERS)), st.text(st.characters(codec="ascii"), max_size=12) | st.floats().map(repr))
def test_any_text_is_read_or_refused(name: str, text: str):
    """Nothing else is raised."""
    try:
        Settings.from_env({f"EVALPIPE_{name}": text})
    except ConfigError as error:
        assert name in str(error)  # noqa: PT017 - either is right


def test_secrets_are_not_printed():
    """Settings end up in logs and bug reports."""
    environ = {
        "EVALPIPE_JUDGE_API_KEY": "HIDDEN-1",
        "EVALPIPE_WEBHOOK_SECRET": "HIDDEN-2",
        "EVALPIPE_API_KEYS": "HIDDEN-3",
        "EVALPIPE_API_INTAKE_KEYS": "HIDDEN-6",
        "EVALPIPE_API_LABEL_KEYS": "HIDDEN-7",
        "EVALPIPE_DATABASE_URL": "postgresql://u:HIDDEN-4@h/d",
        "EVALPIPE_REDIS_URL": "redis://:HIDDEN-5@h",
    }
    assert "HIDDEN" not in repr(Settings.from_env(environ))
    assert "HIDDEN" not in str(Settings.from_env(environ))
