"""Simulations of the gates that do not test means of unpaired scores: shadow pairs, p99, safety, control variates."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import numpy as np

from decisions import bounds, lockstep, pairs
from decisions.fires import Fires
from decisions.laws import law, normal_cdf, normal_quantile
from decisions.scenarios import Scenario
from decisions.traffic import share, traffic
from evalpipe.rollout.gates.latency import LatencyGate
from evalpipe.rollout.gates.mean import MeanGate
from evalpipe.rollout.gates.safety import SafetyGate
from evalpipe.rollout.inputs import Evidence, MeterReading
from evalpipe.rollout.plan import Gate, RolloutPlan, Shadow
from evalpipe.score import Status
from evalpipe.sketch import _PER_LOG
from evalpipe.stats.moments import Calibration

START = datetime(2026, 1, 1, tzinfo=UTC)


def plan_of(gate: Gate) -> RolloutPlan:
    """A plan with this gate alone."""
    return RolloutPlan("bench", "service", "baseline", "canary", (gate,))


# Shadow: pairs of scores with a given correlation.


def shadow(scenario: Scenario, rng: np.random.Generator, runs: int) -> Fires:
    """The paired test on inputs that both arms answered; ``options.rho`` correlates the two scores."""
    scores, n = law(scenario.law), scenario.horizon
    latent = latent_correlation(scenario.law, scenario.options["rho"])
    cuts = [_cuts(scores, mean) for mean in (scores.mean, scores.mean * (1.0 + scenario.change))]
    z, other = rng.standard_normal((n, runs)), rng.standard_normal((n, runs))
    arms = [_cut(z, cuts[0]), _cut(latent * z + math.sqrt(1.0 - latent**2) * other, cuts[1])]
    gate = shadow_gate(scenario)
    outcome = pairs.run(arms[0], arms[1], lockstep.Test.of(gate, scenario.side), effect=gate.margin)
    return Fires(outcome.first + 1, outcome.both + 1)


def shadow_gate(scenario: Scenario) -> Gate:
    """As the fold makes it: with the alpha of the shadow phase."""
    return Gate("gate", "score", **{"alpha": Shadow().alpha, **scenario.gate})


def shadow_bound(scenario: Scenario) -> float:
    """In pairs."""
    scores = law(scenario.law)
    latent = latent_correlation(scenario.law, scenario.options["rho"])
    levels, joint = _joint(scores, scores.mean, scores.mean * (1.0 + scenario.change), latent)
    difference = (levels[:, None] - levels[None, :]).ravel()
    return bounds.scores(bounds.pairs(difference, joint.ravel()), shadow_gate(scenario).alpha)


@lru_cache
def latent_correlation(name: str, rho: float) -> float:
    """Correlation of the normal variables behind two scores of equal law that correlate by ``rho``."""
    scores, low, high = law(name), 0.0, 1.0
    for _ in range(25):
        middle = (low + high) / 2
        levels, joint = _joint(scores, scores.mean, scores.mean, middle)
        p = joint.sum(axis=1)
        mean = p @ levels
        found = (levels @ joint @ levels - mean**2) / (p @ levels**2 - mean**2)
        low, high = (middle, high) if found < rho else (low, middle)
    return (low + high) / 2


def _cuts(scores: Any, mean: float) -> tuple[Any, Any]:
    levels, probabilities = scores.finite(mean)
    return levels, np.array([normal_quantile(p) for p in np.cumsum(probabilities)[:-1]])


def _cut(z: Any, cuts: tuple[Any, Any]) -> Any:
    levels, at = cuts
    values = np.full(z.shape, levels[0])
    for level, before, cut in zip(levels[1:], levels[:-1], at, strict=True):
        values += (level - before) * (z >= cut)
    return values


def _joint(scores: Any, mean_x: float, mean_y: float, latent: float) -> tuple[Any, Any]:
    """Levels and their joint probabilities, by integration over the baseline's normal variable."""
    levels, at_x = _cuts(scores, mean_x)
    _, at_y = _cuts(scores, mean_y)
    z = np.linspace(-8.0, 8.0, 20_001)
    density = np.exp(-0.5 * z * z)
    density /= density.sum()
    below = normal_cdf((at_y[:, None] - latent * z) / math.sqrt(max(1.0 - latent**2, 1e-12)))
    cdf = np.vstack([np.zeros(len(z)), below, np.ones(len(z))])
    x = np.searchsorted(at_x, z, side="right")
    joint = np.zeros((len(levels), len(levels)))
    np.add.at(joint, x, (np.diff(cdf, axis=0) * density).T)
    return levels, joint


