"""Calibration against labels in a real database: measured, kept, and correcting what is reported of its own epoch."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import insert, select, update
from starlette.testclient import TestClient
from typer.testing import CliRunner

from evalpipe.api.app import make_api
from evalpipe.cli.app import app
from evalpipe.errors import ConfigError
from evalpipe.judges.base import judges
from evalpipe.record import Record, Release, encode_batch, to_wire
from evalpipe.score import Score, Status, scored
from evalpipe.scorecard.load import load_scorecard
from evalpipe.scorecard.model import Scorecard
from evalpipe.scorers.base import heuristics
from evalpipe.settings import Settings
from evalpipe.stats.correction import Labelled
from evalpipe.store import calibrations, intake, labels, tables
from evalpipe.store.calibrations import UNCALIBRATED, Calibration
from evalpipe.store.estimates import read_estimates
from evalpipe.store.intake import Arrival
from evalpipe.store.labels import Label
from evalpipe.store.series import Entry, Series, add_scores
from evalpipe.store.sql import Store
from evalpipe.wiring import Wiring, now

CARD = """
name: desk
match: {service: desk}
criteria:
  - {name: grounded, judge: {kind: boolean, rubric: "Is it grounded?"}}
  - {name: helpful, judge: {kind: scale, rubric: "How well?", anchors: {1: badly, 2: partly, 3: well}}}
  - {name: better, judge: {kind: pairwise, rubric: "Which is better?"}}
"""
TEXT = "Articles may be returned within thirty days of delivery, but not afterwards."
LANGUAGES = {"en": TEXT, "de": "Die Ware kann innerhalb von dreißig Tagen nach der Lieferung zurückgegeben werden."}


@pytest.fixture
def card(tmp_path: Path) -> Scorecard:
    """A scorecard with three kinds of criteria, in a folder of its own."""
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "desk.yaml").write_text(CARD)
    return load_scorecard(tmp_path / "cards" / "desk.yaml", heuristics, judges)


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    """A migrated database, SQLite or PostgreSQL."""
    store = Store(migrated_url)
    yield store
    store.close()


@pytest.fixture
def command(migrated_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command line on the database, 80 columns wide; the exit code and what it said."""
    for name, value in {"HOME": tmp_path, "DATABASE_URL": migrated_url, "SCORECARDS": tmp_path / "cards"}.items():
        monkeypatch.setenv(f"EVALPIPE_{name}", str(value))
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    return run


class World:
    """Fills a store with records, scores of a judge that errs, and labels."""

    def __init__(self, store: Store, card: Scorecard) -> None:
        self.store, self.card, self.at = store, card, now().replace(microsecond=0) - timedelta(hours=2)
        self.random = random.Random(5)
        with store.begin() as tx:
            intake.add_scorecard(tx, card.version, card.name, card.body(), self.at)

    def entry(self, i: int, criterion: str, score: Score, *, epoch: str = "e1", **fields: Any) -> Entry:
        """One score of record ``i``."""
        variant = fields.pop("variant", "baseline")
        series = Series("desk", "", "production", variant, "rel", "desk", criterion, epoch)
        at = self.at + timedelta(seconds=i % 600)
        return Entry(f"r-{i}", self.card.version, series, at, score, **{"weight": 1.0, "scorer": f"fake:x/{epoch}",
                                                                        "cost_usd": 0.001, **fields})  # fmt: skip

    def record(self, i: int, output: str = TEXT) -> Record:
        """Record ``i``."""
        return Record(
            record_id=f"r-{i}", trace_id=f"t-{i}", captured_at=self.at, release=Release("desk"), output=output
        )

    def passes(self, n: int, *, rate: float = 0.6, start: int = 0, labelled: int = 0, **fields: Any) -> list[bool]:
        """Records that a judge of sensitivity 0.9 and specificity 0.7 graded; the first so many are labelled."""
        truth = [self.random.random() < rate for _ in range(n)]
        said = [self.random.random() < (0.9 if good else 0.3) for good in truth]
        entries = [
            self.entry(start + i, "grounded", scored(float(passed), "pass" if passed else "fail"), **fields)
            for i, passed in enumerate(said)
        ]
        found = [self.record(start + i, LANGUAGES["de" if i % 4 == 0 else "en"] + " Yes." * (i % 9)) for i in range(n)]
        with self.store.begin() as tx:
            intake.add_records(tx, [Arrival(r, orjson.dumps(to_wire(r)), "scored") for r in found], self.at)
            add_scores(tx, entries, self.at)
            labels.add(tx, [self.label(start + i, "pass" if truth[i] else "fail") for i in range(labelled)], self.at)
        return truth

    def label(self, i: int, word: str, by: str = "anna", criterion: str = "grounded", **fields: Any) -> Label:
        """What somebody says of record ``i``."""
        value = {"pass": 1.0, "fail": 0.0, "1": 0.0, "2": 0.5, "3": 1.0, "better": 1.0, "worse": 0.0}.get(word)
        return Label(
            f"r-{i}", "desk", criterion, by, word, value, "", "import", self.at, **{"chosen": "random", **fields}
        )

    def add(self, *found: Label) -> None:
        """Store labels."""
        with self.store.begin() as tx:
            labels.add(tx, found, self.at)


