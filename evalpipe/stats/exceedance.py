"""Two arms' rates of a rare event (calls slower than a quantile, flags), tested on counts: O(1) for any reading.

The block e-variable for 0/1 outcomes of Turner, Ly and Grunwald (arXiv 2106.02693). Of n_b baseline calls e_b show the
event, of n_c canary calls e_c; d = +1 gathers evidence that the canary's rate is higher, -1 that it is lower. The null
is d (p_c - t p_b - a) <= 0, with ratio t and shift a. For a centre b, c = t b + a and a bet lam >= 0:

    F = (1 + d lam (1 - c))^e_c (1 - d lam c)^(n_c - e_c) * (1 - d s (1 - b))^e_b (1 + d s b)^(n_b - e_b)
    s = lam t n_c / n_b
    E = sum_i w_i prod_blocks F_i

E[F] <= 1 for all rates in the null: with u = d lam t (p_b - b) it is at most (1 + u)^n_c (1 - u n_c / n_b)^n_b, which
is log-concave in u with its maximum 1 at 0; if the rate changes from call to call its means over the block take its
place (inequality of the means). So max E >= 1 / alpha with probability at most alpha (Ville). It needs calls that are
independent given the past, and a centre known before the block; when a block ends may follow from how many calls
there are, never from what they show.

The centre and bet for an effect delta (p_b = m, p_c = t m + a + d delta) are those of the likelihood ratio against the
nearest null, which grows fastest: for t = 1, a = 0, c = b is the pooled rate (n_c p_c + n_b p_b) / (n_c + n_b) and
lam = d (p_c - c) / (c (1 - c)). For other nulls the nearest is taken from normal approximation, which costs speed only.
"""

from __future__ import annotations

from math import exp, inf, log, log1p
from typing import Any, Final, Literal, NamedTuple

from evalpipe.stats.matching import Arm

Direction = Literal[-1, 1]

DELTAS: Final = (0.005, 0.009, 0.025, 0.1)
"""Bets for a rate about .01: the canary's rate is higher by so much. A p99 that rises by 20 % gives .008, by 50 % .024
(log-normal, sigma .8)."""
WEIGHTS: Final = (0.2, 0.4, 0.3, 0.1)
BALANCE: Final = 0.7
"""A block ends once the ratio of what is pending is within this factor of the ratio of the traffic."""
_LOW, _HIGH = BALANCE - 1e-9, 1.0 / BALANCE + 1e-9
_CAP: Final = 0.98
_TINY: Final = 1e-6
_CEILING: Final = 690.0
"""Logarithm at which wealth stops growing (floats end at e^709): smaller is always valid."""
_DESIGNS: Final = 256
"""Sizes of blocks whose bets are kept ready."""
_MEMORY: Final = 3000
"""Calls over which the ratio of the arms is learnt, or twenty readings if that is more."""


class Counts(NamedTuple):
    """A block: calls and events of each arm; ``beyond`` counts another event of the canary's, for a second test."""

    n_baseline: int
    e_baseline: int
    n_canary: int
    e_canary: int
    beyond: int = 0


