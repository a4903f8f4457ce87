"""A confidence sequence for the relative drop: an interval that holds at every look at once.

It holds the drops that matched-block e-processes do not reject (inversion of tests; Waudby-Smith and Ramdas 2024,
arXiv 2010.09686), on a grid of 41. For each grid drop one process tests "the drop is at most this" and one "at least
this", each at half of 1 - level, with factors as in ``evalpipe.stats.betting``. The ends are rounded outwards to the
grid, so the truth is inside with probability >= level at all times together, also between grid points. It is for
people to read; decisions use the engine.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from evalpipe.stats.betting import Unit, rarer
from evalpipe.stats.matching import Block

Floats = NDArray[np.float64]

_COARSE: Final = (0.125, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9)
GRID: Final[tuple[float, ...]] = (
    *(-drop for drop in reversed(_COARSE)),
    *(step / 100 for step in range(-10, 11)),
    *_COARSE,
)
"""Relative drops that are tested: in steps of one per cent up to ten, coarser beyond."""
_BATCH: Final = 128
"""Blocks settled together: numpy's cost for a call is shared."""
_MOST: Final = 4096
"""Baselines that may wait for it."""
_N: Final = len(GRID)
_T: Final = 1.0 - np.array(GRID)
_WEIGHTS: Final = np.array([[0.6], [0.4]])
"""Two bets for a process are enough to read an interval by, at half the cost of the engine's four."""


@dataclass(frozen=True, slots=True)
class DropRange:
    """Ends of the interval for the relative drop; None is an open end (beyond the grid, or not enough scores yet)."""

    low: float | None
    high: float | None
    level: float


