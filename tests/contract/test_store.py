"""The store on PostgreSQL and SQLite: replays, concurrency, leases, and databases that go away."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, func, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from stages import AT, assert_rollups_are_the_sums_of_the_scores, at_once, record
from stopwatch import assert_quick

from evalpipe.errors import ConfigError
from evalpipe.judges.base import Grade
from evalpipe.notification import ALERT_FIRING, Notification
from evalpipe.score import Score, Status, scored
from evalpipe.store import counters, intake, ledgers, outbox, rollout_evidence, rollouts, series, votes, works
from evalpipe.store.counters import MeterRow
from evalpipe.store.intake import Arrival, DeadLetter
from evalpipe.store.queue import QUARANTINE, Queue, quarantine
from evalpipe.store.series import Entry, Series
from evalpipe.store.sql import Store, Transaction, is_passing
from evalpipe.store.tables import (
    evidence,
    grades,
    ledger,
    meters,
    records,
    work,
)
from evalpipe.store.tables import (
    outbox as outbox_table,
)
from evalpipe.store.tables import (
    series as series_table,
)
from evalpipe.store.votes import Cast
from evalpipe.store.works import Work

LEASE = timedelta(seconds=60)


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    """A store on a migrated database."""
    opened = Store(migrated_url)
    yield opened
    opened.close()


@pytest.fixture
def postgres_store(migrated_postgres_url: str) -> Iterator[Store]:
    """A store on a migrated PostgreSQL."""
    opened = Store(migrated_postgres_url)
    yield opened
    opened.close()


def owed(i: int, **fields: object) -> Work:
    """A work of its own record."""
    return replace(Work(f"r-{i}", "support", "v1", "grounded", "desk", AT, 1.0, 5), **fields)


def add_work(store: Store, *items: Work) -> None:
    """Owe them, now."""
    with store.begin() as tx:
        works.add_work(tx, items, AT)


def claim(store: Store, limit: int = 10, at: datetime = AT) -> list[Work]:
    """Claim in a transaction of its own."""
    with store.begin() as tx:
        return works.claim(tx, limit, at, LEASE)


# ---------------------------------------------------------------------------------------------- inserts and retries


def test_a_replayed_insert_changes_nothing_and_returns_nothing(store: Store) -> None:
    """Only keys that were not there come back, also where the rows overlap in part."""
    arrivals = [Arrival(record(i), b"{}", "scored") for i in range(5)]
    with store.begin() as tx:
        assert intake.add_records(tx, arrivals[:3], AT) == {"r-0", "r-1", "r-2"}
    changed = [replace(a, outcome="dead") for a in arrivals]
    with store.begin() as tx:
        assert intake.add_records(tx, changed, AT) == {"r-3", "r-4"}
        assert intake.add_records(tx, changed, AT) == set()
        assert intake.add_records(tx, [], AT) == set()
    with store.read() as tx:
        assert list(tx.connection.scalars(select(records.c.outcome).order_by(records.c.record_id))) == [
            "scored", "scored", "scored", "dead", "dead",
        ]  # fmt: skip


def test_what_was_rolled_back_can_be_inserted_again_on_the_same_connection(store: Store) -> None:
    """The staging table of a transaction that failed is not taken for granted."""
    arrivals = [Arrival(record(1), b"{}", "scored")]
    for _ in range(2):
        with store.engine.connect() as connection:
            assert intake.add_records(Transaction(connection), arrivals, AT) == {"r-1"}
            connection.rollback()
    with store.begin() as tx:
        assert intake.add_records(tx, arrivals, AT) == {"r-1"}


def test_values_come_back_as_they_went_in(store: Store) -> None:
    """Tabs, newlines, backslashes, emoji, bytes, nulls, and times in other zones."""
    there = timedelta(hours=5, minutes=30)
    at = AT.astimezone(datetime.now().astimezone().tzinfo).replace(microsecond=123456)
    odd = record("x", user_id="a\tb\\n\\N\n'\";--\u2028🙂", captured_at=at, latency_ms=None, cost_usd=1e-7)
    payload = bytes(range(256))
    with store.begin() as tx:
        intake.add_records(tx, [Arrival(odd, payload, "scored")], AT + there)
    with store.read() as tx:
        row = tx.connection.execute(select(records)).one()
    assert (row.user_id, bytes(row.payload), row.latency_ms, row.cost_usd) == (odd.user_id, payload, None, 1e-7)
    assert row.captured_at == at
    assert (row.captured_at.tzinfo, row.ingested_at) == (UTC, AT + there)


def test_a_naive_time_is_refused_wherever_it_would_be_written(store: Store) -> None:
    """It would be another instant on each machine."""
    naive = datetime(2026, 3, 1)  # noqa: DTZ001
    with pytest.raises(Exception, match="naive"), store.begin() as tx:
        intake.add_records(tx, [Arrival(record(1, captured_at=naive), b"{}", "scored")], AT)
    with pytest.raises(Exception, match="naive"), store.begin() as tx:
        works.add_work(tx, [owed(1)], naive)
    with pytest.raises(Exception, match="naive"), store.begin() as tx:
        works.claim(tx, 1, naive, LEASE)


def test_two_transactions_with_the_same_new_rows_in_opposite_orders_do_not_deadlock(store: Store) -> None:
    """Rows are inserted in the order of their keys; each row is new to one of them only."""

    def run(numbers: list[int]) -> int:
        arrivals = [Arrival(record(i), b"{}", "scored") for i in numbers]
        with store.begin() as tx:
            return len(intake.add_records(tx, arrivals, AT))

    for start in range(0, 400, 100):
        numbers = list(range(start, start + 100))
        assert sum(at_once(lambda n=numbers: run(n), lambda n=numbers: run(n[::-1]))) == 100


def test_a_connection_that_dies_in_the_middle_costs_a_retry(postgres_store: Store) -> None:
    """Also inside COPY, which goes past SQLAlchemy: the transaction runs again on another connection."""
    tries = []
    with postgres_store.begin() as tx:  # from here on COPY is the first thing that notices
        intake.add_records(tx, [Arrival(record(0), b"{}", "scored")], AT)

    def run(tx):
        pid = tx.connection.scalar(text("SELECT pg_backend_pid()"))
        tries.append(pid)
        if len(tries) == 1:
            with postgres_store.begin() as other:
                other.connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
            time.sleep(0.05)
        return intake.add_records(tx, [Arrival(record(1), b"{}", "scored")], AT)

    assert postgres_store.patiently(run) == {"r-1"}
    assert len(set(tries)) == 2


def test_a_deadlock_costs_a_retry(postgres_store: Store) -> None:
    """PostgreSQL ends one of the two, which then finds what the other did."""
    with postgres_store.begin() as tx:
        intake.add_records(tx, [Arrival(record(i), b"{}", "scored") for i in range(2)], AT)
    both = threading.Barrier(2, timeout=60)
    tries = []

    def run(first: int, second: int) -> None:
        waited = []

        def touch(tx):
            tries.append(first)
            update = text("UPDATE records SET stratum = stratum || 'x' WHERE record_id = :id")
            tx.connection.execute(update, {"id": f"r-{first}"})
            if not waited:
                waited.append(both.wait())
            tx.connection.execute(update, {"id": f"r-{second}"})

        postgres_store.patiently(touch)

    at_once(lambda: run(0, 1), lambda: run(1, 0))
    assert len(tries) == 3
    with postgres_store.read() as tx:
        assert set(tx.connection.scalars(select(records.c.stratum))) == {"xx"}


def test_a_wrong_statement_is_raised_at_once_and_not_waited_out(store: Store) -> None:
    """Waiting would only hide it; SQLite calls it operational all the same."""
    for statement in ("SELECT * FROM nowhere", "SELEKT 1", "SELECT nothing FROM records"):
        started = time.monotonic()
        with pytest.raises(DBAPIError):
            store.patiently(lambda tx, s=statement: tx.connection.execute(text(s)))
        assert_quick(time.monotonic() - started, 2)
    with pytest.raises(DBAPIError) as raised, store.begin() as tx:
        tx.connection.execute(insert(records), {"record_id": "x"})
    assert not is_passing(raised.value)


def test_a_database_that_is_not_there_is_waited_for_and_a_wrong_name_is_not(migrated_postgres_url: str) -> None:
    """The one may come, the other needs a human."""
    nowhere = Store("postgresql+psycopg://x:y@127.0.0.1:1/evalpipe")
    waits: list[str] = []
    with pytest.raises(DBAPIError):
        nowhere.patiently(lambda tx: tx, patience_s=0.5, on_wait=waits.append)
    assert waits
    wrong = Store(migrated_postgres_url.replace("evalpipe_migrated", "no_such"))
    with pytest.raises(DBAPIError, match="does not exist"):
        wrong.patiently(lambda tx: tx, patience_s=30)


def test_a_writer_waits_for_another_and_a_reader_waits_for_nobody(migrated_sqlite_url: str) -> None:
    """SQLite: the write lock is taken at the start, so that nobody fails half-way."""
    store = Store(migrated_sqlite_url)

    def count_up(n: int) -> None:
        for _ in range(n):
            with store.begin() as tx:
                found = tx.connection.scalar(select(func.count()).select_from(records)) or 0
                intake.add_records(tx, [Arrival(record(found), b"{}", "scored")], AT)

    at_once(*[lambda: count_up(15)] * 4)
    with store.begin() as writing:
        intake.add_records(writing, [Arrival(record("more"), b"{}", "scored")], AT)
        with store.read() as tx:
            assert tx.connection.scalar(select(func.count()).select_from(records)) == 60
    store.close()


def test_an_error_does_not_quote_what_users_said(store: Store) -> None:
    """Errors are logged, and kept as reasons."""
    with pytest.raises(DBAPIError) as raised, store.begin() as tx:
        tx.connection.execute(insert(records), {"record_id": "x", "user_id": "SECRET-WORDS"})
    assert "SECRET-WORDS" not in str(raised.value).partition("DETAIL")[0]


def test_a_constraint_that_copy_breaks_is_an_error_of_sqlalchemy(postgres_store: Store) -> None:
    """Callers need not know which inserts go past it."""
    with pytest.raises(IntegrityError), postgres_store.begin() as tx:
        tx.insert_new(work, [{"work_id": "w", "captured_at": None, "weight": 1.0}])
    with postgres_store.begin() as tx:  # the connection is as good as before
        assert works.add_work(tx, [owed(1)], AT) == 1


@pytest.mark.parametrize("url", ["nonsense", "mysql://u:hidden@h/d", "sqlite://", "sqlite:///:memory:"])
def test_a_database_that_cannot_be_used_is_a_configuration_error(url: str) -> None:
    """With what is wrong in the message, and no password."""
    with pytest.raises(ConfigError) as raised:
        Store(url)
    assert "hidden" not in str(raised.value)


# ------------------------------------------------------------------------------------------------------------- work


def test_two_claimers_never_hold_the_same_work(store: Store) -> None:
    """Everything is claimed, and each work by one of them."""
    add_work(store, *(owed(i) for i in range(120)))

    def run() -> list[str]:
        mine: list[str] = []
        while found := claim(store, 7):
            assert len(found) <= 7
            mine += [w.work_id for w in found]
        return mine

    claimed = [work_id for mine in at_once(run, run, run) for work_id in mine]
    assert len(claimed) == len(set(claimed)) == 120


def test_urgent_work_is_claimed_first_and_never_more_than_asked_for(store: Store) -> None:
    """Lower priorities first, then what was due first."""
    add_work(store, *(owed(i, priority=5 - i % 3, captured_at=AT + timedelta(seconds=i)) for i in range(30)))
    found = claim(store, 15)
    assert [w.priority for w in found] == [3] * 10 + [4] * 5
    assert len(claim(store, 100)) == 15
    assert claim(store) == []


def test_owing_the_same_again_changes_nothing(store: Store) -> None:
    """Not even where the work is done."""
    add_work(store, owed(1))
    (held,) = claim(store)
    with store.begin() as tx:
        assert works.finish(tx, [held]) == {held.work_id}
    with store.begin() as tx:
        assert works.add_work(tx, [owed(1), owed(2)], AT) == 1
    assert [w.record_id for w in claim(store)] == ["r-2"]


def test_a_lapsed_lease_is_claimed_again_and_the_stale_holder_changes_nothing(store: Store) -> None:
    """Its fence is old: it can neither finish, nor bury, nor postpone, nor renew."""
    add_work(store, owed(1))
    (stale,) = claim(store)
    assert claim(store, at=AT + LEASE) == []
    (fresh,) = claim(store, at=AT + LEASE + timedelta(seconds=1))
    assert (fresh.fence, fresh.attempts) == (stale.fence + 1, 2)
    with store.begin() as tx:
        assert works.renew(tx, [stale], AT + timedelta(hours=1), LEASE) == set()
        assert works.finish(tx, [stale]) == set()
        assert works.bury(tx, [stale], "stale") == set()
        works.postpone(tx, stale, AT + timedelta(days=1), "stale")
        row = tx.connection.execute(select(work)).one()
        assert (row.state, row.fence, row.reason, row.lease_until) == (
            "pending",
            2,
            "",
            AT + 2 * LEASE + timedelta(seconds=1),
        )
    with store.begin() as tx:
        assert works.finish(tx, [fresh]) == {fresh.work_id}
        assert works.finish(tx, [fresh]) == set()


def test_a_renewed_lease_is_kept(store: Store) -> None:
    """Its holder is slow, not gone."""
    add_work(store, owed(1), owed(2))
    held = claim(store)
    with store.begin() as tx:
        assert works.renew(tx, held, AT + LEASE, LEASE) == {w.work_id for w in held}
        assert works.renew(tx, [], AT, LEASE) == set()
    assert claim(store, at=AT + 1.5 * LEASE) == []


def test_postponed_work_comes_back_when_it_is_due_and_may_get_its_attempt_back(store: Store) -> None:
    """A refund is for what was not the work's fault."""
    add_work(store, owed(1))
    (held,) = claim(store)
    with store.begin() as tx:
        works.postpone(tx, held, AT + timedelta(seconds=30), "busy")
    assert claim(store) == []
    (again,) = claim(store, at=AT + timedelta(seconds=30))
    assert (again.attempts, again.fence) == (2, 2)
    with store.begin() as tx:
        works.postpone(tx, again, AT, "no credit", refund=True)
    (third,) = claim(store)
    assert third.attempts == 2


