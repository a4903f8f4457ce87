"""A row of the meter: the counts of one release, feature and hour."""

from __future__ import annotations

from typing import Any, Final

from evalpipe.release import Release
from evalpipe.sketch import Sketch

MOST_TOKENS: Final = 1 << 40
"""No call has so many: a number that is larger would spoil the sums of all."""
MOST_CHARS: Final = 200
"""Of the names that tell rows apart: they are keys in every message, and in the store."""
MOST_USD: Final = 1e9
OTHER: Final = "(other)"
"""Stands for what is too much to be told apart."""
SHED: Final = ("buffer", "queue", "oversized", "failed")
"""Why a captured record was not enqueued."""
MAX_REASONS: Final = 16
"""Finish reasons in one row at the most; further ones share ``OTHER``."""
MAX_REASON_CHARS: Final = 64
USERS: Final = 32
"""Who has more than one part in so many of a row's weight is among its heaviest users."""
_TOKENS_PER_USD: Final = 200_000
"""What weighs as much as a dollar: tokens at 5 dollars a million."""
_MOST_SQUARED: Final = 1e6

_SUMS: Final = ("calls", "errors", "sampled", "enqueued", "input_tokens", "output_tokens", "cached_tokens", "cost_usd",
                "cost_squares", "unpriced", "screened", "refusals")  # fmt: skip


def _weight(counted: tuple[str, list[float]]) -> float:
    return counted[1][0]


class Users:
    """The heaviest users of a row: Space-Saving (Metwally, Agrawal, El Abbadi, ICDT 2005), with room made at once.

    There are twice ``USERS`` counters. When all are taken, the lighter half makes room, and each newcomer takes the
    place, and the weight, of one of them: no weight is lost, so who has more than one part in ``USERS`` of all stays.
    What is told of a user is exact since it came in.
    """

    __slots__ = ("_found", "_free")

    def __init__(self) -> None:
        # user -> weight, the row's calls when it came in, and since then: calls, tokens, money
        self._found: dict[str, list[float]] = {}
        self._free: list[float] = []  # weights of those that made room, the lightest last

    def add(self, user: str, tokens: int, cost: float, calls: int) -> None:
        """Count a call; ``calls`` are those of the row before it."""
        weight = tokens + cost * _TOKENS_PER_USD + 1.0
        found = self._found.get(user)
        if found is None:
            if not self._free and len(self._found) >= 2 * USERS:
                self._make_room()
            floor = self._free.pop() if self._free else 0.0
            self._found[user] = [floor + weight, calls, 1, tokens, cost]
            return
        found[0] += weight
        found[2] += 1
        found[3] += tokens
        found[4] += cost

    def _make_room(self) -> None:
        ordered = sorted(self._found.items(), key=_weight, reverse=True)
        self._found = dict(ordered[:USERS])
        self._free = [found[0] for _, found in ordered[USERS:]]

    def to_wire(self) -> dict[str, list[float]]:
        """By user: calls of the row when it came in, and its calls, tokens and dollars since then."""
        return {user: found[1:] for user, found in self._found.items()}


class Row:
    """The counts of one release, feature and hour."""

    __slots__ = (
        *_SUMS, "blocked", "feature", "finish_reasons", "hour", "latency", "quiet", "quiet_since", "release", "shed",
        "touched", "tpot", "ttft", "users",
    )  # fmt: skip
    calls: int
    errors: int
    sampled: int
    enqueued: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost_usd: float
    cost_squares: float
    unpriced: int
    screened: int
    refusals: int

    def __init__(self, release: Release, feature: str, hour: int) -> None:
        self.release = release
        self.feature = feature
        self.hour = hour
        for name in _SUMS:
            setattr(self, name, 0)
        self.touched = 0
        self.quiet = -1
        self.quiet_since = 0.0
        self.shed = dict.fromkeys(SHED, 0)
        self.blocked: dict[str, int] = {}
        self.finish_reasons: dict[str, int] = {}
        self.latency = Sketch()
        self.ttft = Sketch()
        self.tpot = Sketch()
        self.users = Users()

    @property
    def settled(self) -> bool:
        """Whether every sampled record has been enqueued or shed."""
        return self.sampled == self.enqueued + sum(self.shed.values())

    def ended(self, reason: str) -> None:
        """Count a finish reason; what is no word of a provider's is none that should leave the process."""
        counts = self.finish_reasons
        word = len(reason) <= MAX_REASON_CHARS and len(reason.split()) == 1 and "@" not in reason
        if not word or (reason not in counts and len(counts) >= MAX_REASONS):
            reason = OTHER
        counts[reason] = counts.get(reason, 0) + 1

    def used(self, n_in: Any, n_out: Any, n_cached: Any, cost: Any) -> tuple[int, float]:
        """Count tokens and money, as far as they are numbers; returns input and output tokens, and the money."""
        tokens = 0
        if type(n_in) is int and 0 <= n_in < MOST_TOKENS:
            self.input_tokens += n_in
            tokens = n_in
        if type(n_out) is int and 0 <= n_out < MOST_TOKENS:
            self.output_tokens += n_out
            tokens += n_out
        if type(n_cached) is int and 0 <= n_cached < MOST_TOKENS:
            self.cached_tokens += n_cached
        if cost is None or not isinstance(cost, int | float) or not 0 <= cost < MOST_USD:
            cost = 0.0
        elif cost:
            self.cost_usd += cost
            self.cost_squares += cost * cost if cost < _MOST_SQUARED else _MOST_SQUARED**2
        return tokens, cost

    def took(self, latency_ms: float, ttft_ms: float | None, n_out: Any) -> None:
        """Count a latency; of a stream also the time to its first token, and the time of each further one."""
        self.latency.add(latency_ms)
        if ttft_ms is not None:
            self.ttft.add(ttft_ms)
            if type(n_out) is int and n_out > 1:
                self.tpot.add((latency_ms - ttft_ms) / (n_out - 1))

    def to_wire(self, release: dict[str, Any]) -> dict[str, Any]:
        """The row as the meter message has it."""
        return {
            "service": self.release.service,
            "release": release,
            "feature": self.feature,
            "hour": self.hour,
            **{name: getattr(self, name) for name in _SUMS},
            "not_sampled": self.calls - self.sampled,
            "shed": dict(self.shed),
            "blocked": dict(self.blocked),
            "finish_reasons": dict(self.finish_reasons),
            "latency": self.latency.to_wire(),
            "ttft": self.ttft.to_wire(),
            "tpot": self.tpot.to_wire(),
            "users": self.users.to_wire(),
        }