class DropInterval:
    """The grid of processes, fed with the blocks of a test and the baseline's moments as known before each.

    Blocks wait until there are enough of them to be settled at once. Reading or saving settles nothing for good, so
    what comes out depends on the blocks alone.

    Args:
        level: two-sided confidence, in (0, 1).
        hi: the largest possible score.
        effects: of the two bets, in ``unit``.
        unit: see ``Bets``.
    """

    __slots__ = ("_effects", "_hi", "_level", "_products", "_rejected", "_rows", "_unit", "_xs")

    def __init__(
        self,
        level: float = 0.95,
        hi: float = 1.0,
        *,
        effects: tuple[float, float] = (0.05, 0.15),
        unit: Unit = "mean",
    ) -> None:
        if not 0.0 < level < 1.0:
            raise ValueError(f"level must be in (0, 1), not {level!r}")
        self._level, self._hi, self._effects, self._unit = level, hi, effects, unit
        self._products: Floats = np.ones((2, 2 * _N)) * _WEIGHTS
        self._rejected: NDArray[np.bool_] = np.zeros(2 * _N, dtype=bool)
        self._rows: list[tuple[float, ...]] = []
        self._xs: list[float] = []

    def update(self, block: Block, mean: float, variance: float) -> None:
        """Take one block, with the baseline's mean and variance as known before it."""
        baselines, canary, k_canary = block
        self._xs += baselines
        self._rows.append((len(baselines), k_canary, canary, mean, variance))
        if len(self._rows) >= _BATCH or len(self._xs) >= _MOST:
            self._products, self._rejected = self._settled()
            self._rows, self._xs = [], []

    def read(self) -> DropRange:
        """The interval now."""
        _, rejected = self._settled()
        kept_low, kept_high = np.flatnonzero(~rejected[:_N]), np.flatnonzero(~rejected[_N:])
        low = int(kept_low[0]) - 1 if len(kept_low) else _N - 1
        high = int(kept_high[-1]) + 1 if len(kept_high) else 0
        return DropRange(GRID[low] if low >= 0 else None, GRID[high] if high < _N else None, self._level)

    def restart(self) -> None:
        """Begin again, keeping losses but no wins; see ``Bets.restart``."""
        products, _ = self._settled()
        self._products = np.minimum(1.0, products[0] + products[1]) * _WEIGHTS
        self._rejected = np.zeros(2 * _N, dtype=bool)
        self._rows, self._xs = [], []

    def _settled(self) -> tuple[Floats, NDArray[np.bool_]]:
        """Products and rejections with the blocks that wait."""
        if not self._rows:
            return self._products, self._rejected
        live = ~self._rejected  # what is rejected stays so: nothing more is bet against it
        bets = _Settlement(np.array(self._rows), np.array(self._xs), self._hi, live)
        scale = bets.scale(self._unit)
        products, rejected, total = self._products.copy(), self._rejected.copy(), np.zeros(())
        with np.errstate(over="ignore", under="ignore"):
            for before, effect in zip(products, self._effects, strict=True):
                wealth = bets.factors(effect * scale)
                wealth[0] *= before[live]
                np.multiply.accumulate(wealth, axis=0, out=wealth)
                before[live] = np.minimum(wealth[-1], 1e300)
                total = total + wealth
        rejected[live] = total.max(axis=0) >= 2.0 / (1.0 - self._level)
        return products, rejected

    def to_state(self) -> dict[str, Any]:
        """All of it as JSON-safe values (arrays as base64 of little-endian floats)."""
        return {
            "level": self._level,
            "hi": self._hi,
            "effects": list(self._effects),
            "unit": self._unit,
            "products": _pack(self._products),
            "rejected": np.flatnonzero(self._rejected).tolist(),
            "rows": _pack(np.array(self._rows)),
            "xs": _pack(np.array(self._xs)),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> DropInterval:
        """The inverse of ``to_state``."""
        interval = cls(state["level"], state["hi"], effects=tuple(state["effects"]), unit=state["unit"])
        interval._products = _unpack(state["products"]).reshape(2, 2 * _N)
        interval._rejected[state["rejected"]] = True
        interval._rows = [tuple(row) for row in _unpack(state["rows"]).reshape(-1, 5).tolist()]
        interval._xs = _unpack(state["xs"]).tolist()
        return interval


class _Settlement:
    """The factors of many blocks and all grid drops at once: rows are blocks, columns the processes that are ``live``.

    The first half of the processes tests "at most this drop" (direction -1), the second "at least" (+1). Centres are m
    and t m: see ``betting`` for why any centre will do.
    """

    def __init__(self, rows: Floats, xs: Floats, hi: float, live: NDArray[np.bool_]) -> None:
        self._k, self._kc, y, self._m, self._s2 = (rows[:, i : i + 1] for i in range(5))
        self._hi = hi
        t_low, t_high = _T[live[:_N]], _T[live[_N:]]
        centre_low, centre_high = self._m * t_low, self._m * t_high
        share_low, share_high = t_low / self._k, t_high / self._k
        low = np.maximum(hi - centre_low, self._m * share_low)  # what one unit of a bet loses at worst
        high = np.maximum(centre_high, (hi - self._m) * share_high)
        self._cap: Floats = 0.95 / np.concatenate([low, high], axis=1)
        self._gain: Floats = np.concatenate([centre_low - y, y - centre_high], axis=1)
        self._share: Floats = np.concatenate([share_low, -share_high], axis=1)
        self._sizes = rows[:, 0].astype(np.intp)
        self._most = int(self._sizes.max())
        present = np.arange(self._most) < self._sizes[:, None]
        self._gaps = np.zeros(present.shape)
        self._gaps[present] = xs - np.repeat(rows[:, 3], self._sizes)

    def scale(self, unit: Unit) -> Floats:
        """What effects are multiples of, for each block."""
        if unit == "mean":
            return self._m
        return np.array([[1.0 if unit == "one" else rarer(m / self._hi) * self._hi] for m in self._m[:, 0]])

    def factors(self, delta: Floats) -> Floats:
        """The factors of one bet, for each block and process."""
        bet: Floats = np.minimum(delta / (self._s2 * (1.0 / self._k + 1.0 / self._kc) + delta * delta), self._cap)
        stakes = bet * self._share
        wins: Floats = 1.0 + bet * self._gain
        for j in range(self._most):
            rows = slice(None) if (self._sizes > j).all() else np.flatnonzero(self._sizes > j)
            wins[rows] *= 1.0 + stakes[rows] * self._gaps[rows, j : j + 1]
        return wins


def _pack(values: Floats) -> str:
    return b64encode(values.astype("<f8").tobytes()).decode()


def _unpack(text: str) -> Floats:
    return np.frombuffer(b64decode(text), dtype="<f8").astype(np.float64)
