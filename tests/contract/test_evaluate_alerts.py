"""The evaluation of alert rules as production runs it, on both databases."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
from alert_worlds import TOO_LONG, alert_worlds
from stages import World, at_once, record
from stopwatch import assert_quick

from evalpipe.detectors.base import DetectorParams, Finding
from evalpipe.detectors.view import View
from evalpipe.pipeline import evaluate_alerts as stage_module
from evalpipe.record import Release
from evalpipe.store import alerting, controls
from evalpipe.store.tables import alerts, growths, incidents

LONG, SHORT = "word " * 100, "short"


@pytest.fixture
def make_world(migrated_url: str, tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Worlds on one database."""
    with alert_worlds(migrated_url, tmp_path) as make:
        yield make


def ingest(world: World, first: int, n: int, output: str, feature: str = "chat") -> None:
    """Take in so many records of now."""
    world.ingest(*(record(first + i, output=output, feature=feature, captured_at=world.clock()) for i in range(n)))


def changes(world: World, stage: Any = None, **later: float) -> list[str]:
    """What one evaluation changed."""
    return [change.after for change in (stage or world.evaluate)(world.clock.pass_(**later)).transitions]


def test_a_firing_alert_explains_itself(make_world: Callable[..., World]) -> None:
    """The numbers, the share of the traffic, and the worst records with what was said of each."""
    world = make_world()
    ingest(world, 0, 20, LONG)
    ingest(world, 100, 5, SHORT)
    assert changes(world, seconds=1) == ["firing"]
    (row,) = world.rows(alerts)
    found = row["explanation"]
    assert (row["kind"], row["fired_at"], row["feature"], row["dry_run"]) == ("quality", world.clock(), "", 0)
    assert row["labels"]["criterion"] == "length", "routes, silences and judges in trouble go by it"
    assert {name: found[name] for name in ("criterion", "n", "threshold")} == {
        "criterion": "length", "n": 25, "threshold": 0.5,
    }  # fmt: skip
    assert found["value"] == pytest.approx(0.208)
    assert found["numbers"]["n"] == 25
    assert found["share"]["high"] == 1.0
    assert len(found["examples"]) == 10
    assert {example["value"] for example in found["examples"]} == {0.01}
    assert found["examples"][0]["explanation"] == "100 words, at most 1 wanted"
    (incident,) = world.rows(incidents)
    assert incident["evidence"]["threshold"] == 0.5


def test_an_alert_that_is_over_keeps_its_explanation_until_it_fires_anew(make_world: Callable[..., World]) -> None:
    """Also where its row is written again: only alerts that fire are explained."""
    world = make_world()

    def told() -> tuple[str, int, list[str]]:
        (row,) = world.rows(alerts)
        found = row["explanation"]
        return row["status"], found["n"], [example["record_id"] for example in found["examples"]]

    ingest(world, 0, 20, LONG)
    assert changes(world, seconds=1) == ["firing"]
    _, n, examples = told()
    assert (n, len(examples)) == (20, 10)
    world.clock.pass_(minutes=20)
    ingest(world, 100, 20, SHORT)
    assert changes(world, seconds=1) == ["resolved"]
    assert told() == ("resolved", 20, examples)
    ingest(world, 200, 5, SHORT)
    assert changes(world, minutes=2) == []
    assert world.rows(alerts)[0]["updated_at"] == world.clock()
    assert told() == ("resolved", 20, examples)
    world.clock.pass_(minutes=20)
    ingest(world, 300, 15, LONG)
    assert changes(world, seconds=1) == ["firing"]
    status, n, anew = told()
    assert (status, n) == ("firing", 15)
    assert not {*anew} & {*examples}


def test_a_restart_between_any_two_evaluations_changes_nothing(make_world: Callable[..., World]) -> None:
    """Every evaluation is by a stage of its own: pending, firing, kept firing, resolved."""
    world = make_world(TOO_LONG.replace("severity: SEV2", "for: 2m, keep_firing_for: 2m"))
    ingest(world, 0, 20, LONG)
    seen = [changes(world, world.evaluation(), seconds=60) for _ in range(4)]
    ingest(world, 100, 200, SHORT)
    seen += [changes(world, world.evaluation(), seconds=60) for _ in range(4)]
    assert seen == [["pending"], [], ["firing"], [], [], [], ["resolved"], []]


