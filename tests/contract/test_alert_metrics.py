"""Metrics of alerts and of what evaluates them: complete, bounded, and no series twice; on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from prometheus_client.core import Metric
from sqlalchemy import insert
from stages import World, record

from evalpipe.api import totals
from evalpipe.api.alert_metrics import families
from evalpipe.detectors.base import DetectorParams, Finding
from evalpipe.detectors.calls import CALL_SKETCHES
from evalpipe.detectors.view import View
from evalpipe.pipeline.evaluate_alerts import EvaluateAlerts, rules_of
from evalpipe.score import scored
from evalpipe.sketch import Sketch
from evalpipe.store import alert_totals, evaluations, series
from evalpipe.store.latencies import Latencies
from evalpipe.store.meter_slots import calls_between
from evalpipe.store.series import Entry, Series
from evalpipe.store.sql import Store
from evalpipe.store.tables import alerts, meter_minutes, meter_slots, releases

AT = datetime(2026, 3, 1, 10, 0, 30, tzinfo=UTC)
ALERT = {
    "scorecard": "desk", "rule": "too-low", "kind": "quality", "service": "desk", "environment": "production",
    "variant": "baseline", "feature": "", "severity": "SEV2", "status": "firing", "dry_run": 0, "muted_by": "",
    "release_id": "", "state": {}, "labels": {}, "updated_at": AT, "acked_at": None, "acked_severity": "",
}  # fmt: skip
CARD = """
name: support
match: {service: desk}
criteria: [{name: length, heuristic: length, params: {max: 1}}]
alerts:
  - {name: too-long, criterion: length, mean: {below: 0.5}, min_sample: 10, window: 10m, severity: SEV2}
