"""What people may order, what is refused, and that all of it is in the log."""

from __future__ import annotations

from datetime import timedelta

import pytest

from evalpipe.incidents.incident import open_from_decision
from evalpipe.rollout.inputs import Batch, Health, Override


def test_an_order_is_a_decision_with_name_reason_and_expiry(walk, ramp):
    """In the same log, with the next number."""
    rollout = walk(ramp())
    rollout.scores(4)
    assert rollout.order("advance", reason="the demo is at ten") == [("advance", "override")]
    decision = rollout.log[-1]
    assert (decision.seq, decision.actor, decision.expires_at) == (2, "ada", rollout.now + timedelta(hours=1))
    assert "ada ordered advance (the demo is at ten)" in decision.reason
    assert (decision.from_percent, decision.to_percent) == (5, 50)
    assert rollout.log[0].actor == "evalpipe"
    assert rollout.log[0].expires_at is None


def test_an_advance_skips_what_is_missing_one_step_at_a_time(walk, ramp):
    """Neither time nor counts nor a judge that is out keep a person from it."""
    rollout = walk(ramp())
    rollout.scores(4)
    rollout.wait(0, Health("outage"))
    rollout.order("advance")
    assert rollout.where == ("running", 50)
    rollout.order("advance")
    assert rollout.where == ("complete", 100)
    assert rollout.order("advance") == [("hold", "override")]
    assert "refused: the rollout is over (complete)" in rollout.log[-1].reason


def test_an_advance_does_not_mask_harm_that_comes_after_it(walk, ramp):
    """The next proof rolls back as if nobody had ordered anything."""
    rollout = walk(ramp())
    rollout.bad(8)
    rollout.order("advance")
    assert rollout.where == ("running", 50)
    assert rollout.bad(10)[-1][0] == "rollback"
    assert rollout.where == ("rolled_back", 0)


def harmed(walk, ramp, gate, role):
    """Proven harm of a gate that does not roll back."""
    rollout = walk(ramp([gate(), gate("tone", "polite", role=role)]))
    rollout.bad(20, criteria=("polite",))
    return rollout


def test_no_one_advances_past_the_proven_harm_of_an_objective(walk, ramp, gate):
    """It is refused, in the log, and the decision that stands goes on standing."""
    rollout = harmed(walk, ramp, gate, "objective")
    assert rollout.log[-1].cause == "signal_harmed"
    assert rollout.order("advance") == [("hold", "override")]
    assert "refused: gate tone has proven harm" in rollout.log[-1].reason
    assert rollout.where == ("running", 5)
    assert rollout.wait(0) == []


def test_past_a_signal_a_person_may_go_and_it_is_said(walk, ramp, gate):
    """A signal informs; its finding is named beside the name of who passed over it."""
    rollout = harmed(walk, ramp, gate, "signal")
    assert rollout.order("advance")[0] == ("advance", "override")
    assert "past what tone found" in rollout.log[-2 if rollout.log[-1].action == "hold" else -1].reason
    assert rollout.where == ("running", 50)


def test_a_rollback_can_be_ordered_and_opens_an_incident(walk, ramp):
    """Also of a rollout that is complete."""
    for advances in (0, 2):
        rollout = walk(ramp())
        rollout.scores(4)
        for _ in range(advances):
            rollout.order("advance")
        assert rollout.order("rollback", reason="customers call") == [("rollback", "override")]
        assert rollout.where == ("rolled_back", 0)
        incident = open_from_decision(rollout.log[-1])
        assert incident.title == "support-bot: canary v2 rolled back by ada"
        assert incident.severity == "SEV3"


def test_a_freeze_keeps_from_advancing_until_it_ends(walk, ramp):
    """By its expiry, or by a resume; percent stays."""
    rollout = walk(ramp())
    rollout.scores(40)
    assert rollout.order("freeze", hours=0.1) == [("hold", "frozen")]
    assert rollout.where == ("paused", 5)
    assert rollout.scores(60) == []
    assert rollout.order("advance") == [("hold", "override")]
    assert "resume it first" in rollout.log[-1].reason
    assert rollout.wait(6) == [("advance", "no_harm_seen")]
    again = walk(ramp())
    again.scores(40)
    again.order("freeze")
    again.scores(60)
    assert again.order("resume") == [("hold", "resumed"), ("advance", "no_harm_seen")]
    assert "the freeze has ended" in again.log[-2].reason
    assert again.where == ("running", 50)


def test_harm_rolls_back_a_frozen_rollout(walk, ramp):
    """Rollback goes before everything that people order."""
    rollout = walk(ramp())
    rollout.scores(4)
    rollout.order("freeze")
    assert rollout.bad(20)[-1][0] == "rollback"
    assert rollout.where == ("rolled_back", 0)


