"""A scorecard on a file of records: what ``evalpipe scorecard try`` does."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evalpipe.record import Record
from evalpipe.rollup import Rollup
from evalpipe.score import Score, Status
from evalpipe.scorecard.model import Sampling, Scorecard
from evalpipe.scorecard.testing import Grader, Work
from evalpipe.scorers.plan import ScoringPlan
from evalpipe.stats.mean_interval import MeanInterval, interval_of


@dataclass(slots=True)
class CriterionResult:
    """What one criterion said of all records.

    Attributes:
        ungraded: a judge was needed, and there was none.
        worst: lowest scores with record id and explanation, the lowest first.
        reasons: why records have no score, by status and reason.
    """

    name: str
    scorer: str
    ungraded: int = 0
    rollup: Rollup = field(default_factory=Rollup)
    labels: Counter[str] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    _low: list[tuple[float, int, str, str]] = field(default_factory=list)

    def add(self, record: Record, score: Score, keep: int) -> None:
        """Count one score, and remember it if it is among the ``keep`` lowest."""
        self.rollup.add(score, record.weight)
        if score.value is None:
            self.reasons[score.status.value, score.explanation] += 1
            return
        self.labels[score.label] += 1
        if score.value < 1.0 and keep:
            entry = (-score.value, -self.rollup.n_scored, record.record_id, score.explanation)
            (heapq.heappush if len(self._low) < keep else heapq.heappushpop)(self._low, entry)

    @property
    def worst(self) -> list[tuple[float, str, str]]:
        """Value, record id and explanation of the lowest scores."""
        return [(-value, record_id, why) for value, _, record_id, why in sorted(self._low, reverse=True)]

    @property
    def interval(self) -> MeanInterval | None:
        """The mean with its 95 % interval."""
        r = self.rollup
        return interval_of(r)

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        interval, r = self.interval, self.rollup
        return {
            "criterion": self.name,
            "scorer": self.scorer,
            "n": r.n_scored,
            "mean": None if interval is None else round(interval.mean, 6),
            "low": None if interval is None else round(interval.low, 6),
            "high": None if interval is None else round(interval.high, 6),
            Status.SKIPPED.value: r.n_skipped,
            Status.ABSTAINED.value: r.n_abstained,
            Status.ERROR.value: r.n_error,
            "ungraded": self.ungraded,
            "labels": dict(self.labels.most_common()),
            "reasons": [{"status": s, "reason": why, "n": n} for (s, why), n in self.reasons.most_common()],
            "worst": [{"value": v, "record_id": i, "explanation": why} for v, i, why in self.worst],
        }


def try_records(
    scorecard: Scorecard,
    records: Sequence[Record],
    grader: Grader | None,
    *,
    worst: int = 3,
    step: Callable[[], None] = lambda: None,
) -> list[CriterionResult]:
    """What each criterion says of ``records``, whether ``match`` takes them or not, and without judge sampling.

    Args:
        scorecard: checked already.
        records: in the order of the file.
        grader: grades judged criteria; without it they are counted as ungraded.
        worst: how many of the lowest scores to keep for each criterion.
        step: called after each record, and after each grade.
    """
    plan = ScoringPlan(scorecard.model_copy(update={"sampling": Sampling()}), has_judge=lambda _: True)
    results = {c.name: CriterionResult(c.name, c.heuristic or "judge") for c in scorecard.criteria}
    together = {c.name: scorecard.together(c.name) for c in scorecard.criteria}
    work: list[Work] = []
    for record in records:
        for finding in plan.score(record):
            if finding.score is not None:
                results[finding.criterion.name].add(record, finding.score, worst)
            elif grader is None:
                results[finding.criterion.name].ungraded += 1
            else:
                work.append(Work(finding.criterion, record, together[finding.criterion.name]))
        step()
    for place, score in grader(work) if grader is not None and work else ():
        results[work[place].criterion.name].add(work[place].record, score, worst)
        step()
    return list(results.values())


def print_results(card: Scorecard, records: Sequence[Record], results: Sequence[CriterionResult]) -> None:
    """The table for people, then the lowest scores, and why records have none."""
    console = Console()
    table = Table(title=f"{card.name} {card.version}: {len(records)} records", title_justify="left", box=box.SIMPLE)
    table.add_column("criterion", overflow="fold")
    for column in ("n", "mean", "95% interval"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("without a score", overflow="fold")
    table.add_column("labels", overflow="fold")
    for result in results:
        interval, r = result.interval, result.rollup
        shown = ("", "") if interval is None else (f"{interval.mean:.3f}", f"{interval.low:.3f} to {interval.high:.3f}")
        counts = {"skipped": r.n_skipped, "abstained": r.n_abstained, "error": r.n_error, "no judge": result.ungraded}
        without = ", ".join(f"{n} {why}" for why, n in counts.items() if n)
        labels = ", ".join(f"{label} {n}" for label, n in result.labels.most_common(4) if label)
        table.add_row(result.name, str(r.n_scored), *shown, without, escape(labels))
    console.print(table)
    for result in results:
        for value, record_id, why in result.worst:
            console.print(f"{result.name} {value:.2f}  {escape(record_id)}  {escape(why)}", soft_wrap=True)
        for (status, reason), n in result.reasons.most_common(3):
            console.print(f"{result.name} {status} ({n}): {escape(reason)}", soft_wrap=True)
    ungraded = [result.name for result in results if result.ungraded]
    if ungraded:
        console.print(
            f"judged criteria skipped: no judge configured ({', '.join(ungraded)}); set EVALPIPE_JUDGE", soft_wrap=True
        )
    outside = sum(bool(record.release.service) and not card.matches(record) for record in records)
    if outside:
        console.print(f"not taken by the scorecard's match: {outside} of {len(records)} records; scored all the same")
