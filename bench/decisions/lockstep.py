"""The shipped engine (evalpipe.stats.matched_block), many runs at once: proved equal by tests/unit/stats.

Runs of a group share the order of arrivals and so, because a block never depends on a value, the shipped matcher's
blocks; their values are independent. Every arithmetic operation is the engine's, in its order, on arrays over runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from evalpipe.rollout.gates.comparison import bets as bets_of
from evalpipe.rollout.gates.mean import _ROUNDING, LEAST_CANARY
from evalpipe.rollout.plan import Gate
from evalpipe.stats import betting, moments
from evalpipe.stats.matching import Matcher
from evalpipe.stats.moments import Calibration

NEVER = -1
_COMPACT_EVERY = 256


@dataclass(frozen=True, slots=True)
class Test:
    """What is tested.

    Attributes:
        direction, tau, hi, effects, weights, unit, shift: as in ``Bets``.
        alpha: the first key is E >= 1 / alpha at any time.
        estimate: the second key, an estimated drop (rise for direction +1) of at least this; None: no second key.
        min_canary: canaries matched before the two keys count.
        relative: whether estimates are shares of the baseline's mean, or points.
        catastrophic: an estimate from which ``LEAST_CANARY`` of them are enough; None: there is none.
    """

    direction: int = -1
    tau: float = 0.0
    hi: float = 1.0
    effects: Sequence[float] = betting.EFFECTS
    weights: Sequence[float] = betting.WEIGHTS
    unit: betting.Unit = "mean"
    shift: float = 0.0
    alpha: float = 0.0025
    estimate: float | None = None
    min_canary: int = 1
    catastrophic: float | None = None
    relative: bool = True

    @classmethod
    def of(cls, gate: Gate, side: str = "harm") -> Test:
        """What the shipped gate tests: ``harm`` (rolls back) or ``safe`` (lets advance)."""
        harm, safe = bets_of(gate)
        bets = harm if side == "harm" else safe
        told = bets.to_state()
        return cls(
            bets.direction, bets.tau, bets.hi, told["effects"], told["weights"], bets.unit, bets.shift,
            gate.alpha if side == "harm" else gate.advance_alpha,
            gate.estimate_share * gate.margin * _ROUNDING if side == "harm" else None,
            gate.min_canary,
            gate.catastrophic * gate.margin * _ROUNDING if side == "harm" else None,
            gate.relative,
        )  # fmt: skip


class Shape(NamedTuple):
    """A block without its values: the places (in order of arrival, from 0) of its scores, and when it was complete."""

    baselines: list[int]
    canaries: list[int]
    at: int


class Outcome(NamedTuple):
    """By run: the place of the score at which the first key turned, and both; NEVER; and the greatest e-value."""

    first: Any
    both: Any
    max_e: Any
    drop: Any


class _Places:
    """Stands for a value in the matcher: adds up and is divided as scores are, and remembers which they were."""

    __slots__ = ("places",)

    def __init__(self, places: tuple[int, ...]) -> None:
        self.places = places

    def __add__(self, other: _Places) -> _Places:
        return _Places(self.places + other.places)

    def __radd__(self, other: float) -> _Places:
        return self

    def __truediv__(self, other: float) -> _Places:
        return self


def shapes(
    canary: Iterable[bool], weights: Iterable[float] | None = None, max_weights: tuple[float, float] = (1.0, 1.0)
) -> list[Shape]:
    """The blocks that the shipped matcher makes of these arrivals."""
    matcher, found = Matcher(max_weights), []
    arms = ("baseline", "canary")
    for n, is_canary in enumerate(canary):
        weight = 1.0 if weights is None else weights[n]
        block: Any = matcher.add(arms[bool(is_canary)], _Places((n,)), float(weight))  # type: ignore[arg-type]
        if block is not None:
            found.append(Shape([p for b in block.baselines for p in b.places], list(block.canary.places), n))
    return found


def run(
    blocks: Sequence[Shape], values: Any, test: Test, calibration: Calibration | None = None, *, stop: bool = True
) -> Outcome:
    """Play the blocks in all runs; ``values`` has a row for each arrival and a column for each run.

    With ``stop`` a run ends when both keys have turned, and its greatest e-value and drop are those of that moment.
    """
    runs = values.shape[1]
    outcome = Outcome(np.full(runs, NEVER), np.full(runs, NEVER), np.ones(runs), np.zeros(runs))
    live, state = np.arange(runs), _State(test, runs, calibration)
    canaries = 0
    for i, block in enumerate(blocks):
        state.play([values[n] for n in block.baselines], [values[n] for n in block.canaries])
        canaries += len(block.canaries)
        state.look(block.at, canaries)
        if stop and i % _COMPACT_EVERY == _COMPACT_EVERY - 1:
            going = state.both < 0
            if going.mean() < 0.8:
                _write(outcome, live, state)
                live, values = live[going], values[:, going]
                state.keep(going)
                if not len(live):
                    break
    _write(outcome, live, state)
    return outcome


def _write(outcome: Outcome, live: Any, state: _State) -> None:
    outcome.first[live], outcome.both[live] = state.first, state.both
    outcome.max_e[live], outcome.drop[live] = state.max_e, state.drop


class _State:
    """Bets, moments and estimate of every run that goes on."""

    def __init__(self, test: Test, runs: int, calibration: Calibration | None) -> None:
        prior = calibration or moments.UNKNOWN
        self.test = test
        self.effects = np.array(test.effects)[:, None]
        self.mean, self.variance, self.count = np.full(runs, prior.mean), np.full(runs, prior.variance), prior.count
        self.told, self.due = (self.mean, self.variance), 0
        self.designs: dict[tuple[int, int], Any] = {}
        self.products = np.ones((len(test.effects), runs))
        self.e_value, self.max_e = np.ones(runs), np.ones(runs)
        self.sum_weight, self.sum_baseline, self.sum_canary = 0.0, np.zeros(runs), np.zeros(runs)
        self.first, self.both = np.full(runs, NEVER), np.full(runs, NEVER)
        self.drop = np.zeros(runs)

    def keep(self, going: Any) -> None:
        """Go on with these runs only."""
        self.products = np.ascontiguousarray(self.products[:, going])
        self.told = (self.told[0][going], self.told[1][going])
        self.designs = {}
        for name in ("mean", "variance", "e_value", "max_e", "sum_baseline", "sum_canary", "first", "both", "drop"):
            setattr(self, name, getattr(self, name)[going])

    def play(self, baselines: list[Any], canaries: list[Any]) -> None:
        """``Bets.update``, ``MatchedEstimate.update`` and ``Moments.update`` of one block."""
        k, k_canary = len(baselines), len(canaries)
        canary = canaries[0] if k_canary == 1 else _sum(canaries) / k_canary
        self._bet(baselines, canary, k, k_canary)
        weight = k * k_canary / (k + k_canary)
        self.sum_weight += weight
        self.sum_baseline = self.sum_baseline + weight * _sum(baselines) / k
        self.sum_canary = self.sum_canary + weight * canary
        self._learn(baselines)

    def _bet(self, baselines: list[Any], canary: Any, k: int, k_canary: int) -> None:
        if (k, k_canary) not in self.designs:
            self.designs[k, k_canary] = self._design(k, k_canary)
        a, stake, b, share = self.designs[k, k_canary]
        factor = a + stake * canary
        for x in baselines:
            factor *= b + share * x
        self.products *= factor
        self.e_value = _sum([w * product for w, product in zip(self.test.weights, self.products, strict=True)])
        np.maximum(self.max_e, self.e_value, out=self.max_e)

    def _design(self, k: int, k_canary: int) -> tuple[Any, Any, Any, Any]:
        """``Bets.design``."""
        test, (mean, variance) = self.test, self.told
        d, t, hi = test.direction, 1.0 + test.direction * test.tau, test.hi
        room = 0.98 * (t * mean - test.shift if d < 0 else hi - t * mean + test.shift)
        size = 1.0 / (k + t * t * k_canary)
        base = np.maximum(mean * (hi - mean), 1e-3 * hi * hi)
        delta = np.minimum(self.effects * self._scale(mean), room)
        b = np.minimum(np.maximum(mean + d * delta * t * k_canary * size, 1e-3 * hi), (1.0 - 1e-3) * hi)
        c = t * b - test.shift
        gap = delta * k * size
        spread = variance * np.maximum(c * (hi - c) / base, 0.1)
        lam = gap / (spread / k_canary + gap * gap * (1.0 - 1.0 / k_canary))
        c_y, c_x = (hi - c, b) if d < 0 else (c, hi - b)
        lam = np.where(lam * c_y > 0.95, 0.95 / c_y, lam)
        lam = np.where(lam * t * c_x > 0.95 * k, 0.95 * k / (t * c_x), lam)
        stake, share = d * lam, -d * lam * t / k
        return 1.0 - stake * c, stake, 1.0 - share * b, share

    def _scale(self, mean: Any) -> Any:
        """What the effects are multiples of."""
        if self.test.unit == "mean":
            return mean
        if self.test.unit == "one":
            return 1.0
        rate = mean / self.test.hi
        return np.clip(np.minimum(rate, 1.0 - rate), 0.002, 0.1) * self.test.hi

    def _learn(self, baselines: list[Any]) -> None:
        mean, variance = self.mean, self.variance
        for x in baselines:
            self.count += 1
            error = x - mean
            slow = self.count * moments.MEAN_GAIN >= 1.0
            mean = mean + (error * moments.MEAN_GAIN if slow else error / self.count)
            gain = 1.0 / self.count if self.count * moments.VARIANCE_GAIN < 1.0 else moments.VARIANCE_GAIN
            variance = variance + gain * (error * error - variance)
        self.mean, self.variance = mean, variance
        if self.count >= self.due:
            self.due = self.count + min(max(self.count // 16, 1), 32)
            hi = self.test.hi
            self.told = np.minimum(np.maximum(mean, 1e-3 * hi), hi), np.maximum(variance, 1e-6)
            self.designs = {}

    def look(self, at: int, canaries: int) -> None:
        """Both keys, after the score at this place."""
        fired = self.max_e * self.test.alpha >= 1.0
        if not fired.any():
            return
        self.first[fired & (self.first < 0)] = at
        with np.errstate(divide="ignore", invalid="ignore"):
            whole = self.sum_baseline if self.test.relative else self.sum_weight
            drop = (self.sum_baseline - self.sum_canary) / whole
        test = self.test
        early = canaries < test.min_canary
        least = test.catastrophic if early else test.estimate
        if early and (least is None or canaries < LEAST_CANARY):
            return
        found = fired & (self.both < 0)
        if least is not None:
            found &= -test.direction * drop >= least
        self.drop[found] = drop[found]
        self.both[found] = at


def _sum(arrays: Sequence[Any]) -> Any:
    """One after the other, as ``sum`` does."""
    total = arrays[0] + 0.0
    for array in arrays[1:]:
        total = total + array
    return total
