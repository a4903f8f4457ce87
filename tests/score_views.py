"""One place whose scores arrive batch by batch, before a baseline: what a detector of streams looks at."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from math import exp

from evalpipe.detectors.view import Place, Stretch
from evalpipe.rollup import Rollup
from evalpipe.score import Score, Status, scored

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
RUBRIC = (0.0, 0.25, 0.5, 0.75, 1.0)
BASE = (0.0202, 0.0398, 0.0887, 0.2224, 0.6289)
"""A rubric of five points with mean .85 and standard deviation .237."""


def rollup(values: Sequence[float], errors: int = 0, abstained: int = 0, skipped: int = 0) -> Rollup:
    """The bucket of these scores."""
    total = Rollup()
    for value in values:
        total.add(scored(value))
    for status, n in ((Status.ERROR, errors), (Status.ABSTAINED, abstained), (Status.SKIPPED, skipped)):
        for _ in range(n):
            total.add(Score(status, None))
    return total


def rubric(seed: int, n: int, mean: float = 0.85) -> list[float]:
    """``n`` scores of the rubric's law with that mean."""
    low, high = -30.0, 30.0
    weights: list[float] = []
    for _ in range(60):
        middle = (low + high) / 2
        weights = [p * exp(middle * x) for p, x in zip(BASE, RUBRIC, strict=True)]
        if sum(w * x for w, x in zip(weights, RUBRIC, strict=True)) / sum(weights) < mean:
            low = middle
        else:
            high = middle
    return random.Random(seed).choices(RUBRIC, cum_weights=list(accumulate(weights)), k=n)


def coins(seed: int, n: int, low: float) -> list[float]:
    """``n`` scores, 0 with probability ``low``, else 1."""
    rng = random.Random(seed)
    return [float(rng.random() >= low) for _ in range(n)]


class Usual:
    """What is normal: a baseline of ten days."""

    words = "baseline healthy"

    def __init__(
        self, scores: Mapping[str, Rollup], epoch: str = "e1", days: float = 10.0, effect: float = 1.0
    ) -> None:
        until = NOW - timedelta(days=1)
        self._scores = {
            name: Stretch(name, epoch, found, until - timedelta(days=days), until, effect)
            for name, found in scores.items()
        }

    def scores(self, criterion: str) -> Stretch | None:
        """Of a criterion."""
        return self._scores.get(criterion)


class Arrived:
    """A view of what has arrived since the last one."""

    def __init__(
        self, grown: Mapping[str, Rollup], normal: Usual | None, at: datetime = NOW, epoch: str = "e1"
    ) -> None:
        self.at, self.place = at, Place("desk", "prod", "live")
        self._grown, self._normal, self._epoch = grown, normal, epoch

    def growth(self, criterion: str) -> Stretch | None:
        """Since the last view."""
        found = self._grown.get(criterion)
        if found is None:
            return None
        return Stretch(criterion, self._epoch, found, self.at - timedelta(minutes=1), self.at)

    def normal(self, since: datetime, until: datetime) -> Usual | None:
        """The baseline."""
        return self._normal


def walk(detector, normal, batches, state=None, epoch="e1"):
    """Show batches (a rollup by criterion) one after another; gives the last state and every finding."""
    state, findings = state or {}, []
    for i, batch in enumerate(batches):
        state, finding = detector.look(Arrived(batch, normal, NOW + timedelta(minutes=i), epoch), state)
        findings.append(finding)
    return state, findings


def batches(criterion: str, values: Sequence[float], size: int = 25):
    """The values as batches of a criterion."""
    return [{criterion: rollup(values[i : i + size])} for i in range(0, len(values), size)]
