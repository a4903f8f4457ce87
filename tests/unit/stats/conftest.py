"""Score streams with known means, drawn with fixed seeds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import accumulate
from math import exp

import pytest

RUBRIC = (0.0, 0.25, 0.5, 0.75, 1.0)
BASE = (0.0202, 0.0398, 0.0887, 0.2224, 0.6289)
"""A rubric of five points with mean .85 and standard deviation .237."""


def tilted(mean: float) -> list[float]:
    """The law on the rubric with this mean that is hardest to tell from ``BASE`` (exponential tilt)."""
    low, high = -30.0, 30.0
    for _ in range(80):
        middle = (low + high) / 2
        weights = [p * exp(middle * x) for p, x in zip(BASE, RUBRIC, strict=True)]
        if sum(w * x for w, x in zip(weights, RUBRIC, strict=True)) / sum(weights) < mean:
            low = middle
        else:
            high = middle
    return weights


def stream(seed: int, every: int, n: int, drop: float = 0.0) -> Iterator[tuple[str, float]]:
    """``n`` arm-value pairs, arms evenly interleaved with one canary in ``every`` scores."""
    rng = random.Random(seed)
    base, worse = list(accumulate(BASE)), list(accumulate(tilted(0.85 * (1 - drop))))
    n_canary = n // every
    canaries = iter(rng.choices(RUBRIC, cum_weights=worse, k=n_canary))
    baselines = iter(rng.choices(RUBRIC, cum_weights=base, k=n - n_canary))
    for i in range(n):
        if i % every == every - 1:
            yield "canary", next(canaries)
        else:
            yield "baseline", next(baselines)


@pytest.fixture(scope="session")
def scores() -> Callable[..., Iterator[tuple[str, float]]]:
    """``scores(seed, every, n, drop)``: see ``stream``."""
    return stream
