"""Has a mix of words (languages, formats, features) moved between two samples?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from evalpipe.stats.shift import Contrast, beta_tail, chance

LEAST_EXPECTED: Final = 5.0
"""W. G. Cochran, Some methods for strengthening the common chi-square tests, 1954."""
OTHER: Final = "(other)"


@dataclass(frozen=True, slots=True)
class WordShift:
    """What a test of two mixes found.

    Attributes:
        p: how likely so large a shift is where there is none.
        before, now: share of each word, as weighted.
        rare: words that are too rare to be told apart; they count as one.
    """

    p: float
    before: dict[str, float]
    now: dict[str, float]
    rare: frozenset[str] = frozenset()

    @property
    def variation(self) -> float:
        """Total variation: the share of records that would have to change their word to undo the shift."""
        words = self.before.keys() | self.now.keys()
        return sum(abs(self.now.get(w, 0.0) - self.before.get(w, 0.0)) for w in words) / 2

    @property
    def grown(self) -> list[str]:
        """Words by how much their share moved, those that grew most first."""
        words = self.before.keys() | self.now.keys()
        return sorted(words, key=lambda w: (self.before.get(w, 0.0) - self.now.get(w, 0.0), w))


def word_shift(contrast: Contrast, words: Sequence[str]) -> WordShift:
    """Test a mix of words: by chi-square those that are common enough, exactly the rare ones together.

    Far out Pearson's chi-square is too large where few are expected (at a level of 1/4,000 with five expected it is
    reached 2 to 3 times as often), the likelihood ratio is not: the smaller of the two counts.

    Two tests, so twice the smaller p. The rare ones are counted by conversations (binomial, given how many there are):
    a word that is new today has no baseline to be approximated from.
    """
    counts = Counter(words)
    share = min(float(contrast.now.mean()), 1.0 - float(contrast.now.mean()))
    rare = frozenset(w for w, n in counts.items() if n * share < LEAST_EXPECTED)
    merged = [OTHER if w in rare else w for w in words] if len(rare) > 1 else list(words)
    common = sorted(w for w, n in Counter(merged).items() if n * share >= LEAST_EXPECTED)
    is_common = np.isin(np.array(merged, dtype=object), np.array(common, dtype=object))
    p_values = []
    if len(common) > 1:
        columns = np.array([[float(w == name) for name in common] for w in merged])
        shift = contrast.shift(columns)
        part = min(1.0, _likelihood_to_pearson(contrast, merged))
        p_values.append(chance(part * shift.statistic, shift.features, shift.size) if shift.features else 1.0)
    if not is_common.all():
        p_values.append(_exact(contrast, ~is_common))
    before, now = (_shares(contrast, merged, group) for group in (0.0, 1.0))
    return WordShift(min([1.0, *(len(p_values) * p for p in p_values)]), before, now, rare)


@dataclass(frozen=True, slots=True)
class TermShift:
    """What a test of many terms found, led by the one whose share moved most.

    Attributes:
        p: how likely it is that any of them moves so much where none does (C. Bonferroni).
        terms: the three that moved most, with their shares before and now.
    """

    p: float
    terms: list[tuple[str, float, float]]

    @property
    def difference(self) -> float:
        """By how much the share of the leading term moved."""
        return abs(self.terms[0][2] - self.terms[0][1]) if self.terms else 0.0


def term_shift(contrast: Contrast, texts: Sequence[frozenset[str]], floor: float) -> TermShift:
    """Test in how many texts each term stands.

    Args:
        contrast: the two samples.
        texts: the terms of each.
        floor: a term that is too rare for its share to have moved so much is not tested.
    """
    counts = Counter(term for text in texts for term in text)
    n_now = float(contrast.now.sum())
    share = min(n_now, len(texts) - n_now) / max(len(texts), 1)
    least = max(LEAST_COUNT, floor * share * len(texts))
    names = sorted(term for term, n in counts.items() if n >= least)
    if not names:
        return TermShift(1.0, [])
    has = np.zeros((len(texts), len(names)))
    index = {term: i for i, term in enumerate(names)}
    for row, text in zip(has, texts, strict=True):
        row[[index[term] for term in text if term in index]] = 1.0
    before, now = (
        (contrast.weights[group] @ has[group]) / contrast.weights[group].sum()
        for group in (contrast.now == 0, contrast.now == 1)
    )
    order = np.argsort(-np.abs(now - before), kind="stable")
    top = int(order[0])
    n = counts[names[top]]
    common = min(n, len(texts) - n) * share >= LEAST_FOR_NORMAL
    p = float(contrast.each(has[:, [top]])[0]) if common else _exact(contrast, has[:, top] > 0)
    terms = [(names[i], float(before[i]), float(now[i])) for i in order[:3]]
    return TermShift(min(1.0, p * len(names)), terms)


LEAST_COUNT: Final = 8
LEAST_FOR_NORMAL: Final = 20.0
"""Expected in the smaller sample: the normal distribution is then right far out, where many terms are tested."""


def _shares(contrast: Contrast, words: Sequence[str], group: float) -> dict[str, float]:
    sums: dict[str, float] = {}
    for word, weight, now in zip(words, contrast.weights, contrast.now, strict=True):
        if now == group:
            sums[word] = sums.get(word, 0.0) + float(weight)
    total = sum(sums.values())
    return {word: n / total for word, n in sums.items()} if total > 0 else {}


def _likelihood_to_pearson(contrast: Contrast, words: Sequence[str]) -> float:
    """2 sum n ln(n / e) over sum (n - e)^2 / e, of the table of words by sample, as weighted."""
    index = {word: i for i, word in enumerate(sorted(set(words)))}
    table = np.zeros((2, len(index)))
    columns = np.array([index[word] for word in words])
    np.add.at(table, (contrast.now.astype(int), columns), contrast.weights)
    expected = table.sum(axis=0) * table.sum(axis=1, keepdims=True) / table.sum()
    pearson = float(((table - expected) ** 2 / expected).sum())
    ratio = 2.0 * float((table * np.log(np.where(table > 0.0, table / expected, 1.0))).sum())
    return ratio / pearson if pearson > 0.0 else 1.0


def _exact(contrast: Contrast, has: NDArray[np.bool_]) -> float:
    """How likely it is that so many (or so few) of the conversations that have it are of now."""
    now_units, units = set(contrast.units[contrast.now == 1].tolist()), set(contrast.units.tolist())
    with_it = set(contrast.units[has].tolist())
    n, k, share = len(with_it), len(with_it & now_units), len(now_units) / len(units)
    more = 1.0 if k == 0 else 1.0 - beta_tail(k, n - k + 1, share)
    fewer = 1.0 if k == n else beta_tail(k + 1, n - k, share)
    return min(1.0, 2.0 * min(more, fewer))
