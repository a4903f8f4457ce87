"""Controls from the database to the Redis that hooks poll: latches, log, publishing, rollback, command line, API."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from services import Valkey
from sqlalchemy import insert
from stages import AT, World, at_once, record
from starlette.testclient import TestClient
from stopwatch import assert_quick
from typer.testing import CliRunner

from evalpipe.api.app import make_api
from evalpipe.cli.app import app
from evalpipe.controls import ControlError
from evalpipe.errors import ConfigError
from evalpipe.pipeline.evaluate import Evaluate
from evalpipe.pipeline.maintain import erase_user
from evalpipe.pipeline.publish import Publish
from evalpipe.prices import PriceTable
from evalpipe.settings import Settings
from evalpipe.store import controls, feedback
from evalpipe.store.controls import Kept
from evalpipe.store.queue import Queue
from evalpipe.store.sql import Store
from evalpipe.store.tables import decisions, meters, processes, records
from evalpipe.wiring import now

ONE = PriceTable("aaaaaaaaaaaa", '{"version":"aaaaaaaaaaaa","models":{"m":[1,2,1]}}')
TWO = PriceTable("bbbbbbbbbbbb", '{"version":"bbbbbbbbbbbb","models":{"m":[3,4,3]}}')
SPLIT = {"weights": {"canary": 5, "baseline": 95}}
KEY = {"Authorization": "Bearer key-one"}


class Plane:
    """A migrated database and a Redis with the control plane between them.

    Args:
        url: of a migrated database.
        redis_url: of an empty Redis.
    """

    def __init__(self, url: str, redis_url: str) -> None:
        self.url = url
        self.redis_url = redis_url
        self.store = Store(url)
        self.queue = Queue(redis_url)
        self.prices = ONE
        self.publish = Publish(self.store, self.queue, lambda _: self.prices)

    def put(self, kind: str, name: str, body: dict[str, Any], *, at: datetime = AT, **who: str) -> Kept:
        """Set a control of the service ``desk``."""
        who = {"actor": "ada", "reason": "a test", **who}
        with self.store.begin() as tx:
            return controls.put(tx, "desk", kind, name, body, **who, now=at)

    def do(self, change: Callable[..., Any], *args: Any, at: datetime = AT, **who: str) -> Any:
        """Another change of a control of that service."""
        who = {"actor": "ada", "reason": "a test", **who}
        with self.store.begin() as tx:
            return change(tx, "desk", *args, **who, now=at)

    def all(self, kind: str | None = None) -> list[Kept]:
        """The controls as they stand."""
        with self.store.read() as tx:
            return controls.entries(tx, "desk", kind)

    def log(self) -> list[dict[str, Any]]:
        """The changes, oldest first."""
        with self.store.read() as tx:
            return controls.changes(tx, "desk")[::-1]

    def document(self) -> dict[str, Any]:
        """What the database says that hooks should read."""
        with self.store.read() as tx:
            return controls.document(tx, "desk", AT)

    def published(self) -> tuple[int, dict[str, Any], dict[str, Any] | None]:
        """What hooks read: revision, document, prices."""
        found = self.queue.client.hgetall("evalpipe.control:desk")
        prices = found.get(b"prices")
        return int(found[b"revision"]), json.loads(found[b"document"]), prices and json.loads(prices)

    def close(self) -> None:
        """Close the connections."""
        self.store.close()
        self.queue.close()


@pytest.fixture
def plane(migrated_url: str, redis_url: str) -> Iterator[Plane]:
    """The control plane, without controls."""
    made = Plane(migrated_url, redis_url)
    yield made
    made.close()


def test_the_document_has_everything_in_the_form_that_hooks_read(plane: Plane) -> None:
    """Field by field, as agreed with the hooks."""
    plane.put("switch", "stop", {"feature": "agent", "incident": "https://example.com/1"}, reason="cost x40")
    plane.put("budget", "user-day", {"per": "user", "limit": 200_000, "unit": "tokens", "window": "day"})
    plane.put("weights", "refund", {**SPLIT, "shadow": {"rate": 0.1, "per_minute": 60}})
    plane.put("rate", "all", {"rate": 0.1})
    assert plane.document() == {
        "schema": 1, "revision": 4, "service": "desk", "published_at": AT.timestamp(),
        "switches": [{"name": "stop", "feature": "agent", "segment": "", "variant": "", "environment": "",
                      "engaged": True, "reason": "cost x40", "incident": "https://example.com/1", "fail": "open",
                      "max_staleness_s": 300}],
        "budgets": [{"name": "user-day", "per": "user", "feature": "", "segment": "", "environment": "",
                     "limit": 200_000, "unit": "tokens", "window": "day", "lease": 0.02, "reason": "a test",
                     "incident": "", "fail": "open", "max_staleness_s": 300}],
        "rollouts": [{"name": "refund", "environment": "", "features": [], "baseline": "baseline",
                      "weights": {"canary": 5, "baseline": 95}, "sample": 1.0,
                      "shadow": {"rate": 0.1, "per_minute": 60}}],
        "rates": [{"feature": "", "variant": "", "environment": "", "rate": 0.1}],
        "prices": "",
    }  # fmt: skip
    assert list(plane.document()["rollouts"][0]["weights"]) == ["canary", "baseline"]


def test_every_change_is_logged_with_who_why_before_and_after(plane: Plane) -> None:
    """Append-only: what was removed is still there."""
    plane.put("switch", "stop", {}, actor="ada", reason="cost")
    plane.do(controls.release, "stop", actor="bob", reason="fixed", at=AT + timedelta(minutes=5))
    plane.do(controls.remove, "switch", "stop", actor="bob", reason="tidy")
    told = [(c["revision"], c["action"], c["actor"], c["reason"]) for c in plane.log()]
    assert sorted(told) == [(1, "engage", "ada", "cost"), (2, "release", "bob", "fixed"), (3, "remove", "bob", "tidy")]
    by_revision = {c["revision"]: c for c in plane.log()}
    assert by_revision[1]["before"] is None
    assert by_revision[2]["before"]["body"]["engaged"] is True
    assert by_revision[2]["after"]["body"]["engaged"] is False
    assert by_revision[2]["at"] == AT + timedelta(minutes=5)
    assert by_revision[3]["after"] is None
    assert plane.all() == []
    assert plane.document()["revision"] == 3


def test_revisions_have_neither_gaps_nor_doubles_when_many_write_at_once(plane: Plane) -> None:
    """Hooks tell by it whether something is new."""
    at_once(*[lambda i=i: [plane.put("rate", f"r{i}", {"rate": n / 10}) for n in range(3)] for i in range(4)])
    with plane.store.read() as tx:
        assert sorted(c["revision"] for c in controls.changes(tx, "desk")) == list(range(1, 13))
    assert plane.document()["revision"] == 12


@pytest.mark.parametrize("who", [{"actor": ""}, {"reason": ""}, {"actor": "evalpipe"}])
def test_a_kill_switch_is_latched(plane: Plane, who: dict[str, str]) -> None:
    """Neither engaging nor releasing works without a person and a reason; an engaged one cannot be removed."""
    with pytest.raises(ControlError):
        plane.put("switch", "stop", {}, **who)
    plane.put("switch", "stop", {})
    for change in (
        lambda: plane.do(controls.release, "stop", **who),
        lambda: plane.put("switch", "stop", {"engaged": False}, **who),
        lambda: plane.do(controls.remove, "switch", "stop"),
    ):
        with pytest.raises(ControlError):
            change()
    assert plane.document()["switches"][0]["engaged"] is True
    plane.do(controls.release, "stop")
    with pytest.raises(ControlError, match="is not engaged"):
        plane.do(controls.release, "stop")


def test_what_is_not_there_is_said_with_what_there_is(plane: Plane) -> None:
    """A typing error at 2 am costs a second."""
    plane.put("weights", "refund", {**SPLIT, "environment": "staging"})
    with pytest.raises(ControlError, match=r"weights 'refun' of service 'desk': there is none; .*refund in staging"):
        plane.do(controls.remove, "weights", "refun")


def test_a_name_may_mean_another_thing_in_each_environment_but_for_budgets(plane: Plane) -> None:
    """Each has its own latch; what a budget spends is counted by its name alone."""
    plane.put("weights", "refund", SPLIT)
    plane.put("weights", "refund", {**SPLIT, "environment": "staging"})
    assert [r["environment"] for r in plane.document()["rollouts"]] == ["", "staging"]
    budget = {"per": "service", "limit": 1, "unit": "usd", "window": "hour"}
    plane.put("budget", "hourly", budget)
    with pytest.raises(ControlError, match="another name"):
        plane.put("budget", "hourly", {**budget, "environment": "staging"})


def test_an_older_document_never_replaces_a_newer_one(plane: Plane) -> None:
    """However late a process is; the same one is written again."""
    plane.put("rate", "all", {"rate": 0.1})
    older = plane.document()
    plane.put("rate", "all", {"rate": 0.2})
    assert plane.publish.one("desk", AT)
    assert plane.queue.publish("desk", older) == 2
    revision, document, _ = plane.published()
    assert (revision, document["rates"][0]["rate"]) == (2, 0.2)
    plane.publish.one("desk", AT + timedelta(seconds=5))
    assert plane.published()[1]["published_at"] == AT.timestamp() + 5


def put_newer(plane: Plane, revision: object) -> None:
    """What Redis has from before the database was restored."""
    plane.queue.client.hset("evalpipe.control:desk", mapping={"revision": str(revision), "document": "{}"})


def test_after_a_restored_database_a_switch_reaches_the_hooks(plane: Plane, caplog: pytest.LogCaptureFixture) -> None:
    """The document overtakes what Redis has from before; the log says so, and by whom."""
    plane.put("rate", "all", {"rate": 0.1})
    put_newer(plane, 40)
    plane.put("switch", "stop", {})
    assert plane.publish.soon("desk", AT)
    revision, document, _ = plane.published()
    assert (revision, document["revision"], document["switches"][0]["engaged"]) == (41, 41, True)
    last = max(plane.log(), key=lambda c: c["revision"])
    assert (last["kind"], last["action"], last["actor"], last["revision"]) == ("document", "overtake", "evalpipe", 41)
    assert "revision 40 and the database is at 2" in last["reason"]
    assert "is overtaken" in caplog.text
    assert plane.publish.soon("desk", AT)
    assert plane.put("rate", "all", {"rate": 0.2}).revision == 42


def test_the_stage_itself_overtakes_what_is_in_redis(plane: Plane) -> None:
    """Nobody has to change anything after a restore; prices come too."""
    plane.put("switch", "stop", {})
    put_newer(plane, 40)
    plane.publish(AT)
    revision, document, prices = plane.published()
    assert (revision, document["switches"][0]["engaged"], prices) == (42, True, json.loads(ONE.text))


@pytest.mark.parametrize("odd", ["", "x", "1e300", "nan"])
def test_a_revision_in_redis_that_is_none_is_written_over(plane: Plane, odd: str) -> None:
    """Whoever wrote it, a switch must reach the hooks."""
    plane.put("switch", "stop", {})
    put_newer(plane, odd)
    assert plane.publish.soon("desk", AT)
    assert plane.published()[0] == 1


def test_who_was_overtaken_by_another_change_publishes_the_newer_document(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is no restored database: no revision is added."""
    plane.put("rate", "all", {"rate": 0.1})
    read = plane.publish._document

    def quicker(service: str, now: datetime) -> dict[str, Any]:
        document = read(service, now)
        monkeypatch.undo()
        plane.put("rate", "all", {"rate": 0.2})
        Publish(plane.store, plane.queue, lambda _: ONE).one("desk", AT)
        return document

    monkeypatch.setattr(plane.publish, "_document", quicker)
    assert plane.publish.one("desk", AT)
    assert plane.published()[0] == 2


