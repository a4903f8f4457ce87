"""The gate as a whole on simulated rollouts with fixed seeds."""

from __future__ import annotations

import random
from datetime import UTC, datetime

from evalpipe.rollout.analysis import Evidence, GateState
from evalpipe.rollout.plan import Gate

AT = datetime(2026, 11, 22, tzinfo=UTC)
GATE = Gate("quality", "passed", alpha=0.01)


def test_users_who_ask_five_times_do_not_inflate_certainty():
    """Five alike scores of each user (correlation .5) and no difference: at most three of 60 rollouts fire."""
    fired = 0
    for seed in range(60):
        rng, state, seq = random.Random(seed), GateState(GATE), 0
        for user in range(400):
            usual, arm = float(rng.random() < 0.85), "canary" if user % 2 else "baseline"
            for _ in range(5):
                value = usual if rng.random() < 0.5**0.5 else float(rng.random() < 0.85)
                state.add(GATE, Evidence(seq, AT, arm, f"user-{user}", "passed", value))
                seq += 1
        fired += state.harm.fired(0.01)
        assert state.estimate.n_canary >= 195
    assert fired <= 3


def test_a_broken_canary_is_found_within_some_hundred_scores():
    """Pass rate .9 against .72: the arms in random order; about 206 scores are needed if they take turns."""
    needed = []
    for seed in range(60):
        rng, state = random.Random(seed), GateState(GATE)
        for seq in range(3000):
            arm = rng.choice(("baseline", "canary"))
            value = float(rng.random() < (0.72 if arm == "canary" else 0.9))
            state.add(GATE, Evidence(seq, AT, arm, f"user-{seq}", "passed", value))
            if state.harmed(GATE):
                needed.append(seq + 1)
                break
    assert len(needed) == 60
    assert sorted(needed)[30] <= 300
