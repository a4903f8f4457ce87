"""A feed that is fed by hand: for tests of rules, for simulations, and for history that is played back.

It keeps what the store keeps, at the same grain: scores by the minute, calls to five seconds for two hours, to the
minute for two days and to the hour after that. Nothing here knows a database; ``now`` is set by whoever plays.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from operator import attrgetter, itemgetter
from typing import Any, Final, TypeVar

from evalpipe.alerts.played import PlayedView
from evalpipe.alerts.pyramid import Pyramid, Sketches, Sums
from evalpipe.detectors.calls import Sketches as LazySketches
from evalpipe.detectors.places import part_of
from evalpipe.detectors.view import CALL_SKETCHES, CALL_SUMS, Coverage, Normal, Place, PrintRun, Scope, Spender
from evalpipe.profile import Profile
from evalpipe.rollup import Rollup
from evalpipe.score import Score, scored
from evalpipe.sketch import Sketch

ALIVE: Final = timedelta(days=1)
"""A place where nothing happened for so long is looked at only while it has an alert."""
SCORE_WIDTHS: Final = (60, 3600, 86_400)
CALL_WIDTHS: Final = (5, 60, 3600)
"""Buckets, in seconds."""
CALLS_KEPT: Final = (7200, 2 * 86_400, None)
"""How long they are kept, in seconds; None is for ever."""


@dataclass(slots=True)
class Grown:
    """One batch of scores, as it came."""

    at: datetime
    epoch: str
    rollup: Rollup


Item = TypeVar("Item")
FIRST: Final[Callable[[Any], datetime]] = itemgetter(0)
AT: Final[Callable[[Any], datetime]] = attrgetter("at")


def _insert(items: list[Item], item: Item, at: Callable[[Any], datetime]) -> None:
    """Keep them in order of time: most come in it, and windows are found by it."""
    if not items or at(items[-1]) <= at(item):
        items.append(item)
    else:
        insort(items, item, key=at)


def _sketch(values: Mapping[float, int] | Sketch) -> Sketch:
    if isinstance(values, Sketch):
        return values
    made = Sketch()
    for value, count in values.items():
        made.add(value, count)
    return made


def _new_scores() -> Pyramid[Rollup]:
    return Pyramid(SCORE_WIDTHS, Rollup)


@dataclass(slots=True)
class Node:
    """All that is known of one place, at whatever grain: a place of the feed, or of a rule."""

    scores: dict[str, dict[str, Pyramid[Rollup]]] = field(default_factory=dict)
    grown: dict[str, list[Grown]] = field(default_factory=dict)
    sums: Pyramid[Sums] = field(default_factory=lambda: Pyramid(CALL_WIDTHS, Sums, CALLS_KEPT))
    sketches: Pyramid[Sketches] = field(default_factory=lambda: Pyramid(CALL_WIDTHS, Sketches, CALLS_KEPT))
    users: list[tuple[datetime, Spender]] = field(default_factory=list)
    profiles: list[Profile] = field(default_factory=list)
    coverage: list[tuple[datetime, Place, Coverage]] = field(default_factory=list)
    prints: dict[str, list[PrintRun]] = field(default_factory=dict)
    last_at: dict[str, datetime] = field(default_factory=dict)
    _summed: dict[tuple[datetime, datetime], tuple[dict[str, float], LazySketches]] = field(default_factory=dict)

    def add_calls(self, at: datetime, sums: Mapping[str, float], of_values: Sketches) -> None:
        """Calls at one moment."""
        self._summed.clear()
        self.sums.add(at, Sums(sums))
        if of_values:
            self.sketches.add(at, of_values)
        self.note("calls", at)

    def calls(self, since: datetime, until: datetime) -> tuple[dict[str, float], LazySketches]:
        """The calls of a window: rules ask for the same ones again."""
        key = since, until
        if key not in self._summed:
            sums = dict.fromkeys(CALL_SUMS, 0.0) | self.sums.total(since, until)
            self._summed[key] = sums, LazySketches(lambda: self.sketches.total(since, until))
        return self._summed[key]

    def note(self, what: str, at: datetime) -> None:
        """Something happened."""
        self.last_at[what] = max(at, self.last_at.get(what, at))

    def add_scores(self, criterion: str, grown: Grown) -> None:
        """A batch of one minute."""
        by_epoch = self.scores.setdefault(criterion, {})
        by_epoch.setdefault(grown.epoch, _new_scores()).add(grown.at, grown.rollup)
        self.grown.setdefault(criterion, []).append(grown)
        self.note(f"scores {criterion}", grown.at)

    def take(self, other: Node) -> None:
        """Everything that another one has."""
        for criterion, batches in other.grown.items():
            for grown in batches:
                self.add_scores(criterion, grown)
        self.sums.take(other.sums)
        self.sketches.take(other.sketches)
        self.users = sorted([*self.users, *other.users], key=FIRST)
        self.profiles = sorted([*self.profiles, *other.profiles], key=lambda profile: profile.captured_at)
        self.coverage = sorted([*self.coverage, *other.coverage], key=FIRST)
        for name, runs in other.prints.items():
            self.prints[name] = sorted([*self.prints.get(name, ()), *runs], key=AT)
        for what, at in other.last_at.items():
            self.note(what, at)


class MemoryFeed:
    """Series by place, added as they come. Places are the finest: service, environment, variant, feature, release.

    Args:
        now: aware UTC; set it again as time goes by.
    """

    def __init__(self, now: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self.now = now
        self._leaves: dict[tuple[str, Place], Node] = {}
        self._families: dict[tuple[object, ...], tuple[Scope, dict[Place, Node]]] = {}
        self._found: dict[tuple[str, Place], list[Node]] = {}  # of _nodes
        self._normals: dict[Place | None, Normal] = {}
        self.cursors: dict[tuple[str, str], int] = {}
        self.heard: dict[str, datetime] = {}

    def add_scores(
        self,
        criterion: str,
        place: Place,
        at: datetime,
        values: Iterable[float | Score],
        *,
        weight: float = 1.0,
        epoch: str = "1",
        scorecard: str = "",
    ) -> None:
        """Scores captured at one moment: values from 0 to 1, or whole scores (errors, abstentions).

        Args:
            criterion: that was scored.
            place: the finest.
            at: aware UTC.
            values: of each record one.
            weight: 1 / inclusion probability of each.
            epoch: of all of them.
            scorecard: whose criterion; "" is read by rules of every scorecard.
        """
        rollup = Rollup()
        for value in values:
            rollup.add(value if isinstance(value, Score) else scored(float(value)), weight)
        self.add_rollup(criterion, place, at, rollup, epoch=epoch, scorecard=scorecard)

    def add_rollup(
        self, criterion: str, place: Place, at: datetime, rollup: Rollup, *, epoch: str = "1", scorecard: str = ""
    ) -> None:
        """Many scores captured at one moment, added up."""
        for node in self._nodes(scorecard, place):
            node.add_scores(criterion, Grown(at, epoch, rollup))

    def add_calls(
        self,
        place: Place,
        at: datetime,
        sums: Mapping[str, float],
        sketches: Mapping[str, Mapping[float, int] | Sketch] | None = None,
    ) -> None:
        """Calls at one moment: ``CALL_SUMS`` by name, and of ``CALL_SKETCHES`` counts by value in ms.

        Raises:
            ValueError: there is no such sum, or sketch.
        """
        if unknown := (sums.keys() - set(CALL_SUMS)) | ((sketches or {}).keys() - set(CALL_SKETCHES)):
            raise ValueError(f"the meter does not count {', '.join(sorted(unknown))}")
        of_values = Sketches({name: _sketch(counts) for name, counts in (sketches or {}).items()})
        self.heard[place.service] = min(at, self.heard.get(place.service, at))
        for node in self._nodes("", place):
            node.add_calls(at, sums, of_values)

    def add_spender(self, place: Place, at: datetime, spender: Spender) -> None:
        """What one user did."""
        for node in self._nodes("", place):
            _insert(node.users, (at, spender), FIRST)
            node.note("users", at)

    def add_profile(self, place: Place, profile: Profile) -> None:
        """What one record looks like; in order of time."""
        for node in self._nodes("", place):
            node.profiles.append(profile)
            node.note("profiles", profile.captured_at)

    def add_print(self, place: Place, name: str, run: PrintRun) -> None:
        """One answer to a prompt of a fingerprint."""
        for node in self._nodes("", place):
            _insert(node.prints.setdefault(name, []), run, AT)
            node.note("prints", run.at)

    def add_coverage(self, place: Place, at: datetime, coverage: Coverage) -> None:
        """The ledger's health; what is counted adds up over a window, what waits is that of each place's newest."""
        for node in self._nodes("", place):
            _insert(node.coverage, (at, place, coverage), FIRST)
            node.note("coverage", at)

    def set_normal(self, normal: Normal, place: Place | None = None) -> None:
        """What rules with a baseline compare with at a place (as alerts have it), or everywhere."""
        self._normals[place] = normal

    def baseline(self, place: Place) -> Normal | None:
        """What is normal there."""
        return self._normals.get(place) or self._normals.get(None)

    def places(self, scope: Scope) -> set[Place]:
        """Every place where something that the rule reads happened in the last day."""
        wanted = [*scope.inputs - {"growth", "scores"}, *(f"scores {criterion}" for criterion in scope.criteria)]
        since = self.now - ALIVE
        return {
            place
            for place, node in self._family(scope).items()
            if any((at := node.last_at.get(what)) is not None and at >= since for what in wanted)
        }

    def view(self, scope: Scope, place: Place, alert_id: str) -> PlayedView:
        """One of them."""
        node = self._family(scope).get(place) or Node()
        return PlayedView(self, scope, place, alert_id, node)

    def _nodes(self, scorecard: str, place: Place) -> list[Node]:
        """The place itself, and every place of a rule that it belongs to; made if need be."""
        key = scorecard, place
        if key not in self._found:
            leaf = self._leaves.setdefault(key, Node())
            families = [(s, nodes) for s, nodes in self._families.values() if scorecard in {"", s.scorecard}]
            fitting = [(part_of(place, s.by), nodes) for s, nodes in families if s.fits(place)]
            self._found[key] = [leaf, *(nodes.setdefault(part, Node()) for part, nodes in fitting)]
        return self._found[key]

    def _family(self, scope: Scope) -> dict[Place, Node]:
        """The places of rules with the same scorecard, fit and dimensions."""
        key = scope.scorecard, scope.fits, scope.by
        if key not in self._families:
            nodes: dict[Place, Node] = {}
            for (scorecard, place), leaf in self._leaves.items():
                if scorecard in {"", scope.scorecard} and scope.fits(place):
                    nodes.setdefault(part_of(place, scope.by), Node()).take(leaf)
            self._families[key] = scope, nodes
            self._found.clear()
        return self._families[key][1]
