"""Anchors on a real database, graded by a judge that moves when it is told to."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from stages import AT, World, at_once, record, records
from typer.testing import CliRunner

from evalpipe.channels.base import Delivery
from evalpipe.judges.config import judge_config, open_judge
from evalpipe.judges.desk import Desk
from evalpipe.notification import to_cloudevent
from evalpipe.pipeline.anchors import Anchors, Ran
from evalpipe.pipeline.maintain import erase_user
from evalpipe.settings import Settings
from evalpipe.stats.judge_shift import REFERENCE_RUNS
from evalpipe.store import anchors, judge_states, labels
from evalpipe.store import anchors as store
from evalpipe.store.anchors import Key, New
from evalpipe.store.labels import Label
from evalpipe.store.tables import (
    alerts,
    anchor_grades,
    decisions,
    judge_calls,
    judge_health,
    judge_spend,
    outbox,
    rollouts,
)
from evalpipe.store.tables import anchors as anchors_table
from evalpipe.store.tables import (
    judge_states as judge_states_table,
)

HOUR = timedelta(hours=1)
JUDGE = "fake:demo?acts=pass&usd_per_mtok=1"
N = 50


class Channel:
    """Keeps nothing: the outbox has it all."""

    def render(self, notification: Any) -> bytes:
        """As a webhook has it."""
        return to_cloudevent(notification)

    def send(self, body: bytes, *, event_id: str, at: Any) -> Delivery:
        """It is never asked to."""
        raise NotImplementedError


@pytest.fixture
def make_world(migrated_url: str, tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Worlds on one database."""
    made: list[World] = []

    def make(**options: Any) -> World:
        made.append(World(migrated_url, tmp_path, **{"judge": JUDGE, **options}))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """A world whose judge passes everything."""
    return make_world()


def stage(world: World, judge: str = JUDGE, **options: Any) -> Anchors:
    """The stage as a worker has it; ``judge`` is what EVALPIPE_JUDGE says."""
    settings = Settings(judge=judge)
    desk = Desk(lambda model: open_judge(replace(judge_config(settings, model), attempts=1)), clock=world.clock)
    return Anchors(world.store, world.cards, desk, clock=world.clock, **{"every": HOUR, **options})


def run(world: World, judge: str = JUDGE, *, force: bool = False, **options: Any) -> list[Ran]:
    """One look of a worker."""
    return asyncio.run(stage(world, judge, **options)(force=force))


def freeze(world: World, n: int = N, *, start: int = 0, criterion: str = "grounded") -> None:
    """So many anchors that people pass."""
    with world.store.begin() as tx:
        found = [New("support", criterion, "pass", 1.0, record(start + i), "labels", "anna") for i in range(n)]
        assert anchors.add(tx, found, world.clock()) == n


def state(world: World) -> dict[str, Any]:
    """The one judge's health."""
    (row,) = world.rows(judge_health)
    return dict(row)


def suspect(world: World) -> str:
    """Make the judge of ``grounded`` suspect; its version."""
    freeze(world)
    for _ in range(4):
        run(world)
        world.clock.pass_(hours=1)
    for _ in range(3):
        run(world, f"{JUDGE}&moved=0.2")
        world.clock.pass_(hours=1)
    assert state(world)["state"] == "suspect"
    return str(state(world)["judge_version"])


def test_a_new_judge_is_graded_at_once_and_then_by_the_clock(world: World) -> None:
    """The reference is four runs; another judge version or prompt has one of its own."""
    freeze(world)
    (first,) = run(world)
    assert (first.state, first.runs, first.n, first.failed, first.changed) == ("healthy", REFERENCE_RUNS, N, 0, True)
    world.clock.pass_(minutes=59)
    assert run(world) == []
    world.clock.pass_(minutes=1)
    (second,) = run(world)
    assert (second.state, second.runs, second.n, second.changed) == ("healthy", 1, N, False)
    (other,) = run(world, "fake:demo?acts=pass,fail")
    assert other.runs == REFERENCE_RUNS
    with world.store.read() as tx:
        assert [row["current"] for row in anchors.health(tx)] == [True, False]


def test_what_is_graded_is_kept_and_paid_by_the_scorecard(world: World) -> None:
    """Each grade, each call, and the money, which counts against the caps of the day."""
    freeze(world, 3)
    (done,) = run(world)
    assert world.count(anchor_grades) == 3 * REFERENCE_RUNS
    calls = world.rows(judge_calls)
    assert [(row["scorecard"], row["outcome"], row["n"]) for row in calls] == [("support", "answered", 12)]
    assert done.cost_usd == pytest.approx(calls[0]["cost_usd"])
    spent = {row["scope"]: row["spent_usd"] for row in world.rows(judge_spend)}
    assert spent == dict.fromkeys(
        ["all", f"judge:{calls[0]['judge']}", "scorecard:support"], pytest.approx(done.cost_usd)
    )


