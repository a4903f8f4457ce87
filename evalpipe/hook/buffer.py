"""What waits to be shipped: bounded by count and by bytes; when it is full, the oldest make room.

The newest are kept because they are the evidence that a decision after an outage needs.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from evalpipe.batch import MAX_BATCH
from evalpipe.release import Release


class Entry:
    """One captured call on its way.

    Attributes:
        release, feature, captured_at: name the meter's row; ``captured_at`` is seconds since 1970.
        size: estimated bytes in memory.
        fields: the record's other fields, frozen but neither redacted nor yet of plain types.
    """

    __slots__ = ("captured_at", "feature", "fields", "release", "size")

    def __init__(self, release: Release, feature: str, captured_at: float, size: int, fields: Any) -> None:
        self.release = release
        self.feature = feature
        self.captured_at = captured_at
        self.size = size
        self.fields = fields


class Buffer:
    """A queue of entries between the calling threads and the one that ships.

    Attributes:
        max_entries, max_bytes: its bounds.
        on_batch: called when a whole message waits, or half of the bytes are taken; must be quick.
    """

    def __init__(self, max_entries: int, max_bytes: int, on_batch: Callable[[], None]) -> None:
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self._half = max_bytes // 2
        self.on_batch = on_batch
        self._entries: deque[Entry] = deque()
        self._bytes = 0
        self._taken = 0
        # Reentrant: a signal handler or finalizer of the application may make a call while this thread is in here.
        self._lock = threading.RLock()

    def put(self, entry: Entry) -> list[Entry]:
        """Append ``entry``; return what had to make room for it (the entry itself if it is larger than the buffer)."""
        size = entry.size
        shed: list[Entry] = []
        with self._lock:
            entries = self._entries
            before = self._bytes
            after = before + size
            if after > self.max_bytes or len(entries) >= self.max_entries:
                if size > self.max_bytes:
                    return [entry]
                while entries and (len(entries) >= self.max_entries or after > self.max_bytes):
                    oldest = entries.popleft()
                    after -= oldest.size
                    shed.append(oldest)
                before = after - size
            entries.append(entry)
            self._bytes = after
            wake = len(entries) == MAX_BATCH or before < self._half <= after
        if wake:
            self.on_batch()
        return shed

    def take(self, most: int, max_bytes: int) -> list[Entry]:
        """Remove the oldest entries, at most ``most`` of them and about ``max_bytes``, at least one if there is one."""
        batch: list[Entry] = []
        size = 0
        with self._lock:
            while self._entries and len(batch) < most and (not batch or size + self._entries[0].size <= max_bytes):
                entry = self._entries.popleft()
                size += entry.size
                batch.append(entry)
            self._bytes -= size
            self._taken += len(batch)
        return batch

    def settle(self, count: int) -> None:
        """Of the taken, ``count`` have been enqueued or shed."""
        with self._lock:
            self._taken -= count

    def __len__(self) -> int:
        """Entries that wait, those that were taken and not settled included."""
        with self._lock:
            return len(self._entries) + self._taken

    @property
    def waiting(self) -> int:
        """Entries that nobody has taken."""
        return len(self._entries)

    @property
    def bytes(self) -> int:
        """Estimated bytes of the entries that nobody has taken."""
        return self._bytes
