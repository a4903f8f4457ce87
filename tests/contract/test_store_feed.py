"""What detectors see of the database: what the scores say, growth once, and nothing across epochs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, select

from evalpipe.detectors.view import Dimension, Place, Scope
from evalpipe.pipeline.store_feed import StoreFeed, place_of
from evalpipe.rollup import Rollup
from evalpipe.score import Score, Status, scored
from evalpipe.store import series
from evalpipe.store.series import Entry, Series
from evalpipe.store.sql import Store
from evalpipe.store.tables import growths, scores

NOW = datetime(2026, 3, 4, 12, 30, 20, tzinfo=UTC)
OF = Series("desk", "chat", "production", "baseline", "r1", "support", "c1", "e1")


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    """A store on a migrated database."""
    opened = Store(migrated_url)
    yield opened
    opened.close()


def scope(*criteria: str, by: tuple[Dimension, ...] = (), feature: str = "", **fields: Any) -> Scope:
    """Of the scorecard ``support``; of one feature only, if that is given."""
    given: dict[str, Any] = {"inputs": frozenset({"scores", "growth"}), **fields}
    return Scope("support", criteria=criteria, fits=lambda place: feature in {"", place.feature}, by=by, **given)


def entry(name: str, at: datetime, value: float = 1.0, **of: str) -> Entry:
    """A score of weight 2."""
    return Entry(name, "v1", replace(OF, **of), at, scored(value), 2.0, "s")


def add(store: Store, *batch: Entry, now: datetime = NOW) -> None:
    """In one transaction."""
    store.patiently(lambda tx: series.add_scores(tx, batch, now))


def many(n: int, seed: int) -> list[Entry]:
    """Random scores of the last two days, of several features, releases and epochs, shadows among them."""
    dice = random.Random(seed)
    found = []
    for i in range(n):
        age = timedelta(days=2) * dice.random() ** 3
        of = replace(
            OF,
            feature=dice.choice(["chat", "mail"]),
            release_id=dice.choice(["r1", "r2"]),
            variant=dice.choice(["baseline", "canary"]),
            epoch="e1" if age > timedelta(hours=5) else "e2",
            arm=dice.choice(["served", "served", "shadow"]),
        )
        status = dice.choice([Status.SCORED, Status.SCORED, Status.ERROR])
        score = Score(status, dice.random() if status is Status.SCORED else None)
        found.append(Entry(f"r-{i}", "v1", of, NOW - age, score, dice.uniform(1, 30), "s", dice.random()))
    return found


def expected(store: Store, scope: Scope, place: Place, since: datetime, until: datetime) -> tuple[str, Rollup] | None:
    """From the scores themselves, one by one."""
    with store.read() as tx:
        rows = tx.connection.execute(select(scores).order_by(scores.c.captured_at)).mappings().all()
    found: dict[str, Rollup] = {}
    newest = ""
    for row in rows:
        of = Series(*(row[name] for name in series.SERIES))
        minute = row["captured_at"].replace(second=0, microsecond=0)
        whole = place_of(of)
        named = Place(*(a or "" for a in (*whole[:3], place.feature and whole.feature, "")))
        if of.arm == "served" and since <= minute < until and scope.fits(whole) and named == place:
            score = Score(Status(row["status"]), row["value"])
            found.setdefault(of.epoch, Rollup()).add(score, row["weight"], row["cost_usd"])
            newest = of.epoch if row["value"] is not None else newest
    return (newest, found[newest]) if newest else None


@pytest.mark.parametrize("minutes", [(7, 0), (61, 1), (300, 13), (1441, 0), (2700, 700)])
def test_a_window_is_what_its_scores_add_up_to(store: Store, minutes: tuple[int, int]) -> None:
    """At whatever levels it is read, of the newest epoch in it, and to the last bit."""
    add(store, *many(300, 1))
    first, last = minutes
    since, until = NOW - timedelta(minutes=first), NOW - timedelta(minutes=last)
    with store.begin() as tx:
        feed = StoreFeed(tx, NOW)
        for of in (scope("c1"), scope("c1", by=("feature",)), scope("c1", feature="mail")):
            for place in feed.places(of):
                found = feed.view(of, place, "a").scores("c1", since, until)
                wanted = expected(store, of, place, since, NOW if not last else until)
                assert (found and (found.epoch, found.rollup)) == wanted


def test_places_are_those_that_the_rule_fits_told_apart_as_it_says(store: Store) -> None:
    """A shadow is no place, and nor is what nothing was heard of for days."""
    add(store, entry("a", NOW), entry("b", NOW, feature="mail"), entry("c", NOW, variant="shadow", arm="shadow"))
    add(store, entry("old", NOW - timedelta(days=3), variant="gone"), entry("d", NOW, criterion="c2", variant="other"))
    with store.begin() as tx:
        feed = StoreFeed(tx, NOW)
        assert feed.places(scope("c1")) == {Place("desk", "production", "baseline")}
        told_apart = feed.places(scope("c1", by=("feature", "release")))
        assert told_apart == {Place("desk", "production", "baseline", name, "r1") for name in ("chat", "mail")}
        assert feed.places(scope("c1", by=("feature",), feature="mail")) == {
            Place("desk", "production", "baseline", "mail")
        }
        assert feed.places(scope("c1", "c2")) == {Place("desk", "production", v) for v in ("baseline", "other")}


def test_growth_is_given_once_to_every_rule_and_to_every_look(store: Store) -> None:
    """In one evaluation as often as it is asked for, and in the next one no more."""
    add(store, entry("a", NOW, 0.0), entry("b", NOW - timedelta(minutes=3), feature="mail"))
    with store.begin() as tx:
        feed = StoreFeed(tx, NOW)
        place = Place("desk", "production", "baseline")
        one, other = (feed.view(of, place, "a").growth("c1") for of in (scope("c1"), scope("c1")))
        again = feed.view(scope("c1", by=("feature",)), place._replace(feature="mail"), "a").growth("c1")
    assert one is not None
    assert other is not None
    assert again is not None
    assert (one.rollup, one.epoch, one.since, one.until) == (other.rollup, "e1", NOW - timedelta(minutes=3), NOW)
    assert (one.rollup.n_scored, one.rollup.mean, again.rollup.n_scored) == (2, 0.5, 1)
    with store.begin() as tx:
        assert StoreFeed(tx, NOW).view(scope("c1"), place, "a").growth("c1") is None
        assert not list(tx.connection.execute(select(growths)))


def test_late_scores_of_an_older_epoch_are_not_the_newest_again(store: Store) -> None:
    """A judge's last answers come after the new scorecard's first; rules that compare across epochs get both."""
    place = Place("desk", "production", "baseline")
    add(store, entry("new", NOW, epoch="e2"))
    with store.begin() as tx:
        assert StoreFeed(tx, NOW).view(scope("c1"), place, "a").growth("c1") is not None
    add(store, entry("late", NOW - timedelta(minutes=9), 0.0))
    with store.begin() as tx:
        feed = StoreFeed(tx, NOW)
        assert feed.view(scope("c1"), place, "a").growth("c1") is None
        across = feed.view(scope("c1", across_epochs=True), place, "a")
        grown = across.growth("c1")
        window = across.scores("c1", NOW - timedelta(hours=1), NOW)
    assert grown is not None
    assert (grown.epoch, grown.rollup.n_scored) == ("", 1)
    assert window is not None
    assert (window.epoch, window.rollup.n_scored, window.rollup.mean) == ("", 2, 0.5)


def test_a_window_without_values_still_tells_of_errors(store: Store) -> None:
    """So that a judge that fails always is no want of data."""
    failed = [replace(entry(f"r-{i}", NOW), score=Score(Status.ERROR)) for i in range(3)]
    add(store, *failed)
    with store.begin() as tx:
        view = StoreFeed(tx, NOW).view(scope("c1"), Place("desk", "production", "baseline"), "a")
        found = view.scores("c1", NOW - timedelta(hours=1), NOW)
        assert view.scores("c1", NOW - timedelta(hours=3), NOW - timedelta(hours=2)) is None
    assert found is not None
    assert (found.rollup.n_error, found.rollup.mean) == (3, None)


def test_rules_share_what_they_read(store: Store) -> None:
    """The queries of an evaluation do not grow with the number of rules."""
    add(store, *many(100, 2))

    def statements(n_rules: int) -> int:
        seen: list[str] = []
        with store.begin() as tx:
            listener = lambda *arguments: seen.append(arguments[2])  # noqa: E731
            event.listen(store.engine, "before_cursor_execute", listener)
            feed = StoreFeed(tx, NOW)
            for _ in range(n_rules):
                of = scope("c1", by=("feature",))
                for place in feed.places(of):
                    view = feed.view(of, place, "a")
                    view.scores("c1", NOW - timedelta(minutes=10), NOW)
                    view.calls(NOW - timedelta(minutes=10), NOW)
                    view.growth("c1")
            event.remove(store.engine, "before_cursor_execute", listener)
        return len(seen)

    statements(1)  # takes the growth, whose series are looked up
    assert statements(1) == statements(30)