@pytest.fixture
def rival(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another control plane writes to the same Redis: an ever newer document, each time just before we publish."""
    revisions = itertools.count(1000, 1000)
    publish = Queue.publish

    def overtaken(queue: Queue, *args: Any) -> int:
        put_newer(plane, next(revisions))
        return publish(queue, *args)

    monkeypatch.setattr(Queue, "publish", overtaken)


def test_publishing_is_quick_and_needs_no_prices(plane: Plane) -> None:
    """A command or a request acts at once, without reading the price list."""
    plane.put("switch", "stop", {})
    started = time.perf_counter()
    assert plane.publish.one("desk", AT)
    assert_quick(time.perf_counter() - started, 0.5)
    revision, document, prices = plane.published()
    assert (revision, document["switches"][0]["engaged"], prices) == (1, True, None)


def test_prices_come_with_a_new_revision_so_that_hooks_fetch_them(plane: Plane) -> None:
    """Also for a service that has no controls; another table waits, so that two workers do not quarrel."""
    plane.put("switch", "stop", {})
    plane.publish(AT)
    revision, document, prices = plane.published()
    assert (revision, document["prices"], prices) == (2, ONE.version, json.loads(ONE.text))
    plane.publish(AT + timedelta(seconds=5))
    assert plane.published()[0] == 2
    plane.prices = TWO
    other = Publish(plane.store, plane.queue, lambda _: TWO)
    other(AT + timedelta(minutes=1))
    assert plane.published()[2] == json.loads(ONE.text)
    other(AT + timedelta(minutes=11))
    revision, document, prices = plane.published()
    assert (revision, document["prices"], prices) == (3, TWO.version, json.loads(TWO.text))
    assert [c["kind"] for c in plane.log()] == ["switch"]


def test_prices_that_cannot_be_read_hold_no_switch_back(plane: Plane, tmp_path: Path) -> None:
    """The operator's file is broken; the document goes out all the same."""
    from evalpipe.prices import price_table

    plane.put("switch", "stop", {})
    broken = Publish(plane.store, plane.queue, lambda at: price_table(at, tmp_path / "none.yaml"))
    assert broken(AT) == 1
    assert plane.published()[1]["switches"][0]["engaged"] is True


def test_a_redis_that_lost_its_data_gets_it_back(plane: Plane) -> None:
    """Document and prices, under a revision that no hook has seen without them."""
    plane.put("switch", "stop", {})
    plane.publish(AT)
    plane.queue.client.flushdb()
    plane.publish.one("desk", AT)
    assert plane.published()[1]["switches"][0]["engaged"] is True
    Publish(plane.store, plane.queue, lambda _: ONE).one("desk", AT)
    plane.publish(AT + timedelta(seconds=5))
    revision, document, prices = plane.published()
    assert (revision, document["revision"], prices) == (3, 3, json.loads(ONE.text))


def heard_of(plane: Plane, table: Any, at: datetime) -> None:
    """A process of the service ``desk``, or what one counted, was heard of then."""
    row = {"process_id": str(at), "service": "desk", "sent_at": at, "started_at": at, "hour_at": at, "release_id": "r",
           "feature": "", "shed_by_reason": {}, "blocked": {}, "finish_reasons": {}, "feedback": {}}  # fmt: skip
    with plane.store.begin() as tx:
        tx.connection.execute(insert(table).values({c.name: row[c.name] for c in table.c if c.name in row}))


@pytest.mark.parametrize("table", [processes, meters], ids=str)
def test_a_service_that_is_active_has_a_document(plane: Plane, table: Any) -> None:
    """Prices reach hooks before anybody sets a control; a name that was used long ago costs nothing."""
    heard_of(plane, table, AT - timedelta(hours=2))
    assert plane.publish(AT) == 0
    heard_of(plane, table, AT - timedelta(minutes=50))
    assert plane.publish(AT) == 1
    assert plane.published()[2] == json.loads(ONE.text)
    assert plane.publish(AT + timedelta(hours=3)) == 0


def test_a_service_whose_controls_were_removed_is_told_so_however_long_redis_was_away(plane: Plane) -> None:
    """Its hooks obey what they read last, and who is silent may come back."""
    plane.put("rate", "all", {"rate": 0.1})
    plane.publish(AT)
    plane.do(controls.remove, "rate", "all")
    assert plane.publish(AT + timedelta(days=2)) == 1
    assert plane.published()[1]["rates"] == []


def test_prices_are_sent_once_and_again_where_they_are_missing(plane: Plane) -> None:
    """They are most of what there is to send, every few seconds, for every service."""
    plane.prices = PriceTable(
        "cccccccccccc", json.dumps({"version": "cccccccccccc", "models": {"m" * 100_000: [1, 2]}})
    )
    plane.put("switch", "stop", {})
    plane.publish(AT)

    def received() -> int:
        return int(plane.queue.info()["total_net_input_bytes"])

    before = received()
    for _ in range(5):
        plane.publish(AT)
    assert received() - before < 20_000
    plane.queue.client.hdel("evalpipe.control:desk", "prices")
    plane.publish(AT)
    assert plane.published()[2] == json.loads(plane.prices.text)


# Rollback


def bad_canary(world: World) -> None:
    """Both arms side by side, graded; the canary promises refunds."""
    for start in range(0, 60, 30):
        world.ingest(*[
            record(i + arm, variant=variant, output=output, captured_at=AT + timedelta(seconds=2 * i))
            for i in range(start, start + 30)
            for arm, variant, output in ((0, "baseline", "Within 30 days."), (1000, "canary", "REFUND"))
        ])  # fmt: skip
    world.drain(concurrency=64)
    world.clock.pass_(minutes=3)


@pytest.fixture
def rollout(plane: Plane, tmp_path: Path) -> Iterator[tuple[Plane, World]]:
    """A canary that is bad, and what evaluates it."""
    world = World(plane.url, tmp_path)
    world.evaluate = Evaluate(world.store, world.cards, {}, source="/test", publish=plane.publish.soon)
    bad_canary(world)
    yield plane, world
    world.close()


def test_a_rollback_takes_the_canarys_weight_away_and_tells_the_hooks_at_once(rollout: tuple[Plane, World]) -> None:
    """In the decision's transaction, latched, by evalpipe, with the decision's reason; other entries stay."""
    plane, world = rollout
    plane.put("weights", "refund", {"weights": {"canary": 5, "other": 15, "baseline": 80}})
    plane.put("weights", "unrelated", {"weights": {"other": 5, "baseline": 95}})
    plane.put("weights", "elsewhere", {**SPLIT, "environment": "staging"})
    made = world.evaluate(world.clock()).decisions
    rollback = next(d for d in made if d.action == "rollback")
    told = {r["name"]: r["weights"] for r in plane.published()[1]["rollouts"]}
    assert told == {
        "refund": {"canary": 0, "other": 15, "baseline": 85},
        "unrelated": {"other": 5, "baseline": 95},
        "elsewhere": {"canary": 5, "baseline": 95},
    }
    last = plane.log()[-1]
    assert (last["action"], last["actor"], last["reason"]) == ("rollback", "evalpipe", rollback.reason)
    assert last["after"]["latched"] == {"canary": rollback.reason}
    world.evaluate(world.clock.pass_(seconds=40))
    assert plane.log()[-1] == last


def test_a_decision_and_its_weights_are_one_transaction(
    rollout: tuple[Plane, World], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the weights cannot be written, nothing was decided and the log says why; afterwards both happen."""
    plane, world = rollout
    plane.put("weights", "refund", SPLIT)
    with monkeypatch.context() as patch:
        patch.setattr("evalpipe.store.controls._log", lambda *_, **__: 1 / 0)
        world.evaluate(world.clock())
    assert "division by zero" in caplog.text
    assert world.rows(decisions, action="rollback") == []
    assert plane.all("weights")[0].body["weights"] == SPLIT["weights"]
    world.evaluate(world.clock())
    assert len(world.rows(decisions, action="rollback")) == 1
    assert plane.all("weights")[0].body["weights"] == {"canary": 0, "baseline": 100}


def test_a_canary_that_was_rolled_back_waits_for_a_person(rollout: tuple[Plane, World]) -> None:
    """Setting weights or removing them does not undo it; resuming does, with name and reason."""
    plane, world = rollout
    plane.put("weights", "refund", {"weights": {"canary": 100, "baseline": 0}})
    world.evaluate(world.clock())
    assert plane.all("weights")[0].body["weights"] == {"canary": 0, "baseline": 100}
    plane.put("weights", "refund", {"weights": {"canary": 0, "baseline": 1}, "sample": 0.5})
    for change in (
        lambda: plane.put("weights", "refund", SPLIT),
        lambda: plane.do(controls.remove, "weights", "refund"),
        lambda: plane.do(controls.resume, "refund", reason=""),
        lambda: plane.do(controls.resume, "refund", actor="evalpipe"),
    ):
        with pytest.raises(ControlError):
            change()
    kept = plane.do(controls.resume, "refund", "", {"canary": 1, "baseline": 99}, reason="the prompt is fixed")
    assert (kept.body["weights"]["canary"], kept.body["sample"], kept.latched) == (1, 0.5, {})
    plane.put("weights", "refund", SPLIT)
    with pytest.raises(ControlError, match="nothing was rolled back"):
        plane.do(controls.resume, "refund")


def test_a_rollback_stands_while_redis_is_away(migrated_url: str, valkey: Valkey, tmp_path: Path) -> None:
    """It is committed; the stage tells the hooks when it can."""
    plane = Plane(migrated_url, valkey.url)
    world = World(migrated_url, tmp_path)
    world.evaluate = Evaluate(world.store, world.cards, {}, source="/test", publish=plane.publish.soon)
    plane.put("weights", "refund", SPLIT)
    bad_canary(world)
    valkey.kill()
    assert "rollback" in {d.action for d in world.evaluate(world.clock()).decisions}
    with pytest.raises(redis.RedisError):
        plane.publish(AT)
    valkey.start()
    plane.publish(AT)
    assert plane.published()[1]["rollouts"][0]["weights"] == {"canary": 0, "baseline": 100}
    plane.close()
    world.close()


# The command line


@pytest.fixture
def run(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run ``evalpipe`` with these words; its answer as JSON, or the error."""
    monkeypatch.setenv("EVALPIPE_DATABASE_URL", plane.url)
    monkeypatch.setenv("EVALPIPE_REDIS_URL", plane.redis_url)
    monkeypatch.setenv("LOGNAME", "ada")

    def call(*words: str) -> Any:
        done = CliRunner().invoke(app, [*words, "--json"])
        if done.exit_code:
            return str(done.exception) if isinstance(done.exception, Exception) else done.output
        return json.loads(done.stdout)

    return call


def test_the_command_line_sets_changes_and_removes_all_four(plane: Plane, run: Callable[..., Any]) -> None:
    """Each acts at once; what is not given stays; the actor is who runs it."""
    engaged = run("switch", "engage", "desk", "stop", "--feature", "agent", "--reason", "cost x40")
    assert (engaged["published"], engaged["control"]["actor"]) == (True, "ada")
    assert plane.published()[1]["switches"][0]["engaged"] is True
    run("switch", "release", "desk", "stop", "--reason", "fixed")
    again = ["switch", "engage", "desk", "stop", "--reason", "again"]
    assert run(*again, "--feature", "agent")["control"]["feature"] == "agent"
    run("budget", "set", "desk", "day", "--per", "user", "--limit", "200", "--unit", "tokens", "--window", "day")
    assert run("budget", "set", "desk", "day", "--limit", "300")["control"]["per"] == "user"
    run("weights", "set", "desk", "refund", "canary=5", "baseline=95", "--sample", "0.5", "--shadow-rate", "0.1")
    changed = run("weights", "set", "desk", "refund", "canary=20", "baseline=80")["control"]
    assert (changed["weights"]["canary"], changed["sample"], changed["shadow"]["rate"]) == (20, 0.5, 0.1)
    run("rate", "set", "desk", "agent", "20%", "--feature", "agent", "--actor", "bob")
    document = plane.published()[1]
    assert (document["budgets"][0]["limit"], document["rates"][0]["rate"]) == (300, 0.2)
    assert [len(run(kind, "list", "desk")) for kind in ("switch", "budget", "weights", "rate")] == [1, 1, 1, 1]
    for kind in ("budget", "weights", "rate"):
        assert run(kind, "remove", "desk", run(kind, "list")[0]["name"])["published"] is True
    assert [c["actor"] for c in run("control", "log", "desk")] == ["ada", "ada", "ada", "bob", *["ada"] * 7]
    assert plane.published()[1]["revision"] == 11
    for kind in ("switch", "budget", "weights", "rate"):
        assert CliRunner().invoke(app, [kind, "list"]).exit_code == 0


def test_the_command_line_says_what_is_wrong(plane: Plane, run: Callable[..., Any]) -> None:
    """In one line, with the value and what to write."""
    assert "--reason" in run("switch", "engage", "desk", "stop")
    assert "'canary' is no share" in run("weights", "set", "desk", "refund", "canary")
    assert "no 'baseline'" in run("weights", "set", "desk", "refund", "canary=5")
    assert "'x' is no rate" in run("rate", "set", "desk", "all", "x")
    assert "unit: is missing" in run("budget", "set", "desk", "day", "--per", "user", "--limit", "1")
    assert "is engaged" not in run("switch", "remove", "desk", "stop", "--reason", "r")
    assert plane.log() == []


def test_the_command_line_resumes_what_was_rolled_back(plane: Plane, run: Callable[..., Any]) -> None:
    """And says so, where somebody raises it without."""
    plane.put("weights", "refund", SPLIT)
    with plane.store.begin() as tx:
        controls.roll_back(tx, "desk", "production", "canary", reason="worse by 9 %", now=now())
    assert "weights resume desk refund" in run("weights", "set", "desk", "refund", "canary=5", "baseline=95")
    assert "ROLLED BACK (worse by 9 %)" in CliRunner().invoke(app, ["weights", "list"], env={"COLUMNS": "200"}).output
    done = run("weights", "resume", "desk", "refund", "canary=1", "baseline=99", "--reason", "fixed")
    assert (done["control"]["weights"]["canary"], done["control"]["latched"]) == (1, {})


def test_without_redis_the_command_says_that_no_hook_knows(
    plane: Plane, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept, and the exit code is not 0."""
    monkeypatch.setenv("EVALPIPE_REDIS_URL", "redis://127.0.0.1:1/0")
    assert "no hook knows yet" in run("switch", "engage", "desk", "stop", "--reason", "fire")
    assert plane.all()[0].body["engaged"] is True


@pytest.mark.usefixtures("rival")
def test_where_hooks_keep_another_document_the_command_fails_and_the_api_says_so(
    plane: Plane, run: Callable[..., Any], client: TestClient
) -> None:
    """It is kept, and not called published."""
    assert "no hook knows yet, because Redis has newer control documents of 'desk'" in run(
        "switch", "engage", "desk", "stop", "--reason", "fire"
    )
    body = {"actor": "ada", "control": {"rate": 0.1}}
    assert client.put("/v1/controls/desk/rate/all", json=body).json()["published"] is False
    assert [kept.kind for kept in plane.all()] == ["rate", "switch"]


def test_two_that_change_different_fields_at_once_lose_nothing(plane: Plane) -> None:
    """What a change leaves as it was is read under the lock under which it is written."""
    plane.put("budget", "day", {"per": "user", "limit": 1, "unit": "tokens", "window": "day"})
    for number in range(2, 12):
        fields = ({"limit": number}, {"feature": f"f{number}"}, {"segment": f"s{number}"})
        at_once(*[lambda given=given: plane.do(controls.amend, "budget", "day", "", given) for given in fields])
        body = plane.all()[0].body
        assert (body["limit"], body["feature"], body["segment"]) == (number, f"f{number}", f"s{number}")


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("yes", [[], ["--yes"]])
def test_nobody_can_be_erased_by_an_empty_key(plane: Plane, tmp_path: Path, yes: list[str]) -> None:
    """It is the key of all whose application gave none."""
    world = World(plane.url, tmp_path)
    world.ingest(record(1, user_id="", output="KEEP"), record(2, user_id="ann"))
    done = CliRunner().invoke(app, ["erase", "--user", "", *yes])
    assert done.exit_code
    assert "no user is given" in str(done.exception)
    for erase in (erase_user, feedback.erase):
        with pytest.raises(ConfigError, match="no user is given"), plane.store.begin() as tx:
            erase(tx, "")
    assert [row["payload"] is None for row in world.rows(records)] == [False, False]
    world.close()


# The API


@pytest.fixture
def client(plane: Plane) -> Iterator[TestClient]:
    """The API over the same database and Redis, with a key."""
    settings = Settings(database_url=plane.url, redis_url=plane.redis_url, api_keys=("key-one",))
    with TestClient(make_api(settings), raise_server_exceptions=False, headers=KEY) as opened:
        yield opened


def test_the_api_sets_lists_releases_and_removes(plane: Plane, client: TestClient) -> None:
    """Published before it answers; the log has it all."""
    body = {"actor": "ada", "reason": "cost x40", "control": {"feature": "agent"}}
    done = client.put("/v1/controls/desk/switch/stop", json=body)
    assert (done.status_code, done.json()["published"], done.json()["revision"]) == (200, True, 1)
    assert plane.published()[1]["switches"][0]["reason"] == "cost x40"
    (found,) = client.get("/v1/controls", params={"service": "desk"}).json()["controls"]
    assert (found["kind"], found["name"], found["control"]["feature"], found["actor"]) == (
        "switch", "stop", "agent", "ada")  # fmt: skip
    assert client.get("/v1/controls", params={"kind": "rate"}).json() == {"controls": []}
    who = {"actor": "bob", "reason": "fixed"}
    released = client.post("/v1/controls/desk/switch/stop/release", json=who).json()
    assert released["control"]["control"]["engaged"] is False
    assert client.delete("/v1/controls/desk/switch/stop", params=who).json()["control"] is None
    assert plane.published()[1]["switches"] == []
    changes = client.get("/v1/control-changes", params={"service": "desk"}).json()["changes"]
    assert [c["action"] for c in changes] == ["remove", "release", "engage"]
    assert datetime.fromisoformat(changes[0]["at"]).tzinfo == UTC


def test_the_api_refuses_in_words(plane: Plane, client: TestClient) -> None:
    """What, where, which value, what to do; latches are a conflict, what is not there a 404."""
    path = "/v1/controls/desk/weights/refund"
    nobody = client.put(path, json={"actor": "", "control": SPLIT})
    assert (nobody.status_code, nobody.json()["error"]["what"]) == (422, "an actor is needed")
    wrong = client.put(path, json={"actor": "ada", "control": {"weights": {"canary": -1, "baseline": 1}}}).json()
    assert wrong["error"] == {
        "what": "must be at least 0, not -1", "where": "weights 'refund' of service 'desk', weights.canary",
        "value": -1, "advice": "its fields are: environment, weights, baseline, features, sample, shadow",
    }  # fmt: skip
    assert client.put("/v1/controls/desk/flag/x", json={"actor": "a", "control": {}}).status_code == 422
    assert client.delete(path, params={"actor": "ada"}).status_code == 404
    plane.put("weights", "refund", SPLIT)
    with plane.store.begin() as tx:
        controls.roll_back(tx, "desk", "production", "canary", reason="worse", now=now())
    assert client.put(path, json={"actor": "ada", "control": SPLIT}).status_code == 409
    assert client.delete(path, params={"actor": "ada"}).status_code == 409
    assert client.post(f"{path}/resume", json={"actor": "ada"}).status_code == 422
    resumed = client.post(f"{path}/resume", json={"actor": "ada", "reason": "ok", "weights": SPLIT["weights"]})
    assert resumed.json()["control"]["control"]["weights"] == SPLIT["weights"]
    assert client.get("/v1/controls", headers={"Authorization": "Bearer no"}).status_code == 401


def test_a_change_over_the_api_stands_while_redis_is_away(plane: Plane) -> None:
    """The answer says that no hook knows yet."""
    settings = Settings(database_url=plane.url, redis_url="redis://127.0.0.1:1/0", api_keys=("key-one",))
    with TestClient(make_api(settings), headers=KEY) as client:
        done = client.put("/v1/controls/desk/rate/all", json={"actor": "ada", "control": {"rate": 0.1}})
    assert (done.status_code, done.json()["published"]) == (200, False)
    assert plane.all()[0].body["rate"] == 0.1
