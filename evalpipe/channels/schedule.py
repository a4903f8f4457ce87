"""When a failed delivery is tried again. Pure: the schedule's state is in the database.

Source of the delays: Standard Webhooks 1.0.0, "Deliverability and reliability". Its second gap of five minutes is too
slow for what takes a canary out of traffic, whose first minutes count.
"""

from __future__ import annotations

import zlib
from datetime import datetime, timedelta
from typing import Final

STANDARD_S: Final = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Seconds after the first failed attempt, the second, and so on: ten attempts in about three days."""
URGENT_S: Final = (1, 2, 5, 10, 20, 40, 60, *STANDARD_S[1:])
"""What takes a canary out of traffic: eight attempts in the first two and a half minutes, sixteen in all."""
JITTER: Final = 0.1
"""A delay grows by up to this share of itself, so that what failed together does not return together."""
PATIENCE_S: Final = 60
"""A receiver that asks for time (Retry-After) gets it, but it cannot put off what is urgent for longer than this."""


def next_attempt(
    attempts: int, now: datetime, *, urgent: bool = False, retry_after_s: float | None = None, event_id: str = ""
) -> datetime | None:
    """When to try again, or None when the delivery is given up.

    Args:
        attempts: how many have failed, at least one.
        now: when the last one ended.
        urgent: whether it takes a canary out of traffic.
        retry_after_s: what the receiver asked to wait.
        event_id: spreads the deliveries of different events; the same event always gets the same delays.
    """
    delays = URGENT_S if urgent else STANDARD_S
    wish_s = retry_after_s or 0.0
    if urgent:
        wish_s = min(wish_s, PATIENCE_S)
    if attempts > len(delays):
        return None
    spread = zlib.crc32(f"{event_id}:{attempts}".encode()) / 2**32
    delay_s = delays[attempts - 1] * (1 + JITTER * spread)
    return now + timedelta(seconds=max(delay_s, wish_s))
