"""The state machine: shadow, steps, ends; what it waits for, and what ends it."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from rollout_walks import MINUTE, START, make_evidence, make_gate, make_ramp

from evalpipe.rollout.fold import fold, replay
from evalpipe.rollout.inputs import Batch, Health, MeterReading, Override
from evalpipe.rollout.outcome import harm_cause
from evalpipe.rollout.plan import Segments, Shadow, Step
from evalpipe.rollout.state import ENDS, RolloutState
from evalpipe.score import Status


def test_a_good_canary_walks_the_ramp_to_its_end(walk, ramp):
    """A minute and ten canaries at 5 %, proof at 50 %, and then all of it: an advance for each, and few holds."""
    rollout = walk(ramp())
    rollout.scores(59)
    assert rollout.where == ("running", 5)
    rollout.scores(2)
    assert rollout.where == ("running", 50)
    rollout.scores(58)
    assert rollout.where == ("running", 50)
    rollout.scores(5)
    assert rollout.where == ("complete", 100)
    assert [(d.action, d.cause, d.from_percent, d.to_percent) for d in rollout.log] == [
        ("hold", "baking", 5, 5),
        ("advance", "no_harm_seen", 5, 50),
        ("advance", "no_harm_proven", 50, 100),
    ]
    assert "on from 5 % to 50 %" in rollout.log[1].reason
    assert rollout.scores(50) == []
    assert [d.seq for d in rollout.log] == [1, 2, 3]
    assert rollout.log[-1].decision_id == "dec_r-1_3"


def test_every_step_is_an_advance_of_its_own(walk, ramp):
    """Also where all of them are left for the same cause."""
    rollout = walk(ramp(steps=tuple(Step(percent, MINUTE, 10) for percent in (1, 5, 20))))
    for _ in range(10):
        rollout.scores(30)
    assert [(d.from_percent, d.to_percent) for d in rollout.log if d.action == "advance"] == [
        (1, 5),
        (5, 20),
        (20, 100),
    ]


def test_the_gates_keep_their_evidence_from_step_to_step(walk, ramp):
    """A slow harm is found by all of the evidence, not by that of one step."""
    rollout = walk(ramp())
    rollout.scores(70)
    assert rollout.state.step == 1
    assert rollout.state.gates["quality"].numbers()["matched_canary"] >= 34


def test_a_step_waits_for_canaries_of_its_own(walk, ramp):
    """Time alone is not enough, nor what the step before had seen."""
    rollout = walk(ramp())
    rollout.scores(10)
    assert rollout.wait(2) == [("hold", "insufficient_evidence")]
    assert "5 of 10 in this step" in rollout.log[-1].reason
    rollout.scores(12)
    assert rollout.where == ("running", 50)
    rollout.wait(2)
    assert rollout.log[-1].cause == "insufficient_evidence"


def test_steps_that_ask_for_nothing_are_left_one_by_one(walk, ramp):
    """Each needs a canary that was compared in it: no evidence walks through two."""
    rollout = walk(ramp(steps=tuple(Step(percent, timedelta(0), 0) for percent in (1, 5, 20, 50))))
    assert rollout.scores(1) == [("hold", "insufficient_evidence")]
    for percent in (5, 20, 50):
        assert rollout.scores(2)[0] == ("advance", "no_harm_seen")
        assert rollout.where == ("running", percent)


def test_the_count_of_a_step_begins_anew_with_another_epoch(walk, ramp):
    """What an older judge has compared is gone, and what the new one compares counts in full."""
    rollout = walk(ramp())
    rollout.scores(70, epoch="e1")
    assert rollout.where == ("running", 50)
    rollout.scores(20, epoch="e2")
    rollout.wait(2)
    assert rollout.state.standings["quality"].seen < 10
    rollout.scores(8, epoch="e2")
    assert rollout.where == ("complete", 100)


def test_proof_is_asked_for_where_the_step_says_so(walk, ramp, gate):
    """Harm that nobody saw is not harm that is excluded."""
    noisy = gate(margin=0.01, alpha=0.001, advance_alpha=0.001)
    rollout = walk(ramp([noisy]))
    rollout.scores(300)
    assert rollout.where == ("running", 50)
    assert rollout.log[-1].cause == "insufficient_evidence"
    assert "of no harm E = " in rollout.log[-1].reason


def test_harm_rolls_back_in_every_step(walk, ramp):
    """At once, whatever time or count is missing, and nothing is folded afterwards."""
    for n in (0, 70):
        rollout = walk(ramp())
        rollout.scores(n)
        assert rollout.bad(60)[-1][0] == "rollback"
        assert rollout.where == ("rolled_back", 0)
        assert rollout.log[-1].from_percent == (50 if n else 5)
        assert rollout.scores(100) == []
        assert rollout.wait(100_000) == []


def test_a_rollout_expires_without_an_incident(walk, ramp):
    """Nothing proven in time: traffic goes back, by a hold that says so."""
    rollout = walk(ramp(max_duration=timedelta(hours=1)))
    rollout.scores(8)
    assert rollout.wait(60) == [("hold", "expired")]
    assert rollout.where == ("expired", 0)
    assert "max_duration" in rollout.log[-1].reason
    assert rollout.bad(100) == []


def test_harm_that_comes_with_the_last_minute_still_rolls_back(walk, ramp):
    """Precedence: rollback before everything, also in the batch in which time runs out."""
    rollout = walk(ramp(max_duration=timedelta(minutes=1)))
    assert rollout.bad(100)[-1][0] == "rollback"


def test_without_a_ramp_one_advance_is_logged_and_harm_is_watched_for(walk, ramp):
    """Others split the traffic: the comparison goes on until its time is over."""
    rollout = walk(ramp(steps=(), max_duration=timedelta(hours=1)))
    assert rollout.scores(60) == [("hold", "insufficient_evidence"), ("advance", "no_harm_proven")]
    assert rollout.where == ("running", None)
    assert rollout.wait(20) == []
    late = walk(ramp(steps=(), max_duration=timedelta(hours=1)))
    late.scores(60)
    assert late.bad(200)[-1][0] == "rollback"
    assert rollout.wait(40) == [("advance", "expired")]
    assert rollout.where == ("complete", None)
    assert rollout.bad(200) == []


def test_a_dry_run_is_told_and_acts_on_nothing(walk, ramp, gate):
    """Neither its harm nor its want of evidence counts; its numbers are in every decision."""
    rollout = walk(ramp([gate(), gate("tone", "polite", dry_run=True)]))
    rollout.scores(20, criteria=("faithful",))
    rollout.scores(45, canary=0.0, criteria=("polite",))
    rollout.scores(90)
    assert rollout.where == ("complete", 100)
    decision = rollout.log[-1]
    assert decision.evidence["gates"]["tone"]["dry_run"] is True
    assert decision.evidence["gates"]["tone"]["estimate"] == -1.0
    only = walk(ramp([gate(dry_run=True)]))
    only.scores(300)
    assert only.log[-1].cause == "insufficient_evidence"


@pytest.mark.parametrize("role", ["guardrail", "signal"])
def test_harm_in_a_segment_is_named(walk, ramp, gate, role):
    """It holds, or rolls back where the plan says so, with the segment in the reason."""
    rollout = walk(ramp([gate(margin=0.1, alpha=0.0001)], segments=Segments(role=role, alpha=0.01)))
    while rollout.log[-1:] == [] or rollout.log[-1].cause in ("baking", "no_harm_seen", "insufficient_evidence"):
        rollout.scores(6, segment="big")
        rollout.bad(2, segment="small")
    decision = rollout.log[-1]
    assert decision.cause == ("harm_proven" if role == "guardrail" else "segment_harmed")
    assert decision.action == ("rollback" if role == "guardrail" else "hold")
    assert "feature 'small'" in decision.reason
    assert f"rollout.segments.role = {role}" in decision.reason


@pytest.mark.parametrize("role", ["objective", "signal"])
def test_proven_harm_of_an_objective_or_a_signal_holds(walk, ramp, gate, role):
    """It does not roll back, and it does not let the ramp go on."""
    rollout = walk(ramp([gate(), gate("tone", "polite", role=role)]))
    for _ in range(30):
        rollout.scores(2)
        rollout.seq -= 2
        rollout.scores(2, canary=0.0, criteria=("polite",))
    rollout.wait(2)
    assert rollout.where == ("running", 5)
    assert (rollout.log[-1].cause, rollout.log[-1].gate) == ("signal_harmed", "tone")
    assert f"tone.role = {role}" in rollout.log[-1].reason


def test_a_silent_arm_is_handled_as_each_gate_says(walk, ramp, gate):
    """Hold; or ignore; or roll back, where only the canary is silent and had been heard."""
    held = walk(ramp())
    held.scores(40)
    assert held.wait(16) == [("hold", "no_data")]
    assert "no faithful of the canary and the baseline" in held.log[-1].reason
    assert held.scores(20)[-1] == ("advance", "no_harm_seen")
    assert held.log[-1].evidence_seq == 41, "as soon as both arms are heard again"
    ignored = walk(ramp([gate(), gate("tone", "polite", no_data="ignore")]))
    ignored.scores(80)
    assert ignored.log[-1].cause == "insufficient_evidence"
    for _ in range(30):
        ignored.scores(2)
        ignored.wait(1)
    assert ignored.where == ("complete", 100)
    dead = walk(ramp([gate(no_data="rollback", advance_alpha=1e-6)]))
    dead.scores(40)
    assert dead.wait(16)[-1] == ("hold", "no_data")
    for _ in range(16):
        dead.scores(1, arm="baseline")
        dead.wait(1)
    assert (dead.log[-1].action, dead.log[-1].cause) == ("rollback", "no_data")
    never = walk(ramp([gate(no_data="rollback")]))
    for _ in range(20):
        never.scores(1, arm="baseline")
        never.wait(1)
    assert (never.log[-1].action, never.log[-1].cause) == ("hold", "no_data")


def test_a_judge_that_is_out_does_not_make_a_canary_dead(walk, ramp, gate):
    """Missing data can roll back only where nothing else explains it."""
    rollout = walk(ramp([gate(no_data="rollback", advance_alpha=1e-6)]))
    rollout.scores(40)
    for _ in range(20):
        rollout.scores(1, arm="baseline", health=Health("outage"))
        rollout.wait(1, health=Health("outage"))
    assert rollout.log[-1].cause == "judge_outage"
    assert rollout.wait(0) == [("rollback", "no_data")]


def test_ignoring_all_silence_advances_nothing(walk, ramp, gate):
    """Absence of evidence is not evidence of absence."""
    rollout = walk(ramp([gate(no_data="ignore")]))
    rollout.scores(4)
    for _ in range(30):
        rollout.wait(1)
    assert rollout.where == ("running", 5)


def test_the_log_holds_turns_and_not_ticks(walk, ramp):
    """Two hundred empty folds and as many scores of one kind: no word more than there is to say."""
    rollout = walk(ramp([make_gate(margin=0.01, alpha=1e-6, advance_alpha=1e-6)]))
    for _ in range(200):
        rollout.scores(1)
        rollout.wait(0)
    assert [(d.action, d.cause) for d in rollout.log] == [
        ("hold", "baking"), ("advance", "no_harm_seen"), ("hold", "insufficient_evidence")
    ]  # fmt: skip


def test_bad_news_is_told_at_once_and_its_end_a_while_later(walk, ramp):
    """A judge that comes and goes is said once, not each time."""
    rollout = walk(ramp([make_gate(margin=0.01, alpha=1e-6, advance_alpha=1e-6)], steps=()))
    rollout.scores(10)
    for _ in range(6):
        rollout.wait(1, Health("outage"))
        rollout.scores(60)
    assert [d.cause for d in rollout.log] == ["insufficient_evidence", "judge_outage"]
    for _ in range(5):
        rollout.scores(60)
    assert [d.cause for d in rollout.log] == ["insufficient_evidence", "judge_outage", "insufficient_evidence"]


def test_nothing_is_said_before_the_first_evidence_until_it_is_late(walk, ramp):
    """A start is no news; silence is."""
    rollout = walk(ramp())
    assert rollout.wait(1) == []
    assert rollout.wait(15) == [("hold", "no_data")]
    assert rollout.log[0].evidence_seq == -1


def test_meter_readings_decide_like_evidence(walk, ramp, gate):
    """Of all calls, by bins: a canary that is ten times slower is rolled back, and the readings are in the hash."""
    slow = gate("latency", "latency_ms", kind="latency", direction="rise", margin=0.2, no_data="ignore")
    rollout = walk(ramp([gate(), slow]))
    for _ in range(40):
        rollout.now += MINUTE / 6
        readings = tuple(
            MeterReading(rollout.now, arm, 1000, {bin_ + shift: 100 for bin_ in range(100, 110)})
            for arm, shift in (("baseline", 0), ("canary", 100))
        )
        rollout.fold(Batch(rollout.now, meter=readings))
        if rollout.state.ended:
            break
    assert (rollout.log[-1].action, rollout.log[-1].gate) == ("rollback", "latency")


def shadowed(**changes):
    """A ramp after an hour of shadows with ten pairs."""
    return make_ramp(shadow=Shadow(timedelta(hours=1), min_pairs=10, alpha=0.1), **changes)


def pairs_of(rollout, n, *, canary=1.0, first=0):
    """``n`` inputs that both arms answered."""
    items = []
    for i in range(first, first + n):
        rollout.now += timedelta(seconds=1)
        for arm, value in (("baseline", 1.0), ("canary", canary)):
            items.append(make_evidence(rollout.seq, value, arm=arm, at=rollout.now, unit=f"u{i}", pair=f"p{i}"))
            rollout.seq += 1
    return rollout.fold(Batch(rollout.now, evidence=tuple(items)))


def test_the_shadow_phase_ends_with_time_pairs_and_proof(walk):
    """All three; then the ramp begins, with gates that have no evidence."""
    rollout = walk(shadowed())
    assert rollout.where == ("shadow", 0)
    assert pairs_of(rollout, 200) == [("hold", "baking")]
    assert "rollout.shadow.min_duration" in rollout.log[-1].reason
    rollout.wait(50)
    pairs_of(rollout, 20, first=200)
    assert rollout.wait(10)[-1] == ("advance", "no_harm_proven")
    assert rollout.where == ("running", 5)
    assert (rollout.log[-1].from_percent, rollout.log[-1].to_percent) == (0, 5)
    assert rollout.log[-1].evidence["gates"]["quality"]["matched_canary"] >= 200
    assert rollout.state.gates["quality"].numbers()["matched_canary"] == 0


def test_the_shadow_phase_has_gates_and_an_alpha_of_its_own(walk, gate):
    """Shares are a matter of the ramp, comparisons of two answers one of the shadows; latency may see nothing there."""
    slow = gate("slow", "latency_ms", kind="latency", direction="rise")
    gates = [
        gate(),
        slow,
        gate("share", kind="ratio", role="signal"),
        gate("duel", "better", pairwise=True, dry_run=True),
    ]
    rollout = walk(shadowed(gates=gates))
    assert set(rollout.state.gates) == {"quality", "slow", "duel"}
    assert rollout.state.gates["quality"].numbers()["threshold"] == 10
    assert rollout.state.gates["slow"].numbers()["threshold"] == 20
    pairs_of(rollout, 200)
    rollout.wait(50)
    pairs_of(rollout, 20, first=200)
    rollout.wait(10)
    assert rollout.where == ("running", 5)
    assert set(rollout.state.gates) == {"quality", "slow", "share"}
    assert rollout.state.gates["quality"].numbers()["threshold"] == 20


def test_few_pairs_do_not_graduate(walk):
    """However long it takes."""
    rollout = walk(shadowed())
    pairs_of(rollout, 8)
    rollout.wait(55)
    pairs_of(rollout, 1, first=8)
    assert rollout.wait(6) == [("hold", "insufficient_evidence")]
    assert rollout.where == ("shadow", 0)


def test_harm_among_pairs_ends_the_rollout(walk):
    """Before any user has seen the canary."""
    rollout = walk(shadowed())
    assert pairs_of(rollout, 200, canary=0.0)[-1][0] == "rollback"
    assert rollout.where == ("rolled_back", 0)
    assert rollout.log[-1].from_percent == 0
    rollout.order("resume")
    assert rollout.where == ("shadow", 0)


def test_late_pairs_do_not_enter_the_ramp(walk):
    """The canary's gates begin with what users were given."""
    rollout = walk(shadowed())
    pairs_of(rollout, 200)
    rollout.wait(50)
    pairs_of(rollout, 20, first=200)
    rollout.wait(11)
    pairs_of(rollout, 50, canary=0.0, first=300)
    assert rollout.where == ("running", 5)
    assert rollout.state.stale == 100
    assert rollout.state.gates["quality"].numbers()["n_canary"] == 0


