"""Gates in the shadow phase: two answers to one input, joined and compared."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from gate_streams import begin, evidence, feed, same_after_a_trip

from evalpipe.rollout.inputs import MeterReading
from evalpipe.rollout.plan import Gate, Shadow
from evalpipe.score import Status

GATE = Gate("quality", "faithful", alpha=0.01)
RUBRIC = (0.5, 0.75, 1.0)


def halves(pair, baseline, canary, criterion="faithful", **changes):
    """Both answers to one input of one unit."""
    given = {"unit": f"u{pair}", "pair": f"p{pair}", **changes}
    for offset, (arm, value) in enumerate((("baseline", baseline), ("canary", canary))):
        yield evidence(2 * pair + offset, value, criterion, **{"arm": arm, **given})


def shadowed(seed, n, worse=0.0, first=0):
    """Rubric scores that mostly agree; the canary's is a level lower with a probability."""
    rng = random.Random(seed)
    for i in range(first, first + n):
        x = rng.choice(RUBRIC)
        y = x if rng.random() < 0.7 else rng.choice(RUBRIC)
        yield from halves(i, x, max(0.0, y - 0.25) if rng.random() < worse else y)


def test_a_worse_canary_is_harmed_within_a_few_hundred_pairs():
    """A quarter point lower in a fifth of the answers: 6.7 %."""
    gate = begin(GATE, "paired")
    at = feed(gate, shadowed(1, 2000, 0.2))
    assert at < 2 * 400
    numbers = gate.numbers()
    assert numbers["kind"] == "paired"
    assert numbers["estimate"] < -0.04
    assert numbers["interval"]["high"] < 0.0
    assert numbers["pairs"] == gate.standing().seen


def test_an_equal_canary_graduates_with_the_pairs_that_shadow_asks_for():
    """Proof alone is not enough before ``min_pairs``."""
    gate = begin(GATE, "paired", shadow=Shadow(min_pairs=1500))
    assert feed(gate, shadowed(2, 1400)) is None
    assert gate.safe.fired(GATE.advance_alpha)
    assert not gate.standing().proven
    told = [piece for piece in shadowed(2, 200, first=1400) if gate.take(piece)]
    assert gate.standing().proven
    assert len(told) <= 2


def test_a_worse_canary_does_not_graduate():
    """At the margin itself, no harm of the margin is seldom proven."""
    proven = 0
    for seed in range(40):
        gate = begin(GATE, "paired")
        feed(gate, shadowed(seed, 600, 0.18))
        proven += gate.standing().proven
    assert proven <= 3


def test_halves_may_be_far_apart_and_come_in_any_order():
    """The outcome is the same up to the order of the pairs."""
    stream = list(shadowed(3, 300, 0.2))
    together, apart = begin(GATE, "paired"), begin(GATE, "paired")
    for piece in stream:
        together.take(piece)
    for arm in ("canary", "baseline"):
        for piece in stream:
            if piece.arm == arm:
                apart.take(piece)
    assert apart.numbers()["pairs"] == 300
    assert apart.numbers()["estimate"] == pytest.approx(together.numbers()["estimate"])


def test_a_pair_of_which_one_half_is_missing_is_missing():
    """Its other half is not used; many of them hold the gate."""
    gate = begin(GATE, "paired")
    for i in range(40):
        feed(gate, halves(i, 0.75, None if i % 2 else 0.75))
    assert gate.numbers()["pairs"] == 20
    assert gate.numbers()["arms"]["canary"]["missing"] == 20
    assert gate.numbers()["waiting"] == 0
    assert gate.standing().obstacle == "missing_scores"


def test_harm_waits_while_scores_are_missing():
    """The canary's good answers have no score: what is left is worse for that reason alone."""
    gate = begin(GATE, "paired")
    for i in range(400):
        assert feed(gate, halves(i, 1.0, 0.5 if i % 3 == 0 else None)) is None
    assert gate.harm.fired(GATE.alpha)
    assert gate.standing().obstacle == "missing_scores"
    assert not gate.standing().harmed


def test_a_partner_that_never_comes_counts_as_missing_when_memory_is_full(monkeypatch):
    """The oldest is given up."""
    monkeypatch.setattr("evalpipe.rollout.gates.paired.MOST_WAITING", 30)
    gate = begin(GATE, "paired")
    for i in range(100):
        gate.take(next(halves(i, 0.75, 0.75)))
    numbers = gate.numbers()
    assert (numbers["waiting"], numbers["given_up"], numbers["arms"]["canary"]["missing"]) == (30, 70, 70)
    assert gate.standing().obstacle == "missing_scores"


def test_what_is_no_pair_is_left_alone():
    """A record without a partner's name, a criterion that does not apply, the same half twice, another criterion."""
    gate = begin(GATE, "paired")
    gate.take(evidence(0, 0.5, "faithful"))
    gate.take(evidence(1, None, "faithful", pair="p1", status=Status.SKIPPED))
    half = next(halves(2, 0.5, 0.5))
    gate.take(half)
    gate.take(half)
    gate.take(next(halves(3, 0.5, 0.5, "other")))
    assert not gate.take_meter(MeterReading(half.at, "canary", 5))
    gate.set_share(0.5)
    assert (gate.numbers()["waiting"], gate.numbers()["pairs"]) == (1, 0)


