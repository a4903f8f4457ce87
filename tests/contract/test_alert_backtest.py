"""Alert rules over stored history: what a backtest finds is what production would have done."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, insert, select
from typer.testing import CliRunner

from evalpipe.alerts.backtest import Player
from evalpipe.alerts.by_hand import Scores
from evalpipe.alerts.history_feed import HistoryFeed
from evalpipe.alerts.routing import Routing
from evalpipe.channels.base import ChannelConfig
from evalpipe.channels.stdout import Stdout
from evalpipe.cli.alert_files import alert_rules
from evalpipe.cli.app import app
from evalpipe.pipeline.evaluate_alerts import EvaluateAlerts
from evalpipe.pipeline.notify import Notify
from evalpipe.rollup import Rollup
from evalpipe.score import scored
from evalpipe.scorecard.notation import Some
from evalpipe.sketch import Sketch
from evalpipe.store import baselines, history, series
from evalpipe.store.levels import MINUTE
from evalpipe.store.series import Entry, Series
from evalpipe.store.sql import Store
from evalpipe.store.tables import controls, incidents, meter_hours, meter_minutes, outbox, releases, rollups
from evalpipe.wiring import now

CARD = "name: support\nmatch: {service: desk}\ncriteria:\n  - {name: length, heuristic: length, params: {max: 1}}\n"
RULES = """
alerts:
  - {name: low, scorecard: support, criterion: length, mean: {below: 0.8}, min_sample: 20, for: 2m, severity: SEV2}
  - {name: fell, scorecard: support, detect: quality, params: {criterion: length}, by: [feature]}
  - name: tried
    scorecard: support
    criterion: length
    mean: {below: 0.8}
    severity: SEV1
    dry_run: true
  - {name: dear, match: {service: desk}, detect: cost, params: {users: false}}
  - {name: unseen, detect: coverage}
"""
OF = Series("desk", "chat", "prod", "baseline", "r1", "support", "length", "e1")
END = now().replace(second=0, microsecond=0) - timedelta(minutes=5)
START = END - timedelta(hours=5)
BAD = range(180, 230)
"""Minutes after the start in which answers are bad."""


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    """A store on a migrated database."""
    opened = Store(migrated_url)
    yield opened
    opened.close()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a scorecard and rules."""
    (tmp_path / "scorecards").mkdir()
    (tmp_path / "scorecards/support.yaml").write_text(CARD)
    (tmp_path / "rules.yaml").write_text(RULES)
    return tmp_path


def minute_of_scores(minute: int, rng: np.random.Generator) -> list[Entry]:
    """Ten scores a minute of each of two features; those of chat are bad for a while."""
    at = START + timedelta(minutes=minute)
    found = []
    for feature in ("chat", "mail"):
        share = 0.5 if feature == "chat" and minute in BAD else 0.95
        for i in range(10):
            score = scored(float(rng.random() < share))
            found.append(Entry(f"{feature}-{minute}-{i}", "v1", replace(OF, feature=feature), at, score, 1.0, "s"))
    return found


def fill(store: Store, minutes: range) -> None:
    """Scores of some minutes, at once."""
    rng = np.random.default_rng(minutes.start)
    batch = [entry for minute in minutes for entry in minute_of_scores(minute, rng)]
    store.patiently(lambda tx: series.add_scores(tx, batch, START))


def captured(store: Store) -> None:
    """A baseline of the first two and a half hours, captured then."""
    until = START + timedelta(minutes=150)
    wanted = baselines.Wanted("calm", "desk", "prod", "baseline", START, until, "anna")
    store.patiently(lambda tx: baselines.capture(tx, wanted, until))


def metered(store: Store) -> None:
    """Two days of calls by the hour, the last five hours by the minute, fifteen times as dear at the end."""
    none = dict.fromkeys(("errors", "screened", "refusals", "blocked", "unpriced"), 0)
    empty = {name: Sketch().to_wire() for name in ("latency", "ttft", "tpot")}

    def row(scale: int, times: float) -> dict[str, Any]:
        cost = 0.5 * scale * times
        return {"release_id": "r1", "feature": "chat", "calls": 100 * scale, "tokens": int(9000 * scale * times),
                "cost_usd": cost, "cost_squares": 2 * cost * cost / (100 * scale), **none, **empty}  # fmt: skip

    hour = (START - timedelta(days=2)).replace(minute=0)
    hours = [hour + timedelta(hours=i) for i in range(52)]
    minutes = [(START + timedelta(minutes=i), 15.0 if 240 <= i < 250 else 1.0) for i in range(300)]
    values = {c.name: "" for c in releases.c if not c.nullable and c.server_default is None}
    values |= {"release_id": "r1", "service": "desk", "environment": "prod", "variant": "baseline"}
    values |= {c.name: START for c in releases.c if c.name.endswith("_at")}  # type: ignore[misc]  # of several kinds
    with store.begin() as tx:
        tx.insert_new(releases, [values])
        tx.connection.execute(insert(meter_hours), [{"hour_at": at, **row(60, 1.0)} for at in hours if at < START])
        tx.connection.execute(
            insert(meter_minutes), [{"minute_at": at, "process_id": "p", **row(1, times)} for at, times in minutes]
        )


