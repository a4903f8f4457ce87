"""What evalpipe itself keeps in Redis beside Celery's messages: nothing that cannot be lost."""

from __future__ import annotations

import base64
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import orjson

from evalpipe.store.ledgers import Queued, places

STAGES = (
    "ingest",
    "measure",
    "feedback",
    "judge",
    "batch",
    "anchors",
    "fingerprint",
    "embed",
    "evaluate",
    "oversee",
    "deliver",
    "export",
    "maintain",
    "publish",
)
CARRIERS = ("ingest", "measure", "feedback")
"""Stages whose messages hold what is nowhere else; those of the others are only nudges."""
QUARANTINE = "evalpipe:quarantine"
PAGE = 200
"""Messages read at once: all that wait may be more than fits into memory."""
NUDGE_TTL_MS = 5_000
"""A nudge that its task never answered blocks the next for this long at the most; the beat is the backstop."""
CONTROL = "evalpipe.control:"
"""Before a service's name: the hash that its hooks poll."""

# An older document never replaces a newer one, whoever is late. The same one is written again: a Redis that lost its
# data gets it back, and published_at moves on. The prices, which are long, are written where they are not there yet.
# Says -1 if all is there, -2 if the prices are not, or the revision that is there if it is a newer one. What is beyond
# 2^53 is none that we wrote.
_PUBLISH = """
local known = tonumber(redis.call('HGET', KEYS[1], 'revision') or '')
if known and known > tonumber(ARGV[1]) and known < 9007199254740992 then return known end
redis.call('HSET', KEYS[1], 'revision', ARGV[1], 'document', ARGV[2])
local function priced()
  return redis.call('HGET', KEYS[1], 'prices_version') == ARGV[3] and redis.call('HEXISTS', KEYS[1], 'prices') == 1
end
if ARGV[4] ~= '' and not priced() then
  redis.call('HSET', KEYS[1], 'prices_version', ARGV[3], 'prices', ARGV[4])
end
if ARGV[3] == '' or priced() then return -1 end
return -2
"""
DONE, NO_PRICES = -1, -2
"""What ``publish`` answers."""


def quarantine(client: Any, raw: bytes, reason: str) -> None:
    """Keep a message that cannot be processed in Redis, until upkeep moves it to the dead letters."""
    client.lpush(QUARANTINE, json.dumps([reason, base64.b64encode(raw).decode()]))


class Queue:
    """The Redis that hooks write to and Celery reads."""

    def __init__(self, url: str) -> None:
        import redis

        self.client = redis.Redis.from_url(url, socket_connect_timeout=2.0, socket_timeout=5.0)
        self.url = url
        self._publish = self.client.register_script(_PUBLISH)

    def nudge(self, stage: str) -> bool:
        """Whether the caller should start ``stage`` now: False while an earlier nudge has not been answered."""
        return bool(self.client.set(f"evalpipe:nudge:{stage}", "1", nx=True, px=NUDGE_TTL_MS))

    def answer(self, stage: str) -> None:
        """The stage has started: what is committed from now on needs a new nudge."""
        self.client.delete(f"evalpipe:nudge:{stage}")

    def deliveries_of(self, task_id: str) -> int:
        """How often a redelivered message was started, this time included."""
        key = f"evalpipe:started:{task_id}"
        count = int(self.client.incr(key))
        self.client.expire(key, 86_400)
        return count

    def lengths(self) -> dict[str, int]:
        """Messages that wait, by stage."""
        return {stage: int(self.client.llen(f"evalpipe.{stage}")) for stage in STAGES}

    def queued(self) -> Queued:
        """Records that wait in the ingest queue or are being ingested, as their messages' headers count them."""
        counts: Counter[tuple[str, datetime]] = Counter()
        for start in range(0, int(self.client.llen("evalpipe.ingest")), PAGE):
            for raw in self.client.lrange("evalpipe.ingest", start, start + PAGE - 1):
                counts.update(_counts(_load(raw)))
        unacked = self.client.hvals("unacked")
        for raw in unacked:
            entry = _load(raw)
            if isinstance(entry, list) and len(entry) == 3 and entry[2] == "evalpipe.ingest":
                counts.update(_counts(entry[0]))
        return Queued(dict(counts))

    def quarantined(self, limit: int) -> list[tuple[bytes, str, bytes]]:
        """The oldest messages in quarantine: (as kept, reason, as it was)."""
        kept = self.client.lrange(QUARANTINE, -limit, -1)
        found = []
        for item in kept:
            reason, raw = json.loads(item)
            found.append((item.encode() if isinstance(item, str) else item, reason, base64.b64decode(raw)))
        return found

    def release(self, kept: Iterable[bytes]) -> None:
        """Take messages out of quarantine, once they are dead letters."""
        for item in kept:
            self.client.lrem(QUARANTINE, 1, item.decode())

    def push(self, messages: Iterable[bytes]) -> int:
        """Put whole messages back at the end of the queue that each names."""
        n = 0
        for message in messages:
            self.client.lpush(_queue_of(_load(message)), message)
            n += 1
        return n

    def publish(self, service: str, document: Mapping[str, Any], prices: str = "") -> int:
        """Give a service's hooks its control document, unless they have a newer one.

        Args:
            service: whose.
            document: with its ``revision``, and the version of its ``prices``.
            prices: the price table of that version; what is there stays, if it is empty.

        Returns:
            ``DONE``; ``NO_PRICES``: done, but the table of that version is not there; or the newer revision that is.

        Raises:
            redis.RedisError: it did not arrive.
        """
        body = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        arguments = (document["revision"], body, document["prices"], prices)
        return int(self._publish(keys=[CONTROL + service], args=arguments))

    def ping(self) -> float:
        """Seconds that a round trip takes.

        Raises:
            redis.RedisError: there is no answer.
        """
        started = time.perf_counter()
        self.client.ping()
        return time.perf_counter() - started

    def info(self) -> dict[str, Any]:
        """Version, memory and persistence as the server tells them."""
        found: dict[str, Any] = self.client.info()
        return found

    def close(self) -> None:
        """Close the connections."""
        self.client.close()


def _load(raw: bytes | str) -> Any:
    try:
        return orjson.loads(raw)
    except ValueError:
        return None


def _queue_of(message: Any) -> str:
    """The queue that a message names, if it is one of ours."""
    found = message
    for name in ("properties", "delivery_info", "routing_key"):
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, str) and found in {f"evalpipe.{s}" for s in STAGES} else "evalpipe.ingest"


def _counts(message: Any) -> dict[tuple[str, datetime], int]:
    headers = message.get("headers") if isinstance(message, dict) else None
    return places(headers) if isinstance(headers, dict) else {}
