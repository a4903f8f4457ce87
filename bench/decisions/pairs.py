"""The shipped paired test (evalpipe.stats.paired_block), many runs at once; proved equal as lockstep is."""

from __future__ import annotations

from typing import Any

import numpy as np

from decisions.lockstep import NEVER, Outcome, Test
from evalpipe.stats import paired_block as shipped


def run(baseline: Any, canary: Any, test: Test, *, effect: float = 0.05, stop: bool = True) -> Outcome:
    """Play all pairs: a row for each pair, a column for each run; the second key is the ratio of the means."""
    runs, d = baseline.shape[1], test.direction
    t = 1.0 + d * test.tau
    bound = t * test.hi if d > 0 else test.hi
    cap = 0.98 / bound
    products = np.ones((len(shipped.SHARES), runs))
    mean, variance = np.full(runs, shipped.PRIOR_MEAN), np.full(runs, shipped.PRIOR_VARIANCE)
    max_e, sums = np.ones(runs), np.zeros((2, runs))
    first, both, drops = np.full(runs, NEVER), np.full(runs, NEVER), np.zeros(runs)
    for n, (x, y) in enumerate(zip(baseline, canary, strict=True)):
        gain = d * (y - t * x)
        delta = effect * mean
        lam = delta / (variance + delta * delta)
        e_value = np.zeros(runs)
        for i, (share, weight) in enumerate(zip(shipped.SHARES, shipped.WEIGHTS, strict=True)):
            products[i] = np.minimum(products[i] * (1.0 + np.minimum(cap, share * lam) * gain), 1e300)
            e_value = e_value + weight * products[i]
        np.maximum(max_e, e_value, out=max_e)
        count = n + 1 + shipped.PRIOR_COUNT
        mean = np.maximum(mean + (x - mean) / count, 1e-6)
        variance = np.maximum(variance + ((y - x) ** 2 - variance) / count, 1e-6)
        sums[0] += x
        sums[1] += y
        fired = max_e * test.alpha >= 1.0
        if fired.any():
            first[fired & (first < 0)] = n
            found = fired & (both < 0) & (n + 1 >= test.min_canary)
            with np.errstate(divide="ignore", invalid="ignore"):
                drop = 1.0 - sums[1] / sums[0]
            if test.estimate is not None:
                found &= -d * drop >= test.estimate
            both[found], drops[found] = n, drop[found]
            if stop and (both >= 0).all():
                break
    return Outcome(first, both, max_e, drops)
