"""How much of the traffic an alert affects, and how severe that makes it."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.alerts.impact import Part, Share, share_of, standings, z_of
from evalpipe.alerts.memory_feed import MemoryFeed
from evalpipe.alerts.played import Fixed
from evalpipe.alerts.round import evaluate
from evalpipe.alerts.rules import rule_of
from evalpipe.alerts.table import severity_of, worse
from evalpipe.detectors.base import Finding
from evalpipe.detectors.view import Place, Stretch
from evalpipe.rollup import Rollup
from evalpipe.score import scored
from evalpipe.scorecard.alert_rule import AlertRule

START = datetime(2026, 11, 22, 2, 0, tzinfo=UTC)
FEATURES = ("chat", "mail", "search", "voice")
CALLS = (5000, 2500, 1500, 1000)


def stretch(rng, n, p):
    """So many passes and fails."""
    rollup = Rollup()
    for _ in range(n):
        rollup.add(scored(float(rng.random() < p)))
    return Stretch("tone", "1", rollup)


def test_the_interval_covers_the_true_share():
    """Four features, of which a random choice drops from 0.9 to 0.7; in 95 % of the windows at the least."""
    rng, covered, wide = random.Random(1), 0, 0.0
    for _ in range(300):
        dropped = [rng.random() < 0.5 for _ in FEATURES]
        dropped[rng.randrange(4)] = True
        usual = [stretch(rng, 400, 0.9) for _ in FEATURES]
        now = [stretch(rng, 150, 0.7 if bad else 0.9) for bad in dropped]
        gap = sum(-0.2 * n for n, bad in zip(CALLS, dropped, strict=True) if bad) / sum(CALLS)
        stands = standings(list(zip(now, usual, strict=True)), gap)
        share = share_of([Part(n, *stand) for n, stand in zip(CALLS, stands, strict=True)])
        true = sum(n for n, bad in zip(CALLS, dropped, strict=True) if bad) / sum(CALLS)
        covered += share.low <= true <= share.high
        wide += share.high - share.low
    assert covered >= 285
    assert wide / 300 < 0.25


def graded(rng, n, kept):
    """So many answers on a rubric of five grades, of which a share of 1 - ``kept`` breaks."""
    rollup = Rollup()
    for grade in rng.choices((0.0, 0.25, 0.5, 0.75, 1.0), (2, 5, 9, 19, 65), k=round(n)):
        rollup.add(scored(grade * (rng.random() < kept)))
    return Stretch("tone", "1", rollup)


STANDINGS = [("affected", None), ("fine", None), ("unknown", None), ("unknown", False), ("unknown", True)]


@given(st.lists(st.tuples(st.integers(0, 10_000), st.sampled_from(STANDINGS)), max_size=8))
def test_the_estimate_lies_in_the_interval_and_both_in_0_to_1(parts):
    """Whatever the parts; without calls nothing is said."""
    share = share_of([Part(n, *stands) for n, stands in parts])
    if sum(n for n, _ in parts) == 0:
        assert share is None
    else:
        assert 0.0 <= share.low <= share.estimate + 1e-9
        assert share.estimate <= share.high + 1e-9 <= 1.0 + 2e-9


def test_parts_of_which_nothing_is_known_are_counted_as_those_that_are():
    """Half of one that nobody knows; the interval has all of it."""
    share = share_of([Part(100, "affected"), Part(100, "unknown")])
    assert (round(share.estimate, 3), round(share.low, 2), share.high) == (0.875, 0.43, 1.0)


def test_a_small_feature_is_no_fifth_and_everywhere_is_more():
    """The estimate decides the severity: a quarter less in 15 % of the calls, and 8 % less everywhere."""
    rng, calls = random.Random(8), (0.5, 0.35, 0.15)
    usual = [graded(rng, 6_000 * share, 1.0) for share in calls]
    beyond = {(1.0, 1.0, 0.75): 0, (0.92, 0.92, 0.92): 0}
    for _ in range(80):
        for kept in beyond:
            seen = [graded(rng, 800 * c, one) for c, one in zip(calls, kept, strict=True)]
            pairs = list(zip(seen, usual, strict=True))
            drop = sum(c * (a.rollup.mean - b.rollup.mean) for c, (a, b) in zip(calls, pairs, strict=True))
            share = share_of([Part(c, *one) for c, one in zip(calls, standings(pairs, drop), strict=True)])
            beyond[kept] += share.estimate > 0.2
    small, everywhere = beyond.values()
    assert (small <= 8, everywhere) == (True, 80)


def test_a_line_is_a_normal_without_an_error():
    """A rule with a line that was crossed tells its parts apart by the line."""
    rng = random.Random(2)
    pairs = [(stretch(rng, 200, 0.5), 0.8), (stretch(rng, 200, 0.95), 0.8), (None, 0.8)]
    assert [standing for standing, _ in standings(pairs, -0.1)] == ["affected", "fine", "unknown"]


def test_more_parts_need_more_evidence_each():
    """All intervals hold together."""
    zs = [z_of(k) for k in (1, 2, 10, 11, 500)]
    assert zs == sorted(zs)


def test_the_share_of_an_alert_counts_the_whole_service():
    """One feature of three drops; the meter says that it has a tenth of the calls."""
    feed, rng = MemoryFeed(START), random.Random(3)
    places = [Place("desk", "production", "baseline", feature, "r") for feature in FEATURES[:3]]
    for minute in range(10):
        at = START + timedelta(minutes=minute)
        for place, calls in zip(places, (10, 60, 30), strict=True):
            bad = place.feature == "chat"
            feed.add_scores("tone", place, at, [float(rng.random() < (0.3 if bad else 0.95)) for _ in range(30)])
            feed.add_calls(place, at, {"calls": calls})
    feed.now = START + timedelta(minutes=10)
    feed.set_normal(
        Fixed("last week", {"tone": replace(stretch(rng, 3000, 0.95), since=START - timedelta(days=7), until=START)})
    )
    rule = rule_of(AlertRule(name="q", detect="quality", params={"criterion": "tone"}), None, lambda _: True)
    line = rule_of(AlertRule(name="l", criterion="tone", mean={"below": 0.9}, severity="table"), None, lambda _: True)
    done = evaluate([rule, line], feed, {}, feed.now)
    assert done.errors == []
    assert [round(firing.share.estimate, 2) for firing in done.firing.values()] == [0.1, 0.1]
    assert all(firing.share.low > 0.05 and firing.share.high < 0.15 for firing in done.firing.values())
    assert {firing.severity for firing in done.firing.values()} == {"SEV3"}


def test_a_share_of_low_scores_rises_while_their_mean_falls():
    """Answers without context in every feature: all of the traffic is affected, and 45 % of it is more than a fifth."""
    feed, rng = MemoryFeed(START), random.Random(4)
    for minute in range(10):
        at = START + timedelta(minutes=minute)
        for place in [Place("desk", "production", "baseline", feature, "r") for feature in FEATURES[:3]]:
            feed.add_scores("found", place, at, [float(rng.random() < 0.55) for _ in range(30)])
            feed.add_calls(place, at, {"calls": 100})
    feed.now = START + timedelta(minutes=10)
    usual = replace(stretch(rng, 3000, 0.99), since=START - timedelta(days=7), until=START)
    feed.set_normal(Fixed("last week", {"found": usual}))
    rule = rule_of(AlertRule(name="r", detect="rate", params={"criterion": "found"}), None, lambda _: True)
    done = evaluate([rule], feed, {}, feed.now)
    assert done.errors == []
    assert [(round(firing.share.estimate, 2), firing.severity) for firing in done.firing.values()] == [(1.0, "SEV2")]


MUCH, LITTLE, NEARLY_NOBODY = Share(0.5, 0.3, 0.7), Share(0.1, 0.05, 0.3), Share(0.002, 0.0, 0.004)


@pytest.mark.parametrize(
    ("kind", "found", "share", "severity"),
    [
        ("safety", {}, NEARLY_NOBODY, "SEV1"),
        ("cost", {"ratio": 100.0}, None, "SEV1"),
        ("cost", {"ratio": 99.0}, None, "SEV2"),
        ("cost", {"ratio": 9.9}, None, "SEV3"),
        ("cost", {"ratio": 3.0, "severity": "SEV1"}, None, "SEV1"),
        ("quality", {"ratio": 0.8}, MUCH, "SEV2"),
        ("quality", {"ratio": 0.8}, LITTLE, "SEV3"),
        ("quality", {"ratio": 0.8}, None, "SEV3"),
        ("quality", {"ratio": 0.8}, NEARLY_NOBODY, "SEV4"),
        ("rate", {"ratio": 3.0, "value": 0.06}, MUCH, "SEV3"),
        ("rate", {"ratio": 9.0, "value": 0.6, "n": 200}, LITTLE, "SEV2"),
        ("rate", {"ratio": 9.0, "value": 0.6, "n": 20}, LITTLE, "SEV3"),
        ("rate", {"ratio": 9.0, "value": 0.95, "n": 10}, LITTLE, "SEV2"),
        ("rate", {"ratio": 9.0, "value": 0.5, "n": 400}, MUCH, "SEV2"),
        ("rate", {"ratio": 9.0, "value": 0.5, "n": 400, "numbers": {"design_effect": 40.0}}, MUCH, "SEV3"),
        ("rate", {"ratio": 0.1, "value": 0.6}, MUCH, "SEV3"),
        ("latency", {"ratio": 2.1}, MUCH, "SEV3"),
        ("latency", {"ratio": 1.6}, MUCH, "SEV4"),
        ("meter", {}, MUCH, "SEV3"),
        ("coverage", {}, None, "SEV3"),
        ("input_drift", {}, MUCH, "SEV3"),
        ("fingerprint", {}, None, "SEV3"),
    ],
)
def test_the_table_of_severities(kind, found, share, severity):
    """By what was found, how large it is, and whom it affects."""
    assert severity_of(kind, Finding(True, **found), share) == severity


def test_the_worse_of_two_severities_counts():
    """And none is no severity."""
    assert (worse("", "SEV4"), worse("SEV2", "SEV3"), worse("SEV3", "SEV1")) == ("SEV4", "SEV2", "SEV1")
