"""How many calls of a judge one process keeps in flight: as many as the provider bears, found by trying."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Final

SHRINK: Final = 0.7
"""What a throttled answer leaves of the limit."""
GROWTH: Final = 1 / 40
"""What an answer adds to a small limit at the most: one more for each round trip would make every other call in vain
where a server bears one at a time."""
LONGEST_PAUSE_S: Final = 60.0
"""A provider that asks for a longer pause is asked again after this one."""


class Aimd:
    """The number of calls in flight: up by one for each round trip that goes well, times ``SHRINK`` when throttled.

    Additive increase and multiplicative decrease share a provider fairly between processes that do not know of one
    another (Chiu and Jain 1989), and follow its capacity as it changes.

    Args:
        most: where it starts, and what it never exceeds; at least 1.

    Attributes:
        limit: calls in flight, from 1 to ``most``; its whole part counts.
    """

    __slots__ = ("_cut_at", "limit", "most")

    def __init__(self, most: int) -> None:
        self.most = float(max(1, most))
        self.limit = self.most
        self._cut_at = float("-inf")

    def answered(self, in_flight: int) -> None:
        """A call went well while so many were in flight: a limit that nobody reaches does not grow."""
        if self.limit < self.most and 2 * in_flight >= self.limit:
            self.limit = min(self.most, self.limit + min(1.0 / self.limit, self.limit * GROWTH))

    def throttled(self, started_s: float, now_s: float) -> None:
        """A call was turned away.

        Args:
            started_s: when it started. Calls that started before the last decrease say nothing about the new limit,
                so there is one decrease for each round trip.
            now_s: of the same clock.
        """
        if started_s >= self._cut_at:
            self.limit = max(1.0, self.limit * SHRINK)
            self._cut_at = now_s


class Slots:
    """Where the calls of one judge wait for a slot, first come, first served; for one event loop.

    Args:
        most: slots, if the provider bears them.

    Attributes:
        in_flight: slots that are taken.
        paused_until_s: on the loop's monotonic clock; until then the provider asked not to be called.
    """

    __slots__ = ("_aimd", "_waiting", "in_flight", "paused_until_s")

    def __init__(self, most: int) -> None:
        self._aimd = Aimd(most)
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.in_flight = 0
        self.paused_until_s = 0.0

    @property
    def limit(self) -> float:
        """Slots that there are now."""
        return self._aimd.limit

    def enter_now(self) -> bool:
        """Take a slot if one is free and nobody waits."""
        if self._waiting or self.in_flight + 1 > self._aimd.limit:
            return False
        self.in_flight += 1
        return True

    async def enter(self) -> None:
        """Take a slot; give it back with ``leave``."""
        if self.enter_now():
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            with suppress(ValueError):
                self._waiting.remove(turn)
            if not turn.cancelled():  # it was given its slot in the same moment
                self.leave()
            raise

    def leave(self) -> None:
        """Give a slot back."""
        self.in_flight -= 1
        self._admit()

    def answered(self) -> None:
        """A call went well."""
        self._aimd.answered(self.in_flight)

    def throttled(self, started_s: float, now_s: float) -> None:
        """A call that started then was turned away now."""
        self._aimd.throttled(started_s, now_s)

    def pause(self, seconds: float, now_s: float) -> None:
        """Start no call for so long, as the provider asks; at the most ``LONGEST_PAUSE_S``."""
        self.paused_until_s = max(self.paused_until_s, now_s + min(seconds, LONGEST_PAUSE_S))

    def _admit(self) -> None:
        while self._waiting and self.in_flight + 1 <= self._aimd.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)
