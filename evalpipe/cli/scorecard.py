"""``evalpipe scorecard``: the tools of someone who writes scorecards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from evalpipe.cli.grading import configured_grader
from evalpipe.errors import ConfigError, EvalpipeError
from evalpipe.record import Record
from evalpipe.scorecard.checks import nearest
from evalpipe.scorecard.criterion import Criterion
from evalpipe.scorecard.diff import compare
from evalpipe.scorecard.document import Problem
from evalpipe.scorecard.load import Reading, load_scorecard, load_scorecards, read_scorecards
from evalpipe.scorecard.model import Scorecard
from evalpipe.scorecard.rows import read_rows
from evalpipe.scorecard.schema import json_schema
from evalpipe.scorecard.testing import Grader, TestResult, run_tests

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
Folder = Annotated[Path, typer.Option("--scorecards", envvar="EVALPIPE_SCORECARDS", help="Folder of the scorecards.")]
Card = Annotated[str, typer.Argument(help="A scorecard's name, or its file.", show_default=False)]
GraderOf = Callable[[Iterable[Criterion]], Grader | None]


def build_app(grader: GraderOf = configured_grader) -> typer.Typer:
    """The commands.

    Args:
        grader: called with criteria that are to be graded; None means that no judge is configured for them.
    """
    app = typer.Typer(
        no_args_is_help=True, help="Check, read, compare and try scorecards.", rich_markup_mode="markdown"
    )
    app.command()(check_command(grader))
    app.command()(show)
    app.command()(diff)
    app.command(name="try")(try_command(grader))
    app.command()(schema)
    return app


def check_command(grader: GraderOf) -> Callable[..., None]:
    """The command ``check``, which grades with ``grader``."""

    def check(
        paths: Annotated[
            list[Path] | None,
            typer.Argument(help="Files or folders.", envvar="EVALPIPE_SCORECARDS", show_default="scorecards"),
        ] = None,
        judge: Annotated[
            bool, typer.Option("--judge", help="Grade the tests of judged criteria too; costs judge calls.")
        ] = False,
        as_json: Json = False,
    ) -> None:
        """Find every mistake, and run the tests that the scorecards carry.

        Each mistake is one line on stderr, file:line:column, with the value and the nearest right name. The exit code
        is 1 if there is a mistake or a failed test.

            evalpipe scorecard check                     everything in scorecards/
            evalpipe scorecard check my/card.yaml        one file
            evalpipe scorecard check --judge             with the configured judge
        """
        with _told():
            from evalpipe.cli.asking import usable

            judges = _judges()
            reading = read_scorecards(paths or [Path("scorecards")], _heuristics(), judges, usable, _detectors())
            given = grader([c for card in reading.scorecards for c in card.criteria]) if judge else None
            results = [result for card in reading.scorecards for result in run_tests(card, _heuristics(), given)]
        if as_json:
            _print_json(_check_json(reading, results))
        else:
            for notice in reading.notices:
                typer.echo(f"{notice} (a notice)", err=True)
            _print_check(reading.scorecards, reading.problems, results)
        if reading.problems or any(result.outcome == "failed" for result in results):
            raise typer.Exit(1)

    return check


def _check_json(reading: Reading, results: list[TestResult]) -> dict[str, Any]:
    return {
        "scorecards": [{"name": c.name, "version": c.version, "file": str(c.path)} for c in reading.scorecards],
        "problems": [asdict(problem) for problem in reading.problems],
        "notices": [asdict(notice) for notice in reading.notices],
        "tests": [
            {
                "scorecard": r.scorecard,
                "test": r.test,
                "criterion": r.criterion,
                "outcome": r.outcome,
                "message": r.message,
            }
            for r in results
        ],
    }


def _print_check(cards: list[Scorecard], problems: list[Problem], results: list[TestResult]) -> None:
    for problem in problems:
        typer.echo(str(problem), err=True)
    for card in cards:
        own = [result for result in results if result.scorecard == card.name]
        counts = {o: sum(r.outcome == o for r in own) for o in ("passed", "failed", "skipped")}
        told = ", ".join(f"{n} {outcome}" for outcome, n in counts.items() if n) or "it has none"
        skipped = " (no judge configured, or without --judge)" if counts["skipped"] else ""
        typer.echo(f"{card.path}: {card.name} {card.version}, {len(card.criteria)} criteria; tests: {told}{skipped}")
        for result in own:
            if result.outcome == "failed":
                typer.echo(f"{card.path}: test {result.test!r}: {result.criterion}: {result.message}", err=True)
    if not cards and not problems:
        typer.echo("no scorecards found (files end in .yaml or .yml)", err=True)
    if problems:
        files = len({p.file for p in problems})
        typer.echo(f"{_counted(len(problems), 'problem')} in {_counted(files, 'file')}", err=True)


def show(card: Card, folder: Folder = Path("scorecards"), as_json: Json = False) -> None:
    """Say in plain words what a scorecard does.

    evalpipe scorecard show support-bot
    """
    with _told():
        found = _find(card, folder)
    if as_json:
        hashes = {c.name: c.definition_hash for c in found.criteria}
        _print_json({**found.body(), "version": found.version, "file": str(found.path), "definition_hashes": hashes})
        return
    from evalpipe.cli.scorecard_text import show_card

    show_card(found, Console())


def diff(
    old: Annotated[Path, typer.Argument(help="The scorecard file as it was.", show_default=False)],
    new: Annotated[Path, typer.Argument(help="The scorecard file as it is to be.", show_default=False)],
    on: Annotated[Path | None, typer.Option("--on", help="JSONL: records with people's labels.")] = None,
    judge: Annotated[str, typer.Option("--judge", help="With --on: provider:model, for both files.")] = "",
    worst: Annotated[int, typer.Option(min=0, help="With --on: how many changed grades to show per criterion.")] = 5,
    as_json: Json = False,
) -> None:
    """Say what changes between two files, and which series start again.

        git show HEAD:scorecards/support-bot.yaml > old.yaml
        evalpipe scorecard diff old.yaml scorecards/support-bot.yaml

    With --on the changed criteria of both files score the same labelled records here and now: which grades change, the
    worst first, how far each agrees with people, and what 1,000 grades cost. It makes two judge calls a record for each
    judged criterion that changes. A line is a record as `try` reads it, with its labels by criterion:

        {"input": "May I return it?", "output": "Yes, for ever.", "labels": {"grounded": "fail"}}

        evalpipe scorecard diff old.yaml scorecards/support-bot.yaml --on labelled.jsonl
    """
    from evalpipe.cli import scorecard_diff, scorecard_text

    with _told():
        if on is None and judge:
            raise ConfigError("--judge goes with --on: without records nothing is graded")
        a, b = (load_scorecard(path, _heuristics(), _judges(), _detectors()) for path in (old, new))
        found = compare(a, b)
        changes, stopped = scorecard_diff.changes_on(a, b, on, judge, quiet=as_json) if on else ([], "")
    if as_json:
        told = {} if on is None else {"on": [change.to_json() for change in changes]}
        _print_json({**asdict(found), **told})
    else:
        scorecard_text.show_words(found)
        if on is not None:
            scorecard_text.show_changes(changes, on, Console(), worst)
    if stopped:
        raise typer.Exit(1)


def try_command(grader: GraderOf) -> Callable[..., None]:
    """The command ``try``, which grades with ``grader``."""

    def try_(
        card: Card,
        records: Annotated[Path, typer.Option("--records", "-r", help="JSONL: one record a line.", show_default=False)],
        folder: Folder = Path("scorecards"),
        limit: Annotated[int, typer.Option(min=0, help="Take only the first so many records; 0 takes all.")] = 0,
        worst: Annotated[int, typer.Option(min=0, help="How many of the lowest scores to show per criterion.")] = 3,
        heuristics_only: Annotated[bool, typer.Option("--heuristics-only", help="Make no judge calls.")] = False,
        as_json: Json = False,
    ) -> None:
        """Score a file of records here and now, without services, and print what came out.

        A line is a record as hooks send it, or in short form:

            {"input": "May I return it?", "output": "Yes, within 30 days. [returns]",
             "context": [{"id": "returns", "text": "Items may be returned within 30 days."}]}

        Without a configured judge the judged criteria are skipped, and the table says so. A line that cannot be read is
        reported with file:line, the others are scored, and the exit code is 1.

            evalpipe scorecard try support-bot --records answers.jsonl
        """
        from evalpipe.cli.trial import print_results, try_records

        with _told():
            found = _find(card, folder)
            taken, problems = _read(records, limit)
            given = None if heuristics_only else grader(found.criteria)
            graded = sum(c.is_judged for c in found.criteria) if given else 0
            with _progress(len(taken) * (1 + graded), quiet=as_json) as step:
                results = try_records(found, taken, given, worst=worst, step=step)
        for problem in problems:
            typer.echo(str(problem), err=True)
        if as_json:
            _print_json(
                {
                    "scorecard": found.name,
                    "version": found.version,
                    "records": len(taken),
                    "unread": [str(problem) for problem in problems],
                    "criteria": [result.to_json() for result in results],
                }
            )
        else:
            print_results(found, taken, results)
        if problems:
            typer.echo(f"{_counted(len(problems), 'line')} could not be read", err=True)
            raise typer.Exit(1)

    return try_


def schema(
    out: Annotated[Path | None, typer.Option(help="Write it to this file instead of stdout.")] = None,
) -> None:
    """Write the JSON Schema of scorecards, with which editors complete and explain the fields.

        evalpipe scorecard schema --out scorecards/scorecard.schema.json

    Then begin each scorecard with this line:

        # yaml-language-server: $schema=scorecard.schema.json
    """
    text = json.dumps(json_schema(_heuristics(), _detectors()), indent=2, ensure_ascii=False)
    if out is None:
        typer.echo(text)
        return
    try:
        out.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        typer.echo(f"{out} cannot be written: {error.strerror}", err=True)
        raise typer.Exit(2) from error


def _find(card: str, folder: Path) -> Scorecard:
    if card.endswith((".yaml", ".yml")) or Path(card).is_file():
        return load_scorecard(Path(card), _heuristics(), _judges(), _detectors())
    cards = {found.name: found for found in load_scorecards(folder, _heuristics(), _judges(), _detectors())}
    if card not in cards:
        raise ConfigError(f"no scorecard named {card!r} in {folder}{nearest(card, cards)}")
    return cards[card]


def _read(path: Path, limit: int) -> tuple[list[Record], list[Problem]]:
    records: list[Record] = []
    problems: list[Problem] = []
    try:
        with path.open("rb") as lines:
            for row in read_rows(str(path), lines):
                if isinstance(row, Record):
                    records.append(row)
                else:
                    problems.append(row)
                if limit and len(records) >= limit:
                    break
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    return records, problems


@contextmanager
def _progress(total: int, *, quiet: bool) -> Iterator[Callable[[], None]]:
    console = Console(stderr=True)
    if quiet or total < 200 or not console.is_terminal:
        yield lambda: None
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("scoring", total=total)
        yield lambda: progress.advance(task)


@contextmanager
def _told() -> Iterator[None]:
    """A person's mistake is a message and exit code 2, never a traceback."""
    try:
        yield
    except EvalpipeError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error


def _heuristics() -> Any:
    from evalpipe.scorers.base import heuristics

    return heuristics


def _detectors() -> Any:
    from evalpipe.detectors.base import detectors

    return detectors


def _judges() -> Any:
    from evalpipe.judges.base import judges

    return judges


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _print_json(body: dict[str, Any]) -> None:
    typer.echo(json.dumps(body, ensure_ascii=False, indent=2))


app = build_app()
"""The commands with the configured judge; mounted as ``evalpipe scorecard``."""
