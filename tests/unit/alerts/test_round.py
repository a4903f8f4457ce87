"""One evaluation of all rules: over a feed that is fed by hand, as production runs it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from evalpipe.alerts.memory_feed import MemoryFeed
from evalpipe.alerts.played import Fixed
from evalpipe.alerts.round import alert_id, evaluate
from evalpipe.alerts.rules import rule_of
from evalpipe.alerts.state import AlertState
from evalpipe.detectors.base import Finding
from evalpipe.detectors.mean import Mean
from evalpipe.detectors.view import Place, Stretch
from evalpipe.errors import ConfigError
from evalpipe.rollup import Rollup
from evalpipe.score import scored
from evalpipe.scorecard.alert_rule import AlertRule

START = datetime(2026, 11, 22, 2, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
CHAT, MAIL = (Place("desk", "production", "baseline", feature, "rel-1") for feature in ("chat", "mail"))
DESK = Place("desk", "production", "baseline")


def everywhere(place):
    """Every place belongs to the rule."""
    return bool(place.service)


def rule(fits=everywhere, **fields):
    """A rule on the mean of ``tone`` unless it says otherwise."""
    if not {"detect", "meter"} & fields.keys():
        fields = {"criterion": "tone", "mean": {"below": 0.8}, "min_sample": 10} | fields
    return rule_of(AlertRule(**({"name": "low"} | fields)), None, fits)


class Play:
    """Minutes that go by."""

    def __init__(self, *rules: Any) -> None:
        self.rules, self.feed, self.book, self.now, self.log = rules, MemoryFeed(START), {}, START, []

    def minute(self, *places: Place, value=0.9, n=20, calls=100, **sums):
        """Scores and calls of one minute, then an evaluation."""
        for place in places:
            self.feed.add_scores("tone", place, self.now, [value] * n)
            self.feed.add_calls(place, self.now, {"calls": calls, **sums}, {"latency": {100.0: calls}})
        self.now = self.feed.now = self.now + MINUTE
        # As a restart between any two evaluations would have it.
        kept = {id_: AlertState.from_state(json.loads(json.dumps(s.to_state()))) for id_, s in self.book.items()}
        done = evaluate(self.rules, self.feed, kept, self.now)
        self.book |= done.states
        self.log += [(t.alert_id, t.after) for t in done.transitions]
        return done


def test_a_rule_fires_where_its_mean_is_low_and_resolves_where_it_recovers():
    """One alert for all features; its id says where."""
    play = Play(rule(window="2m"))
    for value in (0.9, 0.5, 0.5, 0.9, 0.9):
        play.minute(CHAT, MAIL, value=value)
    id_ = "desk/production/baseline//low"
    assert play.log == [(id_, "firing"), (id_, "resolved")]


def test_by_feature_each_has_an_alert_of_its_own():
    """And a place without trouble stays inactive."""
    play = Play(rule(by=["feature"], window="1m"))
    play.minute(CHAT, value=0.5)
    done = play.minute(MAIL, value=0.9)
    assert play.log == [("desk/production/baseline//low/chat", "firing")]
    assert done.states["desk/production/baseline//low/mail"].phase == "inactive"


def test_places_that_do_not_fit_are_not_looked_at():
    """Also where their scores would cross the line."""
    play = Play(rule(fits=lambda place: place.feature == "mail"))
    done = play.minute(CHAT, MAIL, value=0.5)
    assert done.states["desk/production/baseline//low"].n == 20


def test_too_few_scores_are_no_data_and_a_silent_place_is_still_looked_at():
    """Its policy is for that; the words name both."""
    play = Play(rule(window="1m", no_data="firing"))
    play.minute(CHAT)
    for _ in range(3):
        done = play.minute()
    assert play.log == [("desk/production/baseline//low", "firing")]
    (said,) = done.standing.values()
    assert said.reason == (
        "mean of tone over 1m has 0 scores of at least 10 needed (min_sample); no_data = firing makes low firing"
    )


def test_the_newest_epoch_alone_counts():
    """Scores of before an edit of the criterion are not mixed with those after it."""
    play = Play(rule())
    play.minute(CHAT, value=0.2)
    play.feed.add_scores("tone", CHAT, play.now, [1.0] * 12, epoch="2")
    done = play.minute()
    assert [(s.value, s.n, s.phase) for s in done.states.values()] == [(1.0, 12, "resolved")]


def test_a_meter_rule_counts_all_calls_of_its_window():
    """A rate is of the whole window, also where the service is younger."""
    play = Play(rule(meter="cost_usd_per_minute", value={"above": 20}, window="5m"))
    done = play.minute(CHAT, MAIL, cost_usd=45.0)
    assert [(s.value, s.n, s.phase) for s in done.states.values()] == [(18.0, 200, "inactive")]
    play.minute(CHAT, MAIL, cost_usd=45.0)
    assert play.log == [("desk/production/baseline//low", "firing")]


class Broken:
    """A detector that fails, at all places or while it says so."""

    kind, version, inputs, criteria = "quality", "1", frozenset({"scores"}), ("tone",)

    def look(self, view, state):
        """It cannot."""
        raise ZeroDivisionError("a hole in the data")


def broken(**fields):
    """A rule with that detector."""
    return replace(rule(name="broken", **fields), detector=Broken())


@pytest.mark.parametrize(("policy", "phase"), [("keep", "inactive"), ("ok", "inactive"), ("firing", "firing")])
def test_a_broken_rule_stops_no_other_and_follows_its_policy(policy, phase):
    """It is told as a mishap, with its place."""
    play = Play(broken(on_error=policy), rule())
    done = play.minute(CHAT, value=0.5)
    assert done.states["desk/production/baseline//low"].phase == "firing"
    assert done.states["desk/production/baseline//broken"].phase == phase
    assert [str(mishap) for mishap in done.errors] == [
        "alert rule /broken could not be evaluated at desk/production/baseline: ZeroDivisionError: a hole in the data"
    ]


def test_a_feed_that_cannot_name_places_is_a_mishap_of_that_rule():
    """The alert that it has is evaluated all the same."""

    def torn(_):
        raise OSError("no places")

    play = Play(rule(name="torn", fits=torn), rule())
    play.feed.add_scores("tone", CHAT, START, [0.1] * 20)
    done = evaluate(play.rules, play.feed, {}, START + MINUTE)
    assert ([mishap.rule for mishap in done.errors], len(done.states)) == (["/torn"], 1)


class Counting:
    """Counts its own evaluations."""

    kind, version, inputs, criteria = "quality", "1", frozenset({"scores"}), ("tone",)

    def look(self, view, state):
        """One more."""
        n = state.get("n", 0) + 1
        return {"n": n}, Finding(violated=False, n=n)


def test_a_detector_s_state_is_kept_and_begins_anew_with_other_parameters():
    """The life of the alert goes on."""
    one = replace(rule(), detector=Counting(), detector_key="a")
    play = Play(one)
    assert [s.n for _ in range(3) for s in play.minute(CHAT).states.values()] == [1, 2, 3]
    play.rules = (replace(one, detector_key="b"),)
    assert [s.n for s in play.minute(CHAT).states.values()] == [1]


def test_an_older_evaluation_changes_nothing_and_keeps_the_detectors_state():
    """Two workers at once, and one clock behind the other."""
    play = Play(rule())
    play.minute(CHAT, value=0.5)
    done = evaluate(play.rules, play.feed, play.book, play.now - MINUTE)
    assert (done.states, done.transitions) == ({}, [])


def test_the_growth_of_a_stream_is_given_to_each_rule_once():
    """A quality rule sees a drop within minutes, and its alert comes down again after recovery."""
    base = Rollup()
    for i in range(2000):
        base.add(scored(float(i % 10 != 0)))
    play = Play(rule(name="q", detect="quality", params={"criterion": "tone"}))
    play.feed.set_normal(Fixed("last week", {"tone": Stretch("tone", "1", base, START - timedelta(days=7), START)}))
    for minute in range(60):
        play.minute(CHAT, value=1.0, n=9)
        play.minute(CHAT, value=0.0, n=1 if minute < 30 else 9)
        if play.log:
            break
    assert play.log == [("desk/production/baseline//q", "firing")]
    assert 30 <= minute <= 34


class Costly(Counting):
    """Its ratio is the mean times 100."""

    kind = "cost"

    def look(self, view, state):
        """As the last minute says."""
        ratio = 100.0 * view.scores("tone", view.at - MINUTE, view.at).rollup.mean
        return {}, Finding(violated=ratio >= 2.0, value=ratio, n=1, ratio=ratio)


def test_the_severity_of_the_table_rises_in_an_episode_and_never_falls():
    """A cost of 3, 30 and 3 times the usual, then another episode."""
    play = Play(replace(rule(name="cost", severity="table"), detector=Costly()))
    found = [(s.phase, s.severity) for ratio in (3, 30, 3, 100, 1, 1, 3) for s in
             play.minute(CHAT, value=ratio / 100).states.values()]  # fmt: skip
    assert found == [
        ("firing", "SEV3"), ("firing", "SEV2"), ("firing", "SEV2"), ("firing", "SEV1"), ("resolved", "SEV1"),
        ("resolved", "SEV1"), ("firing", "SEV3"),
    ]  # fmt: skip


def test_the_author_s_severity_is_not_changed():
    """Nor is that of a rule without one, where a line was drawn."""
    play = Play(rule(name="a", severity="SEV4"), rule(name="b"), rule(name="c", severity="table"))
    done = play.minute(CHAT, value=0.1)
    assert [firing.severity for firing in done.firing.values()] == ["SEV4", "SEV3", "SEV2"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"detect": "qualty"}, "no detector named 'qualty'; did you mean 'quality'"),
        ({"detect": "mean", "params": {"criterion": "tone"}}, "exactly one of 'below' and 'above'"),
        ({"detect": "mean", "params": {"below": 0.5}}, "params.criterion: is missing"),
    ],
)
def test_a_rule_that_cannot_work_is_refused(fields, said):
    """With the words of the loader."""
    with pytest.raises(ConfigError, match=said):
        rule(**fields)


def test_the_short_forms_are_detectors():
    """With the same parameters, so the same key: an alert goes on when its rule is written the other way."""
    long = rule(detect="mean", params={"criterion": "tone", "below": 0.8, "window": "10m", "min_sample": 10})
    assert isinstance(rule().detector, Mean)
    assert rule().detector_key == long.detector_key
    assert rule(window="5m").detector_key != long.detector_key


def test_an_alert_is_called_by_its_place_and_rule():
    """What the rule does not tell apart is not in it."""
    one = rule()
    assert alert_id(one, DESK) == "desk/production/baseline//low"
    assert alert_id(one, CHAT) == "desk/production/baseline//low/chat/rel-1"
