"""What hooks count on all calls, on its way through the store to whoever reads it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
from sqlalchemy import select
from stages import AT, World

from evalpipe.detectors.view import VALUES
from evalpipe.hook.meter import Meter
from evalpipe.pipeline.measure import Measure
from evalpipe.record import Release
from evalpipe.scorecard.alert_rule import Metered
from evalpipe.store import meter_minutes, meter_slots
from evalpipe.store.meter_slots import calls_between
from evalpipe.store.metered import read_meters, read_processes
from evalpipe.store.sql import Store
from evalpipe.store.tables import dead_letters

BASELINE = Release(service="desk", prompt="p7")
CANARY = Release(service="desk", variant="canary", prompt="p8")


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    """A migrated database, SQLite or PostgreSQL."""
    store = Store(migrated_url)
    yield store
    store.close()


class Process:
    """A process with a hook: what it counts, and the messages it sends."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.meter = Meter(lambda *_: None, BASELINE)
        self.sequence = 0

    def call(
        self, release: Release = BASELINE, latency_ms: float = 100.0, head: str = "Yes.", reason: str = "stop",
        user: str = "", cost: float = 0.25,
    ) -> None:  # fmt: skip
        """One call."""
        at = AT.timestamp()
        self.meter.pending.append(
            (release, "refunds", at, False, latency_ms, False, 10, 5, 4, cost, 20.0, "m", reason, head, user)
        )

    def message(self, *, ended: bool = False, after_s: float | None = None) -> str:
        """The next meter message, sent so long after ``AT``."""
        self.sequence += 1
        at = AT.timestamp() + (self.sequence if after_s is None else after_s)
        said = {"given": 2, "enqueued": 1, "shed": 1}
        return self.meter.message(hook="0.1.0", process=self.name, seq=self.sequence, sent_at=at, started_at=at,
                                  service="desk", ended=ended, feedback=said)  # fmt: skip


def test_the_meters_of_all_processes_are_one_picture_by_release_and_feature(store: Store) -> None:
    """Counts add up, sketches merge, rates are of what they are rates of; a repeated message changes nothing."""
    measure = Measure(store)
    first, second = Process("host:1:a"), Process("host:2:b")
    for latency_ms in range(1, 101):
        first.call(latency_ms=float(latency_ms))
        second.call(latency_ms=float(100 + latency_ms), head="I'm sorry, but I can't help with that.")
    second.call(CANARY, reason="length")
    second.meter.blocked.append((CANARY, "refunds", AT.timestamp(), "budget"))
    for process in (first, second):
        text = process.message()
        assert measure(text, AT) == measure(text, AT)
    with store.read() as tx:
        baseline, canary = (m.as_dict() for m in read_meters(tx, since=AT))
        assert [m.key["variant"] for m in read_meters(tx, since=AT, variant="canary", feature="refunds")] == ["canary"]
        assert read_meters(tx, since=AT + timedelta(hours=1)) == []
    assert (baseline["calls"], baseline["input_tokens"], baseline["cached_tokens"]) == (200, 2000, 800)
    assert (baseline["cost_usd"], baseline["screened"], baseline["refusal_rate"]) == (50.0, 200, 0.5)
    assert baseline["latency_ms"]["p50"] == pytest.approx(100.0, rel=0.01)
    assert baseline["latency_ms"]["p99"] == pytest.approx(198.0, rel=0.01)
    assert baseline["ttft_ms"]["p50"] == pytest.approx(20.0, rel=0.01)
    assert (canary["variant"], canary["blocked"], canary["finish_reasons"]) == ("canary", {"budget": 1}, {"length": 1})
    assert (canary["calls"], canary["error_rate"]) == (1, 0.0)


