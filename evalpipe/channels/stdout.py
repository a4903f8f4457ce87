"""Notifications on standard output, one JSON object a line: for a laptop, and for a log collector."""

from __future__ import annotations

import sys
from datetime import datetime

from evalpipe.channels.base import Channel, ChannelConfig, Delivery, channels
from evalpipe.notification import Notification, to_cloudevent


@channels.register("stdout")
class Stdout(Channel):
    """Writes each notification's CloudEvent and a line end."""

    Config = ChannelConfig

    def __init__(self, config: ChannelConfig) -> None:
        del config

    def render(self, notification: Notification) -> bytes:
        """The CloudEvent."""
        return to_cloudevent(notification)

    def send(self, body: bytes, *, event_id: str, at: datetime) -> Delivery:
        """Write ``body``."""
        try:
            sys.stdout.write(body.decode() + "\n")
            sys.stdout.flush()
        except OSError as error:
            return Delivery(ok=False, error=f"standard output: {error}", recoverable=True)
        return Delivery(ok=True)
