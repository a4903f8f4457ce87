"""What is drawn of series: points of rollups, the break where an epoch begins, shadows apart; and rollups made anew."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update
from stages import World, record
from typer.testing import CliRunner

from evalpipe.cli.app import app
from evalpipe.pipeline.maintain import Maintain
from evalpipe.score import scored
from evalpipe.store import alerting, exports, growths, series, tables
from evalpipe.store.plots import WANTED_POINTS, breaks_of, points_of
from evalpipe.store.queue import Queue
from evalpipe.store.series import Entry, Series
from evalpipe.store.sql import Store
from evalpipe.store.tables import rollup_days, rollup_hours, rollups
from evalpipe.store.tables import series as series_table
from evalpipe.wiring import now

OF = Series("desk", "", "production", "baseline", "rel", "support", "grounded", "e1")


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    """A store on a migrated database."""
    opened = Store(migrated_url)
    yield opened
    opened.close()


@pytest.fixture
def command(migrated_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs the command line on the database, 80 columns wide."""
    for name, value in {"HOME": tmp_path, "DATABASE_URL": migrated_url}.items():
        monkeypatch.setenv(f"EVALPIPE_{name}", str(value))
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    return run


def fill(store: Store, until: datetime) -> None:
    """Two days of scores, one in ten minutes, the last six hours of another epoch; and those of shadows."""
    batch = []
    for i in range(288):
        at = until - timedelta(minutes=10 * i)
        of = replace(OF, epoch="e2" if i < 36 else "e1")
        batch.append(Entry(f"r-{i}", "v1", of, at, scored(float(i % 5 > 0)), 3.0, "s"))
        batch.append(Entry(f"s-{i}", "v1", replace(of, arm="shadow"), at, scored(0.0), 3.0, "s"))
    with store.begin() as tx:
        series.add_scores(tx, batch, until)


def test_a_chart_shows_where_an_epoch_begins(store: Store, command: Callable[..., str], tmp_path: Path) -> None:
    """In words below the terminal's, as a mark in the picture."""
    at = now()
    fill(store, at - timedelta(minutes=5))
    told = command("plot", "grounded", "--since", "48h")
    assert "epoch e2 begins" in told
    assert "e1 begins" not in told
    command("plot", "grounded", "--since", "48h", "--png", str(tmp_path / "plot.png"))
    assert (tmp_path / "plot.png").stat().st_size > 1_000
    with store.read() as tx:
        found = points_of(tx, "grounded", at - timedelta(days=2), at)
        hidden = points_of(tx, "grounded", at - timedelta(days=2), at, arm="shadow")
    ((begun, variant, epoch),) = breaks_of(found)
    assert (variant, epoch) == ("baseline", "e2")
    assert abs(begun - (at - timedelta(hours=6))) < timedelta(hours=1)
    assert len(found) <= WANTED_POINTS + 2
    assert sum(p.n for p in found) in {287, 288}
    assert {p.mean for p in hidden} == {0.0}
    assert max(p.mean for p in found) > 0.0


def test_answers_of_shadows_are_in_no_served_series(migrated_url: str, tmp_path: Path) -> None:
    """By the variant and the attributes that the hook gives them, whatever the variant is called."""
    world = World(migrated_url, tmp_path, card="name: c\ncriteria: [{name: length, heuristic: length}]\n")
    world.ingest(
        record(1),
        record(2, variant="shadow", attributes={"shadow": "ramp", "shadow_of": "r-1"}),
        record(3, variant="canary", attributes={"shadow": "ramp"}),
        record(4, reason="keep:errors"),
        record(5, probability=1.0, rate_probability=0.25),
    )
    with world.store.begin() as tx:
        assert sum(r.n_scored for _, _, r in series.read_rollups(tx)) == 3
        assert sum(r.n_scored for _, _, r in series.read_rollups(tx, arm="shadow")) == 2
        (grown,) = growths.take(tx)
    world.store.close()
    assert (grown.rollup.n_scored, grown.rollup.sum_w) == (2, record(1).weight + 4.0)


