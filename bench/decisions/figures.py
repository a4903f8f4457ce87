"""From runs to figures, with standard errors, and what they are held to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from decisions import bounds, other_gates
from decisions.fires import Fires
from decisions.laws import law
from decisions.scenarios import Scenario
from decisions.simulate import gate_test
from decisions.traffic import share

SLACK = 2.6
"""Standard errors that a rate may lie beyond its target: of true rates at the target one in two hundred does."""


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        value: measured; ``error`` is its standard error, None where there is none.
        target: what it is held to, in words; "" for what is only told.
        met: whether it is met; None without a target.
    """

    part: str
    scenario: str
    figure: str
    value: float
    error: float | None
    target: str
    met: bool | None
    unit: str = ""
    note: str = ""

    def plain(self) -> dict[str, Any]:
        """For machines."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def measured(fires: Fires) -> dict[str, tuple[float, float]]:
    """Every figure of a simulation with its standard error."""
    n = len(fires.both)
    found = {"rate": _rate(fires.both > 0, n), "any": _rate(fires.first > 0, n)}
    times = np.sort(np.where(fires.both > 0, fires.both, np.inf))
    for name, q in (("median", 0.5), ("p90", 0.9)):
        found[name] = _quantile(times, q)
    fired = times[np.isfinite(times)]
    if len(fired) == n:
        found["mean"] = float(fired.mean()), float(fired.std() / math.sqrt(n))
    return found


def bound(scenario: Scenario) -> float | None:
    """How few scores could do on average; None where nothing changes or the law has no bound here."""
    if scenario.method in {"shadow", "latency"}:
        return (
            other_gates.shadow_bound(scenario) if scenario.method == "shadow" else other_gates.latency_bound(scenario)
        )
    if scenario.method not in {"engine", "control"}:
        return None
    test, scores, part = gate_test(scenario), law(scenario.law), share(dict(scenario.arrivals))
    t = 1.0 + test.direction * test.tau
    if abs(1.0 + scenario.change - t) < 1e-12 or test.unit == "rare":
        return None
    if hasattr(scores, "finite"):
        arms = scores.finite(scores.mean), scores.finite(scores.mean * (1.0 + scenario.change))
        return bounds.scores(bounds.two_arms(*arms, part, t, direction=test.direction), test.alpha)
    one, two = scores.moments(1.0), scores.moments(1.0 + scenario.change)
    return bounds.scores(bounds.gaussian((one[1], two[1]), part, two[0] - one[0]), test.alpha)


def rows(
    part: str, scenario: Scenario, found: Mapping[str, tuple[float, float]], against: Mapping[str, float]
) -> list[Row]:
    """The scenario's lines; ``against``: what a figure may be divided by, by name."""
    return [_row(part, scenario, figure, dict(held or {}), found, against) for figure, held in scenario.expect.items()]


def _row(part, scenario, figure, held, found, against) -> Row:
    value, error = found.get(figure, (math.inf, 0.0))
    note, unit = "", "" if figure in {"rate", "any"} else "scores"
    if "of" in held:
        whole = against[held["of"]]
        note, unit = f"{value:,.0f} of {whole:,.0f}", f"x {held['of']}"
        value, error = value / whole, error / whole
    target, met = "", None
    for key, sign, word in (("at_most", 1, "<="), ("at_least", -1, ">=")):
        if key in held:
            limit = float(held[key])
            rate = figure in {"rate", "any"}
            slack = SLACK * math.sqrt(limit * (1.0 - limit) / scenario.replications) if rate else 0.0
            met = bool(sign * value <= sign * limit + slack)
            target = f"{word} {limit:.2%}" if rate else f"{word} {limit:g}"
    return Row(part, scenario.name, figure, value, error, target, met, unit, note)


def _rate(fired: Any, n: int) -> tuple[float, float]:
    rate = float(fired.mean())
    return rate, math.sqrt(max(rate * (1.0 - rate), 0.0) / n)


def _quantile(times: Any, q: float) -> tuple[float, float]:
    """With an error from order statistics one standard deviation away."""
    n = len(times)
    width = math.sqrt(n * q * (1.0 - q))
    low, middle, high = (times[int(np.clip(n * q + k * width, 0, n - 1))] for k in (-1, 0, 1))
    return float(middle), float((high - low) / 2) if np.isfinite(high) else math.inf