def test_labels_in_the_store_calibrate_and_what_is_kept_corrects_its_epoch(
    store: Store, card: Scorecard, command: Any
) -> None:
    """The raw pass rate misses the truth by far, the corrected interval holds it; the other epoch stays as it is."""
    world = World(store, card)
    truth = world.passes(1500, labelled=300)
    world.passes(200, start=5000, epoch="e2", variant="canary")
    told = command("judge", "calibrate", "--criterion", "grounded", "--save")
    assert "300 labelled, 300 compared" in told
    assert "Of 100 answers that it passes" in told
    assert "Kept:" in told
    assert max(map(len, told.splitlines())) <= 80
    with store.read() as tx:
        first, other = read_estimates(tx, world.at - timedelta(hours=1))
    assert (first.key["epoch"], other.key["epoch"]) == ("e1", "e2")
    found, right = first.as_dict(), sum(truth) / len(truth)
    assert found["correction"] == "rogan-gladen"
    assert not found["raw_low"] <= right <= found["raw_high"]
    assert found["corrected_low"] <= right <= found["corrected_high"]
    assert found["calibration_n"] == 300
    assert (other.corrected.mean, other.corrected.reason) == (None, UNCALIBRATED)


def test_what_is_reported_says_raw_and_corrected_in_80_columns(
    store: Store, card: Scorecard, command: Any, tmp_path: Path
) -> None:
    """Estimates as table and JSON, the plot in the terminal and as a picture."""
    world = World(store, card)
    world.passes(400, labelled=200, escalated=True, disagreement=0.25)
    assert "Not corrected for the judge's error: not calibrated" in command("plot", "grounded")
    command("judge", "calibrate", "--save")
    table = command("estimates")
    assert max(map(len, table.splitlines())) <= 80
    assert "raw" in table
    assert "corrected" in table
    (row,) = json.loads(command("estimates", "--json"))
    assert (row["n_scored"], row["escalated"], row["disagreement"]) == (400, 1.0, 0.25)
    assert row["raw_mean"] > row["corrected_mean"]
    plot = command("plot", "grounded")
    assert "raw and corrected" in plot
    assert "◆" in plot
    assert max(map(len, plot.splitlines())) <= 80
    command("plot", "grounded", "--png", str(tmp_path / "plot.png"))
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_estimates_without_cascade_and_votes_fit_80_columns_too(store: Store, card: Scorecard, command: Any) -> None:
    """The columns that there are none of are not left out once more."""
    World(store, card).passes(400, labelled=200)
    command("judge", "calibrate", "--save")
    table = command("estimates")
    assert max(map(len, table.splitlines())) <= 80
    assert "corrected" in table


def test_labels_of_records_that_nobody_says_how_they_were_chosen_are_told_to_be(
    store: Store, card: Scorecard, command: Any
) -> None:
    """They count as a random sample, which they may not be."""
    world = World(store, card)
    world.passes(60, labelled=40)
    world.add(*(world.label(i, "pass", chosen="given") for i in range(40, 50)))
    assert "10 given from outside, and taken as a random sample" in " ".join(command("judge", "calibrate").split())


