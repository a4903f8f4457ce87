"""Whether a judge errs more on some outputs than on others: long ones, those shown first, those of a language."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb
from typing import Final

import numpy as np
from numpy.typing import NDArray

from evalpipe.stats.agreement import SEED, Estimate, Floats, share

PERMUTATIONS: Final = 2000
CHUNK: Final = 200
"""Permutations made at once: bounds the memory."""


@dataclass(frozen=True, slots=True)
class Group:
    """Records that have something in common.

    Attributes:
        name: what.
        n: records.
        wrong: share on which the judge differs from people, with its interval.
        difference: mean of the judge's grade minus people's: above 0 it is too kind.
    """

    name: str
    n: int
    wrong: Estimate
    difference: float


@dataclass(frozen=True, slots=True)
class Bias:
    """How the judge's grade goes with something, among records to which people give the same grade.

    Were records of all grades taken together, a judge that errs alike on all would seem to be kind to whatever people
    like less.

    Attributes:
        groups: in order.
        correlation: of the judge's grade with the size, by rank, with both taken as deviations from their means among
            records of the same grade by people; above 0 it is kinder to what is larger. None for names.
        p: probability of so much by chance alone, if among those records the judge erred alike (permutation within
            them, fixed seed).
    """

    groups: tuple[Group, ...]
    correlation: float | None
    p: float | None


@dataclass(frozen=True, slots=True)
class Position:
    """Pairs that were graded in both orders.

    Attributes:
        n: pairs.
        flipped: share that came out otherwise when the order was swapped.
        first: share of the flips in which the answer shown first did better; 0.5 is no preference.
        p: of the sign test, two-sided: as uneven a split of the flips by chance.
    """

    n: int
    flipped: Estimate
    first: Estimate
    p: float | None


def by_size(sizes: Sequence[float], judge: Sequence[float], people: Sequence[float], wrong: Sequence[bool]) -> Bias:
    """Bias by a size, such as the length of the output: in thirds, and by rank correlation."""
    if len(sizes) < 3:
        return Bias((), None, None)
    size, difference = np.array(sizes, dtype=float), np.array(judge, dtype=float) - np.array(people, dtype=float)
    third = np.searchsorted(np.quantile(size, [1 / 3, 2 / 3]), size, side="left")
    groups = []
    for index in range(3):
        inside = third == index
        if inside.any():
            name = f"{size[inside].min():.0f} to {size[inside].max():.0f}"
            groups.append(_group(name, inside, difference, wrong))
    strata = _strata(people)
    ranks, graded = _centred(_ranks(size), strata), _centred(_ranks(np.array(judge, dtype=float)), strata)
    scale = float(np.sqrt((ranks @ ranks) * (graded @ graded)))
    if scale < 1e-9:
        return Bias(tuple(groups), None, None)
    correlation = float(ranks @ graded) / scale
    p = _permuted(lambda drawn: np.abs(drawn @ ranks) / scale, graded, strata, abs(correlation))
    return Bias(tuple(groups), correlation, p)


def by_name(
    names: Sequence[str], judge: Sequence[float], people: Sequence[float], wrong: Sequence[bool], *, least: int = 5
) -> Bias:
    """Bias by a name, such as the language: names with fewer than ``least`` records are one group, ``other``."""
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    grouped = np.array([name if counts[name] >= least else "other" for name in names])
    difference = np.array(judge, dtype=float) - np.array(people, dtype=float)
    order = sorted(set(grouped.tolist()), key=lambda name: (name == "other", -counts.get(name, 0), name))
    masks = [grouped == name for name in order]
    groups = tuple(_group(name, mask, difference, wrong) for name, mask in zip(order, masks, strict=True))
    strata = _strata(people)
    graded = _centred(np.array(judge, dtype=float), strata)
    if len(groups) < 2 or not np.abs(graded).max() > 1e-9:
        return Bias(groups, None, None)
    inside = np.stack(masks).astype(float)

    def between(drawn: Floats) -> Floats:
        spread: Floats = ((drawn @ inside.T) ** 2 / inside.sum(axis=1)).sum(axis=1)
        return spread

    return Bias(groups, None, _permuted(between, graded, strata, float(between(graded[None, :])[0])))


def by_position(pairs: Sequence[tuple[float, float]]) -> Position | None:
    """Bias by position: for each pair the value of the same answer when it was shown first, and when second."""
    if not pairs:
        return None
    ahead, behind = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    flips = ahead + behind
    tail = sum(comb(flips, k) for k in range(max(ahead, behind), flips + 1)) / 2**flips
    return Position(len(pairs), share(flips, len(pairs)), share(ahead, flips), min(1.0, 2.0 * tail) if flips else None)


def _group(name: str, inside: NDArray[np.bool_], difference: Floats, wrong: Sequence[bool]) -> Group:
    n = int(inside.sum())
    return Group(name, n, share(int(np.array(wrong)[inside].sum()), n), float(difference[inside].mean()))


def _strata(people: Sequence[float]) -> list[NDArray[np.int64]]:
    """The places of records to which people give the same grade."""
    at = np.array(people, dtype=float)
    return [np.flatnonzero(at == value) for value in np.unique(at)]


def _centred(values: Floats, strata: Sequence[NDArray[np.int64]]) -> Floats:
    found = values.copy()
    for stratum in strata:
        found[stratum] -= values[stratum].mean()
    return found


def _ranks(values: Floats) -> Floats:
    """Ranks; equal values share theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    found: Floats = (np.cumsum(counts) - (counts - 1) / 2.0)[place]
    return found


def _permuted(
    statistic: Callable[[Floats], Floats], values: Floats, strata: Sequence[NDArray[np.int64]], observed: float
) -> float:
    rng = np.random.default_rng(SEED)
    as_much = 0
    for _ in range(PERMUTATIONS // CHUNK):
        drawn = np.tile(values, (CHUNK, 1))
        for stratum in strata:
            drawn[:, stratum] = rng.permuted(drawn[:, stratum], axis=1)
        as_much += int((statistic(drawn) >= observed - 1e-12).sum())
    return (as_much + 1) / (PERMUTATIONS + 1)
