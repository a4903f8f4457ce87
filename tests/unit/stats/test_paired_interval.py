"""The interval over pairs: it holds the truth at every look, and becomes narrow."""

from __future__ import annotations

import json
import random

import pytest

from evalpipe.stats.paired_interval import PairedInterval

RUBRIC = (0.25, 0.5, 0.75, 1.0)


def pairs(seed, n, drop):
    """Scores that mostly agree; the mean of the canary's is lower by a share."""
    rng = random.Random(seed)
    for _ in range(n):
        x = rng.choice(RUBRIC)
        y = x if rng.random() < 0.6 else rng.choice(RUBRIC)
        yield x, y if rng.random() >= drop else 0.0


@pytest.mark.parametrize("drop", [0.0, 0.1])
def test_it_holds_the_truth_at_all_times(drop):
    """Nominal 5 % over the whole run; more than six of 40 would be one in 200."""
    outside = 0
    for seed in range(40):
        interval = PairedInterval()
        for i, (x, y) in enumerate(pairs(seed, 400, drop)):
            interval.add(x, y)
            if i % 20 == 19:
                ends = interval.read()
                if (ends.low is not None and ends.low > drop) or (ends.high is not None and ends.high < drop):
                    outside += 1
                    break
    assert outside <= 6


def test_it_becomes_narrow_around_the_drop():
    """Three thousand pairs tell ten per cent from five and from fifteen."""
    interval = PairedInterval()
    assert (interval.read().low, interval.read().high) == (None, None)
    for x, y in pairs(1, 3000, 0.1):
        interval.add(x, y)
    assert 0.04 <= interval.read().low <= 0.1 <= interval.read().high <= 0.16


def test_it_goes_on_after_a_restart_of_the_process_or_of_the_test():
    """State is JSON-safe; a new version of the judge keeps losses and gives up wins."""
    first, second = PairedInterval(), PairedInterval()
    for i, (x, y) in enumerate(pairs(2, 400, 0.2)):
        first.add(x, y)
        second.add(x, y)
        if i % 40 == 0:
            state = json.loads(json.dumps(second.to_state()))
            second = PairedInterval()
            second.load(state)
    assert first.to_state() == second.to_state()
    assert first.read().low > 0.0
    first.restart()
    assert (first.read().low, first.read().high) == (None, None)
    with pytest.raises(ValueError, match="level"):
        PairedInterval(1.0)
