"""Gates of kind safety: what a flag does, and when it does nothing."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from statistics import median

import pytest
from gate_streams import begin, evidence, feed, flagged_records, same_after_a_trip

from evalpipe.rollout.inputs import MeterReading
from evalpipe.rollout.plan import Gate
from evalpipe.score import Status

DETECTOR = Gate("pii", "safe", "safety", direction="rise")
ARMED = Gate(
    "safety", "safe", "safety", direction="rise", confirm="safe_confirmed", false_flags=0.01, false_confirms=0.0001,
    expected_canary=2000,
)  # fmt: skip
UNMEASURED = Gate("safety", "safe", "safety", direction="rise", confirm="safe_confirmed")


def clean(first, n):
    """Records without a flag, arms in turn."""
    return [evidence(i, 1.0, "safe") for i in range(first, first + n)]


def flag(seq, **changes):
    """A flagged record."""
    return evidence(seq, 0.0, "safe", **changes)


def answer(seq, value, **changes):
    """What the second judge says: 0 confirms."""
    return evidence(seq, value, "safe_confirmed", **changes)


def test_a_detector_s_first_flag_acts_at_once():
    """Whatever the minimum of canary values, if the baseline has had as many records and none of it."""
    gate = begin(DETECTOR)
    feed(gate, clean(0, 6))
    assert gate.take(flag(7))
    standing = gate.standing()
    assert not standing.harmed
    assert (standing.obstacle, standing.seen) == ("unconfirmed_flag", 4)
    assert gate.take(evidence(8, 1.0, "safe"))
    standing = gate.standing()
    assert (standing.harmed, standing.cause, standing.obstacle) == (True, "confirmed_flag", "")


def test_a_detector_that_fires_on_the_baseline_too_does_not_roll_back():
    """Its rate is tested instead: equal rates do nothing, a multiple is found."""
    for seed in range(20):
        rng, gate = random.Random(seed), begin(DETECTOR)
        gate.take(flag(0))
        stream = [evidence(i, 0.0 if rng.random() < 0.02 else 1.0, "safe") for i in range(1, 2000)]
        assert feed(gate, stream) is None
        assert gate.standing().obstacle == ""
    rng, gate = random.Random(1), begin(DETECTOR)
    gate.take(flag(0))
    stream = [evidence(i, 0.0 if rng.random() < (0.1 if i % 2 else 0.01) else 1.0, "safe") for i in range(1, 2000)]
    assert feed(gate, stream) < 1000
    assert gate.standing().cause == ""


def test_a_detector_whose_false_flags_are_measured_acts_only_within_the_budget():
    """Two thousand records and one false flag in a thousand are two false rollbacks."""
    noisy = Gate("pii", "safe", "safety", direction="rise", false_flags=0.001)
    gate = begin(noisy)
    feed(gate, [*clean(0, 40), flag(41), *clean(42, 20)])
    assert not gate.standing().harmed
    assert gate.numbers()["armed"] is False
    assert "2 false rollbacks expected" in gate.numbers()["armed_why"]


def test_an_unconfirmed_flag_holds_until_it_is_answered():
    """Dismissed: nothing happened. The baseline's flags hold nobody up."""
    gate = begin(ARMED)
    feed(gate, clean(0, 80))
    gate.take(flag(80))
    assert gate.standing().obstacle == ""
    assert gate.take(flag(81))
    assert gate.standing().obstacle == "unconfirmed_flag"
    assert "1 of the canary's flags" in gate.standing().detail
    assert not gate.standing().proven
    gate.take(answer(80, 1.0))
    assert gate.take(answer(81, 1.0))
    assert gate.standing()[:2] == (False, True)
    assert gate.standing().obstacle == ""
    assert gate.numbers()["flags"]["canary"] == {
        "records": 41, "flags": 1, "confirmed": 0, "dismissed": 1, "unanswered": 0, "waiting": 0
    }  # fmt: skip


def test_a_confirmed_flag_of_an_armed_gate_acts_at_once():
    """Even if it is among the first records."""
    gate = begin(ARMED)
    assert gate.take(flag(1))
    assert gate.take(answer(1, 0.0))
    assert gate.standing()[0::5] == (True, "confirmed_flag")


def test_a_gate_arms_only_where_its_false_rollbacks_were_reckoned():
    """Not measured, too many expected, more records than expected, or the baseline shows the same."""
    gate = begin(UNMEASURED)
    feed(gate, [*clean(0, 100), flag(101), answer(101, 0.0)])
    assert not gate.standing().harmed
    assert "nobody has measured" in gate.numbers()["armed_why"]
    bold = Gate("s", "safe", "safety", direction="rise", confirm="safe_confirmed", false_flags=0.01, false_confirms=0.2)
    gate = begin(bold)
    feed(gate, [flag(1), answer(1, 0.0)])
    assert not gate.standing().harmed
    assert "4 false rollbacks expected" in gate.numbers()["armed_why"]
    gate = begin(ARMED)
    feed(gate, [*clean(0, 4100), flag(4101), answer(4101, 0.0)])
    assert not gate.standing().harmed
    assert "has had 2051 records" in gate.numbers()["armed_why"]
    gate = begin(ARMED)
    feed(gate, [flag(0), answer(0, 0.0), flag(1), answer(1, 0.0)])
    assert not gate.standing().harmed


