"""Alerts and their incidents from firing to resolved, on a real database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from stages import CARD as JUDGED
from stages import World, at_once, record, records
from typer.testing import CliRunner

from evalpipe.cli.app import app
from evalpipe.pipeline.evaluate import Evaluated
from evalpipe.record import Release
from evalpipe.store.tables import alerts, incidents

CARD = """
name: support
match: {service: desk}
criteria:
  - {name: length, heuristic: length, params: {max: 1}}
alerts:
  - {name: too-long, criterion: length, mean: {below: 0.5}, min_sample: 10, window: 10m, severity: SEV2}
"""
LONG, SHORT = "word " * 100, "short"


class Watched(World):
    """Remembers what became of alerts, in order."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.told: list[str] = []
        self._stage, self.evaluate = self.evaluate, self._evaluate  # type: ignore[method-assign]

    def _evaluate(self, now: datetime) -> Evaluated:
        done = self._stage(now)
        self.told += [change.after for change in done.transitions if change.after in {"firing", "resolved"}]
        return done


@pytest.fixture
def make_world(migrated_url: str, tmp_path: Path) -> Iterator[Callable[..., Watched]]:
    """Worlds on one database."""
    made: list[Watched] = []

    def make(**options: Any) -> Watched:
        made.append(Watched(migrated_url, tmp_path, **{"card": CARD, **options}))
        return made[-1]

    yield make
    for one in made:
        one.close()


def ingest(world: World, first: int, n: int, output: str) -> None:
    """Take in so many records of now."""
    world.ingest(*(record(first + i, output=output, captured_at=world.clock()) for i in range(n)))


def test_a_mean_that_crosses_its_line_to_and_fro_is_one_firing_and_one_incident(
    make_world: Callable[..., Watched],
) -> None:
    """Rules are evaluated with each commit: 31 scores below, 61 above and 91 below, within a second."""
    world = make_world()
    for first, n, output in ((0, 31, LONG), (100, 40, SHORT), (200, 40, LONG)):
        ingest(world, first, n, output)
        at_once(*[lambda: world.evaluate(world.clock.pass_(milliseconds=300))] * 2)
    assert world.told == ["firing"]
    assert world.count(incidents) == 1
    ingest(world, 300, 200, SHORT)
    world.evaluate(world.clock.pass_(seconds=61))
    assert world.told == ["firing", "resolved"]


def test_an_incident_is_resolved_with_its_alert_and_the_next_firing_opens_another(
    make_world: Callable[..., Watched],
) -> None:
    """Its timeline says how it ended; two evaluators at once close it once."""
    world = make_world()
    ingest(world, 0, 20, LONG)
    at_once(*[lambda: world.evaluate(world.clock.pass_(seconds=1))] * 2)
    (opened,) = world.rows(incidents)
    assert (opened["resolved_at"], len(opened["timeline"])) == (None, 1)
    world.clock.pass_(minutes=20)
    ingest(world, 100, 20, SHORT)
    at_once(*[lambda: world.evaluate(world.clock.pass_(seconds=1))] * 2)
    (closed,) = world.rows(incidents)
    assert closed["resolved_at"] is not None
    assert [entry["text"].split("; ")[1][:20] for entry in closed["timeline"]] == [
        "too-long is firing", "too-long is resolved",
    ]  # fmt: skip
    world.clock.pass_(minutes=20)
    ingest(world, 200, 20, LONG)
    world.evaluate(world.clock.pass_(seconds=1))
    assert sorted(row["resolved_at"] is None for row in world.rows(incidents)) == [False, True]
    assert world.told == ["firing", "resolved", "firing"]


def test_two_alerts_that_fire_at_the_same_moment_have_an_incident_each(make_world: Callable[..., Watched]) -> None:
    """Of two environments: their service, variant and rule are the same."""
    world = make_world()
    places = [Release("desk", "baseline", environment=name) for name in ("staging", "production")]
    world.ingest(*(record(i, output=LONG, captured_at=world.clock(), release=places[i % 2]) for i in range(40)))
    world.evaluate(world.clock.pass_(seconds=1))
    assert (world.told, world.count(incidents)) == (["firing", "firing"], 2)


def test_the_summary_of_a_firing_alert_has_the_newest_numbers(make_world: Callable[..., Watched]) -> None:
    """And nobody is told again."""
    world = make_world()
    ingest(world, 0, 20, LONG)
    world.evaluate(world.clock.pass_(seconds=1))
    ingest(world, 100, 10, SHORT)
    world.evaluate(world.clock.pass_(seconds=1))
    (alert,) = world.rows(alerts)
    assert "is 0.340 of 30 scores (below 0.5); too-long is firing" in alert["summary"]
    ingest(world, 200, 70, SHORT)
    world.evaluate(world.clock.pass_(seconds=1))
    (alert,) = world.rows(alerts)
    assert "is 0.802 of 100 scores (below 0.5); too-long is firing" in alert["summary"]
    assert alert["summary"].endswith("clear since 10:00:03 UTC, it resolves if that lasts")
    assert world.told == ["firing"]


def test_an_alert_of_a_judged_criterion_without_anchors_says_that_nobody_knows_who_moved(
    make_world: Callable[..., Watched],
) -> None:
    """And what to do, also in the webhook."""
    world = make_world(card=JUDGED, judge='fake:demo?rules={"REFUND": "fail"}&acts=pass')
    world.ingest(*records(40, output="REFUND", captured_at=world.clock()))
    world.drain(concurrency=64)
    world.evaluate(world.clock.pass_(seconds=10))
    (alert,) = world.rows(alerts)
    words = "; whether the judge moved is unknown: it has no anchors (evalpipe judge anchors add)"
    assert alert["summary"].endswith(words)
    assert alert["explanation"]["moved"] == "unknown"


def test_the_table_of_incidents_says_which_are_open(
    make_world: Callable[..., Watched], migrated_url: str, tmp_path: Path
) -> None:
    """And when the others were resolved."""
    world = make_world()
    ingest(world, 0, 20, LONG)
    world.evaluate(world.clock.pass_(seconds=1))
    env = {"EVALPIPE_DATABASE_URL": migrated_url, "EVALPIPE_SCORECARDS": str(tmp_path), "COLUMNS": "160"}

    def shown() -> str:
        result = CliRunner().invoke(app, ["incidents"], env=env)
        assert result.exit_code == 0, result.output
        return next(line for line in result.output.splitlines() if "inc_" in line)

    assert " open " in shown()
    world.clock.pass_(minutes=20)
    ingest(world, 100, 20, SHORT)
    world.evaluate(world.clock.pass_(seconds=1))
    assert " resolved " in shown()
    assert "2026-03-01 10:20:02" in shown()