def backtest(url: str, files: Path, *options: str) -> Any:
    """``evalpipe backtest --alerts`` on that database, up to the end of the history."""
    settings = {"DATABASE_URL": url, "HOME": str(files), "SCORECARDS": str(files / "scorecards")}
    env = {**os.environ, **{f"EVALPIPE_{name}": value for name, value in settings.items()}, "COLUMNS": "250"}
    window = ["--since", "5h", "--until", END.isoformat()]
    return CliRunner().invoke(app, ["backtest", "--alerts", str(files / "rules.yaml"), *window, *options], env=env)


def test_a_backtest_fires_when_production_fired(store: Store, files: Path) -> None:
    """Minute by minute through the database, and afterwards from its history: the same alerts at the same times."""
    fill(store, range(150))
    captured(store)
    rules = alert_rules([files / "scorecards/support.yaml", files / "rules.yaml"])
    mine = [rule for rule in rules.rules if rule.name in {"low", "fell", "tried"}]
    stage = EvaluateAlerts(store, rules.cards, rules=mine)
    lived = []
    stage(START + timedelta(minutes=150))  # what grew before is no part of it
    for minute in range(150, 260):
        fill(store, range(minute, minute + 1))
        changes = stage(START + timedelta(minutes=minute + 1))
        lived += [(change.at, change.alert_id, change.after) for change in changes if change.after != "pending"]
    with store.read() as tx:
        since, until = START + timedelta(minutes=150), START + timedelta(minutes=260)
        found, _ = history.read(tx, [rule.scope for rule in mine], START, until, sketches=False, tell=lambda _: None)
        normals = history.PastNormals(tx, found, of_now=False, now=until)
        player = Player(mine, Routing(), HistoryFeed(found, normals))
        assert sum(1 for _ in player.play(since, until)) == 110
    played = [(e.fired_at, e.alert_id, "firing") for e in player.found.episodes]
    played += [(e.resolved_at, e.alert_id, "resolved") for e in player.found.episodes if e.resolved_at]
    assert len({alert_id for _, alert_id, _ in lived}) == 3
    assert sorted(played) == sorted(lived)


def test_a_backtest_says_what_would_have_fired_when_and_why(migrated_url: str, store: Store, files: Path) -> None:
    """A line for each rule, a row for each time, and what history does not have."""
    fill(store, range(300))
    captured(store)
    metered(store)
    done = backtest(migrated_url, files, "--json", "--plot", str(files / "fired.png"))
    assert done.exit_code == 0, done.exception
    told = json.loads(done.stdout)
    rules = {row["rule"]: row for row in told["rules"]}
    assert {name: (row["times"], row["paged"], row["severities"]) for name, row in rules.items()} == {
        "low": (1, 1, "1 x SEV2"), "fell": (1, 1, "1 x SEV2"), "tried": (1, 0, "1 x SEV1"), "dear": (1, 1, "1 x SEV2"),
        "unseen": (0, 0, ""),
    }  # fmt: skip
    fell = next(alert for alert in told["alerts"] if alert["rule"] == "support/fell")
    assert (fell["feature"], fell["resolved_at"] is not None) == ("chat", True)
    late = (datetime.fromisoformat(fell["fired_at"]) - START) / timedelta(minutes=1) - BAD.start
    assert 0 < late < 10
    assert "normal is 0.9" in fell["reason"]
    assert "baseline calm" in fell["reason"]
    dear = next(alert for alert in told["alerts"] if alert["rule"] == "/dear")
    assert (datetime.fromisoformat(dear["fired_at"]) - START) / timedelta(minutes=1) == pytest.approx(241, abs=1)
    assert any("unseen was not played" in note for note in told["notes"])
    assert told["notices"]["first_by_severity"] == {"SEV2": 2}
    assert (files / "fired.png").stat().st_size > 5_000


