"""A scorecard made ready to score: heuristics compiled once, judged criteria told what they owe."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from evalpipe.errors import ConfigError
from evalpipe.record import Record
from evalpipe.score import Score, failed, skipped
from evalpipe.scorecard.model import Criterion, JudgeSpec, Scorecard
from evalpipe.scorers.base import Heuristic, heuristics
from evalpipe.scorers.judged import skip_reason

FLAG: Final = 0.5
"""A score of this or less is a flag, where another criterion confirms it."""


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
        """One finding for each criterion, in the scorecard's order.

        None yet for a criterion that confirms the flags of one whose judge has yet to grade.
        """
        found = {
            criterion.name: self._judged(criterion, criterion.judge, record)
            if criterion.judge is not None
            else self._heuristic(criterion, record)
            for criterion in self.scorecard.criteria
        }
        settled = (confirmation(finding, found) for finding in found.values())
        return [finding for finding in settled if finding is not None]

    def _heuristic(self, criterion: Criterion, record: Record) -> Finding:
        heuristic = self._heuristics[criterion.name]
        try:
            score = heuristic.score(record)
        except Exception as error:  # noqa: BLE001 - one scorer's bug must not cost the batch its other scores
            score = failed(f"{type(error).__name__}: {error}")
        scorer = f"heuristic:{criterion.heuristic}@{heuristic.version}"
        return Finding(criterion, score, scorer, epoch_of(self.scorecard, criterion, scorer), record.weight)

    def _judged(self, criterion: Criterion, spec: JudgeSpec, record: Record) -> Finding:
        # An arm of a rollout is captured at the rate that its test needs: to judge a share of it would starve the test.
        # And where flags are confirmed, the criterion that finds them has been drawn already.
        every = record.reason.startswith("rollout:") or bool(spec.confirms)
        share = 1.0 if every else self.scorecard.sampling.judge
        reason = skip_reason(spec, record)
        if reason is None and not self._has_judge(spec):
            reason = f"no judge is configured for model {spec.model!r}: set EVALPIPE_JUDGE"
        if reason is None and share < 1.0 and not self.scorecard.sampling.keeps(record.trace_id):
            reason = f"not selected: sampling.judge is {share:g}"
        score = None if reason is None else skipped(reason)
        return Finding(criterion, score, "judge", epoch_of(self.scorecard, criterion, "judge"), record.weight / share)


def is_flag(score: Score) -> bool:
    """Whether a score is a flag, which another criterion may have to confirm."""
    return score.value is not None and score.value <= FLAG


def confirmation(finding: Finding, found: Mapping[str, Finding]) -> Finding | None:
    """What a finding becomes where it confirms another's flags: owed, skipped, or None as long as nobody knows."""
    spec = finding.criterion.judge
    first = found.get(spec.confirms) if spec is not None and spec.confirms else None
    if first is None or finding.score is not None:
        return finding
    if first.score is None:
        return None
    if is_flag(first.score):
        return replace(finding, weight=first.weight)
    return replace(finding, score=nothing_to_confirm(first.criterion.name), weight=first.weight)


def nothing_to_confirm(criterion: str) -> Score:
    """The score of a criterion that was not asked, because the one whose flags it confirms found none."""
    return skipped(f"nothing to confirm: {criterion} is no flag")


def epoch_of(card: Scorecard, criterion: Criterion, scorer: str) -> str:
    """The stretch of a series under one definition, one scorer and one sampling: changes when one does, and only then.

    The sampling is the scorecard's own share of judged records. The hook's rates are not part of it: they are in the
    weights, so they change how exactly a mean is known, and not which mean it is; and rates that adapt themselves would
    open an epoch every minute.
    """
    share = card.sampling.judge if criterion.is_judged else 1.0
    return _epoch(criterion.definition_hash, scorer, share)


@lru_cache(maxsize=4096)
def _epoch(definition_hash: str, scorer: str, share: float) -> str:
    parts = [definition_hash, scorer] if share == 1.0 else [definition_hash, scorer, f"{share!r}"]
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:12]


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