def test_buried_work_rests_until_it_is_dug_up(store: Store) -> None:
    """With its reason; afterwards it has all its attempts again, and a fence that no old holder has."""
    add_work(store, owed(1), owed(2))
    held = claim(store)
    with store.begin() as tx:
        assert works.bury(tx, held, "the judge is gone") == {w.work_id for w in held}
    assert claim(store, at=AT + timedelta(days=1)) == []
    with store.begin() as tx:
        assert [row["reason"] for row in works.list_dead(tx, 10)] == ["the judge is gone"] * 2
        assert works.lock_dead(tx, ["none"], after="", limit=9) == []
        (one,) = works.lock_dead(tx, [held[0].work_id], after="", limit=9)
        works.dig_up(tx, [one], AT)
    (back,) = claim(store)
    assert (back.work_id, back.attempts, back.fence) == (held[0].work_id, 1, 2)


def test_dead_work_is_found_page_by_page(store: Store) -> None:
    """However many there are, each once."""
    add_work(store, *(owed(i) for i in range(25)))
    with store.begin() as tx:
        works.bury(tx, works.claim(tx, 25, AT, LEASE), "x")
        found, after = [], ""
        while page := works.lock_dead(tx, None, after=after, limit=10):
            found += [w.record_id for w in page]
            after = page[-1].work_id
    assert sorted(found) == sorted(f"r-{i}" for i in range(25))


