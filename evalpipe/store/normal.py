"""What is normal at a place, as a rule chose it: a baseline, the stretch before, or the same hour of the week."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final, TypeVar

from sqlalchemy import func, select

from evalpipe.detectors.places import part_of
from evalpipe.detectors.view import Calls, Normal, NormalSpec, Place, Scope, Stretch
from evalpipe.profile import Profiles
from evalpipe.rollup import Rollup
from evalpipe.scorecard.values import format_duration
from evalpipe.store import baselines
from evalpipe.store.baseline_parts import Part
from evalpipe.store.baselines import LATEST, MOST_PROFILES, Baseline, Header
from evalpipe.store.meter_slots import calls_between
from evalpipe.store.profiles import profiles_between
from evalpipe.store.series import SERVED, Series, read_rollups
from evalpipe.store.shelf import Shelf
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import rollup_days, rollups, series

T = TypeVar("T")

DEFAULT_VARIANT: Final = "baseline"
"""A variant without a baseline of its own (a new canary) is compared with this one's."""
DAY: Final = timedelta(days=1)
RECENT: Final = timedelta(days=8)
"""An epoch is present if it had scores in these; they are whole UTC days."""
_Windows = Sequence[tuple[datetime, datetime]]
_Site = tuple[str, str, str]
"""Service, environment and variant."""
Sums = Callable[[Scope, Place, str, datetime, datetime], Iterable[tuple[str, datetime, Rollup]]]
"""Of a rule's scope, a place, a criterion and a window: rollups by epoch, with when each has its newest value."""


@dataclass(frozen=True, slots=True)
class _Normal:
    """A ``Normal`` whose parts are read when they are looked at."""

    words: str
    scores: Callable[[str], Stretch | None]
    calls: Callable[[], Calls | None]
    profiles: Callable[[], Profiles | None]


