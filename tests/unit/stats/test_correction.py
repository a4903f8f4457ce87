"""Corrections for the judge's error: coverage by simulation with fixed seeds, and what they refuse."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.rollup import Rollup
from evalpipe.score import scored
from evalpipe.stats.correction import LEAST, Labelled, corrected, prediction_powered, rogan_gladen
from evalpipe.stats.mean_interval import interval_of, mean_interval

RUNS = 800


def rate_of(k, n):
    """So many of n passed by the judge."""
    return mean_interval(n, n, k, k)


def labelled_of(good, bad, sensitivity, specificity):
    """Labelled records with exactly these rates."""
    hits, right = round(good * sensitivity), round(bad * specificity)
    rows = [(1.0, 1.0)] * hits + [(1.0, 0.0)] * (good - hits) + [(0.0, 0.0)] * right + [(0.0, 1.0)] * (bad - right)
    return Labelled.of((h, j, 1.0) for h, j in rows)


def passes(rng, n, rate, sensitivity, specificity):
    """People's and the judge's grades of n records."""
    people = rng.random(n) < rate
    judge = np.where(people, rng.random(n) < sensitivity, rng.random(n) >= specificity)
    return people.astype(float), judge.astype(float)


@pytest.mark.parametrize(
    ("sensitivity", "specificity", "rate", "n_labelled", "n_judged"),
    [
        (0.9, 0.9, 0.7, 100, 2000),
        (0.95, 0.8, 0.9, 200, 500),
        (0.7, 0.8, 0.5, 150, 3000),
        (0.85, 0.95, 0.85, 150, 800),
        (0.9, 0.995, 0.8, 200, 3000),
        (0.6, 0.75, 0.5, 250, 2000),
    ],
)
def test_the_corrected_interval_of_a_pass_rate_holds_the_truth_and_the_raw_one_does_not(
    sensitivity, specificity, rate, n_labelled, n_judged
):
    """Coverage of 95 % intervals is 93 to 97.5 % over 800 runs; of raw ones, which ignore the judge, below 60 %."""
    rng = np.random.default_rng(int(1000 * sensitivity + n_labelled))
    inside = raw = given_ = 0
    for _ in range(RUNS):
        people, judge = passes(rng, n_labelled, rate, sensitivity, specificity)
        labelled = Labelled.of(zip(people, judge, [1.0] * n_labelled, strict=True))
        found = rate_of(int(passes(rng, n_judged, rate, sensitivity, specificity)[1].sum()), n_judged)
        fixed = rogan_gladen(found, labelled)
        raw += found.low <= rate <= found.high
        if fixed.mean is not None:
            given_ += 1
            inside += fixed.low <= rate <= fixed.high
    assert given_ > 0.9 * RUNS
    assert 0.93 <= inside / given_ <= 0.975
    assert raw / RUNS < 0.6


def test_a_biased_judge_is_never_right_however_much_it_grades():
    """Of 20,000 records the raw interval never holds the truth; the corrected one does, at another pass rate too."""
    rng, raw, inside = np.random.default_rng(1), 0, 0
    for _ in range(300):
        people, judge = passes(rng, 200, 0.5, 0.9, 0.85)  # labelled where half is bad
        labelled = Labelled.of(zip(people, judge, [1.0] * 200, strict=True))
        found = rate_of(int(rng.binomial(20_000, 0.8 * 0.9 + 0.2 * 0.15)), 20_000)
        fixed = rogan_gladen(found, labelled)
        raw += found.low <= 0.8 <= found.high
        inside += fixed.low <= 0.8 <= fixed.high
    assert raw == 0
    assert inside / 300 >= 0.92


LAWS = {
    "rough": ([0.2, 0.3, 0.5], [[0.8, 0.15, 0.05], [0.1, 0.6, 0.3], [0.02, 0.13, 0.85]]),
    "kind": (
        [0.05, 0.1, 0.15, 0.3, 0.4],
        [[0.6, 0.2, 0.1, 0.1, 0], [0.1, 0.5, 0.3, 0.1, 0], [0, 0.1, 0.4, 0.4, 0.1], [0, 0, 0.1, 0.4, 0.5],
         [0, 0, 0, 0.1, 0.9]],
    ),
}  # fmt: skip


def grades(rng, n, law):
    """People's and the judge's grades on a scale."""
    shares, confusion = law
    people = rng.choice(len(shares), n, p=shares)
    judge = (rng.random(n)[:, None] > np.cumsum(confusion, axis=1)[people]).sum(axis=1)
    return people / (len(shares) - 1), judge / (len(shares) - 1)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("n_labelled", "tune"), [(60, False), (60, True), (200, False), (200, True)])
def test_a_prediction_powered_mean_holds_the_truth(law, n_labelled, tune):
    """Coverage of 95 % intervals is 93 to 98 % over 800 runs; raw ones of a kind judge never hold it."""
    rng = np.random.default_rng(n_labelled + tune)
    shares, _ = LAWS[law]
    truth = float(np.dot(shares, np.linspace(0, 1, len(shares))))
    inside = raw = 0
    for _ in range(RUNS):
        people, judge = grades(rng, n_labelled, LAWS[law])
        labelled = Labelled.of(zip(people.tolist(), judge.tolist(), [1.0] * n_labelled, strict=True))
        _, other = grades(rng, 2000, LAWS[law])
        found = mean_interval(2000, 2000, other.sum(), (other**2).sum())
        fixed = prediction_powered(found, labelled, whole=2000.0, tune=tune)
        raw += found.low <= truth <= found.high
        inside += fixed.low <= truth <= fixed.high
    assert 0.93 <= inside / RUNS <= 0.98
    if law == "kind":
        assert raw == 0


@pytest.mark.parametrize("law", ["near", "timid"])
@pytest.mark.parametrize(("n_labelled", "n"), [(60, 60), (150, 200), (150, 600)])
@pytest.mark.parametrize("tune", [False, True])
def test_labelled_records_may_be_some_or_all_of_those_that_are_corrected(law, n_labelled, n, tune):
    """What both parts have in common is in the interval: coverage is at least 93 %.

    With all records labelled the tuned mean is that of the labels.
    """
    rng = np.random.default_rng(n + n_labelled)
    truth, inside = 0.0, 0
    for run in range(RUNS + 1):
        size = n if run else 400_000
        people = np.round(rng.beta(2.0, 1.2, size) * 4) / 4
        judge = np.clip(0.6 + (people - 0.6) * (1.0 if law == "near" else 0.4) + rng.normal(0.0, 0.1, size), 0.0, 1.0)
        if not run:
            truth = people.mean()
            continue
        labelled = Labelled.of(zip(people[:n_labelled], judge[:n_labelled], [1.0] * n_labelled, strict=True))
        found = prediction_powered(
            mean_interval(n, n, judge.sum(), (judge**2).sum()), labelled, whole=float(n), tune=tune
        )
        inside += found.low <= truth <= found.high
        if tune and n == n_labelled:
            assert found.mean == pytest.approx(people.mean(), abs=1e-9)
    assert inside / RUNS >= 0.93


def test_tuning_never_makes_the_interval_much_wider_and_a_useless_judge_counts_for_nothing():
    """A judge that throws dice: the tuned interval is that of the labels alone."""
    rng = np.random.default_rng(6)
    people, dice = grades(rng, 200, LAWS["rough"])[0], rng.choice([0.0, 0.5, 1.0], 200)
    labelled = Labelled.of(zip(people.tolist(), dice.tolist(), [1.0] * 200, strict=True))
    raw = mean_interval(2000, 2000, 1000.0, 800.0)
    tuned, plain = (prediction_powered(raw, labelled, whole=2000.0, tune=tune) for tune in (True, False))
    assert tuned.tuned < 0.15
    assert plain.tuned == 1.0
    assert tuned.high - tuned.low < 0.85 * (plain.high - plain.low)
    assert tuned.mean == pytest.approx(people.mean(), abs=0.03)


def test_weights_of_labelled_records_that_always_keep_rules_chose_are_respected():
    """Half of the labelled records are calls that a rule always keeps, mostly bad: unweighted it would be far off."""
    rng, inside, unweighted = random.Random(3), 0, 0
    for _ in range(200):
        rows, rollup = [], Rollup()
        for i in range(1000):
            kept = rng.random() < 0.5
            good = rng.random() < (0.2 if kept else 0.9)
            # The judge is kinder to what the rule keeps, so that the weights matter to its error too.
            judge = rng.random() < (0.95 if good else 0.5 if kept else 0.1)
            weight = 1.0 if kept else 20.0
            rollup.add(scored(float(judge)), weight)
            if i < 300:
                rows.append((float(good), float(judge), weight))
        truth = (0.5 * 0.2 + 0.5 * 20 * 0.9) / (0.5 + 0.5 * 20)
        fixed = corrected(rollup, Labelled.of(rows))
        inside += fixed.low <= truth <= fixed.high
        plain = corrected(rollup, Labelled.of((h, j, 1.0) for h, j, _ in rows))
        unweighted += plain.low <= truth <= plain.high
    assert inside / 200 >= 0.92
    assert unweighted < inside


def test_a_value_between_pass_and_fail_is_corrected_prediction_powered():
    """The method follows the grades; without any score, and with too few labels, there is a reason instead."""
    pass_fail, between = Rollup(), Rollup()
    for value in [1.0] * 60 + [0.0] * 40:
        pass_fail.add(scored(value))
        between.add(scored(value * 0.5))
    labelled = labelled_of(100, 50, 0.9, 0.9)
    assert corrected(pass_fail, labelled).method == "rogan-gladen"
    assert corrected(between, labelled).method == "ppi"
    assert corrected(Rollup(), labelled).reason == "nothing was scored"
    assert "only 20 labelled records" in corrected(between, labelled_of(10, 10, 0.9, 0.9)).reason


@pytest.mark.parametrize(
    ("labelled", "telling"),
    [
        (labelled_of(15, 10, 0.9, 0.9), f"only 25 labelled records; a correction needs {LEAST}"),
        (labelled_of(90, 4, 0.9, 0.9), "people pass 90 and fail 4"),
        (labelled_of(100, 100, 0.5, 0.5), "cannot be told from chance"),
        (labelled_of(100, 100, 0.3, 0.4), "- 1 = -0.30"),
        (labelled_of(20, 20, 0.6, 0.6), "cannot be told from chance"),
    ],
)
def test_what_cannot_be_corrected_says_why(labelled, telling):
    """And by how much."""
    found = rogan_gladen(rate_of(60, 100), labelled)
    assert telling in found.reason
    assert (found.mean, found.low, found.high, found.method) == (None, None, None, None)


def test_a_perfect_judge_needs_no_correction_but_its_interval_is_wider():
    """That it is perfect is known from so many labelled records only."""
    raw = rate_of(600, 1000)
    found = rogan_gladen(raw, labelled_of(60, 40, 1.0, 1.0))
    assert found.mean == pytest.approx(0.6)
    assert found.low < raw.low
    assert found.high > raw.high


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 50)), max_size=80
    ),
    st.integers(0, 200),
    st.booleans(),
)
def test_ends_are_in_range_around_the_mean_whatever_was_graded(rows, passed, tune):
    """Or there is a reason; the sums survive JSON."""
    labelled = Labelled.of(rows)
    assert Labelled.from_state(json.loads(json.dumps(labelled.to_state()))) == labelled
    raw = rate_of(passed, 200)
    for found in (
        rogan_gladen(raw, labelled) if labelled.binary else None,
        prediction_powered(raw, labelled, whole=200.0, tune=tune),
    ):
        if found is None or found.mean is None:
            assert found is None or found.reason
        else:
            assert 0.0 <= found.low <= found.mean <= found.high <= 1.0


def test_the_raw_interval_of_a_rollup_is_the_one_that_is_corrected():
    """Weighted by inclusion probability."""
    rollup = Rollup()
    for value, weight in [(1.0, 1.0), (0.0, 10.0)] * 50:
        rollup.add(scored(value), weight)
    found, raw = corrected(rollup, labelled_of(200, 200, 1.0, 1.0)), interval_of(rollup)
    assert found.mean == pytest.approx(raw.mean)
    assert found.low < raw.low
