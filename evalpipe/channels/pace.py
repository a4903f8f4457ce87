"""How fast a receiver is told: no faster than it likes, and not at all for as long as it asked for quiet."""

from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta

from evalpipe.channels.base import Delivery


class Pace:
    """The pace of one channel in one process; the lanes of the channel share it.

    Args:
        gap_s: seconds from one attempt to the next.
    """

    def __init__(self, gap_s: float = 0.0) -> None:
        self._gap_s = gap_s
        self._next_s = 0.0
        self._quiet_until: datetime | None = None
        self._lock = threading.Lock()

    def wait(self, at: datetime) -> Delivery | None:
        """Wait for this attempt's turn; a failure instead, if the receiver asked for quiet at ``at``."""
        with self._lock:
            until = self._quiet_until
            now_s = time.monotonic()
            turn_s = max(now_s, self._next_s)
            if until is None or until <= at:
                self._next_s = turn_s + self._gap_s
        if until is not None and until > at:
            left_s = (until - at).total_seconds()
            error = f"not sent: the receiver asked for {left_s:.0f} s of quiet"
            return Delivery(ok=False, error=error, recoverable=True, retry_after_s=left_s)
        time.sleep(turn_s - now_s)
        return None

    def heard(self, delivery: Delivery, at: datetime) -> Delivery:
        """Remember what an answer to an attempt at ``at`` asked for; returns the answer."""
        if delivery.status == 429 and delivery.retry_after_s:
            with self._lock:
                self._quiet_until = at + timedelta(seconds=delivery.retry_after_s)
        return delivery
