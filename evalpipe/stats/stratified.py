"""A permutation test of two sets of runs over the same strata, such as the prompts of a fixed set.

Every stratum has its own answers, so only runs of the same stratum are exchanged: a prompt that is always answered at
length says nothing about a change. The statistic of a stratum is the squared distance of the two means,

    v' G v,  G = X X',  v_i = 1/n_c for current runs, -1/n_r for reference runs

and the test's is the sum over strata, each divided by its own mean under exchange, so that one loud stratum does not
drown the rest. Exact under the null that the runs of a stratum are exchangeable, whatever their distribution
(Good, "Permutation, Parametric and Bootstrap Tests of Hypotheses", 3rd ed., ch. 3); p = (1 + #{>=}) / (1 + draws).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import comb, exp, log
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FIRST_DRAWS = 500
"""Enough to see that nothing is there; only what looks unlikely is drawn on."""
MOST_WAYS = 10_000
"""To choose the current runs of a stratum: up to so many each is computed once."""

ENOUGH_HITS = 50
"""Draws as extreme as the observed: with so many the p-value is known to 15 %."""
AT_ONCE = 10_000


class Stratum(NamedTuple):
    """The runs of one stratum: one row of numbers for each."""

    reference: NDArray[Any]
    current: NDArray[Any]


def p_value(strata: Sequence[Stratum], *, level: float, seed: int) -> float:
    """How likely the strata's means are so far apart, or farther, where nothing changed.

    Args:
        strata: those without a run on either side are left out.
        level: of the test: so many draws are made that a p-value can be a tenth of it.
        seed: of the draws.

    Returns:
        1 where there is nothing to compare.
    """
    kept = [s for s in strata if len(s.reference) and len(s.current)]
    if not kept:
        return 1.0
    rng = np.random.default_rng(seed)
    hits, draws = _count(kept, FIRST_DRAWS, rng)
    p = (1 + hits) / (1 + draws)
    if p > max(10 * level, 0.05):
        return p
    # Draws go on until the p-value is known well enough (Besag and Clifford, Biometrika 78, 1991).
    most = min(max(int(10 / level), FIRST_DRAWS), 200_000)
    hits = draws = 0
    while draws < most and hits < ENOUGH_HITS:
        more_hits, more = _count(kept, min(AT_ONCE, most - draws), rng)
        hits, draws = hits + more_hits, draws + more
    return (1 + hits) / (1 + draws)


def beyond_noise(strata: Sequence[Stratum]) -> float:
    """The part of the squared distances between the means, from 0 to 1, that is more than chance makes of them.

    Chance makes the variance within a side times 1 / n_r + 1 / n_c of it.
    """
    apart = noise = 0.0
    for reference, current in strata:
        apart += float(((reference.mean(axis=0) - current.mean(axis=0)) ** 2).sum())
        free = len(reference) + len(current) - 2
        within = sum(float(((side - side.mean(axis=0)) ** 2).sum()) for side in (reference, current))
        noise += within / max(free, 1) * (1.0 / len(reference) + 1.0 / len(current))
    return max(0.0, 1.0 - noise / apart) if apart > 0.0 else 0.0


def least_p(sizes: Sequence[tuple[int, int]]) -> float:
    """The smallest p-value there can be: one of all the ways to tell the runs of each stratum apart."""
    return exp(-sum(log(comb(n_r + n_c, n_c)) for n_r, n_c in sizes))


def _count(strata: Sequence[Stratum], draws: int, rng: np.random.Generator) -> tuple[int, int]:
    observed, drawn = 0.0, np.zeros(draws)
    for stratum in strata:
        rows = np.concatenate([stratum.reference, stratum.current]).reshape(
            len(stratum.reference) + len(stratum.current), -1
        )
        n, n_current = len(rows), len(stratum.current)
        gram = (rows - rows.mean(axis=0)) @ (rows - rows.mean(axis=0)).T
        under_null = _drawn(n, n_current, gram, draws, rng)
        scale = float(under_null.mean())
        if scale <= 1e-12:
            continue  # all runs of the stratum are equal
        actual = np.arange(n - n_current, n)[None]
        observed += float(_distance(actual, gram)[0]) / scale
        drawn += under_null / scale
    # Equal sums may differ in their last digits: they count as equal.
    return int((drawn >= observed * (1 - 1e-9)).sum()), draws


def _drawn(n: int, n_current: int, gram: NDArray[Any], draws: int, rng: np.random.Generator) -> NDArray[Any]:
    """The statistic of one stratum, under exchange: drawn from all ways to choose, where there are not too many."""
    if comb(n, n_current) <= MOST_WAYS:
        ways = np.array(list(combinations(range(n), n_current)))
        chosen: NDArray[Any] = _distance(ways, gram)[rng.integers(0, len(ways), draws)]
        return chosen
    return _distance(rng.random((draws, n), np.float32).argpartition(n_current - 1, axis=1)[:, :n_current], gram)


def _distance(current: NDArray[np.int64], gram: NDArray[Any]) -> NDArray[Any]:
    n, n_current = len(gram), current.shape[1]
    v = np.full((len(current), n), -1.0 / (n - n_current))
    np.put_along_axis(v, current, 1.0 / n_current, axis=1)
    result: NDArray[Any] = np.einsum("ij,ij->i", v @ gram, v)
    return result
