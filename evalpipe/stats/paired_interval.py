"""A confidence sequence for the relative drop over pairs: an interval that holds at every look at once.

It holds the drops that paired e-processes do not reject, on the grid of ``evalpipe.stats.drop_interval``. For each grid
drop, t = 1 - drop, one process bets that y - t x is above 0 on average and one that it is below, each at half of
1 - level, with the bets of ``evalpipe.stats.paired_block``. The ends are rounded outwards to the grid. It is for people
to read; decisions use the tests.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from evalpipe.stats.drop_interval import GRID, DropRange
from evalpipe.stats.paired_block import PRIOR_COUNT, PRIOR_MEAN, PRIOR_VARIANCE

Floats = NDArray[np.float64]

_T: Final = 1.0 - np.array(GRID)
_EFFECTS: Final = np.array([[0.05], [0.15]])[:, :, None]
_SIDES: Final = np.array([[1.0], [-1.0]])
_FLOOR: Final = 1e-6
_CAP: Final = 0.98 / np.maximum(np.stack([_T, np.ones(len(GRID))]), _FLOOR)
_BATCH: Final = 64
"""Pairs settled together: numpy's cost for a call is shared, and no result depends on it."""


class PairedInterval:
    """The grid of processes.

    Args:
        level: two-sided confidence, in (0, 1).
        mean, variance: expected of the baseline and of the squared difference; learnt on the way.
    """

    __slots__ = ("_level", "_moments", "_n", "_products", "_queue", "_rejected")

    def __init__(self, level: float = 0.95, *, mean: float = PRIOR_MEAN, variance: float = PRIOR_VARIANCE) -> None:
        if not 0.0 < level < 1.0:
            raise ValueError(f"level must be in (0, 1), not {level!r}")
        self._level, self._n = level, 0
        square = mean * mean + variance
        self._moments = [mean, square, square - variance / 2.0, square]
        self._queue: list[tuple[float, ...]] = []
        self._products: Floats = np.ones((2, 2, len(GRID)))
        self._rejected: NDArray[np.bool_] = np.zeros((2, len(GRID)), dtype=bool)

    def add(self, baseline: float, canary: float) -> None:
        """Take one pair, both in [0, 1]."""
        self._queue.append((baseline, canary, *self._moments))
        self._n = n = self._n + 1
        seen = (baseline, baseline * baseline, baseline * canary, canary * canary)
        self._moments = [old + (new - old) / (n + PRIOR_COUNT) for old, new in zip(self._moments, seen, strict=True)]
        if len(self._queue) >= _BATCH:
            self._products, self._rejected = self._settled()
            self._queue = []

    def _settled(self) -> tuple[Floats, NDArray[np.bool_]]:
        """Products and rejections with the pairs that wait."""
        if not self._queue:
            return self._products, self._rejected
        x, y, mean, xx, xy, yy = (column[:, None, None, None] for column in np.array(self._queue).T)
        delta = _EFFECTS * mean
        spread = np.maximum(yy - 2.0 * _T * xy + _T * _T * xx, _FLOOR)
        bets = np.minimum(delta / (spread + delta * delta), _CAP)
        wealth = 1.0 + bets * _SIDES * (y - _T * x)
        wealth[0] *= self._products
        with np.errstate(over="ignore", under="ignore"):
            np.multiply.accumulate(wealth, axis=0, out=wealth)
        np.minimum(wealth, 1e300, out=wealth)
        over = (wealth.mean(axis=1) >= 2.0 / (1.0 - self._level)).any(axis=0)
        return wealth[-1], self._rejected | over

    def read(self) -> DropRange:
        """The interval now: drops, negative where the canary is higher; None is an open end."""
        below, above = self._settled()[
            1
        ]  # the canary is above t x: the drop is smaller; it is below: the drop is greater
        fits_low, fits_high = np.flatnonzero(~above), np.flatnonzero(~below)
        low = int(fits_low[0]) - 1 if len(fits_low) else len(GRID) - 1
        high = int(fits_high[-1]) + 1 if len(fits_high) else 0
        return DropRange(GRID[low] if low >= 0 else None, GRID[high] if high < len(GRID) else None, self._level)

    def restart(self) -> None:
        """Begin again, keeping losses but no wins; see ``betting.Bets.restart``."""
        wealth = np.minimum(1.0, self._settled()[0].mean(axis=0))
        self._queue = []
        self._products = np.stack([wealth, wealth])
        self._rejected = np.zeros((2, len(GRID)), dtype=bool)

    def to_state(self) -> dict[str, Any]:
        """All of it as JSON-safe values, apart from the level."""
        return {
            "products": self._products.ravel().tolist(),
            "rejected": self._rejected.astype(int).tolist(),
            "moments": list(self._moments),
            "n": self._n,
            "queue": [list(row) for row in self._queue],
        }

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of ``to_state``."""
        self._products = np.array(state["products"]).reshape(2, 2, len(GRID))
        self._rejected = np.array(state["rejected"], dtype=bool)
        self._moments, self._n = list(state["moments"]), state["n"]
        self._queue = [tuple(row) for row in state["queue"]]