def test_without_arms_the_rate_of_confirmed_flags_decides():
    """Five per cent of the canary's answers violate."""
    found = [feed(begin(UNMEASURED), flagged_records(seed, 6000, 0.005, 0.05, 0.05)) for seed in range(15)]
    assert all(found)
    assert median(found) < 700


def test_flags_that_nobody_confirms_are_found_by_their_rate():
    """The second judge dismisses all of them: what it would miss shows in the rate of all flags."""
    rng, gate = random.Random(2), begin(UNMEASURED)
    for i in range(4000):
        flagged = rng.random() < (0.06 if i % 2 else 0.005)
        gate.take(evidence(i, 0.0 if flagged else 1.0, "safe"))
        if flagged:
            gate.take(answer(i, 1.0))
        if gate.standing().harmed:
            break
    numbers = gate.numbers()
    assert gate.standing().harmed
    assert numbers["raw"]["max_e_value"] >= numbers["raw"]["threshold"] > numbers["threshold"]
    assert i < 1500


@pytest.mark.parametrize(("false_flags", "false_confirms"), [(0.005, 0.0005), (0.01, 0.00025), (0.01, 0.05)])
def test_healthy_canaries_are_seldom_rolled_back(false_flags, false_confirms):
    """Armed at the edge of the budget (.25 % a rollout), and not armed; more than two of 60 would be one in 1,900."""
    gate = Gate(
        "s", "safe", "safety", direction="rise", confirm="safe_confirmed", false_flags=false_flags,
        false_confirms=false_confirms, expected_canary=500,
    )  # fmt: skip
    fired = sum(feed(begin(gate), flagged_records(s, 1000, false_flags, false_confirms)) is not None for s in range(60))
    assert fired <= 2
    assert begin(gate).armed[0] is (false_confirms < 0.01)


def test_the_two_criteria_may_come_in_any_interleaving():
    """Their watermarks are their own: the outcome is that of the records' order."""
    flags = [evidence(i, 0.0 if i in {5, 8, 13, 17} else 1.0, "safe") for i in range(30)]
    answers = [answer(5, 1.0), answer(8, 0.0), answer(13, 1.0), answer(17, None, status=Status.ERROR)]
    rng, outcomes = random.Random(3), set()
    for turn in range(60):
        gate, queues = begin(UNMEASURED), [list(flags), list(answers)]
        while any(queues):
            open_queues = [queue for queue in queues if queue]
            queue = open_queues[0] if turn == 0 else open_queues[-1] if turn == 1 else rng.choice(open_queues)
            gate.take(queue.pop(0))
        numbers = gate.numbers()
        outcomes.add((str(numbers["flags"]), numbers["e_value"], numbers["raw"]["e_value"], gate.standing()))
    assert len(outcomes) == 1
    assert "'confirmed': 1" in outcomes.pop()[0]


def test_a_flag_without_an_answer_holds_no_more_and_is_never_confirmed():
    """An error, an answer under suspicion, or an answer to a later record; again and again, scores are missing."""
    gate = begin(ARMED)
    feed(gate, [*clean(0, 60), flag(61), answer(61, None, status=Status.ERROR)])
    assert gate.standing().obstacle == ""
    assert gate.numbers()["flags"]["canary"]["unanswered"] == 1
    feed(gate, [flag(63), flag(65), answer(65, 1.0)])
    assert gate.numbers()["flags"]["canary"]["unanswered"] == 2
    feed(gate, [flag(67), answer(67, 0.0, suspect=True)])
    assert gate.standing().obstacle == "missing_scores"
    assert "unanswered" in gate.standing().detail
    assert not gate.standing().harmed
    feed(gate, itertools.chain.from_iterable((flag(i), answer(i, 1.0)) for i in range(71, 81, 2)))
    assert gate.standing().obstacle == ""


def test_answers_to_records_without_a_flag_are_nothing():
    """Whether they come before or after; a doubtful score is no flag."""
    gate = begin(ARMED)
    gate.take(answer(1, 0.0))
    feed(gate, clean(0, 6))
    gate.take(answer(3, 0.0))
    gate.take(evidence(7, 0.0, "safe", suspect=True))
    gate.take(evidence(9, None, "safe", status=Status.ERROR))
    assert gate.numbers()["flags"]["canary"]["flags"] == 0
    assert gate.numbers()["arms"]["canary"]["set_aside"] == 1
    assert gate.numbers()["arms"]["canary"]["missing"] == 1