@pytest.mark.parametrize(("moved", "label", "direction"), [(0.2, "pass", "stricter"), (-0.2, "fail", "more lenient")])
def test_a_judge_that_moves_behind_its_name_is_suspect_within_three_runs(
    world: World, moved: float, label: str, direction: str
) -> None:
    """The version says nothing of it; which way it moved is told, and it stays suspect when it moves back."""
    freeze(world)
    judge = f"fake:demo?acts={label}"
    for _ in range(6):
        assert [ran.state for ran in run(world, judge)] == ["healthy"]
        world.clock.pass_(hours=1)
    states = []
    for _ in range(3):
        states += [ran.state for ran in run(world, f"{judge}&moved={moved}")]
        world.clock.pass_(hours=1)
    assert states[-1] == "suspect"
    said = state(world)["reason"]
    whither = "lower" if moved > 0 else "higher"
    assert re.match(
        r"in its latest (run|\d runs) \d+% of \d+ grades of its 50 anchors differ from those at first, and their mean "
        rf"value is 0\.\d\d {whither} \({direction}\); it agreed with people on \d+% of them at first$",
        said,
    ), said
    assert [ran.state for ran in run(world, judge)] == ["suspect"]


def test_a_human_accepts_the_new_behaviour_and_is_remembered(world: World) -> None:
    """The next run is the new reference, against which the judge has not moved."""
    version = suspect(world)
    with world.store.begin() as tx:
        anchors.accept(tx, [Key("support", "grounded", version)], actor="anna", reason="right", now=world.clock())
    assert state(world)["state"] == "unknown"
    (again,) = run(world, f"{JUDGE}&moved=0.2")
    assert (again.state, again.runs) == ("healthy", REFERENCE_RUNS)
    on = "accepted on 2026-03-01"
    assert f"it grades its anchors as when it was {on} (50 of 50 graded in the latest run)" in again.reason
    assert again.reason.endswith(f"% of them since it was {on}")
    (kept,) = state(world)["accepted"]
    assert (kept["actor"], kept["reason"], kept["was"]) == ("anna", "right", "suspect")


@pytest.mark.parametrize("act", ["500", "garbage", "hang"])
def test_a_failed_call_is_no_evidence(world: World, act: str) -> None:
    """Nothing is known of a judge that does not answer, and it is asked again in five minutes."""
    freeze(world, 5)
    judge = f"fake:demo?acts={act}&moved=0.5"
    settings = Settings(judge=judge, judge_timeout_s=0.1)
    desk = Desk(lambda model: open_judge(replace(judge_config(settings, model), attempts=1)), clock=world.clock)
    look = Anchors(world.store, world.cards, desk, every=HOUR, clock=world.clock)
    (done,) = asyncio.run(look())
    assert (done.state, done.n, done.failed, done.changed) == ("unknown", 0, 5, False)
    assert state(world)["tested_at"] is None
    assert asyncio.run(look()) == []
    world.clock.pass_(minutes=5)
    with world.store.begin() as tx:
        tx.connection.execute(judge_states_table.delete())
    assert len(asyncio.run(look())) == 1


def test_a_judge_that_is_stopped_is_not_asked(world: World) -> None:
    """Anchors wait, like all work."""
    freeze(world, 5)
    with world.store.begin() as tx:
        judge_states.stop(tx, open_judge(judge_config(Settings(judge=JUDGE))).version, "bill", "anna", world.clock())
    assert run(world) == []
    assert world.count(judge_calls) == 0


def test_a_run_that_a_cap_could_not_pay_is_put_off(world: World) -> None:
    """Its worst case is looked at before the first call; other scorecards' caps do not matter."""
    freeze(world, 5)
    caps = {"scorecard:support": 0.19, "scorecard:other": 0.0}
    assert run(world, caps=caps, worst_case=lambda *_: 0.01) == []
    assert world.count(judge_calls) == 0
    world.clock.pass_(minutes=5)
    caps["scorecard:support"] = 0.21
    assert len(run(world, caps=caps, worst_case=lambda *_: 0.01)) == 1


