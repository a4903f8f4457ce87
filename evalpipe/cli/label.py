"""``evalpipe label``: what people say of records, in and out, and where they disagree."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.progress import Progress

from evalpipe.cli.read import Json, since_of
from evalpipe.cli.tables import as_json, show
from evalpipe.cli.trouble import opened
from evalpipe.errors import ConfigError
from evalpipe.store.sql import Transaction
from evalpipe.wiring import Wiring, now

app = typer.Typer(
    no_args_is_help=True,
    help="Labels: what people say of records, to measure how far a judge can be trusted.",
)
MOST_TOLD = 50
"""Problems of one file that are printed."""

Scorecard = Annotated[str, typer.Option(help="Only criteria of this scorecard.")]
Criterion = Annotated[str, typer.Option(help="Only this criterion.")]
Annotator = Annotated[str, typer.Option(help="Only what this person said.")]
Since = Annotated[str, typer.Option(help="How far back, for example 24h, 7d; all, if not given.", show_default=False)]


@app.command("import")
def import_(
    files: Annotated[list[Path], typer.Argument(help="CSV or JSONL, one label a line.", show_default=False)],
    annotator: Annotated[str, typer.Option(help="Who labelled, where a line does not say.", show_default=False)] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, store nothing.")] = False,
    machine: Json = False,
) -> None:
    """Take labels in from files: all of a file, or nothing of it.

    Columns: `record_id`, `criterion`, `label`, `annotator`; and if you like `scorecard` (where several have the
    criterion), `comment`, `at`. A label is a word of the criterion: `pass` or `fail`, a number of the scale, a
    category; for a pair `first` (the record's own answer is better), `second` or `tie`; and `cannot_tell`.

    The same file twice changes nothing. Whoever labels the same thing anew supersedes their own label, nobody else's.

    Example: `evalpipe label import labels.csv --annotator ada@example.com --dry-run`
    """
    with closing(opened()) as wiring:
        results = [_import(wiring, path, annotator, dry_run=dry_run, machine=machine) for path in files]
    if machine:
        typer.echo(as_json(results))
    if any(result["problems"] for result in results):
        raise typer.Exit(1)


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="CSV or JSONL by its ending; '-' is CSV on stdout.", show_default=False)],
    scorecard: Scorecard = "",
    criterion: Criterion = "",
    annotator: Annotator = "",
    since: Since = "",
    everything: Annotated[bool, typer.Option("--all", help="Also labels that were superseded.")] = False,
) -> None:
    """Write labels to a file that `import` takes: every person's, as they stand now.

    Example: `evalpipe label export labels.csv --criterion grounded`
    """
    from evalpipe.pipeline.label_file import write
    from evalpipe.store.labels import query_labels

    to_stdout = str(file) == "-"
    if not to_stdout and file.suffix.lower() not in {".csv", ".jsonl", ".ndjson"}:
        raise ConfigError(f"{file}: labels are written as .csv, .jsonl or .ndjson")
    where = _where(scorecard, criterion, annotator)
    query = query_labels(since=since_of(since) if since else None, superseded=everything, **where)
    with closing(opened()) as wiring, wiring.store.read() as tx, _output(file, to_stdout=to_stdout) as out:
        rows = tx.connection.execution_options(yield_per=1000).execute(query).mappings()
        n = write((dict(row) for row in rows), out, as_csv=to_stdout or file.suffix.lower() == ".csv")
    typer.echo(f"{n} labels written", err=True)


@app.command("list")
def list_(
    scorecard: Scorecard = "",
    criterion: Criterion = "",
    annotator: Annotator = "",
    since: Since = "",
    disagree: Annotated[bool, typer.Option("--disagree", help="Only what people label differently.")] = False,
    limit: Annotated[int, typer.Option(help="The newest so many.", min=1)] = 50,
    machine: Json = False,
) -> None:
    """Labels, newest last; or, with `--disagree`, the records on which people differ.

    Example: `evalpipe label list --disagree --criterion grounded`
    """
    where = _where(scorecard, criterion, annotator)
    with closing(opened()) as wiring, wiring.store.read() as tx:
        if disagree:
            if annotator or since:
                raise ConfigError(
                    "--disagree is about several people, whenever they labelled: no --annotator, no --since"
                )
            _show_disagreements(tx, where, limit, machine=machine)
            return
        from evalpipe.store.labels import query_labels

        query = query_labels(since=since_of(since) if since else None, limit=limit, **where)
        rows = [dict(row) for row in tx.connection.execute(query).mappings()]
    columns = ["at", "record_id", "scorecard", "criterion", "annotator", "label", "chosen", "source", "comment"]
    show(rows, columns, less=["source", "chosen", "scorecard", "at", "comment"], machine=machine)


@app.command()
def page(
    url: Annotated[
        str,
        typer.Option(
            help="Where the API is, as people reach it; else where `evalpipe up` noted it.", show_default=False
        ),
    ] = "",
    browser: Annotated[bool, typer.Option("--open", help="Open it in the browser of this machine.")] = False,
) -> None:
    """Where the labelling page is, and what can be labelled there. The API serves it (`evalpipe up`, `evalpipe api`).

    It is blind: it shows neither the judge's grade nor the release nor what others said. It asks for a name and a key
    of the API, and everything on it can be done by keyboard.
    """
    from evalpipe.pipeline.labelling import all_asked
    from evalpipe.store.labels import count_by_criterion

    with closing(opened()) as wiring:
        with wiring.store.read() as tx:
            counts = count_by_criterion(tx)
        asked, settings = all_asked(wiring.scorecards), wiring.settings
    noted = url or _noted(settings.home)
    address = (noted or "http://127.0.0.1:8300").rstrip("/") + "/label"
    typer.echo(address)
    if not noted:
        typer.echo("  (a guess: no `evalpipe up` ran in this home; --url says where the API is)")
    for one in asked:
        n, people = counts.get((one.scorecard.name, one.criterion.name), (0, 0))
        typer.echo(f"  {one.scorecard.name}/{one.criterion.name}: {n} labels by {people} people")
    keys = "one of EVALPIPE_API_LABEL_KEYS, which opens nothing else, or of EVALPIPE_API_KEYS"
    key_file = settings.home / "api-key"
    is_taken = key_file.exists() and not settings.api_keys  # `evalpipe up` takes it where no keys are set
    typer.echo(f"The key is {f'in {key_file}, or ' if is_taken else ''}{keys}.")
    if browser:
        typer.launch(address)


def _noted(home: Path) -> str:
    """Where the API of this home's `evalpipe up` listens; "" if none ran."""
    from evalpipe.cli.up import API_FILE

    try:
        return (home / API_FILE).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _import(wiring: Wiring, path: Path, annotator: str, *, dry_run: bool, machine: bool) -> dict[str, Any]:
    from evalpipe.pipeline.label_file import check_records, read_file, store_labels

    at = now()
    read = read_file(path, wiring.scorecards, annotator=annotator, now=at)
    problems = read.problems
    result: dict[str, Any] = {"file": str(path), "labels": len(read.found), "dry_run": dry_run}
    with _progress(path, 2 * len(read.found), quiet=machine) as advance:
        with wiring.store.read() as tx:
            problems = problems + check_records(tx, path, read.found, advance)
        if not problems:
            done = store_labels(wiring.store, read.found, at, advance, dry_run=dry_run)
            result |= dataclasses.asdict(done)
    if not machine:
        _tell(path, result, problems, dry_run=dry_run)
    return {**result, "problems": sorted(problems, key=_line_of)}


def _tell(path: Path, result: dict[str, Any], problems: list[str], *, dry_run: bool) -> None:
    for problem in sorted(problems, key=_line_of)[:MOST_TOLD]:
        typer.echo(problem, err=True)
    if len(problems) > MOST_TOLD:
        typer.echo(f"... and {len(problems) - MOST_TOLD} more; --json has them all", err=True)
    if problems:
        typer.echo(f"{path}: nothing stored: {len(problems)} bad lines", err=True)
        return
    verb = "would be " if dry_run else ""
    typer.echo(f"{path}: {verb}{result['new']} new, {result['changed']} changed, {result['known']} known already")


def _line_of(problem: str) -> int:
    """The line in ``file:line: ...``; a file's name may have colons too."""
    found = [part for part in problem.split(": ", 1)[0].split(":") if part.isdigit()]
    return int(found[-1]) if found else 0


def _show_disagreements(tx: Transaction, where: dict[str, Any], limit: int, *, machine: bool) -> None:
    from evalpipe.store.labels import disagreements

    rows = disagreements(tx, limit=limit, **where)
    if not machine:
        for row in rows:
            row["said"] = ", ".join(f"{one['annotator']}: {one['label']}" for one in row["labels"])
    show(rows, ["at", "record_id", "scorecard", "criterion", "said"], less=["scorecard", "at"], machine=machine)


def _where(scorecard: str, criterion: str, annotator: str) -> dict[str, Any]:
    given = {"scorecard": scorecard, "criterion": criterion, "annotator": annotator}
    return {name: value for name, value in given.items() if value}


@contextmanager
def _progress(path: Path, total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    with Progress(transient=True, disable=quiet or total < 2_000) as bar:
        task = bar.add_task(path.name, total=total)
        yield lambda n: bar.advance(task, n)


@contextmanager
def _output(file: Path, *, to_stdout: bool) -> Iterator[TextIO]:
    if to_stdout:
        yield sys.stdout
        return
    try:
        with file.open("w", encoding="utf-8", newline="") as out:
            yield out
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from None
