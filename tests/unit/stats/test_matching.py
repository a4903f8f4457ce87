"""Who is compared with whom."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.stats.matching import MAX_PENDING, Matcher


def blocks_of(arms, matcher=None):
    """Feed arms with their place as value; the blocks."""
    matcher = matcher or Matcher()
    return [block for i, arm in enumerate(arms) if (block := matcher.add(arm, float(i))) is not None]


def test_evenly_interleaved_arms_give_one_block_for_each_canary():
    """At 9:1 every canary takes the nine baselines before it."""
    blocks = blocks_of((["baseline"] * 9 + ["canary"]) * 40)
    assert len(blocks) == 40
    assert blocks[-1].baselines == [float(i) for i in range(390, 399)]
    assert blocks[-1].canary == 399.0


def test_a_canary_waits_for_its_share_of_baselines():
    """After 9:1 traffic a canary does not settle for fewer than six (.7 of nine), then takes the oldest first."""
    matcher = Matcher()
    blocks_of((["baseline"] * 9 + ["canary"]) * 100, matcher)
    assert matcher.add("canary", 1.0) is None
    assert [matcher.add("baseline", 0.5) is None for _ in range(6)] == [True] * 5 + [False]


def test_the_arms_change_roles_when_the_canary_has_most_of_the_traffic():
    """At 1:9 one baseline is compared with the mean of nine canaries."""
    blocks = blocks_of((["canary"] * 9 + ["baseline"]) * 40)
    assert len(blocks) == 40
    assert len(blocks[-1].baselines) == 1
    assert blocks[-1].k_canary == 9
    assert blocks[-1].canary == sum(range(390, 399)) / 9


@given(st.lists(st.sampled_from(["baseline", "canary"]), max_size=300), st.randoms(use_true_random=False))
def test_blocks_depend_on_the_order_of_arrival_and_not_on_any_value(arms, rng):
    """Predictable: other values at the same places give blocks of the same shape at the same places."""
    one, other = Matcher(), Matcher()
    for arm in arms:
        a, b = one.add(arm, 0.0), other.add(arm, rng.random())
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert (len(a.baselines), a.k_canary) == (len(b.baselines), b.k_canary)


@given(st.lists(st.sampled_from(["baseline", "canary"]), max_size=300))
def test_no_score_is_used_twice_or_lost(arms):
    """Each is in one block, waits, or was given up."""
    matcher = Matcher()
    blocks = blocks_of(arms, matcher)
    used = sum(len(b.baselines) + b.k_canary for b in blocks)
    assert used + sum(matcher.pending) + matcher.given_up == len(arms)


def test_one_arm_alone_never_fills_the_memory():
    """The oldest scores are given up beyond the bound, and counted."""
    matcher = Matcher()
    assert blocks_of(["baseline"] * 1000, matcher) == []
    assert matcher.pending == (MAX_PENDING, 0)
    assert matcher.given_up == 1000 - MAX_PENDING


def test_unequal_weights_are_thinned_to_a_plain_sample():
    """Good answers sampled ten times as often as bad ones: what is kept has the mean of the traffic."""
    rng = random.Random(3)
    matcher = Matcher(max_weights=(10.0, 1.0))
    total = n = 0.0
    for _ in range(40_000):
        value = float(rng.random() < 10 / 11)
        matcher.add("baseline", value, 1.0 if value else 10.0)
        block = matcher.add("canary", 0.0)
        if block:
            total, n = total + sum(block.baselines), n + len(block.baselines)
    assert total / n == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("weight", [0.0, -1.0, 1.5, float("nan"), float("inf")])
def test_a_weight_beyond_its_bound_is_refused(weight):
    """The message names the bound."""
    with pytest.raises(ValueError, match=r"max_weight"):
        Matcher().add("canary", 0.5, weight)


def test_an_unknown_arm_is_refused():
    """The message names the two that there are."""
    with pytest.raises(ValueError, match="'baseline' or 'canary'"):
        Matcher().add("control", 0.5)


@given(st.lists(st.tuples(st.sampled_from(["baseline", "canary"]), st.floats(0, 1), st.floats(0.1, 4)), max_size=120))
def test_a_matcher_goes_on_from_its_state(arrivals):
    """JSON between every two scores changes nothing."""
    whole = Matcher((4.0, 4.0))
    parts = Matcher((4.0, 4.0))
    for arm, value, weight in arrivals:
        assert whole.add(arm, value, weight) == parts.add(arm, value, weight)
        parts = Matcher.from_state(json.loads(json.dumps(parts.to_state())))
    assert whole.to_state() == parts.to_state()