def test_a_process_that_fell_silent_is_told_from_one_that_ended(store: Store) -> None:
    """By its goodbye; messages that did not arrive are seen by their numbers."""
    measure = Measure(store)
    gone, ended, alive = Process("gone"), Process("ended"), Process("alive")
    for process in (gone, ended, alive):
        process.call()
        measure(process.message(), AT)
    measure(ended.message(ended=True), AT)
    alive.message()  # lost on its way
    newest = alive.message()
    measure(newest, AT)
    measure(newest, AT)
    with store.read() as tx:
        now = AT + timedelta(seconds=62)
        rows = {row["process_id"]: row for row in read_processes(tx, since=AT, now=now, service="desk")}
        assert read_processes(tx, since=AT, now=now, service="other") == []
    assert {name: row["state"] for name, row in rows.items()} == {
        "gone": "silent", "ended": "ended", "alive": "running"}  # fmt: skip
    assert {name: row["missing"] for name, row in rows.items()} == {"gone": 0, "ended": 0, "alive": 1}
    assert rows["alive"]["feedback"] == {"given": 2, "enqueued": 1, "shed": 1}


def test_a_meter_message_of_an_older_hook_is_read(store: Store) -> None:
    """What it does not count is zero."""
    text = (
        '{"schema":1,"hook":"0.0.9","process":"p","seq":1,"sent_at":1772359201.0,"started_at":1772359200.0,"rows":[{'
        '"service":"desk","release":{"service":"desk"},"feature":"","hour":1772359200,"calls":3,"sampled":1,'
        '"not_sampled":2,"enqueued":1,"latency":null}]}'
    )
    assert Measure(store)(text, AT).rows == 1
    with store.read() as tx:
        (metered,) = read_meters(tx, since=AT)
        assert tx.connection.scalars(select(dead_letters.c.reason)).all() == []
    assert (metered.sums["calls"], metered.as_dict()["refusal_rate"], metered.as_dict()["ttft_ms"]) == (3, None, None)


def test_growth_is_booked_in_the_minute_it_was_told_in_once(store: Store) -> None:
    """A repeated or overtaken message adds nothing, a lost one is made up for, an hour's end changes nothing."""
    measure, process = Measure(store), Process("p")
    for _ in range(10):
        process.call(latency_ms=100.0)
    first = process.message()
    measure(first, AT)
    process.call(latency_ms=900.0)
    lost = process.message()
    process.call(latency_ms=900.0, head="I'm sorry, but I can't help with that.")
    newest = process.message()
    for text in (newest, lost, first, newest):
        measure(text, AT)
    with store.read() as tx:
        now = AT + timedelta(seconds=90)
        (seen,) = calls_between(tx, AT, now, now).values()
        assert calls_between(tx, now + timedelta(minutes=4), now + timedelta(minutes=5), now) == {}
        (earlier,) = calls_between(tx, AT, now, now + timedelta(hours=3)).values()
        assert seen.value("latency_p99_ms") == pytest.approx(900.0, rel=0.01)
    assert (seen.n, seen.sums["tokens"], seen.sums["cost_squares"], seen.seconds) == (12, 180, 12 * 0.25**2, 90.0)
    assert (earlier.sums, earlier.seconds) == (seen.sums, 60.0)
    assert seen.value("cost_usd_per_minute") == 12 * 0.25 / 1.5
    assert seen.value("refusal_rate") == 1 / 12
    assert seen.value("blocked_per_minute") == 0.0
    with store.begin() as tx:
        meter_minutes.remove(tx, AT + timedelta(days=3))
        meter_slots.remove(tx, AT + timedelta(days=3))
        assert calls_between(tx, AT, now, now) == calls_between(tx, AT, now, now + timedelta(hours=3)) == {}


def grown(store: Store) -> dict[datetime, tuple[int, int, float]]:
    """Calls, tokens and cost by minute."""
    columns = (meter_minutes.meter_minutes.c[name] for name in ("minute_at", "calls", "tokens", "cost_usd"))
    with store.read() as tx:
        return {at: (calls, tokens, cost) for at, calls, tokens, cost in tx.connection.execute(select(*columns))}


