"""Plans and streams of evidence."""

from __future__ import annotations

import pytest
from rollout_walks import START, Walk, make_evidence, make_gate, make_ramp

from evalpipe.rollout.plan import Gate, RolloutPlan


@pytest.fixture
def plan():
    """One quality gate with the defaults, and no ramp."""
    return RolloutPlan("r-1", "support-bot", "v1", "v2", (Gate("quality", "faithful", min_canary=10),))


@pytest.fixture
def start():
    """When every rollout here begins."""
    return START


@pytest.fixture
def gate():
    """``gate(name, criterion, ...)``: see ``make_gate``."""
    return make_gate


@pytest.fixture
def ramp():
    """``ramp(gates, ...)``: see ``make_ramp``."""
    return make_ramp


@pytest.fixture
def walk():
    """``walk(plan)``: see ``Walk``."""
    return Walk


@pytest.fixture
def evidence():
    """``evidence(seq, value, arm=..., ...)``: see ``make_evidence``."""
    return make_evidence


@pytest.fixture
def pairs():
    """``pairs(baseline_values, canary_values, first=0)``: evidence in turn, baseline first."""

    def build(baselines, canaries, first=0, **changes):
        values = [v for pair in zip(baselines, canaries, strict=True) for v in pair]
        return [make_evidence(first + i, v, **changes) for i, v in enumerate(values)]

    return build
