"""A feed of what was: stored history as detectors would have seen it at any time, fast enough to play a month.

Scores are summed by prefix sums, and so is the meter, which is spread evenly over what it is kept by. ``now`` is set by
whoever plays; nothing later is seen, but that an hour of the meter is known from its beginning.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, Final, TypeVar

import numpy as np

from evalpipe.alerts.history import (
    CallLine,
    CallSums,
    History,
    ScoreLine,
    ScoreSums,
    calls_of,
    instant,
    rollup_of,
    scores_of,
)
from evalpipe.alerts.played import Before
from evalpipe.detectors.calls import Sketches
from evalpipe.detectors.places import added_up, part_of
from evalpipe.detectors.view import CALL_SUMS, Calls, Coverage, Normal, Place, PrintRun, Scope, Spender, Stretch
from evalpipe.profile import Profiles

T = TypeVar("T")
NormalOf = Callable[[Scope, Place, datetime], Normal | None]
"""The baseline of a rule at a place, as it was then."""

ALIVE_MIN: Final = 1440.0
"""A place where nothing happened for so long is looked at only while it has an alert."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


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
        until = self.now.timestamp() / 60.0
        since = until - ALIVE_MIN
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
        for place, at in self._dated(scope):
            found.setdefault(place, set()).add(_minute(at))
        return {place: sorted(minutes) for place, minutes in found.items()}

    def _dated(self, scope: Scope) -> Iterator[tuple[Place, datetime]]:
        if "profiles" in scope.inputs:
            yield from ((place, p.captured_at) for place, those in self.profiles(scope).items() for p in those)
        if "prints" in scope.inputs:
            for whole, runs in self._history.prints.values():
                yield from ((part_of(whole, scope.by), run.at) for run in runs if scope.fits(whole))

    def view(self, scope: Scope, place: Place, alert_id: str) -> HistoryView:
        """One of them."""
        return HistoryView(self, scope, place, alert_id)

    def scores(self, scope: Scope, criterion: str) -> dict[Place, dict[str, ScoreSums]]:
        """By place and epoch."""
        return self._once(("scores", criterion, *_of(scope)), lambda: self._scores(scope, criterion))

    def _scores(self, scope: Scope, criterion: str) -> dict[Place, dict[str, ScoreSums]]:
        lines: dict[tuple[Place, str], list[ScoreLine]] = {}
        for line in self._history.scores:
            if (line.scorecard, line.criterion) == (scope.scorecard, criterion) and scope.fits(line.place):
                lines.setdefault((part_of(line.place, scope.by), line.epoch), []).append(line)
        found: dict[Place, dict[str, ScoreSums]] = {}
        for (place, epoch), mine in lines.items():
            found.setdefault(place, {})[epoch] = scores_of(mine)
        return found

    def calls(self, scope: Scope) -> dict[Place, CallSums]:
        """By place."""
        return self._once(("calls", *_of(scope)), lambda: self._calls(scope))

    def _calls(self, scope: Scope) -> dict[Place, CallSums]:
        lines: dict[Place, list[CallLine]] = {}
        for line in self._history.calls:
            if len(line.starts) and scope.fits(line.place):
                lines.setdefault(part_of(line.place, scope.by), []).append(line)
        return {place: calls_of(mine) for place, mine in lines.items()}

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

    def _once(self, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        if key not in self._kept:
            self._kept[key] = make()
        found: T = self._kept[key]
        return found


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
            epoch, total = "", np.sum([*found.values()], axis=0)
        else:
            epoch = max(found, key=lambda name: (epochs[name].newest(first, end), name))
            total = found[epoch]
        return Stretch(criterion, epoch, rollup_of(total), instant(first), instant(end))

    def calls(self, since: datetime, until: datetime) -> Calls:
        """All calls of a window."""
        feed = self.feed
        until = min(until, feed.now)
        meter = feed.calls(self.scope).get(self.place)
        heard = instant(feed.heard[self.place.service]) if self.place.service in feed.heard else since
        seconds = max(0.0, (until - max(since, heard)).total_seconds())
        if meter is None:
            return Calls(seconds)
        sums = meter.at(until.timestamp()) - meter.at(since.timestamp())
        named = dict(zip(CALL_SUMS, np.maximum(sums, 0.0).tolist(), strict=True))
        named["calls"] = round(named["calls"], 6)
        return Calls(seconds, named, Sketches(lambda: meter.sketches.total(since, until)))

    def users(self, since: datetime, until: datetime) -> Sequence[Spender]:
        """The heaviest users of a window."""
        return added_up(self.feed.users(self.scope, self.place, since, min(until, self.at)))

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
        return Before(self, spec.windows(since, until))


def _of(scope: Scope) -> tuple[Any, ...]:
    return scope.scorecard, scope.fits, scope.by


def _any_in(minutes: Sequence[int], since: float, until: float) -> bool:
    place = bisect_left(minutes, until) - 1
    return place >= 0 and minutes[place] >= since


def _minute(at: datetime) -> int:
    return int(at.timestamp() // 60)


def _ceil(at: datetime) -> int:
    return -int(-at.timestamp() // 60)