"""


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    """An empty database."""
    made = Store(migrated_url)
    yield made
    made.close()


def write(store: Store, *rows: dict[str, Any]) -> None:
    """These alerts."""
    with store.begin() as tx:
        tx.connection.execute(insert(alerts), [{**ALERT, "alert_id": str(i), **row} for i, row in enumerate(rows)])


def told(store: Store, at: datetime = AT) -> dict[str, list[tuple[dict[str, str], float]]]:
    """The samples of each metric."""
    with store.read() as tx:
        found: list[Metric] = families(alert_totals.read(tx, AT.replace(hour=0), at), at)
    return {f.name.removeprefix("evalpipe_"): [(s.labels, s.value) for s in f.samples] for f in found}


def firing(seen: dict[str, list[tuple[dict[str, str], float]]]) -> dict[str, float]:
    """How many alerts fire, by rule."""
    return {of["rule"]: value for of, value in seen["alert_state"] if of["state"] == "firing"}


def test_alerts_that_differ_only_in_their_release_are_added_up(store: Store) -> None:
    """A series that came twice would make Prometheus refuse the scrape; external ones differ in labels of their own."""
    write(store, {"release_id": "r1"}, {"release_id": "r2"}, {"release_id": "r3", "status": "resolved"})
    seen = told(store)
    labels = [tuple(of.items()) for of, _ in seen["alert_state"]]
    assert len(labels) == len(set(labels)) == 4
    assert {of["state"]: value for of, value in seen["alert_state"]} == {
        "inactive": 0, "pending": 0, "firing": 2, "resolved": 1,
    }  # fmt: skip
    assert seen["alerts"] == [
        ({"kind": "quality", "dry_run": "false", "state": "firing"}, 2),
        ({"kind": "quality", "dry_run": "false", "state": "resolved"}, 1),
    ]


def test_what_is_taken_or_muted_is_told_of_alerts_that_fire(store: Store) -> None:
    """An acknowledgement is void once the alert got worse."""
    write(store, {"rule": "taken", "acked_at": AT, "acked_severity": "SEV2"},
          {"rule": "worse", "acked_at": AT, "acked_severity": "SEV3"}, {"rule": "quiet", "muted_by": "sil_1"},
          {"rule": "over", "status": "resolved", "muted_by": "sil_1"}, {"rule": "tried", "dry_run": 1})  # fmt: skip
    seen = told(store)
    assert {of["rule"]: n for of, n in seen["alert_acked"]} == {"taken": 1, "worse": 0, "quiet": 0, "tried": 0}
    assert {of["rule"]: n for of, n in seen["alert_muted"]} == {"taken": 0, "worse": 0, "quiet": 1, "tried": 0}
    assert {of["dry_run"] for of, _ in seen["alert_state"] if of["rule"] == "tried"} == {"true"}


def test_a_scrape_is_bounded_and_shows_what_fires_first(store: Store) -> None:
    """However many alerts there are; all are counted. What does not fire and is old is only counted."""
    calm = [{"rule": f"calm-{i}", "status": "inactive"} for i in range(1500)]
    old = {"rule": "old", "status": "resolved", "updated_at": AT - timedelta(days=2)}
    write(store, *calm, {"rule": "fires"}, {"rule": "waits", "status": "pending"}, old)
    seen = told(store)
    shown = [of["rule"] for of, _ in seen["alert_state"]]
    assert len(shown) == 4 * alert_totals.MOST
    assert shown[0] == "fires"
    assert shown[4] == "waits"
    assert {of["state"]: n for of, n in seen["alerts"]} == {"firing": 1, "inactive": 1500, "pending": 1, "resolved": 1}


def test_an_alert_that_fires_is_shown_however_old_it_is(store: Store) -> None:
    """One that is over, and of which there was no news for a day, is not."""
    old = {"updated_at": AT - timedelta(days=2)}
    write(store, {"rule": "fires", **old}, {"rule": "over", "status": "resolved", **old})
    assert firing(told(store)) == {"fires": 1}


def test_each_evaluation_is_noted_with_what_it_could_not_evaluate(migrated_url: str, tmp_path: Path) -> None:
    """Its age is the proof that alert rules are looked at; before the first one there is none."""
    world = World(migrated_url, tmp_path, card=CARD)
    assert "evaluation_age_seconds" not in told(world.store, world.clock())
    world.ingest(*(record(i, output="word", captured_at=world.clock()) for i in range(20)))
    seen = told(world.store, world.clock.pass_(seconds=30))
    assert seen["growth_waiting"] == [({}, 1)]
    assert seen["growth_oldest_seconds"] == [({}, 30)]
    rules = rules_of(world.cards)
    torn = replace(rules[0], name="torn", detector=Broken(DetectorParams()))
    EvaluateAlerts(world.store, [], rules=[*rules, torn])(world.clock())
    seen = told(world.store, world.clock.pass_(seconds=5))
    assert seen["evaluation_age_seconds"] == [({}, 5)]
    assert seen["evaluation_rules"] == [({}, 2)]
    assert seen["evaluation_alerts"] == [({}, 2)]
    assert seen["evaluation_errors"] == [({"scorecard": "support", "rule": "torn"}, 1)]
    assert seen["growth_oldest_seconds"] == [({}, 0)]
    with world.store.read() as tx:
        last = evaluations.last(tx)
    assert last is not None
    assert 0 < last.seconds < 60
    world.close()


class Broken:
    """A detector that fails."""

    Params: ClassVar[type[DetectorParams]] = DetectorParams
    version, kind, inputs, criteria = "1", "quality", frozenset({"scores"}), ("length",)

    def __init__(self, params: DetectorParams) -> None:
        """It has none."""

    def look(self, view: View, state: Any) -> tuple[Any, Finding]:
        """It cannot."""
        raise ZeroDivisionError("a hole")


def test_a_mean_is_of_the_newest_epoch_and_says_when_that_began(store: Store) -> None:
    """A release that is new in it does not make it begin anew: the dashboard marks epochs, not releases."""

    def score(at: datetime, value: float, release: str, epoch: str) -> None:
        of = Series("desk", "", "production", "baseline", release, "desk", "brief", epoch)
        entry = Entry(f"{release}-{epoch}", "v1", of, at, scored(value, "", ""), weight=1.0, scorer="length")
        with store.begin() as tx:
            assert series.add_scores(tx, [entry], at) == 1

    score(AT - timedelta(minutes=8), 0.2, "r1", "e1")
    score(AT - timedelta(minutes=6), 0.8, "r1", "e2")
    score(AT - timedelta(minutes=2), 0.6, "r2", "e2")
    with store.read() as tx:
        (found,) = totals.means(tx, AT)
    assert found.labels == ("desk", "production", "baseline", "desk", "brief")
    assert (found.rollup.n_scored, found.epoch_at) == (2, AT - timedelta(minutes=6))


def minute(store: Store, ago: int, *values: float, process: str = "p1", release: str = "r") -> None:
    """Calls that took so many ms, some minutes ago."""
    took = Sketch()
    for ms in values:
        took.add(ms)
    at = AT.replace(second=0) - timedelta(minutes=ago)
    key = {"release_id": release, "feature": ""}
    with store.begin() as tx:
        tx.connection.execute(insert(meter_minutes).values(
            minute_at=at, process_id=process, **key, calls=len(values), latency=took.to_wire(),
            ttft=Sketch().to_wire(), tpot=Sketch().to_wire(),
        ))  # fmt: skip
        tx.insert_new(meter_slots, [{"slot_at": at, **key, "calls": len(values)}])


def test_latencies_are_those_of_all_calls_of_the_window_and_the_past_is_read_once(store: Store) -> None:
    """A minute that is long over is kept by the process, newer ones are read again; what leaves the window is gone."""
    with store.begin() as tx:
        of = {"service": "desk", "environment": "e", "first_seen_at": AT}
        tx.insert_new(releases, [{"release_id": name, "variant": name, **of} for name in ("r", "s")])
    for ago in range(12):
        minute(store, ago, 100.0 + ago, 200.0 + ago)
    minute(store, 5, 5.0, release="s")
    latencies = Latencies(timedelta(minutes=10))
    with store.read() as tx:
        first = latencies.read(tx, AT)
        meter = calls_between(tx, AT - timedelta(minutes=10), AT, AT)
        for place, calls in meter.items():
            for name in CALL_SKETCHES:
                assert first[place[:3]][name].to_wire() == calls.sketches[name].to_wire()
    assert first["desk", "e", "s"]["latency"].count == 1
    minute(store, 1, 50.0, process="late")
    minute(store, 9, 50.0, process="later")
    with store.read() as tx:
        again = latencies.read(tx, AT)
        assert again["desk", "e", "r"]["latency"].count == first["desk", "e", "r"]["latency"].count + 1
        assert latencies.read(tx, AT + timedelta(hours=1)) == {}
