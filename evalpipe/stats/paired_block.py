"""Two answers to the same input: is the canary's worse? An e-process on differences, whatever the two have in common.

Betting on a bounded mean (Waudby-Smith and Ramdas 2024, arXiv 2010.09686). For a pair x (baseline), y (canary), both in
[0, hi], direction d, t = 1 + d tau and absolute margin a (``shift``):

    G   = d (y - t x - a)                        the null: E[G | past] <= 0
    F_i = 1 + min(.98 / max(-G), k_i lam) G,     lam = delta / (v + delta^2)
    E   = sum_i w_i prod_pairs F_i

with v the mean of past (y - x)^2 and delta an effect worth finding. E[F_i | past] <= 1 under the null by linearity, so
max E >= 1 / alpha with probability at most alpha (Ville), at any time. Nothing is assumed of how x and y depend on each
other; pairs must be of different users or conversations. A pair of good correlation rho is worth 1 / (1 - rho) unpaired
ones. ``reference`` replaces x for scores that compare the two answers themselves: .5 is a tie.
"""

from __future__ import annotations

from typing import Any, Final, Literal

Direction = Literal[-1, 1]

SHARES: Final = (0.9, 2.0)
WEIGHTS: Final = (0.7, 0.3)
"""Two bets: one for the effect, one for more of it."""
PRIOR_MEAN: Final = 0.85
PRIOR_VARIANCE: Final = 0.03
PRIOR_COUNT: Final = 20
"""What is expected of mean and squared difference, and how many pairs that counts for. A variance that is too low makes
the first bets bold, which costs little where few pairs decide."""
_CAP: Final = 0.98
_FLOOR: Final = 1e-6
_CEILING: Final = 1e300


class PairedBlock:
    """One hypothesis about pairs, tested pair by pair.

    Args:
        direction: -1 gathers evidence that the canary is lower, +1 that it is higher.
        tau: tolerated relative change in that direction; negative where evidence is wanted that it is less bad.
        shift: tolerated absolute change, signed: the hypothesis is about y against t x + shift.
        hi: the largest possible score.
        reference: takes the place of the baseline's score.
        effect: what the bets are made for: a share of the baseline, or points with ``absolute``.
        mean, variance: expected of the baseline and of the squared difference; learnt on the way.
    """

    __slots__ = ("_bound", "_effect", "_products", "_reference", "_relative", "_shift", "_t", "direction", "e_value",
                 "hi", "max_e_value", "mean", "n", "variance")  # fmt: skip

    def __init__(
        self,
        direction: Direction = -1,
        tau: float = 0.0,
        *,
        shift: float = 0.0,
        hi: float = 1.0,
        reference: float | None = None,
        effect: float = 0.05,
        absolute: bool = False,
        mean: float = PRIOR_MEAN,
        variance: float = PRIOR_VARIANCE,
    ) -> None:
        if direction not in {-1, 1}:
            raise ValueError(f"direction must be -1 or 1, not {direction!r}")
        if not hi > 0.0 or not effect > 0.0:
            raise ValueError(f"hi and effect must be positive, not {hi!r} and {effect!r}")
        t = 1.0 + direction * tau
        if not t > 0.0:
            raise ValueError(f"tau {tau!r} leaves nothing of the baseline in direction {direction}")
        self.direction: Direction = direction
        self._t, self._shift, self.hi, self._reference = t, shift, hi, reference
        self._effect, self._relative = effect, not absolute
        low, high = (0.0, hi) if reference is None else (reference, reference)
        # How far the canary can be on the wrong side of what is tested.
        self._bound = max(t * high + shift, 0.0) if direction > 0 else max(hi - t * low - shift, 0.0)
        self._products = [1.0] * len(SHARES)
        self.mean, self.variance, self.n = mean if reference is None else reference, variance, 0
        self.e_value = self.max_e_value = 1.0

    def add(self, baseline: float, canary: float) -> None:
        """Take one pair; ``baseline`` is ignored where there is a reference.

        Raises:
            ValueError: a score outside [0, hi].
        """
        x = baseline if self._reference is None else self._reference
        if not 0.0 <= x <= self.hi or not 0.0 <= canary <= self.hi:
            raise ValueError(f"scores of a pair must be in [0, {self.hi:g}], not {x!r} and {canary!r}")
        gain = self.direction * (canary - self._t * x - self._shift)
        delta = self._effect * (self.mean if self._relative else 1.0)
        lam = delta / (self.variance + delta * delta)
        cap = _CAP / self._bound if self._bound > 0.0 else lam
        e_value = 0.0
        for i, share in enumerate(SHARES):
            factor = 1.0 + min(cap, share * lam) * gain
            self._products[i] = product = min(self._products[i] * factor, _CEILING)
            e_value += WEIGHTS[i] * product
        self.e_value = e_value
        self.max_e_value = max(e_value, self.max_e_value)
        self.n = n = self.n + 1
        self.mean = max(self.mean + (x - self.mean) / (n + PRIOR_COUNT), _FLOOR)
        squared = (canary - x) ** 2
        self.variance = max(self.variance + (squared - self.variance) / (n + PRIOR_COUNT), _FLOOR)

    def fired(self, alpha: float) -> bool:
        """Whether the hypothesis was ever rejected at ``alpha``: latched."""
        return self.max_e_value * alpha >= 1.0

    def restart(self) -> None:
        """Begin again with the wealth at hand, but never with more than 1; see ``betting.Bets.restart``."""
        self.e_value = self.max_e_value = min(1.0, self.e_value)
        self._products = [self.e_value] * len(SHARES)

    def to_state(self) -> dict[str, Any]:
        """All of it as JSON-safe values, apart from what the constructor takes."""
        return {
            "products": list(self._products),
            "e_value": self.e_value,
            "max_e_value": self.max_e_value,
            "mean": self.mean,
            "variance": self.variance,
            "n": self.n,
        }

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of ``to_state``, bit by bit."""
        self._products = list(state["products"])
        self.e_value, self.max_e_value = state["e_value"], state["max_e_value"]
        self.mean, self.variance, self.n = state["mean"], state["variance"], state["n"]
