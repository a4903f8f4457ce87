"""The gate on a mean: what enters the test, its two keys, what stands in its way, and its state."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalpipe.rollout.gates.base import kinds
from evalpipe.rollout.gates.mean import MeanGate
from evalpipe.rollout.inputs import Evidence
from evalpipe.rollout.plan import Gate, RolloutPlan, Segments, Step
from evalpipe.score import Status

AT = datetime(2026, 11, 22, tzinfo=UTC)
QUALITY = Gate("quality", "passed", alpha=0.01)


def begun(gate=QUALITY, **plan):
    """A gate without evidence."""
    return kinds.get(gate.kind)(gate, RolloutPlan("r-1", "bot", "v1", "v2", (gate,), **plan))


def one(seq, value, arm=None, **changes):
    """One score, arms in turn, each of its own unit."""
    named = {"unit": f"u{seq}", "criterion": "passed", "status": Status.SCORED if value is not None else Status.ERROR}
    named |= changes
    return Evidence(seq, AT, arm or ("canary" if seq % 2 else "baseline"), value=value, **named)


def feed(state, baselines, canaries, first=0, **changes):
    """Scores in turn, baseline first; whether any told that the standing may have changed."""
    values = [value for pair in zip(baselines, canaries, strict=True) for value in pair]
    told = [state.take(one(first + i, value, **changes)) for i, value in enumerate(values)]
    return any(told)


def through_json(state, gate, **plan):
    """The gate as it is read back."""
    saved = json.loads(json.dumps(state.to_state(), allow_nan=False))
    return type(state).from_state(gate, RolloutPlan("r-1", "bot", "v1", "v2", (gate,), **plan), saved)


def test_users_who_ask_five_times_do_not_inflate_certainty():
    """Five alike scores of each user (correlation .5) and no difference: at most three of 40 rollouts fire."""
    fired = 0
    for seed in range(40):
        rng, state, seq = random.Random(seed), begun(), 0
        for user in range(400):
            usual, arm = float(rng.random() < 0.85), "canary" if user % 2 else "baseline"
            for _ in range(5):
                value = usual if rng.random() < 0.5**0.5 else float(rng.random() < 0.85)
                state.take(one(seq, value, arm, unit=f"user-{user}"))
                seq += 1
        fired += state.comparison.harm.fired(0.01)
        assert state.standing().seen >= 195
    assert fired <= 3


def test_a_broken_canary_is_found_within_some_hundred_scores():
    """Pass rate .9 against .72, the arms in random order; take() tells when to look."""
    needed = []
    for seed in range(60):
        rng, state = random.Random(seed), begun()
        for seq in range(3000):
            arm = rng.choice(("baseline", "canary"))
            if state.take(one(seq, float(rng.random() < (0.72 if arm == "canary" else 0.9)), arm)):
                if state.standing().harmed:
                    needed.append(seq + 1)
                    break
            else:
                assert not state.standing().harmed
    assert len(needed) == 60
    assert sorted(needed)[30] <= 300


def test_an_equal_canary_is_proven_safe_and_told_once():
    """Non-inferiority at 5 %: about 1,100 scores for the rubric of a good service."""
    rng, state = random.Random(3), begun()
    for seq in range(6000):
        turned = state.take(one(seq, rng.choice((0.5, 0.75, 1.0, 1.0, 1.0))))
        if state.standing().proven:
            assert turned
            break
    assert state.standing().proven
    assert not state.standing().harmed
    assert 200 <= seq <= 4000


def test_harm_needs_both_keys():
    """Proven harm of 2 % is not 5 %: the second key holds until the estimate is beyond its share of the margin."""
    state = begun()
    feed(state, [0.95, 0.96] * 3000, [0.93, 0.94] * 3000)
    assert state.numbers()["max_e_value"] >= state.numbers()["threshold"]
    assert state.numbers()["estimate"] == pytest.approx(-0.0209, abs=0.001)
    assert not state.standing().harmed


def test_catastrophic_harm_acts_before_the_minimum_of_canaries_and_lesser_harm_does_not():
    """All wrong against all right: within fifteen canaries; from .8 to .72 only once there are 300."""
    gate = replace(QUALITY, min_canary=300)
    state = begun(gate)
    for seq in range(40):
        if state.take(one(seq, float(seq % 2 == 0))) and state.standing().harmed:
            break
    assert state.standing().harmed
    assert 5 <= state.standing().seen <= 15
    assert state.standing().cause == "catastrophic_harm"
    state = begun(gate)
    feed(state, [0.8] * 299, [0.72] * 299)
    assert state.comparison.harm.fired(gate.alpha)
    assert not state.standing().harmed
    assert feed(state, [0.8], [0.72], first=598)
    assert state.standing().harmed


@pytest.mark.parametrize("direction", ["drop", "rise"])
def test_an_absolute_margin_is_in_points(direction):
    """.02 on a rate of .5: a change of .04 harms, one of .001 is proven harmless, whatever share of the rate it is."""
    gate = Gate("g", "passed", direction=direction, margin=0.02, relative=False, min_canary=10)
    sign = -1 if direction == "drop" else 1
    worse, alike = begun(gate), begun(gate)
    feed(worse, [0.49, 0.51] * 2000, [0.5 + 0.04 * sign, 0.5 + 0.04 * sign] * 2000)
    feed(alike, [0.49, 0.51] * 2000, [0.501, 0.499] * 2000)
    assert (worse.standing().harmed, worse.standing().proven) == (True, False)
    assert (alike.standing().harmed, alike.standing().proven) == (False, True)


def test_a_rate_of_rare_things_that_triples_is_found():
    """Refusals from 1 % to 4 %: some thousand scores; none at all in the baseline is no division by zero."""
    gate = Gate("refusals", "passed", kind="rate", direction="rise", margin=0.5, alpha=0.0025)
    needed = []
    for seed in range(20):
        rng, state = random.Random(seed), begun(gate)
        for seq in range(20_000):
            rate = 0.04 if seq % 2 else 0.01
            if state.take(one(seq, float(rng.random() < rate))) and state.standing().harmed:
                needed.append(seq)
                break
    assert len(needed) == 20
    assert sorted(needed)[10] < 2500
    state = begun(gate)
    feed(state, [0.0] * 300, [0.0, 0.0, 1.0] * 100)
    assert state.standing().harmed
    assert state.numbers()["estimate"] is None


def test_both_arms_have_to_move_to_another_epoch():
    """It holds while they differ, and begins anew when they agree again: what was proven is not carried over."""
    state = begun()
    feed(state, [1.0] * 60, [0.0] * 60, epoch="e1")
    assert state.standing().harmed
    assert state.take(one(120, 1.0, "canary", epoch="e2"))
    assert state.standing().obstacle == "epochs_differ"
    assert "e2" in state.standing().detail
    assert state.take(one(121, 1.0, "baseline", epoch="e2"))
    standing = state.standing()
    assert (standing.obstacle, standing.harmed, standing.seen) == ("", False, 0)
    assert state.numbers()["epoch"] == "e2"


def test_missing_scores_stand_in_the_way_until_they_are_few_again():
    """Beyond a fifth of the recent ones, and with hysteresis; told at both turns."""
    state = begun()
    feed(state, [1.0] * 20, [1.0] * 20)
    told = [state.take(one(100 + i, None, "canary")) for i in range(20)]
    assert sum(told) == 1
    assert state.standing().obstacle == "missing_scores"
    told = [state.take(one(200 + i, 1.0, "canary", unit=f"v{i}")) for i in range(60)]
    assert sum(told) == 1
    assert state.standing().obstacle == ""


def lossy(seed, n, drop=0.0):
    """Right or wrong answers, arms in turn; the baseline's judge loses 30 % of the wrong ones and 5 % of the right."""
    rng = random.Random(seed)
    for seq in range(n):
        canary = seq % 2
        value = float(rng.random() < 0.85 * (1 - drop * canary))
        lost = not canary and rng.random() < (0.05 if value else 0.3)
        yield one(seq, None if lost else value)


