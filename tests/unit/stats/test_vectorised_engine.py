"""The bench's engine for many runs at once is the shipped engine: same e-values, fired at the same score."""

from __future__ import annotations

import math
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.rollout.gates.mean import MeanGate
from evalpipe.rollout.inputs import Evidence
from evalpipe.rollout.plan import Gate, RolloutPlan
from evalpipe.stats.betting import Bets
from evalpipe.stats.matched_block import MatchedEstimate
from evalpipe.stats.matching import Matcher
from evalpipe.stats.moments import Calibration, Moments
from evalpipe.stats.paired_block import PairedBlock

sys.path.append(str(Path(__file__).parents[3] / "bench"))

from decisions import lockstep, pairs

RUNS = 4
ALPHA = 0.05


def shipped(canary, weights, max_weights, values, test, calibration):
    """Fed score by score: where the first key turned, where both did, and the greatest e-value."""
    bets = Bets(
        test.direction, test.tau, test.hi, effects=test.effects, weights=test.weights, unit=test.unit, shift=test.shift
    )
    matcher, moments, estimate = Matcher(max_weights), Moments(calibration), MatchedEstimate()
    first = both = lockstep.NEVER
    for n, (is_canary, weight, value) in enumerate(zip(canary, weights, values, strict=True)):
        block = matcher.add("canary" if is_canary else "baseline", float(value), float(weight))
        if block is None:
            continue
        bets.update(block, moments.mean, moments.variance)
        estimate.update(block)
        moments.update(block.baselines, test.hi)
        if bets.fired(ALPHA):
            first = n if first < 0 else first
            drop = -math.inf if estimate.drop is None else estimate.drop
            if both < 0 and estimate.n_canary >= test.min_canary and -test.direction * drop >= test.estimate:
                both = n
    return first, both, bets.max_e_value


@given(
    seed=st.integers(0, 2**32),
    share=st.sampled_from([0.02, 0.1, 0.3, 0.5, 0.7, 0.95]),
    direction=st.sampled_from([-1, 1]),
    tau=st.sampled_from([-0.05, 0.0, 0.02, 0.1]),
    hi=st.sampled_from([1.0, 10.0]),
    change=st.sampled_from([-0.3, 0.0, 0.3]),
    unequal=st.booleans(),
    known=st.booleans(),
    unit=st.sampled_from(["mean", "one", "rare"]),
    shift=st.sampled_from([0.0, 0.03]),
)
def test_runs_in_lockstep_are_the_shipped_engine_run_by_run(
    seed, share, direction, tau, hi, change, unequal, known, unit, shift
):
    """Any order of arrivals, ratio, direction, tolerance, range and weights: equal to the last bit but one."""
    rng = np.random.default_rng(seed)
    n = 400
    canary = rng.random(n) < share
    weights = rng.choice([1.0, 2.0], n) if unequal else np.full(n, 1.0)
    max_weights = (2.0, 2.0) if unequal else (1.0, 1.0)
    values = hi * np.clip(rng.choice([0.0, 0.25, 0.5, 0.75, 1.0], (n, RUNS)) + change * canary[:, None], 0, 1)
    test = lockstep.Test(direction, tau, hi, unit=unit, shift=shift * hi, alpha=ALPHA, estimate=0.02, min_canary=3)
    calibration = Calibration(0.5 * hi, 0.05 * hi * hi, 50) if known else None
    blocks = lockstep.shapes(canary, weights, max_weights)
    going_on = lockstep.run(blocks, values, test, calibration, stop=False)
    stopped = lockstep.run(blocks, values, test, calibration)
    for run in range(RUNS):
        first, both, max_e = shipped(canary, weights, max_weights, values[:, run], test, calibration)
        assert (going_on.first[run], going_on.both[run]) == (first, both)
        assert going_on.max_e[run] == pytest.approx(max_e, rel=1e-12)
        assert stopped.both[run] == both


@pytest.mark.parametrize(
    ("direction", "relative", "margin"), [("drop", True, 0.05), ("rise", True, 0.1), ("drop", False, 0.04)]
)
def test_the_gate_rolls_back_where_its_test_in_lockstep_says(direction, relative, margin):
    """Both keys, the least number of canaries, and the catastrophic bound, as the shipped gate has them."""
    rng = np.random.default_rng(3)
    gate = Gate("quality", "quality", direction=direction, relative=relative, margin=margin, alpha=ALPHA)
    canary = rng.random(600) < 0.4
    worse = rng.random((600, 6)) < np.linspace(0.05, 0.9, 6)
    values = np.where(canary[:, None] & worse, 0.2 if direction == "drop" else 1.0, rng.choice([0.5, 0.75], (600, 6)))
    found = lockstep.run(lockstep.shapes(canary), values, lockstep.Test.of(gate), stop=False)
    plan = RolloutPlan("r", "s", "baseline", "canary", (gate,))
    for run in range(6):
        state, at = MeanGate(gate, plan), lockstep.NEVER
        for n in range(600):
            arm = "canary" if canary[n] else "baseline"
            state.take(Evidence(n, datetime(2026, 1, 1, tzinfo=UTC), arm, f"u{n}", "quality", float(values[n, run])))
            if at < 0 and state.standing().harmed:
                at = n
        assert found.both[run] == at
    assert (found.both >= 0).any()


@pytest.mark.parametrize(("direction", "tau"), [(-1, 0.0), (1, -0.05)])
def test_pairs_in_lockstep_are_the_shipped_paired_test(direction, tau):
    """Same e-values, run by run."""
    rng = np.random.default_rng(4)
    x = rng.choice([0.0, 0.5, 1.0], (300, RUNS))
    y = np.where(rng.random((300, RUNS)) < 0.5, x, rng.choice([0.0, 0.25, 1.0], (300, RUNS)))
    found = pairs.run(x, y, lockstep.Test(direction, tau, alpha=ALPHA), stop=False)
    for run in range(RUNS):
        test = PairedBlock(direction, tau)
        fired = [n for n in range(300) if test.add(float(x[n, run]), float(y[n, run])) or test.fired(ALPHA)]
        assert found.max_e[run] == pytest.approx(test.max_e_value, rel=1e-12)
        assert found.first[run] == (fired[0] if fired else lockstep.NEVER)
