"""What the hook's tests share: what arrived in the queue, and whether the counters add up."""

from __future__ import annotations

import json
from typing import Any

import redis

from evalpipe import Hook
from evalpipe.record import Record, decode_batch

NOWHERE = "redis://127.0.0.1:9/0"
"""Nothing listens there."""


class Queue:
    """What hooks wrote to a Redis."""

    def __init__(self, url: str) -> None:
        self.client = redis.Redis.from_url(url)

    def messages(self, queue: str = "evalpipe.ingest") -> list[dict[str, Any]]:
        """All messages of a queue, oldest first."""
        return [json.loads(message) for message in reversed(self.client.lrange(queue, 0, -1))]

    def blobs(self, queue: str = "evalpipe.ingest") -> list[str]:
        """The first argument of each message."""
        return [json.loads(message["body"])[0][0] for message in self.messages(queue)]

    def records(self) -> list[Record]:
        """All records, oldest first."""
        batches = [decode_batch(blob) for blob in self.blobs()]
        assert all(not batch.rejects for batch in batches), batches
        return [record for batch in batches for record in batch.records]

    def meter(self) -> dict[str, Any]:
        """The newest meter message."""
        found: dict[str, Any] = json.loads(self.blobs("evalpipe.measure")[-1])
        return found

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the newest meter message."""
        found: list[dict[str, Any]] = self.meter()["rows"]
        return found

    def feedback(self) -> list[dict[str, Any]]:
        """All feedback, oldest first."""
        return [item for blob in self.blobs("evalpipe.feedback") for item in json.loads(blob)["items"]]


def balanced(hook: Hook) -> bool:
    """Whether the counters add up, as they must whenever nothing is under way."""
    stats = hook.stats()
    return (
        stats.calls == stats.sampled + stats.not_sampled
        and stats.sampled == stats.enqueued + sum(stats.shed.values()) + stats.buffered
    )
