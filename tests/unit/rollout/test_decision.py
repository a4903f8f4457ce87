"""What is decided from what: two keys, precedence, holds and the latch."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from evalpipe.rollout.decision import decide
from evalpipe.rollout.fold import fold, replay
from evalpipe.rollout.gates.base import Standing
from evalpipe.rollout.inputs import Batch, Health
from evalpipe.rollout.outcome import assess
from evalpipe.rollout.plan import Gate, RolloutPlan
from evalpipe.rollout.state import RolloutState
from evalpipe.score import Status

GOOD, BAD = [1.0, 0.75, 1.0, 1.0], [0.25, 0.0, 0.5, 0.0]


def decisions(plan, start, items):
    """The log of a rollout without a ramp that gets all of this at once."""
    now = items[-1].at if items else start
    return replay(plan, start, [Batch(now, evidence=tuple(items))])


def run(plan, start, items):
    """All turns of the log in short, and the state."""
    state, log = decisions(plan, start, items)
    return state, [(d.action, d.cause, d.gate) for d in log]


def with_gates(gates):
    """A plan with these gates and no ramp."""
    return RolloutPlan("r-1", "support-bot", "v1", "v2", tuple(gates))


def test_a_broken_canary_is_rolled_back_with_numbers_and_config_keys(plan, pairs, start):
    """Reason and evidence say what was seen, how sure it is, and which settings decided."""
    state, log = decisions(plan, start, pairs(GOOD * 15, BAD * 15))
    decision = log[-1]
    assert (decision.action, decision.gate, decision.severity, decision.actor) == (
        "rollback", "quality", "SEV2", "evalpipe"
    )  # fmt: skip
    assert decision.cause in ("harm_proven", "catastrophic_harm")
    assert (decision.phase, decision.from_percent, decision.to_percent) == ("rolled_back", None, 0.0)
    assert decision.evidence_seq < 60
    assert decision.decided_at == start + timedelta(seconds=decision.evidence_seq)
    for text in (
        "faithful of v2",
        "below v1",
        "rollout.gates.quality.alpha = 0.0025",
        "x rollout.gates.quality.margin = ",
    ):
        assert text in decision.reason
    evidence = decision.evidence
    assert evidence["max_e_value"] >= evidence["threshold"] == 400.0
    assert evidence["estimate"] < -0.5
    assert evidence["margin"] == -0.05
    assert evidence["interval"]["high"] < 0.0
    assert state.rolled_back
    assert state.ended


def test_an_equal_canary_advances_once_harm_is_excluded(plan, pairs, start):
    """Only by proof that it is not worse by the margin, never for want of evidence."""
    items = pairs([*GOOD, 0.5] * 240, [1.0, 1.0, 0.5, 0.75, 1.0] * 240)
    state, log = decisions(plan, start, items)
    assert [(d.action, d.cause) for d in log] == [("hold", "insufficient_evidence"), ("advance", "no_harm_proven")]
    assert log[-1].evidence["max_safe_e_value"] >= log[-1].evidence["safe_threshold"] == 100.0
    assert "advance_alpha" in log[-1].reason
    assert log[-1].evidence_seq > 100
    assert (log[-1].phase, log[-1].to_percent) == ("running", None)
    assert state.watching


def test_harm_that_is_proven_but_tolerable_is_not_rolled_back(plan, pairs, start):
    """A drop of 2.4 % beyond doubt has the first key and not the second; one of 5.9 % has both."""
    state, log = run(plan, start, pairs([0.85, 0.84] * 1500, [0.83, 0.82] * 1500))
    numbers = state.gates["quality"].numbers()
    assert numbers["max_e_value"] >= numbers["threshold"]
    assert [action for action, _, _ in log] == ["hold", "advance"]
    assert run(plan, start, pairs([0.85, 0.84] * 300, [0.80, 0.79] * 300))[1][-1][0] == "rollback"


def test_any_gate_rolls_back_and_all_gates_together_advance(pairs, start):
    """One gate proven safe is not enough while another has too little evidence, and cannot outvote harm."""
    plan = with_gates([Gate("quality", "faithful"), Gate("tone", "polite", severity="SEV3")])
    safe = pairs([0.85, 0.84] * 400, [0.85, 0.84] * 400)
    assert run(plan, start, safe[:600])[1] == [("hold", "insufficient_evidence", "")]
    both = safe + pairs([0.85, 0.84] * 400, [0.85, 0.84] * 400, criterion="polite", at=safe[-1].at)
    assert run(plan, start, both)[1][-1] == ("advance", "no_harm_proven", "")
    harmed = safe + pairs(GOOD * 200, BAD * 200, criterion="polite", at=safe[-1].at)
    assert decisions(plan, start, harmed)[1][-1].gate == "tone"
    assert decisions(plan, start, harmed)[1][-1].severity == "SEV3"


def test_a_rise_is_harm_where_the_gate_says_so(pairs, start):
    """For a refusal rate a canary above the baseline is rolled back, one below it is not."""
    plan = with_gates([Gate("refusals", "refused", direction="rise", margin=0.2)])
    low, high = [0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 1.0, 1.0]
    up = decisions(plan, start, pairs(low * 60, high * 60, criterion="refused"))[1][-1]
    assert (up.action, up.evidence["margin"]) == ("rollback", 0.2)
    assert up.evidence["estimate"] > 0.16
    assert "above v1" in up.reason
    down = decisions(plan, start, pairs(high * 60, low * 60, criterion="refused"))[1][-1]
    assert down.action == "advance"


def test_a_rollback_is_latched(plan, pairs, start):
    """Whatever comes after it: no further decision, and nothing is folded."""
    state, log = decisions(plan, start, pairs(GOOD * 15, BAD * 15))
    saved = state.to_state(plan)
    more = Batch(start + timedelta(days=30), Health("outage"), evidence=tuple(pairs(GOOD * 200, GOOD * 200, 1000)))
    later, made = fold(plan, state, more)
    assert made == ()
    assert later.to_state(plan) == saved
    standing = decide(plan, later, start + timedelta(days=1))
    assert (standing.action, standing.seq, standing.gate) == ("rollback", log[-1].seq, "quality")


@pytest.mark.parametrize("judge", ["outage", "suspect"])
def test_a_judge_in_doubt_keeps_from_advancing(walk, ramp, judge):
    """Then hold with the reason, and go on when it is over."""
    rollout = walk(ramp())
    rollout.scores(55)
    assert rollout.wait(0, Health(judge, "9 of 10 calls failed")) == [("hold", f"judge_{judge}")]
    assert "9 of 10 calls failed" in rollout.log[-1].reason
    assert rollout.wait(1, Health(judge, "9 of 10 calls failed")) == []
    assert rollout.where == ("running", 5)
    assert rollout.wait(0) == [("advance", "no_harm_seen")]
    assert rollout.where == ("running", 50)


def test_an_outage_does_not_stop_a_rollback_but_a_suspect_judge_cannot_cause_one(plan, pairs, start):
    """Scores that were given before an outage count; scores of a suspect judge are set aside."""
    items = tuple(pairs(GOOD * 15, BAD * 15))
    fresh = RolloutState.start(plan, start)
    assert fold(plan, fresh, Batch(items[-1].at, Health("outage"), evidence=items))[1][-1].action == "rollback"
    state, made = fold(plan, fresh, Batch(items[-1].at, Health("suspect"), evidence=items))
    assert [d.cause for d in made] == ["judge_suspect"]
    assert state.gates["quality"].numbers()["arms"]["canary"]["set_aside"] == 60
    marked = pairs(GOOD * 15, BAD * 15, suspect=True)
    assert all(d.action == "hold" for d in decisions(plan, start, marked)[1])


def test_arms_under_different_epochs_hold_and_are_not_compared(plan, pairs, evidence, start):
    """Baseline scored by one judge version and canary by another: hold, nothing enters the test."""
    items = [evidence(i, 1.0 if i % 2 == 0 else 0.0, epoch="judge-1" if i % 2 == 0 else "judge-2") for i in range(100)]
    state, log = decisions(plan, start, items)
    assert (log[-1].cause, log[-1].gate) == ("epochs_differ", "quality")
    assert "judge-1" in log[-1].reason
    assert state.standings["quality"].seen == 0
    more = pairs(GOOD * 15, BAD * 15, first=100, epoch="judge-2")
    assert run(plan, start, items + more)[1][-1][0] == "rollback"


def test_too_many_missing_scores_hold_until_they_come_back(walk, ramp):
    """Errors that depend on quality would bias the comparison."""
    rollout = walk(ramp())
    rollout.scores(30)
    assert rollout.scores(40, baseline=None, canary=None, status=Status.ERROR) == [("hold", "missing_scores")]
    assert "too many faithful scores are missing" in rollout.log[-1].reason
    assert rollout.where == ("running", 5)
    assert rollout.scores(120)[0] == ("advance", "no_harm_seen")


def test_unequal_sampling_within_an_arm_needs_its_bound_before_advancing(evidence, start):
    """Without ``max_weights`` hold and say which key; with it the scores are thinned."""
    values = [0.85, 0.85, 0.84, 0.84] * 400
    items = [evidence(i, v, weight=20.0 if i % 10 < 8 else 10.0) for i, v in enumerate(values)]
    log = decisions(with_gates([Gate("quality", "faithful")]), start, items)[1]
    assert (log[-1].cause, "max_weights" in log[-1].reason) == ("unequal_weights", True)
    bounded = with_gates([Gate("quality", "faithful", max_weights=(20.0, 20.0))])
    assert run(bounded, start, items)[1][-1][0] == "advance"


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


HARMED = Standing(harmed=True, seen=50)
FINE = Standing(proven=True, seen=50)
CLEAR = {"guard": FINE, "signal": FINE, "objective": FINE, "share": FINE, "flags": FINE}


def obstacle(name):
    """A gate with this in its way."""
    return Standing(proven=True, seen=50, obstacle=name, detail="the detail")


LOST, UNEQUAL = obstacle("missing_scores"), obstacle("unequal_weights")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("advance", "no_harm_proven", "")),
        ({"guard": HARMED, "signal": HARMED, "judge": "outage", "frozen": True}, ("rollback", "harm_proven", "guard")),
        ({"guard": HARMED, "judge": "suspect"}, ("rollback", "harm_proven", "guard")),
        ({"guard": HARMED, "late": True}, ("rollback", "harm_proven", "guard")),
        ({"guard": HARMED._replace(seen=4)}, ("rollback", "catastrophic_harm", "guard")),
        ({"flags": HARMED._replace(cause="confirmed_flag")}, ("rollback", "confirmed_flag", "flags")),
        ({"guard": HARMED, "flags": HARMED}, ("rollback", "harm_proven", "guard")),
        ({"late": True, "judge": "outage"}, ("hold", "expired", "")),
        ({"judge": "outage", "guard": obstacle("epochs_differ")}, ("hold", "judge_outage", "")),
        ({"guard": LOST, "flags": obstacle("epochs_differ")}, ("hold", "epochs_differ", "flags")),
        ({"guard": LOST, "flags": obstacle("unconfirmed_flag")}, ("hold", "missing_scores", "guard")),
        ({"flags": obstacle("unconfirmed_flag"), "share": HARMED}, ("hold", "unconfirmed_flag", "flags")),
        ({"share": HARMED, "silent": True}, ("hold", "sample_ratio", "share")),
        ({"silent": True, "frozen": True}, ("hold", "no_data", "guard")),
        ({"frozen": True, "signal": HARMED}, ("hold", "frozen", "")),
        ({"signal": HARMED, "guard": obstacle("segment_harmed")}, ("hold", "signal_harmed", "signal")),
        ({"objective": HARMED}, ("hold", "signal_harmed", "objective")),
        ({"guard": UNEQUAL, "signal": obstacle("segment_harmed")}, ("hold", "segment_harmed", "signal")),
        ({"guard": obstacle("unequal_weights"), "early": True}, ("hold", "unequal_weights", "guard")),
        ({"early": True, "guard": Standing()}, ("hold", "baking", "")),
        ({"guard": Standing(seen=50)}, ("hold", "insufficient_evidence", "")),
        ({"objective": Standing(seen=50)}, ("hold", "insufficient_evidence", "")),
        ({"signal": Standing()}, ("advance", "no_harm_proven", "")),
        ({"guard": Standing(proven=True, seen=9)}, ("hold", "insufficient_evidence", "")),
        ({"flags": Standing(seen=50)}, ("hold", "insufficient_evidence", "")),
        ({"flags": Standing(seen=9)}, ("hold", "insufficient_evidence", "")),
    ],
)  # fmt: skip
def test_rollback_goes_before_hold_and_hold_before_advance(gate, ramp, start, changes, expected):
    """Whatever comes together: one action, one cause, by one order; and a reason with the numbers at hand."""
    gates = [
        gate("guard"),
        gate("signal", "polite", role="signal"),
        gate("objective", "brief", role="objective"),
        gate("share", role="objective", kind="ratio"),
        gate("flags", "safe", kind="safety", direction="rise"),
    ]
    plan = ramp(gates)
    state, at = RolloutState.start(plan, start), start + timedelta(minutes=40)
    state.step = 1
    for track in state.tracks.values():
        track.at = {"baseline": at, "canary": at}
    state.standings |= {**CLEAR, **{name: value for name, value in changes.items() if name in CLEAR}}
    state.health = Health(changes.get("judge", "ok"))
    if "frozen" in changes:
        state.phase, state.frozen_until = "paused", at + timedelta(hours=1)
    if "silent" in changes:
        state.tracks["faithful"].at["canary"] = at - timedelta(minutes=16)
    if "early" in changes:
        state.step_at = at - timedelta(seconds=59)
    if "late" in changes:
        state.began_at = at - plan.max_duration
    outcome = assess(plan, state, at)
    assert (outcome.action, outcome.cause, outcome.gate) == expected
    decision = decide(plan, state, at)
    assert (decision.action, decision.cause) == expected[:2]
    assert len(decision.reason) > 20
    json.dumps(decision.to_dict(), allow_nan=False)
