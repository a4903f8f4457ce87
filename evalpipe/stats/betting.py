"""The bets of the matched-block e-process on one hypothesis.

The block e-variable of Turner, Ly and Grunwald (arXiv 2106.02693), carried to bounded scores with predictable centres.
A block has kb baselines x_j and kc canaries of mean y, all in [0, hi]. With t = 1 - tau (direction d = -1) or 1 + tau
(d = +1) and an absolute margin a the null is mean(y) >= t mean(x) - a for d = -1 and mean(y) <= t mean(x) - a for
d = +1. With m and s2, the baseline's mean and variance, and an effect delta_i, all known before the block:

    b_i   = m + d delta_i t kc / (kb + t^2 kc),  c_i = t b_i - a
            the null that is nearest to "baseline m, canary t m - a + d delta_i"
    v_i   = s2 c_i (hi - c_i) / (m (hi - m)),  g_i = delta_i kb / (kb + t^2 kc)
    lam_i = min( g_i / (v_i / kc + g_i^2 (1 - 1/kc)),  .95 / c_y,  .95 kb / (t c_x) )
            direction -1: c_y = hi - c_i, c_x = b_i        direction +1: c_y = c_i, c_x = hi - b_i
    F_i   = (1 + d lam_i (y - c_i)) * prod_j (1 - d (t lam_i / kb) (x_j - b_i))
    E     = sum_i w_i prod_blocks F_i

E[F_i] <= 1 for every pair of means in the null: with u = d lam_i t (mean(x) - b_i) it is at most (1 + u)(1 - u/kb)^kb,
log-concave in u with its maximum 1 at 0, whatever the centre. So max E >= 1 / alpha happens with probability at most
alpha (Ville), whenever one looks and stops. For 0/1 scores F_i is the likelihood ratio of its alternative against the
nearest null, which no bet beats there. It needs scores that are independent inside a block given the past: one score
for each user or conversation.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

from evalpipe.stats.matching import Block

Direction = Literal[-1, 1]
Unit = Literal["mean", "one", "rare"]
"""What effects are multiples of: the baseline's mean, one (they are absolute), or the rarer outcome's rate."""
Four = tuple[float, float, float, float]
Design = tuple[Four, Four, Four, Four]

EFFECTS: Final[Four] = (0.04, 0.06, 0.10, 0.20)
"""Relative effects of the four bets, for quality at a margin of 5 %."""
RARE_EFFECTS: Final[Four] = (0.5, 1.0, 3.0, 10.0)
"""Multiples of a rate, for things that are rare."""
WEIGHTS: Final[Four] = (0.15, 0.50, 0.27, 0.08)
EQUAL_WEIGHTS: Final[Four] = (0.25, 0.25, 0.25, 0.25)
_RARE_FLOOR: Final = 0.002
_RARE_CEILING: Final = 0.1
_CAP: Final = 0.95
_MOST: Final = 0.98
"""Of the room that there is below or above: no bet is on more."""
_LEAST: Final = 1e-3
_CEILING: Final = 1e300
"""Wealth stops growing here (floats end at 1.8e308): smaller is always valid."""


class Residuals(NamedTuple):
    """What a control variate adds to the scores of a block: further factors, each with its own bound.

    Attributes:
        canary: mean over the block's canaries.
        baselines: one for each of the block's baselines.
        slack: how far the canaries may be above ``hi`` and below 0, then the baselines. A residual may be as far below
            0 as its score is above ``hi``, and above 0 as its score is below.
    """

    canary: float
    baselines: list[float]
    slack: Four


class Bets:
    """Wealth of four bets against "the canary is no worse than t times the baseline" (or "no better", direction +1).

    Args:
        direction: -1 gathers evidence that the canary is lower, +1 that it is higher.
        tau: the tolerated relative change in that direction; negative for a margin on the other side.
        hi: the largest possible score.
        effects: of the four bets: they decide which differences are found fast, and nothing about validity.
        weights: of the four bets, summing to at most 1.
        unit: what ``effects`` are multiples of.
        shift: added to every canary score: an absolute margin. With direction +1, "lower by ``shift`` or more" is the
            hypothesis; with direction -1 and a negative one, "higher by so much or more".

    Raises:
        ValueError: for a hypothesis or bets that make no sense.
    """

    __slots__ = ("_designs", "_effects", "_mean", "_products", "_t", "_variance", "_weights", "direction", "e_value",
                 "hi", "max_e_value", "shift", "tau", "unit")  # fmt: skip

    def __init__(
        self,
        direction: Direction = -1,
        tau: float = 0.0,
        hi: float = 1.0,
        *,
        effects: Four = EFFECTS,
        weights: Four = WEIGHTS,
        unit: Unit = "mean",
        shift: float = 0.0,
    ) -> None:
        if direction not in {-1, 1}:
            raise ValueError(f"direction must be -1 or 1, not {direction!r}")
        if not hi > 0.0:
            raise ValueError(f"hi, the largest possible score, must be positive, not {hi!r}")
        if not 1.0 + direction * tau > 0.0:
            raise ValueError(f"tau {tau!r} leaves nothing of the baseline in direction {direction}")
        if len(effects) != 4 or not min(effects) > 0.0:
            raise ValueError(f"effects must be four positive numbers, not {effects!r}")
        if len(weights) != 4 or not min(weights) >= 0.0 or not 0.0 < sum(weights) <= 1.0 + 1e-12:
            raise ValueError(f"weights must be four numbers from 0 that sum to at most 1, not {weights!r}")
        self.direction: Direction = direction
        self.tau, self.hi, self.unit, self.shift = tau, hi, unit, shift
        self._t = 1.0 + direction * tau
        self._effects, self._weights = effects, weights
        self._designs: dict[tuple[int, int], Design] = {}  # for the moments below, by sizes of the block
        self._mean = self._variance = -1.0
        self._begin(1.0)

    def _begin(self, wealth: float) -> None:
        self._products = (wealth, wealth, wealth, wealth)
        self.e_value = self.max_e_value = wealth

    def update(self, block: Block, mean: float, variance: float, residuals: Residuals | None = None) -> None:
        """Settle the bets on one block, with the baseline's mean and variance as known before it."""
        if residuals is None:
            f0, f1, f2, f3 = self.factors(block, mean, variance)
        else:
            f0, f1, f2, f3 = self.controlled_factors(block, mean, variance, residuals)
        p0, p1, p2, p3 = self._products
        w0, w1, w2, w3 = self._weights
        p0 *= f0
        p1 *= f1
        p2 *= f2
        p3 *= f3
        e_value = w0 * p0 + w1 * p1 + w2 * p2 + w3 * p3
        if e_value > self.max_e_value:
            self.max_e_value = e_value
            if e_value > _CEILING / 100.0:
                p0, p1, p2, p3 = min(p0, _CEILING), min(p1, _CEILING), min(p2, _CEILING), min(p3, _CEILING)
                self.max_e_value = e_value = w0 * p0 + w1 * p1 + w2 * p2 + w3 * p3
        self._products = (p0, p1, p2, p3)
        self.e_value = e_value

    def factors(self, block: Block, mean: float, variance: float) -> Four:
        """The four F_i of one block (see the module): each has expectation at most 1 under the null."""
        baselines, y, k_canary = block
        if mean != self._mean or variance != self._variance:
            self._mean, self._variance, self._designs = mean, variance, {}
        sizes = (len(baselines), k_canary)
        design = self._designs.get(sizes)
        if design is None:
            design = self._designs[sizes] = self.design(*sizes, mean, variance)
        (a0, l0, b0, s0), (a1, l1, b1, s1), (a2, l2, b2, s2), (a3, l3, b3, s3) = design
        f0, f1, f2, f3 = a0 + l0 * y, a1 + l1 * y, a2 + l2 * y, a3 + l3 * y
        for x in baselines:
            f0 *= b0 + s0 * x
            f1 *= b1 + s1 * x
            f2 *= b2 + s2 * x
            f3 *= b3 + s3 * x
        return f0, f1, f2, f3

    def controlled_factors(self, block: Block, mean: float, variance: float, residuals: Residuals) -> Four:
        """The same for scores moved by a control variate: see ``evalpipe.stats.control_variate``."""
        baselines, y, k_canary = block
        factors = []
        for a, stake, b, share in self.design(len(baselines), k_canary, mean, variance, residuals.slack):
            factor = (a + stake * y) * (1.0 + stake * residuals.canary)
            for x, rest in zip(baselines, residuals.baselines, strict=True):
                factor *= (b + share * x) * (1.0 + share * rest)
            factors.append(factor)
        return factors[0], factors[1], factors[2], factors[3]

    def design(
        self, k_baseline: int, k_canary: int, mean: float, variance: float, slack: Four = (0.0, 0.0, 0.0, 0.0)
    ) -> Design:
        """The four bets on a block of these sizes, each (A, L, B, S) with F = (A + L y) prod_j (B + S x_j).

        ``slack``: see ``Residuals``.
        """
        up_y, down_y, up_x, down_x = slack
        d, t, hi = self.direction, self._t, self.hi
        room = _MOST * (t * mean - self.shift if d < 0 else hi - t * mean + self.shift)
        size = 1.0 / (k_baseline + t * t * k_canary)
        base = max(mean * (hi - mean), _LEAST * hi * hi)
        scale = mean if self.unit == "mean" else 1.0 if self.unit == "one" else rarer(mean / hi) * hi
        bets = []
        for effect in self._effects:
            delta = max(min(effect * scale, room), 0.0)
            b = min(max(mean + d * delta * t * k_canary * size, _LEAST * hi), (1.0 - _LEAST) * hi)
            c = t * b - self.shift
            gap = delta * k_baseline * size
            spread = variance * max(c * (hi - c) / base, 0.1)
            lam = gap / (spread / k_canary + gap * gap * (1.0 - 1.0 / k_canary))
            if d < 0:
                c_y, c_x = max(hi - c + up_y, down_y), max(b + down_x, up_x)
            else:
                c_y, c_x = max(c + down_y, up_y), max(hi - b + up_x, down_x)
            if lam * c_y > _CAP:
                lam = _CAP / c_y
            if lam * t * c_x > _CAP * k_baseline:
                lam = _CAP * k_baseline / (t * c_x)
            stake, share = d * lam, -d * lam * t / k_baseline
            bets.append((1.0 - stake * c, stake, 1.0 - share * b, share))
        return bets[0], bets[1], bets[2], bets[3]

    def fired(self, alpha: float) -> bool:
        """Whether the hypothesis was ever rejected at ``alpha``: latched."""
        return self.max_e_value * alpha >= 1.0

    def restart(self) -> None:
        """Begin again with the wealth at hand, but never with more than 1.

        What was won does not count from here on and what was lost is not given back, so the wealth over all restarts is
        still one supermartingale that starts at 1: alpha holds over any number of restarts with no correction.
        """
        self._begin(min(1.0, self.e_value))

    def to_state(self) -> dict[str, Any]:
        """All of it as JSON-safe values."""
        return {
            "direction": self.direction,
            "tau": self.tau,
            "hi": self.hi,
            "effects": list(self._effects),
            "weights": list(self._weights),
            "unit": self.unit,
            "shift": self.shift,
            "products": list(self._products),
            "e_value": self.e_value,
            "max_e_value": self.max_e_value,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Bets:
        """The inverse of ``to_state``, bit by bit."""
        bets = cls(
            state["direction"],
            state["tau"],
            state["hi"],
            effects=tuple(state["effects"]),
            weights=tuple(state["weights"]),
            unit=state["unit"],
            shift=state["shift"],
        )
        bets._products = tuple(state["products"])
        bets.e_value, bets.max_e_value = state["e_value"], state["max_e_value"]
        return bets


def rarer(rate: float) -> float:
    """Rate of the rarer of two outcomes, from .002 to .1: effects on a common one are points rather than multiples."""
    return min(max(min(rate, 1.0 - rate), _RARE_FLOOR), _RARE_CEILING)
