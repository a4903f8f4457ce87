"""Stored history, as detectors are shown it: sums over any window of scores and of the meter, by prefix sums."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from evalpipe.alerts.pyramid import Pyramid, Sketches
from evalpipe.detectors.view import CALL_SUMS, Place, PrintRun, Spender
from evalpipe.profile import Profile
from evalpipe.rollup import SUMS, Rollup
from evalpipe.sketch import Sketch

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_COUNTS: Final = 4
_WIDTHS: Final = (60, 3600, 86_400)


@dataclass(frozen=True, slots=True)
class ScoreLine:
    """The scores of one series.

    Attributes:
        scorecard, criterion, place, epoch: of all of them; the place is the finest.
        minutes: since 1970, in order; where scores are kept by the hour only, the last minute of each.
        values: a row for each: ``SUMS`` of a rollup and its histogram.
    """

    scorecard: str
    criterion: str
    place: Place
    epoch: str
    minutes: Ints
    values: Floats


@dataclass(frozen=True, slots=True)
class CallLine:
    """What the meter counted at one place, the finest.

    Attributes:
        place: where.
        starts, widths: of each stretch, in minutes since 1970, and in minutes.
        sums: ``CALL_SUMS`` of each.
        sketches: of each, by name; empty where nobody reads them.
    """

    place: Place
    starts: Ints
    widths: Ints
    sums: Floats
    sketches: Sequence[Mapping[str, Sketch]] = ()


@dataclass(slots=True)
class History:
    """All that is known; every list may be empty."""

    scores: list[ScoreLine] = field(default_factory=list)
    calls: list[CallLine] = field(default_factory=list)
    users: list[tuple[datetime, Place, Spender]] = field(default_factory=list)
    profiles: list[tuple[Place, Profile]] = field(default_factory=list)
    prints: dict[str, tuple[Place, list[PrintRun]]] = field(default_factory=dict)
    calls_by_minute: datetime | None = None
    """From when on the meter is kept by the minute; by the hour before. None for never."""


@dataclass(slots=True)
class ScoreSums:
    """Scores of one epoch at one place of a rule, by minute, as prefix sums."""

    minutes: list[int]
    before: Floats
    scored: list[int]
    """Minutes with a value."""

    def between(self, first: int, end: int) -> Floats | None:
        """The sum of minutes from ``first`` to before ``end``; None where there are none."""
        low, high = bisect_left(self.minutes, first), bisect_left(self.minutes, end)
        if high <= low:
            return None
        found: Floats = self.before[high] - self.before[low]
        return found

    def newest(self, first: int, end: int) -> int:
        """The last minute with a value; -1 for none."""
        place = bisect_left(self.scored, end) - 1
        return self.scored[place] if place >= 0 and self.scored[place] >= first else -1


@dataclass(slots=True)
class CallSums:
    """Calls at one place of a rule: sums before each minute, from ``first`` on."""

    first: int
    before: Floats
    busy: list[int]
    """Minutes with calls."""
    sketches: Pyramid[Sketches]

    def at(self, seconds: float) -> Floats:
        """The sum of all before a moment; a minute is spread evenly."""
        minutes = min(max(seconds / 60.0 - self.first, 0.0), len(self.before) - 1.0)
        whole = int(minutes)
        if whole == len(self.before) - 1:
            last: Floats = self.before[whole]
            return last
        share = minutes - whole
        before = self.before[whole]
        found: Floats = before + (self.before[whole + 1] - before) * share if share else before
        return found


def scores_of(lines: Sequence[ScoreLine]) -> ScoreSums:
    """Of one epoch at one place of a rule."""
    minutes = np.concatenate([line.minutes for line in lines])
    values = np.concatenate([line.values for line in lines])
    order = np.argsort(minutes, kind="stable")
    minutes, values = minutes[order], values[order]
    before = np.zeros((len(minutes) + 1, values.shape[1]))
    np.cumsum(values, axis=0, out=before[1:])
    return ScoreSums(minutes.tolist(), before, minutes[values[:, 0] > 0].tolist())


def calls_of(lines: Sequence[CallLine]) -> CallSums:
    """Of one place of a rule."""
    first = min(int(line.starts.min()) for line in lines)
    end = max(int((line.starts + line.widths).max()) for line in lines)
    each = np.zeros((end - first + 1, len(CALL_SUMS)))
    sketches: Pyramid[Sketches] = Pyramid(_WIDTHS, Sketches)
    for line in lines:
        low, high = line.starts - first, line.starts + line.widths - first
        rate = line.sums / line.widths[:, None]
        np.add.at(each, low, rate)
        np.add.at(each, high, -rate)
        for start, width, found in zip(line.starts.tolist(), line.widths.tolist(), line.sketches, strict=False):
            sketches.add(instant(start + width - 1), Sketches(found))
    each = np.cumsum(each, axis=0)
    each[np.abs(each) < 1e-9] = 0.0
    before = np.zeros((len(each) + 1, each.shape[1]))
    np.cumsum(each, axis=0, out=before[1:])
    busy = (np.flatnonzero(each[:, 0] > 0) + first).tolist()
    return CallSums(first, before, busy, sketches)


def rollup_of(values: Floats) -> Rollup:
    """Of a row of ``ScoreLine.values``."""
    numbers = values[: len(SUMS)].tolist()
    bins = values[len(SUMS) :]
    some = np.flatnonzero(bins)
    named: dict[str, Any] = dict(zip(SUMS, numbers, strict=True))
    named |= {name: round(named[name]) for name in SUMS[:_COUNTS]}
    return Rollup(**named, bins=dict(zip(some.tolist(), bins[some].astype(np.int64).tolist(), strict=True)))


def instant(minute: int) -> datetime:
    """When a minute since 1970 begins."""
    return datetime.fromtimestamp(minute * 60, UTC)
