"""Gates of kind cost: the mean of something with a heavy tail."""

from __future__ import annotations

import random
from dataclasses import replace
from math import log
from statistics import median

import pytest
from gate_streams import begin, evidence, feed, same_after_a_trip

from evalpipe.rollout.plan import Gate
from evalpipe.score import Status
from evalpipe.stats.moments import Calibration

MEAN = 0.0138
KNOWN = Calibration(MEAN, 0.9 * MEAN**2, 300)
"""Log-normal with sigma .8: the variance is .9 of the squared mean."""
GATE = Gate("cost", "cost_usd", "cost", direction="rise", margin=0.15, calibration=KNOWN)
LEARNING = Gate("cost", "cost_usd", "cost", direction="rise", margin=0.15)


def costs(seed, n, rise=1.0, sigma=0.8):
    """US dollars of calls, arms in turn."""
    rng = random.Random(seed)
    base = MEAN / 2.718281828 ** (sigma * sigma / 2)
    return [evidence(i, base * rng.lognormvariate(0.0, sigma) * (rise if i % 2 else 1.0), "cost_usd") for i in range(n)]


def test_a_rise_of_the_margin_is_found_faster_than_the_gaussian_bound():
    """The bench has the figures; few runs here, so within their noise."""
    bound = 4 * 2 * log(400) * 0.9 / 0.15**2
    found = [feed(begin(GATE), costs(seed, int(4 * bound), 1.15)) or int(4 * bound) for seed in range(11)]
    assert median(found) <= 1.3 * bound


def test_equal_costs_are_seldom_harmed_and_proven_equal():
    """A heavy tail in both arms; nominal .25 % each."""
    harmed, proven = 0, 0
    for seed in range(9):
        gate = begin(LEARNING)
        harmed += feed(gate, costs(seed, 4000, sigma=0.8)) is not None
        proven += gate.standing().proven
    assert harmed <= 1
    assert proven >= 6


def test_one_enormous_call_decides_nothing():
    """Costs are cut off at ten times the mean, in both arms."""
    gate = begin(GATE)
    feed(gate, costs(1, 400))
    before = gate.numbers()
    for seq in (1001, 1003):
        gate.take(evidence(seq, 500.0, "cost_usd"))
    gate.take(evidence(1004, 0.01, "cost_usd"))
    after = gate.numbers()
    assert not gate.standing().harmed
    assert after["mean_canary"] < before["mean_canary"] * 1.3
    assert after["cap"] == pytest.approx(10 * MEAN)


def test_without_a_known_mean_thirty_baseline_costs_teach_it():
    """Nothing is compared until then; free calls teach nothing."""
    gate = begin(LEARNING)
    for i in range(60):
        gate.take(evidence(10_000 + 2 * i, 0.0, "cost_usd"))
    assert gate.numbers()["cap"] is None
    for piece in costs(2, 4000, 1.6):
        gate.take(piece)
        if gate.numbers()["cap"]:
            break
    assert gate.numbers()["matched_canary"] == 0
    assert gate.numbers()["n_canary"] > 0
    gate = begin(LEARNING)
    assert feed(gate, costs(2, 4000, 1.6)) < 1500
    assert gate.numbers()["mean_baseline"] == pytest.approx(MEAN, rel=0.3)


def test_a_model_without_a_price_holds():
    """Its costs are unknown, which is missing and not zero."""
    gate = begin(GATE)
    told = False
    for i in range(60):
        told |= gate.take(evidence(2 * i, MEAN, "cost_usd"))
        told |= gate.take(evidence(2 * i + 1, None, "cost_usd", status=Status.ERROR))
    assert told
    assert gate.standing().obstacle == "missing_scores"
    assert "the canary" in gate.standing().detail
    learning = begin(LEARNING)
    for i in range(60):
        learning.take(evidence(i, None, "cost_usd", status=Status.ERROR))
    assert learning.standing().obstacle == "missing_scores"


def test_one_cost_of_a_user_enters():
    """Many calls of one user are one."""
    gate = begin(GATE)
    for i in range(200):
        gate.take(evidence(i, MEAN * (1 + 5 * (i % 2)), "cost_usd", unit=f"u{i % 2}"))
    assert gate.numbers()["matched_canary"] == 1


def test_a_margin_in_dollars_is_one():
    """Two thousandths of a dollar on .0138 is 14.5 per cent."""
    points = Gate("cost", "cost_usd", "cost", direction="rise", margin=0.002, relative=False)
    for gate in (points, replace(points, calibration=KNOWN)):
        assert feed(begin(gate), costs(3, 12_000, 1.3)) < 3000
        calm = begin(gate)
        assert feed(calm, costs(4, 6000)) is None
        assert calm.standing().proven
        assert calm.numbers()["margin"] == 0.002


def test_it_goes_on_bit_by_bit_after_a_restart():
    """State is JSON-safe and complete, while the mean is learnt and afterwards."""
    assert same_after_a_trip(LEARNING, costs(5, 1500, 1.2), every=13)
    assert same_after_a_trip(GATE, costs(5, 1500, 1.2))
