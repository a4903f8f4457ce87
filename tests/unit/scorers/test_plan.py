"""What a scorecard owes for a record: the judge's share, and the weight of the scores."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from evalpipe.record import Record, Release
from evalpipe.score import Status
from evalpipe.scorecard.model import Scorecard
from evalpipe.scorers.plan import ScoringPlan

RECORD = Record("r", "t", datetime(2026, 1, 1, tzinfo=UTC), Release("shop"), output="Within 30 days.", probability=0.05)
CARD = {
    "name": "support",
    "sampling": {"judge": "10%"},
    "criteria": [
        {"name": "tone", "judge": {"kind": "boolean", "rubric": "It is polite."}},
        {"name": "short", "heuristic": "length", "params": {"max": 50}},
    ],
}


@pytest.fixture(scope="module")
def plan():
    """One judged criterion for a tenth of the records, and a heuristic for all of them."""
    return ScoringPlan(Scorecard.model_validate(CARD), lambda _: True)


def judged(plan, **changes):
    """The judged criterion's finding."""
    return plan.score(replace(RECORD, **changes))[0]


def test_a_share_of_the_records_is_judged_and_weighs_that_much_more(plan):
    """A tenth by trace; 1 / 5 % times 1 / 10 %."""
    found = [judged(plan, trace_id=f"t-{n}") for n in range(1000)]
    owed = [f for f in found if f.score is None]
    assert 60 < len(owed) < 140
    assert [f.weight for f in found] == pytest.approx([200.0] * len(found))
    assert {f.score.status for f in found if f.score} == {Status.SKIPPED}


def test_an_arm_of_a_rollout_is_judged_fully(plan):
    """Every record is owed a judge call, at the weight of its capture alone."""
    found = [judged(plan, trace_id=f"t-{n}", reason="rollout:refund-prompt") for n in range(100)]
    assert all(f.score is None for f in found)
    assert [f.weight for f in found] == pytest.approx([20.0] * len(found))


def test_what_a_rule_kept_is_judged_by_share(plan):
    """Always kept is not always worth a judge's money."""
    found = [judged(plan, trace_id=f"t-{n}", reason="keep:error", probability=1.0) for n in range(1000)]
    assert 60 < sum(f.score is None for f in found) < 140
    assert [f.weight for f in found] == pytest.approx([10.0] * len(found))


def test_what_feedback_brought_in_late_weighs_nothing(plan):
    """It is scored, to be read, and counts in no estimate."""
    assert [f.weight for f in plan.score(replace(RECORD, reason="feedback"))] == [0.0, 0.0]