def test_a_rule_without_a_baseline_of_then_is_tried_with_that_of_now(
    migrated_url: str, store: Store, files: Path
) -> None:
    """Else it could never tell, and that is said."""
    fill(store, range(300))
    until = START + timedelta(minutes=150)
    wanted = baselines.Wanted("calm", "desk", "prod", "baseline", START, until, "anna")
    store.patiently(lambda tx: baselines.capture(tx, wanted, END + timedelta(minutes=1)))
    then = backtest(migrated_url, files)
    assert "fell would not have fired in 5h" in then.stdout
    assert "note: fell could never tell: length is not followed: there is nothing to compare with yet" in then.stderr
    now_ = backtest(migrated_url, files, "--baselines-of-now")
    assert "fell would have fired once in 5h: 1 x SEV2" in now_.stdout
    assert "tried would have fired once in 5h: 1 x SEV1" in now_.stdout
    assert "(dry run: nobody would have been told)" in now_.stdout


def test_what_is_kept_by_the_hour_is_played_by_the_hour_and_said(migrated_url: str, store: Store, files: Path) -> None:
    """Minutes that are past their retention are gone; their hours are not."""
    fill(store, range(300))
    with store.begin() as tx:
        tx.connection.execute(rollups.delete().where(rollups.c.bucket_at < MINUTE.floor(END - timedelta(hours=1))))
    done = backtest(migrated_url, files, "--json")
    told = json.loads(done.stdout)
    assert any(note.startswith("scores are kept by the hour before") for note in told["notes"])
    assert next(row for row in told["rules"] if row["rule"] == "tried")["could_not_tell"] == ""


def test_an_install_younger_than_an_hour_is_played_by_the_minute(migrated_url: str, store: Store, files: Path) -> None:
    """Its first hour is not over, and all of it is known by the minute."""
    first = BAD.start if START.minute <= 30 else BAD.start + 60 - START.minute
    fill(store, range(first, first + 20))
    done = backtest(migrated_url, files, "--until", (START + timedelta(minutes=first + 20)).isoformat())
    assert "low would have fired once" in done.stdout
    assert "kept by the hour" not in done.stderr


def test_a_backtest_of_both_or_nothing_is_a_mistake(migrated_url: str, files: Path) -> None:
    """And so is a time that is none."""
    assert "say what to play" in str(CliRunner().invoke(app, ["backtest"]).exception)
    done = backtest(migrated_url, files, "--since", "soon")
    assert "'soon' is neither a duration nor a time" in str(done.exception)


def test_scores_by_hand_are_spread_as_in_the_database() -> None:
    """A rollup made at once is the one of its scores."""
    made, wanted = Scores([1]).rollup([(Some(3, "*", 0.3), 3)]), Rollup()
    for _ in range(3):
        wanted.add(scored(0.3))
    assert made == wanted


def test_a_rule_on_trial_is_shown_and_tells_nobody(migrated_url: str, store: Store, files: Path) -> None:
    """No notice, no incident and no kill switch; the command says that it is one, as do the API and the metrics."""
    tried = "{name: tried, scorecard: support, criterion: length, mean: {below: 0.9}, severity: SEV1, dry_run: true}"
    stop = "{name: dear, match: {service: desk}, detect: cost, kill_switch: true, dry_run: true}"
    (files / "rules.yaml").write_text(f"alerts: [{tried}, {stop}]\n")
    rules = alert_rules([files / "scorecards/support.yaml", files / "rules.yaml"])
    fill(store, range(180, 200))
    thrown: list[object] = []
    at = START + timedelta(minutes=200)
    stage = EvaluateAlerts(store, rules.cards, rules=rules.rules, publish=lambda *of: thrown.append(of))
    assert [change.after for change in stage(at)] == ["firing"]
    letters = Notify(store, {"chat": Stdout(ChannelConfig())}, source="evalpipe")(at + timedelta(minutes=30))
    with store.read() as tx:
        counts = [tx.connection.scalar(select(func.count()).select_from(t)) for t in (incidents, outbox, controls)]
    assert (letters, counts, thrown) == ([], [0, 0, 0], [])
    env = {**os.environ, "EVALPIPE_DATABASE_URL": migrated_url, "EVALPIPE_HOME": str(files), "COLUMNS": "200"}
    assert "dry run" in CliRunner().invoke(app, ["alerts"], env=env).stdout
    (row,) = json.loads(CliRunner().invoke(app, ["alerts", "list", "--json"], env=env).stdout)
    assert (row["rule"], row["status"], row["dry_run"], row["respond_by"]) == ("tried", "firing", True, None)