@dataclass(slots=True)
class Normals:
    """What is normal, for all rules of one evaluation: what several of them need is read once.

    Args:
        tx: the transaction of the evaluation.
        now: of the evaluation; what came later is not seen.
        shelf: baselines read before.
        sums: what reads windows of scores, where somebody has read them already.
    """

    tx: Transaction
    now: datetime
    shelf: Shelf = field(default_factory=Shelf)
    sums: Sums | None = None
    _read: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    def of(self, scope: Scope, place: Place, since: datetime, until: datetime) -> Normal | None:
        """What to compare a window with; None where there is nothing, or the rule compares with nothing."""
        if scope.normal.kind == "baseline":
            return self._baseline(scope, place)
        if scope.normal.kind == "none" or scope.normal.span <= timedelta(0):
            return None
        windows = scope.normal.windows(since, until)
        return _Normal(
            words_of(scope.normal, windows),
            cache(lambda criterion: self._scores(scope, place, criterion, windows)),
            cache(lambda: self._calls(scope, place, windows)),
            lambda: self._profiles(scope, place, windows),
        )

    def epochs(self, site: Place) -> Mapping[tuple[str, str], str]:
        """The epoch of the newest scores at a service, environment and variant, by scorecard and criterion."""
        of = site[:3]
        return self._once(("epochs", of), lambda: newest_epochs(self.tx, of, self.now))

    def _baseline(self, scope: Scope, place: Place) -> Normal | None:
        header = self._header(scope, place)
        if header is None:
            return None
        found = self.shelf.get(self.tx, header)
        lacks = [] if scope.across_epochs else self._lacks(scope, place, header)
        words = header.words
        if lacks:
            words += f"; it has no scores of {', '.join(lacks)} in the present epoch: capture a new one"
        return _Normal(
            words,
            cache(lambda criterion: self._of_parts(scope, place, criterion, found)),
            cache(lambda: _of_meter(scope, place, found)),
            cache(lambda: self._of_profiles(scope, place, header)),
        )

    def _of_profiles(self, scope: Scope, place: Place, header: Header) -> Profiles | None:
        found = self.shelf.profiles(self.tx, header)
        return [one for one in found if _belongs(scope, place, one.words.get("feature", ""))] or None

    def _header(self, scope: Scope, place: Place) -> Header | None:
        if scope.normal.name != LATEST:
            named = self._once(
                ("named", scope.normal.name), lambda: baselines.listing(self.tx, {"name": scope.normal.name})
            )
            return named[0] if named and named[0].captured_at <= self.now else None
        for variant in dict.fromkeys((place.variant, DEFAULT_VARIANT)):
            site = {"service": place.service, "environment": place.environment, "variant": variant}
            there = self._once(("at", *site.values()), lambda: self._at(site))  # noqa: B023 - called at once
            fitting = (one for one in there if scope.across_epochs or not self._lacks(scope, place, one))
            if there:
                return next(fitting, there[0])
        return None

    def _at(self, site: Mapping[str, str]) -> list[Header]:
        """The baselines of a site that there were, and that were not retired, newest first."""
        then = (one for one in baselines.listing(self.tx, site) if one.captured_at <= self.now)
        return [one for one in then if one.retired_at is None or one.retired_at > self.now]

    def _lacks(self, scope: Scope, place: Place, header: Header) -> list[str]:
        """The criteria of the scope whose present epoch the baseline does not have."""
        missing = []
        for name in scope.criteria:
            present = self._present(scope, place, name)
            there = (n for key, n in header.epochs.items() if _is_of(key, scope.scorecard, name))
            if present is not None and not any(present in epochs for epochs in there):
                missing.append(name)
        return missing

    def _present(self, scope: Scope, place: Place, criterion: str) -> str | None:
        """The present epoch of a criterion."""
        epochs = self.epochs(place)
        found = (epoch for (card, name), epoch in epochs.items() if name == criterion and scope.scorecard in ("", card))
        return next(found, None)

    def _of_parts(self, scope: Scope, place: Place, criterion: str, found: Baseline) -> Stretch | None:
        mine = [
            part
            for part in found.parts
            if part.criterion == criterion
            and scope.scorecard in ("", part.scorecard)
            and part.rollup.n_scored
            and _belongs(scope, place, part.feature)
        ]
        newest = max(mine, key=lambda part: part.until, default=None)
        if newest is None:
            return None
        present = self._present(scope, place, criterion) or newest.epoch
        if scope.across_epochs and all(part.epoch != present for part in mine):
            present = newest.epoch
        stretch = merged([part for part in mine if part.epoch == present])
        return _for(scope, stretch)

    def _scores(self, scope: Scope, place: Place, criterion: str, windows: _Windows) -> Stretch | None:
        found: dict[str, Rollup] = {}
        newest: dict[str, datetime] = {}
        for epoch, at, rollup in self._by_epoch(scope, place, criterion, windows):
            found.setdefault(epoch, Rollup()).merge(rollup)
            newest[epoch] = max(newest.get(epoch, at), at)
        present = self._present(scope, place, criterion)
        if scope.across_epochs and present not in found and newest:
            present = max(newest, key=lambda epoch: (newest[epoch], epoch))
        if present is None or present not in found:
            return None
        effect = self._design_effect(scope, place, criterion)
        # As long as the windows are together: how often scores come is read from it.
        until = windows[-1][0] + sum((end - start for start, end in windows), timedelta(0))
        return _for(scope, Stretch(criterion, present, found[present], windows[-1][0], until, effect))

    def _by_epoch(
        self, scope: Scope, place: Place, criterion: str, windows: _Windows
    ) -> Iterable[tuple[str, datetime, Rollup]]:
        """Rollups with values, each with its epoch and a time at which it has some."""
        if self.sums is not None:
            for since, until in windows:
                yield from self.sums(scope, place, criterion, since, until)
            return
        for at, one, rollup in self._rollups(place, windows):
            fits = one.criterion == criterion and scope.scorecard in ("", one.scorecard)
            if fits and rollup.n_scored and _belongs(scope, place, one.feature, one.release_id):
                yield one.epoch, at, rollup

    def _design_effect(self, scope: Scope, place: Place, criterion: str) -> float:
        """As measured in the newest baseline that fits: a stretch itself tells nothing of conversations."""
        header = self._header(replace(scope, normal=NormalSpec("baseline"), across_epochs=True), place)
        parts = () if header is None else self.shelf.get(self.tx, header).parts
        of = (p.design_effect for p in parts if p.criterion == criterion and scope.scorecard in ("", p.scorecard))
        return max(of, default=1.0)

    def _rollups(self, place: Place, windows: _Windows) -> list[tuple[datetime, Series, Rollup]]:
        site = {"service": place.service, "environment": place.environment, "variant": place.variant}
        return [
            row
            for since, until in windows
            for row in self._once(
                ("rollups", *site.values(), since, until),
                lambda: read_rollups(self.tx, since=since, until=until, width=DAY, **site),  # noqa: B023 - called at once
            )
        ]

    def _calls(self, scope: Scope, place: Place, windows: _Windows) -> Calls | None:
        total = Calls()
        seconds = 0.0
        for since, until in windows:
            there = self._once(
                ("calls", since, until),
                lambda: calls_between(self.tx, since, until, self.now),  # noqa: B023 - called at once
            )
            mine = [calls for of, calls in there.items() if _is_part(scope, place, of)]
            for calls in mine:
                total.merge(calls)
            seconds += max((calls.seconds for calls in mine), default=0.0)
        total.seconds = seconds
        return total if total.n or total.sums["blocked"] else None

    def _profiles(self, scope: Scope, place: Place, windows: _Windows) -> Profiles | None:
        limit = MOST_PROFILES // len(windows)
        found = [
            profile
            for since, until in windows
            for profile in profiles_between(self.tx, place, since, until, limit, scope.fits)
        ]
        return found or None

    def _once(self, key: tuple[Any, ...], read: Callable[[], T]) -> T:
        if key not in self._read:
            self._read[key] = read()
        found: T = self._read[key]
        return found