def test_weights_are_told_where_some_records_weigh_more(store: Store, card: Scorecard, command: Any) -> None:
    """The matrix counts records, the shares weigh them: both are on the page, and may not seem to contradict."""
    world = World(store, card)
    world.passes(100, labelled=100)
    note = "weigh each record"
    assert note not in command("judge", "calibrate")
    world.passes(50, start=200, labelled=50, weight=10.0)
    assert note in command("judge", "calibrate")


def test_the_api_gives_both_values_of_each_point(
    migrated_url: str, store: Store, card: Scorecard, tmp_path: Path
) -> None:
    """With the method and the calibration's date; null with the reason where there is none."""
    world = World(store, card)
    world.passes(300, labelled=150)
    settings = Settings(
        home=tmp_path, database_url=migrated_url, scorecards=tmp_path / "cards", api_keys=("key",), judge="fake:x"
    )
    ask = {"url": "/v1/series?criterion=grounded&bucket=1h", "headers": {"Authorization": "Bearer key"}}
    with TestClient(make_api(settings)) as client:
        (before,) = client.get(**ask).json()["series"]
        save(store, card, labelled=[(1.0, 1.0)] * 60 + [(1.0, 0.0)] * 10 + [(0.0, 0.0)] * 50 + [(0.0, 1.0)] * 20)
        (after,) = client.get(**ask).json()["series"]
    assert {point["correction_reason"] for point in before["points"]} == {UNCALIBRATED}
    assert (before["calibrated_at"], before["points"][0]["corrected_mean"]) == (None, None)
    point = after["points"][0]
    assert (point["correction"], point["correction_reason"], after["calibration_n"]) == ("rogan-gladen", "", 140)
    assert point["corrected_low"] < point["corrected_mean"] < point["corrected_high"]
    assert point["mean"] == before["points"][0]["mean"]


def save(
    store: Store, card: Scorecard, *, labelled: list[tuple[float, float]], epoch: str = "e1", at: datetime | None = None
) -> None:
    """Keep a calibration of these grades by people and judge."""
    sums = Labelled.of((h, j, 1.0) for h, j in labelled)
    body: Mapping[str, Any] = {"labelled": sums.to_state()}
    with store.begin() as tx:
        calibrations.save(tx, Calibration(card.name, "grounded", epoch, "fake:x", at or now(), sums.n, body))


def test_the_newest_calibration_of_an_epoch_counts_and_a_replay_adds_none(store: Store, card: Scorecard) -> None:
    """By its time, not by when it was stored; its sums come back as they were."""
    late = now()
    save(store, card, labelled=[(1.0, 1.0)] * 5, at=late)
    save(store, card, labelled=[(1.0, 1.0)] * 5, at=late)
    save(store, card, labelled=[(1.0, 0.5)] * 3, at=late - timedelta(days=1))
    with store.read() as tx:
        found = calibrations.newest(tx, ["e1", "e2"])
    assert {key: one.n for key, one in found.items()} == {("desk", "grounded", "e1"): 5}
    assert found["desk", "grounded", "e1"].labelled == Labelled.of([(1.0, 1.0, 1.0)] * 5)


def test_who_could_not_tell_is_counted_apart_and_a_sample_of_doubtful_records_is_none(
    store: Store, card: Scorecard, command: Any
) -> None:
    """Abstentions, errors, split people, and labels that were chosen by the judge's doubt are in no number."""
    world = World(store, card)
    world.passes(60, labelled=60)
    with store.begin() as tx:
        add_scores(tx, [world.entry(100, "grounded", Score(Status.ABSTAINED)),
                        world.entry(101, "grounded", Score(Status.ERROR)),
                        world.entry(102, "grounded", scored(1.0, "pass")),
                        world.entry(103, "grounded", scored(1.0, "pass")),
                        world.entry(104, "grounded", scored(1.0, "pass"), weight=0.0)], world.at)  # fmt: skip
    world.add(*(world.label(i, "fail") for i in (100, 101, 102, 104)))
    world.add(world.label(102, "pass", "ben"), world.label(103, "fail", chosen="uncertain"))
    (report,) = json.loads(command("judge", "calibrate", "--json"))
    assert report["counts"] == {"labelled": 65, "compared": 60, "abstained": 1, "error": 1, "skipped": 0,
                                "undecided": 1, "chosen": 1, "weightless": 1, "given": 0}  # fmt: skip
    assert (report["labelled"]["n"], report["annotators"], report["people_n"]) == (60, 2, 1)
    assert {group["name"] for group in report["language"]["groups"]} == {"en", "de"}
    assert report["cost_per_agreed_usd"] > 0.001


