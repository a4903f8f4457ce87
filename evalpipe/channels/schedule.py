"""When a failed delivery is tried again. Pure: the schedule's state is in the database.

Source of the delays: Standard Webhooks 1.0.0, "Deliverability and reliability". Its second gap of five minutes is too
slow for a rollback, whose first minutes count.
"""

from __future__ import annotations

import zlib
from datetime import datetime, timedelta
from typing import Final

from evalpipe.notification import ROLLBACK

STANDARD_S: Final = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Seconds after the first failed attempt, the second, and so on: ten attempts in about three days."""
ROLLBACK_S: Final = (1, 2, 5, 10, 20, 40, 60, *STANDARD_S[1:])
"""The same for a rollback: eight attempts in the first two and a half minutes, sixteen in all."""
JITTER: Final = 0.1
"""A delay grows by up to this share of itself, so that what failed together does not return together."""
ROLLBACK_PATIENCE_S: Final = 60
"""A receiver that asks for time (Retry-After) gets it, but it cannot put off a rollback for longer than this."""


def next_attempt(
    event_type: str, attempts: int, now: datetime, *, retry_after_s: float | None = None, event_id: str = ""
) -> datetime | None:
    """When to try again, or None when the delivery is given up.

    Args:
        event_type: the notification's type.
        attempts: how many have failed, at least one.
        now: when the last one ended.
        retry_after_s: what the receiver asked to wait.
        event_id: spreads the deliveries of different events; the same event always gets the same delays.
    """
    delays = ROLLBACK_S if event_type == ROLLBACK else STANDARD_S
    wish_s = retry_after_s or 0.0
    if event_type == ROLLBACK:
        wish_s = min(wish_s, ROLLBACK_PATIENCE_S)
    if attempts > len(delays):
        return None
    spread = zlib.crc32(f"{event_id}:{attempts}".encode()) / 2**32
    delay_s = delays[attempts - 1] * (1 + JITTER * spread)
    return now + timedelta(seconds=max(delay_s, wish_s))
