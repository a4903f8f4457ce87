"""`evalpipe judge cost`: what was paid, what a month comes to, and what a change would cost."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from stages import World, records
from typer.testing import CliRunner

from evalpipe.cli.app import app
from evalpipe.errors import ConfigError
from evalpipe.settings import Settings
from evalpipe.store import purse
from evalpipe.store.tables import grades, judge_calls, judge_spend, work
from evalpipe.store.tables import records as records_table

JUDGE = "fake:demo?usd_per_mtok=10/40&acts=pass"
VERSION = "fake:demo?acts=%5B%22pass%22%5D"
CARD = """
name: support
match: {service: desk}
judging: {usd_per_day: 2}
criteria:
  - {name: length, heuristic: length, params: {max: 200}}
  - {name: grounded, judge: {kind: boolean, rubric: "Is it grounded?"}}
  - {name: polite, judge: {kind: boolean, rubric: "Is it polite?"}}
"""
Run = Callable[..., Any]
BOTH = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def database(request: pytest.FixtureRequest) -> str:
    """A migrated database: SQLite, or what the test is marked with."""
    kind = getattr(request, "param", "sqlite")
    url: str = request.getfixturevalue({"sqlite": "migrated_sqlite_url", "postgresql": "migrated_postgres_url"}[kind])
    return url


@pytest.fixture
def world(database: str, tmp_path: Path) -> Iterator[World]:
    """Twelve records of the last hour, judged."""
    made = World(database, tmp_path, card=CARD, judge=JUDGE)
    now = datetime.now(UTC)
    made.clock.at = now - timedelta(minutes=60)
    made.ingest(*records(6, captured_at=made.clock.at))
    made.clock.at = now
    made.ingest(*records(6, start=6, captured_at=now))
    made.drain()
    with made.store.begin() as tx:
        tx.connection.execute(update(judge_calls).values(minute_at=now - timedelta(minutes=60)))
    yield made
    made.close()


@pytest.fixture
def run(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`evalpipe judge cost` with these arguments: the JSON, or the text with ``text=True``."""
    for name, value in (("DATABASE_URL", world.settings.database_url), ("JUDGE", JUDGE), ("SCORECARDS", tmp_path)):
        monkeypatch.setenv(f"EVALPIPE_{name}", str(value))
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: str, text: bool = False) -> Any:
        done = CliRunner().invoke(app, ["judge", "cost", *words, *([] if text else ["--json"])])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.output if text else json.loads(done.output)

    return call


def changed(folder: Path, old: str, new: str, card: str = CARD) -> str:
    """A file with the scorecard, changed."""
    assert old in card
    path = folder / "changed" / "support.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(card.replace(old, new))
    return str(path)


def change(run: Run, path: str) -> dict[str, Any]:
    """The forecast of one changed file, with its lines by criterion."""
    (found,) = run("--scorecard", path)["changes"]
    return {**found, "lines": {line["criterion"]: line for line in found["lines"]}}


def paid(world: World) -> float:
    """What all grades cost."""
    with world.store.read() as tx:
        return float(sum(tx.connection.scalars(select(grades.c.cost_usd))))


@BOTH
def test_a_month_is_reckoned_from_what_was_seen_and_says_how_little_that_was(world: World, run: Run) -> None:
    """One hour of calls times 24 times 30; the sum is what the grades cost."""
    found = run()
    (row,) = found["judges"]
    assert (row["judge"], row["scorecard"], row["calls"], row["failed"]) == (VERSION, "support", 24, {})
    assert row["usd"] == pytest.approx(paid(world))
    assert found["hours"] == pytest.approx(1.0, rel=0.05)
    assert row["usd_month"] == pytest.approx(row["usd"] * 24 * 30, rel=0.05)
    assert run("--days", "1")["judges"][0]["usd_month"] == pytest.approx(row["usd"] * 24, rel=0.05)
    text = run(text=True)
    assert VERSION in text
    assert "Scaled up from 1" in text


def test_calls_without_a_grade_are_told_apart(world: World, run: Run) -> None:
    """What failed, how often, and what it cost."""
    with world.store.begin() as tx:
        row = {"minute_at": datetime.now(UTC), "judge": VERSION, "scorecard": "support", "n": 3}
        tx.insert_new(judge_calls, [{**row, "outcome": "throttled", "cost_usd": 0.0},
                                    {**row, "outcome": "malformed", "cost_usd": 0.5}])  # fmt: skip
    (found,) = run()["judges"]
    assert found["failed"] == {"malformed": 3, "throttled": 3}
    assert found["wasted_usd"] == 0.5
    assert "of it for answers that were no grade" in run(text=True)


