"""Is the canary's p99 higher than the baseline's: a sequential test of exceedances, on single calls or whole readings.

Values are known by bin (``evalpipe.sketch``, 1 % wide). A call exceeds if its bin is above that of q, the baseline's
quantile among past calls; q is refreshed between blocks only, so it is known before the calls that it is compared with,
and any q is valid (the test is of the share of calls above q; a q that is off costs speed). Two tests run on the same
blocks, with the bets of ``evalpipe.stats.exceedance``:

* harm: the canary exceeds q more often than the baseline. Null: not more often.
* safe: the canary exceeds q x (1 + margin) less often than the baseline exceeds q. Null: not less often, as is the case
  where the canary's quantile is that of the baseline x (1 + margin) or more.

The estimate for people, and for the second key, is the ratio of the quantiles of the two arms' calls, each block with
weight n_b n_c / (n_b + n_c), so that a ramp plus a drift of both arms does not bias it.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import floor
from typing import Any, Final

from evalpipe.sketch import bin_of, bin_value, bins_of_ratio
from evalpipe.stats.exceedance import DELTAS, WEIGHTS, CountMatcher, Counts, PastRate, RateBets
from evalpipe.stats.matching import Arm

WARM_UP: Final = 500
"""Baseline calls before the first bet, where nothing is known of the baseline's quantile: with fewer q is far off, with
more the wait costs more than a better q gains."""
TRUSTED: Final = 5_000
"""Baseline calls from which they say more than what was known before."""
ASTRAY: Final = 1.5
"""Baseline calls above q, in units of the nominal share, from which q is no such quantile any more: nothing
is said to be safe by it (a canary's p90 may be fine while its p99 is not), and it is taken anew as soon as can be."""
REFRESH: Final = 1.1
"""The quantile is taken anew when the baseline's calls have grown by this factor."""
SAFE_DELTAS: Final = (0.25, 0.4, 0.6)
"""Bets that the canary's share beyond q x (1 + margin) is lower by this part of the rate."""
SAFE_WEIGHTS: Final = (0.3, 0.4, 0.3)
_PRIOR: Final = 300.0
_PRIOR_KNOWN: Final = 2_000.0
"""Calls that the nominal rate counts for against the rate seen: where q is learnt, and where it is known."""
_TAIL: Final = 140
"""Bins below that of q by so many (a quarter of q) are kept as one: only the tail matters."""


class Histogram:
    """Weighted counts by bin."""

    __slots__ = ("bins", "total")

    def __init__(self) -> None:
        self.bins: dict[int, float] = {}
        self.total = 0.0

    def add(self, bins: Mapping[int, int], weight: float) -> None:
        """Add counts, each with ``weight``."""
        mine = self.bins
        for key, count in bins.items():
            mine[key] = mine.get(key, 0.0) + count * weight
            self.total += count * weight

    def above(self, key: int) -> float:
        """Weight in the bins above ``key``."""
        return sum(weight for at, weight in self.bins.items() if at > key)

    def position(self, quantile: float) -> float:
        """Where the quantile is, in bins: 7.25 is a quarter into bin 8 on the logarithmic scale."""
        left, key = (1.0 - quantile) * self.total, 0
        for key in sorted(self.bins, reverse=True):
            weight = self.bins[key]
            if weight >= left:
                return key - left / weight
            left -= weight
        return float(key)

    def fold_below(self, key: int) -> None:
        """Keep what is below bin ``key`` as if it were in it."""
        below = [at for at in self.bins if at < key]
        if below:
            self.bins[key] = self.bins.get(key, 0.0) + sum(self.bins.pop(at) for at in below)

    def to_state(self) -> list[Any]:
        """Keys, weights and the total."""
        return [list(self.bins), list(self.bins.values()), self.total]

    @classmethod
    def from_state(cls, state: list[Any]) -> Histogram:
        """The inverse of ``to_state``."""
        new = cls()
        new.bins, new.total = dict(zip(state[0], state[1], strict=True)), state[2]
        return new


class QuantileShift:
    """The sequential quantile test of two arms.

    Args:
        quantile: in (0, 1); .99 is the p99.
        margin: of ``safe``: a share of the baseline's quantile, or in its unit if not ``relative``.
        known: the baseline's quantile if it is known; else nothing is bet before it has 500 calls.
        least: calls of the smaller arm in a block, at least.
    """

    __slots__ = ("_at", "_least", "_limit", "_margin", "_matcher", "_next", "_past", "_pending", "_quantile",
                 "_relative", "arms", "harm", "n_blocks", "n_matched", "n_tested", "safe", "seen")  # fmt: skip

    def __init__(
        self,
        quantile: float = 0.99,
        margin: float = 0.2,
        *,
        relative: bool = True,
        known: float | None = None,
        least: int = 1,
    ) -> None:
        if not 0.0 < quantile < 1.0 or not margin > 0.0:
            raise ValueError(f"quantile must be in (0, 1) and margin positive, not {quantile!r} and {margin!r}")
        size = (1.0 - quantile) / 0.01
        room = 0.5 * quantile
        self.harm = RateBets(1, tuple(min(delta * size, room) for delta in DELTAS), WEIGHTS)
        self.safe = RateBets(-1, SAFE_DELTAS, SAFE_WEIGHTS)
        self.arms = (Histogram(), Histogram())
        self.n_blocks = self.n_tested = 0
        self.n_matched = [0, 0]
        self.seen = [0, 0]
        self._past = PastRate(1.0 - quantile, _PRIOR if known is None else _PRIOR_KNOWN)
        self._matcher = CountMatcher(least)
        self._pending: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self._quantile, self._margin, self._relative, self._least = quantile, margin, relative, least
        self._at: int | None = None
        self._limit = 0
        self._next = float(WARM_UP if known is None else TRUSTED)
        if known is not None:
            self._aim(bin_of(known))

    def add(self, arm: Arm, value: float) -> bool:
        """Take one call, in order of arrival; True if a block was completed.

        Raises:
            ValueError: unknown arm, or a value that is no number.
        """
        return self.add_bins(arm, {bin_of(value): 1})

    def add_bins(self, arm: Arm, bins: Mapping[int, int]) -> bool:
        """Take a reading: calls by bin of ``evalpipe.sketch``; True if a block was completed."""
        n = sum(bins.values())
        if not n:
            return False
        canary = arm == "canary"
        at, limit = self._at, self._limit
        exceed = beyond = 0
        if at is not None:
            exceed = sum(count for key, count in bins.items() if key > at)
            beyond = sum(count for key, count in bins.items() if key > limit) if canary else 0
        pending = self._pending[canary]
        for key, count in bins.items():
            pending[key] = pending.get(key, 0) + count
        self.seen[canary] += n
        block = self._matcher.add(arm, n, exceed, beyond)
        if block is None:
            return False
        self._settle(block)
        return True

    def split_changed(self) -> None:
        """The ramp moved: what waits is settled as it is, and the ratio of the arms is learnt anew."""
        block = self._matcher.flush()
        if block is not None:
            self._settle(block)
        self._pending = ({}, {})
        self._matcher.forget_ratio()

    def _settle(self, block: Counts) -> None:
        if self._at is not None:
            rate = self._past.value
            self.harm.update(block, rate)
            if not self._astray:
                self.safe.update(block._replace(e_canary=block.beyond), rate, rate)
            self.n_tested += block.n_canary
        n_b, n_c = block.n_baseline, block.n_canary
        self.n_blocks += 1
        self.n_matched[0] += n_b
        self.n_matched[1] += n_c
        weights = (n_c / (n_b + n_c), n_b / (n_b + n_c))
        for histogram, pending, weight in zip(self.arms, self._pending, weights, strict=True):
            histogram.add(pending, weight)
        self._past.add(n_b * weights[0], block.e_baseline * weights[0])
        self._pending = ({}, {})
        if self.n_matched[0] >= (WARM_UP if self._astray else self._next):
            self._next = self.n_matched[0] * REFRESH
            self._aim(floor(self.arms[0].position(self._quantile)) + 1)

    @property
    def _astray(self) -> bool:
        """Far more of the baseline's calls are above q than should be, as known so far."""
        return self._at is not None and self._past.value > ASTRAY * (1.0 - self._quantile)

    def _aim(self, at: int) -> None:
        """Take the upper edge of bin ``at`` as q."""
        q = bin_value(at)
        ratio = 1.0 + (self._margin if self._relative else self._margin / q)
        self._at, self._limit = at, at + floor(bins_of_ratio(ratio))
        self._past.start(self.arms[0].total, self.arms[0].above(at))
        for histogram in self.arms:
            histogram.fold_below(at - _TAIL)

    @property
    def threshold(self) -> float | None:
        """q: what the baseline's calls are compared with; None while it is being learnt."""
        return None if self._at is None else bin_value(self._at)

    @property
    def quantiles(self) -> tuple[float | None, float | None]:
        """Quantiles of the compared calls: baseline, canary."""
        baseline, canary = (bin_value(arm.position(self._quantile)) if arm.total > 0.0 else None for arm in self.arms)
        return baseline, canary

    @property
    def change(self) -> float | None:
        """Relative change of the canary's quantile: .2 is 20 % higher; None while nothing is compared."""
        baseline, canary = self.quantiles
        return None if baseline is None or canary is None else canary / baseline - 1.0

    def to_state(self) -> dict[str, Any]:
        """All of it as JSON-safe values, apart from what the constructor takes."""
        return {
            "harm": self.harm.to_state(),
            "safe": self.safe.to_state(),
            "arms": [arm.to_state() for arm in self.arms],
            "matcher": self._matcher.to_state(),
            "pending": [[list(bins), list(bins.values())] for bins in self._pending],
            "counts": [self.n_blocks, self.n_tested, *self.n_matched, *self.seen],
            "past": self._past.to_state(),
            "at": self._at,
            "limit": self._limit,
            "next": self._next,
        }

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of ``to_state``, bit by bit."""
        self.harm.load(state["harm"])
        self.safe.load(state["safe"])
        self.arms = (Histogram.from_state(state["arms"][0]), Histogram.from_state(state["arms"][1]))
        self._matcher.load(state["matcher"])
        baseline, canary = (dict(zip(keys, counts, strict=True)) for keys, counts in state["pending"])
        self._pending = (baseline, canary)
        self.n_blocks, self.n_tested, *counts = state["counts"]
        self.n_matched, self.seen = counts[:2], counts[2:]
        self._past.load(state["past"])
        self._at = state["at"]
        self._limit, self._next = state["limit"], state["next"]
