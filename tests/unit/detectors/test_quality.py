"""Quality against a baseline: found when it falls, over when it is back, and never guessed."""

from __future__ import annotations

import json

import pytest
from score_views import NOW, Arrived, Usual, batches, coins, rollup, rubric, walk

from evalpipe.detectors.base import detectors
from evalpipe.errors import ConfigError

BASELINE = Usual({"grounded": rollup(rubric(1, 6000)), "polite": rollup(coins(2, 6000, 0.1))})


def quality(**params):
    """The detector; an alarm in 100,000 scores unless told otherwise."""
    kind = detectors.get("quality")
    params = {"criterion": "grounded", "average_run_length": 100_000.0, **params}
    return kind(kind.Params(**{key: value for key, value in params.items() if value is not None}))


def first(findings):
    """Number of the first finding that is violated."""
    return next(i for i, finding in enumerate(findings) if finding.violated)


@pytest.mark.parametrize(("drop", "within"), [(0.05, 60), (0.10, 20), (0.20, 6)])
def test_a_drop_is_found_soon(drop, within):
    """Batches of 25 scores until the alarm, after 2,000 good ones; the value is near the truth."""
    values = rubric(3, 2000) + rubric(4, 3000, 0.85 * (1 - drop))
    _, findings = walk(quality(), BASELINE, batches("grounded", values))
    assert 80 <= first(findings) <= 80 + within
    assert findings[-1].value == pytest.approx(0.85 * (1 - drop), abs=0.02)
    assert findings[-1].ratio == pytest.approx(1 - drop, abs=0.02)


def test_steady_quality_raises_no_alarm():
    """20,000 scores of the same law; the alarm is set to one in 100,000."""
    _, findings = walk(quality(), BASELINE, batches("grounded", rubric(5, 20_000), 100))
    assert not any(finding.violated for finding in findings)
    assert findings[-1].violated is False
    assert "as usual" in findings[-1].reason


def test_the_condition_is_over_soon_after_recovery_and_lasts_as_long_as_the_drop():
    """20,000 scores of a drop by a tenth, then good ones."""
    values = rubric(6, 20_000, 0.765) + rubric(7, 2000)
    state, findings = walk(quality(), BASELINE, batches("grounded", values, 50))
    down = [i for i, finding in enumerate(findings) if finding.violated]
    assert down == list(range(down[0], down[-1] + 1))
    assert 400 <= down[-1] <= 430
    assert sum(state["series"]["grounded"]["sums"]) < 1000


def test_too_good_is_found_where_it_is_asked_for():
    """Direction up, and both; not with direction down."""
    values = rubric(8, 2000, 0.93)
    found = {d: walk(quality(direction=d), BASELINE, batches("grounded", values))[1] for d in ("up", "both", "down")}
    assert found["up"][-1].violated
    assert found["both"][-1].violated
    assert not found["down"][-1].violated
    assert found["both"][-1].ratio > 1.05


def test_a_drop_of_one_criterion_of_several_is_found():
    """The evidence of all is averaged; the finding tells each mean."""
    detector = quality(criterion=None, criteria={"grounded": 2.0, "polite": 1.0})
    grounded, polite = batches("grounded", rubric(9, 3000)), batches("polite", coins(10, 3000, 0.3))
    _, findings = walk(detector, BASELINE, [{**a, **b} for a, b in zip(grounded, polite, strict=True)])
    assert first(findings) < 20
    means = findings[-1].numbers["criteria"]
    assert means["polite"]["mean"] == pytest.approx(0.7, abs=0.05)
    assert means["grounded"]["mean"] == pytest.approx(0.85, abs=0.03)


def test_state_is_small_json_and_goes_on_where_it_was():
    """Through JSON after every batch, the findings are the same."""
    values, detector, state = rubric(11, 3000, 0.8), quality(), {}
    _, whole = walk(detector, BASELINE, batches("grounded", values))
    for batch, expected in zip(batches("grounded", values), whole, strict=True):
        state, findings = walk(detector, BASELINE, [batch], json.loads(json.dumps(state)))
        assert findings[0].violated == expected.violated
    assert findings[0].numbers["evidence"] == pytest.approx(whole[-1].numbers["evidence"])
    assert len(json.dumps(state)) < 2000


def test_nothing_new_changes_nothing():
    """The last finding stands; before any score there is none."""
    detector = quality()
    state, findings = walk(detector, BASELINE, batches("grounded", rubric(12, 1000, 0.6)))
    assert detector.look(Arrived({}, None), state) == (state, findings[-1])
    assert detector.look(Arrived({}, None), {})[1].violated is None