def test_after_an_outage_growth_is_spread_over_the_minutes_since_the_message_before(store: Store) -> None:
    """Its parts add up exactly; a message that follows the one before it tells of now, however long that is ago."""
    measure, process = Measure(store), Process("p")
    process.call()
    measure(process.message(), AT)
    process.sequence += 599
    for _ in range(101):
        process.call()
    process.meter.blocked.append((BASELINE, "refunds", AT.timestamp(), "budget"))
    late = process.message()
    measure(late, AT)
    measure(late, AT)
    found = grown(store)
    assert sorted(found) == [AT + timedelta(minutes=n) for n in range(11)]
    assert [sum(n) for n in zip(*found.values(), strict=True)] == [102, 1530, pytest.approx(25.5)]
    assert all(9 <= calls <= 11 for at, (calls, _, _) in found.items() if at < AT + timedelta(minutes=10))
    with store.read() as tx:
        now = AT + timedelta(minutes=11)
        (seen,) = calls_between(tx, AT, now, now).values()
        assert seen.sketches["latency"].count == 102
    assert seen.sums["blocked"] == 1
    process.call()
    measure(process.message(after_s=1830), AT)
    after = grown(store)
    assert after == {**found, AT + timedelta(minutes=30): (1, 15, 0.25)}


def test_growth_stays_in_its_hour_and_is_no_older_than_what_is_kept(store: Store) -> None:
    """An hour's last message may come in the next one; a report of long ago counts when it was told."""
    measure, process = Measure(store), Process("p")
    process.call()
    measure(process.message(after_s=3590), AT)
    process.call()
    measure(process.message(after_s=3605), AT)
    process.call()
    measure(process.message(after_s=7300), AT)
    process.sequence += 1
    process.call()
    measure(process.message(after_s=300_000), AT)
    assert {at - AT: calls for at, (calls, _, _) in grown(store).items()} == {
        timedelta(minutes=59): 2, timedelta(minutes=121): 1, timedelta(minutes=5000): 1}  # fmt: skip


def test_a_message_that_was_overtaken_stays_missing_however_often_it_is_delivered(store: Store) -> None:
    """A redelivery of an old message must not hide a gap."""
    measure, process = Measure(store), Process("p")
    first, second, _, last = (process.message() for _ in range(4))
    for text in (first, last, first, second, second, first, last):
        measure(text, AT)
    with store.read() as tx:
        (row,) = read_processes(tx, since=AT, now=AT)
    assert (row["sequence"], row["messages"], row["missing"]) == (4, 2, 2)


BAD_ROWS = {
    "year": ({"hour": 1.8e12}, "year"),
    "text": ({"calls": "many"}, "'calls' must be a number"),
    "negative": ({"calls": -1}, "'calls' must be a number"),
    "list": ({"blocked": [1]}, "AttributeError"),
    "endless": ({"cost_usd": float("inf")}, "'cost_usd' must be a number"),
    "none": ({"cost_usd": float("nan")}, "'cost_usd' must be a number"),
    "large": ({"input_tokens": 10**30}, "'input_tokens' must be a number"),
    "release": ({"release": "canary"}, "TypeError"),
    "feature": ({"feature": "".join(chr(0x4E00 + n * 7919 % 20_000) for n in range(6000))}, "6000 characters"),
    "service": ({"release": {"service": "s" * 201}}, "201 characters"),
    "sketch": ({"latency": {"accuracy": 0.005, "keys": [10**9], "counts": [1], "zeros": 0, "total": 1, "low": 1,
                            "high": 1}}, "bins"),
}  # fmt: skip


