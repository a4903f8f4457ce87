"""A scorecard made ready to score: heuristics compiled once, judged criteria told what they owe."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from evalpipe.errors import ConfigError
from evalpipe.record import Record
from evalpipe.score import Score, failed, skipped
from evalpipe.scorecard.model import Criterion, JudgeSpec, Scorecard
from evalpipe.scorers.base import Heuristic, heuristics
from evalpipe.scorers.judged import skip_reason


@dataclass(frozen=True, slots=True)
class Finding:
    """What a criterion says of a record at ingest.

    Attributes:
        score: None where a judge call is owed instead.
        scorer: ``heuristic:name@version``, or ``judge`` before one has graded.
        weight: 1 / inclusion probability, the judge's share included.
    """

    criterion: Criterion
    score: Score | None
    scorer: str
    epoch: str
    weight: float


class ScoringPlan:
    """Scores records against one scorecard version.

    Args:
        scorecard: checked already.
        has_judge: whether the judge that a criterion names is configured.

    Raises:
        ConfigError: a heuristic's parameters cannot work.
    """

    def __init__(self, scorecard: Scorecard, has_judge: Callable[[JudgeSpec], bool]) -> None:
        self.scorecard = scorecard
        self._has_judge = has_judge
        self._heuristics = {c.name: _compile(c) for c in scorecard.criteria if c.heuristic}

    def score(self, record: Record) -> list[Finding]:
        """One finding for each criterion, in the scorecard's order."""
        return [
            self._judged(criterion, criterion.judge, record)
            if criterion.judge is not None
            else self._heuristic(criterion, record)
            for criterion in self.scorecard.criteria
        ]

    def _heuristic(self, criterion: Criterion, record: Record) -> Finding:
        heuristic = self._heuristics[criterion.name]
        try:
            score = heuristic.score(record)
        except Exception as error:  # noqa: BLE001 - one scorer's bug must not cost the batch its other scores
            score = failed(f"{type(error).__name__}: {error}")
        scorer = f"heuristic:{criterion.heuristic}@{heuristic.version}"
        return Finding(criterion, score, scorer, epoch_of(criterion, scorer), record.weight)

    def _judged(self, criterion: Criterion, spec: JudgeSpec, record: Record) -> Finding:
        # An arm of a rollout is captured at the rate that its test needs: to judge a share of it would starve the test.
        share = 1.0 if record.reason.startswith("rollout:") else self.scorecard.sampling.judge
        reason = skip_reason(spec, record)
        if reason is None and not self._has_judge(spec):
            reason = f"no judge is configured for model {spec.model!r}: set EVALPIPE_JUDGE"
        if reason is None and share < 1.0 and not self.scorecard.sampling.keeps(record.trace_id):
            reason = f"not selected: sampling.judge is {share:g}"
        score = None if reason is None else skipped(reason)
        return Finding(criterion, score, "judge", epoch_of(criterion, "judge"), record.weight / share)


def epoch_of(criterion: Criterion, scorer: str) -> str:
    """The stretch of a series under one definition and one scorer: changes when either does, and only then."""
    return _epoch(criterion.definition_hash, scorer)


@lru_cache(maxsize=4096)
def _epoch(definition_hash: str, scorer: str) -> str:
    return hashlib.sha256(f"{definition_hash}\x1f{scorer}".encode()).hexdigest()[:12]


def plans(scorecards: Sequence[Scorecard], has_judge: Callable[[JudgeSpec], bool]) -> list[ScoringPlan]:
    """A plan for each scorecard."""
    return [ScoringPlan(scorecard, has_judge) for scorecard in scorecards]


def _compile(criterion: Criterion) -> Heuristic:
    assert criterion.heuristic is not None
    kind = heuristics.get(criterion.heuristic)
    try:
        return kind(kind.Params(**criterion.params))
    except ValueError as error:
        raise ConfigError(f"criterion {criterion.name!r}: {error}") from error