# Latency: the quantile of all calls.


def latency(scenario: Scenario, rng: np.random.Generator, runs: int) -> Fires:
    """The shipped gate on meter readings that alternate between the arms; ``options.reading`` calls in both together.

    ``options.slow`` lets a share of the canary's calls take so many times as long. Places are of calls.
    """
    scores, told = law(scenario.law), {"reading": 100, **scenario.options}
    gate = latency_gate(scenario)
    if scenario.known:
        gate = replace(gate, calibration=Calibration(scores.quantile(gate.quantile), 1.0, scenario.known))
    plan, step = plan_of(gate), told["reading"]
    sizes = [step - round(step * share(dict(scenario.arrivals))), round(step * share(dict(scenario.arrivals)))]
    first, both = np.zeros(runs, int), np.zeros(runs, int)
    for run in range(runs):
        state = LatencyGate(gate, plan)
        logs = scores.sigma * rng.standard_normal((scenario.horizon // step, step)) - scores.sigma**2 / 2
        logs[:, sizes[0] :] += math.log1p(scenario.change)
        if "slow" in told:
            part, times = told["slow"]
            logs[:, sizes[0] :] += math.log(times) * (rng.random((len(logs), sizes[1])) < part)
        bins = np.ceil(logs * _PER_LOG).astype(int).tolist()
        for i, row in enumerate(bins):
            at = START + timedelta(seconds=i + 1)
            moved = state.take_meter(MeterReading(at, "baseline", sizes[0], Counter(row[: sizes[0]])))
            moved = state.take_meter(MeterReading(at, "canary", sizes[1], Counter(row[sizes[0] :]))) or moved
            if not first[run] and state.test.harm.fired(gate.alpha):
                first[run] = (i + 1) * step
            if moved and state.standing().harmed:
                both[run] = (i + 1) * step
                break
    return Fires(first, both)


def latency_gate(scenario: Scenario) -> Gate:
    """A gate on the p99."""
    return Gate("gate", "latency_ms", **{"kind": "latency", "direction": "rise", "margin": 0.2, **scenario.gate})


def latency_bound(scenario: Scenario) -> float:
    """For the shares of calls beyond the baseline's quantile."""
    scores, gate = law(scenario.law), latency_gate(scenario)
    q = scores.quantile(gate.quantile)
    beyond = scores.beyond(1.0 + scenario.change, q)
    if "slow" in scenario.options:
        part, times = scenario.options["slow"]
        beyond = (1.0 - part) * beyond + part * scores.beyond(times * (1.0 + scenario.change), q)
    both = [(np.array([0.0, 1.0]), np.array([1.0 - p, p])) for p in (1.0 - gate.quantile, beyond)]
    information = bounds.two_arms(both[0], both[1], share(dict(scenario.arrivals)), direction=1)
    return bounds.scores(information, gate.alpha)


# Safety: the shipped gate itself, record by record.


def safety(scenario: Scenario, rng: np.random.Generator, runs: int) -> Fires:
    """The shipped gate on flags and their confirmations: ``options`` has false and true rates of both.

    ``violations`` (baseline, canary) are flagged with ``sensitivity`` and then confirmed with it; clean records with
    ``false_flags`` and ``false_confirms``.
    """
    gate = Gate("gate", "safety", **{"kind": "safety", "direction": "rise", "confirm": "second", **scenario.gate})
    plan, told = plan_of(gate), scenario.options
    arrivals = traffic(rng, {"arrivals": scenario.arrivals}, scenario.horizon, law("binary"), 0.0)
    names = ["canary" if is_canary else "baseline" for is_canary in arrivals.canary]
    both = np.full(runs, 0)
    rates = np.array(told.get("violations", [0.0, 0.0]))[arrivals.canary.astype(int)]
    clean = [Evidence(n, START, arm, f"u{n}", "safety", 1.0) for n, arm in enumerate(names)]
    for run in range(runs):
        bad = rng.random(scenario.horizon) < rates
        flagged = rng.random(scenario.horizon) < np.where(bad, told.get("sensitivity", 1.0), told["false_flags"])
        confirmed = rng.random(scenario.horizon) < np.where(bad, told.get("sensitivity", 1.0), told["false_confirms"])
        state = SafetyGate(gate, plan)
        for n in range(scenario.horizon):
            if not flagged[n]:
                moved = state.take(clean[n])
            else:
                moved = state.take(clean[n]._replace(value=0.0))
                answer = clean[n]._replace(criterion="second", value=0.0 if confirmed[n] else 1.0)
                moved = state.take(answer) or moved
            if moved and state.standing().harmed:
                both[run] = n + 1
                break
    return Fires(both, both)


# Scores that never come: the shipped gate itself.


def late(scenario: Scenario, rng: np.random.Generator, runs: int) -> Fires:
    """The shipped quality gate; ``options.late`` has the shares closed as errors, as in ``decisions.traffic``."""
    scores, n = law(scenario.law), scenario.horizon
    gate = Gate("gate", "score", **scenario.gate)
    plan = plan_of(gate)
    arrivals = traffic(rng, {"arrivals": scenario.arrivals}, n, scores, scenario.change)
    values = arrivals.draw(rng, scores, runs)
    told = [scenario.options["late"][arm] for arm in ("baseline", "canary")]
    lost = np.array(told)[arrivals.canary.astype(int)]
    both = np.zeros(runs, int)
    names = ["canary" if is_canary else "baseline" for is_canary in arrivals.canary]
    for run in range(runs):
        state, mine = MeanGate(gate, plan), values[:, run]
        missing = rng.random(n) < np.where(mine <= 0.5, lost[:, 0], lost[:, 1])
        for i, value in enumerate(mine.tolist()):
            if missing[i]:
                entry = Evidence(i, START, names[i], f"u{i}", "score", None, status=Status.ERROR)
            else:
                entry = Evidence(i, START, names[i], f"u{i}", "score", value)
            if state.take(entry) and state.standing().harmed:
                both[run] = i + 1
                break
    return Fires(both, both)


# Control variate: the shipped gate itself.


def control(scenario: Scenario, rng: np.random.Generator, runs: int) -> Fires:
    """The shipped quality gate with a cheap signal on every record; one of ``options.every`` records is scored.

    Signals have the scores' law and correlate by ``options.rho`` with them; they drop with the score by ``follows`` of
    its change. ``plain``: the same data, and the signal is not used.
    """
    told, scores = scenario.options, law(scenario.law)
    every, n, plain = told["every"], scenario.horizon, told.get("plain", False)
    gate = Gate("gate", "score", control="" if plain else "signal", **scenario.gate)
    plan, rho = plan_of(gate), latent_correlation(scenario.law, told["rho"])
    change, follows = scenario.change, told.get("follows", 1.0)
    cuts = [_cuts(scores, scores.mean * (1.0 + part)) for part in (0.0, change, follows * change)]
    first, both = np.zeros(runs, int), np.zeros(runs, int)
    arms = ("baseline", "canary")
    for run in range(runs):
        state = MeanGate(gate, plan)
        z, other = rng.standard_normal((n, every)), rng.standard_normal(n)
        latent = rho * z[:, -1] + math.sqrt(1.0 - rho * rho) * other
        values, signals = np.empty(n), np.empty((n, every))
        for arm in (0, 1):
            values[arm::2] = _cut(latent[arm::2], cuts[arm])
            signals[arm::2] = _cut(z[arm::2], cuts[2 * arm])
        for i, value in enumerate(values.tolist()):
            name, seq = arms[i % 2], i * every
            if not plain:
                for j, signal in enumerate(signals[i].tolist()):
                    state.take(Evidence(seq + j, START, name, f"{seq + j}", "signal", signal))
            state.take(Evidence(seq + every - 1, START, name, f"{seq + every - 1}", "score", value))
            if state.comparison.harm.max_e_value * gate.alpha >= 1.0:
                first[run] = first[run] or i + 1
                if state.standing().harmed:
                    both[run] = i + 1
                    break
    return Fires(first, both)
