"""How much scores of one conversation (or user) resemble each other, and what that costs in effective size."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np


def design_effect(values: Sequence[float], units: Sequence[Hashable]) -> float:
    """So many of these values carry as much as one of independent ones; 1 or more.

    ``1 + (m - 1) ICC`` (Kish, Survey Sampling, 1965) with the intraclass correlation of a one-way analysis of variance
    with clusters of unequal size (Donner, Int. Stat. Rev. 54, 1986), and as ``m`` the size-weighted mean cluster size
    ``sum m_i^2 / sum m_i``, the size of the cluster that the average value is in.

    Args:
        values: one score each.
        units: what each is part of, in the same order.
    """
    x = np.asarray(values, dtype=float)
    codes: dict[Hashable, int] = {}
    index = np.asarray([codes.setdefault(unit, len(codes)) for unit in units], dtype=np.int64)
    sizes = np.bincount(index, minlength=1).astype(float)
    n, k = len(x), len(sizes)
    if k < 2 or k == n:  # of one cluster nothing is known, and each alone resembles no other
        return 1.0
    means = np.bincount(index, weights=x) / sizes
    within = float(((x - means[index]) ** 2).sum()) / (n - k)
    between = float((sizes * (means - x.mean()) ** 2).sum()) / (k - 1)
    typical = (n - float((sizes**2).sum()) / n) / (k - 1)
    total = between + (typical - 1.0) * within
    if total <= 0.0:
        return 1.0
    icc = min(max((between - within) / total, 0.0), 1.0)
    return 1.0 + (float((sizes**2).sum()) / n - 1.0) * icc
