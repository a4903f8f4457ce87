"""Gates of kind latency: all calls of the meters, or the records where nothing is metered, and never both."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from gate_streams import START, begin, calls, evidence, feed, readings, same_after_a_trip, saved

from evalpipe.rollout.inputs import MeterReading
from evalpipe.rollout.plan import Gate, Shadow, Step
from evalpipe.score import Status
from evalpipe.stats.moments import Calibration

GATE = Gate("p99", "latency_ms", "latency", direction="rise", margin=0.2)
KNOWN = replace(GATE, calibration=Calibration(mean=2594.0, variance=1.0))
TTFT = Gate("ttft", "ttft_ms", "latency", direction="rise", margin=0.2)


def records(seed, n, rise=1.0, criterion="latency_ms", first=0):
    """One call a second, arms in turn."""
    return [evidence(first + i, v, criterion, arm=arm) for i, (arm, v) in enumerate(calls(seed, n, 2, rise))]


def metered(seed, n, rise=1.0, first=0, size=200, every=2):
    """Readings of both arms, one pair a minute."""
    pairs = list(readings(seed, n, every, rise, size=size))
    return [
        MeterReading(START + timedelta(minutes=first + i // 2 + 1), arm, sum(bins.values()), bins, bins)
        for i, (arm, bins) in enumerate(pairs)
    ]


def test_a_slow_canary_is_harmed_and_an_equal_one_is_proven_safe():
    """By records and by readings; both keys are asked for."""
    gate = begin(GATE)
    at = feed(gate, records(1, 20_000, 1.5))
    assert 1000 < at < 9000
    assert gate.numbers()["estimate"] == pytest.approx(0.5, abs=0.25)
    equal = begin(GATE)
    for reading in metered(2, 60_000):
        equal.take_meter(reading)
    assert equal.standing()[:2] == (False, True)


def test_readings_of_the_meters_decide_alike():
    """One hundred calls of each arm a reading."""
    gate = begin(GATE)
    for reading in metered(3, 20_000, 1.5):
        if gate.take_meter(reading) and gate.standing().harmed:
            break
    assert gate.standing().harmed
    assert gate.numbers()["source"] == "meter"
    assert gate.standing().seen < 6000


def test_a_small_rise_is_proven_and_tolerated():
    """Five per cent on a margin of twenty: the first key turns, the second does not."""
    gate = begin(GATE)
    for reading in metered(4, 3_000_000, 1.08, size=20_000):
        gate.take_meter(reading)
    assert gate.test.harm.fired(GATE.alpha)
    assert not gate.standing().harmed
    assert gate.numbers()["estimate"] == pytest.approx(0.08, abs=0.03)


def test_records_are_not_counted_beside_the_meters():
    """What the meters count includes them."""
    gate = begin(GATE)
    for reading in metered(5, 1000):
        gate.take_meter(reading)
    before = gate.numbers()
    assert not any(gate.take(piece) for piece in records(6, 500, 3.0))
    assert gate.numbers() == before


def test_meters_take_over_from_records_without_counting_a_call_twice():
    """Readings count from the one that begins after the newest record that was taken."""
    gate = begin(GATE)
    feed(gate, records(7, 600))
    for reading in metered(8, 4000):
        gate.take_meter(reading)
    numbers = gate.numbers()
    assert numbers["source"] == "meter"
    assert numbers["n_canary"] == 300 + 100 * 10


def test_readings_without_the_wanted_times_leave_records_in_charge():
    """Not every call has a first token."""
    gate = begin(TTFT)
    for reading in metered(9, 1000):
        assert not gate.take_meter(MeterReading(reading.at, reading.arm, reading.calls, reading.latency))
    feed(gate, records(9, 100, criterion="ttft_ms"))
    assert gate.numbers()["source"] == "records"
    for reading in metered(9, 4000, first=5):
        gate.take_meter(reading)
    assert gate.numbers()["source"] == "meter"


def test_the_baseline_s_quantile_may_be_known():
    """Then it bets from the first call on."""
    known = Gate("p99", "latency_ms", "latency", direction="rise", margin=0.2, calibration=Calibration(2600.0, 1.0))
    gate = begin(known)
    feed(gate, records(10, 40))
    assert gate.test.harm.e_value != 1.0
    assert gate.numbers()["threshold_ms"] == pytest.approx(2600, rel=0.01)


def test_a_margin_in_milliseconds_has_its_second_key_in_milliseconds():
    """A rise of half of 26 ms is 13 ms: beyond 5 ms, not beyond 50."""
    for margin, harmed in ((5.0, True), (50.0, False)):
        gate = begin(Gate("p99", "latency_ms", "latency", direction="rise", margin=margin, relative=False))
        for reading in metered(11, 40_000, 1.5):
            quick = {key - 461: count for key, count in reading.latency.items()}
            gate.take_meter(MeterReading(reading.at, reading.arm, reading.calls, quick))
        assert gate.standing().harmed is harmed


def test_far_beyond_the_margin_acts_before_the_minimum_of_calls():
    """And says so."""
    gate = begin(Gate("p99", "latency_ms", "latency", direction="rise", min_canary=100_000, catastrophic=3.0))
    for reading in metered(12, 6000, 6.0):
        gate.take_meter(reading)
    standing = gate.standing()
    assert standing.harmed
    assert standing.cause == "catastrophic_harm"
    mild = begin(Gate("p99", "latency_ms", "latency", direction="rise", margin=0.2, min_canary=100_000))
    for reading in metered(12, 30_000, 1.5):
        mild.take_meter(reading)
    assert mild.test.harm.fired(mild._gate.alpha)
    assert not mild.standing().harmed


def test_it_says_when_a_count_that_somebody_waits_for_is_reached():
    """The gate's minimum, the pairs of a shadow phase, a step's minimum from the ramp's move on."""
    plan = {"steps": (Step(5, min_canary=40), Step(50, min_canary=70)), "shadow": Shadow(min_pairs=200)}
    gate = begin(KNOWN, **plan)
    told = [piece.seq // 2 + 1 for piece in records(13, 600) if gate.take(piece)]
    assert told[2:] == [30, 40, 70, 200]
    gate.set_share(0.5)
    told = [piece.seq // 2 + 1 for piece in records(13, 600, first=600) if gate.take(piece)]
    assert told == [340, 370, 500]


def test_records_without_a_time_hold_unless_the_meters_count():
    """An error has no duration."""
    gate = begin(GATE)
    assert any(gate.take(evidence(i, None, "latency_ms", status=Status.ERROR)) for i in range(40))
    assert gate.standing().obstacle == "missing_scores"
    assert gate.numbers()["estimate"] is None
    for reading in metered(16, 400):
        gate.take_meter(reading)
    assert gate.standing().obstacle == ""


def test_one_record_of_a_user_counts_and_dense_samples_are_thinned():
    """Slow calls of one user are not independent; a weight of 1 where 4 is the largest stays in one of four cases."""
    gate = begin(GATE)
    feed(gate, [evidence(i, 500.0, "latency_ms", unit=f"u{i % 6}") for i in range(300)])
    assert gate.numbers()["n_canary"] == 3
    gate = begin(replace(GATE, max_weights=(4.0, 4.0)))
    feed(gate, [evidence(i, 500.0, "latency_ms", weight=1.0 if i % 4 < 2 else 4.0) for i in range(2000)])
    assert sum(gate.test.seen) == pytest.approx(1000 + 250, abs=70)
    assert gate.standing().obstacle == ""


def test_it_goes_on_bit_by_bit_after_a_restart():
    """State is JSON-safe and complete, whichever source it has."""
    assert same_after_a_trip(GATE, records(14, 3000, 1.4))
    gate = begin(GATE)
    for reading in [*metered(15, 3000, 1.5)]:
        gate.take_meter(reading)
        gate = saved(gate, GATE)
    assert gate.numbers()["n_canary"] == 1500


def test_calls_that_were_not_tested_count_for_nothing():
    """While the baseline's quantile is learnt a step waits: where nothing was looked at there is no harm to see."""
    gate = begin(GATE)
    feed(gate, records(14, 900))
    assert gate.numbers()["matched_canary"] > 400
    assert gate.standing().seen == 0
    feed(gate, records(14, 400, first=900))
    assert gate.standing().seen > 100
