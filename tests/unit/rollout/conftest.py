"""A plan and streams of evidence."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from evalpipe.rollout.analysis import Evidence
from evalpipe.rollout.plan import Gate, RolloutPlan

START = datetime(2026, 11, 22, 2, 0, tzinfo=UTC)


@pytest.fixture
def plan():
    """One quality gate with the defaults."""
    return RolloutPlan("r-1", "support-bot", "v1", "v2", (Gate("quality", "faithful"),))


def make_evidence(seq, value, *, arm=None, criterion="faithful", **changes):
    """One score a second, arms in turn, each of its own user."""
    arm = arm or ("canary" if seq % 2 else "baseline")
    at = changes.pop("at", START + timedelta(seconds=seq))
    unit = changes.pop("unit", f"user-{seq}")
    return Evidence(seq, at, arm, unit, criterion, value, **changes)


@pytest.fixture
def start():
    """When every rollout here begins."""
    return START


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