def test_scores_that_are_missing_in_one_arm_alone_hold_instead_of_rolling_back():
    """Equal arms: the missing bad answers make the baseline look better, and at most one of 24 is called harmed."""
    harmed, held = 0, 0
    for seed in range(24):
        state = begun(replace(QUALITY, alpha=0.0025, estimate_share=0.5))
        for evidence in lossy(seed, 2_000):
            if state.take(evidence) and state.standing().harmed:
                harmed += 1
                break
        else:
            held += state.standing().obstacle == "missing_scores"
    assert harmed <= 1
    assert held >= 22
    assert "not chance" in state.standing().detail


def test_harm_that_no_missing_score_can_explain_still_acts():
    """A drop of half with the same losses: harmed though the scores cannot be compared exactly."""
    state = begun()
    for evidence in lossy(1, 1_000, drop=0.5):
        state.take(evidence)
    assert (state.standing().harmed, state.standing().obstacle) == (True, "missing_scores")


def test_scores_that_are_missing_in_both_arms_alike_stand_in_no_way():
    """A tenth of either: at most one of 24 is called uneven."""
    uneven = 0
    for seed in range(24):
        rng, state, seen = random.Random(seed), begun(), set()
        for seq in range(2_000):
            state.take(one(seq, None if rng.random() < 0.1 else 1.0))
            seen.add(state.arms.uneven)
        uneven += True in seen
    assert uneven <= 1