def test_two_workers_at_once_grade_the_anchors_once(world: World) -> None:
    """One has the lease; what a worker grades whose lease has run out counts for nothing."""
    freeze(world)
    done = at_once(lambda: run(world), lambda: run(world))
    assert sorted(map(len, done)) == [0, 1]
    assert world.count(anchor_grades) == N * REFERENCE_RUNS
    key, until = Key("support", "grounded", state(world)["judge_version"]), world.clock() + HOUR
    with world.store.begin() as tx:
        assert store.claim(tx, key, world.clock(), until=until, every=HOUR) is None
        assert store.claim(tx, key, world.clock(), until=until, every=HOUR, force=True) is not None
        assert store.claim(tx, key, world.clock(), until=until, every=HOUR, force=True) is None
        assert not store.settle(tx, key, until + HOUR, {"state": "suspect"})


def test_a_run_of_many_anchors_draws_some_of_them(world: World) -> None:
    """The reference is of all, each later run of others."""
    freeze(world, 12)
    run(world, per_run=5)
    assert world.count(anchor_grades) == 12 * REFERENCE_RUNS
    drawn = set()
    for _ in range(8):
        world.clock.pass_(hours=1)
        (done,) = run(world, per_run=5)
        assert done.n == 5
        drawn |= {row["anchor_id"] for row in world.rows(anchor_grades, at=world.clock())}
    assert len(drawn) > 9


def test_another_set_of_anchors_begins_a_new_reference(world: World) -> None:
    """Added or retired; a suspect judge stays suspect."""
    version = suspect(world)
    freeze(world, 5, start=900)
    (done,) = run(world)
    assert (done.state, done.judge, done.runs) == ("suspect", version, 1)
    with world.store.begin() as tx:
        anchors.accept(tx, [Key("support", "grounded", version)], actor="anna", reason="right", now=world.clock())
    run(world)
    with world.store.begin() as tx:
        assert anchors.retire(tx, world.clock(), scorecard="support", criterion="grounded") == N + 5
    assert run(world, force=True) == []
    freeze(world, N)
    (done,) = run(world, force=True)
    assert (done.state, done.runs, done.n) == ("healthy", REFERENCE_RUNS, N)


def test_erasing_a_user_erases_the_anchors_that_were_made_of_their_records(world: World) -> None:
    """Also after the retention of the record itself; others stay."""
    world.ingest(record(1, user_id="u-1"), record(2, user_id="u-2"))
    with world.store.begin() as tx:
        mine = [
            New("support", "grounded", "pass", 1.0, record(i, user_id=f"u-{i % 2}"), "labels", "a") for i in range(4)
        ]
        anchors.add(tx, mine, AT)
        erase_user(tx, "u-1")
    assert {row["user_id"] for row in world.rows(anchors_table)} == {"u-0"}


def say(world: World, i: int, label: str, annotator: str, criterion: str = "grounded") -> None:
    """One label of one person."""
    with world.store.begin() as tx:
        value = {"pass": 1.0, "fail": 0.0}.get(label)
        one = Label(f"r-{i}", "support", criterion, annotator, label, value, "", "api", world.clock())
        labels.add(tx, [one], world.clock())


def test_anchors_are_made_of_labels_on_which_all_agree(world: World) -> None:
    """The labels take turns; what two people label differently, or cannot tell, is none."""
    world.ingest(*records(12))
    for i in range(8):
        say(world, i, "pass", "anna")
    for i, label in ((8, "fail"), (9, "fail"), (10, "fail"), (11, "cannot_tell")):
        say(world, i, label, "anna")
    say(world, 10, "pass", "ben")
    say(world, 5, "pass", "ben")
    with world.store.read() as tx:
        found = anchors.agreed(tx, "support", "grounded", 5)
    assert [(record_id, label) for record_id, label, _ in found] == [
        ("r-8", "fail"), ("r-5", "pass"), ("r-9", "fail"), ("r-0", "pass"), ("r-1", "pass"),
    ]  # fmt: skip