def test_the_ratio_gate_expects_a_steps_share_after_a_minute_of_grace(walk, ramp, gate):
    """Records from around the change of a step are of neither share."""
    shares = gate("share", kind="ratio", role="signal")
    rollout = walk(ramp([gate(), shares], weights="support"))

    def share(rollout=rollout):
        return rollout.state.gates["share"].numbers()["share_now"]

    rollout.scores(30)
    assert share() is None
    rollout.scores(31)
    assert rollout.where == ("running", 50)
    assert share() is None
    rollout.scores(30)
    assert share() is None
    rollout.scores(30)
    assert share() == 0.5
    others = walk(ramp([gate(), shares]))
    others.scores(58)
    others.scores(62)
    assert share(others) is None, "who else moves the traffic follows when it does"


JUDGES = st.sampled_from(["ok", "ok", "ok", "ok", "outage", "suspect"])


class Rollouts(RuleBasedStateMachine):
    """Any inputs in any order: what must hold in every state, and between any two."""

    @initialize(shadow=st.booleans(), ramp=st.booleans())
    def begin(self, shadow, ramp):
        """With and without shadows before, and steps."""
        self.plan = make_ramp(
            [make_gate(no_data="rollback"), make_gate("tone", "polite", role="signal", no_data="ignore")],
            max_duration=timedelta(hours=30),
            shadow=Shadow(MINUTE, min_pairs=10, alpha=0.05) if shadow else None,
            **({} if ramp else {"steps": ()}),
        )
        self.state = RolloutState.start(self.plan, START)
        self.now, self.seq = START, 0
        self.batches, self.log = [], []

    def feed(self, batch):
        """Fold, and look at what happened."""
        before, saved = self.state, self.state.to_state(self.plan)
        self.state, made = fold(self.plan, before, batch)
        assert before.to_state(self.plan) == saved
        self.batches.append(batch)
        percent = before.percent(self.plan)
        for decision in made:
            assert decision.seq == len(self.log) + 1
            assert decision.from_percent == percent
            assert not self.log or decision.decided_at >= self.log[-1].decided_at
            self.log.append(decision)
            if (decision.to_percent or 0) > (percent or 0):
                assert decision.action == "advance"
            percent = decision.to_percent
        assert percent == self.state.percent(self.plan)
        causes = [decision.cause for decision in made]
        if self.state.phase == "running" and before.shadowing:
            assert any(decision.action == "advance" for decision in made)
        if before.phase == "rolled_back" and self.state.phase != "rolled_back":
            assert "resumed" in causes
        if before.phase in ("aborted", "expired"):
            assert self.state.phase == before.phase
        if before.phase == "complete":
            assert self.state.phase == "complete" or (self.state.phase == "rolled_back" and "override" in causes)

    def scores(self, n, canary, judge, criteria=("faithful",), **changes):
        """Both arms in turn."""
        items = []
        for _ in range(n):
            self.now += timedelta(seconds=2)
            value = canary if self.seq % 2 else 1.0
            unit = {"pair": f"pair-{self.seq // 2}", "unit": f"user-{self.seq // 2}"} if self.state.shadowing else {}
            items += [make_evidence(self.seq, value, criterion=c, at=self.now, **unit, **changes) for c in criteria]
            self.seq += 1
        self.feed(Batch(self.now, Health(judge), evidence=tuple(items)))

    @rule(n=st.integers(1, 60), judge=JUDGES)
    def good(self, n, judge):
        """Equal arms."""
        self.scores(n, 1.0, judge, ("faithful", "polite"))

    @rule(n=st.integers(1, 60), judge=JUDGES)
    def bad(self, n, judge):
        """A canary that always fails."""
        self.scores(n, 0.0, judge)

    @rule(n=st.integers(1, 20))
    def rude(self, n):
        """Harm that a signal sees."""
        self.scores(n, 0.0, "ok", ("polite",))

    @rule(n=st.integers(1, 40))
    def lost(self, n):
        """Errors of the judge."""
        self.scores(n, None, "ok", status=Status.ERROR)

    @rule(n=st.integers(1, 20), epoch=st.sampled_from(["e1", "e2"]), arm=st.sampled_from(["baseline", "canary"]))
    def one_armed(self, n, epoch, arm):
        """Only one arm is heard, by another judge perhaps."""
        self.scores(n, 1.0, "ok", epoch=epoch, arm=arm)

    @rule(minutes=st.sampled_from([0, 1, 20, 600]), judge=JUDGES)
    def wait(self, minutes, judge):
        """Nothing but time."""
        self.now += minutes * MINUTE
        self.feed(Batch(self.now, Health(judge)))

    @rule(
        action=st.sampled_from(["advance", "rollback", "freeze", "resume", "resume", "abort"]),
        minutes=st.sampled_from([-1, 5, 60]),
    )
    def order(self, action, minutes):
        """A person, sometimes too late."""
        self.feed(Batch(self.now, overrides=(Override(action, "ada", "why", self.now, self.now + minutes * MINUTE),)))

    @precondition(lambda self: len(self.batches) > 2)
    @rule()
    def restart(self):
        """The state goes to the store and back."""
        text = json.dumps(self.state.to_state(self.plan), allow_nan=False)
        self.state = RolloutState.from_state(self.plan, json.loads(text))
        assert json.dumps(self.state.to_state(self.plan), allow_nan=False) == text

    @precondition(lambda self: self.batches)
    @rule()
    def redeliver(self):
        """The newest evidence comes again: nothing is taken twice."""
        repeated = self.state.repeated
        last = self.batches[-1]
        self.feed(Batch(self.now, last.health, evidence=last.evidence))
        assert self.state.ended or self.state.repeated == repeated + len(last.evidence)

    @invariant()
    def harm_never_stands(self):
        """A guardrail that is harmed has ended the rollout."""
        standing = self.state.gates["quality"].standing()
        assert not standing.harmed or self.state.phase in ENDS, harm_cause(self.plan.gates[0], standing)

    @invariant()
    def percents_fit_phases(self):
        """Nobody gets a canary that is rolled back, aborted or expired."""
        percent, phase = self.state.percent(self.plan), self.state.phase
        assert (percent == 0) == (phase in ("rolled_back", "aborted", "expired") or self.state.shadowing)
        assert (percent == 100) == (phase == "complete" and bool(self.plan.steps))

    def teardown(self):
        """The log of batches gives the same state and the same decisions, hashes included."""
        state, log = replay(self.plan, START, self.batches)
        assert list(log) == self.log
        assert state.to_state(self.plan) == self.state.to_state(self.plan)


TestRollouts = Rollouts.TestCase
TestRollouts.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
