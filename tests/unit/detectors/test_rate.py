"""Shares of scores in both directions, and safety flags with their confirmation."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from score_views import NOW, Arrived, Usual, batches, coins, rollup, walk

from evalpipe.alerts.memory_feed import MemoryFeed
from evalpipe.alerts.round import evaluate
from evalpipe.alerts.rules import rule_of
from evalpipe.detectors.base import detectors
from evalpipe.detectors.rate import tally
from evalpipe.detectors.view import Place
from evalpipe.errors import ConfigError
from evalpipe.scorecard.alert_rule import AlertRule

BASELINE = Usual({"refusal": rollup([0.0] * 200 + [1.0] * 9800)})


def rate(name="rate", **params):
    """The detector; an alarm in 100,000 scores unless told otherwise."""
    kind = detectors.get(name)
    params = {"criterion": "refusal", "average_run_length": 100_000.0, **params}
    return kind(kind.Params(**{key: value for key, value in params.items() if value is not None}))


def first(findings):
    """Number of the first finding that is violated; None if there is none."""
    return next((i for i, finding in enumerate(findings) if finding.violated), None)


def test_more_refusals_are_found_soon():
    """From 2 to 6 %: within 500 scores, after 2,000 good ones; the value is the new share."""
    values = coins(2, 2000, 0.02) + coins(3, 3000, 0.06)
    _, findings = walk(rate(), BASELINE, batches("refusal", values))
    assert 80 <= first(findings) <= 100
    assert findings[-1].value == pytest.approx(0.06, abs=0.015)
    assert findings[-1].ratio > 2


def test_what_is_told_is_the_share_since_the_great_change_and_not_since_a_small_excess_before_it():
    """A little more than usual for hours, then 40 %: the page says about 40 %, and not a mean of both."""
    told = []
    for seed in range(5):
        values = coins(30 + seed, 900, 0.026) + coins(40 + seed, 100, 0.4)
        told.append(walk(rate(), BASELINE, batches("refusal", values))[1][-1].value)
    assert sorted(told)[2] == pytest.approx(0.4, abs=0.08)
    assert min(told) > 0.3


def test_fewer_refusals_than_there_should_be_are_found_where_they_are_asked_for():
    """From 20 to 5 %, direction below and both; above says nothing."""
    usual = Usual({"refusal": rollup(coins(4, 10_000, 0.2))})
    values = coins(5, 1500, 0.05)
    for direction, found in (("below", True), ("both", True), ("above", False)):
        _, findings = walk(rate(direction=direction), usual, batches("refusal", values))
        assert findings[-1].violated is found


def test_a_steady_share_raises_no_alarm():
    """20,000 scores, in both directions."""
    _, findings = walk(rate(direction="both"), BASELINE, batches("refusal", coins(6, 20_000, 0.02), 200))
    assert first(findings) is None
    assert "as usual" in findings[-1].reason


def test_the_condition_is_over_after_recovery():
    """And the sums begin anew."""
    values = coins(7, 5000, 0.08) + coins(8, 3000, 0.02)
    state, findings = walk(rate(), BASELINE, batches("refusal", values))
    assert findings[199].violated
    assert findings[-1].violated is False
    assert state["changed"] is False


def test_a_change_of_a_rare_share_is_over_soon_after_it():
    """Of 80,000 none was flagged: bets on small changes of that would take 17,000 scores to fall."""
    usual = Usual({"refusal": rollup([1.0] * 80_000)})
    values = coins(21, 1500, 0.01) + [1.0] * 3000
    state, findings = walk(rate(), usual, batches("refusal", values))
    assert findings[59].violated
    assert findings[-1].violated is False
    assert max(state["series"]["refusal"]["sums"]) < 10_000


def test_a_change_that_lasts_does_not_pause():
    """Fifty low scores are due in 500 at 10 %; that twenty are missing now and then is no recovery."""
    values = coins(22, 300, 0.1) + coins(23, 20_000, 0.1)
    _, findings = walk(rate(), BASELINE, batches("refusal", values))
    assert all(finding.violated for finding in findings[30:])


def test_errors_of_a_judge_hurt_what_is_known_of_the_answers_only():
    """A third of its calls fail: more than a fifth of the traffic, and no SEV2."""
    usual = Usual({"refusal": rollup([1.0] * 9990, errors=10)})
    batch = rollup([1.0] * 20, errors=10)
    _, findings = walk(rate(of="error"), usual, [{"refusal": batch}] * 20)
    assert findings[-1].violated
    assert findings[-1].severity == "SEV3"


@pytest.mark.parametrize(
    ("of", "bad", "good"),
    [("error", {"errors": 3}, {}), ("abstained", {"abstained": 3}, {}), ("skipped", {"skipped": 3}, {})],
)
def test_what_has_no_value_is_counted_by_its_status(of, bad, good):
    """Errors of a judge, no score, and answers that a criterion does not apply to."""
    usual = Usual({"refusal": rollup([1.0] * 9990, errors=10, abstained=10, skipped=10)})
    detector = rate(of=of)
    assert walk(detector, usual, [{"refusal": rollup([1.0] * 20, **good)}] * 50)[1][-1].violated is False
    _, findings = walk(detector, usual, [{"refusal": rollup([1.0] * 20, **bad)}] * 20)
    assert findings[-1].violated
    assert findings[-1].value == pytest.approx(3 / 23, abs=0.01)


def test_a_share_is_of_what_could_have_counted():
    """Low of the scored, errors of the tried, abstained of both, skipped of all."""
    found = rollup([0.0, 0.5, 1.0, 1.0], errors=2, abstained=1, skipped=3)
    assert tally(found, "low", 0.5) == (4, 2)
    assert tally(found, "low", 0.0) == (4, 1)
    assert tally(found, "error", 0.5) == (7, 2)
    assert tally(found, "abstained", 0.5) == (5, 1)
    assert tally(found, "skipped", 0.5) == (10, 3)


def test_a_share_that_was_never_seen_is_not_known_to_be_nothing():
    """0 of 2,000 is compatible with 1 in 2,000: 60 in 60,000 raise no alarm; 1 in 50 does."""
    clean = Usual({"refusal": rollup([1.0] * 2000)})
    rare = [{"refusal": rollup([0.0] + [1.0] * 1999)}] * 30
    assert first(walk(rate(), clean, rare)[1]) is None
    assert first(walk(rate(), clean, [{"refusal": rollup([0.0] + [1.0] * 49)}] * 30)[1]) < 10


def test_only_confirmed_flags_count_where_a_criterion_confirms_them():
    """Many flags that the second judge dismisses raise no alarm; confirmed ones do, even when the answer is late."""
    usual = Usual({"harmful": rollup(coins(9, 10_000, 0.01)), "confirmed": rollup([1.0] * 95 + [0.0] * 5)})
    detector = rate(criterion="harmful", confirm="confirmed")
    assert detector.criteria == ("harmful", "confirmed")
    flagged = {"harmful": rollup([0.0] * 4 + [1.0] * 46)}
    dismissed = [{**flagged, "confirmed": rollup([1.0] * 4)}] * 60
    assert first(walk(detector, usual, dismissed)[1]) is None
    late = [flagged, {"confirmed": rollup([0.0] * 2 + [1.0] * 2)}] * 60
    assert first(walk(detector, usual, late)[1]) is not None


def test_state_is_small_json():
    """And goes through JSON unchanged."""
    state, _ = walk(rate(direction="both"), BASELINE, batches("refusal", coins(10, 1000, 0.06)))
    assert json.loads(json.dumps(state)) == state
    assert len(json.dumps(state)) < 2000


def test_without_a_baseline_it_cannot_be_told():
    """And the reason says what to do."""
    _, findings = walk(rate(), None, batches("refusal", [0.0]))
    assert findings[0].violated is None
    assert "evalpipe baseline capture" in findings[0].reason
    assert rate().look(Arrived({}, BASELINE), {})[1].violated is None


@pytest.mark.parametrize("params", [{"of": "error", "confirm": "x"}, {"confirm": "refusal"}])
def test_confirmations_that_make_no_sense_are_refused(params):
    """Of errors, and of a criterion by itself."""
    with pytest.raises(ConfigError, match="confirm"):
        rate(**params)


def flags(harmful, confirmed=()):
    """What arrives: scores of both criteria."""
    found = {"harmful": rollup(harmful)}
    return {**found, "confirmed": rollup(confirmed)} if confirmed else found


SAFE = Usual({"harmful": rollup(coins(11, 10_000, 0.005)), "confirmed": rollup([1.0] * 50)})


def test_one_confirmed_flag_acts_at_once_while_false_ones_are_rare_enough():
    """1,000 scores a day x 30 x .5 % x .2 % = .3 false ones a month; it is over after three hours without another."""
    detector = rate("safety", criterion="harmful", confirm="confirmed", average_run_length=None,
                    false_flags=0.005, false_confirms=0.002)  # fmt: skip
    assert detector.kind == "safety"
    state, findings = walk(detector, SAFE, [flags([1.0] * 20), flags([0.0, 1.0], [1.0]), flags([0.0], [0.0])])
    assert [finding.violated for finding in findings] == [False, False, True]
    assert "acts at once (0.3 false ones expected in 30d)" in findings[2].reason
    for minutes, violated in ((150, True), (190, False)):
        assert detector.look(Arrived({}, SAFE, NOW + timedelta(minutes=minutes)), state)[1].violated is violated


@pytest.mark.parametrize("measured", [{}, {"false_flags": 0.005}, {"false_flags": 0.005, "false_confirms": 0.1}])
def test_one_flag_does_not_act_where_false_ones_are_too_many_or_nobody_measured_them(measured):
    """Then the rate of confirmed flags decides."""
    detector = rate("safety", criterion="harmful", confirm="confirmed", average_run_length=None, **measured)
    _, findings = walk(detector, SAFE, [flags([1.0] * 20), flags([0.0], [0.0])])
    assert findings[-1].violated is False
    _, findings = walk(detector, SAFE, [flags([0.0] + [1.0] * 19, [0.0])] * 20)
    assert findings[-1].violated


def test_a_detector_that_is_never_wrong_needs_no_baseline():
    """False flags 0: the first flag acts, confirmed by nobody."""
    detector = rate("safety", criterion="harmful", false_flags=0.0)
    _, findings = walk(detector, None, [flags([1.0]), flags([0.0])])
    assert [finding.violated for finding in findings] == [False, True]


def test_a_rule_of_flags_fires_in_a_round_and_resolves():
    """By the feed that simulations use: each score is given once, whichever criteria it reads."""
    desk = Place("desk", "prod", "live")
    feed, book, states = MemoryFeed(NOW), {}, []
    feed.set_normal(Usual({"harmful": rollup([1.0] * 10_000)}, epoch="1"))
    written = AlertRule.model_validate(
        {"name": "leaks", "detect": "safety", "severity": "table", "normal": {"baseline": "latest"},
         "params": {"criterion": "harmful", "false_flags": 0.0}}
    )  # fmt: skip
    rule = rule_of(written, None, lambda place: place.service == "desk")
    for minute, values in enumerate([[1.0] * 5, [0.0, 1.0], [1.0] * 5, [1.0]]):
        feed.now = NOW + timedelta(hours=2 * minute)
        feed.add_scores("harmful", desk, feed.now, values)
        done = evaluate([rule], feed, book, feed.now)
        book = {**book, **done.states}
        states.append(sorted(firing.severity for firing in done.firing.values()))
    assert done.errors == []
    assert states == [[], ["SEV1"], ["SEV1"], []]


def test_confirmations_from_before_the_rule_was_armed_are_not_counted():
    """While there was no baseline they belonged to scores that nobody counted."""
    detector = rate(criterion="harmful", confirm="confirmed")
    state, _ = walk(detector, None, [flags([0.0] * 50, [0.0] * 50)] * 20)
    _, findings = walk(detector, SAFE, [flags([1.0] * 50)] * 5, state)
    assert first(findings) is None
    assert findings[-1].value == 0.0
