"""What is decided from what: two keys, precedence, holds and the latch."""

from __future__ import annotations

from datetime import timedelta

import pytest

from evalpipe.rollout.decision import decide
from evalpipe.rollout.fold import replay, step
from evalpipe.rollout.outcome import phase
from evalpipe.rollout.plan import Gate, RolloutPlan
from evalpipe.rollout.state import Health, RolloutState
from evalpipe.score import Status

GOOD, BAD = [1.0, 0.75, 1.0, 1.0], [0.25, 0.0, 0.5, 0.0]


def run(plan, start, items):
    """All turns of the log in short, and the state."""
    state, log = replay(plan, start, items)
    return state, [(d.action, d.cause, d.gate) for d in log]


def with_gates(gates):
    """A plan with these gates."""
    return RolloutPlan("r-1", "support-bot", "v1", "v2", tuple(gates))


def test_a_broken_canary_is_rolled_back_with_numbers_and_config_keys(plan, pairs, start):
    """Reason and evidence say what was seen, how sure it is, and which settings decided."""
    state, log = replay(plan, start, pairs(GOOD * 15, BAD * 15))
    decision = log[-1]
    assert (decision.action, decision.cause, decision.gate, decision.severity) == (
        "rollback", "harm_proven", "quality", "SEV2"
    )  # fmt: skip
    assert decision.evidence_seq < 60
    assert decision.decided_at == start + timedelta(seconds=decision.evidence_seq)
    for text in ("faithful of v2", "below v1", "rollout.gates.quality.alpha = 0.0025", "quality.margin = 0.05"):
        assert text in decision.reason
    evidence = decision.evidence
    assert evidence["max_e_value"] >= evidence["threshold"] == 400.0
    assert evidence["estimate"] < -0.5
    assert evidence["margin"] == -0.05
    assert evidence["interval"]["high"] < 0.0
    assert evidence["n_canary"] >= 10
    assert phase(plan, state, start) == "failed"


def test_ten_canary_scores_are_the_least_for_any_action(plan, pairs, start):
    """However clear it is."""
    decision = replay(plan, start, pairs([1.0] * 30, [0.0] * 30))[1][-1]
    assert decision.action == "rollback"
    assert decision.evidence["matched_canary"] >= 10
    eager = with_gates([Gate("quality", "faithful", min_canary=1, alpha=0.05)])
    assert replay(eager, start, pairs([1.0] * 30, [0.0] * 30))[1][-1].evidence["matched_canary"] < 10


def test_harm_that_is_proven_but_tolerable_is_not_rolled_back(plan, pairs, start):
    """A drop of 2.4 % beyond doubt has the first key and not the second; one of 5.9 % has both."""
    state, log = run(plan, start, pairs([0.85, 0.84] * 1500, [0.83, 0.82] * 1500))
    assert state.gates["quality"].harm.fired(0.0025)
    assert [action for action, _, _ in log] == ["hold", "advance"]
    assert run(plan, start, pairs([0.85, 0.84] * 300, [0.80, 0.79] * 300))[1][-1][0] == "rollback"


def test_an_equal_canary_advances_once_harm_is_excluded(plan, pairs, start):
    """Only by proof that it is not worse by the margin, never for want of evidence."""
    items = pairs([*GOOD, 0.5] * 240, [1.0, 1.0, 0.5, 0.75, 1.0] * 240)
    _, log = replay(plan, start, items)
    assert [(d.action, d.cause) for d in log] == [("hold", "insufficient_evidence"), ("advance", "no_harm_proven")]
    assert log[-1].evidence["max_safe_e_value"] >= log[-1].evidence["safe_threshold"] == 100.0
    assert "promote_alpha" in log[-1].reason
    assert log[-1].evidence_seq > 100


def test_any_gate_rolls_back_and_all_gates_together_advance(pairs, start):
    """One gate proven safe is not enough while another has too little evidence, and cannot outvote harm."""
    plan = with_gates([Gate("quality", "faithful"), Gate("tone", "polite", severity="SEV3")])
    safe = pairs([0.85, 0.84] * 400, [0.85, 0.84] * 400)
    assert run(plan, start, safe)[1] == [("hold", "insufficient_evidence", "")]
    both = safe + pairs([0.85, 0.84] * 400, [0.85, 0.84] * 400, criterion="polite")
    assert run(plan, start, both)[1][-1] == ("advance", "no_harm_proven", "")
    harmed = safe + pairs(GOOD * 200, BAD * 200, criterion="polite")
    assert replay(plan, start, harmed)[1][-1].gate == "tone"
    assert replay(plan, start, harmed)[1][-1].severity == "SEV3"


