"""Does the answer repeat itself, as a model does that is stuck in a loop?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from evalpipe.record import Record
from evalpipe.score import Score, scored, skipped
from evalpipe.scorers import base
from evalpipe.scorers.answer import nothing_to_score


class RepetitionParams(base.Params):
    """Parameters of ``repetition``."""

    n: int = Field(
        4,
        ge=1,
        le=20,
        description="Length of the word sequences that are compared (ten times as many characters where "
        "a text has no spaces).",
    )
    tolerated: float = Field(
        0.1, ge=0, lt=1, description="Share of repeated sequences that is normal; the value is 1 up to it."
    )


@base.heuristics.register("repetition")
class Repetition:
    """1 if at most ``tolerated`` of the word sequences repeat an earlier one, falling to 0 where all do.

    The repeated share is rep-n = 1 - unique n-grams / n-grams (Welleck et al., Neural text generation with unlikelihood
    training, 2019). Labels ``fresh`` and ``repetitive``. Texts with fewer than 2 n words are skipped.
    """

    Params: ClassVar[type[base.Params]] = RepetitionParams
    version: ClassVar[str] = "1"

    def __init__(self, params: RepetitionParams) -> None:
        self._n = params.n
        self._tolerated = params.tolerated

    def score(self, record: Record) -> Score:
        """The score of ``record``; the explanation has the repeated share."""
        if reason := nothing_to_score(record):
            return skipped(reason)
        n: int = self._n
        pieces: Sequence[str] = record.output.lower().split()
        if len(record.output) > 25 * len(pieces):  # longer "words" than any language has: written without spaces
            pieces, n = record.output, 10 * n
        total = len(pieces) - n + 1
        if len(pieces) < 2 * n:
            return skipped("the output is too short to repeat itself")
        if isinstance(pieces, str):
            unique = len({pieces[i : i + n] for i in range(total)})
        else:
            unique = len(set(zip(*(pieces[i:] for i in range(n)), strict=False)))
        repeated = 1 - unique / total
        value = 1.0 if repeated <= self._tolerated else (1 - repeated) / (1 - self._tolerated)
        label = "fresh" if repeated <= self._tolerated else "repetitive"
        return scored(value, label, f"{repeated:.0%} of the sequences repeat an earlier one")