def test_a_suspect_judge_can_only_hold_rollouts(make_world: Callable[..., World]) -> None:
    """What it scored rolls nothing back and lets nothing advance; once it is accepted, decisions go on."""
    world = make_world(judge='fake:demo?rules={"REFUND": "fail"}&acts=pass&usd_per_mtok=1', channels={"one": Channel()})
    freeze(world)
    judge = world.settings.judge
    for moved in ("", "", "", "", "&moved=0.3", "&moved=0.3", "&moved=0.3"):
        run(world, f"{judge}{moved}", force=True)
        world.clock.pass_(minutes=1)
    version = state(world)["judge_version"]
    assert state(world)["state"] == "suspect"

    def arms(start: int) -> None:
        at = world.clock()
        for some in (range(start, start + 30), range(start + 30, start + 60)):
            bad = {"variant": "canary", "output": "REFUND", "captured_at": at}
            world.ingest(*(one for i in some for one in (record(i, captured_at=at), record(i + 1000, **bad))))
        world.drain(concurrency=64)
        world.evaluate(world.clock.pass_(seconds=40))

    arms(0)
    row = world.rows(rollouts)[0]
    assert row["phase"] == "running"
    assert row["state"]["health"][0] == "suspect"
    assert version in row["state"]["health"][1]
    assert row["state"]["outcome"][:2] == ["hold", "judge_suspect"]
    told = [json.loads(event["body"])["data"] for event in world.rows(outbox) if b"decision.hold" in event["body"]]
    assert told[-1]["judge_health"]["judge"] == version
    with world.store.begin() as tx:
        anchors.accept(tx, [Key("support", "grounded", version)], actor="anna", reason="right", now=world.clock())
    arms(200)
    assert world.rows(rollouts)[0]["phase"] == "rolled_back"


@pytest.mark.parametrize(
    ("fallback", "causes"),
    [("", ["judge_outage"]), ("fallback: ['fake:other'], ", [])],
    ids=["alone", "with a fallback"],
)
def test_a_stopped_judge_without_a_fallback_is_an_outage(
    make_world: Callable[..., World], fallback: str, causes: list[str]
) -> None:
    """The rollout holds, and the reason names the judge."""
    card = f"""
name: support
match: {{service: desk}}
criteria:
  - {{name: grounded, judge: {{kind: boolean, {fallback}rubric: "Is it grounded?"}}}}
rollout:
  gates: [{{criterion: grounded, min_canary: 20}}]
"""
    world = make_world(card=card)
    version = open_judge(judge_config(world.settings)).version
    world.ingest(*records(3), *records(3, start=50, variant="canary"))
    with world.store.begin() as tx:
        judge_states.stop(tx, version, "no credit", "anna", world.clock())
    evaluate = world.evaluation(version_of=lambda m: open_judge(judge_config(world.settings, m)).version)
    evaluate(world.clock.pass_(seconds=31))
    found = world.rows(decisions)
    assert [row["cause"] for row in found] == causes
    assert all(version in row["reason"] for row in found)


@pytest.mark.parametrize(
    ("moved", "origin", "words"),
    [
        ("", "product", "the judge's anchors have not moved (50 graded"),
        ("&moved=0.9", "judge", "which explains it: the judge moved"),
        ("&moved=0.2", "both", "the judge and the product moved"),
    ],
)
def test_an_alert_says_whether_the_judge_or_the_product_moved(
    make_world: Callable[..., World], moved: str, origin: str, words: str
) -> None:
    """By the judge's anchors, which were graded meanwhile."""
    world = make_world(judge='fake:demo?rules={"REFUND": "fail"}&acts=pass', channels={"one": Channel()})
    freeze(world)
    for suffix in ("", "", "", "", moved, moved, moved):
        run(world, f"{world.settings.judge}{suffix}", force=True)
        world.clock.pass_(minutes=1)
    world.ingest(*records(40, output="REFUND", captured_at=world.clock()))
    world.drain(concurrency=64)
    world.evaluate(world.clock.pass_(seconds=10))
    (alert,) = world.rows(alerts)
    assert words in alert["summary"]
    assert alert["explanation"]["moved"] == origin


def test_a_healthy_judge_is_told_with_how_many_anchors_it_graded(world: World) -> None:
    """Those whose call failed are no evidence, and are not counted as graded."""
    freeze(world)
    run(world)
    world.clock.pass_(hours=1)
    (ran,) = run(world, f"{JUDGE}&fail_rate=0.3")
    assert 0 < ran.failed < 25
    assert ran.reason.startswith(
        f"it grades its anchors as at first ({50 - ran.failed} of 50 graded in the latest run)"
    )


def test_a_run_in_which_most_calls_fail_is_no_evidence(world: World) -> None:
    """What fails may have to do with the anchor: those that are left need not be like all."""
    freeze(world)
    run(world)
    before = state(world)
    world.clock.pass_(hours=1)
    (ran,) = run(world, f"{JUDGE}&fail_rate=0.85&moved=1")
    assert 25 < ran.failed < 50
    after = state(world)
    assert after["test"] == before["test"]
    assert (ran.state, ran.reason, after["state"]) == (
        "healthy",
        f"too few answered ({ran.failed} calls gave no grade): no evidence",
        "healthy",
    )