def test_one_user_who_provokes_flags_counts_once_in_the_rates():
    """Fifty flagged records of one user prove nothing about the rate."""
    gate = begin(UNMEASURED)
    stream = [evidence(i, 0.0 if i % 2 else 1.0, "safe", unit="troll" if i % 2 else f"u{i}") for i in range(200)]
    feed(gate, stream)
    assert not gate.standing().harmed
    assert gate.numbers()["raw"]["max_e_value"] < 50


def test_in_shadow_both_answers_to_an_input_count():
    """They have one unit."""
    gate = begin(DETECTOR)
    for i in range(100):
        gate.take(evidence(i, 1.0, "safe", unit=f"u{i // 2}", pair=f"p{i // 2}"))
    assert gate.numbers()["matched_canary"] == gate.numbers()["matched_baseline"] == 50


def test_a_margin_in_points_must_be_excluded_for_an_advance():
    """Relative margins ask for nothing but quiet; two points take some hundred records."""
    points = Gate("s", "safe", "safety", direction="rise", margin=0.02, relative=False, confirm="safe_confirmed")
    gate, quiet = begin(points), begin(UNMEASURED)
    for piece in clean(0, 100):
        gate.take(piece)
        quiet.take(piece)
    assert quiet.standing().proven
    assert not gate.standing().proven
    assert any(gate.take(piece) and gate.standing().proven for piece in clean(100, 2000))


def test_records_wait_in_line_behind_a_flag_and_memory_is_bounded(monkeypatch):
    """The oldest flag is given up when too many wait."""
    monkeypatch.setattr("evalpipe.rollout.gates.flag_line.MOST_WAITING", 20)
    gate = begin(UNMEASURED)
    feed(gate, [flag(1), *clean(2, 10)])
    assert gate.numbers()["matched_canary"] == 0
    feed(gate, clean(12, 30))
    assert gate.numbers()["flags"]["canary"]["unanswered"] == 1
    assert gate.numbers()["matched_canary"] > 10
    for i in range(1000, 1100):
        gate.take(answer(i, 1.0))
    assert len(gate.to_state()["line"]["early"]) == 20


def test_another_version_of_the_judge_starts_the_rates_anew():
    """Until both arms are scored by it, the gate holds."""
    gate = begin(UNMEASURED)
    feed(gate, [evidence(i, 1.0, "safe", epoch="1") for i in range(40)])
    assert gate.take(evidence(41, 1.0, "safe", epoch="2"))
    assert gate.standing().obstacle == "epochs_differ"
    assert gate.take(evidence(42, 1.0, "safe", epoch="2"))
    assert gate.standing().obstacle == ""
    assert gate.numbers()["matched_canary"] == 0
    assert not gate.take_meter(MeterReading(evidence(0, 1.0, "safe").at, "canary", 5))


def test_records_sampled_more_densely_are_thinned_for_the_rates():
    """A weight of 1 where 4 is the largest stays in one of four cases."""
    weighed = Gate("s", "safe", "safety", direction="rise", max_weights=(4.0, 4.0))
    gate = begin(weighed)
    feed(gate, [evidence(i, 1.0, "safe", weight=1.0 if i % 4 < 2 else 4.0) for i in range(2000)])
    used = sum(arm["used"] for arm in gate.numbers()["arms"].values())
    assert used == pytest.approx(1000 + 250, abs=70)
    assert gate.standing().obstacle == ""


def test_it_goes_on_bit_by_bit_after_a_restart():
    """State is JSON-safe and complete, with flags that wait."""
    for gate in (UNMEASURED, DETECTOR, ARMED):
        assert same_after_a_trip(gate, list(flagged_records(4, 1200, 0.03, 0.1, 0.01, delay=9)), every=7)
    assert math.isfinite(begin(ARMED).numbers()["threshold"])


def test_what_one_flag_may_spend_the_rates_may_not():
    """Both together keep to the gate's alpha: what is expected of the one rule is taken off the other."""
    numbers = begin(ARMED).numbers()
    assert numbers["armed"]
    assert numbers["threshold"] == pytest.approx(1.0 / (0.8 * 0.0005)), "a fifth of .0025 is left of it"
    assert begin(UNMEASURED).numbers()["threshold"] == pytest.approx(1.0 / (0.8 * 0.0025))
    careful = dataclasses.replace(ARMED, false_confirms=0.00005)
    assert begin(careful).numbers()["threshold"] == pytest.approx(1.0 / (0.8 * 0.0015))
    beyond = dataclasses.replace(ARMED, expected_canary=9_000)
    assert not begin(beyond).numbers()["armed"]
    assert begin(beyond).numbers()["threshold"] == pytest.approx(1.0 / (0.8 * 0.0025))
