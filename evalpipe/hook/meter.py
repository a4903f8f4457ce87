"""Counts of every call, captured or not, by release, feature and hour; cumulative since the process began.

The calling thread only appends a tuple (no lock, so no wait and no deadlock from a signal handler); the thread that
ships adds the tuples up. Counts are cumulative, so a meter message that is lost or repeated loses or doubles nothing.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from evalpipe.hook.buffer import Entry
from evalpipe.release import Release
from evalpipe.sketch import Sketch

SCHEMA: Final = 1
"""Version of the meter message."""
HOUR_S: Final = 3600
MAX_PENDING: Final = 8192
"""From here on, calling threads help to add up, so that the tuples stay bounded."""
MOST_TOKENS: Final = 1 << 40
"""No call has so many: a number that is larger would spoil the sums of all."""
MAX_ROWS: Final = 1000
"""Rows at the most; features beyond share one row, ``OTHER``."""
OTHER: Final = "(other)"
SHED: Final = ("buffer", "queue", "oversized", "failed")
"""Why a captured record was not enqueued."""
LEFT: Final = "ended"
"""One more reason, told in the last message of a process: what was still on its way when that was written."""

_HELP: Final = 32
PAUSE_S: Final = 2e-5
_KEPT_S: Final = 600.0

SCREENED_CHARS: Final = 400
"""How much of an answer waits to be screened: as much as ``evalpipe.refusal`` looks at."""
MAX_REASONS: Final = 16
"""Finish reasons in one row at the most; further ones share ``OTHER``."""

Cost = Callable[[str, Any, Any, Any], float | None]
"""What a call costs in USD by model, input, output and cached tokens; None if that is not known."""
Observation = tuple[
    Release, str, float, bool, float | None, bool, Any, Any, Any, float | None, float | None, Any, Any, Any
]
"""release, feature, ended at, sampled, latency in ms, failed, input, output and cached tokens, cost in USD, TTFT in ms,
model, finish reason, output's beginning."""

_SUMS: Final = ("calls", "errors", "sampled", "enqueued", "input_tokens", "output_tokens", "cached_tokens", "cost_usd",
                "screened", "refusals")  # fmt: skip


log = logging.getLogger("evalpipe")


class Row:
    """The counts of one release, feature and hour."""

    __slots__ = (*_SUMS, "blocked", "feature", "finish_reasons", "hour", "latency", "release", "shed", "tpot", "ttft")
    calls: int
    errors: int
    sampled: int
    enqueued: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost_usd: float
    screened: int
    refusals: int

    def __init__(self, release: Release, feature: str, hour: int) -> None:
        self.release = release
        self.feature = feature
        self.hour = hour
        for name in _SUMS:
            setattr(self, name, 0)
        self.shed = dict.fromkeys(SHED, 0)
        self.blocked: dict[str, int] = {}
        self.finish_reasons: dict[str, int] = {}
        self.latency = Sketch()
        self.ttft = Sketch()
        self.tpot = Sketch()

    @property
    def settled(self) -> bool:
        """Whether every sampled record has been enqueued or shed."""
        return self.sampled == self.enqueued + sum(self.shed.values())

    def ended(self, reason: str) -> None:
        """Count a finish reason."""
        counts = self.finish_reasons
        if reason not in counts and len(counts) >= MAX_REASONS:
            reason = OTHER
        counts[reason] = counts.get(reason, 0) + 1

    def used(self, n_in: Any, n_out: Any, n_cached: Any, cost: Any) -> None:
        """Count tokens and money, as far as they are numbers."""
        if type(n_in) is int and 0 <= n_in < MOST_TOKENS:
            self.input_tokens += n_in
        if type(n_out) is int and 0 <= n_out < MOST_TOKENS:
            self.output_tokens += n_out
        if type(n_cached) is int and 0 <= n_cached < MOST_TOKENS:
            self.cached_tokens += n_cached
        if cost is not None and isinstance(cost, int | float) and math.isfinite(cost):
            self.cost_usd += cost

    def took(self, latency_ms: float, ttft_ms: float | None, n_out: Any) -> None:
        """Count a latency; of a stream also the time to its first token, and the time of each further one."""
        self.latency.add(latency_ms)
        if ttft_ms is not None:
            self.ttft.add(ttft_ms)
            if type(n_out) is int and n_out > 1:
                self.tpot.add((latency_ms - ttft_ms) / (n_out - 1))

    def to_wire(self, release: dict[str, Any]) -> dict[str, Any]:
        """The row as the meter message has it."""
        return {
            "service": self.release.service,
            "release": release,
            "feature": self.feature,
            "hour": self.hour,
            **{name: getattr(self, name) for name in _SUMS},
            "not_sampled": self.calls - self.sampled,
            "shed": dict(self.shed),
            "blocked": dict(self.blocked),
            "finish_reasons": dict(self.finish_reasons),
            "latency": self.latency.to_wire(),
            "ttft": self.ttft.to_wire(),
            "tpot": self.tpot.to_wire(),
        }


