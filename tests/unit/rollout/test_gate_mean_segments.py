"""Harm in one part of the traffic is found and named, and seldom where there is none."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest

from evalpipe.rollout.gates.mean import MeanGate
from evalpipe.rollout.gates.segments import SegmentWatch
from evalpipe.rollout.inputs import Evidence
from evalpipe.rollout.plan import Gate, RolloutPlan, Segments

AT = datetime(2026, 11, 22, tzinfo=UTC)
SHARES = {"search": 0.3, "chat": 0.2, "mail": 0.1, "docs": 0.1, "code": 0.08, "voice": 0.07, "maps": 0.05, "news": 0.04,
          "shop": 0.03, "misc": 0.03}  # fmt: skip


def plan_of(gate, **segments):
    """A plan that watches segments."""
    return RolloutPlan("r-1", "bot", "v1", "v2", (gate,), segments=Segments(**segments))


def run(seed, n, drops, gate=None, **segments):
    """Rubric scores in ten segments, drops by segment; the gate, and the score at which a segment was named."""
    gate = gate or Gate("quality", "quality")
    rng, state, named = random.Random(seed), MeanGate(gate, plan_of(gate, **segments)), None
    names = rng.choices(list(SHARES), weights=list(SHARES.values()), k=n)
    for seq, name in enumerate(names):
        arm = "canary" if seq % 2 else "baseline"
        value = rng.choices((0.0, 0.25, 0.5, 0.75, 1.0), (0.02, 0.04, 0.09, 0.22, 0.63))[0]
        if arm == "canary" and rng.random() < drops.get(name, 0.0):
            value = 0.0
        if state.take(Evidence(seq, AT, arm, f"u{seq}", "quality", value, segment=name)) and named is None:
            named = seq if state.segments.harmed else None
            if named is not None:
                break
    return state, named


@pytest.mark.parametrize("name", ["mail", "maps"])
def test_a_drop_of_a_fifth_hidden_in_one_of_ten_segments_is_found_and_named(name):
    """10 % and 5 % of the traffic: overall it is 2 % and 1 %, below the margin, and the whole is never harmed."""
    found = []
    for seed in range(8):
        state, at = run(seed, 16_000, {name: 0.2})
        standing = state.standing()
        if at is not None:
            assert standing.obstacle == "segment_harmed"
            assert name in standing.detail
            assert [one["segment"] for one in state.numbers()["segments"] if one["harmed"]] == [name]
        assert not standing.harmed
        found.append(at or 1 << 30)
    assert sorted(found)[4] < 500 / SHARES[name]
    assert sum(at < 1 << 30 for at in found) >= 7


def test_equal_arms_seldom_have_a_harmed_segment():
    """Of ten, in 100 rollouts at alpha 1 %, looked at after every score: four named would happen once in fifty."""
    fired = 0
    for seed in range(100):
        rng, watch = random.Random(seed), SegmentWatch(Gate("quality", "quality"), Segments(alpha=0.01))
        names = rng.choices(list(SHARES), weights=list(SHARES.values()), k=2_000)
        values = rng.choices((0.0, 0.25, 0.5, 0.75, 1.0), (0.02, 0.04, 0.09, 0.22, 0.63), k=2_000)
        for seq, (name, value) in enumerate(zip(names, values, strict=True)):
            watch.add(name, "canary" if seq % 2 else "baseline", value, 1.0)
        fired += any(one["max_e_value"] >= one["threshold"] for one in watch.numbers())
    assert fired <= 3


def test_a_harmed_segment_rolls_back_where_the_plan_says_so():
    """Role guardrail: the standing is harmed and its detail names the segment and the numbers."""
    state, at = run(3, 6_000, {"chat": 0.4}, role="guardrail", by="feature")
    assert at is not None
    standing = state.standing()
    assert (standing.harmed, standing.obstacle) == (True, "")
    assert standing.detail.startswith("feature 'chat': -")


def test_segments_beyond_the_most_are_one():
    """The first two that show up by name; all others as "other"; traffic without a segment is not watched."""
    gate = Gate("quality", "quality")
    state = MeanGate(gate, plan_of(gate, most=2))
    for seq, name in enumerate(["a", "a", "b", "b", "c", "d", "", ""] * 30):
        state.take(Evidence(seq, AT, "canary" if seq % 2 else "baseline", f"u{seq}", "quality", 1.0, segment=name))
    assert [(one["segment"], one["matched_canary"]) for one in state.numbers()["segments"]] == [
        ("a", 30), ("b", 30), ("other", 30)
    ]  # fmt: skip


@pytest.mark.parametrize("most", [1, 5, 20])
def test_the_shares_of_alpha_add_up_to_it(most):
    """One over each threshold, the pooled rest included."""
    gate = Gate("quality", "quality")
    state = MeanGate(gate, plan_of(gate, most=most, alpha=0.01))
    for seq in range(2 * most + 4):
        state.take(Evidence(seq, AT, "baseline", f"u{seq}", "quality", 1.0, segment=f"s{seq}"))
    assert sum(1 / one["threshold"] for one in state.numbers()["segments"]) == pytest.approx(0.01)