def test_a_resume_lifts_a_rollback_and_begins_again(walk, ramp):
    """At the first step, without the evidence so far, also without what is captured before and comes later."""
    rollout = walk(ramp())
    rollout.scores(70)
    rollout.bad(60)
    before = rollout.now
    rollout.wait(30)
    assert rollout.order("resume", reason="the index was broken, not the canary") == [("advance", "resumed")]
    assert rollout.where == ("running", 5)
    assert "begins the first step again without the evidence so far" in rollout.log[-1].reason
    assert (rollout.log[-1].from_percent, rollout.log[-1].to_percent) == (0, 5)
    late = rollout.now
    rollout.now = before
    assert all(action != "rollback" for action, _ in rollout.bad(50))
    assert rollout.state.gates["quality"].numbers()["n_canary"] == 0
    rollout.now = max(rollout.now, late)
    rollout.scores(70)
    assert rollout.where == ("running", 50)


def test_the_time_of_a_rollout_begins_again_with_a_resume(walk, ramp):
    """It was rolled back for longer than it may last."""
    rollout = walk(ramp(max_duration=timedelta(hours=1)))
    rollout.bad(20)
    rollout.wait(90)
    rollout.order("resume")
    rollout.wait(50)
    assert rollout.where == ("running", 5)
    rollout.wait(10)
    assert rollout.where == ("expired", 0)


@pytest.mark.parametrize("action", ["advance", "freeze", "abort", "rollback"])
def test_only_a_resume_leaves_a_rollback(walk, ramp, action):
    """Everything else is refused and logged."""
    rollout = walk(ramp())
    rollout.bad(20)
    assert rollout.order(action) == [("hold", "override")]
    assert "resume it first" in rollout.log[-1].reason
    assert (rollout.log[-1].phase, rollout.log[-1].to_percent) == ("rolled_back", 0)
    assert rollout.where == ("rolled_back", 0)


def test_an_abort_ends_it_without_an_incident(walk, ramp):
    """Traffic goes back; nothing can follow."""
    rollout = walk(ramp())
    rollout.scores(70)
    assert rollout.order("abort") == [("hold", "aborted")]
    assert rollout.where == ("aborted", 0)
    assert rollout.bad(50) == []
    assert rollout.order("resume") == [("hold", "override")]
    assert "nothing is frozen or rolled back (aborted)" in rollout.log[-1].reason


def test_an_order_that_was_read_too_late_is_void(walk, ramp):
    """It was good until a time that has passed; that is logged."""
    rollout = walk(ramp())
    rollout.scores(4)
    assert rollout.order("rollback", hours=-1) == [("hold", "override")]
    assert "it expired at" in rollout.log[-1].reason
    assert rollout.where == ("running", 5)


def test_nothing_to_resume_is_said(walk, ramp):
    """Running rollouts have no latch."""
    rollout = walk(ramp())
    assert rollout.order("resume") == [("hold", "override")]
    assert "nothing is frozen or rolled back (running)" in rollout.log[-1].reason


def test_harm_in_the_batch_of_an_advance_ends_the_rollout_at_once(walk, ramp, evidence):
    """Orders come first in a batch, and the log does not go back to the time of the evidence that follows."""
    rollout = walk(ramp())
    rollout.scores(4)
    items = tuple(evidence(seq, float(seq % 2 == 0)) for seq in range(4, 40))
    order = Override("advance", "ada", "because", rollout.now, rollout.now + timedelta(hours=1))
    made = rollout.fold(Batch(items[-1].at, overrides=(order,), evidence=items))
    assert [action for action, _ in made if action != "hold"] == ["advance", "rollback"]
    assert rollout.log[-1].evidence_seq < 39
    assert [d.decided_at for d in rollout.log[-2:]] == [items[-1].at] * 2
    assert rollout.where == ("rolled_back", 0)


def test_without_a_ramp_a_resume_undoes_the_latch_only(walk, ramp):
    """Others split the traffic: the comparison begins again."""
    rollout = walk(ramp(steps=()))
    rollout.bad(20)
    assert rollout.where == ("rolled_back", 0)
    assert rollout.order("resume") == [("hold", "resumed"), ("hold", "insufficient_evidence")]
    assert rollout.where == ("running", None)
    assert rollout.scores(80)[-1] == ("advance", "no_harm_proven")
    assert rollout.order("advance") == [("hold", "override")]
    assert "it has advanced already" in rollout.log[-1].reason
    assert rollout.order("freeze") == [("hold", "frozen")]
    assert rollout.wait(0) == []
    assert rollout.order("resume") == [("hold", "resumed"), ("advance", "no_harm_proven")]
