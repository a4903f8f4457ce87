"""Scenario files: one group of rows of the table in each, with their seeds. Another file needs no code.

    part: false-rollback          # its name for --part
    about: one sentence, above its rows
    defaults: {...}               # for each scenario below
    scenarios:
      - name: rubric, 9 to 1
        method: engine            # see decisions.methods; others: naive, welch, mann_whitney, ...
        law: rubric               # see decisions.laws; or {name: lognormal, sigma: 0.8, hi: 10}
        change: -0.05             # of the canary's mean, relative
        arrivals: {even: [9, 1]}  # or {random: 0.1}, or {ramp: [0.02, 0.1, 0.25, 0.5]}
        horizon: 20000            # scores
        replications: 4000
        seed: 11
        gate: {margin: 0.05}      # of evalpipe.rollout.plan.Gate; its alphas, keys and bets are the shipped ones
        side: harm                # or safe: what lets a canary advance
        known: 300                # scores that stand behind what is known of the baseline; 0: nothing is known
        expect:                   # figures and what they are held to; {} is told only
          rate: {at_most: 0.01}
          median: {at_most: 1.0, of: bound}

Figures are those of decisions.figures: rate and any (shares of runs that fire with both keys, and with the first one),
median, p90 and mean (of the scores it took). ``of`` divides a figure by another one: ``bound``, or ``figure of name``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "scenarios"


@dataclass(frozen=True)
class Scenario:
    """One simulation and what its figures are held to; see the module."""

    name: str
    seed: int
    method: str = "engine"
    law: Any = "rubric"
    change: float = 0.0
    arrivals: Mapping[str, Any] = field(default_factory=lambda: {"even": [1, 1]})
    horizon: int = 20_000
    replications: int = 4_000
    gate: Mapping[str, Any] = field(default_factory=dict)
    side: str = "harm"
    known: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    expect: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def traffic(self) -> dict[str, Any]:
        """What ``decisions.traffic`` reads."""
        return {"arrivals": self.arrivals, **self.options}


@dataclass(frozen=True)
class Part:
    """A scenario file."""

    name: str
    about: str
    scenarios: tuple[Scenario, ...]


def load(paths: list[Path] | None = None) -> list[Part]:
    """Read scenario files: these, or all that ship with the bench.

    Raises:
        SystemExit: a file does not say what it must, or says more; the message names it.
    """
    return [_part(path) for path in (paths or sorted(FOLDER.glob("*.yaml")))]


def _part(path: Path) -> Part:
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
        defaults = told.get("defaults", {})
        scenarios = tuple(Scenario(**{**defaults, **_merged(defaults, entry)}) for entry in told["scenarios"])
        return Part(told["part"], told.get("about", ""), scenarios)
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise SystemExit(f"{path}: not a scenario file: {error}") from error


def _merged(defaults: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """The entry; its ``gate`` and ``options`` add to the defaults' instead of replacing them."""
    both = {key: {**defaults.get(key, {}), **entry[key]} for key in ("gate", "options") if key in entry}
    return {**entry, **both}