@pytest.mark.parametrize(("bad", "reason"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_row_that_cannot_be_read_costs_no_other(store: Store, bad: dict[str, Any], reason: str) -> None:
    """It is kept once with the reason, however many messages repeat it; a message of nothing else is a dead letter."""
    measure, process = Measure(store), Process("p")
    process.call()
    for _ in range(3):
        body = json.loads(process.message())
        good = body["rows"][0]
        assert measure(json.dumps({**body, "rows": [{**good, **bad}, good]}), AT).rows == 1
    with store.read() as tx:
        (metered,) = read_meters(tx, since=AT)
        (row,) = read_processes(tx, since=AT, now=AT)
        (letter,) = tx.connection.execute(select(dead_letters))
    assert (metered.sums["calls"], row["messages"]) == (1, 3)
    assert (letter.kind, letter.n_records) == ("meter", 0)
    assert letter.reason.startswith("1 of 2 rows: ")
    assert reason in letter.reason
    assert measure(json.dumps({**body, "seq": 9, "rows": [{**good, **bad}]}), AT).rows == 0
    with store.read() as tx:
        reasons = tx.connection.scalars(select(dead_letters.c.reason)).all()
    assert any("no row can be read" in one for one in reasons)


@pytest.mark.parametrize(
    "text", ["", "[]", "[" * 100_000, "{}", '{"schema": 1, "rows": []}', '{"schema":1,"process":"p","seq":1,"rows":5}']
)
def test_what_is_no_meter_message_is_a_dead_letter(store: Store, text: str) -> None:
    """And costs nothing else."""
    assert Measure(store)(text, AT).rows == 0
    with store.read() as tx:
        assert tx.connection.scalars(select(dead_letters.c.kind)).all() == ["meter"]


def test_an_alert_on_blocked_calls_fires_when_all_of_them_are_blocked(migrated_url: str, tmp_path: Path) -> None:
    """Nothing was called then: those that were wanted are the sample."""
    card = """
name: support
match: {service: desk, feature: refunds}
criteria:
  - {name: length, heuristic: length, params: {max: 200}}
alerts:
  - {name: stopped, meter: blocked_per_minute, value: {above: 20}, window: 1m, min_sample: 30}
"""
    world = World(migrated_url, tmp_path, card=card)
    process = Process("p")
    process.meter.blocked.extend([(CANARY, "refunds", AT.timestamp(), "kill_switch")] * 40)
    Measure(world.store)(process.message(), AT)
    transitions = world.evaluate(world.clock()).transitions
    assert [(t.after, t.n) for t in transitions] == [("firing", 40)]
    world.store.close()


def test_an_alert_rule_watches_all_calls(migrated_url: str, tmp_path: Path) -> None:
    """A cost explosion fires although nothing was sampled, names its numbers, and resolves when it is over."""
    card = """
name: support
match: {service: desk, feature: refunds}
criteria:
  - {name: length, heuristic: length, params: {max: 200}}
alerts:
  - {name: cost, meter: cost_usd_per_minute, value: {above: 20}, window: 1m, severity: SEV1}
  - {name: slow, meter: latency_p99_ms, value: {above: 5000}, window: 1m, min_sample: 1000}
"""
    world = World(migrated_url, tmp_path, card=card)
    process = Process("p")
    for _ in range(200):
        process.call(CANARY, latency_ms=9000.0)
    Measure(world.store)(process.message(), AT)
    transitions = world.evaluate(world.clock()).transitions
    assert [(t.after, t.n) for t in transitions] == [("firing", 200)]
    assert "cost_usd_per_minute over 1m is 50 of 200 calls" in transitions[0].reason
    world.clock.pass_(minutes=5)
    assert world.evaluate(world.clock()).transitions == ()  # no calls is no data, and that keeps the state
    process.sequence += 300  # Redis was away: 50 dollars in five minutes are 10 in each
    for _ in range(200):
        process.call(CANARY, latency_ms=10.0)
    Measure(world.store)(process.message(), world.clock.pass_(seconds=5))
    assert [t.after for t in world.evaluate(world.clock()).transitions] == ["resolved"]
    world.store.close()


def test_what_a_scorecard_may_watch_is_what_the_meter_can_tell() -> None:
    """A name that only one of the two knows would pass the check and stop the evaluation."""
    assert set(get_args(Metered)) == set(VALUES)
