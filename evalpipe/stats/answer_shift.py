"""Are answers to the same questions still the same? Likeness of now and before, by question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from evalpipe.stats.shift import Array, one_sided

LEAST_QUESTIONS: Final = 8
"""Fewer have no distribution."""


@dataclass(frozen=True, slots=True)
class AnswerShift:
    """What a test of the answers to recurring questions found.

    Attributes:
        p: how likely so great a loss of likeness is where answers are drawn as before.
        before: mean likeness (cosine) of two answers of before to one question.
        now: mean likeness of an answer of now and one of before.
        questions: how many recur.
        worst: by question, how much likeness was lost; the greatest loss first.
    """

    p: float = 1.0
    before: float = 0.0
    now: float = 0.0
    questions: int = 0
    worst: tuple[str, ...] = ()


def answer_shift(answers: Mapping[str, tuple[Array, Array]]) -> AnswerShift | None:
    """Compare answers to the same questions; None with fewer than ``LEAST_QUESTIONS``.

    Two answers of before are as alike, on the average, as one of before and one of now, if all are drawn alike: so each
    question's difference has mean 0, whatever the answers look like. Questions are independent, and weighted by how
    much is known of each.

    Args:
        answers: by question, a row for each answer (unit vectors), of before (two at the least) and of now.
    """
    kept = {key: pair for key, pair in answers.items() if len(pair[0]) >= 2 and len(pair[1]) >= 1}
    if len(kept) < LEAST_QUESTIONS:
        return None
    cross, within, weights = [], [], []
    for before, now in kept.values():
        m, n = len(before), len(now)
        cross.append(float((now @ before.T).mean()))
        within.append((float((before @ before.T).sum()) - float((before * before).sum())) / (m * (m - 1)))
        weights.append(m * n / (m + n))
    w, lost = np.asarray(weights), np.asarray(cross) - np.asarray(within)
    _, p = one_sided(lost, w)
    order = np.argsort(lost, kind="stable")
    keys = list(kept)
    return AnswerShift(
        p=p,
        before=float(w @ np.asarray(within)) / float(w.sum()),
        now=float(w @ np.asarray(cross)) / float(w.sum()),
        questions=len(kept),
        worst=tuple(keys[i] for i in order),
    )
