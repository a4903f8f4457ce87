"""The bets of the matched-block e-process on one hypothesis.

The block e-variable of Turner, Ly and Grunwald (arXiv 2106.02693), carried to bounded scores with a predictable centre.
For a block of kb baselines x_j and kc canaries of mean y, with scores in [0, hi], t = 1 - tau (direction d = -1) or
1 + tau (d = +1), m and s2 known before the block, and effects delta_i = f_i m:

    lam_i = min( delta_i / (s2 (1/kb + 1/kc) + delta_i^2),  .95 / c_y,  .95 kb / (t c_x) )
            direction -1: c_y = hi - t m, c_x = m          direction +1: c_y = t m, c_x = hi - m
    F_i   = (1 + d lam_i (y - t m)) * prod_j (1 - d (t lam_i / kb) (x_j - m))
    E     = sum_i w_i prod_blocks F_i

The null is mean(y) >= t mean(x) for d = -1 and mean(y) <= t mean(x) for d = +1. E[F_i] <= 1 for every pair of means in
it: with u = d lam_i t (mean(x) - m) it is at most (1 + u)(1 - u / kb)^kb, log-concave in u with its maximum 1 at 0. So
max E >= 1 / alpha happens with probability at most alpha (Ville), whenever one looks and stops. It needs scores that
are independent inside a block given the past: one score for each user or conversation.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from evalpipe.stats.matching import Block

Direction = Literal[-1, 1]

EFFECTS: Final = (0.03, 0.05, 0.10, 0.20)
"""Relative effects of the four bets, for quality."""
WEIGHTS: Final = (0.25, 0.40, 0.25, 0.10)
_CAP: Final = 0.95
_CEILING: Final = 1e300
"""Wealth stops growing here (floats end at 1.8e308): smaller is always valid."""


class Bets:
    """Wealth of four bets against "the canary is no worse than t times the baseline" (or "no better", direction +1)."""

    __slots__ = ("_products", "direction", "e_value", "hi", "max_e_value", "tau")

    def __init__(self, direction: Direction = -1, tau: float = 0.0, hi: float = 1.0) -> None:
        if direction not in {-1, 1}:
            raise ValueError(f"direction must be -1 or 1, not {direction!r}")
        if not hi > 0.0:
            raise ValueError(f"hi, the largest possible score, must be positive, not {hi!r}")
        if not 1.0 + direction * tau > 0.0:
            raise ValueError(f"tau {tau!r} leaves nothing of the baseline in direction {direction}")
        self.direction: Direction = direction
        self.tau = tau
        self.hi = hi
        self._products = [1.0] * len(EFFECTS)
        self.e_value = 1.0
        self.max_e_value = 1.0

    def update(self, block: Block, mean: float, variance: float) -> None:
        """Settle the bets on one block, with the baseline's mean and variance as known before it."""
        products, e_value = self._products, 0.0
        for i, factor in enumerate(block_factors(block, mean, variance, self.direction, self.tau, self.hi)):
            products[i] = product = min(products[i] * factor, _CEILING)
            e_value += WEIGHTS[i] * product
        self.e_value = e_value
        self.max_e_value = max(e_value, self.max_e_value)

    def fired(self, alpha: float) -> bool:
        """Whether the hypothesis was ever rejected at ``alpha``: latched."""
        return self.max_e_value * alpha >= 1.0

    def restart(self) -> None:
        """Begin again with the wealth at hand, but never with more than 1.

        What was won does not count from here on and what was lost is not given back, so the wealth over all restarts is
        still one supermartingale that starts at 1: alpha holds over any number of restarts with no correction.
        """
        self.e_value = self.max_e_value = min(1.0, self.e_value)
        self._products = [self.e_value] * len(EFFECTS)

    def to_state(self) -> dict[str, Any]:
        """All of it as JSON-safe values."""
        return {
            "direction": self.direction,
            "tau": self.tau,
            "hi": self.hi,
            "products": list(self._products),
            "e_value": self.e_value,
            "max_e_value": self.max_e_value,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Bets:
        """The inverse of ``to_state``, bit by bit."""
        bets = cls(state["direction"], state["tau"], state["hi"])
        bets._products = list(state["products"])
        bets.e_value, bets.max_e_value = state["e_value"], state["max_e_value"]
        return bets


def block_factors(
    block: Block, mean: float, variance: float, direction: Direction, tau: float, hi: float = 1.0
) -> list[float]:
    """The four factors F_i of one block (see the module): each has expectation at most 1 under the null."""
    baselines, canary, k_canary = block
    k_baseline = len(baselines)
    t = 1.0 + direction * tau
    centre = t * mean
    c_y, c_x = (hi - centre, mean) if direction < 0 else (centre, hi - mean)
    cap = _CAP / c_y if c_y > 0.0 else float("inf")
    if c_x > 0.0:
        cap = min(cap, _CAP * k_baseline / (t * c_x))
    spread = variance * (1.0 / k_baseline + 1.0 / k_canary)
    gain = direction * (canary - centre)
    losses = [direction * (x - mean) for x in baselines]
    share = t / k_baseline
    factors = []
    for effect in EFFECTS:
        delta = effect * mean
        bet = min(delta / (spread + delta * delta), cap)
        factor = 1.0 + bet * gain
        stake = bet * share
        for loss in losses:
            factor *= 1.0 - stake * loss
        factors.append(factor)
    return factors