def test_a_rise_is_harm_where_the_gate_says_so(pairs, start):
    """For a refusal rate a canary above the baseline is rolled back, one below it is not."""
    plan = with_gates([Gate("refusals", "refused", direction="rise", margin=0.2)])
    low, high = [0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 1.0, 1.0]
    up = replay(plan, start, pairs(low * 60, high * 60, criterion="refused"))[1][-1]
    assert (up.action, up.evidence["margin"]) == ("rollback", 0.2)
    assert up.evidence["estimate"] > 0.16
    assert "above v1" in up.reason
    down = replay(plan, start, pairs(high * 60, low * 60, criterion="refused"))[1][-1]
    assert down.action == "advance"


def test_a_rollback_is_latched(plan, pairs, start):
    """Whatever comes after it: no further decision, and nothing is folded."""
    state, log = replay(plan, start, pairs(GOOD * 15, BAD * 15))
    saved = state.to_state(plan)
    later, decisions = step(plan, state, pairs(GOOD * 200, GOOD * 200, first=1000), start, Health("outage"))
    assert decisions == ()
    assert later.to_state(plan) == saved
    standing = decide(plan, later, start + timedelta(days=1))
    assert (standing.action, standing.seq, standing.gate) == ("rollback", log[-1].seq, "quality")


@pytest.mark.parametrize("judge", ["outage", "suspect"])
def test_a_judge_in_doubt_keeps_from_advancing(plan, pairs, start, judge):
    """Then hold with the reason, and advance again when it is over."""
    items = pairs([0.85, 0.84] * 400, [0.85, 0.84] * 400)
    state, log = replay(plan, start, items)
    assert log[-1].action == "advance"
    state, (hold,) = step(plan, state, [], items[-1].at, Health(judge, "9 of 10 calls failed"))
    assert (hold.action, hold.cause, hold.seq) == ("hold", f"judge_{judge}", 3)
    assert "9 of 10 calls failed" in hold.reason
    assert phase(plan, state, items[-1].at) == "error"
    state, (again,) = step(plan, state, [], items[-1].at)
    assert (again.action, again.seq) == ("advance", 4)


def test_an_outage_does_not_stop_a_rollback_but_a_suspect_judge_cannot_cause_one(plan, pairs, start):
    """Scores that were given before an outage count; scores of a suspect judge are set aside."""
    items = pairs(GOOD * 15, BAD * 15)
    fresh = RolloutState.start(plan, start)
    assert step(plan, fresh, items, start, Health("outage"))[1][-1].action == "rollback"
    state, decisions = step(plan, fresh, items, start, Health("suspect"))
    assert [d.cause for d in decisions] == ["judge_suspect"]
    assert state.gates["quality"].canary.set_aside == 60
    marked = pairs(GOOD * 15, BAD * 15, suspect=True)
    assert all(d.action == "hold" for d in replay(plan, start, marked)[1])


def test_arms_under_different_epochs_hold_and_are_not_compared(plan, pairs, evidence, start):
    """Baseline scored by one judge version and canary by another: hold, nothing enters the test."""
    items = [evidence(i, 1.0 if i % 2 == 0 else 0.0, epoch="judge-1" if i % 2 == 0 else "judge-2") for i in range(100)]
    state, log = run(plan, start, items)
    assert log[-1] == ("hold", "epochs_differ", "quality")
    assert state.gates["quality"].estimate.n_blocks == 0
    assert state.gates["quality"].canary.set_aside == 50
    more = pairs(GOOD * 15, BAD * 15, first=100, epoch="judge-2")
    assert run(plan, start, items + more)[1][-1] == ("rollback", "harm_proven", "quality")


