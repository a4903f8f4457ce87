"""``evalpipe scorecard diff A B --on labelled.jsonl``: what an edit changes on records that people have labelled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer
from rich.console import Console
from rich.markup import escape

from evalpipe.cli import tables
from evalpipe.cli.asking import Questions, ToGrade, ask_all, progress
from evalpipe.errors import ConfigError, JudgeUnavailable
from evalpipe.score import Score, failed, skipped
from evalpipe.scorecard.criterion import Criterion
from evalpipe.scorecard.diff import Diff, compare
from evalpipe.scorecard.model import Scorecard
from evalpipe.stats.agreement import UNKNOWN, Estimate, majority, share
from evalpipe.stats.paired import mcnemar_p

if TYPE_CHECKING:
    from evalpipe.pipeline.labelled_records import LabelledRecord
    from evalpipe.scorers.calls import Graded

SAME: Final = 1e-6
"""Two values that differ by less are the same."""
MOST_PROBLEMS: Final = 20


@dataclass(frozen=True, slots=True)
class Side:
    """One scorecard's word on one record; ``cost_usd`` is None where it is unknown, and for heuristics."""

    score: Score
    cost_usd: float | None = None

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


def changes_on(old: Scorecard, new: Scorecard, path: Path, judge: str, *, quiet: bool) -> list[Change]:
    """What the edit changes on the records of ``path``, for each criterion that both have and that is scored anew.

    Args:
        old: as it was.
        new: as it is to be; the labels are of its criteria.
        path: JSONL as ``evalpipe judge calibrate --on`` reads it.
        judge: grades both sides instead of their own judges; "" for those.
        quiet: show no progress.

    Raises:
        ConfigError: the file cannot be read, or a judge is needed and none is configured.
        JudgeRejected: a judge can answer nothing until a human acts.
    """
    rows = _read(path, new)
    names = compare(old, new).new_epochs
    calls = sum(len(rows) for card in (old, new) for name in names if card.criterion(name).is_judged)
    with progress("grading", calls, quiet=quiet or not calls) as step:
        before, after = (_sides(card, names, rows, judge, step) for card in (old, new))
    return [_change(old.criterion(n), new.criterion(n), rows, before[n], after[n]) for n in names]


def _read(path: Path, card: Scorecard) -> list[LabelledRecord]:
    from evalpipe.pipeline.labelled_records import read_labelled
    from evalpipe.scorecard.document import Problem

    try:
        with path.open("rb") as lines:
            found = list(read_labelled(str(path), lines, card))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if problems := [str(row) for row in found if isinstance(row, Problem)]:
        more = [f"... and {len(problems) - MOST_PROBLEMS} more"] if len(problems) > MOST_PROBLEMS else []
        raise ConfigError("\n".join([*problems[:MOST_PROBLEMS], *more]))
    if not found:
        raise ConfigError(f"{path}:1: there is no record in it")
    return [row for row in found if not isinstance(row, Problem)]


def _change(
    old: Criterion, new: Criterion, rows: Sequence[LabelledRecord], before: Sequence[Side], after: Sequence[Side]
) -> Change:
    people = [_people(row, new.name) for row in rows]
    three = list(zip(rows, before, after, people, strict=True))
    flips = [Flip(row.record.record_id, a, b, said) for row, a, b, said in three if _differ(a.score, b.score)]
    told = [(a.word == said, b.word == said) for _, a, b, said in three if said and _scored(a, b)]
    lost, won = sum(a and not b for a, b in told), sum(b and not a for a, b in told)
    both = [(a, b) for _, a, b, _ in three if _scored(a, b)]
    n = len(told)
    return Change(
        new.name, old.is_judged and new.is_judged, len(rows), sorted(flips, key=lambda flip: flip.rank), n,
        share(sum(a for a, _ in told), n) if n else UNKNOWN, share(sum(b for _, b in told), n) if n else UNKNOWN,
        lost, won, mcnemar_p(lost, won), _per_1000(before), _per_1000(after),
        _mean([a.score.value for a, _ in both]), _mean([b.score.value for _, b in both]),
    )  # fmt: skip


