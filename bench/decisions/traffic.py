"""Who arrives when, and with which true mean: arrivals, drift, units with several scores, unequal sampling, lateness.

Everything here is shared by the runs of a group; the values are drawn for each run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from evalpipe.stats.seen import SeenUnits


@dataclass(frozen=True)
class Traffic:
    """Arrivals in order, one entry of each array a score.

    Attributes:
        canary: whether it is the canary's.
        means: of the law that it is drawn from.
        unit: user or conversation, or None where each score is of another one.
        weights: 1 / inclusion probability, or None; ``max_weights`` of baseline and canary.
        place: its number among all scores (those that are late or of a known unit do not enter, but count).
        icc: correlation of the scores of a unit.
        tables: values and probabilities by arm, instead of the law.
    """

    canary: Any
    means: Any
    place: Any
    unit: Any = None
    icc: float = 0.0
    weights: Any = None
    max_weights: tuple[float, float] = (1.0, 1.0)
    tables: Any = None

    def draw(self, rng: np.random.Generator, law: Any, runs: int) -> Any:
        """Values: a row for each arrival, a column for each run."""
        if self.unit is not None:
            return _alike(rng, law, self, runs)
        if self.tables is None:
            return law.draw(rng, self.means, runs)
        u, values = rng.random((len(self.canary), runs)), np.empty((len(self.canary), runs))
        for is_canary, (levels, probabilities) in enumerate(self.tables):
            mine = self.canary == bool(is_canary)
            cut = np.minimum(np.searchsorted(np.cumsum(probabilities), u[mine]), len(levels) - 1)
            values[mine] = levels[cut]
        return values


def traffic(rng: np.random.Generator, spec: dict[str, Any], n: int, law: Any, change: float) -> Traffic:
    """``n`` arrivals as a scenario has them; ``change`` is the canary's, relative."""
    unit = _units(rng, n, spec["clusters"]["size"]) if "clusters" in spec else None
    canary = _arms(rng, spec["arrivals"], n, unit)
    means = law.mean * _drift(spec.get("drift"), n) * np.where(canary, 1.0 + change, 1.0)
    if "weights" in spec:
        return _weighted(rng, spec["weights"], canary, means)
    place = np.arange(n)
    if "late" in spec:
        return _on_time(rng, spec["late"], law, canary, means)
    if unit is not None and spec["clusters"].get("one_a_unit", True):
        seen = SeenUnits()
        new = np.array([seen.add(f"unit-{u}") for u in unit])
        return Traffic(canary[new], means[new], place[new])
    return Traffic(canary, means, place, unit, spec["clusters"]["icc"] if unit is not None else 0.0)


def share(arrivals: dict[str, Any]) -> float:
    """Of the scores that are the canary's; of a ramp, over all of it."""
    if "even" in arrivals:
        baseline, canary = arrivals["even"]
        return canary / (baseline + canary)
    return float(np.mean(arrivals.get("ramp", arrivals.get("random"))))


def _arms(rng, spec, n: int, unit):
    if "even" in spec:
        baseline, canary = spec["even"]
        return np.arange(n) % (baseline + canary) >= baseline
    shares = np.atleast_1d(spec.get("ramp", spec.get("random")))
    now = shares[np.arange(n) * len(shares) // n]
    if unit is None:
        return rng.random(n) < now
    _, first, back = np.unique(unit, return_index=True, return_inverse=True)
    return rng.random(len(first))[back] < now[first][back]


def _drift(spec, n: int):
    """Factor on both arms' means: a day's cycle, or a slow way from one level to another."""
    if spec is None:
        return np.ones(n)
    at = np.arange(n)
    if "day" in spec:
        low, high = spec["day"]
        return low + (high - low) * (0.5 + 0.5 * np.sin(2 * np.pi * at / spec["length"]))
    return np.linspace(*spec["slow"], n)


def _units(rng, n: int, size: int):
    """Units of ``size`` scores that lie within a few dozen arrivals of one another."""
    units = np.repeat(np.arange(-(-n // size)), size)
    starts = np.repeat(np.sort(rng.random(-(-n // size)) * n), size)
    return units[np.argsort(starts + rng.exponential(20.0, len(units)), kind="stable")][:n]


def _alike(rng, law, arrivals: Traffic, runs: int):
    """Each score is its unit's own with probability sqrt(icc), so two of a unit correlate by icc."""
    _, first, back = np.unique(arrivals.unit, return_index=True, return_inverse=True)
    units = law.draw(rng, arrivals.means[first], runs)[back]
    own = law.draw(rng, arrivals.means, runs)
    return np.where(rng.random(own.shape) < math.sqrt(arrivals.icc), units, own)


def _weighted(rng, spec, canary, means) -> Traffic:
    """Two kinds of records, kept at rates that differ between kinds and arms; ``canary`` and ``means`` are as kept.

    Of all traffic ``share`` is of the second kind, whose mean is ``factor`` times that of the first one.
    """
    rates = np.array([spec["baseline_rates"], spec["canary_rates"]])
    kept = rates * np.array([1.0 - spec["share"], spec["share"]])
    second = rng.random(len(canary)) < (kept[:, 1] / kept.sum(axis=1))[canary.astype(int)]
    weights = 1.0 / rates[canary.astype(int), second.astype(int)]
    largest = 1.0 / rates.min(axis=1)
    return Traffic(
        canary,
        means * np.where(second, spec["factor"], 1.0),
        np.arange(len(canary)),
        weights=weights if spec.get("honoured", True) else None,
        max_weights=(float(largest[0]), float(largest[1])) if spec.get("honoured", True) else (1.0, 1.0),
    )


def _on_time(rng, spec, law, canary, means) -> Traffic:
    """Without the scores that came too late: closed as errors; the order of the others is that of arrival.

    Being late may depend on the score: shares late among scores up to .5 and above it, of the baseline and of the
    canary. Whether a score is late is drawn here, and its value later, given that it was in time.
    """
    tables = []
    in_time = np.ones(len(canary))
    for is_canary, (low, high) in enumerate((spec["baseline"], spec["canary"])):
        mine = canary == bool(is_canary)
        values, probabilities = law.finite(float(means[mine][0]))
        kept = probabilities * np.where(values <= 0.5, 1.0 - low, 1.0 - high)
        tables.append((values, kept / kept.sum()))
        in_time[mine] = kept.sum()
    here = rng.random(len(canary)) < in_time
    return Traffic(canary[here], means[here], np.flatnonzero(here), tables=tuple(tables))
