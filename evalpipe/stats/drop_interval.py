"""A confidence sequence for the relative drop: an interval that holds at every look at once.

It holds the drops that matched-block e-processes do not reject (inversion of tests; Waudby-Smith and Ramdas 2024,
arXiv 2010.09686), on a grid of 41. For each grid drop one process tests "the drop is at most this" and one "at least
this", each at half of 1 - level, with bets as in ``evalpipe.stats.betting``. The ends are rounded outwards to the
grid, so the truth is inside with probability >= level at all times together, also between grid points. It is for
people to read; decisions use the engine.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from evalpipe.stats.matching import Block

Floats = NDArray[np.float64]

_COARSE: Final = (0.125, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9)
GRID: Final[tuple[float, ...]] = (
    *(-drop for drop in reversed(_COARSE)),
    *(step / 100 for step in range(-10, 11)),
    *_COARSE,
)
"""Relative drops that are tested: in steps of one per cent up to ten, coarser beyond."""
_QUEUE: Final = 32
"""Blocks settled together: numpy's cost for a call is shared, and no result depends on it."""
_T: Final = np.concatenate([1.0 - np.array(GRID), 1.0 - np.array(GRID)])[:, None]
_D: Final = np.concatenate([np.full(len(GRID), -1.0), np.full(len(GRID), 1.0)])[:, None]
_EFFECTS: Final = np.array([0.05, 0.15])
_WEIGHTS: Final = np.array([0.6, 0.4])
"""Two bets for a process are enough to read an interval by, at half the cost of the engine's four."""


@dataclass(frozen=True, slots=True)
class DropRange:
    """Ends of the interval for the relative drop; None is an open end (beyond the grid, or not enough scores yet)."""

    low: float | None
    high: float | None
    level: float


class DropInterval:
    """The grid of processes, fed with the blocks of a test and the baseline's moments as known before each.

    Args:
        level: two-sided confidence, in (0, 1).
        hi: the largest possible score.
    """

    __slots__ = ("_hi", "_level", "_products", "_queue", "_rejected")

    def __init__(self, level: float = 0.95, hi: float = 1.0) -> None:
        if not 0.0 < level < 1.0:
            raise ValueError(f"level must be in (0, 1), not {level!r}")
        self._level, self._hi = level, hi
        self._products: Floats = np.ones((len(_T), len(_EFFECTS)))
        self._rejected: NDArray[np.bool_] = np.zeros(len(_T), dtype=bool)
        self._queue: list[tuple[Block, float, float]] = []

    def update(self, block: Block, mean: float, variance: float) -> None:
        """Take one block, with the baseline's mean and variance as known before it."""
        self._queue.append((block, mean, variance))
        if len(self._queue) >= _QUEUE:
            self._settle()

    def read(self) -> DropRange:
        """The interval now."""
        self._settle()
        n = len(GRID)
        kept_low, kept_high = np.flatnonzero(~self._rejected[:n]), np.flatnonzero(~self._rejected[n:])
        low = int(kept_low[0]) - 1 if len(kept_low) else n - 1
        high = int(kept_high[-1]) + 1 if len(kept_high) else 0
        return DropRange(GRID[low] if low >= 0 else None, GRID[high] if high < n else None, self._level)

    def restart(self) -> None:
        """Begin again, keeping losses but no wins; see ``Bets.restart``."""
        self._settle()
        wealth = np.minimum(1.0, self._products @ _WEIGHTS)
        self._products = np.repeat(wealth[:, None], len(_EFFECTS), axis=1)
        self._rejected = np.zeros(len(_T), dtype=bool)

    def _settle(self) -> None:
        if not self._queue:
            return
        factors = _factors(self._queue, self._hi)
        self._queue = []
        with np.errstate(over="ignore", under="ignore"):
            wealth = np.multiply.accumulate(np.concatenate([self._products[None], factors]), axis=0)[1:]
            wealth = np.minimum(wealth, 1e300)
        threshold = 2.0 / (1.0 - self._level)
        self._rejected = self._rejected | (wealth @ _WEIGHTS >= threshold).any(axis=0)
        self._products = wealth[-1]

    def to_state(self) -> dict[str, Any]:
        """All of it as JSON-safe values (the products as base64 of little-endian floats)."""
        return {
            "level": self._level,
            "hi": self._hi,
            "products": b64encode(self._products.astype("<f8").tobytes()).decode(),
            "rejected": np.flatnonzero(self._rejected).tolist(),
            "queue": [[b.baselines, b.canary, b.k_canary, mean, variance] for b, mean, variance in self._queue],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> DropInterval:
        """The inverse of ``to_state``."""
        interval = cls(state["level"], state["hi"])
        products = np.frombuffer(b64decode(state["products"]), dtype="<f8")
        interval._products = products.astype(np.float64).reshape(interval._products.shape)
        interval._rejected[state["rejected"]] = True
        interval._queue = [(Block(list(xs), y, k), mean, variance) for xs, y, k, mean, variance in state["queue"]]
        return interval


def _factors(queue: list[tuple[Block, float, float]], hi: float) -> Floats:
    """``betting.block_factors`` for all blocks, grid drops and bets at once: (block, process, bet)."""
    sizes = np.array([len(block.baselines) for block, _, _ in queue])
    owner = np.repeat(np.arange(len(queue)), sizes)
    baselines = np.array([x for block, _, _ in queue for x in block.baselines])
    k_b = sizes[:, None, None]
    k_c, y, m, s2 = (
        column[:, None, None] for column in np.array([(b.k_canary, b.canary, m, s2) for b, m, s2 in queue]).T
    )
    centre = _T * m
    c_y = np.where(_D < 0, hi - centre, centre)
    c_x = np.where(_D < 0, m, hi - m)
    with np.errstate(divide="ignore"):
        cap = np.minimum(
            np.where(c_y > 0, 0.95 / c_y, np.inf),
            np.where(c_x > 0, 0.95 * k_b / (_T * c_x), np.inf),
        )
    delta = _EFFECTS * m
    bet = np.minimum(delta / (s2 * (1 / k_b + 1 / k_c) + delta * delta), cap)
    stakes = _D * _T * bet / k_b
    losses = 1.0 - stakes[owner] * (baselines - m[owner, 0, 0])[:, None, None]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    result: Floats = (1.0 + _D * bet * (y - centre)) * np.multiply.reduceat(losses, starts, axis=0)
    return result
