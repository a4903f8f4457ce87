"""A quantile sketch of positive numbers: latencies in ms, token counts, costs.

A histogram with logarithmic bins (Masson, Rim, Lee: DDSketch, VLDB 2019): every value is known to 0.5 %, whatever the
distribution, and merging adds counts, so the order of merging changes nothing. The rank of the p99 it reports is within
1 % unless more than 1 % of all values lie within 0.5 % of each other there. Standard library only: the hook and the
workers share it.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, log
from typing import Any, Final

from evalpipe.errors import RecordError

ACCURACY: Final = 0.005
"""Greatest relative error of a value that the sketch reports."""
SMALLEST: Final = 1e-6
"""Values up to this one count as zero; it bounds the number of bins at about 3,700."""
LARGEST: Final = 1e10
"""Greater values count as this one."""

_GAMMA: Final = (1.0 + ACCURACY) / (1.0 - ACCURACY)
_PER_LOG: Final = 1.0 / log(_GAMMA)
ZERO_BIN: Final = ceil(log(SMALLEST) * _PER_LOG)
"""The bin of values up to ``SMALLEST``."""


def bin_of(value: float) -> int:
    """The bin that counts ``value``; a greater value is in the same bin or a higher one.

    Raises:
        ValueError: it is NaN.
    """
    if value <= SMALLEST:
        return ZERO_BIN
    return ceil(log(min(value, LARGEST)) * _PER_LOG)


def bin_value(key: float) -> float:
    """The greatest value of bin ``key``; between two bins, a value inside the upper one."""
    value: float = _GAMMA**key
    return value


def bins_of_ratio(ratio: float) -> float:
    """How many bins apart two values of this ratio are."""
    return log(ratio) * _PER_LOG


class Sketch:
    """Counts of values by logarithmic bin; see the module's text for what it promises.

    Attributes:
        count: how many values it holds.
        total: their sum, exact up to floating point.
        low, high: the smallest and greatest value; 0 and 0 while the sketch is empty.
    """

    __slots__ = ("_bins", "_zeros", "count", "high", "low", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.low = 0.0
        self.high = 0.0
        self._zeros = 0
        self._bins: dict[int, int] = {}

    def add(self, value: float, count: int = 1) -> None:
        """Count ``value``. Negative values count as zero, NaN is not counted."""
        if SMALLEST < value <= LARGEST:
            key = ceil(log(value) * _PER_LOG)
            try:
                self._bins[key] += count
            except KeyError:
                self._bins[key] = count
        elif value > LARGEST:
            self.add(LARGEST, count)
            return
        elif value <= SMALLEST:
            value = max(value, 0.0)
            self._zeros += count
        else:  # NaN
            return
        if value > self.high:  # noqa: PLR1730 - max() costs a call, and this is counted on every model call
            self.high = value
        if value < self.low or not self.count:
            self.low = value
        self.count += count
        self.total += value * count

    def merge(self, other: Sketch) -> None:
        """Add all of ``other`` into this one."""
        if not other.count:
            return
        self.low = min(self.low, other.low) if self.count else other.low
        self.high = max(self.high, other.high)
        self.count += other.count
        self.total += other.total
        self._zeros += other._zeros
        bins = self._bins
        for key, count in other._bins.items():
            bins[key] = bins.get(key, 0) + count

    def since(self, earlier: Sketch) -> Sketch:
        """What was added after ``earlier``, a copy of this sketch; its low and high are known to a bin."""
        added = Sketch()
        for key, count in self._bins.items():
            if (more := count - earlier._bins.get(key, 0)) > 0:
                added._bins[key] = more
        added._zeros = max(0, self._zeros - earlier._zeros)
        added.count = added._zeros + sum(added._bins.values())
        added.total = max(0.0, self.total - earlier.total)
        if added._bins:
            added.high = min(self.high, _GAMMA ** max(added._bins))
            added.low = 0.0 if added._zeros else max(self.low, _GAMMA ** (min(added._bins) - 1))
        return added

    @property
    def bins(self) -> dict[int, int]:
        """A copy of the counts by bin, see ``bin_of``; values that count as zero are in ``ZERO_BIN``."""
        return {ZERO_BIN: self._zeros, **self._bins} if self._zeros else dict(self._bins)

    @property
    def mean(self) -> float | None:
        """The mean, or None while the sketch is empty."""
        return self.total / self.count if self.count else None

    def quantile(self, q: float) -> float | None:
        """The value below which a share ``q`` of all values lies, or None while the sketch is empty.

        Args:
            q: from 0 to 1; 0.99 is the p99.
        """
        if not self.count:
            return None
        rank = q * self.count
        below = self._zeros
        if rank <= below:
            return self.low
        for key in sorted(self._bins):
            inside = self._bins[key]
            if below + inside >= rank:
                # Values are taken as evenly spread over the logarithm of their bin.
                value: float = _GAMMA ** (key - 1 + (rank - below) / inside)
                return min(max(value, self.low), self.high)
            below += inside
        return self.high

    def to_wire(self) -> dict[str, Any]:
        """The sketch as a JSON-ready dict: the bins' keys as first key and gaps, with their counts."""
        keys = sorted(self._bins)
        gaps = [key - before for key, before in zip(keys, [0, *keys], strict=False)]
        return {
            "accuracy": ACCURACY,
            "total": self.total,
            "low": self.low,
            "high": self.high,
            "zeros": self._zeros,
            "keys": gaps,
            "counts": [self._bins[key] for key in keys],
        }

    @classmethod
    def from_wire(cls, wire: Any) -> Sketch:
        """The sketch in ``wire``.

        Raises:
            RecordError: it is no sketch, or one with other bins.
        """
        if not isinstance(wire, Mapping) or wire.get("accuracy") != ACCURACY:
            raise RecordError(f"a sketch must be an object of accuracy {ACCURACY}, not {str(wire)[:80]!r}")
        sketch = cls()
        try:
            key = 0
            for gap, count in zip(wire["keys"], wire["counts"], strict=True):
                key += int(gap)
                sketch._bins[key] = int(count)
            sketch._zeros = int(wire["zeros"])
            sketch.total, sketch.low, sketch.high = (float(wire[name]) for name in ("total", "low", "high"))
        except (KeyError, TypeError, ValueError) as error:
            raise RecordError(f"a sketch is damaged: {error!r}") from error
        sketch.count = sketch._zeros + sum(sketch._bins.values())
        return sketch