def test_several_people_are_their_majority_and_on_a_scale_their_mean(
    store: Store, card: Scorecard, command: Any
) -> None:
    """Means are corrected prediction-powered; the interval holds what people say of everything."""
    world = World(store, card)
    rng, entries, said, truth = random.Random(2), [], [], []
    for i in range(900):
        people = rng.choices([1, 2, 3], [3, 3, 4])[0]
        judge = min(3, people + (rng.random() < 0.4))
        truth.append((people - 1) / 2)
        entries.append(world.entry(i, "helpful", scored((judge - 1) / 2, str(judge))))
        if i < 150:
            other = min(3, people + 1) if i % 30 == 0 else people
            said += [world.label(i, str(people), "anna", "helpful"), world.label(i, str(other), "ben", "helpful")]
    with store.begin() as tx:
        add_scores(tx, entries, world.at)
        labels.add(tx, said, world.at)
    told = command("judge", "calibrate", "--save")
    assert "too kind" in " ".join(told.split())
    assert "weighted kappa" in told
    (report,) = json.loads(command("judge", "calibrate", "--json"))
    assert (report["corrected"]["method"], report["people_n"]) == ("ppi", 150)
    assert report["corrected"]["low"] <= sum(truth) / 900 <= report["corrected"]["high"]
    assert report["raw"]["low"] > sum(truth) / 900
    with store.read() as tx:
        (found,) = read_estimates(tx, world.at - timedelta(hours=1))
    assert found.corrected.method == "ppi"


def test_a_judge_that_prefers_the_first_answer_is_found_out(store: Store, card: Scorecard, command: Any) -> None:
    """Of pairs that were shown in both orders: how many flip, and which place wins."""
    world = World(store, card)
    rows = []
    for i in range(40):
        flips = i < 20
        grade = {"record_id": f"r-{i}", "criterion": "better", "status": "scored", "graded_at": world.at}
        rows += [{**grade, "work_id": f"w-{i}", "judge_version": "fake:x/e1", "vote": 0, "role": "first", "value": 1.0},
                 {**grade, "work_id": f"w-{i}", "judge_version": "fake:x/e1", "vote": 1, "role": "swapped",
                  "value": 0.0 if flips else 1.0}]  # fmt: skip
        # Another scorecard, or an earlier prompt, asked about the same pair: its grades are not this judge's.
        rows += [{**grade, "work_id": f"o-{i}", "judge_version": "fake:x/e0", "vote": vote, "role": role, "value": 0.0}
                 for vote, role in enumerate(("first", "swapped"))]  # fmt: skip
    entries = [
        world.entry(i, "better", scored(0.5 if i < 20 else 1.0, "tie" if i < 20 else "better")) for i in range(40)
    ]
    with store.begin() as tx:
        add_scores(tx, entries, world.at)
        tx.connection.execute(insert(tables.grades), rows)
    world.add(*(world.label(i, "first" if i % 2 else "second", criterion="better") for i in range(40)))
    with store.begin() as tx:
        for word, value in (("first", 1.0), ("second", 0.0)):
            tx.connection.execute(update(tables.labels).where(tables.labels.c.label == word).values(value=value))
    told = command("judge", "calibrate", "--criterion", "better")
    assert "It prefers the answer shown first." in told
    assert "40 pairs in both orders: 50.0 %" in told