def test_rollups_are_made_anew_by_a_command(store: Store, command: Callable[..., str]) -> None:
    """It says how many were wrong."""
    assert "There are no scores" in command("rollup", "rebuild")
    fill(store, now() - timedelta(minutes=5))
    assert " 0 changed" in command("rollup", "rebuild")
    with store.begin() as tx:
        tx.connection.execute(update(rollup_days).values(sum_w=1.0))
        wrong = len(tx.connection.execute(select(rollup_days)).all())
    told = json.loads(command("rollup", "rebuild", "--json", "--level", "day"))
    assert (told["scores"], told["changed"]) == (576, wrong)
    assert json.loads(command("rollup", "rebuild", "--json", "--since", "1h"))["scores"] < 576


def test_upkeep_drops_rollups_by_level_and_growth_that_nobody_took(store: Store, redis_url: str) -> None:
    """Days stay for ever."""
    at = now()
    fill(store, at)
    kept = {"minute": timedelta(hours=5), "hour": timedelta(hours=20)}
    Maintain(store, Queue(redis_url), timedelta(days=90), rollups=kept)(at + timedelta(hours=25))
    with store.begin() as tx:
        assert growths.take(tx) == []
        assert not tx.connection.scalars(select(rollups.c.bucket_at)).all()
        hours = tx.connection.scalars(select(rollup_hours.c.bucket_at)).all()
        assert not hours or min(hours) >= at + timedelta(hours=5)
        assert len(tx.connection.scalars(select(rollup_days.c.bucket_at)).all()) >= 6
        assert len(tx.connection.scalars(select(series_table.c.series_id)).all()) == 4


def test_what_nobody_reads_any_more_goes(store: Store, redis_url: str) -> None:
    """The meter's hours with those of scores, answers to fixed prompts, and what no OpenTelemetry endpoint took."""
    at = now().replace(minute=0, second=0, microsecond=0)
    nothing = {"state": {}, "explanation": {}, "labels": {}}
    with store.begin() as tx:
        for days in (10, 30, 200):
            then = at - timedelta(days=days)
            hour = {"release_id": "r", "feature": "", "latency": {}, "ttft": {}, "tpot": {}}
            tx.insert_new(tables.meter_hours, [{"hour_at": then, **hour}])
            answer = {"name": "daily", "prompt": "p", "repeat": 0, "traits": {}}
            tx.insert_new(tables.prints, [{"round_at": then, **answer}])
            exports.owe(tx, [(f"r-{days}", "c", "v1", "e1")], then)
            tx.insert_new(tables.alerts, [{"alert_id": f"a-{days}", "updated_at": then, **nothing}])
        tx.insert_new(tables.print_sets, [{"name": "daily", "reference_at": at - timedelta(days=20)}])
    Maintain(store, Queue(redis_url), timedelta(days=90), rollups={"hour": timedelta(days=20)})(at)
    with store.read() as tx:
        scalars = tx.connection.scalars
        assert list(scalars(select(tables.meter_hours.c.hour_at))) == [at - timedelta(days=10)]
        assert list(scalars(select(tables.prints.c.round_at).order_by("round_at"))) == [
            at - timedelta(days=days) for days in (30, 10)
        ]
        assert list(scalars(select(tables.score_exports.c.record_id))) == []
        assert sorted(scalars(select(tables.alerts.c.alert_id))) == ["a-10", "a-30"]


def test_an_erased_user_is_quoted_by_no_alert(store: Store) -> None:
    """The record stays an example, and others keep their words."""
    examples = [{"record_id": r, "value": 0.0, "explanation": "she said hello", "at": ""} for r in ("r-1", "r-2")]
    with store.begin() as tx:
        values = {"state": {}, "labels": {}, "updated_at": now(), "explanation": {"n": 2, "examples": examples}}
        tx.insert_new(tables.alerts, [{"alert_id": "a", **values}])
        alerting.forget(tx, ["r-2", "r-3"])
    with store.read() as tx:
        (left,) = tx.connection.scalars(select(tables.alerts.c.explanation))
    assert left == {"n": 2, "examples": [examples[0], {**examples[1], "explanation": ""}]}