def test_unequal_weights_are_honoured_where_they_are_bounded_and_stand_in_the_way_where_not():
    """With bounds they thin the scores; a weight beyond its bound is set aside."""
    plain = begun()
    feed(plain, [1.0], [1.0], weight=2.0)
    assert plain.standing().obstacle == ""
    assert plain.take(one(2, 1.0, weight=4.0))
    assert plain.standing().obstacle == "unequal_weights"
    bounded = begun(replace(QUALITY, max_weights=(4.0, 4.0)))
    rng = random.Random(1)
    for seq in range(2000):
        bounded.take(one(seq, 1.0, weight=rng.choice((1.0, 4.0))))
    assert bounded.standing().obstacle == ""
    assert 550 <= bounded.standing().seen <= 700
    bounded.take(one(2000, 1.0, weight=5.0))
    assert bounded.standing().obstacle == "unequal_weights"
    assert bounded.numbers()["arms"]["baseline"]["set_aside"] == 1


def test_a_suspect_judge_counts_for_nothing():
    """Set aside, and the units may still be scored later."""
    state = begun()
    feed(state, [1.0] * 50, [0.0] * 50, suspect=True)
    assert state.standing().seen == 0
    assert state.numbers()["arms"]["canary"]["set_aside"] == 50
    feed(state, [1.0] * 50, [0.0] * 50)
    assert state.standing().seen == 50


def test_reaching_a_count_that_a_step_waits_for_is_told():
    """The gate's own minimum, and each step's from where the ramp moved."""
    state = begun(steps=(Step(1, min_canary=40), Step(50, min_canary=50)))
    told = [n for n in range(1, 60) if feed(state, [0.9], [0.9], first=2 * n)]
    assert told == [1, 30, 40, 50]
    state.set_share(0.5)
    told = [n for n in range(60, 130) if feed(state, [0.9], [0.9], first=2 * n)]
    assert {99, 109} <= set(told)


score = st.tuples(
    st.sampled_from(["baseline", "canary"]),
    st.sampled_from([0.0, 0.5, 1.0, None]),
    st.sampled_from(["passed", "passed", "signal"]),
    st.sampled_from(["e1", "e1", "e1", "e2"]),
    st.integers(0, 200),
    st.sampled_from(["", "a", "b", "c"]),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(score, max_size=120), st.sampled_from(["", "signal"]), st.sampled_from([None, (2.0, 2.0)]), st.data())
def test_an_interrupted_gate_ends_bit_by_bit_as_an_uninterrupted_one(scores, control, weights, data):
    """With control, segments, weights, epochs and units: the state goes through JSON text at arbitrary places."""
    gate = replace(QUALITY, control=control, max_weights=weights)
    plan = {"segments": Segments(most=2), "steps": (Step(5, min_canary=3),)}
    whole, parts = begun(gate, **plan), begun(gate, **plan)
    cuts = data.draw(st.sets(st.integers(0, 120), max_size=20))
    for seq, (arm, value, criterion, epoch, unit, segment) in enumerate(scores):
        named = {"criterion": criterion, "epoch": epoch, "unit": f"u{unit}", "segment": segment}
        evidence = one(seq, value, arm, weight=1.0 + seq % 2, **named)
        assert whole.take(evidence) == parts.take(evidence)
        if seq in cuts:
            parts = through_json(parts, gate, **plan)
            assert parts.standing() == whole.standing()
    assert json.dumps(whole.to_state()) == json.dumps(parts.to_state())
    assert json.dumps(whole.numbers(), allow_nan=False) == json.dumps(parts.numbers(), allow_nan=False)


def test_the_state_does_not_grow():
    """After 45,000 and after 60,000 scores: the same size within a tenth, for all filters of units are full."""
    gate, rng = replace(QUALITY, alpha=1e-9), random.Random(1)
    state, sizes = begun(gate), []
    for seq in range(60_000):
        state.take(one(seq, float(rng.random() < 0.9)))
        if seq in {44_999, 59_999}:
            sizes.append(len(json.dumps(state.to_state())))
    assert sizes[1] < 1.1 * sizes[0] < 130_000


def test_both_kinds_are_found_by_name():
    """And no gate reads the meters."""
    assert kinds.get("quality") is kinds.get("rate") is MeanGate
