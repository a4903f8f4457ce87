"""A feed that is fed by hand gives back what was put in, at any grain."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalpipe.alerts.memory_feed import MemoryFeed
from evalpipe.detectors.view import Coverage, NormalSpec, Place, PrintRun, Scope, Spender
from evalpipe.profile import Profile

START = datetime(2026, 11, 2, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
CHAT, MAIL = (Place("desk", "production", "baseline", feature, "r") for feature in ("chat", "mail"))
DESK = Place("desk", "production", "baseline")


def anywhere(place):
    """Every place."""
    return bool(place.service)


def scope(*inputs: str, by=(), normal=None, **more):
    """Of everything."""
    return Scope("card", frozenset(inputs), ("tone",), anywhere, by, normal or NormalSpec(), **more)


ALL = scope("scores")


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 3 * 1440), st.integers(1, 5)), max_size=40),
    st.integers(0, 3 * 1440),
    st.integers(0, 3 * 1440),
    st.booleans(),
)
def test_a_window_has_the_scores_and_calls_of_its_minutes(batches, a, b, early):
    """Over minutes, hours and days, also where a rule looked before they came."""
    feed = MemoryFeed(START + 3 * DAY)
    low, high = START + min(a, b) * MINUTE, START + max(a, b) * MINUTE
    if early:
        feed.places(ALL)
    for minute, n in sorted(batches):
        feed.add_scores("tone", CHAT, START + minute * MINUTE, [0.5] * n)
        feed.add_calls(MAIL, START + minute * MINUTE, {"calls": n}, {"latency": {100.0: n}})
    wanted = sum(n for minute, n in batches if low <= START + minute * MINUTE < high)
    view = feed.view(ALL, DESK, "id")
    seen = view.scores("tone", low, high)
    assert (seen.rollup.n_scored if seen else 0) == wanted
    grain = HOUR if feed.now - low > 2 * DAY else MINUTE
    if low.minute == 0 or grain == MINUTE:
        calls = view.calls(low, high)
        assert calls.sketches["latency"].count == calls.n


def test_each_alert_gets_each_score_once():
    """Of the newest epoch; another alert has a growth of its own."""
    feed = MemoryFeed(START)
    feed.add_scores("tone", CHAT, START, [1.0, 0.0])
    feed.add_scores("tone", MAIL, START, [1.0])
    one, other = feed.view(ALL, DESK, "one"), feed.view(ALL, DESK, "other")
    assert one.growth("tone").rollup.n_scored == 3
    assert one.growth("tone") is None
    feed.add_scores("tone", MAIL, START + MINUTE, [1.0] * 4, epoch="2")
    assert (one.growth("tone").epoch, other.growth("tone").rollup.n_scored) == ("2", 4)


def test_epochs_are_mixed_only_where_the_rule_says_so():
    """The newest counts else."""
    feed = MemoryFeed(START + HOUR)
    feed.add_scores("tone", CHAT, START, [0.0] * 5)
    feed.add_scores("tone", CHAT, START + MINUTE, [1.0] * 5, epoch="2")
    both = scope("scores", across_epochs=True)
    assert feed.view(ALL, DESK, "a").scores("tone", START, feed.now).rollup.mean == 1.0
    assert feed.view(both, DESK, "a").scores("tone", START, feed.now).rollup.mean == 0.5


def test_scores_of_another_scorecard_are_not_seen():
    """Those of none are everybody's."""
    feed = MemoryFeed(START + HOUR)
    feed.add_scores("tone", CHAT, START, [0.0] * 5, scorecard="other")
    assert feed.places(ALL) == set()
    feed.add_scores("tone", CHAT, START, [1.0] * 5, scorecard="card")
    assert feed.view(ALL, DESK, "a").scores("tone", START, feed.now).rollup.n_scored == 5


def test_a_place_that_is_silent_for_a_day_is_none():
    """Unless an alert asks for it by name."""
    feed = MemoryFeed(START + HOUR)
    feed.add_calls(CHAT, START, {"calls": 1})
    wide = scope("calls", by=("feature",))
    assert feed.places(wide) == {Place("desk", "production", "baseline", "chat")}
    feed.now += 2 * DAY
    assert feed.places(wide) == set()


def test_the_rest_is_given_as_it_came():
    """Users, profiles, fingerprints and coverage of the window."""
    feed = MemoryFeed(START + HOUR)
    for minute in range(10):
        at = START + minute * MINUTE
        feed.add_spender(CHAT, at, Spender(f"u{minute % 2}", 1, 10, float(minute)))
        feed.add_profile(CHAT, Profile(f"r{minute}", at, {"language": "en"}, {}))
        feed.add_coverage(CHAT, at, Coverage(observed=10, oldest_s=float(minute), heard_at=at))
    feed.add_print(CHAT, "set", PrintRun("p", START, {"length": 3.0}))
    view = feed.view(scope("users"), DESK, "a")
    assert [spender.user for spender in view.users(START, START + 5 * MINUTE)] == ["u0", "u1"]
    assert [p.record_id for p in view.profiles(START, feed.now, 5)] == ["r0", "r2", "r4", "r6", "r8"]
    assert (view.coverage(START, START + 3 * MINUTE).observed, view.coverage(START, feed.now).oldest_s) == (30, 9.0)
    assert len(view.prints("set", START)) == 1
    with pytest.raises(ValueError, match="does not count coins"):
        feed.add_calls(CHAT, START, {"coins": 1})


@pytest.mark.parametrize(
    ("spec", "words", "n"),
    [
        (NormalSpec("previous", span=DAY), "the 1d before", 24),
        (NormalSpec("seasonal", span=14 * DAY), "the same hours of the 2 weeks before", 2),
    ],
)
def test_what_came_before_is_a_normal(spec, words, n):
    """The day before, or the same hour in the weeks before."""
    feed = MemoryFeed(START + 15 * DAY)
    for hour in range(15 * 24):
        feed.add_scores("tone", CHAT, START + hour * HOUR, [0.5])
        feed.add_calls(CHAT, START + hour * HOUR, {"calls": 2})
    view = feed.view(scope("scores", normal=spec), DESK, "a")
    normal = view.normal(feed.now - HOUR, feed.now)
    assert (normal.words, normal.scores("tone").rollup.n_scored, normal.calls().n) == (words, n, 2 * n)
    assert feed.view(ALL, DESK, "a").normal(feed.now - HOUR, feed.now) is None


def test_what_comes_late_is_in_its_window_all_the_same():
    """Users, prints and coverage are found by their time, in whatever order they were added."""
    feed = MemoryFeed(START + HOUR)
    for minute in (30, 10, 20, 50, 0):
        at = START + minute * MINUTE
        feed.add_spender(CHAT, at, Spender("ann", 1.0, 10.0, float(minute)))
        feed.add_print(DESK, "set", PrintRun("p", at, {"chars": float(minute)}))
        feed.add_coverage(DESK, at, Coverage(observed=minute, oldest_s=float(minute)))
    view = feed.view(scope("users"), DESK, "a")
    since, until = START + 10 * MINUTE, START + 50 * MINUTE
    assert view.users(since, until) == [Spender("ann", 3.0, 30.0, 60.0)]
    assert [run.traits["chars"] for run in view.prints("set", since)] == [10.0, 20.0, 30.0, 50.0]
    assert (view.coverage(since, until).observed, view.coverage(since, until).oldest_s) == (60, 30.0)
