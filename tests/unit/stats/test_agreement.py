"""Agreement of two who grade, against published examples and by simulation with fixed seeds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.stats.agreement import UNKNOWN, Confusion, _agreement, _kappa, cohen_kappa, krippendorff_alpha, majority
from evalpipe.stats.bias import by_name, by_position, by_size

FLEISS = Confusion(("psychosis", "neurosis", "organic"), ((75, 1, 4), (5, 4, 1), (0, 0, 10)))
"""Fleiss, Statistical Methods for Rates and Proportions, table 13.1."""
N = None
KRIPPENDORFF = list(
    zip(
        [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
        [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
        strict=True,
    )
)
"""Krippendorff 2011, Computing Krippendorff's alpha-reliability, example C."""


def test_kappa_and_its_standard_error_are_those_of_the_textbook():
    """0.676 with an asymptotic standard error of 0.0877."""
    kappa, error = _kappa(np.array(FLEISS.counts, dtype=float), _agreement(3, "none", None))
    assert kappa == pytest.approx(0.6765, abs=5e-5)
    assert error == pytest.approx(0.0877, abs=5e-5)
    assert cohen_kappa(FLEISS).value == kappa
    assert (FLEISS.n, FLEISS.agreed) == (100, 89)


@pytest.mark.parametrize(("metric", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_that_of_its_inventor(metric, alpha):
    """Four raters, twelve things, missing grades."""
    found = krippendorff_alpha(KRIPPENDORFF, metric)
    assert found.value == pytest.approx(alpha, abs=5e-4)
    assert found.low < found.value <= found.high
    assert krippendorff_alpha(KRIPPENDORFF, metric) == found


def test_grades_that_are_all_the_same_tell_nothing():
    """Nor do none at all; a table without disagreement is not certainty."""
    assert cohen_kappa(Confusion(("a", "b"), ((50, 0), (0, 0)))) == UNKNOWN
    assert cohen_kappa(Confusion(("a", "b"), ((0, 0), (0, 0)))) == UNKNOWN
    assert krippendorff_alpha([(1.0, 1.0)] * 9) == UNKNOWN
    assert krippendorff_alpha([(1.0, N)] * 9 + [(2.0, N)]) == UNKNOWN
    perfect = cohen_kappa(Confusion(("a", "b"), ((15, 0), (0, 15))))
    assert perfect.value == perfect.high == 1.0
    assert 0.5 < perfect.low < 0.95


TWO = [[0.1, 0.05], [0.1, 0.75]]
THREE = [[0.1, 0.05, 0.01], [0.05, 0.25, 0.09], [0.01, 0.05, 0.39]]


@pytest.mark.parametrize(
    ("law", "weights"), [(TWO, "none"), ([[0.45, 0.05], [0.05, 0.45]], "none"), (THREE, "linear"), (THREE, "quadratic")]
)
@pytest.mark.parametrize("n", [50, 200])
def test_the_interval_of_kappa_holds_the_truth_as_often_as_stated(law, weights, n):
    """Coverage of 95 % intervals over 1,000 tables is 93 to 97 %."""
    rng, shares = np.random.default_rng(n), np.array(law)
    truth, _ = _kappa(shares, _agreement(len(law), weights, None))
    labels = tuple("abc"[: len(law)])
    inside = 0
    for drawn in rng.multinomial(n, shares.ravel(), size=1000):
        table = tuple(tuple(map(int, row)) for row in drawn.reshape(shares.shape))
        found = cohen_kappa(Confusion(labels, table), weights)
        inside += found.low <= truth <= found.high
    assert 0.93 <= inside / 1000 <= 0.97


@pytest.mark.parametrize(("n", "right"), [(20, 0.99), (40, 0.99), (40, 0.95), (100, 0.99)])
def test_the_interval_of_alpha_holds_the_truth_also_where_hardly_anything_is_disagreed_on(n, right):
    """A sample without a disagreement is not certainty: drawing from it alone would hold alpha 0.95 in 1 of 4 runs."""
    rng, inside, runs = np.random.default_rng(n), 0, 200

    def pairs(size):
        truth = rng.random(size) < 0.7
        return np.where(rng.random((2, size)) < right, truth, ~truth).T.astype(float)

    alpha = krippendorff_alpha(pairs(200_000).tolist(), replications=0).value
    for _ in range(runs):
        found = krippendorff_alpha(pairs(n).tolist(), replications=400)
        inside += found.low is None or found.low <= alpha <= found.high
    assert inside / runs >= 0.9


def test_few_agreements_leave_room_below() -> None:
    """Two records on which people agree prove little."""
    found = krippendorff_alpha([(1.0, 1.0), (0.0, 0.0)])
    assert found.value == found.high == 1.0
    assert found.low < 0.5


def test_the_interval_of_alpha_holds_the_truth_about_as_often_as_stated():
    """Two raters, 150 things, 400 samples: at least 92 %."""
    rng, shares = np.random.default_rng(4), np.array(TWO)
    at = [(float(i), float(j)) for i in range(2) for j in range(2)]
    units = [at[k] for k in np.repeat(range(4), np.round(shares.ravel() * 40_000).astype(int))]
    truth = krippendorff_alpha(units, replications=0).value
    inside = 0
    for _ in range(400):
        found = krippendorff_alpha([at[k] for k in rng.choice(4, 150, p=shares.ravel())], replications=400)
        inside += found.low <= truth <= found.high
    assert 0.92 <= inside / 400 <= 0.98


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), max_size=40))
def test_kappa_lies_inside_its_interval_whatever_was_graded(pairs):
    """And does not care who is first."""
    found = cohen_kappa(Confusion.of(pairs, "abc"))
    other = cohen_kappa(Confusion.of([(b, a) for a, b in pairs], "abc"))
    if found.value is None:
        assert found == other == UNKNOWN
    else:
        assert -1.0 <= found.low <= found.value <= found.high <= 1.0
        assert other.value == pytest.approx(found.value)


