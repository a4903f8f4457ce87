"""A feed of what was: stored history as detectors would have seen it at any time, fast enough to play a month.

Scores are summed by prefix sums, and so is the meter, which is spread evenly over what it is kept by. ``now`` is set by
whoever plays; nothing later is seen, but that an hour of the meter is known from its beginning.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from evalpipe.alerts.played import MOST_USERS, Before, windows_of
from evalpipe.alerts.pyramid import LazySketches, Pyramid, Sketches
from evalpipe.detectors.places import part_of
from evalpipe.detectors.view import CALL_SUMS, Calls, Coverage, Normal, Place, PrintRun, Scope, Spender, Stretch
from evalpipe.profile import Profile, Profiles
from evalpipe.rollup import BINS, SUMS, Rollup
from evalpipe.sketch import Sketch

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
NormalOf = Callable[[Scope, Place, datetime], Normal | None]
"""The baseline of a rule at a place, as it was then."""

MINUTE: Final = timedelta(minutes=1)
ALIVE_S: Final = 86_400.0
"""A place where nothing happened for so long is looked at only while it has an alert."""
CELLS: Final = BINS + 2
_COUNTS: Final = 4
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
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
class _Sums:
    """Scores of one epoch at one place of a rule, by minute, as prefix sums."""

    minutes: list[int]
    before: Floats
    scored: list[int]
    """Minutes with a value."""

    def between(self, first: int, end: int) -> Floats | None:
        low, high = bisect_left(self.minutes, first), bisect_left(self.minutes, end)
        return self.before[high] - self.before[low] if high > low else None

    def newest(self, first: int, end: int) -> int:
        place = bisect_left(self.scored, end) - 1
        return self.scored[place] if place >= 0 and self.scored[place] >= first else -1


@dataclass(slots=True)
class _Meter:
    """Calls at one place of a rule: sums before each minute, from ``first`` on."""

    first: int
    before: Floats
    heard: int
    last: int
    busy: list[int]
    """Minutes with calls."""
    sketches: Pyramid[Sketches]

    def at(self, seconds: float) -> Floats:
        """The sum of all before a moment; a minute is spread evenly."""
        minutes = min(max(seconds / 60.0 - self.first, 0.0), len(self.before) - 1.0)
        whole = int(minutes)
        if whole == len(self.before) - 1:
            return self.before[whole]
        share = minutes - whole
        before = self.before[whole]
        found: Floats = before + (self.before[whole + 1] - before) * share if share else before
        return found


class HistoryFeed:
    """See the module.

    Args:
        history: what is known.
        normal_of: finds the baselines of rules.
    """

    def __init__(self, history: History, normal_of: NormalOf) -> None:
        self.now = _EPOCH
        self.normal_of = normal_of
        self.calls_by_minute = history.calls_by_minute
        self._history = history
        self._kept: dict[tuple[Any, ...], Any] = {}
        self._users = sorted(history.users, key=itemgetter(0))
        self._user_times = [at for at, _, _ in self._users]
        self.cursors: dict[tuple[str, str], int] = {}
        self.heard: dict[str, int] = {}
        for line in history.calls:
            if len(line.starts):
                first = int(line.starts.min())
                self.heard[line.place.service] = min(first, self.heard.get(line.place.service, first))

    def places(self, scope: Scope) -> set[Place]:
        """Every place where something that the rule reads happened in the last day."""
        since, until = self.now.timestamp() / 60.0 - ALIVE_S / 60.0, self.now.timestamp() / 60.0
        return {place for place, minutes in self.moments(scope).items() if _any_in(minutes, since, until)}

    def moments(self, scope: Scope) -> dict[Place, list[int]]:
        """When something that the rule reads happened, by place; minutes since 1970, in order."""
        return self._once(("moments", *_of(scope), scope.inputs, scope.criteria), lambda: self._moments(scope))

    def _moments(self, scope: Scope) -> dict[Place, list[int]]:
        found: dict[Place, set[int]] = {}
        for criterion in scope.criteria:
            for place, epochs in self.scores(scope, criterion).items():
                for sums in epochs.values():
                    found.setdefault(place, set()).update(sums.minutes)
        if scope.inputs & {"calls", "users"}:
            for place, meter in self.calls(scope).items():
                found.setdefault(place, set()).update(meter.busy)
        if "profiles" in scope.inputs:
            for place, profiles in self.profiles(scope).items():
                found.setdefault(place, set()).update(_minute(p.captured_at) for p in profiles)
        if "prints" in scope.inputs:
            for whole, runs in self._history.prints.values():
                if scope.fits(whole):
                    found.setdefault(part_of(whole, scope.by), set()).update(_minute(run.at) for run in runs)
        return {place: sorted(minutes) for place, minutes in found.items()}

    def view(self, scope: Scope, place: Place, alert_id: str) -> HistoryView:
        """One of them."""
        return HistoryView(self, scope, place, alert_id)

    def scores(self, scope: Scope, criterion: str) -> dict[Place, dict[str, _Sums]]:
        """By place and epoch."""
        return self._once(("scores", criterion, *_of(scope)), lambda: self._scores(scope, criterion))

    def _scores(self, scope: Scope, criterion: str) -> dict[Place, dict[str, _Sums]]:
        lines: dict[tuple[Place, str], list[ScoreLine]] = {}
        for line in self._history.scores:
            if (line.scorecard, line.criterion) == (scope.scorecard, criterion) and scope.fits(line.place):
                lines.setdefault((part_of(line.place, scope.by), line.epoch), []).append(line)
        found: dict[Place, dict[str, _Sums]] = {}
        for (place, epoch), mine in lines.items():
            minutes = np.concatenate([line.minutes for line in mine])
            values = np.concatenate([line.values for line in mine])
            order = np.argsort(minutes, kind="stable")
            minutes, values = minutes[order], values[order]
            before = np.zeros((len(minutes) + 1, values.shape[1]))
            np.cumsum(values, axis=0, out=before[1:])
            scored = minutes[values[:, 0] > 0].tolist()
            found.setdefault(place, {})[epoch] = _Sums(minutes.tolist(), before, scored)
        return found

    def calls(self, scope: Scope) -> dict[Place, _Meter]:
        """By place."""
        return self._once(("calls", *_of(scope)), lambda: self._calls(scope))

    def _calls(self, scope: Scope) -> dict[Place, _Meter]:
        lines: dict[Place, list[CallLine]] = {}
        for line in self._history.calls:
            if len(line.starts) and scope.fits(line.place):
                lines.setdefault(part_of(line.place, scope.by), []).append(line)
        return {place: _meter(mine) for place, mine in lines.items()}

    def profiles(self, scope: Scope) -> dict[Place, Profiles]:
        """By place, in order of time."""
        return self._once(("profiles", *_of(scope)), lambda: self._profiles(scope))

    def _profiles(self, scope: Scope) -> dict[Place, Profiles]:
        found: dict[Place, Profiles] = {}
        for place, profile in self._history.profiles:
            if scope.fits(place):
                found.setdefault(part_of(place, scope.by), []).append(profile)
        return {place: sorted(those, key=lambda p: p.captured_at) for place, those in found.items()}

    def users(self, scope: Scope, place: Place, since: datetime, until: datetime) -> Iterable[Spender]:
        """What users did, minute by minute."""
        low, high = bisect_left(self._user_times, since), bisect_left(self._user_times, until)
        for _, whole, spender in self._users[low:high]:
            if scope.fits(whole) and part_of(whole, scope.by) == place:
                yield spender

    def prints(self, scope: Scope, place: Place, name: str) -> Sequence[PrintRun]:
        """The runs of a fingerprint until now, where it is this place's."""
        whole, runs = self._history.prints.get(name, (None, []))
        if whole is None or not scope.fits(whole) or part_of(whole, scope.by) != place:
            return []
        return [run for run in runs if run.at < self.now]

    def _once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


