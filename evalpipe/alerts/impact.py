"""How much of a service's traffic an alert affects, with its interval.

The traffic is cut into parts: each variant and feature of the service in its environment. Those outside of the alert's
place are not affected. Inside, a part of which nobody keeps scores of its own (cost, latency, drift) is affected whole;
the others are tested one by one, each against its own normal: proven affected, proven fine, or unknown. The interval
reaches from what is proven affected to what is not proven fine, widened by Wilson's interval of a share, since the
calls of a window are a sample of the traffic to come. The estimate is the likeliest: an unknown part is affected if it
has moved rather as far as those that are than not at all; one with too few scores counts as the others do (half and
half as one part's worth, after Jeffreys).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Final, Literal

from evalpipe.detectors.view import Stretch

Standing = Literal["affected", "fine", "unknown"]

Z: Final = 1.96
"""Two-sided 95 %."""
FEWEST: Final = 8
"""Scores below which nothing is said of a part."""
_Z_BY_PARTS: Final = (1.96, 2.24, 2.39, 2.50, 2.58, 2.64, 2.69, 2.73, 2.77, 2.81)
"""Normal quantiles of 1 - 0.025 / k: with k parts tested, all intervals hold together with 95 % (Bonferroni)."""
_Z_MANY: Final = 3.3


@dataclass(frozen=True, slots=True)
class Part:
    """One variant and feature of a service: how many calls it had, and how it stands.

    Attributes:
        calls: in the window.
        standing: what is proven.
        guess: where nothing is, whether it is likelier affected; None if nothing is known of it at all.
    """

    calls: float
    standing: Standing
    guess: bool | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """Of the service's traffic, 0 to 1, with its 95 % interval."""

    estimate: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """JSON-safe, to four digits."""
        return {name: round(getattr(self, name), 4) for name in ("estimate", "low", "high")}


def share_of(parts: Sequence[Part]) -> Share | None:
    """The share that is affected; None without a call."""
    total = sum(part.calls for part in parts)
    if total <= 0:
        return None
    bad = sum(part.calls for part in parts if part.standing == "affected")
    unknown = sum(part.calls for part in parts if part.standing == "unknown")
    known = [_as_known(part) for part in parts if part.standing != "unknown" or part.guess is not None]
    pooled = (sum(known) + 0.5) / (len(known) + 1.0)
    guessed = sum(
        part.calls * (pooled if part.guess is None else part.guess) for part in parts if part.standing == "unknown"
    )
    return Share(
        estimate=(bad + guessed) / total,
        low=wilson(bad, total)[0],
        high=wilson(bad + unknown, total)[1],
    )


def _as_known(part: Part) -> float:
    return float(part.standing == "affected" or bool(part.guess))


def standings(
    parts: Sequence[tuple[Stretch | None, Stretch | float | None]], drop: float
) -> list[tuple[Standing, bool | None]]:
    """How each part stands, and the guess where nothing is proven; see ``Part``.

    Args:
        parts: of each, its scores in the window, and those where all is well (or the line that was crossed).
        drop: by how much the whole place differs from normal, signed: a part is fine if it is proven to differ by less
            than half of that, or of what is proven of the part that differs most.
    """
    gaps = [_gap(seen, normal, 1.0 if drop > 0 else -1.0, len(parts)) for seen, normal in parts]
    proven = [gap - reach for gap, reach in filter(None, gaps)]
    enough = max([abs(drop), *proven]) / 2.0
    found = [_standing(gap, enough) for gap in gaps]
    if all(standing == "fine" for standing, _ in found):
        return [("unknown", None) for _ in found]  # the whole has moved, so some part has
    return found


def _gap(seen: Stretch | None, normal: Stretch | float | None, sign: float, n_parts: int) -> tuple[float, float] | None:
    """By how much a part differs in the direction of ``sign``, and how far the interval reaches to both sides."""
    one, other = _moments(seen), (normal, 0.0) if isinstance(normal, float) else _moments(normal)
    if one is None or other is None:
        return None
    return sign * (one[0] - other[0]), z_of(n_parts) * sqrt(one[1] + other[1])


def _standing(gap: tuple[float, float] | None, enough: float) -> tuple[Standing, bool | None]:
    if gap is None:
        return "unknown", None
    moved, reach = gap
    if moved + reach < enough:
        return "fine", None
    if moved - reach > 0.0:
        return "affected", None
    return "unknown", moved >= enough


def z_of(n_parts: int) -> float:
    """How many standard errors each of so many intervals reaches, so that all hold together with 95 %."""
    return _Z_BY_PARTS[n_parts - 1] if 1 <= n_parts <= len(_Z_BY_PARTS) else _Z_MANY


def _moments(stretch: Stretch | None) -> tuple[float, float] | None:
    """Mean, and the variance of it: of a ratio of weighted sums, for scores that may come in clusters."""
    if stretch is None:
        return None
    r = stretch.rollup
    if r.n_scored < FEWEST or r.sum_w <= 0 or r.mean is None:
        return None
    mean = r.mean
    spread = r.sum_w2x2 - 2.0 * mean * r.sum_w2x + mean * mean * r.sum_w2
    # As if one more score had been seen a half away: where all agree, the next one still may not.
    smoothed = max(0.0, spread) + 0.25 * r.sum_w2 / r.n_scored
    return mean, stretch.design_effect * smoothed / (r.sum_w * r.sum_w)


def wilson(count: float, total: float) -> tuple[float, float]:
    """A share with Wilson's score interval (1927) of 95 %; ``total`` is above 0."""
    p, z2 = count / total, Z * Z
    middle = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = Z / (1 + z2 / total) * sqrt(p * (1 - p) / total + z2 / (4 * total * total))
    return max(0.0, middle - half) if count > 0 else 0.0, min(1.0, middle + half) if count < total else 1.0
