"""What the meter counted of a place over a window, and the values that a rule can watch. Read by way of ``view``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from evalpipe.sketch import Sketch

CALL_SUMS: Final = ("calls", "errors", "tokens", "cost_usd", "cost_squares", "screened", "refusals", "blocked",
                    "unpriced")  # fmt: skip
"""What the meter adds up over all calls; ``cost_squares`` is the sum of the squares of what each call cost."""
CALL_SKETCHES: Final = ("latency", "ttft", "tpot")
"""What it keeps quantile sketches of, in ms."""


class Sketches(Mapping[str, Sketch]):
    """The sum of sketches that are read when one is asked for: most rules look at nothing but sums."""

    __slots__ = ("_found", "_parts")

    def __init__(self, *parts: Callable[[], Mapping[str, Sketch]]) -> None:
        self._parts = [*parts]
        self._found: dict[str, Sketch] | None = None

    def add(self, part: Callable[[], Mapping[str, Sketch]]) -> None:
        """One more."""
        self._parts.append(part)
        self._found = None

    def __getitem__(self, name: str) -> Sketch:
        if self._found is None:
            self._found = {name: Sketch() for name in CALL_SKETCHES}
            for part in self._parts:
                for of, sketch in part().items():
                    self._found[of].merge(sketch)
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(CALL_SKETCHES)

    def __len__(self) -> int:
        return len(CALL_SKETCHES)


@dataclass(slots=True)
class Calls:
    """What the meter counted on 100 % of the calls of a place over a window.

    Attributes:
        seconds: how long the window is, as far as the meter covers it.
        sums: ``CALL_SUMS`` by name.
        sketches: ``CALL_SKETCHES`` by name, in ms.
    """

    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CALL_SUMS, 0.0))
    sketches: Mapping[str, Sketch] = field(default_factory=lambda: {name: Sketch() for name in CALL_SKETCHES})

    @property
    def n(self) -> int:
        """Calls in the window."""
        return int(self.sums["calls"])

    def per_minute(self, name: str) -> float | None:
        """A sum as a rate; None for a window without length."""
        return self.sums[name] * 60.0 / self.seconds if self.seconds > 0 else None

    def merge(self, other: Calls) -> None:
        """Add the calls of another place in the same window."""
        self.seconds = max(self.seconds, other.seconds)
        for name, amount in other.sums.items():
            self.sums[name] += amount
        sketches = other.sketches
        if not isinstance(self.sketches, Sketches):
            own = self.sketches
            self.sketches = Sketches(lambda: own)
        self.sketches.add(lambda: sketches)

    def value(self, meter: str) -> float | None:
        """The value of one of ``VALUES``; None where there is nothing to take it of."""
        return VALUES[meter](self)

    def size(self, meter: str) -> int:
        """How many calls the value is of; those that were refused before they were made are calls that were wanted."""
        return self.n + (int(self.sums["blocked"]) if meter == "blocked_per_minute" else 0)


def _ratio(part: str, whole: str) -> Callable[[Calls], float | None]:
    return lambda seen: seen.sums[part] / seen.sums[whole] if seen.sums[whole] else None


def _a_minute(name: str) -> Callable[[Calls], float | None]:
    return lambda seen: seen.per_minute(name)


def _p99(name: str) -> Callable[[Calls], float | None]:
    return lambda seen: seen.sketches[name].quantile(0.99)


VALUES: Final[Mapping[str, Callable[[Calls], float | None]]] = {
    "error_rate": _ratio("errors", "calls"),
    "refusal_rate": _ratio("refusals", "screened"),
    "latency_p99_ms": _p99("latency"),
    "ttft_p99_ms": _p99("ttft"),
    "tpot_p99_ms": _p99("tpot"),
    "cost_usd_per_minute": _a_minute("cost_usd"),
    "tokens_per_minute": _a_minute("tokens"),
    "calls_per_minute": _a_minute("calls"),
    "blocked_per_minute": _a_minute("blocked"),
}
"""What an alert rule can watch on all calls, by name."""
