"""Counts of every call, captured or not, by release, feature and hour; cumulative since the process began.

The calling thread only appends a tuple (no lock, so no wait and no deadlock from a signal handler); the thread that
ships adds the tuples up. Counts are cumulative, so a meter message that is lost or repeated loses or doubles nothing.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Final

from evalpipe.hook.buffer import Entry
from evalpipe.hook.logs import log
from evalpipe.hook.row import MOST_CHARS, OTHER, SHED, Row
from evalpipe.hook.wire import key_of
from evalpipe.release import Release

SCHEMA: Final = 1
"""Version of the meter message."""
HOUR_S: Final = 3600
MAX_PENDING: Final = 4096
"""From here on, calling threads help to add up, so that the tuples stay bounded."""
MAX_ROWS: Final = 1000
"""From here on features and versions share one row of each variant, ``OTHER``; from twice as many on, variants too."""
LEFT: Final = "ended"
"""One more reason, told in the last message of a process: what was still on its way when that was written."""

_HELP: Final = 32
PAUSE_S: Final = 2e-5
_OPEN_S: Final = 600.0
_REMEMBERED: Final = 256
_KEPT: Final = "(kept)"
_TOTALS: Final = ("calls", "sampled", "enqueued")

Key = tuple[Release, str, int]
"""Release, feature and hour."""

SCREENED_CHARS: Final = 400
"""How much of an answer waits to be screened: as much as ``evalpipe.refusal`` looks at."""

Cost = Callable[[str, Any, Any, Any], float | None]
"""What a call costs in USD by model, input, output and cached tokens; None if that is not known."""
Observation = tuple[
    Release, str, float, bool, float | None, bool, Any, Any, Any, float | None, float | None, Any, Any, Any, Any
]
"""release, feature, ended at, sampled, latency in ms, failed, input, output and cached tokens, cost in USD, TTFT in ms,
model, finish reason, output's beginning, user."""


