"""What is promised of a rule before it runs, against what happens when it does."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from evalpipe.detectors.outlook import Watched, outlook, tilted
from evalpipe.rollup import Rollup
from evalpipe.score import scored
from evalpipe.stats import change

RUBRIC = ((0.0, 0.25, 0.5, 0.75, 1.0), (0.04, 0.04, 0.08, 0.2, 0.64))
BINARY = ((0.0, 1.0), (0.05, 0.95))
MONTH = timedelta(days=30)


def watched(law: tuple[tuple[float, ...], tuple[float, ...]], n: int = 3000, **values: float) -> Watched:
    """A criterion of so many scores in a day that has exactly these shares."""
    rollup = Rollup()
    for value, share in zip(*law, strict=True):
        for _ in range(round(share * n)):
            rollup.add(scored(value))
    return Watched(rollup, **{"days": 1.0, **values})


@pytest.mark.parametrize("law", [RUBRIC, BINARY])
def test_the_delay_is_what_the_detector_takes(law: tuple[tuple[float, ...], tuple[float, ...]]):
    """Fold by fold, in batches of ten, with other random numbers."""
    of = watched(law)
    found = outlook(of, MONTH)
    values, shares = of.law()
    mean = float(values @ shares)
    variance = float((values - mean) ** 2 @ shares)
    bets = change.mean_bets(mean, variance, change.limits(mean, variance, 3000, 0.01), "down")
    seen = values
    if law is BINARY:
        bets, seen = change.share_bets(change.share_limits(1.0 - mean, 3000, 0.1), "up"), 1.0 - values
    assert found.detector == ("rate" if law is BINARY else "quality")
    rng = np.random.default_rng(7)
    promised = next(delay for delay in found.delays if delay.drop == 0.1)
    law_after = tilted(values, shares, 0.1)
    taken = []
    for _ in range(150):
        sums: list[float] = []
        n = 0
        while sum(sums) < 90_000:  # a month's scores
            counts = rng.multinomial(10, law_after)
            sums, n = change.fold(sums, bets, list(zip(seen, counts, strict=True))), n + 10
        taken.append(n)
    assert promised.scores == pytest.approx(np.mean(taken) - 4.5, rel=0.12)
    assert promised.p90 == pytest.approx(np.quantile(taken, 0.9), rel=0.15)
    assert promised.hours == pytest.approx(promised.scores / 3000 * 24)  # type: ignore[operator]


@pytest.mark.parametrize("law", [RUBRIC, BINARY])
def test_the_line_of_the_windowed_mean_keeps_the_wanted_rate(law: tuple[tuple[float, ...], tuple[float, ...]]):
    """Over 60 times the wanted time, looked at after every score."""
    of, every = watched(law), timedelta(days=3)
    window = outlook(of, every).window
    assert window is not None
    values, shares = of.law()
    scores = np.random.default_rng(8).choice(values, size=3000 * 3 * 60, p=shares)
    sums = np.concatenate([[0.0], np.cumsum(scores)])
    below = np.flatnonzero((sums[window.n :] - sums[: -window.n]) / window.n < window.below)
    alarms = 1 + int((np.diff(below) > window.n).sum()) if len(below) else 0
    assert 5 <= alarms <= 60


def test_smaller_drops_are_seen_in_more_time_and_at_a_higher_rate_sooner():
    """The order of things; and a tolerance is never seen."""
    found = outlook(watched(RUBRIC), MONTH)
    hours = [delay.hours for delay in found.delays]
    assert hours == sorted(hours, reverse=True)  # type: ignore[type-var]
    hour, day, week = (found.smallest[name] for name in ("1h", "1d", "7d"))
    assert hour > day >= week > 0.01  # type: ignore[operator]
    often = outlook(watched(RUBRIC, days=0.1), MONTH)
    assert often.smallest["1h"] < hour  # type: ignore[operator]
    assert often.run_length == pytest.approx(10 * found.run_length)


def test_conversations_make_it_slower():
    """Scores that hang together carry less."""
    alone, together = (outlook(watched(RUBRIC, design_effect=effect), MONTH) for effect in (1.0, 3.0))
    assert together.tolerated < alone.tolerated
    assert together.delays[2].scores > 2.5 * alone.delays[2].scores  # type: ignore[operator]
    assert together.window is not None
    assert alone.window is not None
    assert together.window.window > alone.window.window


def test_scores_that_are_all_alike_have_no_line_and_a_criterion_at_zero_cannot_drop():
    """The edges: no variance, no value."""
    found = outlook(watched(((1.0,), (1.0,))), MONTH)
    assert found.window is None
    assert found.delays[0].scores < 100  # a share of 0 that becomes one of 5 %
    with pytest.raises(ValueError, match="cannot drop"):
        outlook(watched(((0.0,), (1.0,))), MONTH)


@pytest.mark.parametrize("law", [RUBRIC, BINARY, ((0.8, 1.0), (0.5, 0.5)), ((1.0,), (1.0,))])
@pytest.mark.parametrize("drop", [0.05, 0.2, 0.6])
def test_a_tilted_law_has_the_mean_that_is_wanted(law: tuple[tuple[float, ...], tuple[float, ...]], drop: float):
    """Where the lowest value is too high for it, the rest falls to 0."""
    values, shares = np.asarray(law[0]), np.asarray(law[1])
    after = tilted(values, shares, drop)
    assert float(values @ after) == pytest.approx(float(values @ shares) * (1.0 - drop), rel=1e-6)
    assert (after >= 0.0).all()
    assert float(after.sum()) <= 1.0 + 1e-9