@pytest.mark.parametrize(
    ("minutes", "prompt", "words"),
    [(5, "", "before most of these scores"), (1, "?", "of who gave these scores no anchors are graded")],
    ids=["a run in the first half of the window", "another prompt"],
)
def test_an_alert_lays_nothing_at_the_door_of_the_product_by_anchors_of_another_time_or_judge(
    make_world: Callable[..., World], minutes: int, prompt: str, words: str
) -> None:
    """A judge that changed between two runs, or a fallback, made the series fall: the anchors cannot tell."""
    world = make_world(judge='fake:demo?rules={"REFUND": "fail"}&acts=pass', channels={"one": Channel()})
    freeze(world)
    for _ in range(5):
        run(world, world.settings.judge + prompt.replace("?", "&sure=0.7"), force=True)
        world.clock.pass_(minutes=1)
    world.clock.pass_(minutes=minutes)
    world.ingest(*records(40, output="REFUND", captured_at=world.clock()))
    world.drain(concurrency=64)
    world.evaluate(world.clock.pass_(seconds=10))
    (alert,) = world.rows(alerts)
    assert words in alert["summary"]
    assert alert["explanation"]["moved"] == "unknown"


class Terminal:
    """The command line on a world's database."""

    def __init__(self, url: str, folder: Path) -> None:
        self._env = {
            "EVALPIPE_DATABASE_URL": url,
            "EVALPIPE_SCORECARDS": str(folder),
            "EVALPIPE_JUDGE": JUDGE,
            "COLUMNS": "200",
        }

    def __call__(self, *words: str, judge: str = JUDGE) -> Any:
        """Run ``evalpipe judge anchors ...``."""
        from evalpipe.cli.app import app

        env = {**self._env, "EVALPIPE_JUDGE": judge}
        return CliRunner().invoke(app, ["judge", "anchors", *words], env=env)


@pytest.fixture
def terminal(world: World, migrated_url: str, tmp_path: Path) -> Terminal:
    """The command line on the world's database."""
    assert world.cards
    return Terminal(migrated_url, tmp_path)


def test_the_command_line_takes_a_judge_from_its_anchors_to_its_acceptance(terminal: Terminal, tmp_path: Path) -> None:
    """Add, run, see it suspect, accept it with a reason, retire."""
    file = tmp_path / "labelled.jsonl"
    rows = [{"input": f"q {i}", "output": "Yes.", "labels": {"grounded": "pass"}} for i in range(40)]
    rows.append({"input": "q", "output": "No.", "labels": {"grounded": {"anna": "pass", "ben": "fail"}}})
    file.write_text("\n".join(json.dumps(row) for row in rows))
    added = terminal("add", "--criterion", "grounded", "--from", str(file))
    assert added.output == "40 anchors added to support/grounded (40 pass); it has 40\n"
    assert json.loads(terminal("add", "--criterion", "grounded", "--from", str(file), "--json").output)["added"] == 0
    assert terminal("run").exit_code == 0
    terminal("run")
    codes = [terminal("run", judge=f"{JUDGE}&moved=0.5").exit_code for _ in range(2)]
    assert codes[-1] == 1
    (health,) = json.loads(terminal("health", "--json").output)
    assert (health["state"], health["direction"], health["anchors"]) == ("suspect", "stricter", 40)
    assert health["e_value"] > 100
    assert "fail" in terminal("list").output
    accepted = terminal("accept", "--judge", "fake:demo", "--reason", "checked 12 by hand", "--actor", "anna")
    assert "accepted by anna" in accepted.output
    assert isinstance(terminal("accept", "--judge", "fake:demo", "--reason", "again").exception, Exception)
    (health,) = json.loads(terminal("health", "--json").output)
    assert (health["state"], health["accepted"][0]["reason"]) == ("unknown", "checked 12 by hand")
    assert terminal("retire", "--criterion", "grounded").output == "40 anchors retired\n"


def test_what_is_wrong_with_a_file_of_anchors_is_told_by_its_line(terminal: Terminal, tmp_path: Path) -> None:
    """Nothing is added then."""
    file = tmp_path / "bad.jsonl"
    file.write_text(
        '{"output": "Yes.", "labels": {"grounded": "pass"}}\n{"output": "No.", "labels": {"grounded": 7}}\n'
    )
    told = str(terminal("add", "--criterion", "grounded", "--from", str(file)).exception)
    assert f"{file}:2:1: labels:" in told
    assert terminal("list", "--json").output == "[]\n"
    assert "there is no judged criterion 'nothing'" in str(terminal("add", "--criterion", "nothing").exception)
    assert "label some with 'evalpipe label'" in str(terminal("add", "--criterion", "grounded").exception)