def test_a_labelled_file_is_graded_now_and_makes_a_page(
    card: Scorecard, command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge that is named grades it; the page fetches nothing; people are quoted nowhere in it as markup."""
    monkeypatch.setenv("EVALPIPE_JUDGE", "fake:default")
    rows = [
        {"id": f"<{i}>", "input": "May I?", "output": TEXT + (" REFUND" if i % 2 else ""),
         "labels": {"grounded": {"anna": "fail" if i % 4 == 1 else "pass", "<b>ben": i % 4 != 1}}}
        for i in range(40)
    ]  # fmt: skip
    file = tmp_path / "labelled.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    fake = 'fake:demo?rules={"REFUND":"fail"}&acts=pass'
    told = command("judge", "calibrate", "--on", str(file), "--judge", fake, "--html", str(tmp_path / "page.html"))
    assert "40 labelled, 40 compared" in told
    assert "agreement       75.0 %" in told
    assert card.name in told
    page = (tmp_path / "page.html").read_text()
    assert "<svg" in page
    assert not [sign for sign in ("http://", "https://", "<script", "src=", "<b>ben") if sign in page]
    (report,) = json.loads(command("judge", "calibrate", "--on", str(file), "--judge", fake, "--limit", "20", "--json"))
    assert (report["counts"]["labelled"], report["source"], report["people_n"]) == (20, "labelled.jsonl", 20)
    told = command("judge", "calibrate", "--on", str(file), "--judge", "fake:x?acts=malformed", "--limit", "2")
    assert "2 of 2 records got no grade, the first: the judge's grade is none" in told
    assert "nothing can be said" in told


TOGETHER = """
name: style
match: {service: desk}
criteria:
  - {name: kind, judge: {kind: boolean, rubric: "Is it kind?", together: style}}
  - {name: brief, judge: {kind: boolean, rubric: "Is it brief?", together: style, needs: [input]}}
  - {name: right, judge: {kind: boolean, rubric: "Is it true?"}}
"""


@pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
def test_what_is_graded_in_one_call_is_calibrated_in_one_call_and_in_the_epoch_of_production(
    store: Store, command: Any, tmp_path: Path, migrated_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call a record for two criteria, also where only one is asked for, and what is kept corrects what was made."""
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "style.yaml").write_text(TOGETHER)
    judge = "fake:demo?acts=pass,fail,fail,pass&usd_per_mtok=1"  # one call after the other; the last one stays
    monkeypatch.setenv("EVALPIPE_JUDGE", judge)
    monkeypatch.setenv("EVALPIPE_JUDGE_CONCURRENCY", "1")
    made = epochs_in_production(migrated_url, redis_url, tmp_path / "cards", judge)
    assert set(made) == {"kind", "brief", "right"}
    words = dict.fromkeys(made, "pass")
    rows = [{"id": f"{i}", "input": "May I?", "output": TEXT, "labels": words} for i in range(4)]
    (tmp_path / "labelled.jsonl").write_text("\n".join(map(json.dumps, rows)))
    on = ("judge", "calibrate", "--on", str(tmp_path / "labelled.jsonl"), "--json")
    found = {report["criterion"]: report for report in json.loads(command(*on, "--save"))}
    assert [found[name]["agreement"]["value"] for name in ("kind", "brief", "right")] == [0.5, 0.5, 0.5]
    kind, brief, right = (found[name]["cost_per_agreed_usd"] for name in ("kind", "brief", "right"))
    assert kind == pytest.approx(brief)
    assert kind < 0.8 * right, "half of one call, not a call of its own"
    with store.read() as tx:
        kept = {row.criterion: row.epoch for row in tx.connection.execute(select(tables.calibrations))}
    assert kept == made
    (alone,) = json.loads(command(*on, "--criterion", "brief"))
    assert (alone["epoch"], alone["agreement"]["value"]) == (made["brief"], 0.5)


def epochs_in_production(url: str, redis_url: str, cards: Path, judge: str) -> dict[str, str]:
    """The epoch of each criterion's scores of a record that workers take in and judge."""
    wiring = Wiring(Settings(database_url=url, redis_url=redis_url, scorecards=cards, judge=judge))
    wire = to_wire(
        Record(
            record_id="r", trace_id="t", captured_at=now(), release=Release("desk"), output=TEXT,
            messages=[{"role": "user", "content": "May I?"}],
        )
    )  # fmt: skip
    blob = encode_batch([wire], process_id="p1", sequence=0, sent_at=now().timestamp(), hook_version="0.1.0")
    assert wiring.ingest(blob, {}, now()).new == 1
    asyncio.run(wiring.judge.drain(5.0, lambda: None))
    with wiring.store.read() as tx:
        rows = tx.connection.execute(select(tables.scores)).all()
    wiring.close()
    return {row.criterion: row.epoch for row in rows if row.status == "scored"}


@pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("line", "telling"),
    [
        ("{", "labelled.jsonl:2"),
        ('{"output": "x"}', "labelled.jsonl:2:1: labels: give an object"),
        ('{"output": "x", "labels": {"grounded": "good"}}', "there are: pass, fail"),
        ('{"output": "x", "labels": {"grouned": "pass"}}', "grounded"),
        ('{"outptu": "x", "labels": {"grounded": "pass"}}', "labelled.jsonl:2:1"),
    ],
)
def test_a_line_that_cannot_be_used_is_named_with_its_number(
    card: Scorecard, command: Any, tmp_path: Path, line: str, telling: str
) -> None:
    """Before anything is graded, and paid for."""
    assert card
    file = tmp_path / "labelled.jsonl"
    file.write_text('{"output": "x", "labels": {"grounded": "pass"}}\n' + line + "\n")
    with pytest.raises(ConfigError) as error:
        command("judge", "calibrate", "--on", str(file), "--judge", "fake:x")
    assert telling in str(error.value)


def test_without_a_label_it_says_what_to_do(card: Scorecard, command: Any) -> None:
    """Instead of an empty report."""
    assert card
    with pytest.raises(ConfigError, match="evalpipe label"):
        command("judge", "calibrate")
    with pytest.raises(ConfigError, match="go with --on"):
        command("judge", "calibrate", "--judge", "fake:x")


def test_a_record_that_two_versions_of_a_scorecard_scored_counts_once(store: Store, card: Scorecard) -> None:
    """As it was scored last; an erased record has no length, and the rest of it still counts."""
    world = World(store, card)
    with store.begin() as tx:
        add_scores(tx, [world.entry(1, "grounded", scored(0.0, "fail"))], world.at)
        later = replace(world.entry(1, "grounded", scored(1.0, "pass")), scorecard_version="later")
        add_scores(tx, [later], world.at + timedelta(minutes=1))
    world.add(world.label(1, "pass"))
    with store.read() as tx:
        ((both,),) = calibrations.read_both(tx, "desk", "grounded").values()
    assert (both.value, both.scorecard_version, both.record) == (1.0, "later", None)


@pytest.mark.usefixtures("command")
@pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("judge", "told", "compared"),
    [
        ("fake:a?acts=pass,pass,503", "stopped asking: 8 calls in a row without an answer", "2 compared"),
        ("fake:a?acts=pass,401", "stopped asking: ", "1 compared"),
        ("fake:a?acts=503", "stopped asking: 8 calls in a row without an answer", "0 compared"),
    ],
)
def test_a_dead_judge_is_asked_no_more_and_nothing_of_it_is_kept(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judge: str, told: str, compared: str
) -> None:
    """What was graded is reported; the exit code is 1, and no calibration is made of half a file."""
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "style.yaml").write_text(TOGETHER)
    rows = [{"id": f"{i}", "input": "May I?", "output": TEXT, "labels": {"kind": "pass"}} for i in range(20)]
    (tmp_path / "labelled.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr("evalpipe.cli.asking.FIRST_WAIT_S", 0.0)
    monkeypatch.setenv("EVALPIPE_JUDGE_CONCURRENCY", "1")
    on = ["judge", "calibrate", "--on", str(tmp_path / "labelled.jsonl"), "--judge", judge, "--save"]
    result = CliRunner().invoke(app, on)
    assert result.exit_code == 1
    assert result.stderr.count(told) == 1
    assert compared in result.stdout
    assert "Not kept: not everything was graded." in result.stdout
    with store.read() as tx:
        assert tx.connection.execute(select(tables.calibrations)).all() == []


@pytest.mark.usefixtures("store", "command")
@pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("on", [True, False])
def test_a_criterion_that_is_not_there_is_said_with_those_that_are(tmp_path: Path, on: bool) -> None:
    """It must not look as if nothing had been labelled."""
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "style.yaml").write_text(TOGETHER)
    file = tmp_path / "labelled.jsonl"
    file.write_text(json.dumps({"id": "1", "input": "May I?", "output": TEXT, "labels": {"kind": "pass"}}))
    arguments = ["judge", "calibrate", "--criterion", "nope", *(["--on", str(file)] if on else [])]
    told = str(CliRunner().invoke(app, arguments).exception)
    assert told.startswith("--criterion 'nope': there is no such judged criterion in ")
    assert told.endswith("; there are: kind, brief, right")
