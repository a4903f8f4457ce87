"""Rollups by minute, hour and day: exact, rebuilt to the same bytes, read where it is cheap; growth is given once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, select, update
from stages import AT, assert_rollups_are_the_sums_of_the_scores, at_once

from evalpipe.rollup import merged
from evalpipe.score import Score, Status, scored
from evalpipe.store import growths, levels, series
from evalpipe.store.levels import DAY, HOUR, LEVELS, MINUTE
from evalpipe.store.rebuild import rebuild
from evalpipe.store.series import Entry, Series
from evalpipe.store.sql import Store
from evalpipe.store.tables import growths as growths_table
from evalpipe.store.tables import rollup_days, rollup_hours, rollups, scores
from evalpipe.store.tables import series as series_table

RETENTION = timedelta(days=90)
NOW = datetime(2026, 3, 4, 12, 30, tzinfo=UTC)
OF = Series("desk", "chat", "production", "baseline", "rel", "support", "c1", "e1")


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    """A store on a migrated database."""
    opened = Store(migrated_url)
    yield opened
    opened.close()


def entries(n: int, seed: int, days: float = 3.0) -> list[Entry]:
    """Random scores of few series up to NOW, with weights, values and costs that no power of two has."""
    dice = random.Random(seed)
    found = []
    for i in range(n):
        status = dice.choice([Status.SCORED] * 5 + [Status.SKIPPED, Status.ERROR, Status.ABSTAINED])
        value = dice.choice([0.0, 1.0, dice.random()]) if status is Status.SCORED else None
        of = replace(OF, criterion=dice.choice(["c1", "c2"]), epoch=dice.choice(["e1", "e2"]),
                     arm=dice.choice(["served", "served", "shadow"]))  # fmt: skip
        at = NOW - timedelta(days=days) * dice.random()
        score = Score(status, value)
        found.append(Entry(f"r-{seed}-{i}", "v1", of, at, score, dice.uniform(1, 50) / 3, "s", dice.random() / 3))
    return found


def add(store: Store, *batch: Entry) -> None:
    """In one transaction."""
    store.patiently(lambda tx: series.add_scores(tx, batch, NOW))


def everything(store: Store) -> dict[str, list[tuple[object, ...]]]:
    """All levels, bytes and all."""
    with store.read() as tx:
        return {
            level.name: [
                tuple(row)
                for row in tx.connection.execute(
                    select(level.table).order_by(level.table.c.bucket_at, level.table.c.series_id)
                )
            ]
            for level in LEVELS
        }


def test_every_level_is_what_its_scores_add_up_to_whoever_wrote_first(store: Store) -> None:
    """From two threads at once, in batches that come twice: to the last bit."""
    batches = [entries(40, seed) for seed in range(6)]

    def run(mine: list[list[Entry]]) -> None:
        for batch in mine:
            add(store, *batch)

    at_once(lambda: run(batches[:4]), lambda: run(batches[2:]))
    assert_rollups_are_the_sums_of_the_scores(store)
    assert {name: len(rows) > 0 for name, rows in everything(store).items()} == dict.fromkeys(
        ("minute", "hour", "day"), True
    )


def test_a_rebuild_gives_the_same_bytes(store: Store) -> None:
    """Of what was written in another order and other batches; and it says that nothing was wrong."""
    batch = entries(300, 1)
    for start in range(0, 300, 7):
        add(store, *batch[start : start + 7])
    before = everything(store)
    done = rebuild(store, since=None, now=NOW, retention=RETENTION)
    assert everything(store) == before
    assert (done.scores, done.changed, done.buckets) == (300, 0, sum(len(rows) for rows in before.values()))


def test_a_rebuild_mends_what_is_wrong_missing_or_too_much(store: Store) -> None:
    """Also a series that was forgotten."""
    add(store, *entries(200, 2))
    before = everything(store)
    with store.begin() as tx:
        tx.connection.execute(update(rollup_hours).values(sum_w=7.0, bins=b""))
        tx.connection.execute(delete(rollups).where(rollups.c.bucket_at < NOW - timedelta(days=1)))
        stray = {**dict(tx.connection.execute(select(rollups)).mappings().first() or {}), "bucket_at": NOW}
        tx.insert_new(rollups, [stray])
        tx.connection.execute(delete(series_table).where(series_table.c.epoch == "e2"))
    assert everything(store) != before
    assert rebuild(store, since=None, now=NOW, retention=RETENTION, level=HOUR).changed == len(before["hour"])
    done = rebuild(store, since=None, now=NOW, retention=RETENTION)
    assert everything(store) == before
    assert done.changed > 0
    with store.read() as tx:
        assert len(list(tx.connection.execute(select(series_table)))) == 8


def test_a_rebuild_leaves_alone_what_has_lost_its_scores(store: Store) -> None:
    """Rollups outlive scores: a day is made anew only if all its scores are there."""
    add(store, *entries(300, 3, days=4.0))
    before = everything(store)
    with store.begin() as tx:
        tx.connection.execute(delete(scores).where(scores.c.captured_at < NOW - timedelta(days=2)))
    done = rebuild(store, since=None, now=NOW, retention=timedelta(days=2))
    assert done.since == datetime(2026, 3, 3, tzinfo=UTC)
    assert everything(store) == before
    assert rebuild(store, since=None, now=NOW, retention=RETENTION).since == datetime(2026, 3, 3, tzinfo=UTC)
    assert everything(store) == before


def test_scores_that_come_during_a_rebuild_are_counted_once(store: Store) -> None:
    """Writers wait for the day that is made anew, or it for them."""
    batches = [entries(20, seed) for seed in range(12)]
    add(store, *batches[0])

    def write() -> None:
        for batch in batches[1:]:
            add(store, *batch)

    at_once(write, lambda: [rebuild(store, since=None, now=NOW, retention=RETENTION) for _ in range(3)])
    assert_rollups_are_the_sums_of_the_scores(store)


@given(st.dictionaries(st.integers(0, levels.CELLS - 1), st.sampled_from([1, 255, 256, 65_535, 65_536, 2**33])))
def test_a_histogram_is_stored_and_read_again(bins: dict[int, int]) -> None:
    """As narrow as its largest count allows."""
    packed = levels.write_bins(bins)
    assert levels.read_bins(packed) == bins
    assert len(packed) <= levels.CELLS * (8 if max(bins.values(), default=0) >= 2**32 else 4)


TIMES = st.integers(0, 4 * 24 * 3600).map(lambda s: AT + timedelta(seconds=s))


@given(TIMES, TIMES, st.sampled_from([60, 300, 3600, 7200, 86_400]))
def test_spans_are_the_minutes_of_the_window_each_once(a: datetime, b: datetime, width_s: int) -> None:
    """Without gaps, in order, and no bucket straddles two points."""
    since, until = sorted((a, b))
    found = levels.spans(since, until, width=timedelta(seconds=width_s))
    minutes = [
        MINUTE.ceil(first) + i * MINUTE.width
        for level, first, last in found
        if first is not None and last is not None
        for i in range(int((MINUTE.ceil(last) - MINUTE.ceil(first)) / MINUTE.width))
    ]
    start = MINUTE.ceil(since)
    assert minutes == [start + i * MINUTE.width for i in range(int((MINUTE.ceil(until) - start) / MINUTE.width))]
    assert all(width_s % level.width.total_seconds() == 0 for level, _, _ in found)
    assert all(one[2] == other[1] for one, other in pairwise(found))


def test_a_window_is_the_same_at_whatever_level_it_is_read(store: Store) -> None:
    """Minutes at its ends, hours and days in the middle."""
    add(store, *entries(400, 4))
    since, until = NOW - timedelta(days=2, hours=3, minutes=17), NOW - timedelta(minutes=11)
    with store.read() as tx:
        fine = series.read_rollups(tx, since=since, until=until, criterion="c1")
        wide = series.read_rollups(tx, since=since, until=until, width=DAY.width, criterion="c1")
        plain = {s: rollup for _, s, rollup in series.read_sums(tx, since, until, criterion="c1")}
        shadows = series.read_rollups(tx, since=since, until=until, criterion="c1", arm="shadow")
    assert len(wide) < len(fine)
    assert {s.arm for s in plain} == {"served"}
    assert {s.arm for _, s, _ in shadows} == {"shadow"}
    for of, rollup in plain.items():
        whole = merged(r for _, s, r in fine if s == of)
        assert merged(r for _, s, r in wide if s == of) == whole
        assert replace(whole, bins={}) == rollup


def test_rows_past_their_retention_go_level_by_level(store: Store) -> None:
    """An hour of minutes at a time; days stay."""
    add(store, *entries(300, 5))
    before = NOW - timedelta(days=1)
    gone = 0
    while n := store.patiently(lambda tx: levels.remove(tx, MINUTE, before)):
        gone += n
    with store.read() as tx:
        assert gone > 0
        assert min(tx.connection.scalars(select(rollups.c.bucket_at))) >= before
        assert min(tx.connection.scalars(select(rollup_days.c.bucket_at))) < before
    assert rebuild(store, since=None, now=NOW, retention=RETENTION, kept=lambda level: before
                   if level is MINUTE else None).changed == 0  # fmt: skip


def test_growth_is_given_once_and_is_no_part_of_what_was_kept_for_what_it_is(store: Store) -> None:
    """Of served answers drawn by their rate, each series' commits merged."""
    drawn = [Entry(f"a-{i}", "v1", OF, AT + timedelta(seconds=i), scored(0.5), 20.0, "s") for i in range(5)]
    kept = Entry("k", "v1", OF, AT, scored(0.0), 1.0, "s", grown=0.0)
    heavier = Entry("h", "v1", OF, AT, scored(1.0), 1.0, "s", grown=20.0)
    shadow = Entry("s", "v1", replace(OF, arm="shadow"), AT, scored(0.0), 20.0, "s")
    add(store, *drawn[:2], kept, shadow)
    add(store, *drawn, heavier)
    with store.begin() as tx:
        (grown,) = growths.take(tx)
    assert (grown.series_id, grown.since, grown.until) == (OF.series_id, AT, AT + timedelta(seconds=4))
    assert (grown.rollup.n_scored, grown.rollup.sum_w, grown.rollup.bins) == (6, 120.0, {26: 5, 51: 1})
    with store.begin() as tx:
        assert growths.take(tx) == []


def test_growth_that_was_taken_by_a_failed_evaluation_comes_back(store: Store) -> None:
    """It is deleted in the transaction that stores what follows."""
    add(store, Entry("a", "v1", OF, AT, scored(0.5), 1.0, "s"))

    def evaluate() -> None:
        with store.begin() as tx:
            assert growths.take(tx)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        evaluate()
    with store.begin() as tx:
        assert growths.take(tx)


def test_growth_that_nobody_evaluates_is_dropped_after_a_day(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """With a line in the log: the queue is bounded."""
    add(store, Entry("a", "v1", OF, AT, scored(0.5), 1.0, "s"))
    with store.begin() as tx:
        assert growths.drop_old(tx, NOW + timedelta(hours=23)) == 0
        assert growths.drop_old(tx, NOW + timedelta(hours=25)) == 1
        assert not list(tx.connection.execute(select(growths_table)))
    assert "no worker evaluates" in caplog.text
