"""What processes have leased of each account: counters in Redis, changed by one script for all that wait.

A counter is a string ``evalpipe.budget:<service>:<budget>:<window's beginning>:<hash of whose it is>``: units that are
leased or were spent, of all processes together.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from evalpipe.hook.connection import Connection, Script
from evalpipe.hook.document import Budget

BATCH: Final = 500
"""Accounts in one script at the most: Redis serves nobody else meanwhile."""
GRACE_S: Final = 60
"""Counters live so much longer than their window, for clocks that differ."""

# All accounts in one step. The epoch names the memory of this Redis: where it is another one, the counters were lost,
# and nothing that was computed from them may be applied.
_BOOK: Final = Script("""
local epoch = redis.call('GET', KEYS[1])
if not epoch then
  epoch = ARGV[1]
  redis.call('SET', KEYS[1], epoch)
end
if ARGV[2] ~= '' and ARGV[2] ~= epoch then return {epoch} end
local answer = {epoch}
for i = 2, #KEYS do
  local at = 4 * i - 5
  local limit, debit, want = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local leased = tonumber(redis.call('GET', KEYS[i]) or '0')
  local left = limit - leased - debit
  local room = math.min(want, left)
  local change = math.max(debit + math.max(0, room), -leased)
  if change ~= 0 then
    redis.call('INCRBY', KEYS[i], string.format('%.0f', change))
    redis.call('PEXPIRE', KEYS[i], ARGV[at + 3])
  end
  answer[i] = left
end
return answer
""")


class Account:
    """What one process knows of one account, in units.

    Attributes:
        place: its key in the table: the budget's name, whose it is, and the window's beginning in seconds since 1970.
        leased: what Redis has booked for this process.
        used: what was spent, and what is reserved.
        under_way: reservations.
        left: what Redis had left for all when it was last asked; before that the limit.
        exhausted: Redis had less than was asked for.
        asked_at, used_at: monotonic times.
        closed: it is no longer in the table; what is settled now is debited by itself.
    """

    __slots__ = ("asked_at", "budget", "closed", "exhausted", "leased", "left", "place", "under_way", "used", "used_at")

    def __init__(self, budget: Budget, place: tuple[str, str, int]) -> None:
        self.budget = budget
        self.place = place
        self.leased = self.used = self.under_way = 0
        self.left = budget.units
        self.exhausted = self.closed = False
        self.asked_at = self.used_at = float("-inf")

    @property
    def ends_at(self) -> int:
        """When its window ends, in seconds since 1970."""
        return self.place[2] + self.budget.window_s

    def redis_key(self, service: str) -> str:
        """The key of its counter."""
        from hashlib import sha256  # loads OpenSSL, for those who have budgets

        name, key, start = self.place
        digest = sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return f"evalpipe.budget:{service}:{name}:{start}:{digest}"


class Ask(NamedTuple):
    """What to book for one account: ``debit`` in any case (negative gives back), and up to ``want`` of what is left."""

    account: Account
    debit: int
    want: int


class Counters:
    """The counters of one service. Only the control thread comes here."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._epoch = ""

    def book(self, connection: Connection, asks: Sequence[Ask], now: float) -> list[int] | None:
        """Book what is asked, as far as the limits allow.

        Args:
            connection: to Redis.
            asks: at most ``BATCH``.
            now: seconds since 1970.

        Returns:
            For each, what was left after the debit: so much of what is wanted was booked too; if negative, by how much
            the limit is exceeded. None, and nothing is booked, if Redis has lost its memory: then everything that was
            spent is to be booked anew.

        Raises:
            Exception: Redis cannot be reached, or says no. It may have booked nevertheless.
        """
        keys = [f"evalpipe.budget:{self._service}", *(ask.account.redis_key(self._service) for ask in asks)]
        args: list[Any] = [os.urandom(8).hex(), self._epoch]
        for account, debit, want in asks:
            args += [account.budget.units, debit, want, max(1, int(1000 * (account.ends_at + GRACE_S - now)))]
        epoch, *lefts = connection.run(_BOOK, keys, args)
        known, self._epoch = self._epoch, epoch.decode() if isinstance(epoch, bytes) else str(epoch)
        return [int(left) for left in lefts] if known in {"", self._epoch} else None
