"""Outbox → world: at least once, signed, on a schedule that is kept in the database."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from evalpipe.channels.base import Channel, Delivery
from evalpipe.channels.schedule import next_attempt
from evalpipe.store import outbox
from evalpipe.store.outbox import Letter
from evalpipe.store.sql import Store, Transaction

LEASE = timedelta(seconds=120)
"""Longer than a whole batch of receivers that hang."""
BATCH = 4


@dataclass(frozen=True, slots=True)
class Sent:
    """What one round of delivery did."""

    delivered: int = 0
    failed: int = 0


class Deliver:
    """The stage, with what it needs.

    Args:
        store: where the outbox is.
        channels: by the name that the outbox uses.
        clock: aware UTC.
    """

    def __init__(self, store: Store, channels: Mapping[str, Channel], clock: Callable[[], datetime]) -> None:
        self._store = store
        self._channels = channels
        self._clock = clock

    def __call__(self) -> Sent:
        """Try every letter that is due, rollbacks first, then the oldest."""
        delivered = failed = 0
        while letters := self._store.patiently(lambda tx: outbox.claim(tx, BATCH, self._clock(), LEASE)):
            for letter in letters:
                delivery = self._send(letter)
                self._settle(letter, delivery)
                delivered += delivery.ok
                failed += not delivery.ok
        return Sent(delivered, failed)

    def _send(self, letter: Letter) -> Delivery:
        channel = self._channels.get(letter.channel)
        if channel is None:
            return Delivery(ok=False, error=f"no channel named {letter.channel!r} is configured", recoverable=True)
        return channel.send(letter.body, event_id=letter.event_id, at=self._clock())

    def _settle(self, letter: Letter, delivery: Delivery) -> None:
        now = self._clock()
        next_at = None
        if not delivery.ok and delivery.recoverable and not delivery.disable:
            made = letter.attempts - letter.schedule_start
            next_at = next_attempt(
                letter.type, made, now, retry_after_s=delivery.retry_after_s, event_id=letter.event_id
            )

        def run(tx: Transaction) -> None:
            outbox.record_attempt(tx, letter, now, delivery, next_at)

        self._store.patiently(run)
