"""Commands that an operator needs on a bad day: doctor, dead letters, erasure, rescoring."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from evalpipe.cli.read import Json, Since, since_of
from evalpipe.cli.tables import as_json, show
from evalpipe.cli.trouble import opened
from evalpipe.errors import ConfigError
from evalpipe.pipeline.maintain import erase_user
from evalpipe.settings import PREFIX, Settings, masked
from evalpipe.store.feedback import NO_USER
from evalpipe.wiring import now

dead_letters = typer.Typer(
    no_args_is_help=True, help="What could not be read or judged, with the reason; and trying it again."
)


@dead_letters.command("list")
def list_letters(
    limit: Annotated[int, typer.Option(help="The newest so many.", min=1)] = 50,
    everything: Annotated[bool, typer.Option("--all", help="Also those that were re-driven.")] = False,
    machine: Json = False,
) -> None:
    """Dead letters, and judge work that was given up, newest first."""
    from evalpipe.store import intake, works

    with opened().store.read() as tx:
        letters = intake.list_dead_letters(tx, limit=limit, redriven=everything)
        work = works.list_dead(tx, limit)
    rows = [{k: v for k, v in letter.items() if k != "payload"} for letter in letters]
    rows = [{"id": row["dead_letter_id"], **row, "what": row["kind"]} for row in rows]
    rows += [{"id": w["work_id"], **w, "what": "work", "n_records": 1} for w in work]
    show(
        rows,
        ["id", "what", "service", "n_records", "created_at", "reason"],
        less=["created_at", "n_records"],
        machine=machine,
    )


@dead_letters.command("show")
def show_letter(dead_letter_id: Annotated[str, typer.Argument(help="Its id.")]) -> None:
    """The bytes of one dead letter, on stdout."""
    from evalpipe.store import intake

    with opened().store.read() as tx:
        letters = intake.list_dead_letters(tx, limit=10_000, redriven=True)
    found = [letter for letter in letters if letter["dead_letter_id"] == dead_letter_id]
    if not found:
        raise ConfigError(f"no dead letter {dead_letter_id!r}: see 'evalpipe dead-letters list'")
    typer.echo(found[0]["payload"], nl=False)


@dead_letters.command()
def redrive(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids; all that wait if none is given.")] = None,
) -> None:
    """Try again what could not be read or judged, once the cause is mended.

    Messages and records go back to the queue, judge work is owed again. Whatever still fails comes back as a new dead
    letter; nothing is counted twice.
    """
    from evalpipe.pipeline.redrive import redrive as run

    wiring = opened()
    done = run(wiring.store, wiring.queue, ids or None, now())
    typer.echo(f"{done.messages} messages back in the queue, {done.work} judge calls owed again")


def erase(
    user: Annotated[str, typer.Option(help="The user's key, as the application gave it to the hook.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Erase what a user said: payloads, judges' quotations and explanations. Counts and values stay."""
    if not user:
        raise ConfigError(f"--user: {NO_USER}")
    if not yes:
        typer.confirm(f"Erase everything that user {user!r} said? This cannot be undone.", abort=True)
    with opened().store.begin() as tx:
        n = erase_user(tx, user)
    typer.echo(f"{n} records erased")


def rescore(
    scorecard: Annotated[str, typer.Argument(help="The scorecard's name.")],
    since: Since = "24h",
    machine: Json = False,
) -> None:
    """Score stored records under the scorecard as it is now; what this version has scored is left alone.

    New scores stand beside the old ones, under the new version. Judged criteria are owed to the workers.
    """
    from evalpipe.pipeline.rescore import rescore as run

    wiring = opened()
    plan = next((p for p in wiring.plans if p.scorecard.name == scorecard), None)
    if plan is None:
        names = ", ".join(card.name for card in wiring.scorecards)
        raise ConfigError(f"no scorecard named {scorecard!r}; there are: {names}")
    with Progress(transient=True, disable=machine) as bar:
        task = bar.add_task("rescoring", total=None)
        done = run(wiring.store, plan, since=since_of(since), now=now, progress=lambda n: bar.update(task, completed=n))
    if machine:
        typer.echo(as_json(dataclasses.asdict(done)))
    else:
        typer.echo(
            f"{scorecard}@{plan.scorecard.version}: {done.rescored} records rescored, {done.known} had these scores, "
            f"{done.owed} judge calls owed"
        )


def settings(machine: Json = False) -> None:
    """Every setting with its value here; secrets and the passwords in URLs are hidden."""
    found = Settings.from_env()
    rows = [
        {"variable": _variable(field.name), "value": _shown(field, getattr(found, field.name))}
        for field in dataclasses.fields(found)
        if field.name != "rollups"
    ]
    rows += [
        {"variable": f"{PREFIX}ROLLUP_{level.upper()}_DAYS", "value": f"{kept.total_seconds() / 86_400:g}"}
        for level, kept in found.rollups.items()
    ]
    show(rows, ["variable", "value"], machine=machine)


def doctor(machine: Json = False) -> None:
    """What is reachable, migrated, lagging or misconfigured, and what to do. Exit code 1 if something is wrong."""
    from evalpipe.cli.doctor import examine

    findings = examine(Settings.from_env())
    if machine:
        typer.echo(as_json([dataclasses.asdict(f) for f in findings]))
    else:
        for f in findings:
            mark = {"ok": "[ok]  ", "warn": "[warn]", "bad": "[BAD] "}[f.state]
            typer.echo(f"{mark} {f.what}: {f.detail}")
            if f.advice:
                typer.echo(f"       -> {f.advice}")
    if any(f.state == "bad" for f in findings):
        raise typer.Exit(1)


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (doctor, settings, erase, rescore):
        app.command()(command)
    app.add_typer(dead_letters, name="dead-letters")


def _variable(name: str) -> str:
    return PREFIX + {"lease": "LEASE_S", "retention": "RETENTION_DAYS", "webhook_secrets": "WEBHOOK_SECRET"}.get(
        name, name.upper()
    )


def _shown(field: dataclasses.Field[Any], value: object) -> str:
    if not field.repr and not field.name.endswith("_url"):  # a secret; of a URL only the password is one
        return "set" if value else ""
    return masked(str(value)) if not isinstance(value, Path) else str(value.absolute())
