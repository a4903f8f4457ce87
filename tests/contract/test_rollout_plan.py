"""`evalpipe rollout plan --service`: what is known of the baseline comes from the store."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert
from typer.testing import CliRunner

from evalpipe.cli.app import app
from evalpipe.errors import ConfigError
from evalpipe.score import scored
from evalpipe.store.series import Entry, Series, add_scores
from evalpipe.store.sql import Store
from evalpipe.store.tables import judge_calls


@pytest.fixture(params=["migrated_sqlite_url", "migrated_postgres_url"])
def store(request, monkeypatch):
    """A migrated database with a day of scores: 0.9 pass."""
    url = request.getfixturevalue(request.param)
    monkeypatch.setenv("EVALPIPE_DATABASE_URL", url)
    made = Store(url)
    now = datetime.now(UTC)
    series = Series("desk", "", "production", "baseline", "rel", "support", "quality", "e1")
    entries = [
        Entry(f"r{place}", "v1", series, now - timedelta(hours=1), scored(float(place % 10 > 0)), 2.0, "heuristic:x@1")
        for place in range(400)
    ]
    with made.begin() as tx:
        add_scores(tx, entries, now)
        row = {"judge": "j", "scorecard": "support", "outcome": "answered", "n": 50, "input_tokens": 1,
               "cached_tokens": 0, "output_tokens": 1, "cost_usd": 0.1, "minute_at": now}  # fmt: skip
        tx.connection.execute(insert(judge_calls).values({k: v for k, v in row.items() if k in judge_calls.c}))
    yield made
    made.close()


def plan(*args: str):
    """The outcome of the command."""
    return CliRunner().invoke(app, ["rollout", "plan", "--per-minute", "100", "--json", *args])


@pytest.mark.usefixtures("store")
def test_mean_spread_and_price_come_from_the_store():
    """An option has the last word."""
    found = json.loads(plan("--service", "desk", "--usd-per-day", "5").stdout)
    assert found["baselines"]["quality"] == {"mean": pytest.approx(0.9), "sd": pytest.approx(0.3), "judged": True}
    assert found["traffic"]["usd_per_call"] == pytest.approx(0.002)
    assert found["usd"] > 0
    assert not any(note.startswith("quality") for note in found["assumed"])
    given = json.loads(plan("--service", "desk", "--baseline", "quality=0.5/0.1").stdout)
    assert given["baselines"]["quality"]["mean"] == 0.5


@pytest.mark.usefixtures("store")
def test_a_service_that_is_not_there_is_a_message():
    """It says how to see which there are."""
    result = plan("--service", "dask")
    assert isinstance(result.exception, ConfigError)
    assert "the store has no scores and no calls of 'dask'" in str(result.exception)
