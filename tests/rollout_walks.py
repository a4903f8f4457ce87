"""Rollouts that are fed by hand: gates, plans, scores and orders."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from evalpipe.rollout.fold import fold_into
from evalpipe.rollout.inputs import HEALTHY, Batch, Evidence, Override
from evalpipe.rollout.plan import Gate, RolloutPlan, Step
from evalpipe.rollout.state import RolloutState

START = datetime(2026, 11, 22, 2, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def make_evidence(seq, value, *, arm=None, criterion="faithful", **changes):
    """One score a second, arms in turn, each of its own user."""
    arm = arm or ("canary" if seq % 2 else "baseline")
    at = changes.pop("at", START + timedelta(seconds=seq))
    unit = changes.pop("unit", f"user-{seq}")
    return Evidence(seq, at, arm, unit, criterion, value, **changes)


def make_gate(name="quality", criterion="faithful", **changes):
    """A gate that makes up its mind within a dozen clear scores."""
    return Gate(name, criterion, **{"alpha": 0.05, "advance_alpha": 0.1, "margin": 0.3, "min_canary": 5, **changes})


class Walk:
    """A rollout that is fed by hand: arms in turn, one score a second, and a log of what was folded."""

    def __init__(self, plan, start=START) -> None:
        self.plan, self.start, self.now, self.seq = plan, start, start, 0
        self.state = RolloutState.start(plan, start)
        self.batches, self.log = [], []

    def fold(self, batch):
        """Fold a batch; the decisions in short."""
        self.now = max(self.now, batch.now)
        self.batches.append(batch)
        made = fold_into(self.plan, self.state, batch)
        self.log += made
        return [(d.action, d.cause) for d in made]

    def scores(self, n, *, baseline=1.0, canary=1.0, criteria=("faithful",), health=HEALTHY, **changes):
        """``n`` seconds of scores in one batch."""
        items = []
        for _ in range(n):
            self.now += timedelta(seconds=1)
            value = canary if self.seq % 2 else baseline
            items += [make_evidence(self.seq, value, criterion=c, at=self.now, **changes) for c in criteria]
            self.seq += 1
        return self.fold(Batch(self.now, health=health, evidence=tuple(items)))

    def bad(self, n=20, **changes):
        """A canary that always fails."""
        return self.scores(n, canary=0.0, **changes)

    def wait(self, minutes, health=HEALTHY):
        """Nothing but time."""
        return self.fold(Batch(self.now + minutes * MINUTE, health=health))

    def order(self, action, *, hours=1.0, reason="because"):
        """What ada orders."""
        order = Override(action, "ada", reason, self.now, self.now + timedelta(hours=hours))
        return self.fold(Batch(self.now, overrides=(order,)))

    @property
    def where(self):
        """Phase and percent."""
        return self.state.phase, self.state.percent(self.plan)


def make_ramp(gates=(), **changes):
    """5 % and 50 %, a minute each."""
    steps = (Step(5, MINUTE, 10), Step(50, MINUTE, 10, "non_inferior"))
    return RolloutPlan("r-1", "support-bot", "v1", "v2", tuple(gates) or (make_gate(),), **{"steps": steps, **changes})