def test_two_evaluators_at_once_tell_each_change_once(make_world: Callable[..., World]) -> None:
    """Who finds that another evaluates leaves."""
    world = make_world()
    for first, output, minutes in ((0, LONG, 1), (100, SHORT, 20), (400, LONG, 20)):
        world.clock.pass_(minutes=minutes)
        ingest(world, first, 20, output)
        at, stages = world.clock.pass_(seconds=1), [world.evaluation() for _ in range(4)]
        at_once(*(partial(stage, at) for stage in stages))
    assert world.count(incidents) == 2
    assert [row["status"] for row in world.rows(alerts)] == ["firing"]


def test_a_rule_that_breaks_stops_no_other_and_is_logged_once_a_minute(
    make_world: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    """With its traceback; its alert follows on_error."""
    world = make_world(
        TOO_LONG + TOO_LONG.replace("too-long", "broken").replace("severity", "on_error: firing, severity")
    )
    ingest(world, 0, 20, LONG)
    stage = world.evaluation()
    rules = stage._alerts._rules
    rules[1] = replace(rules[1], detector=Broken(DetectorParams()))
    with caplog.at_level(logging.ERROR, "evalpipe"):
        assert changes(world, stage, seconds=1) == ["firing", "firing"]
        assert changes(world, stage, seconds=1) == []
    assert [r.message.rpartition(": ")[2] for r in caplog.records] == ["a hole"]
    broken = next(row for row in world.rows(alerts) if row["rule"] == "broken")
    assert broken["summary"].endswith("ZeroDivisionError: a hole; on_error = firing makes broken firing")


class Broken:
    """A detector that fails."""

    Params: ClassVar[type[DetectorParams]] = DetectorParams
    version, kind, inputs, criteria = "1", "quality", frozenset({"scores"}), ("length",)

    def __init__(self, params: DetectorParams) -> None:
        """It has none."""

    def look(self, view: View, state: Any) -> tuple[Any, Finding]:
        """It cannot."""
        raise ZeroDivisionError("a hole")


def test_a_dry_run_is_shown_and_opens_nothing(make_world: Callable[..., World]) -> None:
    """Its row says that it is one."""
    world = make_world(TOO_LONG.replace("severity", "dry_run: true, severity"))
    ingest(world, 0, 20, LONG)
    assert changes(world, seconds=1) == ["firing"]
    (row,) = world.rows(alerts)
    assert (row["status"], row["dry_run"], world.count(incidents)) == ("firing", 1, 0)


def test_by_feature_and_release_each_has_an_alert_with_its_place(make_world: Callable[..., World]) -> None:
    """In the columns that people filter by."""
    world = make_world(TOO_LONG.replace("severity", "by: [feature, release], severity"))
    ingest(world, 0, 20, LONG, "chat")
    ingest(world, 100, 20, SHORT, "mail")
    assert changes(world, seconds=1) == ["firing"]
    release = Release("desk", "baseline").release_id
    assert sorted((r["feature"], r["status"], len(r["release_id"]) > 0) for r in world.rows(alerts)) == [
        ("chat", "firing", True), ("mail", "inactive", True),
    ]  # fmt: skip
    assert {r["release_id"] for r in world.rows(alerts)} == {release}


def test_an_alert_that_nothing_happens_to_is_written_once_a_minute_at_the_most(
    make_world: Callable[..., World],
) -> None:
    """Rules are evaluated twice a second at times."""
    world = make_world()
    ingest(world, 0, 20, SHORT)
    changes(world, seconds=1)
    (before,) = world.rows(alerts)
    ingest(world, 100, 5, SHORT)
    changes(world, seconds=30)
    assert world.rows(alerts) == [before]
    changes(world, seconds=31)
    assert world.rows(alerts)[0]["state"]["n"] == 25


def test_a_new_episode_is_acknowledged_by_nobody(make_world: Callable[..., World]) -> None:
    """Who took the one before did not take this one; while it fires the acknowledgement stays."""
    world = make_world()
    ingest(world, 0, 20, LONG)
    changes(world, seconds=1)
    (row,) = world.rows(alerts)
    with world.store.begin() as tx:
        alerting.save_alert(tx, row["alert_id"], {"acked_by": "ada", "escalation": 2}, world.clock())
    changes(world, seconds=70)
    assert [r["acked_by"] for r in world.rows(alerts)] == ["ada"]
    world.clock.pass_(minutes=20)
    ingest(world, 100, 20, SHORT)
    assert changes(world, seconds=1) == ["resolved"]
    world.clock.pass_(minutes=20)
    ingest(world, 200, 20, LONG)
    assert changes(world, seconds=1) == ["firing"]
    assert [(r["acked_by"], r["escalation"]) for r in world.rows(alerts)] == [("", 0)]


def test_growth_is_taken_with_the_states_that_it_led_to(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash in between gives it to the next evaluation."""
    world = make_world()
    ingest(world, 0, 20, LONG)
    queued = world.count(growths)
    assert queued

    def crash(*_: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(stage_module.alerting, "save_alerts", crash)
        with pytest.raises(ZeroDivisionError):
            changes(world, seconds=1)
    assert (world.count(growths), world.count(alerts)) == (queued, 0)
    assert changes(world, seconds=1) == ["firing"]
    assert world.count(growths) == 0


def test_an_alert_whose_rule_is_taken_away_ends(make_world: Callable[..., World]) -> None:
    """Not at once: another worker may still have the rule, and then it writes the alert each minute."""
    world = make_world()
    ingest(world, 0, 20, LONG)
    changes(world, seconds=1)
    without = make_world(TOO_LONG.replace("too-long", "other"))
    other = without.evaluation()
    assert changes(world, other, seconds=30) == ["firing"]
    for _ in range(12):
        assert changes(world, seconds=60) == []
        assert changes(world, other, seconds=1) == []
    assert changes(world, other, minutes=11) == ["resolved"]
    row = next(row for row in world.rows(alerts) if row["rule"] == "too-long")
    assert (row["status"], row["summary"]) == (
        "resolved", "the rule too-long is gone: nobody evaluates it any more",
    )  # fmt: skip
    assert sorted(incident["resolved_at"] is None for incident in world.rows(incidents)) == [False, True]


KILL = "  - {name: cost, detect: cost, kill_switch: true, by: [feature]}\n"


def test_a_rule_may_throw_the_kill_switch_once(make_world: Callable[..., World]) -> None:
    """In the transaction of its alert, with the hooks told after it; a person who releases it has decided."""
    world, told = make_world(KILL), []
    stage = world.evaluation(publish=lambda service, _: told.append(service))
    rules = stage._alerts._rules
    scope = replace(rules[0].scope, inputs=frozenset({"scores"}), criteria=("length",))
    rules[0] = replace(rules[0], detector=Costly(DetectorParams()), scope=scope)
    ingest(world, 0, 20, LONG)
    assert changes(world, stage, seconds=1) == ["firing"]
    with world.store.read() as tx:
        (kept,) = controls.entries(tx, "desk", "switch")
    assert (kept.body["engaged"], kept.body["feature"]) == (True, "chat")
    assert told == ["desk"]
    changes(world, stage, seconds=5)
    assert told == ["desk"]


class Costly(Broken):
    """Finds a hundred times the usual."""

    kind = "cost"

    def look(self, view: View, state: Any) -> tuple[Any, Finding]:
        """Whatever it sees."""
        return {}, Finding(True, 100.0, 30, "100 times the usual", ratio=100.0)


def test_a_thousand_rules_are_evaluated_in_a_second(make_world: Callable[..., World]) -> None:
    """Over one place each; what nothing happens to is not written."""
    world = make_world("".join(TOO_LONG.replace("too-long", f"rule-{i}") for i in range(1000)))
    ingest(world, 0, 20, SHORT)
    stage = world.evaluation()
    changes(world, stage, seconds=1)
    before = world.rows(alerts)
    with world.store.begin() as tx:
        took = _evaluated(tx, stage, world.clock.pass_(seconds=1))
    assert_quick(took, 2.0)
    assert len(before) == 1000
    assert world.rows(alerts) == before


def _evaluated(tx: Any, stage: Any, now: datetime) -> float:
    import time

    started = time.perf_counter()
    stage._alerts._run(tx, now)
    return time.perf_counter() - started