def test_a_grade_is_kept_once_for_each_work_judge_and_vote(store: Store) -> None:
    """A second one of the same judge changes nothing."""
    with store.begin() as tx:
        votes.add_grades(tx, [Cast(owed(1), "j1", Grade(Status.SCORED, 1.0, "pass"))], AT)
        votes.add_grades(tx, [Cast(owed(1), "j1", Grade(Status.SCORED, 0.0, "fail"))], AT)
        votes.add_grades(tx, [Cast(owed(1), "j2", Grade(Status.ERROR, explanation="?"))], AT)
        rows = tx.connection.execute(select(grades).order_by(grades.c.judge_version)).all()
    assert [(r.judge_version, r.label, r.value) for r in rows] == [("j1", "pass", 1.0), ("j2", "", None)]


# ---------------------------------------------------------------------------------------------- scores and rollups


def entries(n: int, seed: int) -> list[Entry]:
    """Random scores of few series and minutes, some of them of one record twice."""
    dice = random.Random(seed)
    found = []
    for _ in range(n):
        of = Series("desk", "", "production", dice.choice("ab"), "rel", "support", dice.choice(["c1", "c2"]), "e1")
        status = dice.choice([Status.SCORED] * 4 + [Status.SKIPPED, Status.ERROR, Status.ABSTAINED])
        value = dice.choice([0.0, 1.0, dice.random()]) if status is Status.SCORED else None
        i = dice.randrange(n)
        at = AT + timedelta(seconds=i % 300)
        found.append(
            Entry(
                f"r-{i}",
                "v1",
                replace(of, variant="ab"[i % 2]),
                at,
                Score(status, value),
                dice.choice([1.0, 20.0, 3.5]),
                "s",
                dice.random(),
            )
        )
    return found


