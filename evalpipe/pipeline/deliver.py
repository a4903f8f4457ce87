"""Outbox → world: at least once, signed, on a schedule that is kept in the database."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from evalpipe.channels.acting import Acting
from evalpipe.channels.base import Channel, Delivery
from evalpipe.channels.schedule import next_attempt
from evalpipe.store import endpoints, outbox, resending
from evalpipe.store.outbox import Lane, Letter
from evalpipe.store.sql import Store, Transaction

LEASE: Final = timedelta(seconds=20)
"""Longer than one attempt: so soon after a deliverer died another takes its letter."""
ROUND_S: Final = 10.0
"""A round begins nothing new after this long; the next round goes on."""
LOOK_EVERY_S: Final = 0.2
"""While one receiver keeps a round waiting, it looks this often for what has come for the others."""
RESEND_EVERY_S: Final = 30.0
"""So often it looks whether a channel that forgets is to be told again of what fires."""
REST_S: Final = 1.0
"""A lane in which there was nothing to take is left alone for this long: another deliverer is at it."""


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
        self._after = {
            name: after for name, channel in channels.items() if (after := getattr(channel, "resend_after", None))
        }
        self._resent_s: float | None = None

    def __call__(self) -> Sent:
        """Try every letter that is due.

        Each channel has two lanes, what takes a canary out of traffic and the rest; within one the oldest goes first.
        Lanes do not wait for one another: a receiver that hangs costs the others nothing, and what is urgent passes it.
        """
        until = time.monotonic() + ROUND_S
        self._resend()
        running: dict[Future[Sent], Lane] = {}
        rested: dict[Lane, float] = {}
        done: list[Sent] = []
        with ThreadPoolExecutor(thread_name_prefix="deliver", max_workers=64) as threads:
            while True:
                now_s = time.monotonic()
                lanes = self._due() if now_s < until else []
                for lane in lanes:
                    if lane not in running.values() and rested.get(lane, 0.0) <= now_s:
                        running[threads.submit(self._drain, lane, until)] = lane
                if not running:
                    break
                for future in wait(running, timeout=LOOK_EVERY_S, return_when=FIRST_COMPLETED).done:
                    lane, sent = running.pop(future), future.result()
                    done.append(sent)
                    if sent == Sent():
                        rested[lane] = time.monotonic() + REST_S
        return Sent(sum(sent.delivered for sent in done), sum(sent.failed for sent in done))

    def _resend(self) -> None:
        now_s = time.monotonic()
        if self._after and (self._resent_s is None or now_s - self._resent_s >= RESEND_EVERY_S):
            self._resent_s = now_s
            self._store.patiently(lambda tx: resending.resend(tx, self._after, self._clock()))

    def _due(self) -> list[Lane]:
        def look(tx: Transaction) -> list[Lane]:
            outbox.bury(tx, self._clock())
            return outbox.due(tx, self._clock())

        return self._store.patiently(look)

    def _drain(self, lane: Lane, until: float) -> Sent:
        """Send what is due in one lane."""
        delivered = failed = 0
        while time.monotonic() < until and (letter := self._take(lane)) is not None:
            delivery = self._send(letter)
            self._settle(letter, delivery)
            delivered += delivery.ok
            failed += not delivery.ok
        return Sent(delivered, failed)

    def _take(self, lane: Lane) -> Letter | None:
        channel = self._channels.get(lane.channel)

        def is_overtaken(tx: Transaction, letter: Letter, now: datetime) -> bool:
            if isinstance(channel, Acting):
                return outbox.withdraw(tx, letter, now)
            by_episode = getattr(channel, "by_episode", False)
            return getattr(channel, "in_order", False) and resending.outlived(tx, letter, by_episode=by_episode)

        def run(tx: Transaction) -> Letter | None:
            now = self._clock()
            while (letter := outbox.claim(tx, lane, now, LEASE)) is not None:
                if not is_overtaken(tx, letter, now):
                    return letter
            return None

        return self._store.patiently(run)

    def _send(self, letter: Letter) -> Delivery:
        channel = self._channels.get(letter.channel)
        if channel is None:
            return Delivery(ok=False, error=f"no channel named {letter.channel!r} is configured", recoverable=True)
        try:
            return channel.send(letter.body, event_id=letter.event_id, at=self._clock())
        except Exception as problem:  # noqa: BLE001 - another kind of channel rendered it, or it is a plugin with a mistake
            # No more than the kind of it: what a library says may have a secret in it.
            error = f"the channel {letter.channel!r} cannot send this: it raised {type(problem).__name__}"
            return Delivery(ok=False, error=error, recoverable=True)

    def _settle(self, letter: Letter, delivery: Delivery) -> None:
        now = self._clock()
        next_at = None
        if not delivery.ok and delivery.recoverable and not delivery.disable:
            made = letter.attempts - letter.schedule_start
            next_at = next_attempt(
                made, now, urgent=bool(letter.urgent), retry_after_s=delivery.retry_after_s, event_id=letter.event_id
            )
        channel = self._channels.get(letter.channel)

        def run(tx: Transaction) -> None:
            outbox.record_attempt(tx, letter, now, delivery, next_at)
            if isinstance(channel, Acting):
                outbox.make_up(tx, letter, delivery, now)
            if delivery.ok:
                endpoints.went_well(tx, letter.channel, now)
            elif channel is not None:
                endpoints.failed(tx, letter.channel, now, delivery.error, gone=delivery.disable)

        self._store.patiently(run)
