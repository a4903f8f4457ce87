"""A cheap signal on all records makes the judged ones tell more, and costs nothing of the guarantee."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from statistics import median

from hypothesis import given, settings
from hypothesis import strategies as st

from evalpipe.rollout.gates.mean import MeanGate
from evalpipe.rollout.inputs import Evidence
from evalpipe.rollout.plan import Gate, RolloutPlan
from evalpipe.stats.control_variate import MAX_SIGNALS, MAX_WAITING
from evalpipe.stats.moments import Calibration

AT = datetime(2026, 11, 22, tzinfo=UTC)
KNOWN = Calibration(0.85, 0.1275, 300)


def gate_of(control="signal", **changes):
    """A gate at alpha 1 %, with or without its control."""
    gate = Gate("quality", "quality", alpha=0.01, control=control, calibration=KNOWN, **changes)
    return MeanGate(gate, RolloutPlan("r-1", "bot", "v1", "v2", (gate,)))


def records(seed, judged, *, drop=0.0, rho=0.9, share=0.1, shift=0.0):
    """Right or wrong answers, a ``share`` judged, with a signal on all of them; ``shift`` moves the canary's signal."""
    rng, seq, n = random.Random(seed), 0, 0
    while n < judged:
        canary = seq % 2
        value = float(rng.random() < 0.85 * (1 - drop * canary))
        f = value if rng.random() < rho else float(rng.random() < 0.85)
        f = 0.0 if canary and rng.random() < shift else f
        arm = "canary" if canary else "baseline"
        yield Evidence(seq, AT, arm, f"u{seq}", "signal", f)
        if rng.random() < share:
            n += 1
            yield Evidence(seq, AT, arm, f"u{seq}", "quality", value)
        seq += 1


def judged_until_harm(state, evidence):
    """Judged scores until harm is proven; None if it never is."""
    n = 0
    for one in evidence:
        n += one.criterion == "quality"
        if state.take(one) and state.comparison.harm.fired(0.01):
            return n
    return None


def test_a_signal_of_correlation_nine_tenths_saves_more_than_half_of_the_judging():
    """Drop of 10 % at 1:1; the gain is told, and the estimate is as right as without."""
    plain, controlled, gains = [], [], []
    for seed in range(24):
        plain.append(judged_until_harm(gate_of(""), records(seed, 6_000, drop=0.1)) or 1 << 30)
        state = gate_of()
        controlled.append(judged_until_harm(state, records(seed, 6_000, drop=0.1)) or 1 << 30)
        gains.append(state.numbers()["control"]["gain"])
    assert median(plain) >= 1.8 * median(controlled)
    state = gate_of()
    judged_until_harm(state, records(99, 600))
    found = state.numbers()["control"]
    assert found["criterion"] == "signal"
    assert 0.8 <= found["correlation"] <= 1.0
    assert 0.7 <= found["b"] <= 1.0
    assert found["gain"] >= 1.8


def test_a_signal_that_moves_with_the_release_alone_is_no_harm():
    """A third of the canary's signals say wrong while its answers are as good: at most three of 30 fire."""
    fired, estimates = 0, []
    for seed in range(30):
        state = gate_of()
        fired += judged_until_harm(state, records(seed, 700, shift=0.33, share=0.3)) is not None
        estimates.append(state.comparison.estimate.drop)
    assert fired <= 3
    assert abs(median(estimates)) < 0.02


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.data())
def test_the_order_in_which_signals_and_scores_interleave_changes_nothing(seed, lag, data):
    """Each is in its own order; scores come up to 60 records later or sooner than their signals."""
    evidence = list(records(seed, 60, rho=0.8, share=0.3))
    ahead = data.draw(st.sampled_from(["signal", "quality"]))
    moved = sorted(evidence, key=lambda one: (one.seq + (lag if one.criterion == ahead else 0), one.criterion))
    straight, other = gate_of(), gate_of()
    for one in evidence:
        straight.take(one)
    cuts = data.draw(st.sets(st.integers(0, len(moved)), max_size=4))
    for i, one in enumerate(moved):
        other.take(one)
        if i in cuts:
            saved = json.loads(json.dumps(other.to_state(), allow_nan=False))
            other = MeanGate.from_state(other.gate, RolloutPlan("r-1", "bot", "v1", "v2", (other.gate,)), saved)
    assert json.dumps(straight.to_state()["comparison"]) == json.dumps(other.to_state()["comparison"])


def test_what_waits_is_bounded():
    """Signals without scores, and scores without signals: neither fills the memory; unadjusted scores count as such."""
    state = gate_of()
    for seq in range(3 * MAX_SIGNALS):
        state.take(Evidence(seq, AT, "canary", f"u{seq}", "signal", 0.5))
    kept = state.to_state()["comparison"]["control"]
    assert len(kept["signals"]["canary"]) == MAX_SIGNALS
    for seq in range(10_000, 10_000 + 4 * MAX_WAITING):
        state.take(Evidence(seq, AT, "canary" if seq % 2 else "baseline", f"v{seq}", "quality", 1.0))
    found = state.numbers()["control"]
    assert found["waiting"] == MAX_WAITING
    assert found["unadjusted"] >= 2 * MAX_WAITING
    assert state.standing().seen >= MAX_WAITING


def test_a_signal_of_another_version_is_not_mixed_with_the_old_one():
    """What was kept of the arm is forgotten when its epoch changes."""
    state = gate_of()
    for seq in range(100):
        state.take(Evidence(seq, AT, "canary", f"u{seq}", "signal", 0.5, epoch="e1" if seq < 90 else "e2"))
    assert len(state.to_state()["comparison"]["control"]["signals"]["canary"]) == 10


def test_unequal_weights_or_its_own_criterion_make_no_control():
    """The signal's mean over all records is not that of thinned ones; a score is no signal of itself."""
    assert "control" not in gate_of(max_weights=(4.0, 4.0)).numbers()
    assert "control" not in gate_of("quality").numbers()