def words_of(spec: NormalSpec, windows: _Windows) -> str:
    """What it is compared with, for people."""
    since, until = windows[-1][0], windows[0][1]
    if spec.kind == "previous":
        return f"the {format_duration(spec.span)} before ({since:%Y-%m-%d %H:%M} to {until:%Y-%m-%d %H:%M} UTC)"
    weeks = f"{len(windows)} weeks" if len(windows) > 1 else "week"
    return f"the same hours of the {weeks} before ({since:%A %H:%M} to {until:%H:%M} UTC, since {since:%Y-%m-%d})"


def newest_epochs(tx: Transaction, site: _Site | tuple[str, ...], now: datetime) -> dict[tuple[str, str], str]:
    """The epoch of the newest scores at a service, environment and variant, by scorecard and criterion.

    Of the last days: what has had no scores for longer has no present epoch.
    """
    newest = (
        select(func.max(rollups.c.bucket_at))
        .where(rollups.c.series_id == series.c.series_id, rollups.c.bucket_at < now, rollups.c.n_scored > 0)
        .scalar_subquery()
    )
    names = ("service", "environment", "variant")
    columns = (series.c[name] for name in ("scorecard", "criterion", "epoch", "first_seen_at"))
    recent = select(rollup_days.c.series_id).where(rollup_days.c.bucket_at >= now - RECENT)
    query = select(*columns, newest.label("at")).where(
        series.c.series_id.in_(recent),
        series.c.arm == SERVED,
        *(series.c[name] == value for name, value in zip(names, site, strict=True)),
    )
    found: dict[tuple[str, str], tuple[datetime, datetime, str]] = {}
    for row in tx.connection.execute(query):
        if row.at is not None:
            mine = row.at, row.first_seen_at, row.epoch
            found[row.scorecard, row.criterion] = max(found.get((row.scorecard, row.criterion), mine), mine)
    return {key: epoch for key, (_, _, epoch) in found.items()}


def merged(parts: Iterable[Part]) -> Stretch | None:
    """The features of one criterion and epoch together."""
    found = list(parts)
    if not found:
        return None
    total = Rollup()
    for part in found:
        total.merge(part.rollup)
    effect = sum(part.design_effect * part.rollup.n_scored for part in found) / max(1, total.n_scored)
    since, until = min(part.since for part in found), max(part.until for part in found)
    return Stretch(found[0].criterion, found[0].epoch, total, since, until, max(1.0, effect))


def _for(scope: Scope, stretch: Stretch | None) -> Stretch | None:
    """As the rule wants it: without an epoch where it compares across them."""
    return replace(stretch, epoch="") if stretch is not None and scope.across_epochs else stretch


def _of_meter(scope: Scope, place: Place, found: Baseline) -> Calls | None:
    total = Calls()
    for feature, part in found.calls.items():
        if _belongs(scope, place, feature):
            total.merge(part.calls)
    return total if total.n else None


def _is_of(key: str, scorecard: str, criterion: str) -> bool:
    card, _, name = key.partition("/")
    return name == criterion and scorecard in ("", card)


def _belongs(scope: Scope, place: Place, feature: str, release_id: str = "") -> bool:
    """Whether a feature (and release) of the place's variant is part of what its alert is about."""
    finer = Place(place.service, place.environment, place.variant, feature, release_id)
    return _is_part(scope, place, finer if release_id else finer._replace(release_id=place.release_id))


def _is_part(scope: Scope, place: Place, finer: Place) -> bool:
    return scope.fits(finer) and part_of(finer, scope.by) == place