def test_evidence_of_an_older_epoch_does_not_count_towards_a_rollback(plan, pairs, start):
    """Nine bad canaries under one judge and eight compared under the next are not seventeen."""
    nine = pairs([1.0] * 9, [0.0] * 9, epoch="judge-1") + pairs([1.0] * 9, [0.0] * 9, first=18, epoch="judge-2")
    state, log = run(plan, start, nine)
    assert all(action == "hold" for action, _, _ in log)
    assert state.gates["quality"].epoch == "judge-2"
    assert state.gates["quality"].estimate.n_canary == 8


def test_too_many_missing_scores_hold_until_they_come_back(plan, pairs, evidence, start):
    """Errors that depend on quality would bias the comparison; skipped ones are not missing."""
    items = pairs([0.85, 0.84] * 400, [0.85, 0.84] * 400)
    lost = [evidence(2000 + i, None, status=Status.ERROR, at=items[-1].at) for i in range(40)]
    skipped = [evidence(3000 + i, None, status=Status.SKIPPED, at=items[-1].at) for i in range(40)]
    back = pairs([0.85, 0.84] * 60, [0.85, 0.84] * 60, first=4000, at=items[-1].at)
    _, log = run(plan, start, items + skipped)
    assert log[-1][0] == "advance"
    _, log = replay(plan, start, items + lost)
    assert (log[-1].action, log[-1].cause) == ("hold", "missing_scores")
    assert "max_missing" in log[-1].reason
    assert run(plan, start, items + lost + back)[1][-1][0] == "advance"


def test_silence_of_an_arm_holds(plan, pairs, evidence, start):
    """Seen by the clock or from the other arm's evidence; an advance is not taken in the dark."""
    items = pairs([0.85, 0.84] * 400, [0.85, 0.84] * 400)
    state, log = replay(plan, start, items)
    assert log[-1].action == "advance"
    _, (silent,) = step(plan, state, [], items[-1].at + timedelta(minutes=16))
    assert (silent.action, silent.cause) == ("hold", "no_data")
    assert "no score of the canary" in silent.reason
    alone = [evidence(5000, 0.85, arm="baseline", at=items[-1].at + timedelta(minutes=16))]
    assert run(plan, start, items + alone)[1][-1] == ("hold", "no_data", "")
    never, (first,) = step(plan, RolloutState.start(plan, start), [], start + timedelta(hours=1))
    assert (first.seq, first.cause, first.evidence_seq) == (1, "no_data", -1)
    assert never.decision_seq == 1


def test_unequal_sampling_within_an_arm_needs_its_bound_before_advancing(evidence, start):
    """Without ``max_weights`` hold and say which key; with it the scores are thinned; beyond it they are set aside."""
    values = [0.85, 0.85, 0.84, 0.84] * 400
    items = [evidence(i, v, weight=20.0 if i % 10 < 8 else 10.0) for i, v in enumerate(values)]
    plain, bounded = Gate("quality", "faithful"), Gate("quality", "faithful", max_weights=(20.0, 20.0))
    log = replay(with_gates([plain]), start, items)[1]
    assert (log[-1].cause, "max_weights" in log[-1].reason) == ("unequal_weights", True)
    state, log = replay(with_gates([bounded]), start, items)
    assert log[-1].action == "advance"
    assert state.gates["quality"].estimate.n_canary < 790
    state, log = replay(with_gates([bounded]), start, [*items, evidence(9000, 0.0, weight=21.0, at=items[-1].at)])
    assert log[-1].cause == "unequal_weights"
    assert state.gates["quality"].baseline.set_aside == 1


def test_many_scores_of_one_user_count_once(plan, pairs, start):
    """A single unhappy user cannot roll a canary back."""
    _, log = run(plan, start, pairs(GOOD * 15, BAD * 15, unit="user-7"))
    assert log == [("hold", "insufficient_evidence", "")]


def test_the_standing_decision_can_be_asked_for_at_any_time(plan, start):
    """Before any evidence it is hold, with number 0."""
    decision = decide(plan, RolloutState.start(plan, start), start)
    assert (decision.action, decision.cause, decision.seq, decision.evidence["estimate"]) == (
        "hold", "insufficient_evidence", 0, None
    )  # fmt: skip
    assert "nothing compared yet" in decision.reason
    assert phase(plan, RolloutState.start(plan, start), start) == "inconclusive"