@given(st.lists(st.lists(st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0])), max_size=4), max_size=12))
def test_alpha_of_two_grades_far_apart_does_not_depend_on_the_metric(units):
    """With only two values ranks, squares and names say the same."""
    two = [[None if v is None else float(v > 0.5) for v in unit] for unit in units]
    found = [krippendorff_alpha(two, metric, replications=0).value for metric in ("nominal", "ordinal", "interval")]
    assert found[0] is None or found == pytest.approx([found[0]] * 3)


def test_most_is_more_than_any_other():
    """A tie, and nothing, are no majority."""
    assert majority(["a", "b", "a"]) == "a"
    assert majority(["a", "b"]) is None
    assert majority([]) is None


def graded(rng, n, by_length):
    """Lengths, and grades of a judge that is kind to long outputs, or to none; people like short ones."""
    length = rng.integers(10, 500, n)
    people = (rng.random(n) < 0.9 - length / 700).astype(float)
    kind = np.where(length > 250, 0.5, 0.1) if by_length else np.full(n, 0.3)
    judge = np.where(people == 1.0, 1.0, (rng.random(n) < kind).astype(float))
    return length.tolist(), judge.tolist(), people.tolist(), (judge != people).tolist()


def test_a_judge_that_is_kind_to_long_outputs_is_found_and_one_that_is_not_is_left_alone():
    """Although people like short ones, which makes every judge's error go with the length; p is a p-value."""
    rng = np.random.default_rng(8)
    biased = by_size(*graded(rng, 400, by_length=True))
    assert biased.correlation > 0.1
    assert biased.p < 0.001
    assert [group.n for group in biased.groups] == pytest.approx([133, 133, 133], abs=3)
    assert biased.groups[-1].wrong.low > biased.groups[0].wrong.value
    fair = [by_size(*graded(rng, 150, by_length=False)).p for _ in range(60)]
    assert 0.0 <= sum(p < 0.1 for p in fair) / 60 <= 0.2


def test_a_language_in_which_the_judge_errs_is_found():
    """Rare languages are one group."""
    rng = np.random.default_rng(3)
    names = ["en"] * 200 + ["de"] * 80 + ["fr", "it", "es"]
    people = (rng.random(283) < 0.5).astype(float).tolist()
    judge = [1.0 if name == "de" else h for name, h in zip(names, people, strict=True)]
    found = by_name(names, judge, people, [j != h for j, h in zip(judge, people, strict=True)])
    assert [(group.name, group.n) for group in found.groups] == [("en", 200), ("de", 80), ("other", 3)]
    assert found.p < 0.001
    assert found.groups[1].difference > 0.3
    assert by_name(["en"] * 9, people[:9], people[:9], [False] * 9).p is None


def test_what_a_swap_changes_tells_which_place_wins():
    """20 of 40 flip, all for the first: p is 2 * 0.5^20; a flip each way is no preference."""
    found = by_position([(1.0, 0.0)] * 20 + [(1.0, 1.0)] * 20)
    assert (found.n, found.flipped.value, found.first.value) == (40, 0.5, 1.0)
    assert found.p == pytest.approx(2 * 0.5**20)
    assert by_position([(1.0, 0.0), (0.0, 1.0)]).p == 1.0
    assert by_position([]) is None
    assert by_size([], [], [], []).groups == ()
