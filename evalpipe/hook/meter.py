"""Counts of every call, captured or not, by release, feature and hour; cumulative since the process began.

The calling thread only appends a tuple (no lock, so no wait and no deadlock from a signal handler); the thread that
ships adds the tuples up. Counts are cumulative, so a meter message that is lost or repeated loses or doubles nothing.
"""

from __future__ import annotations

import json
import math
import threading
from collections import deque
from typing import Any, Final

from evalpipe.hook.buffer import Entry
from evalpipe.record import Release
from evalpipe.sketch import Sketch

SCHEMA: Final = 1
"""Version of the meter message."""
HOUR_S: Final = 3600
MAX_PENDING: Final = 8192
"""From here on, calling threads help to add up, so that the tuples stay bounded."""
MAX_ROWS: Final = 1000
"""Rows at the most; features beyond share one row, ``OTHER``."""
OTHER: Final = "(other)"
SHED: Final = ("buffer", "queue", "oversized", "failed")
"""Why a captured record was not enqueued."""

_HELP: Final = 128
_KEPT_S: Final = 600.0

Observation = tuple[Release, str, float, bool, float | None, bool, Any, Any, Any]
"""release, feature, ended at, sampled, latency in ms, failed, input tokens, output tokens, cost in USD."""


class Row:
    """The counts of one release, feature and hour."""

    __slots__ = ("calls", "cost_usd", "enqueued", "errors", "feature", "hour", "input_tokens", "latency",
                 "output_tokens", "release", "sampled", "sampled_refusals", "shed")  # fmt: skip

    def __init__(self, release: Release, feature: str, hour: int) -> None:
        self.release = release
        self.feature = feature
        self.hour = hour
        self.calls = self.errors = self.sampled = self.enqueued = self.sampled_refusals = 0
        self.input_tokens = self.output_tokens = 0
        self.cost_usd = 0.0
        self.shed = dict.fromkeys(SHED, 0)
        self.latency = Sketch()

    @property
    def settled(self) -> bool:
        """Whether every sampled record has been enqueued or shed."""
        return self.sampled == self.enqueued + sum(self.shed.values())

    def to_wire(self, release: dict[str, Any]) -> dict[str, Any]:
        """The row as the meter message has it."""
        return {
            "service": self.release.service,
            "release": release,
            "feature": self.feature,
            "hour": self.hour,
            "calls": self.calls,
            "errors": self.errors,
            "sampled": self.sampled,
            "not_sampled": self.calls - self.sampled,
            "enqueued": self.enqueued,
            "shed": dict(self.shed),
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost_usd": self.cost_usd,
            "sampled_refusals": self.sampled_refusals,
            "latency": self.latency.to_wire(),
        }


class Meter:
    """All rows of this process.

    Attributes:
        pending: observations that nobody has added up; append to it, then see ``MAX_PENDING``.
        changes: grows whenever a count does.
    """

    def __init__(self) -> None:
        self.changes = 0
        self.pending: deque[Observation] = deque()
        self._rows: dict[tuple[Release, str, int], Row] = {}
        self._lock = threading.RLock()
        # Of rows that were forgotten: their hour is long over, and a message with their last counts was accepted.
        self._past = {"calls": 0, "sampled": 0, "enqueued": 0, **dict.fromkeys(SHED, 0)}

    def help(self) -> None:
        """Add up some of what is pending, unless another thread is doing that now. Never waits."""
        if self._lock.acquire(blocking=False):
            try:
                self._add_up(_HELP)
            finally:
                self._lock.release()

    def shed(self, entry: Entry, why: str) -> None:
        """Count a captured record that will not be enqueued; ``why`` is one of ``SHED``."""
        with self._lock:
            self._row(entry.release, entry.feature, entry.captured_at).shed[why] += 1

    def enqueued(self, entries: list[Entry]) -> None:
        """Count records in a message that the queue accepted."""
        with self._lock:
            for entry in entries:
                self._row(entry.release, entry.feature, entry.captured_at).enqueued += 1

    def refused(self, entry: Entry) -> None:
        """Count a captured record whose answer is a refusal."""
        with self._lock:
            self._row(entry.release, entry.feature, entry.captured_at).sampled_refusals += 1

    def message(self, *, hook: str, process: str, sequence: int, sent_at: float, started_at: float) -> str:
        """The meter message: everything counted so far."""
        with self._lock:
            self._add_up()
            rows = [row.to_wire(release_wire(row.release)) for row in self._rows.values()]
        return json.dumps(
            {"schema": SCHEMA, "hook": hook, "process": process, "seq": sequence, "sent_at": sent_at,
             "started_at": started_at, "rows": rows},
            separators=(",", ":"),
        )  # fmt: skip

    def forget(self, now: float) -> None:
        """Drop rows whose hour is long over: the message that was just accepted had their last counts."""
        with self._lock:
            for key, row in list(self._rows.items()):
                if row.settled and row.hour + HOUR_S + _KEPT_S < now:
                    del self._rows[key]
                    for name in ("calls", "sampled", "enqueued"):
                        self._past[name] += getattr(row, name)
                    for why in SHED:
                        self._past[why] += row.shed[why]

    def totals(self) -> dict[str, int]:
        """calls, sampled, enqueued, and each kind of shed, over all rows since the process began."""
        with self._lock:
            self._add_up()
            totals = dict(self._past)
            for row in self._rows.values():
                for name in ("calls", "sampled", "enqueued"):
                    totals[name] += getattr(row, name)
                for why in SHED:
                    totals[why] += row.shed[why]
        return totals

    def add_up(self) -> None:
        """Add up what the calling threads left."""
        with self._lock:
            self._add_up()

    def _add_up(self, most: int = -1) -> None:
        pending = self.pending
        row: Row | None = None
        until = 0
        while most:
            try:
                release, feature, at, sampled, latency_ms, failed, input_tokens, output_tokens, cost = pending.popleft()
            except IndexError:
                break
            most -= 1
            # Calls in a row are mostly of one row.
            if row is None or release is not row.release or feature != row.feature or not row.hour <= at < until:
                row = self._row(release, feature, at)
                until = row.hour + HOUR_S
            self.changes += 1
            row.calls += 1
            row.sampled += sampled
            row.errors += failed
            if latency_ms is not None:
                row.latency.add(latency_ms)
            if type(input_tokens) is int:
                row.input_tokens += input_tokens
            if type(output_tokens) is int:
                row.output_tokens += output_tokens
            if cost is not None and isinstance(cost, int | float) and math.isfinite(cost):
                row.cost_usd += cost

    def _row(self, release: Release, feature: str, at: float) -> Row:
        hour = int(at // HOUR_S) * HOUR_S
        row = self._rows.get((release, feature, hour))
        if row is None:
            if len(self._rows) >= MAX_ROWS and feature != OTHER:
                return self._row(release, OTHER, at)
            row = self._rows[release, feature, hour] = Row(release, feature, hour)
        self.changes += 1
        return row


def release_wire(release: Release) -> dict[str, str]:
    """``release`` without the fields that hold their default, as records carry it."""
    return {name: value for name, default in _DEFAULTS if (value := getattr(release, name)) != default}


_DEFAULTS: Final = tuple((name, getattr(Release(), name)) for name in Release.__slots__)
