"""A line that a value crosses, for the detectors that have one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evalpipe.detectors.base import Finding
from evalpipe.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Line:
    """Exactly one of ``below`` and ``above``; the value itself is not beyond it.

    Raises:
        ConfigError: none is given, or both.
    """

    detector: str
    below: float | None
    above: float | None

    def __post_init__(self) -> None:
        """Refuse what is no line."""
        if (self.below is None) == (self.above is None):
            raise ConfigError(f"{self.detector}: needs exactly one of 'below' and 'above'")

    @property
    def at(self) -> float:
        """Where it is."""
        line = self.below if self.below is not None else self.above
        assert line is not None
        return line

    @property
    def words(self) -> str:
        """``below 0.8``."""
        return f"{'below' if self.below is not None else 'above'} {self.at:g}"

    def crossed(self, value: float) -> bool:
        """Whether a value is strictly beyond it."""
        return value < self.at if self.below is not None else value > self.at

    def finding(self, value: float, n: int, said: str, numbers: Mapping[str, Any]) -> Finding:
        """What was found where the value is known."""
        return Finding(
            violated=self.crossed(value),
            value=value,
            n=n,
            reason=f"{said} ({self.words})",
            ratio=value / self.at if self.at > 0 else None,
            threshold=self.at,
            numbers={**numbers, "line": self.words},
        )
