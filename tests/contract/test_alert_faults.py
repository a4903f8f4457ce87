"""What must not stop alerting: statements that fail, clocks, odd numbers and names, backlogs; on both databases."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from math import inf, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from alert_worlds import TOO_LONG, alert_worlds
from notify_desk import Slip
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from stages import World, record

from evalpipe.alerts.round import alert_id
from evalpipe.detectors.base import DetectorParams, Finding
from evalpipe.detectors.view import Place, View
from evalpipe.pipeline.maintain import erase_user
from evalpipe.pipeline.notify import Notify
from evalpipe.record import Release
from evalpipe.store import alerting, growths
from evalpipe.store.tables import alerts, evaluations, incidents, outbox
from evalpipe.store.tables import growths as queue

LONG = "word " * 100


class Look:
    """A detector of the length's growth that does as it is told."""

    Params: ClassVar[type[DetectorParams]] = DetectorParams
    version, kind, inputs, criteria = "1", "quality", frozenset({"growth"}), ("length",)

    def __init__(self, act: Callable[[View], Finding | None] = lambda _: None) -> None:
        self.act = act

    def look(self, view: View, state: Any) -> tuple[Any, Finding]:
        """Counts the scores that it was given."""
        found = self.act(view)
        grown = view.growth("length")
        n = state.get("n", 0) + (grown.rollup.n_scored if grown is not None else 0)
        return {"n": n}, found or Finding(violated=False, value=float(n), n=n, reason=f"{n} scores")