@pytest.mark.parametrize("seed", range(3))
def test_rollups_are_what_the_stored_scores_add_up_to(store: Store, seed: int) -> None:
    """After batches that overlap, come twice, and come from two threads at once."""
    batches = [entries(60, seed * 100 + i) for i in range(6)]
    unique = [list({(e.record_id, e.series.criterion): e for e in batch}.values()) for batch in batches]

    def run(mine: list[list[Entry]]) -> int:
        return sum(store.patiently(lambda tx, b=b: series.add_scores(tx, b, AT)) for b in mine)

    added = sum(at_once(lambda: run(unique[:4]), lambda: run(unique[2:])))
    assert run(unique) == 0
    with store.read() as tx:
        assert tx.connection.scalar(text("SELECT count(*) FROM scores")) == added
    assert_rollups_are_the_sums_of_the_scores(store)


def test_sums_of_a_window_are_those_of_its_minutes(store: Store) -> None:
    """The database adds up what ``read_rollups`` lists, and names the newest minute with a value."""
    batch = list({(e.record_id, e.series.criterion): e for e in entries(300, 9)}.values())
    with store.begin() as tx:
        series.add_scores(tx, batch, AT)
        since = AT + timedelta(minutes=2)
        summed = {s: (at, rollup) for at, s, rollup in series.read_sums(tx, since, criterion="c1")}
        minutes = series.read_rollups(tx, since=since, criterion="c1")
    assert {s for _, s, _ in minutes} == set(summed)
    for of, (newest_at, rollup) in summed.items():
        mine = [(at, r) for at, s, r in minutes if s == of]
        assert newest_at == max(at for at, r in mine if r.n_scored)
        assert rollup.n_scored == sum(r.n_scored for _, r in mine)
        assert rollup.sum_wx == pytest.approx(sum(r.sum_wx for _, r in mine))
        assert type(rollup.n_error) is int


