"""Connecting to Redis from the hook's threads, which are the only ones that load redis-py."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import Any

# Two threads that load redis-py at once can find it half loaded. And a process that forks while a thread loads it would
# have children in which it never is, nor for the application: so a fork waits for the end of that.
_loading = threading.Lock()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_loading.acquire, after_in_parent=_loading.release, after_in_child=_loading.release)


def load() -> None:
    """Import all that the hook's threads need, also what would be imported later: at the first command or record."""
    with _loading, suppress(Exception):  # what is missing is missed, and told of, where it is used
        import codecs
        import email.parser  # noqa: F401 - redis-py reads its own version from its metadata
        import secrets  # noqa: F401 - redis-py, at its first command

        import redis.backoff
        import redis.retry  # noqa: F401

        import evalpipe.hook.finding
        import evalpipe.refusal  # noqa: F401

        codecs.lookup("idna")  # resolving a name imports it


def connect(url: str, *, connect_timeout_s: float, timeout_s: float) -> Any:
    """A ``redis.Redis`` that tries everything once: its callers have their own schedules for trying again."""
    load()
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return Redis.from_url(
        url, socket_connect_timeout=connect_timeout_s, socket_timeout=timeout_s, retry=Retry(NoBackoff(), 0)
    )