def test_a_baseline_that_cannot_serve_is_no_baseline():
    """None, too small a one, and one of another epoch: each says what to do."""
    batch = batches("grounded", rubric(13, 25))
    small = Usual({"grounded": rollup(rubric(14, 640))})
    other = Usual({"grounded": rollup(rubric(15, 6000))}, epoch="e0")
    for normal, words in (
        (None, "evalpipe baseline capture"),
        (small, "640 scores and 1,000 are needed"),
        (other, "across_epochs"),
    ):
        state, findings = walk(quality(), normal, batch)
        assert findings[0].violated is None
        assert words in findings[0].reason
        assert "series" not in state


def test_a_rule_across_epochs_gets_a_baseline_that_fits_any():
    """Its epoch is empty."""
    _, findings = walk(quality(), Usual({"grounded": rollup(rubric(16, 6000))}, epoch=""), batches("grounded", [1.0]))
    assert findings[0].violated is False


def test_a_new_epoch_starts_anew():
    """What was gathered under another judge is no evidence."""
    any_epoch = Usual({"grounded": rollup(rubric(17, 6000))}, epoch="")
    state, findings = walk(quality(), any_epoch, batches("grounded", rubric(18, 1000, 0.6)))
    assert findings[-1].violated
    _, findings = walk(quality(), any_epoch, batches("grounded", [1.0] * 20), state, epoch="e2")
    assert findings[-1].violated is False


def test_a_baseline_between_1000_and_3000_scores_is_trusted_less():
    """What counts as no change is wider, and the reason says so."""
    small = Usual({"grounded": rollup(rubric(19, 1200))})
    _, findings = walk(quality(), small, batches("grounded", rubric(20, 100)))
    _, full = walk(quality(), BASELINE, batches("grounded", rubric(20, 100)))
    assert "not fully trusted below 3,000" in findings[0].reason
    assert "not fully trusted" not in full[0].reason

    def margin(finding):
        numbers = finding.numbers["criteria"]["grounded"]
        return numbers["normal"] - numbers["as_usual_from"]

    assert margin(findings[0]) > margin(full[0])


def test_the_threshold_comes_from_the_rate_of_scores_and_the_wanted_rate_of_false_alarms():
    """6,000 scores in ten days are 219,000 in a year; without dates nobody knows."""
    _, findings = walk(quality(average_run_length=None), BASELINE, batches("grounded", [1.0]))
    assert findings[0].numbers["average_run_length"] == pytest.approx(219_000)
    undated = Usual({"grounded": rollup(rubric(21, 6000))}, days=0.0)
    _, findings = walk(quality(average_run_length=None), undated, batches("grounded", [1.0]))
    assert findings[0].violated is None
    assert "average_run_length" in findings[0].reason


def test_scores_that_resemble_each_other_count_for_less():
    """A design effect of 4 makes the alarm later, and the baseline's own error greater."""
    clustered = Usual({"grounded": rollup(rubric(22, 6000))}, effect=4.0)
    alone = Usual({"grounded": rollup(rubric(22, 6000))})
    drop = batches("grounded", rubric(23, 4000, 0.765))
    assert first(walk(quality(), clustered, drop)[1]) > 1.5 * first(walk(quality(), alone, drop)[1])


@pytest.mark.parametrize(
    "params", [{"criterion": None}, {"criteria": {"a": 1.0}}, {"criterion": None, "criteria": {"a": 0.0}}]
)
def test_parameters_that_cannot_work_are_refused(params):
    """Neither or both of criterion and criteria, and weights of nothing."""
    with pytest.raises(ConfigError, match="quality"):
        quality(**params)


def test_a_clock_that_goes_back_does_no_harm():
    """The time of a view is not what is counted."""
    detector = quality()
    state, _ = walk(detector, BASELINE, batches("grounded", rubric(24, 100)))
    earlier = NOW.replace(year=2020)
    _, finding = detector.look(Arrived({"grounded": rollup([1.0])}, BASELINE, earlier), state)
    assert finding.violated is False


def test_the_numbers_say_where_to_look_for_examples():
    """Over the time that the changed scores took; the worst are the lowest, or the highest where it is too good."""
    _, findings = walk(quality(), BASELINE, batches("grounded", rubric(25, 1000, 0.6)))
    assert findings[-1].numbers["worst"] == "lowest"
    assert 86_400 < findings[-1].numbers["window_s"] <= 2 * 86_400
    _, findings = walk(quality(direction="up"), BASELINE, batches("grounded", rubric(26, 1000, 0.95)))
    assert findings[-1].numbers["worst"] == "highest"
