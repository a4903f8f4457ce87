"""Requests and tokens per minute of a model, over all processes together, kept in Redis.

The generic cell rate algorithm: for each limit Redis holds one instant, the time at which everything that was taken is
paid for. Whoever takes something moves the instant on by what it costs, and may use it when the old one has come. So
places are given in order, nobody polls, and in any stretch of time no more is taken than the limit allows and one chunk
for each process. A process takes up to ``CHUNK_S`` of the rate at once, as its own demand asks for; what it has not
used after ``KEPT_S`` is lost.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Final

CHUNK_S: Final = 0.25
KEPT_S: Final = 1.0
LONGEST_S: Final = 60.0
"""What one taking costs at the most: one call of more tokens than a minute has must not stop the fleet for longer."""
BLIND_S: Final = 5.0
"""After Redis failed, calls go on without a fleet-wide limit for so long before it is asked again."""
FIRST_OUTPUT: Final = 200.0
"""Tokens that an answer is thought to have before the first one has come."""
MEMORY: Final = 0.05
"""Weight of the newest call in running means."""

# Redis's own clock, so that the clocks of workers do not matter. The instants are whole microseconds, below 2^53.
_TAKE: Final = """
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local wait = 0
for i, key in ipairs(KEYS) do
  local from = math.max(tonumber(redis.call('GET', key) or '0'), now)
  local to = from + tonumber(ARGV[i])
  wait = math.max(wait, from - now)
  redis.call('SET', key, string.format('%.0f', to), 'PX', math.ceil((to - now) / 1000) + 1000)
end
return wait
"""

log = logging.getLogger("evalpipe")


class Fleet:
    """The Redis that all processes share. Without it, calls go on without a limit over the fleet, and that is logged.

    Args:
        url: of Redis.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: Any = None
        self._script: Any = None
        self._blind_until_s = 0.0
        self._is_blind = False

    @property
    def is_blind(self) -> bool:
        """Whether Redis failed just now."""
        return time.monotonic() < self._blind_until_s

    async def take(self, costs: dict[str, float]) -> float | None:
        """Take from each limit what costs so many seconds of it.

        Returns:
            Seconds to wait before it may be used; None if Redis does not answer.
        """
        from redis.exceptions import RedisError

        if self._client is None:
            self._open()
        try:
            args = [f"{min(seconds, LONGEST_S) * 1e6:.0f}" for seconds in costs.values()]
            wait = await self._script(keys=list(costs), args=args)
        except (RedisError, OSError) as error:
            self._blind_until_s = time.monotonic() + BLIND_S
            if not self._is_blind:
                log.warning("judges go on without limits over the whole fleet, for want of Redis: %s", error)
            self._is_blind = True
            return None
        if self._is_blind:
            log.info("judges keep to limits over the whole fleet again")
            self._is_blind = False
        return float(wait) / 1e6

    async def aclose(self) -> None:
        """Hang up, on the loop that was used."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _open(self) -> None:
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        retry = Retry(NoBackoff(), 1)  # a connection that was closed while idle
        self._client = Redis.from_url(self._url, socket_connect_timeout=1.0, socket_timeout=1.0, retry=retry)
        self._script = self._client.register_script(_TAKE)


class Rates:
    """One process's part of the limits of one model.

    Args:
        fleet: where the limits are kept.
        name: of the model, for the keys.
        rpm, tpm: requests and tokens per minute; None for no limit.
    """

    def __init__(self, fleet: Fleet, name: str, *, rpm: float | None, tpm: float | None) -> None:
        self._fleet = fleet
        self._keys = f"evalpipe:rate:{{{name}}}:requests", f"evalpipe:rate:{{{name}}}:tokens"
        self._rpm, self._tpm = rpm, tpm
        self._requests = self._tokens = 0.0
        self._usable_at_s = self._lost_at_s = self._asked_at_s = 0.0
        self._used = self._waiting = 0
        self._output = FIRST_OUTPUT
        self._cost = 0.0
        self._lock = asyncio.Lock()

    def tokens_of(self, prompt_bytes: int) -> float:
        """What a call will cost: about four bytes a token, and an answer like those before."""
        return prompt_bytes / 4.0 + self._output

    def take_now(self, tokens: float) -> bool:
        """Take one call of so many tokens, if there is no need to wait."""
        if self._waiting or not self._has_room(time.monotonic()):
            return self._fleet.is_blind
        self._use(tokens)
        return True

    async def take(self, tokens: float) -> None:
        """Take one call of so many tokens, in turn."""
        self._waiting += 1
        try:
            async with self._lock:
                while not self._has_room(time.monotonic()):
                    if self._fleet.is_blind or not await self._fill(tokens):
                        return
                self._use(tokens)
        finally:
            self._waiting -= 1

    def took(self, thought: float, tokens: int, output_tokens: int) -> None:
        """Correct what a call was thought to cost: too little is owed with the next taking."""
        self._tokens += thought - tokens
        self._output += MEMORY * (output_tokens - self._output)

    def _has_room(self, now_s: float) -> bool:
        if now_s >= self._lost_at_s:
            self._requests, self._tokens = 0.0, min(self._tokens, 0.0)
            return False
        requests = self._rpm is None or self._requests >= 1.0
        return requests and (self._tpm is None or self._tokens > 0.0) and now_s >= self._usable_at_s

    def _use(self, tokens: float) -> None:
        self._used += 1
        self._requests -= 1.0
        self._tokens -= tokens
        self._cost = self._cost + MEMORY * (tokens - self._cost) if self._cost else tokens

    async def _fill(self, tokens: float) -> bool:
        """Take a chunk from the fleet, and wait until it may be used; False if Redis does not answer."""
        now_s = time.monotonic()
        if self._usable_at_s <= now_s:
            calls = self._chunk(now_s)
            requests = max(0.0, calls - max(0.0, self._requests))
            wanted = max(tokens, calls * self._cost) - self._tokens
            costs = {}
            if self._rpm is not None:
                costs[self._keys[0]] = requests * 60.0 / self._rpm
            if self._tpm is not None:
                costs[self._keys[1]] = max(0.0, wanted) * 60.0 / self._tpm
            wait_s = await self._fleet.take(costs)
            if wait_s is None:
                return False
            self._asked_at_s, self._used = now_s, 0
            self._usable_at_s = time.monotonic() + wait_s
            self._lost_at_s = self._usable_at_s + KEPT_S
            self._requests += requests
            self._tokens += max(0.0, wanted)
        # What was taken stays ours if this wait is cancelled: the next in turn goes on with it.
        await asyncio.sleep(max(0.0, self._usable_at_s - time.monotonic()))
        return True

    def _chunk(self, now_s: float) -> float:
        """Calls to take: those that wait, and as many as were made in ``CHUNK_S``, within ``CHUNK_S`` of the rates."""
        calls = self._waiting + self._used * CHUNK_S / max(CHUNK_S, now_s - self._asked_at_s)
        if self._rpm is not None:
            calls = min(calls, self._rpm / 60.0 * CHUNK_S)
        if self._tpm is not None and self._cost:
            calls = min(calls, self._tpm / 60.0 * CHUNK_S / self._cost)
        return max(1.0, calls // 1.0)