def test_one_pair_of_a_user_enters():
    """Further inputs of one user are not independent of the first."""
    gate = begin(GATE, "paired")
    for i in range(50):
        feed(gate, halves(i, 1.0, 0.0, unit="one"))
    assert gate.standing().seen == 1


def test_comparisons_of_both_answers_are_tested_against_a_tie():
    """They stand on the canary's record; there is no baseline to wait for."""
    gate, rng = replace(GATE, pairwise=True), random.Random(4)
    losing, even = begin(gate, "paired"), begin(gate, "paired")
    for i in range(1500):
        for state, law in ((losing, (0.4, 0.4, 0.2)), (even, (0.3, 0.4, 0.3))):
            score = rng.choices((0.0, 0.5, 1.0), law)[0]
            state.take(evidence(i, score, "faithful", arm="canary", pair=f"p{i}"))
    assert losing.standing().harmed
    assert losing.numbers()["mean_baseline"] == 0.5
    assert not even.standing().harmed


@pytest.mark.parametrize(
    ("gate", "worse", "equal"),
    [
        (Gate("refusal", "refused", "rate", direction="rise", margin=0.05, relative=False), (0.0, 1.0, 0.15), 0.0),
        (Gate("format", "valid", "rate", margin=0.02, relative=False), (1.0, 0.0, 0.08), 1.0),
    ],
)
def test_rates_are_compared_in_points_in_both_directions(gate, worse, equal):
    """A rise of refusals, a fall of valid answers."""
    rng, harmed, calm = random.Random(5), begin(gate, "paired"), begin(gate, "paired")
    usual, bad, share = worse
    for i in range(1500):
        feed(harmed, halves(i, usual, bad if rng.random() < share else usual, gate.criterion))
        feed(calm, halves(i, equal, equal, gate.criterion))
    assert harmed.standing().harmed
    assert harmed.numbers()["estimate"] is None or harmed.numbers()["estimate"] < 0
    assert calm.standing()[:2] == (False, True)


def test_costs_are_cut_off_as_they_are_unpaired():
    """The first thirty pairs teach the mean."""
    gate = Gate("cost", "cost_usd", "cost", direction="rise", margin=0.15)
    rng, state, calm = random.Random(6), begin(gate, "paired"), begin(gate, "paired")
    for i in range(1200):
        base = 0.01 * rng.lognormvariate(0.0, 0.8)
        feed(state, halves(i, base, base * 1.3 * rng.lognormvariate(0.0, 0.3), "cost_usd"))
        feed(calm, halves(i, base, base * rng.lognormvariate(-0.045, 0.3), "cost_usd"))
    assert state.standing().harmed
    assert calm.standing()[:2] == (False, True)
    assert state.numbers()["mean_baseline"] == pytest.approx(0.0137, rel=0.2)
    assert state.numbers()["pairs"] < 1200


def test_far_beyond_the_margin_acts_before_the_minimum_of_pairs():
    """Half of the quality is gone."""
    gate = begin(replace(GATE, min_canary=500), "paired")
    for i in range(60):
        feed(gate, halves(i, 1.0, 0.4))
    assert gate.standing().harmed
    mild = begin(replace(GATE, min_canary=500), "paired")
    for i in range(200):
        feed(mild, halves(i, 1.0, 0.9))
    assert not mild.standing().harmed


def test_another_version_of_the_judge_starts_anew():
    """Halves of different versions are not compared."""
    gate = begin(GATE, "paired")
    for i in range(40):
        feed(gate, halves(i, 1.0, 0.75, epoch="1"))
    assert gate.take(evidence(900, 0.5, "faithful", pair="p450", epoch="2"))
    assert gate.standing().obstacle == "epochs_differ"
    feed(gate, halves(451, 0.5, 0.5, epoch="2"))
    assert gate.numbers()["epoch"] == "2"
    assert gate.standing().seen <= 1


def test_pairs_sampled_more_densely_are_thinned():
    """By the pair's name, so that both halves share their fate."""
    gate = begin(replace(GATE, max_weights=(4.0, 4.0)), "paired")
    for i in range(1000):
        feed(gate, halves(i, 1.0, 1.0, weight=1.0 if i % 2 else 4.0))
    assert gate.standing().seen == pytest.approx(500 + 125, abs=50)


def test_it_goes_on_bit_by_bit_after_a_restart():
    """State is JSON-safe and complete, with halves that wait."""
    stream = sorted(shadowed(7, 300, 0.1), key=lambda piece: piece.seq + (40 if piece.arm == "canary" else 0))
    assert same_after_a_trip(GATE, stream, "paired", every=17)
    cost = Gate("cost", "cost_usd", "cost", direction="rise", margin=0.15)
    spent = [piece for i in range(200) for piece in halves(i, 0.01 + i % 7 / 1000, 0.012, "cost_usd")]
    assert same_after_a_trip(cost, spent, "paired", every=17)