@pytest.fixture
def make_world(migrated_url: str, tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Worlds on one database."""
    with alert_worlds(migrated_url, tmp_path) as make:
        yield make


def ingest(world: World, first: int, n: int, output: str = LONG, **fields: Any) -> None:
    """Take in so many records of now."""
    world.ingest(*(record(first + i, output=output, captured_at=world.clock(), **fields) for i in range(n)))


def looks(stage: Any, place: int, act: Callable[[View], Finding | None], **life: Any) -> None:
    """Let a rule of a stage do as it is told."""
    rules = stage._alerts._rules
    detector = Look(act)
    scope = replace(rules[place].scope, inputs=detector.inputs)
    rules[place] = replace(
        rules[place], detector=detector, detector_key="look", scope=scope, life=replace(rules[place].life, **life)
    )


def row_of(world: World, rule: str) -> dict[str, Any]:
    """The alert of a rule that has one."""
    (row,) = world.rows(alerts, rule=rule)
    return dict(row)


def read_nonsense(view: View) -> None:
    """A statement that every database refuses."""
    view.feed.tx.connection.execute(text("SELECT nothing FROM nowhere"))  # type: ignore[attr-defined]


def test_a_rule_whose_statement_fails_stops_no_other_and_loses_no_growth(make_world: Callable[..., World]) -> None:
    """On PostgreSQL the statement alone would void the transaction, and with it the evaluation of every rule."""
    world = make_world(TOO_LONG.replace("too-long", "broken") + TOO_LONG + TOO_LONG.replace("too-long", "counts"))
    stage = world.evaluation()
    looks(stage, 0, read_nonsense)
    looks(stage, 2, lambda _: None)
    for first in (0, 100):
        ingest(world, first, 20)
        stage(world.clock.pass_(seconds=1))
    assert row_of(world, "too-long")["status"] == "firing"
    assert row_of(world, "counts")["state"]["detector"] == {"n": 40}
    assert world.count(queue) == 0
    assert world.rows(evaluations)[0]["errors"] == {"support/broken": 1}


def test_records_that_cannot_be_looked_up_cost_an_alert_its_examples_alone(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fires, and says what it found; the records follow."""
    world = make_world()
    worst = alerting.worst
    monkeypatch.setattr(alerting, "worst", lambda tx, *_, **__: tx.connection.execute(text("SELECT nothing")))
    ingest(world, 0, 20)
    world.evaluate(world.clock.pass_(seconds=1))
    found = row_of(world, "too-long")
    assert (found["status"], found["explanation"]["n"], "examples" in found["explanation"]) == ("firing", 20, False)
    monkeypatch.setattr(alerting, "worst", worst)
    world.evaluate(world.clock.pass_(minutes=2))
    assert len(row_of(world, "too-long")["explanation"]["examples"]) == 10


def test_a_database_that_goes_away_in_the_midst_costs_time_and_nothing_else(make_world: Callable[..., World]) -> None:
    """What a rule reads when the connection breaks is no trouble of that rule: the whole evaluation is made anew."""
    world = make_world()
    stage, broke = world.evaluation(), list[bool]()

    def breaks(_: View) -> None:
        if not broke:
            broke.append(True)
            raise OperationalError("SELECT", {}, ConnectionError("server closed the connection unexpectedly"))

    looks(stage, 0, breaks)
    ingest(world, 0, 20)
    if world.store.engine.dialect.name == "sqlite":
        with suppress(OperationalError):  # there is no connection that breaks
            stage(world.clock.pass_(seconds=1))
    stage(world.clock.pass_(seconds=1))
    assert row_of(world, "too-long")["state"]["detector"] == {"n": 20}
    assert world.rows(evaluations)[0]["errors"] == {}


def test_two_clocks_lose_no_growth(make_world: Callable[..., World]) -> None:
    """A worker whose clock is behind evaluates after one whose clock is ahead: what it takes, it folds."""
    world = make_world()
    stage = world.evaluation()
    looks(stage, 0, lambda _: None)
    for number, behind in enumerate((0, 0.5, 3600, -1)):
        ingest(world, 100 * number, 20)
        stage(world.clock.pass_(seconds=1) - timedelta(seconds=behind))
        assert row_of(world, "too-long")["state"]["detector"] == {"n": 20 * (number + 1)}


def test_a_backlog_is_folded_bit_by_bit_the_oldest_first(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody evaluated for a while: one evaluation takes so much, and the next ones the rest."""
    monkeypatch.setattr(growths, "MOST", 2)
    world = make_world()
    stage = world.evaluation()
    looks(stage, 0, lambda _: None)
    for number in range(5):
        ingest(world, 100 * number, number + 1)
        world.clock.pass_(seconds=1)
    seen = []
    for _ in range(4):
        stage(world.clock.pass_(seconds=1))
        seen.append(row_of(world, "too-long")["state"]["detector"]["n"])
    assert seen == [1 + 2, 1 + 2 + 3 + 4, 15, 15]


def test_numbers_and_signs_that_no_database_takes_stop_nothing(make_world: Callable[..., World]) -> None:
    """Infinity, NaN, NUL and half characters: the alert fires all the same, with what can be kept."""
    world = make_world(TOO_LONG + TOO_LONG.replace("too-long", "other"))
    stage = world.evaluation()
    odd = Finding(True, inf, 3, "user \x00 \ud83d", ratio=nan, threshold=-inf, numbers={"a\x00": [inf, {"b": nan}]})
    looks(stage, 0, lambda _: odd)
    ingest(world, 0, 20)
    assert [change.after for change in stage(world.clock.pass_(seconds=1)).transitions] == ["firing", "firing"]
    found = row_of(world, "too-long")
    assert found["summary"].startswith("user \ufffd ")
    assert found["explanation"]["value"] is None
    assert found["explanation"]["numbers"] == {"a\ufffd": [None, {"b": None}]}
    stage(world.clock.pass_(minutes=2))
    assert row_of(world, "too-long")["status"] == "firing"


def test_an_incident_has_the_service_alone_and_rises_with_its_alert(make_world: Callable[..., World]) -> None:
    """Its title says which variant; the timeline says when it rose."""
    world = make_world(TOO_LONG.replace("SEV2", "table"))
    stage, severity = world.evaluation(), ["SEV3"]
    looks(stage, 0, lambda _: Finding(violated=True, value=0.1, n=9, reason="low", severity=severity[0]))  # type: ignore[arg-type]
    ingest(world, 0, 20)
    stage(world.clock.pass_(seconds=1))
    (incident,) = world.rows(incidents)
    assert (incident["service"], incident["title"], incident["severity"]) == ("desk", "desk/baseline: too-long", "SEV3")
    severity[:] = ["SEV1"]
    stage(world.clock.pass_(seconds=1))
    severity[:] = ["SEV3"]
    stage(world.clock.pass_(seconds=1))
    (incident,) = world.rows(incidents)
    assert (incident["severity"], [entry["text"] for entry in incident["timeline"]][1:]) == (
        "SEV1", ["too-long is SEV1 now: low"],
    )  # fmt: skip


def test_an_alert_that_stops_calls_is_told_at_once(make_world: Callable[..., World]) -> None:
    """The calls that it stopped cannot make it more severe: as a SEV3 its page would wait for half a minute."""
    world = make_world(TOO_LONG.replace("SEV2", "table"))
    stage = world.evaluation()
    looks(stage, 0, lambda _: Finding(violated=True, value=8.5, n=9, reason="dear", severity="SEV3"))
    rules = stage._alerts._rules
    rules[0] = replace(rules[0], kill_switch=True)
    ingest(world, 0, 20)
    stage(world.clock.pass_(seconds=1))
    assert row_of(world, "too-long")["severity"] == "SEV2"
    assert len(Notify(world.store, {"chat": Slip()}, source="/test")(world.clock.pass_(seconds=1))) == 1


def test_the_runbook_reaches_the_notice(make_world: Callable[..., World]) -> None:
    """And the words of the rule's author the page."""
    written = "runbook: 'https://wiki/long', description: Answers are too long, severity"
    world = make_world(TOO_LONG.replace("severity", written))
    ingest(world, 0, 20)
    world.evaluate(world.clock.pass_(seconds=1))
    (notice,) = Notify(world.store, {"chat": Slip()}, source="/test")(world.clock.pass_(seconds=1))
    assert notice.cause == "first"
    assert b'"runbook":"https://wiki/long"' in world.rows(outbox)[0]["body"]
    assert row_of(world, "too-long")["explanation"]["description"] == "Answers are too long"


def test_words_without_end_leave_in_a_letter_that_receivers_take(make_world: Callable[..., World]) -> None:
    """What a rule's author and a detector wrote is cut; what fires and where is not."""
    world = make_world(TOO_LONG.replace("severity", f"labels: {{team: {'t' * 9_000}, more: {'m' * 9_000}}}, severity"))
    stage = world.evaluation()
    looks(stage, 0, lambda _: Finding(violated=True, value=0.1, n=9, reason="low " * 9_000))
    ingest(world, 0, 20)
    stage(world.clock.pass_(seconds=1))
    assert len(Notify(world.store, {"chat": Slip()}, source="/test")(world.clock.pass_(seconds=1))) == 1
    (letter,) = world.rows(outbox)
    data = json.loads(letter["body"])["data"]
    assert len(letter["body"]) < 20_000
    assert (data["rule"], data["n_alerts"], data["alerts"][0]["alert_id"]) == (
        "too-long", 1, "desk/production/baseline/support/too-long",
    )  # fmt: skip
    assert data["summary"].startswith("low low ")


def test_rollouts_that_cannot_be_decided_hold_up_no_alert(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is raised when the alerts are evaluated."""
    world = make_world()
    stage = world.evaluation()

    def fails(_: datetime) -> None:
        raise ZeroDivisionError("a hole")

    monkeypatch.setattr(stage, "_fold", fails)
    ingest(world, 0, 20)
    with pytest.raises(ZeroDivisionError):
        stage(world.clock.pass_(seconds=1))
    assert row_of(world, "too-long")["status"] == "firing"


def test_an_alert_of_a_place_that_is_gone_does_not_fire_for_ever(make_world: Callable[..., World]) -> None:
    """Its canary was taken out of traffic: too few scores keep it firing, a day without any ends it."""
    world = make_world()
    ingest(world, 0, 20)
    world.evaluate(world.clock.pass_(seconds=1))
    world.evaluate(world.clock.pass_(hours=5))
    assert row_of(world, "too-long")["status"] == "firing"
    (ended,) = world.evaluate(world.clock.pass_(days=2)).transitions
    assert (ended.after, "nothing comes from there any more" in ended.reason) == ("resolved", True)
    with world.store.begin() as tx:
        alerting.remove_old(tx, world.clock() - timedelta(days=1))
        assert alerting.list_alerts(tx) != []
        alerting.remove_old(tx, world.clock() + timedelta(days=1))
        assert alerting.list_alerts(tx) == []


def test_places_with_odd_names_have_alerts_of_their_own(make_world: Callable[..., World]) -> None:
    """Slashes, spaces, letters of all scripts, and long ones; nothing is told apart wrongly, nor taken together."""
    world = make_world(TOO_LONG.replace("severity", "by: [feature], severity"))
    odd = ["a/b", "a~1b", "größe 大", "x" * 200, "'; DROP TABLE alerts; --", ""]
    for number, feature in enumerate(odd):
        ingest(world, 100 * number, 20, feature=feature, release=Release("desk", "a/b"))
    world.evaluate(world.clock.pass_(seconds=1))
    found = world.rows(alerts)
    assert [row["status"] for row in found] == ["firing"] * len(odd)
    assert len({row["feature"] for row in found}) == len(odd)
    assert all(Place(*row["state"]["place"]).feature == row["feature"] for row in found)
    assert {row["alert_id"].count("/") for row in found if row["feature"]} == {5}


def test_a_name_that_no_index_takes_is_cut_and_told_apart() -> None:
    """Five names of 200 signs of four bytes each."""
    rule = SimpleNamespace(scorecard="s", name="r", scope=SimpleNamespace(by=("feature", "release")))
    names = [chr(0x1F600 + number) * 200 for number in range(3)]
    ids = {alert_id(rule, Place(*names[:1] * 4, last)) for last in names[1:]}  # type: ignore[arg-type]
    assert len(ids) == 2
    assert {len(one.encode()) <= 1_000 for one in ids} == {True}


def test_an_erased_user_whose_growth_waits_stops_nothing(make_world: Callable[..., World]) -> None:
    """Counts stay, and are folded."""
    world = make_world()
    ingest(world, 0, 20, user_id="ada")
    with world.store.begin() as tx:
        assert erase_user(tx, "ada") == 20
    (change,) = world.evaluate(world.clock.pass_(seconds=1)).transitions
    assert change.after == "firing"