@dataclass(frozen=True, slots=True)
class HistoryView:
    """One place; see ``evalpipe.detectors.view.View``."""

    feed: HistoryFeed
    scope: Scope
    place: Place
    alert_id: str

    @property
    def at(self) -> datetime:
        """Now."""
        return self.feed.now

    def growth(self, criterion: str) -> Stretch | None:
        """What was captured since this alert was last looked at, of the newest epoch."""
        key, end = (self.alert_id, criterion), _minute(self.at)
        first = self.feed.cursors.get(key, end - 1)
        self.feed.cursors[key] = max(first, end)
        return self._stretch(criterion, first, end)

    def scores(self, criterion: str, since: datetime, until: datetime) -> Stretch | None:
        """The scores of a window, of the newest epoch in it."""
        return self._stretch(criterion, _ceil(since), _ceil(min(until, self.at)))

    def _stretch(self, criterion: str, first: int, end: int) -> Stretch | None:
        epochs = self.feed.scores(self.scope, criterion).get(self.place, {})
        found = {epoch: total for epoch, sums in epochs.items() if (total := sums.between(first, end)) is not None}
        if not found:
            return None
        if self.scope.across_epochs:
            epoch, total = "", sum(found.values())
        else:
            epoch = max(found, key=lambda name: (epochs[name].newest(first, end), name))
            total = found[epoch]
        return Stretch(criterion, epoch, _rollup(total), _instant(first), _instant(end))

    def calls(self, since: datetime, until: datetime) -> Calls:
        """All calls of a window."""
        feed = self.feed
        until = min(until, feed.now)
        meter = feed.calls(self.scope).get(self.place)
        heard = _instant(feed.heard[self.place.service]) if self.place.service in feed.heard else since
        seconds = max(0.0, (until - max(since, heard)).total_seconds())
        if meter is None:
            return Calls(seconds)
        sums = meter.at(until.timestamp()) - meter.at(since.timestamp())
        named = dict(zip(CALL_SUMS, np.maximum(sums, 0.0).tolist(), strict=True))
        named["calls"] = round(named["calls"], 6)
        return Calls(seconds, named, LazySketches(lambda: meter.sketches.total(since, until)))

    def users(self, since: datetime, until: datetime) -> Sequence[Spender]:
        """The heaviest users of a window."""
        sums: dict[str, Spender] = {}
        for new in self.feed.users(self.scope, self.place, since, min(until, self.at)):
            old = sums.get(new.user, Spender(new.user, 0.0, 0.0, 0.0))
            sums[new.user] = Spender(
                new.user, old.calls + new.calls, old.tokens + new.tokens, old.cost_usd + new.cost_usd
            )
        return sorted(sums.values(), key=lambda s: (-s.cost_usd, -s.tokens, s.user))[:MOST_USERS]

    def profiles(self, since: datetime, until: datetime, limit: int) -> Profiles:
        """What inputs and outputs of a window looked like."""
        kept = self.feed.profiles(self.scope).get(self.place, [])
        low = bisect_left(kept, since, key=lambda profile: profile.captured_at)
        high = bisect_left(kept, min(until, self.at), key=lambda profile: profile.captured_at)
        n = high - low
        return kept[low:high] if n <= limit else [kept[low + i * n // limit] for i in range(limit)]

    def prints(self, name: str, since: datetime) -> Sequence[PrintRun]:
        """The runs of a fingerprint."""
        return [run for run in self.feed.prints(self.scope, self.place, name) if run.at >= since]

    def coverage(self, since: datetime, until: datetime) -> Coverage:
        """Nothing: the ledger's health is not kept."""
        del since, until
        return Coverage()

    def normal(self, since: datetime, until: datetime) -> Normal | None:
        """What to compare the window with."""
        spec = self.scope.normal
        if spec.kind == "none":
            return None
        if spec.kind == "baseline":
            return self.feed.normal_of(self.scope, self.place, self.at)
        return Before(self, tuple(windows_of(spec, since, until)))


def _of(scope: Scope) -> tuple[Any, ...]:
    return scope.scorecard, scope.fits, scope.by


def _meter(lines: Sequence[CallLine]) -> _Meter:
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
            sketches.add(_instant(start + width - 1), Sketches(found))
    each = np.cumsum(each, axis=0)
    each[np.abs(each) < 1e-9] = 0.0
    before = np.zeros((len(each) + 1, each.shape[1]))
    np.cumsum(each, axis=0, out=before[1:])
    busy = (np.flatnonzero(each[:, 0] > 0) + first).tolist()
    return _Meter(first, before, first, end, busy, sketches)


def _rollup(values: Floats) -> Rollup:
    numbers = values[: len(SUMS)].tolist()
    bins = values[len(SUMS) :]
    some = np.flatnonzero(bins)
    return Rollup(
        *(round(n) for n in numbers[:_COUNTS]),
        *numbers[_COUNTS:],
        dict(zip(some.tolist(), bins[some].astype(np.int64).tolist(), strict=True)),
    )


def _any_in(minutes: Sequence[int], since: float, until: float) -> bool:
    place = bisect_left(minutes, until) - 1
    return place >= 0 and minutes[place] >= since


def _minute(at: datetime) -> int:
    return int(at.timestamp() // 60)


def _ceil(at: datetime) -> int:
    return -int(-at.timestamp() // 60)


def _instant(minute: int) -> datetime:
    return datetime.fromtimestamp(minute * 60, UTC)
