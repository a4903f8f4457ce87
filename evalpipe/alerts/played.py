"""What a detector sees of a feed that was fed by hand."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

from evalpipe.detectors.places import added_up
from evalpipe.detectors.view import (
    Calls,
    Coverage,
    Normal,
    Place,
    PrintRun,
    Scope,
    Spender,
    Stretch,
)
from evalpipe.profile import Profiles
from evalpipe.rollup import Rollup
from evalpipe.scorecard.values import format_duration

if TYPE_CHECKING:
    from evalpipe.alerts.history_feed import HistoryView
    from evalpipe.alerts.memory_feed import Grown, MemoryFeed, Node

MOST_PROFILES: Final = 3000
Timed = TypeVar("Timed", bound=tuple[Any, ...])


@dataclass(frozen=True, slots=True)
class PlayedView:
    """One place; see ``evalpipe.detectors.view.View``."""

    feed: MemoryFeed
    scope: Scope
    place: Place
    alert_id: str
    node: Node

    @property
    def at(self) -> datetime:
        """Now."""
        return self.feed.now

    def growth(self, criterion: str) -> Stretch | None:
        """What was added since this alert was last looked at, of the newest epoch."""
        batches, key = self.node.grown.get(criterion, []), (self.alert_id, criterion)
        fresh = batches[self.feed.cursors.get(key, 0) :]
        self.feed.cursors[key] = len(batches)
        if not fresh:
            return None
        newest = max(fresh, key=lambda grown: grown.at).epoch
        mine = fresh if self.scope.across_epochs else [grown for grown in fresh if grown.epoch == newest]
        return self._stretch(criterion, newest, mine)

    def _stretch(self, criterion: str, epoch: str, batches: Sequence[Grown]) -> Stretch:
        total = Rollup()
        for grown in batches:
            total.merge(grown.rollup)
        times = [grown.at for grown in batches]
        return Stretch(criterion, "" if self.scope.across_epochs else epoch, total, min(times), max(times))

    def scores(self, criterion: str, since: datetime, until: datetime) -> Stretch | None:
        """The scores of a window, of the newest epoch in it; whole minutes, as the store has them."""
        first = since if since.second == since.microsecond == 0 else since.replace(second=0, microsecond=0) + _MINUTE
        kept = self.node.scores.get(criterion, {})
        totals = {epoch: pyramid.total(first, until) for epoch, pyramid in kept.items()}
        present = [epoch for epoch, total in totals.items() if _size(total)]
        if not present:
            return None
        newest = present[0]
        if len(present) > 1:
            ends = {epoch: kept[epoch].last(first, until, lambda one: one.n_scored > 0) or 0 for epoch in present}
            newest = max(present, key=lambda epoch: ends[epoch])
        if self.scope.across_epochs:
            total = Rollup()
            for epoch in present:
                total.merge(totals[epoch])
            return Stretch(criterion, "", total, since, until)
        return Stretch(criterion, newest, totals[newest], since, until)

    def calls(self, since: datetime, until: datetime) -> Calls:
        """All calls of a window."""
        heard = self.feed.heard.get(self.place.service, since)
        sums, sketches = self.node.calls(since, until)
        return Calls(max(0.0, (until - max(since, heard)).total_seconds()), dict(sums), sketches)

    def users(self, since: datetime, until: datetime) -> Sequence[Spender]:
        """The heaviest users of a window."""
        return added_up(spender for _, spender in _within(self.node.users, since, until))

    def profiles(self, since: datetime, until: datetime, limit: int) -> Profiles:
        """What inputs and outputs of a window looked like."""
        kept = self.node.profiles
        low = bisect_left(kept, since, key=lambda profile: profile.captured_at)
        high = bisect_left(kept, until, key=lambda profile: profile.captured_at)
        n = high - low
        return kept[low:high] if n <= limit else [kept[low + i * n // limit] for i in range(limit)]

    def prints(self, name: str, since: datetime) -> Sequence[PrintRun]:
        """The runs of a fingerprint."""
        kept = self.node.prints.get(name, [])
        return kept[bisect_left(kept, since, key=lambda run: run.at) :]

    def coverage(self, since: datetime, until: datetime) -> Coverage:
        """The ledger's health: counts add up, and what waits is what waits now."""
        mine = _within(self.node.coverage, since, until)
        newest = {place: coverage for _, place, coverage in mine}
        found = Coverage()
        for _, place, coverage in mine:
            waits = coverage is newest[place]
            found = found.plus(coverage if waits else replace(coverage, in_flight=0, oldest_s=0.0))
        return found

    def normal(self, since: datetime, until: datetime) -> Normal | None:
        """What to compare the window with: what was set, or the stretches before."""
        if self.scope.normal.kind == "none":
            return None
        if self.scope.normal.kind == "baseline":
            return self.feed.baseline(self.place)
        return Before(self, self.scope.normal.windows(since, until))


@dataclass(frozen=True, slots=True)
class Fixed:
    """A ``Normal`` given by hand."""

    words: str = "a baseline given by hand"
    by_criterion: Mapping[str, Stretch] = field(default_factory=dict)
    metered: Calls | None = None
    looks: Profiles | None = None

    def scores(self, criterion: str) -> Stretch | None:
        """The scores of a criterion."""
        return self.by_criterion.get(criterion)

    def calls(self) -> Calls | None:
        """What the meter counted."""
        return self.metered

    def profiles(self) -> Profiles | None:
        """What inputs and outputs looked like."""
        return self.looks


@dataclass(frozen=True, slots=True)
class Before:
    """A ``Normal`` of stretches of the past."""

    view: PlayedView | HistoryView
    windows: tuple[tuple[datetime, datetime], ...]

    @property
    def words(self) -> str:
        """Which ones."""
        spec = self.view.scope.normal
        if spec.kind == "previous":
            return f"the {format_duration(spec.span)} before"
        return f"the same hours of the {len(self.windows)} weeks before"

    def scores(self, criterion: str) -> Stretch | None:
        """The scores of a criterion, of the newest epoch."""
        found = [self.view.scores(criterion, since, until) for since, until in self.windows]
        mine = [stretch for stretch in found if stretch is not None and stretch.epoch == _newest(found)]
        if not mine:
            return None
        total = Rollup()
        for stretch in mine:
            total.merge(stretch.rollup)
        return Stretch(criterion, mine[0].epoch, total, self.windows[-1][0], self.windows[0][1])

    def calls(self) -> Calls | None:
        """What the meter counted."""
        found, seconds = Calls(), 0.0
        for since, until in self.windows:
            part = self.view.calls(since, until)
            if part.n:
                found.merge(part)
                seconds += part.seconds
        found.seconds = seconds
        return found if found.n else None

    def profiles(self) -> Profiles | None:
        """What inputs and outputs looked like."""
        parts = [self.view.profiles(since, until, MOST_PROFILES) for since, until in reversed(self.windows)]
        return [profile for part in parts for profile in part] or None


_MINUTE: Final = timedelta(minutes=1)


def _within(items: Sequence[Timed], since: datetime, until: datetime) -> Sequence[Timed]:
    """Those of a window, of items in order of time."""
    first = bisect_left(items, since, key=lambda item: item[0])
    return items[first : bisect_left(items, until, key=lambda item: item[0])]


def _newest(found: Sequence[Stretch | None]) -> str:
    return next((stretch.epoch for stretch in found if stretch is not None), "")


def _size(rollup: Rollup) -> int:
    return rollup.n_scored + rollup.n_skipped + rollup.n_abstained + rollup.n_error
