"""Writing to the queue in Redis: bounded, and never for long. Only the thread that ships comes here."""

from __future__ import annotations

from typing import Final

from evalpipe.hook.connection import Connection, Script

CONNECT_TIMEOUT_S: Final = 1.0
OPERATION_TIMEOUT_S: Final = 2.0

# The length is looked at and the message pushed in one step, so that many processes together keep the bound.
_PUSH: Final = Script("""
if redis.call('LLEN', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
redis.call('LPUSH', KEYS[1], ARGV[2])
return 1
""")


class Transport:
    """A connection to Redis, made at the first message and again after a failure."""

    def __init__(self, url: str, max_messages: int) -> None:
        self._max_messages = max_messages
        self._connection = Connection(url, connect_timeout_s=CONNECT_TIMEOUT_S, timeout_s=OPERATION_TIMEOUT_S)

    def push(self, queue: str, message: bytes) -> bool:
        """Append ``message`` to ``queue``; False if the queue is at its bound, and then nothing was written.

        Raises:
            Exception: Redis cannot be reached, or says no. The message may have been written nevertheless.
        """
        return bool(self._connection.run(_PUSH, [queue], [self._max_messages, message]))

    def close(self) -> None:
        """Drop the connection; the next push makes a new one."""
        self._connection.close()
