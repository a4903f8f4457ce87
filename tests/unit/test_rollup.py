"""Rollups merge in any order and grouping, and are what their scores add up to."""

from __future__ import annotations

import copy
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.rollup import BINS, SUMS, Rollup, bin_of, merged
from evalpipe.score import Score, Status
from evalpipe.store.levels import stored

# Halves, quarters and so on: their sums are exact, so that equal means equal.
VALUES = st.integers(0, 64).map(lambda n: n / 64)
WEIGHTS = st.sampled_from([1.0, 2.0, 20.0, 0.5])
SCORES = VALUES.map(lambda v: Score(Status.SCORED, v)) | st.sampled_from(
    [Score(s) for s in Status if s is not Status.SCORED]
)
COUNTED = st.tuples(SCORES, WEIGHTS, st.sampled_from([0.0, 0.25]))
BATCHES = st.lists(COUNTED, max_size=20)


def rollup_of(batch):
    """The scores, added one by one."""
    found = Rollup()
    for score, weight, cost in batch:
        found.add(score, weight, cost)
    return found


def sum_of(*parts: Rollup) -> Rollup:
    """The parts merged, from the left, into none of them."""
    total = copy.deepcopy(parts[0])
    for part in parts[1:]:
        total.merge(part)
    return total


@given(BATCHES, BATCHES)
def test_merging_is_the_same_as_adding(first, second):
    """A bucket can be made in parts."""
    assert sum_of(rollup_of(first), rollup_of(second)) == rollup_of(first + second)


@given(BATCHES, BATCHES, BATCHES)
def test_merging_takes_any_order_and_grouping(a, b, c):
    """Associative and commutative, with the empty rollup as nothing."""
    a, b, c = rollup_of(a), rollup_of(b), rollup_of(c)
    assert sum_of(a, b) == sum_of(b, a)
    assert sum_of(sum_of(a, b), c) == sum_of(a, sum_of(b, c))
    assert sum_of(a, Rollup()) == sum_of(Rollup(), a) == a
    assert merged([a, b, c]) == sum_of(a, b, c)


@given(BATCHES)
def test_merging_leaves_what_is_merged_as_it_was(batch):
    """Histograms are not shared."""
    source = rollup_of(batch)
    before = copy.deepcopy(source)
    total = sum_of(Rollup(), source)
    total.merge(source)
    total.bins[7] = 99
    assert source == before


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(1, 1e6)), min_size=1, max_size=50))
def test_the_mean_is_the_weighted_mean(pairs):
    """Against exact arithmetic."""
    found = rollup_of([(Score(Status.SCORED, v), w, 0.0) for v, w in pairs])
    exact = sum(Fraction(v) * Fraction(w) for v, w in pairs) / sum(Fraction(w) for _, w in pairs)
    assert found.mean == pytest.approx(float(exact), abs=1e-7)
    assert found.sum_wx2 <= found.sum_wx * (1 + 1e-12)


@given(st.integers(0, 1000).map(lambda n: n / 1000), st.integers(1, 300))
def test_a_mean_of_equal_values_is_that_value(value, n):
    """So that it is not below a line that it stands on."""
    assert rollup_of([(Score(Status.SCORED, value), 1.0, 0.0)] * n).mean == value


ANY = st.tuples(
    st.floats(0, 1).map(lambda v: Score(Status.SCORED, v)) | SCORES,
    st.floats(1, 2_000) | st.integers(1, 2_000).map(lambda n: n / 3),
    st.floats(0, 10),
)


@given(st.lists(ANY, max_size=60), st.randoms(use_true_random=False), st.integers(1, 7))
def test_any_order_and_any_split_give_the_same_bytes(batch, dice, parts):
    """With any weights, values and costs: what was added in another order can be compared bit by bit."""
    whole = rollup_of(batch)
    shuffled = dice.sample(batch, len(batch))
    pieces = [rollup_of(shuffled[i::parts]) for i in range(parts)]
    assert stored(merged(pieces)) == stored(whole)
    assert stored(merged(pieces[::-1])) == stored(whole)


def test_sums_stay_exact_up_to_half_a_billion_calls():
    """The stated limit, with weights and values that no power of two has."""
    big = Rollup(sum_w=2.0**29 - 1e5, sum_wx=2.0**29 - 1e5, sum_wx2=2.0**29 - 1e5, sum_w2=2.0**37 - 1e9,
                 sum_w2x=2.0**37 - 1e9, sum_w2x2=2.0**37 - 1e9)  # fmt: skip
    small = [rollup_of([(Score(Status.SCORED, v / 7), w / 3, 0.001)]) for v in range(8) for w in range(3, 3000, 111)]
    assert stored(merged([big, *small])) == stored(merged([*small[::-1], big]))
    assert merged([big, *small]).sum_w - big.sum_w == merged(small).sum_w


@given(BATCHES)
def test_statuses_are_counted_apart_and_only_scored_values_enter_the_sums(batch):
    """Unknown is not zero."""
    found = rollup_of(batch)
    counts = (found.n_scored, found.n_skipped, found.n_error, found.n_abstained)
    assert counts == tuple(sum(s.status is status for s, _, _ in batch) for status in Status)
    assert found.sum_w == sum(w for s, w, _ in batch if s.status is Status.SCORED)
    assert found.cost_usd == sum(cost for _, _, cost in batch)
    assert sum(found.bins.values()) == found.n_scored
    assert (found.mean is None) == (found.quantile(0.5) is None) == (found.n_scored == 0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.sampled_from([0.0, 0.05, 0.5, 0.9, 1.0]))
def test_a_quantile_is_exact_to_half_a_bin(values, q):
    """0.01, of the value with that rank; ends included."""
    found = rollup_of([(Score(Status.SCORED, v), 1.0, 0.0) for v in values])
    exact = sorted(values)[max(0, math.ceil(q * len(values)) - 1)]
    assert found.quantile(q) == pytest.approx(exact, abs=0.5 / BINS + 1e-9)


@given(st.integers(0, 30), st.integers(0, 30))
def test_pass_and_fail_stay_exact(passed, failed):
    """0 and 1 are not rounded to the middle of a bin."""
    found = rollup_of(
        [(Score(Status.SCORED, 1.0), 1.0, 0.0)] * passed + [(Score(Status.SCORED, 0.0), 1.0, 0.0)] * failed
    )
    if failed:
        assert found.quantile(0.0) == 0.0
    if passed:
        assert found.quantile(1.0) == 1.0
    assert set(found.bins) <= {bin_of(0.0), bin_of(1.0)}
    assert bin_of(0.0) < bin_of(1e-12) <= bin_of(1 - 1e-12) < bin_of(1.0)


@given(st.floats(0, 1), st.floats(0, 1))
def test_bins_are_in_the_order_of_the_values(a, b):
    """So that a quantile can walk them."""
    low, high = sorted((a, b))
    assert bin_of(low) <= bin_of(high)


def test_the_sums_that_the_database_adds_up_are_all_fields_but_the_histogram():
    """A new field that is forgotten there would be lost."""
    assert {*SUMS, "bins"} == set(Rollup.__slots__)


def test_a_score_that_weighs_nothing_costs_money_and_counts_nowhere():
    """Of a record that late feedback kept: it is there to be read, and no minimum sample may count it."""
    found = rollup_of([(Score(Status.SCORED, 0.0), 0.0, 0.5), (Score(Status.SCORED, 1.0), 2.0, 0.25)])
    assert (found.n_scored, found.mean, found.cost_usd, sum(found.bins.values())) == (1, 1.0, 0.75, 1)