class RateBets:
    """Wealth of some bets on one hypothesis about two rates.

    Args:
        direction: 1 gathers evidence that the canary's rate is higher than ``ratio`` x the baseline's + ``shift``.
        deltas: effects of the bets, in units of the ``scale`` given with each block.
        weights: of the bets; their sum is 1.
        ratio, shift: t and a.
    """

    __slots__ = ("_designs", "_known", "_logs", "deltas", "direction", "e_value", "max_e_value", "ratio", "shift",
                 "weights")  # fmt: skip

    def __init__(
        self,
        direction: Direction = 1,
        deltas: tuple[float, ...] = DELTAS,
        weights: tuple[float, ...] = WEIGHTS,
        *,
        ratio: float = 1.0,
        shift: float = 0.0,
    ) -> None:
        if abs(sum(weights) - 1.0) > 1e-9 or len(weights) != len(deltas):
            raise ValueError(f"{len(deltas)} bets need as many weights with sum 1, not {weights!r}")
        self.direction: Direction = direction
        self.deltas, self.weights, self.ratio, self.shift = deltas, weights, ratio, shift
        self._known = (-1.0, -1.0)
        self._designs: dict[tuple[int, int], list[tuple[float, float, float, float]]] = {}
        self._logs = [0.0] * len(deltas)
        self.e_value = self.max_e_value = 1.0

    def update(self, block: Counts, rate: float, scale: float = 1.0) -> None:
        """Settle the bets on one block, with the baseline's rate as known before it."""
        n_b, e_b, n_c, e_c, _ = block
        if (rate, scale) != self._known:
            self._known, self._designs = (rate, scale), {}
        design = self._designs.get((n_b, n_c))
        if design is None:
            if len(self._designs) >= _DESIGNS:
                self._designs = {}
            design = self._designs[n_b, n_c] = self.design(n_b, n_c, rate, scale)
        logs, e_value = self._logs, 0.0
        for i, (quiet_b, event_b, quiet_c, event_c) in enumerate(design):
            grown = logs[i] + (n_c - e_c) * quiet_c + (n_b - e_b) * quiet_b
            if e_b or e_c:
                grown += e_c * event_c + e_b * event_b
            logs[i] = grown = min(grown, _CEILING)
            e_value += self.weights[i] * exp(grown)
        self.e_value = e_value
        self.max_e_value = max(e_value, self.max_e_value)

    def design(self, n_b: int, n_c: int, rate: float, scale: float) -> list[tuple[float, float, float, float]]:
        """What a call adds to the logarithm of each bet: a baseline without and with the event, a canary."""
        design = []
        for delta in self.deltas:
            b, c, lam = self._bet(n_b, n_c, rate, delta * scale)
            bet = self.direction * lam
            stake = bet * self.ratio * n_c / n_b
            design.append((log1p(stake * b), log1p(-stake * (1.0 - b)), log1p(-bet * c), log1p(bet * (1.0 - c))))
        return design

    def _bet(self, n_b: int, n_c: int, rate: float, delta: float) -> tuple[float, float, float]:
        """Centre of the baseline, centre of the canary, bet."""
        d, t, a = self.direction, self.ratio, self.shift
        m = min(max(rate, _TINY), 1.0 - _TINY)
        null = min(max(t * m + a, _TINY), 1.0 - _TINY)
        p_c = min(max(null + d * delta, 0.02 * null), 1.0 - 0.02 * (1.0 - null))
        pull = t * n_c * m * (1.0 - m)
        b = m + pull * (p_c - null) / (n_b * null * (1.0 - null) + t * pull)
        b = min(max(b, _TINY), 1.0 - _TINY)
        c = t * b + a
        if not 0.0 < c < 1.0:
            return m, null, 0.0
        lam = max(0.0, d * (p_c - c) / (c * (1.0 - c)))
        risk_c, risk_b = (c, 1.0 - b) if d > 0 else (1.0 - c, b)
        return b, c, min(lam, _CAP / risk_c, _CAP * n_b / (t * n_c * risk_b))

    def fired(self, alpha: float) -> bool:
        """Whether the hypothesis was ever rejected at ``alpha``: latched."""
        return self.max_e_value * alpha >= 1.0

    def restart(self) -> None:
        """Begin again with the wealth at hand, but never with more than 1; see ``betting.Bets.restart``."""
        self.e_value = self.max_e_value = min(1.0, self.e_value)
        self._logs = [log(self.e_value) if self.e_value > 0.0 else -inf] * len(self.deltas)

    def to_state(self) -> dict[str, Any]:
        """All of it as JSON-safe values, apart from what the constructor takes."""
        logs = [max(value, -1e300) for value in self._logs]
        return {"logs": logs, "e_value": self.e_value, "max_e_value": self.max_e_value}

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of ``to_state``, bit by bit."""
        self._logs = list(state["logs"])
        self.e_value, self.max_e_value = state["e_value"], state["max_e_value"]


class PastRate:
    """The baseline's rate among past calls, with a prior; it is told anew when the calls have grown by a twentieth.

    Args:
        rate: expected.
        known: calls that it counts for.
    """

    __slots__ = ("_events", "_next", "_prior", "_total", "value")

    def __init__(self, rate: float, known: float) -> None:
        self._prior = (rate * known, known)
        self.start(0.0, 0.0)

    def start(self, total: float, events: float) -> None:
        """Begin with these calls."""
        self._total, self._events = total, events
        self._tell()

    def add(self, total: float, events: float) -> None:
        """Count calls of a block that is over."""
        self._total += total
        self._events += events
        if self._total >= self._next:
            self._tell()

    def _tell(self) -> None:
        self._next = 1.05 * self._total + 1.0
        self.value = (self._prior[0] + self._events) / (self._prior[1] + self._total)

    def to_state(self) -> list[float]:
        """All of it as JSON-safe values, apart from what the constructor takes."""
        return [self._total, self._events, self._next, self.value]

    def load(self, state: list[float]) -> None:
        """The inverse of ``to_state``, bit by bit."""
        self._total, self._events, self._next, self.value = state


class CountMatcher:
    """Forms blocks of counts: whatever is pending in both arms, once it is about as the traffic is split.

    Blocks follow from how many calls there were in which order. Readings of thousands and single calls may mix.

    Args:
        least: calls of the smaller arm in a block, at least.
    """

    __slots__ = ("_arrived", "_least", "_pending")

    def __init__(self, least: int = 1) -> None:
        self._least = least
        self._pending = [0, 0, 0, 0, 0]
        self._arrived = [0.0, 0.0]

    def add(self, arm: Arm, n: int, events: int, beyond: int = 0) -> Counts | None:
        """Take one reading; the block that it completes, if any.

        Raises:
            ValueError: the arm is unknown, or there are more events than calls.
        """
        canary = arm == "canary"
        if not canary and arm != "baseline":
            raise ValueError(f"arm must be 'baseline' or 'canary', not {arm!r}")
        if not 0 <= events <= n or not 0 <= beyond <= n:
            raise ValueError(f"a reading of {n} calls cannot show {events} events ({beyond} beyond)")
        pending, arrived = self._pending, self._arrived
        at = 2 if canary else 0
        pending[at] += n
        pending[at + 1] += events
        pending[4] += beyond
        arrived[canary] += n
        total = arrived[0] + arrived[1]
        if total > _MEMORY and total > 20 * n:
            arrived[0] *= 0.5
            arrived[1] *= 0.5
        n_b, n_c = pending[0], pending[2]
        if not n_b or not n_c or min(n_b, n_c) < self._least:
            return None
        split = n_b * arrived[1] / (n_c * arrived[0])
        return self.flush() if _LOW <= split <= _HIGH else None

    def flush(self) -> Counts | None:
        """What is pending as a block, None if an arm has nothing; nothing is pending afterwards."""
        pending, self._pending = self._pending, [0, 0, 0, 0, 0]
        return Counts(*pending) if pending[0] and pending[2] else None

    def forget_ratio(self) -> None:
        """Learn the ratio of the arms anew: the split has changed."""
        self._arrived = [0.0, 0.0]

    def to_state(self) -> list[list[float]]:
        """All of it as JSON-safe values, apart from what the constructor takes."""
        return [list(self._pending), list(self._arrived)]

    def load(self, state: list[list[float]]) -> None:
        """The inverse of ``to_state``, bit by bit."""
        self._pending, self._arrived = [int(n) for n in state[0]], list(state[1])
