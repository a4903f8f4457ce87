"""Whole rollouts on simulated traffic with fixed seeds."""

from __future__ import annotations

import random
from datetime import timedelta

from evalpipe.rollout.fold import fold_into
from evalpipe.rollout.inputs import Batch
from evalpipe.rollout.plan import Gate, RolloutPlan, Step
from evalpipe.rollout.state import RolloutState

RAMP = (
    Step(5, timedelta(minutes=2), 30),
    Step(20, timedelta(minutes=2), 50),
    Step(50, timedelta(minutes=2), 50, enough="non_inferior"),
)
GATE = Gate("quality", "passed", alpha=0.01, margin=0.1)
PLAN = RolloutPlan("r-1", "support-bot", "v1", "v2", (GATE,), RAMP, max_duration=timedelta(hours=4))


def rollout(evidence, start, seed, rate, n=6_000, units=None):
    """A rollout whose canary passes at ``rate``, the baseline at .85, to its end or after ``n`` scores."""
    rng, state, log = random.Random(seed), RolloutState.start(PLAN, start), []
    for first in range(0, n, 500):
        items = []
        for seq in range(first, first + 500):
            arm = rng.choice(("baseline", "canary"))
            value = float(rng.random() < (rate if arm == "canary" else 0.85))
            unit = f"user-{seq if units is None else rng.randrange(units)}"
            items.append(evidence(seq, value, arm=arm, unit=unit, criterion="passed"))
        log += fold_into(PLAN, state, Batch(items[-1].at, evidence=tuple(items)))
        if state.ended:
            break
    return state, log


def test_equal_canaries_reach_the_end_of_the_ramp(evidence, start):
    """Of 30, at most two are rolled back, and nearly all complete within 6,000 scores."""
    phases = [rollout(evidence, start, seed, 0.85)[0].phase for seed in range(30)]
    assert phases.count("rolled_back") <= 2
    assert phases.count("complete") >= 25


def test_broken_canaries_are_found_in_the_first_steps(evidence, start):
    """Pass rate .85 against .6: all are rolled back, half of them before the second step is over."""
    ends = [rollout(evidence, start, seed, 0.6) for seed in range(30)]
    assert all(state.rolled_back for state, _ in ends)
    assert sum(log[-1].from_percent <= 20 for _, log in ends) >= 15
    assert sorted(log[-1].evidence_seq for _, log in ends)[15] <= 400


def test_few_users_who_ask_often_prove_nothing(evidence, start):
    """Twenty users, thousands of scores: neither an advance past the first step nor a rollback."""
    state, _ = rollout(evidence, start, 1, 0.85, units=20)
    assert (state.phase, state.step) == ("running", 0)