def test_an_explanation_with_characters_that_no_database_takes_is_stored_without_them(store: Store) -> None:
    """Users can put a NUL into an output, and an explanation may quote it."""
    of = Series("desk", "", "production", "a", "rel", "support", "c1", "e1")
    entry = Entry("r-1", "v1", of, AT, scored(1.0, "a\x00b", "half \ud83d and \x00"), 1.0, "s")
    with store.begin() as tx:
        assert series.add_scores(tx, [entry], AT) == 1
        row = tx.connection.execute(text("SELECT label, explanation FROM scores")).one()
    assert "\x00" not in row.label + row.explanation


def test_a_known_series_costs_no_insert(store: Store) -> None:
    """Hot path: after the first batch only the new scores and the buckets are written."""
    of = [Series("desk", "", "production", "a", "rel", "support", f"c{i}", "e1") for i in range(3)]
    batch = [Entry(f"r-{i}", "v1", of[i % 3], AT, scored(1.0), 1.0, "s") for i in range(30)]
    with store.begin() as tx:
        series.add_scores(tx, batch[:15], AT)
    statements: list[str] = []
    listener = lambda *arguments: statements.append(arguments[2])  # noqa: E731
    with store.begin() as tx:
        event.listen(store.engine, "before_cursor_execute", listener)
        series.add_scores(tx, batch[15:], AT)
        event.remove(store.engine, "before_cursor_execute", listener)
    assert not [s for s in statements if "INTO series" in s]
    assert len([s for s in statements if "UPDATE rollups" in s]) == 1
    with store.read() as tx:
        assert tx.connection.scalar(select(func.count()).select_from(series_table)) == 3


