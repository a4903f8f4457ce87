"""``evalpipe scorecard diff A B --on labelled.jsonl``: what an edit changes on records that people have labelled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from evalpipe.cli.asking import Asking, Questions, ToGrade, progress
from evalpipe.errors import ConfigError, JudgeUnavailable
from evalpipe.score import Score, failed, skipped
from evalpipe.scorecard.criterion import Criterion
from evalpipe.scorecard.diff import compare
from evalpipe.scorecard.model import Scorecard
from evalpipe.stats.agreement import UNKNOWN, Estimate, majority, share
from evalpipe.stats.paired import mcnemar_p

if TYPE_CHECKING:
    from evalpipe.pipeline.labelled_records import LabelledRecord
    from evalpipe.scorers.calls import Graded

SAME: Final = 1e-6
"""Two values that differ by less are the same."""


@dataclass(frozen=True, slots=True)
class Side:
    """One scorecard's word on one record.

    Attributes:
        cost_usd: None where it is unknown, and for heuristics.
        asked: False where the judge was given up before; then there is nothing to compare.
    """

    score: Score
    cost_usd: float | None = None
    asked: bool = True

    @property
    def word(self) -> str:
        """The grade, the value where there is no label, or why there is none."""
        score = self.score
        return score.status.value if score.value is None else score.label or f"{score.value:.3f}"

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        score = self.score
        return {
            "status": score.status.value,
            "value": score.value,
            "label": score.label,
            "explanation": score.explanation,
        }


@dataclass(frozen=True, slots=True)
class Flip:
    """A record that is scored differently; ``people`` is what most of them said, "" if nothing or no majority."""

    record_id: str
    before: Side
    after: Side
    people: str

    @property
    def rank(self) -> tuple[int, float, str]:
        """The worst first: wrong now and right before, then the largest change, downwards before upwards."""
        turned = 0 if self.people and self.people == self.before.word else 2 if self.people == self.after.word else 1
        old, new = self.before.score.value, self.after.score.value
        change = (new - old) if old is not None and new is not None else -1.0
        return turned, -abs(change) if change < 0 else -abs(change) + 0.5, self.record_id

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "record_id": self.record_id,
            "people": self.people,
            "before": self.before.to_json(),
            "after": self.after.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Change:
    """What an edit changes for one criterion.

    Attributes:
        judged: by a judge on both sides.
        records: looked at.
        flips: the worst first.
        before, after: share of equal grades, over the ``labelled`` records that people and both sides graded.
        lost, won: records on which the old (the new) one alone agrees with people.
        p: of that by chance, McNemar's exact test.
        cost_before, cost_after: dollars for 1,000 records; None where a price is unknown.
        mean_before, mean_after: over the records that both sides scored.
    """

    criterion: str
    judged: bool
    records: int
    flips: Sequence[Flip]
    labelled: int
    before: Estimate
    after: Estimate
    lost: int
    won: int
    p: float
    cost_before: float | None
    cost_after: float | None
    mean_before: float | None
    mean_after: float | None

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "criterion": self.criterion,
            "judged": self.judged,
            "records": self.records,
            "mean": {"before": self.mean_before, "after": self.mean_after},
            "agreement": {
                "labelled": self.labelled,
                "before": _interval(self.before),
                "after": _interval(self.after),
                "only_before": self.lost,
                "only_after": self.won,
                "p": self.p if self.labelled else None,
            },
            "usd_per_1000": {"before": self.cost_before, "after": self.cost_after},
            "flips": [flip.to_json() for flip in self.flips],
        }


def changes_on(old: Scorecard, new: Scorecard, path: Path, judge: str, *, quiet: bool) -> tuple[list[Change], str]:
    """What the edit changes on the records of ``path``, for each criterion that both have and that is scored anew.

    With it comes why not everything was asked; "" where it was.

    Args:
        old: as it was.
        new: as it is to be; the labels are of its criteria.
        path: JSONL as ``evalpipe judge calibrate --on`` reads it.
        judge: grades both sides instead of their own judges; "" for those.
        quiet: show no progress.

    Raises:
        ConfigError: the file cannot be read, or a judge is needed and cannot be asked.
    """
    rows = _read(path, new)
    names = compare(old, new).new_epochs
    calls = sum(len(rows) for card in (old, new) for name in names if card.criterion(name).is_judged)
    asking = Asking()
    with progress("grading", calls, quiet=quiet or not calls) as step:
        before, after = (_sides(card, names, rows, judge, asking, step) for card in (old, new))
    changes = [_change(old.criterion(n), new.criterion(n), rows, before[n], after[n]) for n in names]
    return changes, asking.stopped


def _read(path: Path, card: Scorecard) -> list[LabelledRecord]:
    from evalpipe.pipeline.labelled_records import read_labelled_file

    found = read_labelled_file(path, card)
    if not found:
        raise ConfigError(f"{path}:1: there is no record in it")
    return found


def _change(
    old: Criterion, new: Criterion, rows: Sequence[LabelledRecord], before: Sequence[Side], after: Sequence[Side]
) -> Change:
    people = [_people(row, new.name) for row in rows]
    three = [one for one in zip(rows, before, after, people, strict=True) if one[1].asked and one[2].asked]
    flips = [Flip(row.record.record_id, a, b, said) for row, a, b, said in three if _differ(a.score, b.score)]
    told = [(a.word == said, b.word == said) for _, a, b, said in three if said and _scored(a, b)]
    lost, won = sum(a and not b for a, b in told), sum(b and not a for a, b in told)
    both = [(a, b) for _, a, b, _ in three if _scored(a, b)]
    n = len(told)
    return Change(
        new.name, old.is_judged and new.is_judged, len(three), sorted(flips, key=lambda flip: flip.rank), n,
        share(sum(a for a, _ in told), n) if n else UNKNOWN, share(sum(b for _, b in told), n) if n else UNKNOWN,
        lost, won, mcnemar_p(lost, won), _per_1000(before), _per_1000(after),
        _mean([a.score.value for a, _ in both]), _mean([b.score.value for _, b in both]),
    )  # fmt: skip


def _sides(
    card: Scorecard,
    names: Sequence[str],
    rows: Sequence[LabelledRecord],
    judge: str,
    asking: Asking,
    step: Callable[[], None],
) -> dict[str, list[Side]]:
    """What one scorecard says of each record by each of these criteria; those that share a call do so here."""
    from evalpipe.scorers.judged import skip_reason

    questions = Questions(card, judge)
    sides: dict[str, list[Side]] = {name: [] for name in names}
    asked: list[tuple[str, int, ToGrade]] = []
    for name in names:
        criterion = card.criterion(name)
        if criterion.judge is None:
            sides[name] = [Side(_heuristic(criterion).score(row.record)) for row in rows]
            continue
        if criterion.judge.kind == "pairwise":
            raise ConfigError(f"criterion {name!r} compares two answers: a file of single records cannot show it")
        reasons = [skip_reason(criterion.judge, row.record) for row in rows]
        sides[name] = [Side(skipped(reason or "")) for reason in reasons]
        question = questions.of(name)
        asked += [
            (name, place, ToGrade(question, name, row.record, row.record.record_id))
            for place, (row, reason) in enumerate(zip(rows, reasons, strict=True))
            if reason is None
        ]
    answers = asking.ask_all([item for _, _, item in asked], step=step)[0] if asked else []
    for (name, place, _), answer in zip(asked, answers, strict=True):
        sides[name][place] = _graded(answer)
    return sides


def _heuristic(criterion: Criterion) -> Any:
    from evalpipe.scorecard.load import scorer_of
    from evalpipe.scorers.base import heuristics

    return scorer_of(criterion, heuristics)


def _graded(given: Graded | JudgeUnavailable | None) -> Side:
    if given is None:
        return Side(skipped("not asked"), asked=False)
    if isinstance(given, JudgeUnavailable):
        return Side(failed(str(given)))
    grade = given.grade
    why = grade.explanation + (f' "{grade.quotation}"' if grade.quotation else "")
    return Side(Score(grade.status, grade.value, grade.label, why), grade.answer.cost_usd if grade.answer else None)


def _people(row: LabelledRecord, criterion: str) -> str:
    said: Mapping[str, tuple[str, float | None]] = row.labels.get(criterion, {})
    found = majority(label for label, value in said.values() if value is not None)
    return str(found) if found is not None else ""


def _differ(a: Score, b: Score) -> bool:
    if a.value is None or b.value is None:
        return a.status is not b.status
    return a.label != b.label or (not a.label and abs(a.value - b.value) > SAME)


def _scored(a: Side, b: Side) -> bool:
    return a.score.value is not None and b.score.value is not None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _per_1000(sides: Sequence[Side]) -> float | None:
    """Of the records that were graded; None where one of those has no known price."""
    graded = [side for side in sides if side.score.value is not None]
    costs = [side.cost_usd for side in graded if side.cost_usd is not None]
    return 1000.0 * sum(costs) / len(costs) if costs and len(costs) == len(graded) else None


def _interval(of: Estimate) -> dict[str, float | None]:
    return {"value": of.value, "low": of.low, "high": of.high}
