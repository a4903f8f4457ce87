"""``evalpipe fingerprint``: fixed sets of prompts, and whether the model still answers them as it did."""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evalpipe.cli.read import Json
from evalpipe.cli.tables import as_json, show
from evalpipe.cli.trouble import opened, whoami
from evalpipe.errors import ConfigError
from evalpipe.wiring import Wiring, now

if TYPE_CHECKING:
    from evalpipe.detectors.base import Finding
    from evalpipe.pipeline.fingerprint import Round

app = typer.Typer(
    no_args_is_help=True,
    help="Fingerprints: a fixed set of prompts, asked on a schedule through the application's own model settings, so "
    "that a silent change behind a model's name is seen with no traffic at all. Declared in files of `fingerprints:` "
    "(EVALPIPE_FINGERPRINTS).",
)

Name = Annotated[str, typer.Argument(help="Of the set; see `list`.", show_default=False)]


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="Only this set; all without it.")] = "",
    machine: Json = False,
) -> None:
    """Ask the prompts now, here, whatever the clock says. Workers do it by themselves, `every` so often.

    The calls are the application's own and are paid for. A round in which fewer than 80 % of the prompts were answered
    does not count; exit code 1 then.

    Example: `evalpipe fingerprint run support-model`
    """
    with closing(opened()) as wiring:
        if name and name not in {one.name for one in wiring.fingerprints}:
            known = ", ".join(one.name for one in wiring.fingerprints) or "none; set EVALPIPE_FINGERPRINTS"
            raise ConfigError(f"no fingerprint is named {name!r}; declared are: {known}")
        done = asyncio.run(_run(wiring, name))
    if not done and not machine:
        raise ConfigError("nothing was asked: no fingerprint is declared, or a worker is asking just now")
    columns = ["name", "answered", "asked", "model", "kept", "error"]
    show([dataclasses.asdict(one) for one in done], columns, machine=machine)
    if not all(one.kept for one in done):
        raise typer.Exit(1)


@app.command("list")
def list_(machine: Json = False) -> None:
    """Every set that ever ran: its rounds since the reference began, and whether the model answers as it did then."""
    from evalpipe.store import prints

    with closing(opened()) as wiring, wiring.store.read() as tx:
        rows = prints.listing(tx)
        for row in rows:
            found = _finding(prints.prints_since(tx, row["name"], row["reference_at"]), row["name"])
            row["state"] = {None: "unknown", False: "as before", True: "changed"}[found.violated]
            row["says"] = row["error"] or found.reason
    columns = ["name", "service", "environment", "rounds", "round_at", "state", "says"]
    show(rows, columns, less=["environment"], machine=machine)


@app.command("show")
def show_(
    name: Name,
    answers: Annotated[int, typer.Option("--answers", help="So many of the newest answers.", min=0)] = 5,
    machine: Json = False,
) -> None:
    """What moved since the reference, trait by trait, and the newest answers."""
    from evalpipe.store import prints

    with closing(opened()) as wiring, wiring.store.read() as tx:
        row = next((row for row in prints.listing(tx) if row["name"] == name), None)
        if row is None:
            raise ConfigError(f"fingerprint {name!r} has never run; see 'evalpipe fingerprint list'")
        found = _finding(prints.prints_since(tx, name, row["reference_at"]), name)
        newest = prints.answers(tx, name, answers)
    kept = [{k: v for k, v in one.items() if k != "embedding"} for one in newest]
    traits = [{"trait": trait, **numbers} for trait, numbers in found.numbers.get("traits", {}).items()]
    if machine:
        told = {**row, "violated": found.violated, "reason": found.reason, "numbers": found.numbers, "answers": kept}
        typer.echo(as_json(told))
        return
    typer.echo(f"{name}: {found.reason}")
    if traits:
        moved = found.numbers["moved"]
        rows = [{**trait, "moved": "yes" if trait["trait"] in moved else ""} for trait in traits]
        show(rows, ["trait", "effect", "p", "moved"])
    if kept:
        show(kept, ["round_at", "prompt", "model", "output"])


@app.command()
def accept(
    name: Name,
    reason: Annotated[str, typer.Option("--reason", help="Why its behaviour of now is right.", show_default=False)],
    actor: Annotated[str, typer.Option(help="Who does this; you, by default.", show_default=False)] = "",
    machine: Json = False,
) -> None:
    """The model changed, and that is right: its next rounds are the new reference.

    Example: `evalpipe fingerprint accept support-model --reason "moved to the new model on purpose"`
    """
    from evalpipe.store import prints

    by = actor or whoami()
    with closing(opened()) as wiring, wiring.store.begin() as tx:
        prints.accept(tx, name, now(), actor=by, reason=reason)
    told = f"{name}: accepted by {by}; the rounds from now on are the reference"
    typer.echo(as_json({"name": name, "actor": by, "reason": reason}) if machine else told)


async def _run(wiring: Wiring, name: str) -> list[Round]:
    return await wiring.fingerprint(name, force=True)


def _finding(runs: list[Any], name: str) -> Finding:
    from evalpipe.detectors.fingerprint import Fingerprint, FingerprintParams

    return Fingerprint(FingerprintParams(fingerprint=name)).compare(runs)