@BOTH
def test_caps_are_shown_with_what_they_have_left(world: World, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the settings and of the scorecards, and the share that is judged."""
    monkeypatch.setenv("EVALPIPE_JUDGE_USD_PER_DAY", "9.5")
    with world.store.begin() as tx:
        tx.connection.execute(judge_spend.delete())
        purse.settle(tx, {"w": purse.scopes("support", {"fake:demo": 0.25})}, (), datetime.now(UTC))
        tx.connection.execute(update(judge_spend).where(judge_spend.c.scope == "scorecard:support").values(keep=0.25))
    caps = {cap.pop("scope"): cap for cap in run()["caps"]}
    assert caps["all"] == {"usd_per_day": 9.5, "spent_usd": 0.25, "reserved_usd": 0.0, "kept_share": 1.0}
    assert caps["scorecard:support"] == {"usd_per_day": 2.0, "spent_usd": 0.25, "reserved_usd": 0.0, "kept_share": 0.25}
    assert caps["judge:fake:demo"]["usd_per_day"] is None
    assert "share of less urgent work that is judged" in run(text=True)


@BOTH
def test_an_unchanged_scorecard_costs_what_it_costs(run: Run, tmp_path: Path) -> None:
    """The reckoning is measured on the grades, so before, after and what was paid are one."""
    found = change(run, changed(tmp_path, "name: support", "name: support"))
    month = run()["judges"][0]["usd_month"]
    assert found["changes"] == []
    assert found["assumed"] == []
    assert found["paid_to_reckoned"] == pytest.approx(1.0, rel=0.02)
    assert found["total"]["before_usd"] == found["total"]["after_usd"] == pytest.approx(month, rel=0.05)
    assert found["total"]["low_usd"] < found["total"]["after_usd"] < found["total"]["high_usd"]
    assert (found["sampled"], found["records_per_day"]) == (12, pytest.approx(288, rel=0.05))
    assert "length" not in found["lines"]


@pytest.mark.parametrize(
    ("old", "new", "grounded", "polite"),
    [
        ('"Is it grounded?"', '"Is it grounded?", votes: 3', 3.0, 1.0),
        ('"Is it grounded?"', '"Is it grounded?", lane: batch', 0.5, 1.0),
        ("criteria:", "sampling: {judge: 20%}\ncriteria:", 0.2, 0.2),
        ('"Is it grounded?"', '"Is it grounded?", model: "fake:big?usd_per_mtok=100/100"', 10.0, 1.0),
        ('"Is it grounded?"', '"Is it grounded?", escalate: {to: "fake:big?usd_per_mtok=100/400", when: [fail]}', 1, 1),
    ],
)
def test_a_change_costs_what_it_multiplies(
    run: Run, tmp_path: Path, old: str, new: str, grounded: float, polite: float
) -> None:
    """Votes, the batch lane, sampling, a dearer model, a cascade that nothing of the day would have gone up."""
    found = change(run, changed(tmp_path, old, new))
    for name, factor in (("grounded", grounded), ("polite", polite)):
        line = found["lines"][name]
        # A model that has graded nothing is reckoned by usual figures.
        assert line["after_usd"] == pytest.approx(line["before_usd"] * factor, rel=0.2 if factor == 10 else 1e-6)
    assert bool(found["assumed"]) == ("big" in new)
    assert found["changes"]


def test_criteria_come_go_and_share_a_call(run: Run, tmp_path: Path) -> None:
    """Together they read the record once; what is not there has no price."""
    one = CARD.replace('"Is it polite?"', '"Is it polite?", together: a')
    found = change(run, changed(tmp_path, '"Is it grounded?"', '"Is it grounded?", together: a', one))
    assert found["total"]["after_usd"] < 0.8 * found["total"]["before_usd"]
    assert found["lines"]["grounded"]["change"] == "changed"
    found = change(run, changed(tmp_path, "{name: polite", "{name: kind"))
    assert (found["lines"]["polite"]["change"], found["lines"]["polite"]["after_usd"]) == ("removed", None)
    assert (found["lines"]["kind"]["change"], found["lines"]["kind"]["before_usd"]) == ("added", None)
    text = run("--scorecard", changed(tmp_path, "{name: polite", "{name: kind"), text=True)
    assert "criterion 'kind' is added" in text
    assert "in all" in text


def test_a_scorecard_over_its_cap_says_so(run: Run, tmp_path: Path) -> None:
    """What the cap allows of the month."""
    text = run("--scorecard", changed(tmp_path, "usd_per_day: 2", "usd_per_day: 0.001"), text=True)
    assert "Its cap allows 0.03 USD of it: the rest would be thinned out." in text


@BOTH
def test_what_was_left_out_today_is_counted_by_criterion(world: World, run: Run) -> None:
    """Thinned and shed apart; yesterday's is not today's. Its records count as scored, for their heuristics."""
    assert run()["left_out"] == []
    thinned = f"{purse.THINNED}: 0.25 of such work is judged, so that the money lasts the day"
    now = datetime.now(UTC)
    with world.store.begin() as tx:
        for record, criterion, reason, at in (
            ("r-0", "polite", thinned, now),
            ("r-1", "polite", thinned, now),
            ("r-2", "polite", "the cap of 2 USD a day of scorecard support is used up", now),
            ("r-0", "grounded", "the cap of 2 USD a day of scorecard support is used up", now),
            ("r-3", "grounded", "the cap of 2 USD a day of scorecard support is used up", now - timedelta(days=1)),
        ):
            mine = work.c.record_id == record, work.c.criterion == criterion
            tx.connection.execute(update(work).where(*mine).values(state="shed", reason=reason, due_at=at))
    assert run()["left_out"] == [
        {"scorecard": "support", "criterion": "grounded", "thinned": 0, "shed": 1},
        {"scorecard": "support", "criterion": "polite", "thinned": 2, "shed": 1},
    ]
    text = run(text=True)
    assert "Not judged today (UTC), to save money" in text
    assert re.search(r"support +polite +2 +1 *\n", text)


def test_less_than_an_hour_is_not_taken_for_a_month(world: World, run: Run, tmp_path: Path) -> None:
    """Ten minutes: what they cost, and from when on there is a month; a change is reckoned for them alone."""
    now = datetime.now(UTC)
    with world.store.begin() as tx:
        tx.connection.execute(update(judge_calls).values(minute_at=now - timedelta(minutes=10)))
        tx.connection.execute(update(records_table).values(ingested_at=now - timedelta(minutes=10)))
    found = run("--scorecard", changed(tmp_path, '"Is it grounded?"', '"Is it grounded?", votes: 3'))
    assert [row["usd_month"] for row in found["judges"]] == [None]
    assert re.search(r"What a month comes to is told from .* on: 10 minutes of data are not enough", found["no_month"])
    assert datetime.fromisoformat(found["month_from_at"]) == pytest.approx(
        now + timedelta(minutes=50), abs=timedelta(seconds=5)
    )
    (forecast,) = found["changes"]
    assert (forecast["days"], forecast["cap_usd"]) == (None, None)
    assert forecast["total"]["before_usd"] == pytest.approx(paid(world), rel=0.05)
    text = run("--scorecard", changed(tmp_path, '"Is it grounded?"', '"Is it grounded?", votes: 3'), text=True)
    assert "month" not in text.replace("What a month comes to is told from", "")
    assert "as changed, in USD for the last 10 minutes:" in text


def test_dollars_of_a_column_have_one_precision_and_end_at_one_place(world: World, run: Run) -> None:
    """As many digits as the smallest sum needs."""
    with world.store.begin() as tx:
        row = {"minute_at": datetime.now(UTC), "scorecard": "support", "n": 3, "outcome": "answered"}
        sums = {"fake:a": 1234.5, "fake:b": 0.012, "fake:c": 0.0}
        tx.insert_new(judge_calls, [{**row, "judge": judge, "cost_usd": usd} for judge, usd in sums.items()])
    lines = run(text=True).splitlines()
    (heading,) = (line for line in lines if line.strip().startswith("judge "))
    end = heading.index(" usd ") + len(" usd")
    rows = [line for line in lines if line.strip().startswith("fake:") and "support" in line]
    assert len(rows) == 4
    figures = {line.split()[0]: line[:end].split()[-1] for line in rows}
    assert {name: figures[name] for name in sums} == {"fake:a": "1,234.500", "fake:b": "0.012", "fake:c": "0.000"}
    assert all(line[end] == " " for line in rows)


def test_a_name_instead_of_a_file_is_told_its_file(run: Run, tmp_path: Path) -> None:
    """With the files of EVALPIPE_SCORECARDS, where one has that name or none has."""
    (file,) = tmp_path.glob("*.yaml")
    with pytest.raises(
        ConfigError,
        match=f"--scorecard wants a file or a folder, and there is no 'support'; the scorecard of that name is {file}",
    ):
        run("--scorecard", "support")
    with pytest.raises(ConfigError, match=rf"there is no 'sales'; .* \(EVALPIPE_SCORECARDS\) has {file}"):
        run("--scorecard", "sales")


def test_an_unknown_price_is_an_error_that_says_what_to_do(run: Run, tmp_path: Path) -> None:
    """It is never taken as zero."""
    path = changed(tmp_path, '"Is it grounded?"', '"Is it grounded?", model: "openai:nobody@http://127.0.0.1:1/v1"')
    with pytest.raises(ConfigError, match=r"no known price.*usd_per_mtok"):
        run("--scorecard", path)


def test_an_empty_store_says_so(world: World, run: Run, tmp_path: Path) -> None:
    """Nothing was asked, and there is nothing to reckon by."""
    with world.store.begin() as tx:
        for table in (judge_calls, judge_spend, records_table):
            tx.connection.execute(table.delete())
    assert run()["judges"] == []
    assert "No judge was asked in the last 24 hours." in run(text=True)
    with pytest.raises(ConfigError, match="no record of the last 24 hours fits 'support'"):
        run("--scorecard", changed(tmp_path, "usd_per_day: 2", "usd_per_day: 3"))


def test_the_cap_of_all_judges_is_a_setting() -> None:
    """US dollars a day; without it there is no bound."""
    assert Settings.from_env({}).judge_usd_per_day is None
    assert Settings.from_env({"EVALPIPE_JUDGE_USD_PER_DAY": "12.5"}).judge_usd_per_day == 12.5
    with pytest.raises(ConfigError, match="EVALPIPE_JUDGE_USD_PER_DAY must be a number, not 'much'"):
        Settings.from_env({"EVALPIPE_JUDGE_USD_PER_DAY": "much"})