# ---------------------------------------------------------------------------------------------------------- counters


def meter(sequence: int, **counts: int) -> MeterRow:
    """A row of one process."""
    names = ("calls", "errors", "sampled", "not_sampled", "enqueued", "shed", "input_tokens", "output_tokens",
             "cached_tokens", "unpriced", "screened", "refusals")  # fmt: skip
    sent_at = AT + timedelta(seconds=sequence)
    rest: dict[str, Any] = {"cost_usd": 0.0, **dict.fromkeys(("latency", "ttft", "tpot"))}
    rest |= {
        **{name: {} for name in ("shed_by_reason", "blocked", "finish_reasons")},
        **dict.fromkeys(names, 0),
        **counts,
    }
    return MeterRow("p", "rel", "", AT, "desk", sequence, sent_at, **rest)


def test_counters_that_come_late_or_twice_change_nothing(store: Store) -> None:
    """They are cumulative: the newest message has it all."""
    with store.begin() as tx:
        counters.upsert(tx, [meter(3, calls=30)])
        counters.upsert(tx, [meter(2, calls=20)])
        counters.upsert(tx, [meter(3, calls=30)])
        assert tx.connection.execute(select(meters.c.calls, meters.c.sequence)).all() == [(30, 3)]
        counters.upsert(tx, [meter(4, calls=40)])
        assert tx.connection.scalar(select(meters.c.calls)) == 40


def test_a_past_hour_comes_to_rest_although_its_hook_goes_on_telling_it(store: Store) -> None:
    """``sent_at`` is when the count of enqueued records last grew: from then on the lag runs."""
    with store.begin() as tx:
        counters.upsert(tx, [meter(1, enqueued=5)])
        counters.upsert(tx, [meter(50, enqueued=5, calls=9)])
        assert tx.connection.scalar(select(meters.c.sent_at)) == AT + timedelta(seconds=1)
        counters.upsert(tx, [meter(60, enqueued=6)])
        assert tx.connection.scalar(select(meters.c.sent_at)) == AT + timedelta(seconds=60)


# ------------------------------------------------------------------------------------------------------------ ledger


