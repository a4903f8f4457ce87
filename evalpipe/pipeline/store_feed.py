"""What detectors see in production: the database, read in a few queries for all rules of one evaluation."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

import numpy as np
from sqlalchemy import func, select

from evalpipe.detectors.places import covered, grouped, heaviest, part_of
from evalpipe.detectors.view import Calls, Coverage, Normal, Place, PrintRun, Scope, Spender, Stretch
from evalpipe.profile import Profiles
from evalpipe.rollup import Rollup
from evalpipe.store import growths, prints, profiles, series
from evalpipe.store.coverage import coverage_between
from evalpipe.store.growths import Growth
from evalpipe.store.levels import DAY, HOUR, MINUTE
from evalpipe.store.meter_slots import calls_between
from evalpipe.store.meter_users import users_between
from evalpipe.store.normal import Normals
from evalpipe.store.series import SERVED, Series
from evalpipe.store.shelf import Shelf
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import meters, releases, rollup_days, rollups
from evalpipe.store.windows import Line, Sums, Windows, has_scores, instant

T = TypeVar("T")

ALIVE: Final = timedelta(days=1)
"""A place where nothing happened for so long is looked at only while it has an alert."""
RECENT: Final = timedelta(hours=1)
"""How far back the newest epoch of a series that grows is looked for."""


class StoreFeed:
    """Where series come from in production. It lives for one evaluation, in its transaction.

    What rules share is read once: places, growth, and each window of scores and of the meter. The growth is taken out
    of its queue at once, also where no rule wants it; it comes back if the transaction fails.

    Args:
        tx: the transaction that will store what follows.
        now: aware UTC.
        shelf: baselines that earlier evaluations have read.
    """

    def __init__(self, tx: Transaction, now: datetime, shelf: Shelf | None = None) -> None:
        self.tx, self.now = tx, now
        self.windows = Windows(tx)
        self.normals = Normals(tx, now, shelf or Shelf(), self.by_epoch)
        self._kept: dict[Hashable, Any] = {}
        taken = growths.take(tx)
        known = series.by_id(tx, [g.series_id for g in taken])
        self._growths: dict[tuple[str, str], list[tuple[Series, datetime, Growth]]] = {}
        for g in taken:
            if g.series_id not in known:
                continue  # its series was removed: nobody compares it with anything
            of, first_seen = known[g.series_id]
            self._growths.setdefault((of.scorecard, of.criterion), []).append((of, first_seen, g))

    def places(self, scope: Scope) -> set[Place]:
        """Every place where something that the rule reads happened in the last day."""
        return self.once(("places", scope.scorecard, scope.inputs, scope.criteria, scope.fits, scope.by), lambda: {
            part_of(place, scope.by) for place in self._finest(scope) if scope.fits(place)
        })  # fmt: skip

    def _finest(self, scope: Scope) -> Iterable[Place]:
        for criterion in scope.criteria:
            yield from self._scored.get((scope.scorecard, criterion), ())
        if scope.inputs & {"calls", "users", "coverage"}:
            yield from self._metered
        if "profiles" in scope.inputs:
            yield from self.once("profiles", lambda: profiles.places_since(self.tx, self.now - ALIVE))
        if "prints" in scope.inputs:
            yield from self.once("prints", lambda: prints.places(self.tx))

    def view(self, scope: Scope, place: Place, alert_id: str) -> StoreView:
        """One of them."""
        del alert_id
        return StoreView(self, scope, place)

    def once(self, key: Hashable, read: Callable[[], T]) -> T:
        """What ``read`` gives, which is asked once in this evaluation."""
        if key not in self._kept:
            self._kept[key] = read()
        found: T = self._kept[key]
        return found

    @property
    def _scored(self) -> Mapping[tuple[str, str], set[Place]]:
        def read() -> dict[tuple[str, str], set[Place]]:
            query = select(rollup_days.c.series_id).distinct()
            recent = self.tx.connection.scalars(query.where(rollup_days.c.bucket_at >= DAY.floor(self.now - ALIVE)))
            found: dict[tuple[str, str], set[Place]] = {}
            for of, _ in series.by_id(self.tx, recent).values():
                if of.arm == SERVED:
                    found.setdefault((of.scorecard, of.criterion), set()).add(place_of(of))
            return found

        return self.once("scored", read)

    @property
    def _metered(self) -> list[Place]:
        def read() -> list[Place]:
            r = releases.c
            query = (
                select(r.service, r.environment, r.variant, meters.c.feature, r.release_id)
                .join(meters, meters.c.release_id == r.release_id)
                .where(meters.c.hour_at >= HOUR.floor(self.now - ALIVE))
                .distinct()
            )
            return [Place(*row) for row in self.tx.connection.execute(query)]

        return self.once("metered", read)

    def growth(self, scope: Scope, place: Place, criterion: str) -> Stretch | None:
        """What arrived at a place, of its newest epoch."""
        key = "growth", scope.scorecard, criterion, scope.fits, scope.by
        by_place = self.once(key, lambda: self._grown(scope, criterion))
        mine = by_place.get(place)
        if mine is None:
            return None
        newest = max(mine, key=lambda item: (self._last(item[2]), item[1], item[0].epoch))[0].epoch
        # An older epoch whose last scores come late is not the newest again.
        present = self._present(scope, place, criterion)
        if present is not None and present[1] != newest:
            newest = present[1] if present[0] > max(self._last(g) for _, _, g in mine) else newest
        chosen = [g for of, _, g in mine if scope.across_epochs or of.epoch == newest]
        if not chosen:
            return None
        total = Rollup()
        for g in chosen:
            total.merge(g.rollup)
        epoch = "" if scope.across_epochs else newest
        return Stretch(criterion, epoch, total, min(g.since for g in chosen), max(g.until for g in chosen))

    def _grown(self, scope: Scope, criterion: str) -> dict[Place, list[tuple[Series, datetime, Growth]]]:
        found: dict[Place, list[tuple[Series, datetime, Growth]]] = {}
        for item in self._growths.get((scope.scorecard, criterion), ()):
            if scope.fits(place := place_of(item[0])):
                found.setdefault(part_of(place, scope.by), []).append(item)
        return found

    def _last(self, growth: Growth) -> datetime:
        """When the newest scored minute of a series that grew starts."""
        return self._newest_minutes.get(growth.series_id, growth.until)

    def _present(self, scope: Scope, place: Place, criterion: str) -> tuple[datetime, str] | None:
        """The newest scored minute of the last hour at a place, with its epoch."""

        def read() -> dict[Place, tuple[datetime, datetime, str]]:
            newest = self._newest_minutes
            found: dict[Place, tuple[datetime, datetime, str]] = {}
            for of_id, (of, first_seen) in self.once("recent", lambda: series.by_id(self.tx, newest)).items():
                whole = place_of(of)
                is_mine = (of.scorecard, of.criterion, of.arm) == (scope.scorecard, criterion, SERVED)
                if is_mine and scope.fits(whole):
                    at, mine = part_of(whole, scope.by), (newest[of_id], first_seen, of.epoch)
                    found[at] = max(found.get(at, mine), mine)
            return found

        mine = self.once(("present", scope.scorecard, criterion, scope.fits, scope.by), read).get(place)
        return None if mine is None else (mine[0], mine[2])

    @property
    def _newest_minutes(self) -> Mapping[str, datetime]:
        def read() -> dict[str, datetime]:
            c = rollups.c
            newest = func.max(c.bucket_at, type_=c.bucket_at.type)
            query = select(c.series_id, newest).where(c.bucket_at >= self.now - RECENT, c.n_scored > 0)
            return {row[0]: row[1] for row in self.tx.connection.execute(query.group_by(c.series_id))}

        return self.once("newest", read)

    def scores(self, scope: Scope, place: Place, criterion: str, since: datetime, until: datetime) -> Stretch | None:
        """A window of scores at a place, of the newest epoch in it; one that ends now has the whole current minute."""
        if until >= self.now:
            until = MINUTE.floor(self.now) + MINUTE.width
        key = "scores", scope.scorecard, criterion, scope.fits, scope.by, place, since, until, scope.across_epochs
        return self.once(key, lambda: self._scores(scope, place, criterion, since, until))

    def _scores(self, scope: Scope, place: Place, criterion: str, since: datetime, until: datetime) -> Stretch | None:
        sums, line, mine = self._window(scope, place, criterion, since, until)
        if not mine:
            return None
        newest = max(mine, key=lambda i: (sums.newest[i], line.first_seen[i], line.series[i].epoch))
        epoch = line.series[newest].epoch
        if scope.across_epochs:
            return Stretch(criterion, "", sums.rollup(mine), since, until)
        return Stretch(criterion, epoch, sums.rollup([i for i in mine if line.series[i].epoch == epoch]), since, until)

    def by_epoch(
        self, scope: Scope, place: Place, criterion: str, since: datetime, until: datetime
    ) -> list[tuple[str, datetime, Rollup]]:
        """A window of values at a place by epoch, with when each epoch has its newest."""
        sums, line, mine = self._window(scope, place, criterion, since, until)
        epochs: dict[str, list[int]] = {}
        for i in mine:
            if sums.newest[i] >= 0:
                epochs.setdefault(line.series[i].epoch, []).append(i)
        return [
            (epoch, instant(max(int(sums.newest[i]) for i in those)), sums.rollup(those))
            for epoch, those in epochs.items()
        ]

    def _window(
        self, scope: Scope, place: Place, criterion: str, since: datetime, until: datetime
    ) -> tuple[Sums, Line, list[int]]:
        """A window of a criterion, and the numbers of the series at the place that have any score in it."""
        sums = self.windows.sums(scope.scorecard, criterion, since, until)
        line = self.windows.line(scope.scorecard, criterion)
        key = "numbers", scope.scorecard, criterion, scope.fits, scope.by, len(line.series)
        mine = self.once(key, lambda: _numbers(line.series, scope)).get(place)
        if mine is None:
            return sums, line, []
        mine = mine[mine < len(sums.newest)]
        return sums, line, mine[has_scores(sums.values[mine])].tolist()


@dataclass(frozen=True, slots=True)
class StoreView:
    """One place; see ``evalpipe.detectors.view.View``."""

    feed: StoreFeed
    scope: Scope
    place: Place

    @property
    def at(self) -> datetime:
        """Now."""
        return self.feed.now

    def growth(self, criterion: str) -> Stretch | None:
        """The scores that were committed since the last evaluation."""
        return self.feed.growth(self.scope, self.place, criterion)

    def scores(self, criterion: str, since: datetime, until: datetime) -> Stretch | None:
        """The scores of a window."""
        return self.feed.scores(self.scope, self.place, criterion, since, until)

    def calls(self, since: datetime, until: datetime) -> Calls:
        """All calls of a window."""
        found = self._by_place("calls", since, until, calls_between, grouped)
        return found.get(self.place) or Calls((until - since).total_seconds())

    def users(self, since: datetime, until: datetime) -> Sequence[Spender]:
        """The heaviest users of a window."""

        def read(tx: Transaction, first: datetime, last: datetime, now: datetime) -> dict[Place, list[Spender]]:
            del now
            return users_between(tx, first, last)

        return self._by_place("users", since, until, read, heaviest).get(self.place, [])

    def profiles(self, since: datetime, until: datetime, limit: int) -> Profiles:
        """What inputs and outputs of a window looked like."""
        scope = self.scope
        key = "profiles", scope.fits, self.place, since, until, limit
        return self.feed.once(
            key, lambda: profiles.profiles_between(self.feed.tx, self.place, since, until, limit, scope.fits)
        )

    def prints(self, name: str, since: datetime) -> Sequence[PrintRun]:
        """The runs of a fingerprint, where it is this place's."""
        tx = self.feed.tx
        whole = self.feed.once(("print", name), lambda: prints.place_of(tx, name))
        if whole is None or part_of(whole, self.scope.by) != self.place:
            return []
        return self.feed.once(("prints", name, since), lambda: self.feed.normals.shelf.prints(tx, name, since))

    def coverage(self, since: datetime, until: datetime) -> Coverage:
        """The ledger's health."""
        scorecard = self.scope.scorecard

        def read(tx: Transaction, first: datetime, last: datetime, now: datetime) -> dict[Place, Coverage]:
            return coverage_between(tx, first, last, now, scorecard)

        return self._by_place(f"coverage {scorecard}", since, until, read, covered).get(self.place) or Coverage()

    def normal(self, since: datetime, until: datetime) -> Normal | None:
        """What to compare the window with."""
        feed, scope = self.feed, self.scope
        key = "normal", scope.scorecard, scope.inputs, scope.criteria, scope.fits, scope.by, scope.normal
        of = key, scope.across_epochs, self.place, since, until
        return feed.once(of, lambda: feed.normals.of(scope, self.place, since, until))

    def _by_place(
        self,
        kind: str,
        since: datetime,
        until: datetime,
        read: Callable[[Transaction, datetime, datetime, datetime], Any],
        group: Callable[..., dict[Place, T]],
    ) -> dict[Place, T]:
        """A window of the finest places, read once, then grouped once for all rules that share scope and dimensions."""
        feed, scope = self.feed, self.scope
        finest = feed.once((kind, since, until), lambda: read(feed.tx, since, until, feed.now))
        return feed.once((kind, since, until, scope.fits, scope.by), lambda: group(finest, scope.fits, scope.by))


def place_of(of: Series) -> Place:
    """The finest place of a series."""
    return Place(of.service, of.environment, of.variant, of.feature, of.release_id)


def _numbers(found: Sequence[Series], scope: Scope) -> dict[Place, Any]:
    """Numbers of the series by the rule's places."""
    by_place: dict[Place, list[int]] = {}
    for number, of in enumerate(found):
        if scope.fits(place := place_of(of)):
            by_place.setdefault(part_of(place, scope.by), []).append(number)
    return {place: np.array(numbers, dtype=np.int64) for place, numbers in by_place.items()}
