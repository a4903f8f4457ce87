"""Connecting to Redis from the hook's threads, which are the only ones that load redis-py."""

from __future__ import annotations

import os
import threading
from typing import Any

# Two threads that load redis-py at once can find it half loaded. And a process that forks while a thread loads it would
# have children in which it never is, nor for the application: so a fork waits for the end of that.
_loading = threading.Lock()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_loading.acquire, after_in_parent=_loading.release, after_in_child=_loading.release)


def connect(url: str, *, connect_timeout_s: float, timeout_s: float) -> Any:
    """A ``redis.Redis`` that tries everything once: its callers have their own schedules for trying again."""
    with _loading:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

    return Redis.from_url(
        url, socket_connect_timeout=connect_timeout_s, socket_timeout=timeout_s, retry=Retry(NoBackoff(), 0)
    )