def test_the_ledger_is_counted_right_by_many_at_once(store: Store) -> None:
    """No lost update, and no deadlock whatever the order in which each names its lines."""
    lines = [(AT, "desk", card, term) for card in ("", "support") for term in ("scored", "dead", "sampled")]

    def run(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(10):
            mine = dice.sample(lines, 4)
            store.patiently(lambda tx, m=mine: ledgers.count(tx, dict.fromkeys(m, 1)))

    at_once(*(lambda s=seed: run(s) for seed in range(4)))
    with store.read() as tx:
        assert tx.connection.scalar(select(func.sum(ledger.c.n))) == 4 * 10 * 4


def test_headers_that_tell_nonsense_book_nothing_and_break_nothing(store: Store) -> None:
    """They come from outside: wrong numbers, hours and types are left out, the letter is kept."""
    good = f"desk|{int(AT.timestamp())}"
    nonsense = {good: 3, "desk|x": 1, "desk|99999999999999999999": 1, "desk|²": 1, "noise": 2, good + "1": -4,
                f"a|{int(AT.timestamp())}": "7", f"b|{int(AT.timestamp())}": 10**12, "desk|": 1}  # fmt: skip
    assert ledgers.places({"evalpipe_hours": nonsense}) == {("desk", AT): 3}
    for told in (None, [], "x", 5, {}):
        assert ledgers.places({"evalpipe_hours": told}) == {}
    headers = {"origin": "p\x00", "evalpipe_hours": {"de\x00sk|3600": 1, **nonsense}}
    with store.begin() as tx:
        assert len(intake.add_dead_letters(tx, intake.dead_message("envelope", b"\xff", headers, "bad \x00"), AT)) == 2


def test_a_dead_letter_is_kept_once_and_waits_again_if_it_fails_again(store: Store) -> None:
    """A redelivery adds none; one that was re-driven and cannot be read still is not forgotten."""
    letter = DeadLetter("message", "key", "no", b"x")
    with store.begin() as tx:
        assert intake.add_dead_letters(tx, [letter], AT) == {letter.dead_letter_id}
        assert intake.add_dead_letters(tx, [letter], AT) == set()
    with store.begin() as tx:
        assert len(intake.take_dead_letters(tx, None, AT, after="", limit=9)) == 1
        assert intake.take_dead_letters(tx, None, AT, after="", limit=9) == []
    with store.begin() as tx:
        assert intake.add_dead_letters(tx, [letter], AT) == {letter.dead_letter_id}
        assert len(intake.list_dead_letters(tx, limit=9)) == 1


# -------------------------------------------------------------------------------------------------- rollouts, outbox


def open_rollout(store: Store, rollout_id: str = "ro") -> None:
    """A rollout that runs."""
    values = {"rollout_id": rollout_id, "service": "desk", "environment": "production", "scorecard": "support",
              "scorecard_version": "v1", "baseline": "baseline", "canary": "canary", "canary_release_id": "c",
              "plan": {}, "started_at": AT, "updated_at": AT, "due_at": AT}  # fmt: skip
    with store.begin() as tx:
        assert rollouts.open_rollout(tx, values) == (True, ())
    with store.begin() as tx:
        assert rollouts.open_rollout(tx, values) == (False, ())


def test_evidence_has_one_order_without_gaps_however_many_add_to_it(store: Store) -> None:
    """A number is seen only after all before it: the fold can never skip one that commits late."""
    open_rollout(store)
    done = threading.Event()
    gaps: list[list[int]] = []

    def add(worker: int) -> None:
        for i in range(15):
            entrants = [rollout_evidence.Entrant(f"{worker}-{i}-{k}", "canary", "u", AT) for k in range(3)]
            store.patiently(lambda tx, e=entrants: rollout_evidence.add(tx, "ro", e, AT))

    def watch() -> None:
        while not done.is_set():
            with store.read() as tx:
                seen = list(tx.connection.scalars(select(evidence.c.seq).order_by(evidence.c.seq)))
            if seen != list(range(1, len(seen) + 1)):
                gaps.append(seen)

    watcher = threading.Thread(target=watch)
    watcher.start()
    at_once(lambda: add(1), lambda: add(2), lambda: add(3))
    done.set()
    watcher.join()
    assert gaps == []
    with store.read() as tx:
        assert tx.connection.scalar(select(func.max(evidence.c.seq))) == 135


def test_an_evaluator_keeps_another_out_and_no_record(postgres_store: Store) -> None:
    """While one folds, a second finds the rollout taken, and ingest goes on; a busy ingest keeps no evaluator out."""
    open_rollout(postgres_store)
    entrant = rollout_evidence.Entrant("r-1", "canary", "u", AT)
    with postgres_store.begin() as first, postgres_store.begin() as second, postgres_store.begin() as ingest:
        assert rollouts.lock(first, "ro") is not None
        assert rollouts.lock(second, "ro") is None
        ingest.connection.execute(text("SET LOCAL lock_timeout = '2s'"))
        rollout_evidence.add(ingest, "ro", [entrant], AT)
        with postgres_store.begin() as third:
            assert rollouts.lock(third, "ro") is None
    with postgres_store.begin() as ingest, postgres_store.begin() as tx:
        rollout_evidence.add(ingest, "ro", [replace(entrant, record_id="r-2")], AT)
        assert rollouts.lock(tx, "ro") is not None


def post(store: Store, *events: tuple[str, str]) -> None:
    """Owe notifications: (event id, type)."""
    with store.begin() as tx:
        for event_id, type_ in events:
            outbox.post(tx, Notification(event_id, type_, "s", AT, {}, "/t"), "webhook", event_id.encode())


def test_migrated_times_and_documents_have_the_types_of_the_database(store: Store) -> None:
    """An outbox row reads back as it was written."""
    post(store, ("a", ALERT_FIRING))
    with store.read() as tx:
        row = tx.connection.execute(select(outbox_table)).one()
    assert (row.created_at, row.created_at.tzinfo, row.delivered_at) == (AT, UTC, None)


# ------------------------------------------------------------------------------------------------------------- queue


@pytest.fixture
def queue(redis_url: str) -> Iterator[Queue]:
    """An empty queue."""
    opened = Queue(redis_url)
    yield opened
    opened.close()


def test_records_in_the_queue_are_counted_by_their_headers_whatever_else_waits(queue: Queue) -> None:
    """More messages than a page, and poison between them."""
    good = b'{"headers": {"evalpipe_hours": {"desk|3600": 2, "other|7200": 1}}, "body": "x"}'
    for i in range(450):
        queue.client.lpush("evalpipe.ingest", good)
        if i % 100 == 0:
            for poison in (b"\xff", b"[]", b"{}", b'{"headers": 5}', b"[" * 100_000,
                           b'{"headers": {"evalpipe_hours": {"desk|x": 1, "desk|1": "y"}}}'):  # fmt: skip
                queue.client.lpush("evalpipe.ingest", poison)
    hour = datetime(1970, 1, 1, 1, tzinfo=UTC)
    assert queue.queued().counts == {("desk", hour): 900, ("other", hour + timedelta(hours=1)): 450}


def test_messages_go_back_to_the_queue_that_they_name_if_it_is_one_of_ours(queue: Queue) -> None:
    """A broken envelope must not stop the others, nor reach a queue that nobody reads."""
    ours = b'{"properties": {"delivery_info": {"routing_key": "evalpipe.measure"}}}'
    poison = [b"[]", b"\xff", b'{"properties": "x"}',
              b'{"properties": {"delivery_info": {"routing_key": "elsewhere"}}}',
              b'{"properties": {"delivery_info": {"routing_key": ["evalpipe.measure"]}}}']  # fmt: skip
    assert queue.push([ours, *poison]) == 6
    assert queue.lengths()["measure"] == 1
    assert queue.lengths()["ingest"] == 5


def test_quarantine_keeps_bytes_as_they_were(queue: Queue) -> None:
    """Oldest first, until they are released."""
    quarantine(queue.client, b"\x00\xff", "first")
    quarantine(queue.client, b"two", "second")
    found = queue.quarantined(10)
    assert sorted((reason, raw) for _, reason, raw in found) == [("first", b"\x00\xff"), ("second", b"two")]
    assert [reason for _, reason, _ in queue.quarantined(1)] == ["first"]
    queue.release(kept for kept, reason, _ in found if reason == "first")
    assert queue.client.llen(QUARANTINE) == 1


def test_a_nudge_is_given_once_until_it_is_answered(queue: Queue) -> None:
    """Many commits, one start."""
    assert queue.nudge("judge")
    assert not queue.nudge("judge")
    assert queue.nudge("evaluate")
    queue.answer("judge")
    assert queue.nudge("judge")
