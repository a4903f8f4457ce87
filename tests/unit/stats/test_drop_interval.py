"""The interval for the relative drop."""

from __future__ import annotations

import json

import numpy as np
import pytest

from evalpipe.stats.drop_interval import GRID, DropInterval
from evalpipe.stats.matching import Matcher
from evalpipe.stats.moments import Moments


def feed(interval, arrivals):
    """Yield the interval's holder after each block, as the rollout feeds it."""
    matcher, moments = Matcher(), Moments()
    for arm, value in arrivals:
        block = matcher.add(arm, value)
        if block is not None:
            interval.update(block, moments.mean, moments.variance)
            moments.update(block.baselines, 1.0)
    return interval


def test_the_truth_is_inside_and_the_interval_closes_in(scores):
    """True drop 10 %: outside in three of 40 runs at most; after 5,000 scores it excludes 3 % and 20 %."""
    missed, ends = 0, []
    for seed in range(40):
        found = feed(DropInterval(), scores(seed, 2, 5000, 0.1)).read()
        missed += not (found.low or -1.0) <= 0.1 <= (found.high or 1.0)
        ends.append((found.low, found.high))
    assert missed <= 3
    assert np.median([low for low, _ in ends]) >= 0.04
    assert np.median([high for _, high in ends]) <= 0.15


def test_it_never_widens(scores):
    """A confidence sequence: what was excluded stays excluded."""
    interval, low, high = DropInterval(), -9.0, 9.0
    matcher, moments = Matcher(), Moments()
    for arm, value in scores(7, 2, 1500, 0.2):
        block = matcher.add(arm, value)
        if block is not None:
            interval.update(block, moments.mean, moments.variance)
            moments.update(block.baselines, 1.0)
            now = interval.read()
            assert (now.low if now.low is not None else -9.0) >= low
            assert (now.high if now.high is not None else 9.0) <= high
            low, high = now.low if now.low is not None else -9.0, now.high if now.high is not None else 9.0
    assert low >= 0.05


def test_neither_reading_nor_saving_changes_it(scores):
    """Read after every block, or through JSON now and then: the same interval and the same wealth at the end."""
    plain = feed(DropInterval(), scores(8, 3, 900, 0.1))
    matcher, moments, other = Matcher(), Moments(), DropInterval()
    for i, (arm, value) in enumerate(scores(8, 3, 900, 0.1)):
        block = matcher.add(arm, value)
        if block is None:
            continue
        other.update(block, moments.mean, moments.variance)
        moments.update(block.baselines, 1.0)
        if i % 5 == 0:
            other.read()
        if i % 7 == 0:
            other = DropInterval.from_state(json.loads(json.dumps(other.to_state())))
    assert plain.read() == other.read()
    assert plain.to_state() == other.to_state()


def test_both_ends_are_open_before_there_is_evidence():
    """Unknown is not zero."""
    found = DropInterval().read()
    assert (found.low, found.high, found.level) == (None, None, 0.95)


def test_a_hopeless_canary_leaves_no_room_above_the_lowest_grid_point():
    """All zeros against all ones: the drop is beyond the second last grid point."""
    interval = feed(DropInterval(), [("baseline", 1.0), ("canary", 0.0)] * 400)
    found = interval.read()
    assert found.low is not None
    assert found.low >= GRID[-2]
    assert found.high is None


def test_a_restart_forgets_what_was_excluded(scores):
    """Another judge version measures something else."""
    interval = feed(DropInterval(), scores(9, 2, 2000, 0.3))
    assert interval.read().low is not None
    interval.restart()
    assert interval.read().low is None


def test_a_level_outside_its_range_is_refused():
    """The message shows it."""
    with pytest.raises(ValueError, match="level"):
        DropInterval(level=1.0)