def _sides(
    card: Scorecard, names: Sequence[str], rows: Sequence[LabelledRecord], judge: str, step: Callable[[], None]
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
    answers = ask_all([item for _, _, item in asked], step=step)[0] if asked else []
    for (name, place, _), answer in zip(asked, answers, strict=True):
        sides[name][place] = _graded(answer)
    return sides


def _heuristic(criterion: Criterion) -> Any:
    from evalpipe.scorecard.load import scorer_of
    from evalpipe.scorers.base import heuristics

    return scorer_of(criterion, heuristics)


def _graded(given: Graded | JudgeUnavailable) -> Side:
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


def show_words(found: Diff) -> None:
    """What changes between the files, and which series start again."""
    if found.before == found.after:
        typer.echo(f"version {found.before} stays as it is")
    else:
        typer.echo(f"version {found.before} -> {found.after}")
    for change in found.changes or ["nothing changes but comments and layout"]:
        typer.echo(f"  {change}")
    if found.new_epochs:
        typer.echo(
            f"new epoch: {', '.join(found.new_epochs)}. Scores from before and after are not compared: "
            "alerts and rollouts on it start with an empty window"
        )
    elif found.before != found.after:
        typer.echo("no series starts again: what makes the scores is as it was")


def show(changes: Sequence[Change], path: Path, console: Console, worst: int) -> None:
    """For people: a table, then the flips, the worst first."""
    if not changes:
        console.print(f"on {escape(str(path))}: nothing is scored anew", soft_wrap=True, highlight=False)
        return
    console.print(f"on {escape(str(path))}:", soft_wrap=True, highlight=False)
    columns = (
        "criterion",
        "records",
        "flips",
        "mean",
        "labelled",
        "agrees_before",
        "agrees_after",
        "p",
        "usd_per_1000",
    )
    tables.show([_cells(change) for change in changes], columns, less=("usd_per_1000", "mean", "p"))
    for change in changes:
        _show_flips(change, console, worst)


def _cells(change: Change) -> dict[str, Any]:
    return {
        "criterion": change.criterion,
        "records": change.records,
        "flips": len(change.flips),
        "mean": f"{_number(change.mean_before)} -> {_number(change.mean_after)}",
        "labelled": change.labelled,
        "agrees_before": _share(change.before),
        "agrees_after": _share(change.after),
        "p": f"{change.p:.2g}" if change.labelled else "-",
        "usd_per_1000": f"{_number(change.cost_before, 4)} -> {_number(change.cost_after, 4)}"
        if change.judged
        else "-",
    }


def _show_flips(change: Change, console: Console, worst: int) -> None:
    if change.labelled:
        console.print(
            f"{change.criterion}: with the edit {change.won} grades agree with people that did not, and {change.lost} "
            f"do not any more; by chance alone p = {change.p:.2g}",
            soft_wrap=True,
            highlight=False,
        )
    for flip in change.flips[:worst]:
        people = f" (people: {flip.people})" if flip.people else ""
        line = f"{change.criterion}  {flip.record_id}  {flip.before.word} -> {flip.after.word}{people}"
        console.print(escape(line), soft_wrap=True, highlight=False)
        for what, side in (("before", flip.before), ("after", flip.after)):
            if side.score.explanation:
                console.print(escape(f"    {what}: {side.score.explanation}"), soft_wrap=True, highlight=False)
    if len(change.flips) > worst:
        console.print(f"    ... and {len(change.flips) - worst} more: --worst {len(change.flips)}, or --json")


def _share(of: Estimate) -> str:
    if of.value is None or of.low is None or of.high is None:
        return "-"
    return f"{of.value:.0%} ({of.low:.0%} to {of.high:.0%})"


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
