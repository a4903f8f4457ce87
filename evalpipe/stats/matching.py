"""From two streams of scores to matched blocks: who is compared with whom.

Matching in time is what keeps the test valid while traffic ramps and quality drifts in both arms alike. Blocks follow
from the order of arrival and nothing else (never from a value), so they are predictable; the order must be that of
sampling, not the order in which judges answered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, Literal, NamedTuple, Self, TypeVar

T = TypeVar("T")

Arm = Literal["baseline", "canary"]

RATIO_GAIN: Final = 0.005
"""Gain of the moving average of the arrivals ratio."""
_RATIO_WARM_UP: Final = 198
"""Arrivals over which a plain average is the quicker one to learn the ratio."""
WAIT_SHARE: Final = 0.7
"""A waiting minority score takes a block once this share of the current ratio is pending."""
MAX_PENDING: Final = 256
"""Scores that may wait in one arm; beyond it the oldest is given up (it costs power, never validity)."""


class Block(NamedTuple):
    """Scores compared with one another: ``k_canary`` canaries of mean ``canary`` and the baselines one by one."""

    baselines: list[float]
    canary: float
    k_canary: int


class Pairing(Generic[T]):
    """Says which arrivals of the two arms are compared; what an arrival is, the caller knows.

    The arm with less traffic waits, first in first out, until ``r_min = max(1, floor(.7 x ratio))`` scores of the other
    arm are pending; if it is the only one waiting it takes all of them. ``ratio`` is a moving average of the arrivals.

    Weights: a score is kept for the test with probability ``weight / max_weight of its arm``, which turns records
    sampled at unequal rates into a plain sample of the traffic, exactly, without widening the range of a score
    (weighted bets would need the mean weight of each arm to be known). The draw is a fixed hash of the arrival's
    number, so that a replay makes the same one. With one rate for an arm leave both at 1: nothing is drawn.
    """

    __slots__ = ("_baselines", "_canaries", "_max_weights", "arrivals", "canary_share", "given_up")

    def __init__(self, max_weights: tuple[float, float] = (1.0, 1.0)) -> None:
        self._max_weights = max_weights
        self._baselines: list[T] = []
        self._canaries: list[T] = []
        self.arrivals = 0
        self.canary_share = 0.5
        self.given_up = 0

    def match(self, arm: Arm, item: T, weight: float = 1.0) -> tuple[list[T], list[T]] | None:
        """Take one arrival; return the baselines and canaries that are compared now, if any. One list is of one.

        Raises:
            ValueError: the arm is unknown, or the weight is not in (0, max_weight of the arm].
        """
        canary = arm == "canary"
        if not canary and arm != "baseline":
            raise ValueError(f"arm must be 'baseline' or 'canary', not {arm!r}")
        self.arrivals = n = self.arrivals + 1
        bound = self._max_weights[canary]
        if weight != bound:
            if not 0.0 < weight <= bound:
                raise ValueError(f"weight of a {arm} score must be in (0, {bound:g}] (its max_weight), not {weight!r}")
            if _uniform(n) >= weight / bound:
                return None
        queue = self._canaries if canary else self._baselines
        queue.append(item)
        if len(queue) > MAX_PENDING:
            del queue[0]
            self.given_up += 1
        self.canary_share += (canary - self.canary_share) * (RATIO_GAIN if n > _RATIO_WARM_UP else 1.0 / (n + 2))
        return self._take() if self._canaries and self._baselines else None

    def _take(self) -> tuple[list[T], list[T]] | None:
        share, baselines, canaries = self.canary_share, self._baselines, self._canaries
        few, many = (canaries, baselines) if share <= 0.5 else (baselines, canaries)
        ratio = (1.0 - share) / share if share <= 0.5 else share / (1.0 - share)
        wanted = int(WAIT_SHARE * ratio) or 1
        if len(many) < wanted:
            return None
        if len(few) == 1:
            self._baselines, self._canaries = [], []
            return baselines, canaries
        one, others = [few.pop(0)], many[:wanted]
        del many[:wanted]
        return (others, one) if share <= 0.5 else (one, others)

    @property
    def pending(self) -> tuple[int, int]:
        """Scores that wait for a partner: baselines, canaries."""
        return len(self._baselines), len(self._canaries)

    def clear(self) -> None:
        """Forget the scores that wait (they cannot be compared with what comes next)."""
        self.given_up += len(self._baselines) + len(self._canaries)
        self._baselines, self._canaries = [], []

    def to_state(self) -> dict[str, Any]:
        """All of it as JSON-safe values."""
        return {
            "max_weights": list(self._max_weights),
            "baselines": list(self._baselines),
            "canaries": list(self._canaries),
            "arrivals": self.arrivals,
            "canary_share": self.canary_share,
            "given_up": self.given_up,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], build: Callable[[Any], T] | None = None) -> Self:
        """The inverse of ``to_state``, bit by bit; ``build`` makes an arrival of what JSON left of it."""
        new = cls((state["max_weights"][0], state["max_weights"][1]))
        new._baselines, new._canaries = list(state["baselines"]), list(state["canaries"])
        if build is not None:
            new._baselines, new._canaries = [*map(build, new._baselines)], [*map(build, new._canaries)]
        new.arrivals, new.canary_share = state["arrivals"], state["canary_share"]
        new.given_up = state["given_up"]
        return new


class Matcher(Pairing[float]):
    """Forms blocks of scores; see ``Pairing``."""

    __slots__ = ()

    def add(self, arm: Arm, value: float, weight: float = 1.0) -> Block | None:
        """Take one score and return the block that it completes, if any.

        Raises:
            ValueError: as ``match``.
        """
        matched = self.match(arm, value, weight)
        if matched is None:
            return None
        baselines, canaries = matched
        k = len(canaries)
        return Block(baselines, canaries[0] if k == 1 else sum(canaries) / k, k)


def _uniform(n: int) -> float:
    """A number in [0, 1) from an arrival's number: the finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    mask = 0xFFFF_FFFF_FFFF_FFFF
    z = (n * 0x9E37_79B9_7F4A_7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58_476D_1CE4_E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB) & mask
    return (z ^ (z >> 31)) / 2.0**64