class Meter:
    """All rows of this process.

    Attributes:
        pending: observations that nobody has added up; append to it, then see ``MAX_PENDING``.
        blocked: calls refused before they were made that nobody has added up: release, feature, when, and
            ``kill_switch`` or ``budget``.
        changes: grows whenever a count does.
    """

    def __init__(self, cost: Cost, release: Release) -> None:
        self.changes = 0
        self._cost = cost
        self._release = release
        self.pending: deque[Observation] = deque()
        self.blocked: deque[tuple[Release, str, float, str]] = deque()
        self._late: deque[tuple[Release, str, float, str]] = deque()
        self._rows: dict[Key, Row] = {}
        # Rows whose hour is long over, and what all of them, those that are not kept included, add up to.
        self._forgotten: OrderedDict[Key, Row] = OrderedDict()
        self._past = dict.fromkeys((*_TOTALS, *SHED), 0)
        self._lock = threading.RLock()
        self._is_refusal: Callable[[str, str], bool] | None = None

    def help(self) -> None:
        """Add up some of what is pending, unless another thread is doing that now. Never waits."""
        if self._lock.acquire(blocking=False):
            try:
                self._add_up(4 * _HELP, screen=False)
            finally:
                self._lock.release()

    def shed(self, entry: Entry, why: str) -> None:
        """Count a captured record that will not be enqueued; ``why`` is one of ``SHED``."""
        self._late.append((entry.release, entry.feature, entry.captured_at, why))

    def kept(self, release: Release, feature: str, at: float) -> None:
        """A call that was counted as not sampled is captured after all."""
        self._late.append((release, feature, at, _KEPT))

    def enqueued(self, entries: list[Entry]) -> None:
        """Count records in a message that the queue accepted."""
        with self._lock:
            for entry in entries:
                self._row(entry.release, entry.feature, entry.captured_at).enqueued += 1

    def message(self, **header: Any) -> str:
        """The meter message: ``header``, and everything counted so far."""
        self.add_up()
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
        """Leave rows out of messages whose hour is long over, where nothing was added for an hour.

        To be called after a message with their last counts was accepted. The latest of them are kept, because counts
        are cumulative: to a call that is reported very late its row must not begin again at nothing.
        """
        with self._lock:
            for key, row in list(self._rows.items()):
                if not row.settled or row.hour + HOUR_S + _OPEN_S >= now:
                    continue
                if row.quiet != row.touched:
                    row.quiet, row.quiet_since = row.touched, now
                elif now - row.quiet_since > HOUR_S:
                    self._forgotten[key] = self._rows.pop(key)
                    self._book(row, 1)
            while len(self._forgotten) > _REMEMBERED:
                self._forgotten.popitem(last=False)

    def totals(self) -> dict[str, int]:
        """calls, sampled, enqueued, and each kind of shed, over all rows since the process began."""
        with self._lock:
            self._add_up()
            totals = dict(self._past)
            for row in self._rows.values():
                for name in _TOTALS:
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
        while self._late:
            release, feature, at, why = self._late.popleft()
            row = self._row(release, feature, at)
            if why == _KEPT:
                row.sampled += 1
            else:
                row.shed[why] += 1
        while self.blocked:
            release, feature, at, why = self.blocked.popleft()
            blocked = self._row(release, feature, at).blocked
            blocked[why] = blocked.get(why, 0) + 1

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
        _, _, _, _, latency_ms, _, n_in, n_out, n_cached, cost, ttft_ms, model, reason, head, user = seen
        if cost is None and model:
            cost = self._cost(model, n_in, n_out, n_cached)
            row.unpriced += cost is None
        tokens, usd = row.used(n_in, n_out, n_cached, cost)
        if latency_ms is not None:
            row.took(latency_ms, ttft_ms, n_out)
        if type(reason) is not str:
            reason = str(reason) if reason else ""
        if reason:
            row.ended(reason)
        if screen and (head or reason):
            row.screened += 1
            row.refusals += self._screen()(head, reason)
        if user:
            row.users.add(user if type(user) is str and len(user) <= 64 else key_of(user), tokens, usd, row.calls - 1)

    def _screen(self) -> Callable[[str, str], bool]:
        if self._is_refusal is None:
            # Its word lists are loaded when they are first needed, which is in the thread that ships.
            from evalpipe.refusal import is_refusal

            self._is_refusal = is_refusal
        return self._is_refusal

    def _row(self, release: Release, feature: str, at: float) -> Row:
        try:
            key = release, feature, int(at // HOUR_S) * HOUR_S
            row = self._rows.get(key)
        except Exception:  # noqa: BLE001 - whatever it is, a call is counted
            key = self._release, OTHER, int(time.time() // HOUR_S) * HOUR_S
            row = self._rows.get(key)
        if row is None:
            row = self._new_row(key)
        self.changes += 1
        row.touched = self.changes
        return row

    def _new_row(self, key: Key) -> Row:
        release, feature, hour = key
        if len(self._rows) >= MAX_ROWS:
            # First all versions of a variant share a row; variants themselves, if an application makes them up, later.
            whole = Release(service=release.service, variant=release.variant, environment=release.environment)
            whole = whole if len(self._rows) < 2 * MAX_ROWS else self._release
            if (whole, OTHER) != (release, feature):
                return self._row(whole, OTHER, hour)
        row = self._forgotten.pop(key, None)
        if row is None:
            row = Row(release, feature, hour)
        else:
            self._book(row, -1)
        self._rows[key] = row
        return row

    def _book(self, row: Row, sign: int) -> None:
        for name in _TOTALS:
            self._past[name] += sign * getattr(row, name)
        for why in SHED:
            self._past[why] += sign * row.shed[why]


def release_wire(release: Release) -> dict[str, str]:
    """``release`` without the fields that hold their default, as records carry it."""
    found = ((name, getattr(release, name), default) for name, default in _DEFAULTS)
    return {name: str(value)[:MOST_CHARS] for name, value, default in found if value != default}


_DEFAULTS: Final = tuple((name, getattr(Release(), name)) for name in Release.__slots__)
