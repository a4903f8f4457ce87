"""The meter's levels: five seconds, minutes, hours; its heaviest users; what is covered; what an alert stops."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert, select
from stages import AT

from evalpipe.controls import ControlError
from evalpipe.detectors.places import covered, grouped, heaviest
from evalpipe.detectors.view import Place
from evalpipe.hook.meter import Meter
from evalpipe.pipeline import maintain
from evalpipe.pipeline.measure import Measure
from evalpipe.record import Release
from evalpipe.store import controls, meter_slots, meter_users
from evalpipe.store.coverage import coverage_between
from evalpipe.store.meter_slots import calls_between
from evalpipe.store.meter_users import users_between
from evalpipe.store.sql import Store
from evalpipe.store.tables import judge_calls, meter_hours, meters, records
from evalpipe.store.tables import meter_users as users_table

RELEASE = Release(service="desk", prompt="p7")
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
FITS = lambda _: True  # noqa: E731


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    """A migrated database, SQLite or PostgreSQL."""
    store = Store(migrated_url)
    yield store
    store.close()


class Process:
    """A process with a hook."""

    def __init__(self, store: Store, name: str = "host:1:a", started_at: datetime = AT) -> None:
        self.measure, self.name, self.started_at = Measure(store), name, started_at
        self.meter, self.sequence = Meter(lambda *_: None, RELEASE), 0

    def call(self, at: datetime, *, n: int = 1, user: str = "", cost: float = 0.5, feature: str = "chat") -> None:
        """Calls that ended then."""
        self.meter.pending.extend([
            (RELEASE, feature, at.timestamp(), True, 100.0, False, 10, 5, 4, cost, 20.0, "m", "stop", "Yes.", user)
        ] * n)  # fmt: skip

    def send(self, at: datetime, *, taken: bool = True, **header: Any) -> str:
        """The next meter message, which is taken in or lost."""
        self.sequence += 1
        text = self.meter.message(hook="0.1.0", process=self.name, seq=self.sequence, sent_at=at.timestamp(),
                                  started_at=self.started_at.timestamp(), service="desk", **header)  # fmt: skip
        if taken:
            self.measure(text, at)
        return text


def test_slots_are_summed_over_processes_and_windows_that_meet_share_nothing(store: Store) -> None:
    """What came since the last message is spread over the slots since; a repeated message adds nothing."""
    for name in ("a", "b"):
        process = Process(store, name)
        process.call(AT + 3 * SECOND, n=10)
        process.send(AT + 4 * SECOND)
        process.call(AT + 12 * SECOND, n=100)
        text = process.send(AT + 14 * SECOND)
        process.measure(text, AT + 15 * SECOND)
    now = AT + 16 * SECOND
    with store.read() as tx:
        windows = [
            grouped(calls_between(tx, AT + a * SECOND, AT + b * SECOND, now), FITS, ())
            for a, b in ((0, 5), (5, 10), (10, 16), (0, 16))
        ]
    (place,) = windows[3]
    assert place == Place("desk", "production", "baseline")
    n = [window[place].n for window in windows]
    assert sum(n[:3]) == n[3] == 220
    assert n[1] == pytest.approx(100, abs=2)
    assert [window[place].seconds for window in windows] == [5.0, 5.0, 6.0, 16.0]
    assert windows[3][place].sums["cost_squares"] == pytest.approx(220 * 0.25)
    with store.begin() as tx:
        meter_slots.remove(tx, AT + 3 * HOUR)
        assert calls_between(tx, AT, now, now) == {}


def test_months_are_read_from_hours_that_are_made_once_and_mended(store: Store) -> None:
    """The same numbers as the minutes have; a message that comes late is in the next making; sketches too."""
    process = Process(store)
    process.call(AT, n=30)
    process.send(AT + SECOND)
    later = AT + 3 * HOUR
    with store.begin() as tx:
        meter_slots.roll(tx, later)
        before = tx.connection.execute(select(meter_hours)).all()
        meter_slots.roll(tx, later)
        assert tx.connection.execute(select(meter_hours)).all() == before
    process.call(AT + SECOND, n=5)
    process.call(later, n=7, feature="search")
    process.send(later + SECOND)
    now = later + 2 * SECOND
    with store.begin() as tx:
        meter_slots.roll(tx, now)
        found = grouped(calls_between(tx, AT - timedelta(days=30), now, now), FITS, ("feature",))
        counts = {place.feature: (calls.n, calls.sketches["latency"].count) for place, calls in found.items()}
        shorter = grouped(calls_between(tx, AT - HOUR, now, now), FITS, ("feature",))
        assert {place.feature: calls.n for place, calls in shorter.items()} == {"chat": 35, "search": 7}
    assert counts == {"chat": (35, 35), "search": (7, 7)}
    assert found[Place("desk", "production", "baseline", "chat")].seconds == (now - AT).total_seconds()


def test_the_heaviest_users_are_counted_once_whatever_is_lost_or_repeated(store: Store) -> None:
    """Their growth is in the minute of the message; users are merged over processes."""
    for name in ("a", "b"):
        process = Process(store, name)
        process.call(AT, n=3, user="ada")
        process.send(AT + SECOND)
        process.call(AT, n=2, user="ada")
        process.send(AT + 2 * SECOND, taken=False)
        process.call(AT, n=1, user="bob", cost=9.0)
        text = process.send(AT + 61 * SECOND)
        process.measure(text, AT + 62 * SECOND)
    with store.read() as tx:
        whole = heaviest(users_between(tx, AT, AT + 2 * MINUTE), FITS, ("feature",))
        (first,) = heaviest(users_between(tx, AT, AT + MINUTE), FITS, ("feature",)).values()
    assert [tuple(s) for s in whole[Place("desk", "production", "baseline", "chat")]] == [
        ("bob", 2.0, 30.0, 18.0), ("ada", 10.0, 150.0, 5.0)]  # fmt: skip
    assert [(s.user, s.calls) for s in first] == [("ada", 6.0)]
    with store.begin() as tx:
        meter_users.remove(tx, AT + timedelta(days=3))
        assert users_between(tx, AT, AT + HOUR) == {}
        assert tx.connection.scalars(select(meters.c.users).where(meters.c.users.is_not(None))).all() == []


def test_an_erased_user_is_gone_and_what_processes_still_tell_is_not_listened_to(store: Store) -> None:
    """The process has it in its counters until the hour is over."""
    process = Process(store)
    process.call(AT, n=3, user="ada")
    process.call(AT, n=3, user="bob")
    process.send(AT + SECOND)
    with store.begin() as tx:
        maintain.erase_user(tx, "ada")
    process.call(AT, n=3, user="ada")
    process.call(AT, n=1, user="bob")
    for seconds in (4, 7):
        process.send(AT + seconds * SECOND)
    with store.read() as tx:
        assert tx.connection.execute(select(users_table.c.user_id, users_table.c.calls)).all() == [("bob", 4)]
        (kept,) = tx.connection.scalars(select(meters.c.users))
    assert set(kept) == {"bob"}


def test_users_that_came_and_went_in_the_sketch_are_exact_since_they_came(store: Store) -> None:
    """More users than counters: the one that spends most is there with what it spent."""
    process = Process(store)
    for number in range(2_000):
        process.call(AT, user=f"u{number}", cost=0.001)
        process.call(AT, user="agent", cost=0.1)
        if number % 500 == 499:
            process.send(AT + number // 100 * SECOND)
    with store.read() as tx:
        (found,) = users_between(tx, AT, AT + HOUR).values()
    assert (found[0].user, found[0].calls) == ("agent", 2_000)
    assert found[0].cost_usd == pytest.approx(200.0)


def test_coverage_is_told_place_by_place(store: Store) -> None:
    """Hooks' counters, what waits and for how long, judges' calls, and when hooks were heard of."""
    process = Process(store)
    process.call(AT, n=8)
    process.call(AT, n=2, feature="search")
    process.send(AT + SECOND)
    row = {"record_id": "r", "captured_at": AT, "ingested_at": AT, "probability": 1.0, "service": "desk",
           "environment": "production", "variant": "baseline", "feature": "chat", "outcome": "in_flight"}  # fmt: skip
    with store.begin() as tx:
        tx.connection.execute(insert(records), [row, {**row, "record_id": "s", "outcome": "scored"}])
        tx.connection.execute(insert(judge_calls), [
            {"minute_at": AT, "judge": "j", "scorecard": "c", "outcome": outcome, "n": n}
            for outcome, n in (("answered", 9), ("timeout", 1))])  # fmt: skip
        found = coverage_between(tx, AT, AT + HOUR, AT + 10 * MINUTE)
    chat = found[Place("desk", "production", "baseline", "chat")]
    assert (chat.observed, chat.sampled, chat.in_flight, chat.oldest_s) == (8, 8, 1, 600.0)
    assert (chat.graded, chat.judge_errors, chat.heard_at) == (10, 1, AT + SECOND)
    (whole,) = covered(found, FITS, ()).values()
    assert (whole.observed, whole.in_flight) == (10, 1)


def test_an_alert_throws_its_kill_switch_once_and_never_against_a_person(store: Store) -> None:
    """Whoever releases it while the alert fires has decided; the next alert may throw it again."""
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def throw(after: timedelta, since: timedelta = timedelta(0)) -> bool:
        with store.begin() as tx:
            return controls.throw(tx, "desk", "cost-chat", {"feature": "chat", "engaged": True},
                                  reason="spends 10 times the usual", since=now + since, now=now + after)  # fmt: skip

    assert [throw(timedelta(0)), throw(SECOND)] == [True, False]
    with store.begin() as tx:
        (kept,) = controls.entries(tx, "desk", "switch")
        assert (kept.actor, kept.body["engaged"], kept.body["feature"]) == ("evalpipe", True, "chat")
        with pytest.raises(ControlError, match="release it first"):
            controls.remove(tx, "desk", "switch", "cost-chat", actor="ada", reason="?", now=now)
        controls.release(tx, "desk", "cost-chat", actor="ada", reason="it is the nightly batch", now=now + MINUTE)
    assert throw(2 * MINUTE) is False
    assert throw(2 * HOUR, since=2 * HOUR) is True


def test_the_minutes_know_the_time_of_each_token(store: Store) -> None:
    """Latency, time to first token and time per token are told apart."""
    process = Process(store)
    process.call(AT, n=4)
    process.send(AT + SECOND)
    now = AT + 2 * SECOND
    with store.read() as tx:
        (calls,) = calls_between(tx, AT, now, now).values()
        assert calls.value("tpot_p99_ms") == pytest.approx(20.0, rel=0.01)
        assert calls.value("latency_p99_ms") == pytest.approx(100.0, rel=0.01)
