"""Baselines in a real database: captured once, never changed; what rules compare with; captured by themselves."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import event, insert, select
from stages import at_once
from starlette.testclient import TestClient
from typer.testing import CliRunner

from evalpipe.api.app import make_api
from evalpipe.cli.app import app
from evalpipe.detectors.base import detectors
from evalpipe.detectors.view import Normal, NormalSpec, Place, Scope
from evalpipe.errors import ConfigError
from evalpipe.pipeline.auto_baseline import AutoBaseline
from evalpipe.pipeline.baseline_view import calibrate, proposals
from evalpipe.pipeline.maintain import erase_user
from evalpipe.pipeline.store_feed import StoreFeed
from evalpipe.profile import Profile
from evalpipe.record import Record, Release
from evalpipe.score import scored
from evalpipe.scorecard.alert_rule import AlertRule
from evalpipe.settings import Settings
from evalpipe.sketch import Sketch
from evalpipe.store import baselines, profiles, tables
from evalpipe.store.baselines import Header, Wanted
from evalpipe.store.normal import Normals
from evalpipe.store.series import Entry, Series, add_scores
from evalpipe.store.shelf import Shelf
from evalpipe.store.sql import Store, Transaction

NOW = datetime(2026, 3, 16, 12, 0, tzinfo=UTC)
"""A Monday."""
DAY = timedelta(days=1)
WHO = {"actor": "ada@example.com", "reason": "a quiet day"}
PLACE = Place("desk", "production", "baseline")


def normal_of(tx: Transaction, scope: Scope, place: Place, since: datetime, until: datetime) -> Normal | None:
    """What is normal, for one rule and one window."""
    return Normals(tx, until).of(scope, place, since, until)


class Desk:
    """A store that is filled with what a service of one release did."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._n = 0

    def scores(
        self,
        n: int,
        *,
        since: datetime = NOW - DAY,
        until: datetime = NOW,
        of: Release | None = None,
        criterion: str = "grounded",
        epoch: str = "e1",
        feature: str = "ask",
        each: int = 1,
        values: Sequence[float] = (1.0, 1.0, 1.0, 0.5),
        user: str = "",
    ) -> None:
        """So many scores, evenly over the time, ``each`` of a conversation."""
        release = of or Release("desk")
        place = {"service": "desk", "feature": feature, "environment": release.environment,
                 "variant": release.variant, "release_id": release.release_id}  # fmt: skip
        rows, entries = [], []
        for i in range(n):
            self._n += 1
            record_id, at = f"r-{self._n}", since + (until - since) * i / n
            rows.append({
                "record_id": record_id, "trace_id": record_id, "session_id": "", "user_id": user,
                "unit": f"u-{(self._n - 1) // each}", "captured_at": at, "ingested_at": at, "probability": 1.0,
                "outcome": "scored", **place,
            })  # fmt: skip
            value = values[(i // each) % len(values)]
            series = Series(scorecard="support", criterion=criterion, epoch=epoch, **place)
            entries.append(Entry(record_id, "v1", series, at, scored(value), 1.0, "heuristic:x@1"))
        with self.store.begin() as tx:
            tx.insert_new(tables.records, rows)
            add_scores(tx, entries, until)

    def calls(self, hours: int, *, each: int = 60, until: datetime = NOW, feature: str = "ask") -> None:
        """So many calls in each of the hours before."""
        release, latency = Release("desk"), Sketch()
        latency.add(120.0, each)
        known = {"release_id": release.release_id, "service": "desk", "variant": release.variant,
                 "environment": release.environment, "first_seen_at": until}  # fmt: skip
        empty: dict[str, Any] = {"shed_by_reason": {}, "blocked": {}, "finish_reasons": {}}
        rows = [
            {"process_id": "app-1", "release_id": release.release_id, "feature": feature, "service": "desk",
             "hour_at": until - timedelta(hours=hour + 1), "sent_at": until, "calls": each, "input_tokens": each * 10,
             "output_tokens": each * 5, "cost_usd": each * 0.01, "latency": latency.to_wire(), **empty}
            for hour in range(hours)
        ]  # fmt: skip
        minutes = [
            {"minute_at": row["hour_at"] + timedelta(minutes=5), "process_id": "app-1", "feature": feature,
             "release_id": release.release_id, "calls": each, "tokens": each * 15, "cost_usd": each * 0.01,
             "latency": latency.to_wire(), "ttft": Sketch().to_wire(), "tpot": Sketch().to_wire()}
            for row in rows
        ]  # fmt: skip
        with self.store.begin() as tx:
            tx.insert_new(tables.releases, [known])
            tx.connection.execute(insert(tables.meters), rows)
            tx.connection.execute(insert(tables.meter_minutes), minutes)

    def profiles(self, n: int, *, user: str = "") -> None:
        """Profiles of so many new records."""
        found = []
        for i in range(n):
            at = NOW - DAY + timedelta(seconds=i)
            record = Record(record_id=f"p-{i}", trace_id=f"p-{i}", captured_at=at, release=Release("desk"),
                            feature="ask", user_id=user)  # fmt: skip
            words = {"language": "en", "feature": "ask"}
            found.append((record, Profile(f"p-{i}", at, words, {"input_chars": 10.0}, (0.6, 0.8), embedder="x@1")))
        with self.store.begin() as tx:
            profiles.add(tx, found)

    def capture(self, name: str = "quiet", *, now: datetime = NOW, **wanted: Any) -> Header:
        """Capture the day before."""
        values = {"since_at": now - DAY, "until_at": now, **PLACE_OF, **WHO, **wanted}
        with self.store.begin() as tx:
            return baselines.capture(tx, Wanted(name, **values), now)


PLACE_OF = {"service": "desk", "environment": "production", "variant": "baseline"}


@pytest.fixture
def desk(migrated_url: str) -> Iterator[Desk]:
    """A desk in a migrated database, once of each kind."""
    store = Store(migrated_url)
    yield Desk(store)
    store.close()


def scope(kind: Any = "baseline", **values: Any) -> Scope:
    """A rule's scope on the criterion."""
    spec = NormalSpec(kind, values.pop("name", "latest"), values.pop("span", timedelta(0)))
    given = {"scorecard": "support", "inputs": frozenset({"growth"}), "criteria": ("grounded",),
             "fits": lambda _: True, "normal": spec}  # fmt: skip
    return Scope(**{**given, **values})


def test_a_baseline_is_a_snapshot_that_later_scores_do_not_change(desk: Desk):
    """Distributions, dates and size stay as they were, and the name is taken for ever."""
    desk.scores(1200, each=4, values=(1.0, 0.5))
    desk.calls(24)
    desk.profiles(30)
    header = desk.capture()
    assert (header.n_scores, header.n_calls, header.n_profiles) == (1200, 24 * 60, 30)
    assert header.epochs == {"support/grounded": {"e1": 1200}}
    with desk.store.read() as tx:
        before = baselines.get(tx, "quiet")
        kept = baselines.read_profiles(tx, "quiet")
    assert before is not None
    part = before.parts[0]
    assert part.rollup.mean == pytest.approx(0.75)
    assert part.rollup.bins == {26: 600, 51: 600}
    assert part.design_effect == pytest.approx(4.0)  # the four scores of a conversation are all alike
    meter = before.calls["ask"]
    assert meter.calls.per_minute("tokens") == pytest.approx(15.0, rel=0.01)
    assert len(meter.hours) == 24
    assert meter.hours[11]["calls"] == 60.0
    assert kept[0].input_embedding == pytest.approx((0.6, 0.8), abs=1e-3)
    assert (kept[0].embedder, kept[0].words["language"]) == ("x@1", "en")

    desk.scores(500, values=(0.0,))
    with pytest.raises(ConfigError, match=r"there is a baseline 'quiet', and baselines are never changed.* quiet"):
        desk.capture()
    with desk.store.read() as tx:
        after = baselines.get(tx, "quiet")
    assert after is not None
    assert (after.header, after.parts) == (before.header, before.parts)


def test_too_few_scores_are_refused_with_how_many_there_are(desk: Desk):
    """1,000 of one criterion are the least."""
    desk.scores(412)
    with pytest.raises(ConfigError, match=r"has 412 of support/grounded \(epoch e1\) in 24.0 hours; at least 1,000"):
        desk.capture()
    with pytest.raises(ConfigError, match="has no scores and 0 calls"):
        desk.capture(variant="canary")
    for name in ("latest", "auto-mine", "a b", ""):
        with pytest.raises(ConfigError, match="cannot be the name of a baseline"):
            desk.capture(name)
    with pytest.raises(ConfigError, match="since must be before until"):
        desk.capture(since_at=NOW)
    with pytest.raises(ConfigError, match="actor is needed"):
        desk.capture(actor="")


def test_the_latest_is_the_newest_that_is_not_retired_and_fits_the_epoch(desk: Desk):
    """A rule with `latest` gets another as soon as there is one; one that names it keeps it."""
    desk.scores(1100)
    desk.capture("one")
    desk.capture("two", now=NOW + timedelta(minutes=1))
    with desk.store.begin() as tx:
        found = normal_of(tx, scope(), PLACE, NOW, NOW + DAY)
        assert found is not None
        assert found.words.startswith("baseline two (desk production baseline; ")
        assert baselines.retire(tx, "two", **WHO, now=NOW)
        assert not baselines.retire(tx, "two", **WHO, now=NOW)
        latest = normal_of(tx, scope(), PLACE, NOW, NOW + DAY)
        named = normal_of(tx, scope(name="two"), PLACE, NOW, NOW + DAY)
        assert latest is not None
        assert named is not None
        assert (latest.words[:12], named.words[:12]) == ("baseline one", "baseline two")
        with pytest.raises(ConfigError, match="there is no baseline 'three'; there are: two, one"):
            baselines.retire(tx, "three", **WHO, now=NOW)
        assert normal_of(tx, scope(), Place("shop", "production", "baseline"), NOW, NOW + DAY) is None
        canary = normal_of(tx, scope(), PLACE._replace(variant="canary"), NOW, NOW + DAY)
        assert canary is not None  # without one of its own it is compared with what it replaces
        assert (stretch := canary.scores("grounded")) is not None
        assert stretch.rollup.n_scored == 1100


def test_a_baseline_of_another_epoch_is_not_compared_with_unless_told_to(desk: Desk):
    """And its words say what to do."""
    desk.scores(1000)
    desk.capture()
    desk.scores(10, epoch="e2", since=NOW, until=NOW + timedelta(minutes=5))
    later = NOW + timedelta(hours=1)
    with desk.store.read() as tx:
        found = normal_of(tx, scope(), PLACE, NOW, later)
        across = normal_of(tx, scope(across_epochs=True), PLACE, NOW, later)
    assert found is not None
    assert found.words.endswith("; it has no scores of grounded in the present epoch: capture a new one")
    with desk.store.read() as tx:
        assert normal_of(tx, scope(), PLACE, NOW, later).scores("grounded") is None  # type: ignore[union-attr]
        stretch = normal_of(tx, scope(across_epochs=True), PLACE, NOW, later).scores("grounded")  # type: ignore[union-attr]
    assert across is not None
    assert stretch is not None
    assert (stretch.epoch, stretch.rollup.n_scored) == ("", 1000)


def test_features_of_a_baseline_are_told_apart_where_the_rule_does(desk: Desk):
    """A rule by feature compares with that feature, one with a match with what fits, any other with all."""
    desk.scores(600, feature="ask", values=(1.0,))
    desk.scores(600, feature="order", values=(0.5,))
    desk.calls(2, feature="order")
    desk.capture()
    with desk.store.read() as tx:
        normals = Normals(tx, NOW)
        whole = normals.of(scope(), PLACE, NOW, NOW)
        ask = normals.of(scope(by=("feature",)), PLACE._replace(feature="ask"), NOW, NOW)
        order = normals.of(scope(fits=lambda place: place.feature == "order"), PLACE, NOW, NOW)
        assert whole is not None
        assert ask is not None
        assert order is not None
        means = [found.scores("grounded").rollup.mean for found in (whole, ask, order)]  # type: ignore[union-attr]
        assert means == pytest.approx([0.75, 1.0, 0.5])
        assert ask.calls() is None
        assert order.calls().n == 120  # type: ignore[union-attr]
        assert order.calls() is order.calls()  # read once, for all rules that compare with it


def test_many_rules_read_a_baseline_once(desk: Desk):
    """Also over several evaluations: it never changes."""
    desk.scores(1000)
    desk.capture()
    shelf, statements = Shelf(), 0

    def count(*_: Any) -> None:
        nonlocal statements
        statements += 1

    event.listen(desk.store.engine, "before_cursor_execute", count)
    for _ in range(2):
        with desk.store.read() as tx:
            normals = Normals(tx, NOW, shelf)
            for _ in range(50):
                found = normals.of(scope(), PLACE, NOW, NOW)
                assert found is not None
                assert found.scores("grounded") is not None
    event.remove(desk.store.engine, "before_cursor_execute", count)
    assert statements <= 7  # beginning, headers and epochs for each evaluation, and the body once


def test_the_stretch_before_and_the_same_hour_of_the_week_are_normal_too(desk: Desk):
    """Of the present epoch only; weeks are told by the hour."""
    window = NOW - timedelta(minutes=10), NOW
    desk.scores(60, since=NOW - timedelta(minutes=70), until=NOW - timedelta(minutes=10), values=(0.5,))
    desk.scores(60, since=NOW - timedelta(minutes=70), until=NOW - timedelta(minutes=10), values=(0.0,), epoch="e0")
    desk.scores(10, since=window[0], until=NOW, values=(1.0,))
    for week in (1, 2):
        at = NOW - timedelta(days=7 * week)
        desk.scores(30, since=at - timedelta(hours=1), until=at, values=(week / 4,))
        desk.scores(30, since=at, until=at + timedelta(hours=1), values=(0.0,))
    with desk.store.read() as tx:
        normals = Normals(tx, NOW)
        before = normals.of(scope("previous", span=timedelta(hours=1)), PLACE, *window)
        weeks = normals.of(scope("seasonal", span=timedelta(weeks=2)), PLACE, *window)
        assert before is not None
        assert weeks is not None
        stretch = before.scores("grounded")
        assert stretch is not None
        assert (stretch.rollup.n_scored, stretch.rollup.mean) == (60, 0.5)
        assert before.words == "the 1h before (2026-03-16 10:50 to 2026-03-16 11:50 UTC)"
        stretch = weeks.scores("grounded")
        assert stretch is not None
        assert (stretch.rollup.n_scored, stretch.rollup.mean) == (60, 0.375)
        assert stretch.until is not None
        assert stretch.since is not None
        assert stretch.until - stretch.since == timedelta(hours=2)
        assert weeks.words.startswith("the same hours of the 2 weeks before (Monday 11:00 to 12:00 UTC")
        assert normals.of(scope("none"), PLACE, *window) is None


def test_a_release_that_stayed_healthy_gets_its_baseline_once(desk: Desk):
    """After 24 h in traffic with 3,000 scores, and again when the epoch has changed."""
    release = Release("desk", model="m-2")
    desk.scores(3000, of=release)
    with desk.store.begin() as tx:  # as if it had been seen when it began
        tx.connection.execute(tables.series.update().values(first_seen_at=NOW - DAY - timedelta(minutes=5)))
    assert AutoBaseline(desk.store)(NOW - timedelta(hours=1)) == []
    stage = AutoBaseline(desk.store)
    (header,) = stage(NOW)
    assert header.name == f"auto-baseline-{release.release_id[:8]}-20260316"
    assert (header.actor, header.release_id, header.n_scores) == ("evalpipe", release.release_id, 3000)
    assert "healthy for 24 hours" in header.reason
    assert stage(NOW + timedelta(minutes=1)) == []
    assert AutoBaseline(desk.store)(NOW + timedelta(minutes=1)) == []

    desk.scores(3000, of=release, epoch="e2", since=NOW, until=NOW + DAY + timedelta(hours=1))
    assert AutoBaseline(desk.store)(NOW + timedelta(hours=23)) == []
    (again,) = AutoBaseline(desk.store)(NOW + DAY + timedelta(hours=1))
    assert again.epochs == {"support/grounded": {"e2": 3000}}
    assert again.since_at == NOW


@pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("trouble", ["alert", "whole", "resolved", "rollback", "trial", "few", "idle"])
def test_a_release_in_trouble_is_not_captured(desk: Desk, trouble: str):
    """An alert there or of the whole service, a rollback, a rollout under way, too few scores, or no traffic."""
    release = Release("desk", "canary", model="m-2")
    desk.scores(3000, of=release)
    at = NOW + timedelta(hours=2) if trouble == "idle" else NOW
    if trouble == "few":
        desk.scores(100, of=release, criterion="polite")
    place = {"service": "desk", "environment": "production"}
    with desk.store.begin() as tx:
        tx.connection.execute(tables.series.update().values(first_seen_at=NOW - DAY - timedelta(minutes=5)))
        if trouble in ("alert", "resolved", "whole"):
            ended = NOW - timedelta(hours=3) if trouble == "resolved" else None
            whose = {"service": "desk"} if trouble == "whole" else {**place, "variant": "canary"}
            tx.connection.execute(insert(tables.alerts).values(
                alert_id="a", **whose, severity="SEV3", status="resolved" if ended else "firing",
                state={}, fired_at=NOW - timedelta(hours=5), resolved_at=ended, updated_at=NOW,
            ))  # fmt: skip
        if trouble in ("rollback", "trial"):
            tx.connection.execute(insert(tables.rollouts).values(
                rollout_id="r", **place, canary="canary", canary_release_id=release.release_id, plan={},
                phase="rolled_back" if trouble == "rollback" else "running", started_at=NOW, updated_at=NOW, due_at=NOW,
                rolled_back_at=NOW - timedelta(hours=2) if trouble == "rollback" else None,
            ))  # fmt: skip
    assert AutoBaseline(desk.store)(at) == []


def test_an_erased_user_is_in_no_baseline(desk: Desk):
    """Profiles are made of what users said: theirs go, and the baseline's numbers stay."""
    desk.scores(1000)
    desk.profiles(3)
    desk.capture()
    with desk.store.begin() as tx:
        baselines.forget(tx, ["p-1"])
        assert [one.record_id for one in baselines.read_profiles(tx, "quiet")] == ["p-0", "p-2"]
        assert baselines.listing(tx)[0].n_profiles == 2
        erase_user(tx, "nobody")
        assert tx.connection.scalar(select(tables.baselines.c.n_scores)) == 1000


def test_of_two_erasures_at_once_neither_brings_back_what_the_other_removed(desk: Desk):
    """Nor does a capture that had read a profile before its user was erased."""
    desk.scores(1000)
    desk.profiles(4)
    desk.capture()
    at_once(
        *(lambda i=i: desk.store.patiently(lambda tx: baselines.forget(tx, [f"p-{i}"])) for i in range(3)),
    )
    with desk.store.read() as tx:
        assert [one.record_id for one in baselines.read_profiles(tx, "quiet")] == ["p-3"]

    def erase() -> None:
        with desk.store.begin() as tx:
            profiles.remove(tx, ["p-3"])
            baselines.forget(tx, ["p-3"])

    with desk.store.begin() as tx:
        values = {"since_at": NOW - DAY, "until_at": NOW, **PLACE_OF, **WHO}
        baselines.capture(tx, Wanted("second", **values), NOW)
        erasing = threading.Thread(target=erase)
        erasing.start()
        erasing.join(0.3)
        assert erasing.is_alive()
    erasing.join(60)
    with desk.store.read() as tx:
        for name in ("quiet", "second"):
            assert "p-3" not in {one.record_id for one in baselines.read_profiles(tx, name)}


def test_a_baseline_keeps_the_words_of_many_and_of_nobody_alone(desk: Desk):
    """It outlives the records: what one answer said is not in it, while words and sizes compare as before."""
    desk.scores(1000)
    found = []
    for i in range(6):
        at = NOW - DAY + timedelta(seconds=i)
        record = Record(record_id=f"p-{i}", trace_id=f"p-{i}", captured_at=at, release=Release("desk"), feature="ask")
        words = {"feature": "ask", "terms": f"dear name{i // 2} thanks"}
        found.append((record, Profile(f"p-{i}", at, words, {}, unit=f"u-{i}")))
    with desk.store.begin() as tx:
        profiles.add(tx, found)
    desk.capture()
    with desk.store.read() as tx:
        kept = [one.words["terms"].split() for one in baselines.read_profiles(tx, "quiet")]
    assert {(terms[0], terms[2]) for terms in kept} == {("dear", "thanks")}
    assert sorted(terms[1] for terms in kept) == [f"#{n}" for n in range(1, 7)]


@pytest.fixture
def lived(migrated_sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """A desk with scores of the last day, and the command line set to it."""
    monkeypatch.setenv("EVALPIPE_DATABASE_URL", migrated_sqlite_url)
    monkeypatch.setenv("COLUMNS", "200")
    store = Store(migrated_sqlite_url)
    desk, at = Desk(store), datetime.now(UTC)
    desk.scores(3200, since=at - timedelta(hours=23), until=at - timedelta(minutes=2))
    desk.scores(500, since=at - timedelta(hours=23), until=at - timedelta(minutes=2), criterion="polite")
    yield desk
    store.close()


def run(*arguments: str, code: int = 0) -> Any:
    """One command."""
    result = CliRunner().invoke(app, ["baseline", *arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.mark.usefixtures("lived")
def test_the_command_line_captures_shows_calibrates_and_retires(tmp_path: Path):
    """And proposes rules that can be pasted."""
    asked = ["--service", "desk", "--environment", "production"]
    done = run("capture", "quiet", *asked, "--since", "24h", "--reason", "a quiet day")
    assert done.stdout.startswith("Captured baseline quiet (desk production baseline; 3,700 scores, 0 calls; ")
    assert "support/polite (epoch e1) has 500 scores: rules on it are not armed below 1,000" in done.stderr
    assert isinstance(run("capture", "quiet", *asked, code=1).exception, ConfigError)
    assert json.loads(run("list", "--json").stdout)[0]["name"] == "quiet"
    shown = json.loads(run("show", "quiet", "--json").stdout)
    assert [row["criterion"] for row in shown["criteria"]] == ["grounded", "polite"]
    assert "grounded" in run("show", "quiet").stdout

    found = json.loads(run("calibrate", "quiet", "--json").stdout)
    grounded, polite = found
    assert grounded["n"] == 3200
    assert grounded["outlook"]["mean"] == pytest.approx(0.87, abs=0.01)  # values as detectors take them: of bins
    assert "500 scores, and 1,000 are needed" in polite["refused"]
    told = run("calibrate", "quiet", "--plot", str(tmp_path / "quiet.png"))
    assert "detect: quality" in told.stdout
    assert "refused: polite" in told.stderr
    assert (tmp_path / "quiet.png").stat().st_size > 5_000
    assert "it has: support/grounded, support/polite" in str(
        run("calibrate", "quiet", "--criterion", "nope", code=1).exception
    )
    assert run("retire", "quiet", "--reason", "the old prompt").stdout == "quiet is retired\n"
    assert json.loads(run("list", "--json").stdout) == []
    assert json.loads(run("list", "--retired", "--json").stdout)[0]["retired_reason"] == "the old prompt"
    assert "there is no baseline 'loud'; there are: quiet" in str(run("show", "loud", code=1).exception)


def test_the_api_captures_and_shows(lived: Desk):
    """With a key of the API; refusals have their status and words."""
    settings = Settings(database_url=lived.store.engine.url.render_as_string(hide_password=False), api_keys=("k",))
    with TestClient(make_api(settings), headers={"Authorization": "Bearer k"}) as client:
        body = {"name": "quiet", "service": "desk", "environment": "production", **WHO}
        done = client.post("/v1/baselines", json=body)
        assert done.status_code == 200, done.text
        assert done.json()["n_scores"] == 3700
        assert client.post("/v1/baselines", json=body).status_code == 409
        assert client.post("/v1/baselines", json={**body, "actor": "evalpipe"}).status_code == 422
        assert [one["name"] for one in client.get("/v1/baselines").json()["baselines"]] == ["quiet"]
        assert client.get("/v1/baselines/quiet").json()["criteria"][0]["n"] == 3200
        assert client.get("/v1/baselines/loud").status_code == 404
        assert client.get("/v1/baselines", headers={"Authorization": ""}).status_code == 401


@pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
def test_the_proposed_rule_finds_a_drop_in_the_store(desk: Desk):
    """From the scores to the finding, with the rule as it was printed."""
    desk.scores(3000, values=(1.0, 1.0, 1.0, 0.5))
    desk.capture()
    with desk.store.begin() as tx:
        found = baselines.get(tx, "quiet")
        StoreFeed(tx, NOW)  # what was scored until now is no news
    assert found is not None
    month = timedelta(days=30)
    (one,) = calibrate(found, month)
    changed, low = (AlertRule.model_validate(rule) for rule in yaml.safe_load(proposals("quiet", one, month)))
    assert low.mean is not None
    assert low.mean.crossed(0.7)
    assert not low.mean.crossed(0.87)
    assert changed.detect == "quality"
    detector = detectors.get(changed.detect)
    watching = detector(detector.Params.model_validate(changed.params))
    assert changed.normal is not None
    of = scope(name=changed.normal.baseline)
    state: Any = {}
    for minutes, value, violated in ((5, 1.0, False), (10, 0.5, True)):
        now = NOW + timedelta(minutes=minutes)
        desk.scores(150, since=now - timedelta(minutes=5), until=now, values=(value,))
        with desk.store.begin() as tx:
            state, finding = watching.look(StoreFeed(tx, now).view(of, PLACE, "a"), state)
        assert finding.violated is violated
        assert "baseline quiet (desk production baseline; 3,000 scores" in finding.reason
