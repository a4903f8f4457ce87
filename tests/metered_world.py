"""Calls of one place as arrays by the second, and the view that a detector has of them: quick enough for months."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalpipe.detectors.view import Calls, Coverage, Place, Spender
from evalpipe.sketch import Sketch

START = datetime(2026, 3, 1, tzinfo=UTC)
PLACE = Place("shop", "production", "baseline", "chat")
Floats = NDArray[np.float64]


@dataclass
class Stream:
    """Calls by the step of time.

    Attributes:
        step_s: how long a step is.
        calls, tokens, cost_usd, cost_squares: sums by step.
    """

    step_s: float
    calls: Floats
    tokens: Floats
    cost_usd: Floats
    cost_squares: Floats

    def __post_init__(self) -> None:
        self._sums = {
            name: np.concatenate([[0.0], np.cumsum(getattr(self, name))])
            for name in ("calls", "tokens", "cost_usd", "cost_squares")
        }

    def between(self, since_s: float, until_s: float) -> Calls:
        """The calls of a window; steps that it cuts are taken in proportion."""
        found = Calls(seconds=max(0.0, until_s - max(since_s, 0.0)))
        ends = [min(max(at / self.step_s, 0.0), len(self.calls)) for at in (since_s, until_s)]
        for name, sums in self._sums.items():
            low, high = (self._at(sums, at) for at in ends)
            found.sums[name] = max(0.0, high - low)
        return found

    @staticmethod
    def _at(sums: Floats, at: float) -> float:
        whole = int(at)
        part = at - whole
        return float(sums[whole] + (part * (sums[whole + 1] - sums[whole]) if part else 0.0))


def spending(
    seed: int,
    steps: int,
    a_minute: float,
    *,
    usd: float = 0.01,
    sigma: float = 1.0,
    step_s: float = 1.0,
    burst: float = 1.0,
    factor: Floats | float = 1.0,
    dear: Floats | float = 1.0,
) -> Stream:
    """Log-normal costs of Poisson calls.

    Args:
        seed: of the generator.
        steps: of ``step_s``.
        a_minute: calls a minute.
        usd: mean cost of a call.
        sigma: of its logarithm.
        step_s: length of a step.
        burst: calls come in geometric bursts of this mean.
        factor: by which the number of calls is multiplied, by step.
        dear: by which the cost of a call is.
    """
    rng = np.random.default_rng(seed)
    rate = np.broadcast_to(np.asarray(factor, float), (steps,)) * a_minute * step_s / 60.0 / burst
    bursts = rng.poisson(rate)
    n = bursts if burst == 1.0 else bursts + rng.negative_binomial(np.maximum(bursts, 1), 1.0 / burst) * (bursts > 0)
    costs = rng.lognormal(np.log(usd) - sigma * sigma / 2, sigma, int(n.sum()))
    where = np.repeat(np.arange(steps), n)
    costs *= np.broadcast_to(np.asarray(dear, float), (steps,))[where]
    cost = np.bincount(where, costs, steps)
    return Stream(step_s, n.astype(float), cost / 5e-6, cost, np.bincount(where, costs * costs, steps))


@dataclass
class StreamView:
    """A view of a stream at a time; what happened in the last ``lag_s`` is not known yet."""

    stream: Stream
    now_s: float
    lag_s: float = 3.0
    spenders: dict[tuple[datetime, datetime], list[Spender]] = field(default_factory=dict)
    usual: Any = None
    place: Place = PLACE

    @property
    def at(self) -> datetime:
        """Now."""
        return START + timedelta(seconds=self.now_s)

    def calls(self, since: datetime, until: datetime) -> Calls:
        """All calls of a window."""
        a, b = ((at - START).total_seconds() for at in (since, until))
        known = self.now_s - self.lag_s
        found = self.stream.between(min(a, known), min(b, known))
        found.seconds = max(0.0, b - max(a, 0.0))
        return found

    def users(self, since: datetime, until: datetime) -> Sequence[Spender]:
        """As given for that window."""
        return self.spenders.get((since, until), [])

    def normal(self, since: datetime, until: datetime) -> Any:
        """As given."""
        return self.usual


@dataclass
class WindowView:
    """A view whose windows are all the same, by what is given."""

    found: Calls = field(default_factory=Calls)
    covered: Coverage = field(default_factory=Coverage)
    at: datetime = START
    usual: Any = None
    place: Place = PLACE

    def calls(self, since: datetime, until: datetime) -> Calls:
        """The same."""
        return self.found

    def coverage(self, since: datetime, until: datetime) -> Coverage:
        """The same."""
        return self.covered

    def normal(self, since: datetime, until: datetime) -> Any:
        """As given."""
        return self.usual


@dataclass
class Past:
    """A normal of calls alone."""

    past: Calls
    words: str = "the week before"

    def calls(self) -> Calls:
        """As given."""
        return self.past


def sketched(values: Floats) -> Sketch:
    """A sketch of values."""
    sketch = Sketch()
    for value in values:
        sketch.add(float(value))
    return sketch
