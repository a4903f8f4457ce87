"""Gates of kind ratio: each unit once, against the share that the ramp gives."""

from __future__ import annotations

import random

import pytest
from gate_streams import begin, evidence, same_after_a_trip

from evalpipe.rollout.inputs import MeterReading
from evalpipe.rollout.plan import Gate

GATE = Gate("split", "cost_usd", "ratio", role="signal")


def units(seed, n, share, records=1):
    """``n`` units with some records each, the canary's by chance."""
    rng, seq = random.Random(seed), 0
    for i in range(n):
        arm = "canary" if rng.random() < share else "baseline"
        for _ in range(records):
            yield evidence(seq, 0.01, "cost_usd", arm=arm, unit=f"u{seed}-{i}")
            seq += 1


def harmed(gate, stream):
    """Whether it ever said so."""
    return any(gate.take(piece) and gate.standing().harmed for piece in stream)


def test_a_split_that_is_not_the_ramp_s_is_found_and_named():
    """55 % instead of half."""
    gate = begin(GATE)
    gate.set_share(0.5)
    assert harmed(gate, units(1, 4000, 0.58))
    assert "expected 50.0%" in gate.standing().detail
    numbers = gate.numbers()
    assert numbers["estimate"] == pytest.approx(0.16, abs=0.06)
    assert numbers["max_e_value"] >= numbers["threshold"]


def test_many_records_of_few_units_prove_nothing():
    """Sixty units of 200 records: 40 % apart by chance, counted by unit it is nothing; by record it would be proof."""
    for seed in range(20):
        gate = begin(GATE)
        gate.set_share(0.5)
        assert not harmed(gate, units(seed, 60, 0.5, records=50))


def test_the_expected_share_follows_the_ramp():
    """Units of each step are compared with that step's share."""
    gate = begin(GATE)
    for seed, share in enumerate((0.05, 0.2, 0.5, 0.9)):
        gate.set_share(share)
        assert not harmed(gate, units(seed, 1000, share))
    assert gate.standing().proven


def test_where_nobody_knows_the_share_units_are_only_counted():
    """Others split the traffic, or the step has just changed."""
    gate = begin(GATE)
    assert not harmed(gate, units(1, 500, 0.9))
    gate.set_share(0.5)
    gate.set_share(None)
    assert not harmed(gate, units(2, 500, 0.9))
    assert gate.numbers()["n_canary"] > 800
    assert gate.numbers()["matched_canary"] == 0


def test_the_gate_s_own_split_stands_whatever_the_ramp_does():
    """Where the plan says what others' split should be."""
    gate = begin(Gate("split", "cost_usd", "ratio", role="signal", split=0.3))
    gate.set_share(None)
    assert not harmed(gate, units(3, 2000, 0.3))
    gate.set_share(0.9)
    assert not harmed(gate, units(4, 2000, 0.3))
    assert harmed(gate, units(5, 2000, 0.5))


def test_a_unit_without_a_score_counts_too():
    """Who got the canary does not depend on what became of the record; other criteria do not count it again."""
    gate = begin(GATE)
    gate.take(evidence(1, None, "cost_usd"))
    gate.take(evidence(3, 0.5, "quality"))
    assert not gate.take_meter(MeterReading(evidence(0, 0.0, "x").at, "canary", 10))
    assert gate.numbers()["n_canary"] == 1


def test_it_goes_on_bit_by_bit_after_a_restart():
    """State is JSON-safe and complete."""
    assert same_after_a_trip(Gate("split", "cost_usd", "ratio", split=0.5), list(units(6, 1500, 0.56)))