class Meter:
    """All rows of this process.

    Attributes:
        pending: observations that nobody has added up; append to it, then see ``MAX_PENDING``.
        blocked: calls refused before they were made that nobody has added up: release, feature, when, and
            ``kill_switch`` or ``budget``.
        changes: grows whenever a count does.
    """

    def __init__(self, cost: Cost) -> None:
        self.changes = 0
        self._cost = cost
        self.pending: deque[Observation] = deque()
        self.blocked: deque[tuple[Release, str, float, str]] = deque(maxlen=MAX_PENDING)
        self._rows: dict[tuple[Release, str, int], Row] = {}
        self._lock = threading.RLock()
        # Of rows that were forgotten: their hour is long over, and a message with their last counts was accepted.
        self._is_refusal: Callable[[str, str], bool] | None = None
        self._past = {"calls": 0, "sampled": 0, "enqueued": 0, **dict.fromkeys(SHED, 0)}

    def help(self) -> None:
        """Add up some of what is pending, unless another thread is doing that now. Never waits."""
        if self._lock.acquire(blocking=False):
            try:
                self._add_up(_HELP, screen=False)
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

    def kept(self, release: Release, feature: str, at: float) -> None:
        """A call that was counted as not sampled is captured after all."""
        with self._lock:
            self._add_up()
            self._row(release, feature, at).sampled += 1

    def message(self, **header: Any) -> str:
        """The meter message: ``header``, and everything counted so far."""
        with self._lock:
            self._add_up()
            rows = [row.to_wire(release_wire(row.release)) for row in self._rows.values()]
            if header.get("ended"):
                # What ended while the last records were sent is left behind, and nobody else will say so.
                for wire, row in zip(rows, self._rows.values(), strict=True):
                    if left := row.sampled - row.enqueued - sum(row.shed.values()):
                        wire["shed"][LEFT] = left
        return json.dumps({"schema": SCHEMA, **header, "rows": rows}, separators=(",", ":"))

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
        """Add up what the calling threads left, and let them go on in between."""
        for _ in range(1 + len(self.pending) // _HELP):
            with self._lock:
                self._add_up(_HELP)
            if self.pending:
                time.sleep(PAUSE_S)

    def _add_up(self, most: int = -1, *, screen: bool = True) -> None:
        while self.blocked:
            release, feature, at, why = self.blocked.popleft()
            counts = self._row(release, feature, at).blocked
            counts[why] = counts.get(why, 0) + 1
        pending = self.pending
        row: Row | None = None
        until = 0
        while most:
            try:
                seen = pending.popleft()
            except IndexError:
                break
            most -= 1
            release, feature, at = seen[:3]
            # Calls in a row are mostly of one row.
            if row is None or release is not row.release or feature != row.feature or not row.hour <= at < until:
                row = self._row(release, feature, at)
                until = row.hour + HOUR_S
            self.changes += 1
            self._count(row, seen, screen=screen)

    def _count(self, row: Row, seen: Observation, *, screen: bool) -> None:
        sampled, failed = seen[3], seen[5]
        row.calls += 1
        row.sampled += sampled
        row.errors += failed
        try:
            self._describe(row, seen, screen=screen)
        except Exception as problem:  # noqa: BLE001 - the application may have set anything: the call itself is counted
            log.debug("evalpipe: a call could not be described: %r", problem)

    def _describe(self, row: Row, seen: Observation, *, screen: bool) -> None:
        _, _, _, _, latency_ms, _, n_in, n_out, n_cached, cost, ttft_ms, model, reason, head = seen
        if cost is None and model:
            cost = self._cost(model, n_in, n_out, n_cached)
        row.used(n_in, n_out, n_cached, cost)
        if latency_ms is not None:
            row.took(latency_ms, ttft_ms, n_out)
        if type(reason) is not str:
            reason = str(reason) if reason else ""
        if reason:
            row.ended(reason)
        if screen and (head or reason):
            row.screened += 1
            row.refusals += self._screen()(head, reason)

    def _screen(self) -> Callable[[str, str], bool]:
        if self._is_refusal is None:
            # Its word lists are loaded when they are first needed, which is in the thread that ships.
            from evalpipe.refusal import is_refusal

            self._is_refusal = is_refusal
        return self._is_refusal

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
