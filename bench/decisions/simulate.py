"""Plays a scenario: where each of its runs fires, group by group."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from decisions import lockstep, other_gates, rivals
from decisions.fires import Fires
from decisions.laws import Lognormal, law
from decisions.scenarios import Scenario
from decisions.traffic import traffic
from evalpipe.rollout.gates.cost import LEARNT, WINSOR
from evalpipe.rollout.plan import Gate
from evalpipe.stats.moments import Calibration

GROUP = 500
GROUP_RIVALS = 50
_VALUES = 12_000_000
"""Values that are drawn at once, at most."""
GROUP_RANDOM = 100
"""Runs that share an order of arrivals: with random arrivals fewer, so that there are many orders."""


def simulate(scenario: Scenario, runs: int) -> Fires:
    """All runs of a scenario."""
    size = GROUP if "even" in scenario.arrivals else GROUP_RANDOM
    longest = max([scenario.horizon, *(g.get("horizon", 0) for g in scenario.options.get("gates", []))])
    size = max(20, min(size, _VALUES // longest, GROUP_RIVALS if scenario.method in rivals.METHODS else size))
    method = METHODS[scenario.method]
    found = []
    for group, start in enumerate(range(0, runs, size)):
        rng = np.random.default_rng([scenario.seed, group])
        found.append(method(scenario, rng, min(size, runs - start)))
    return Fires(np.concatenate([f.first for f in found]), np.concatenate([f.both for f in found]))


def engine(scenario: Scenario, rng: np.random.Generator, runs: int) -> Fires:
    """The matched-block engine with a gate's bets and keys, looked at after every score."""
    scores = law(scenario.law)
    arrivals = traffic(rng, scenario.traffic, scenario.horizon, scores, scenario.change)
    values = arrivals.draw(rng, scores, runs)
    known = Calibration(scores.mean, scores.variance, scenario.known) if scenario.known else None
    begin = 0
    if isinstance(scores, Lognormal):
        values, known, begin = _costs(arrivals.canary, values, known)
    blocks = lockstep.shapes(
        arrivals.canary[begin:], None if arrivals.weights is None else arrivals.weights[begin:], arrivals.max_weights
    )
    outcome = lockstep.run(blocks, values[begin:], gate_test(scenario), known)
    place = arrivals.place[begin:]
    return Fires(_places(place, outcome.first), _places(place, outcome.both))


def _costs(canary: Any, values: Any, known: Calibration | None) -> tuple[Any, Any, int]:
    """As the shipped cost gate: shares of ten means; they are learnt from the first baselines if nothing is known."""
    if known is not None:
        unit = WINSOR * known.mean
        return np.minimum(values / unit, 1.0), Calibration(1 / WINSOR, known.variance / unit**2, known.count), 0
    learnt = np.flatnonzero(~canary)[:LEARNT]
    mean = values[learnt].mean(axis=0)
    spread = np.clip((values[learnt] ** 2).mean(axis=0) / mean**2 - 1.0, 0.1, 4.0)
    prior = SimpleNamespace(mean=1 / WINSOR, variance=spread / WINSOR**2, count=LEARNT)
    return np.minimum(values / (WINSOR * mean), 1.0), prior, int(learnt[-1]) + 1


def together(scenario: Scenario, rng: np.random.Generator, runs: int) -> Fires:
    """Several gates of one rollout, each with its own criterion: when the first one of them rolls back."""
    first, both = np.zeros(runs, int), np.zeros(runs, int)
    for entry in scenario.options["gates"]:
        gate = Scenario(name=scenario.name, seed=scenario.seed, **{"arrivals": scenario.arrivals, **entry})
        found = METHODS[gate.method](gate, rng, runs)
        first, both = _sooner(first, found.first), _sooner(both, found.both)
    return Fires(first, both)


def _sooner(one: Any, two: Any) -> Any:
    return np.where((one > 0) & (two > 0), np.minimum(one, two), np.maximum(one, two))


def rival(scenario: Scenario, rng: np.random.Generator, runs: int) -> Fires:
    """A method of others."""
    scores = law(scenario.law)
    arrivals = traffic(rng, scenario.traffic, scenario.horizon, scores, scenario.change)
    found = rivals.METHODS[scenario.method](arrivals.canary, arrivals.draw(rng, scores, runs), **scenario.settings)
    fires = _places(arrivals.place, found)
    return Fires(fires, fires)


def gate_test(scenario: Scenario) -> lockstep.Test:
    """What the scenario's gate tests."""
    return lockstep.Test.of(Gate("gate", "score", **scenario.gate), scenario.side)


def _places(place: Any, found: Any) -> Any:
    return np.where(found >= 0, place[found] + 1, 0)


METHODS: dict[str, Callable[[Scenario, np.random.Generator, int], Fires]] = {
    "engine": engine,
    "together": together,
    "shadow": other_gates.shadow,
    "latency": other_gates.latency,
    "safety": other_gates.safety,
    "control": other_gates.control,
    "late": other_gates.late,
    **dict.fromkeys(rivals.METHODS, rival),
}
