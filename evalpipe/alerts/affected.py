"""Which parts of a service an alert affects, as its feed shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from evalpipe.alerts.impact import Part, Share, Standing, share_of, standings
from evalpipe.alerts.rules import Rule
from evalpipe.detectors.base import Finding
from evalpipe.detectors.view import Feed, Place, Scope, Stretch

TRAFFIC_OVER: Final = timedelta(hours=1)
"""How far back calls are counted to know the parts of a service, and scores where the finding names no window."""
SHORTEST: Final = timedelta(minutes=2)
LONGEST: Final = timedelta(days=1)
"""Of the windows of scores that are looked at."""

SHARES: Final = frozenset({"rate", "safety"})
"""Kinds whose value is a share of low scores: it rises while the mean falls."""

Pair = tuple[Stretch | None, Stretch | float | None]
"""Scores of a part in the window, and where all is well (or the line that was crossed)."""


def share_affected(rule: Rule, place: Place, feed: Feed, finding: Finding, now: datetime) -> Share | None:
    """The share of the service's traffic; None where nobody counts it."""
    calls = _calls(rule, place, feed, now - TRAFFIC_OVER, now)
    mine = [part for part in calls if _is_in(place, part) and rule.scope.fits(part)]
    since = now - _window(rule, place, feed, finding, now)
    stands = dict(zip(mine, _standings(rule, mine, feed, finding, since, now), strict=True))
    return share_of([Part(n, *stands.get(part, ("fine", None))) for part, n in calls.items()])


def _window(rule: Rule, place: Place, feed: Feed, finding: Finding, now: datetime) -> timedelta:
    """What the finding is of: its own window, or the time in which its ``n`` scores came."""
    seconds = finding.numbers.get("window_s")
    if isinstance(seconds, int | float) and seconds > 0:
        return timedelta(seconds=seconds)
    if not rule.scope.criteria or finding.n <= 0:
        return TRAFFIC_OVER
    seen = feed.view(rule.scope, place, "").scores(rule.scope.criteria[0], now - TRAFFIC_OVER, now)
    if seen is None or not seen.rollup.n_scored:
        return TRAFFIC_OVER
    return min(LONGEST, max(SHORTEST, TRAFFIC_OVER * (finding.n / seen.rollup.n_scored)))


def _calls(rule: Rule, place: Place, feed: Feed, since: datetime, now: datetime) -> Mapping[Place, float]:
    """Calls by variant and feature of the place's service; where no meter reports, what scores weigh."""
    wide = _parted(replace(rule.scope, scorecard="", inputs=frozenset({"calls"}), criteria=(), fits=_everywhere))
    parts = [part for part in feed.places(wide) if part[:2] == place[:2]]
    counted = {part: float(feed.view(wide, part, "").calls(since, now).n) for part in parts}
    if any(counted.values()):
        return {part: n for part, n in counted.items() if n}
    if not rule.scope.criteria:
        return {}
    own = _parted(rule.scope)
    views = {part: feed.view(own, part, "") for part in feed.places(own) if part[:2] == place[:2]}
    seen = {part: view.scores(rule.scope.criteria[0], since, now) for part, view in views.items()}
    return {part: stretch.rollup.sum_w for part, stretch in seen.items() if stretch is not None}


def _standings(
    rule: Rule, parts: list[Place], feed: Feed, finding: Finding, since: datetime, now: datetime
) -> list[tuple[Standing, bool | None]]:
    """How each part of the alert's own place stands; without scores, or parts, all of it is affected."""
    if not rule.scope.criteria or len(parts) < 2:
        return [("affected", None) for _ in parts]
    own, criterion = _parted(rule.scope), rule.scope.criteria[0]
    pairs: list[Pair] = []
    for part in parts:
        view = feed.view(own, part, "")
        normal = view.normal(since, now)
        usual = normal.scores(criterion) if normal is not None else finding.threshold
        pairs.append((view.scores(criterion, since, now), usual))
    return standings(pairs, _drop(rule, finding, pairs))


def _drop(rule: Rule, finding: Finding, pairs: list[Pair]) -> float:
    """By how much the mean score of the whole place differs from normal, signed; by its parts if nothing says it."""
    if finding.value is not None and finding.ratio:
        moved = finding.value - finding.value / finding.ratio
        return -moved if rule.kind in SHARES else moved
    gaps = [_mean(seen) - _mean(usual) for seen, usual in pairs if seen is not None and usual is not None]
    return sum(gaps) / len(gaps) if gaps else 0.0


def _mean(of: Stretch | float) -> float:
    return of if isinstance(of, float) else of.rollup.mean or 0.0


def _everywhere(place: Place) -> bool:
    del place
    return True


def _parted(scope: Scope) -> Scope:
    return replace(scope, by=("feature",))


def _is_in(place: Place, part: Place) -> bool:
    """Whether a part belongs to an alert's place: "" there stands for all."""
    return place[:3] == part[:3] and place.feature in {"", part.feature}
