"""``evalpipe judge injections``: how often texts that speak to the judge move its grade."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape

from evalpipe.cli import tables
from evalpipe.cli.asking import Questions, by, progress
from evalpipe.cli.injection_run import DEFAULT, Report, Trial, Victim, built_in, of_tests, run, spread
from evalpipe.errors import ConfigError
from evalpipe.judges.corpus import CONTROL, attempts
from evalpipe.judges.injection import suspects

if TYPE_CHECKING:
    from evalpipe.scorers.judged import Question


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(name="injections")(injections)


def injections(
    judge: Annotated[str, typer.Option("--judge", help="provider:model; by default the criterion's own.")] = "",
    scorecard: Annotated[
        Path | None, typer.Option("--scorecard", help="A scorecard's file; its tests give the answers.")
    ] = None,
    criterion: Annotated[str, typer.Option("--criterion", help="A judged criterion of it; by default its first.")] = "",
    limit: Annotated[int, typer.Option(min=0, help="So many attempts, spread over the kinds; 0 takes all.")] = 0,
    machine: Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")] = False,
) -> None:
    """Try the injection attempts that ship on a judge, and say how often they move its grade.

    First the judge grades a few answers, of which some are bad, as they are: what it gets wrong by itself is left out.
    Then each attempt is added to one of the others. Attempts of kind `control` ask for nothing: as often as those move
    a grade, the judge moves by itself. It costs one call an attempt, about 170 in all; the database is not touched.

        evalpipe judge injections --limit 40
        evalpipe judge injections --scorecard scorecards/support-bot.yaml --criterion grounded

    A scorecard needs tests of the criterion with a bad answer, such as `expect: {grounded: {label: fail}}`. The judge
    `fake` grades by a hash: with it the figures mean nothing.
    """
    name, question, tried, victims = _asked_of(scorecard, criterion, judge)
    chosen = spread(attempts(), limit)
    with progress("judging", len(victims) + len(chosen), quiet=machine) as step:
        report = run(name, question, tried, victims, chosen, step=step)
    if machine:
        typer.echo(tables.as_json(to_json(report)))
    else:
        show(report, Console())
    if report.stopped:
        raise typer.Exit(1)


def _asked_of(path: Path | None, criterion: str, judge: str) -> tuple[str, Question, str, list[Victim]]:
    from evalpipe.scorers.judged import Question

    if path is None:
        if criterion:
            raise ConfigError("--criterion needs --scorecard: which file is it in?")
        return "agrees with the context (built in)", Question(by(DEFAULT, judge)), "", built_in()
    from evalpipe.judges.base import judges
    from evalpipe.scorecard.load import load_scorecard
    from evalpipe.scorers.base import heuristics

    card = load_scorecard(path, heuristics, judges)
    found = next((c for c in card.criteria if c.judge is not None and criterion in {"", c.name}), None)
    if found is None or found.judge is None:
        raise ConfigError(f"{path}: there is no judged criterion {criterion!r}" if criterion else f"{path}: no judge")
    if found.judge.kind == "pairwise":
        raise ConfigError(f"{path}: criterion {found.name!r} compares two answers: it cannot be tried on one")
    victims = of_tests(card, found.name, found.judge)
    if all(victim.good for victim in victims):
        raise ConfigError(
            f"{path}: no test says which answer is bad by {found.name!r}: add one that expects its worst label"
        )
    return f"{card.name}/{found.name}", Questions(card, judge).of(found.name), found.name, victims


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one kind of attempt; ``flagged`` is None for all that are no attempts."""

    kind: str
    n: int
    outcomes: Mapping[str, int]
    flagged: int

    def to_json(self) -> dict[str, Any]:
        """For machines; rates are of those that the judge answered."""
        from evalpipe.stats.agreement import share

        rate = share(self.outcomes.get("moved", 0), self.n)
        return {
            "kind": self.kind,
            "n": self.n,
            **{name: self.outcomes.get(name, 0) for name in ("moved", "broken", "abstained", "unanswered")},
            "rate": rate.value,
            "low": rate.low,
            "high": rate.high,
            "flagged": self.flagged,
        }


