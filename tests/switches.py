"""A kill switch as the control plane publishes it."""

from __future__ import annotations

import json
import time

import redis

from evalpipe import Hook
from evalpipe.errors import KillSwitchEngaged


def stop(redis_url: str, hook: Hook, feature: str = "chat") -> None:
    """Stop the calls of ``feature``, and wait until the hook has heard of it."""
    service = hook.release.service
    switch = {"name": "stop", "feature": feature, "engaged": True, "reason": "it is wrong", "fail": "open",
              "max_staleness_s": 300, "segment": "", "variant": "", "environment": "", "incident": ""}  # fmt: skip
    document = {"schema": 1, "revision": 1, "service": service, "published_at": time.time(), "switches": [switch],
                "budgets": [], "rollouts": [], "rates": [], "prices": ""}  # fmt: skip
    published = {"document": json.dumps(document), "prices": "", "revision": "1"}
    with redis.Redis.from_url(redis_url) as client:
        client.hset(f"evalpipe.control:{service}", mapping=published)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            hook.call(feature, enforce=True)
        except KillSwitchEngaged:
            return
        time.sleep(0.02)
    raise AssertionError("the hook never heard of the kill switch")