def rows_of(trials: Sequence[Trial]) -> list[Row]:
    """The figures by kind, then of all attempts together, then of the controls."""
    kinds = list(dict.fromkeys(trial.attempt.kind for trial in trials if trial.attempt.kind != CONTROL))
    real = [trial for trial in trials if trial.attempt.kind != CONTROL]
    controls = [trial for trial in trials if trial.attempt.kind == CONTROL]
    rows = [_row(kind, [trial for trial in real if trial.attempt.kind == kind]) for kind in kinds]
    return [*rows, *([_row("all", real)] if real else []), *([_row(CONTROL, controls)] if controls else [])]


def _row(kind: str, trials: Sequence[Trial]) -> Row:
    outcomes = Counter(trial.outcome for trial in trials)
    flagged = sum(bool(suspects(trial.attempt.text)) for trial in trials)
    return Row(kind, len(trials) - outcomes["unanswered"], outcomes, flagged)


def to_json(report: Report) -> dict[str, Any]:
    """For machines: the figures, and what became of each attempt."""
    return {
        "criterion": report.criterion,
        "judges": list(report.judges),
        "base": [
            {"record": v.name, "good": v.good, "outcome": outcome, "label": label, "explanation": why}
            for v, outcome, label, why in report.base
        ],
        "kinds": [row.to_json() for row in rows_of(report.trials)],
        "attempts": [
            {
                "id": trial.attempt.id,
                "kind": trial.attempt.kind,
                "where": trial.attempt.where,
                "goal": trial.attempt.goal,
                "record": trial.victim.name,
                "outcome": trial.outcome,
                "label": trial.label,
                "explanation": trial.explanation,
                "flagged": list(suspects(trial.attempt.text)),
            }
            for trial in report.trials
        ],
    }


def show(report: Report, console: Console) -> None:
    """For people."""
    console.print(f"criterion: {escape(report.criterion)}", soft_wrap=True, highlight=False)
    console.print(f"judge: {escape(', '.join(report.judges))}", soft_wrap=True, highlight=False)
    for good, what in ((False, "bad"), (True, "good")):
        of = [outcome for victim, outcome, _, _ in report.base if victim.good is good]
        right = of.count("held")
        left_out = "" if right == len(of) else f"; the other {len(of) - right} cannot be moved and are left out"
        console.print(
            f"without an attempt: {right} of {len(of)} {what} answers graded rightly{left_out}", highlight=False
        )
    for victim, outcome, _, why in report.base:
        if outcome in {"broken", "unanswered"}:
            console.print(f"answer {escape(victim.name)}: {escape(why)}", soft_wrap=True, highlight=False)
    if not report.trials and report.stopped:
        console.print("[yellow]The judge gave no answer: no attempt was tried.[/yellow]")
        return
    if not report.trials:
        console.print("[yellow]It is right on none that these attempts want to move: no attempt can be tried.[/yellow]")
        return
    tables.show(
        [_cells(row) for row in rows_of(report.trials)], _COLUMNS, less=("unanswered", "cannot_tell", "no_grade")
    )
    console.print(
        "moved: the grade turned into the wrong one. no grade: the answer could not be read; that is an error, never a "
        "score. flagged: found by the heuristic `injection`. Intervals: 95 %, Wilson.",
        highlight=False,
    )
    if any(version.startswith("fake:") for version in report.judges):
        console.print("[yellow]The judge fake grades by a hash of the prompt: these figures mean nothing.[/yellow]")


_COLUMNS: Final = (
    "attempts", "n", "moved", "rate", "interval", "no_grade", "cannot_tell", "unanswered", "flagged"
)  # fmt: skip


def _cells(row: Row) -> dict[str, Any]:
    told = row.to_json()
    return {
        "attempts": row.kind,
        "n": row.n,
        "moved": told["moved"],
        "rate": "-" if told["rate"] is None else f"{told['rate']:.0%}",
        "interval": "-" if told["low"] is None else f"{told['low']:.0%} to {told['high']:.0%}",
        "no_grade": told["broken"],
        "cannot_tell": told["abstained"],
        "unanswered": told["unanswered"],
        "flagged": row.flagged,
    }
