"""``evalpipe rollup rebuild``: the sums that charts and alert rules read, made anew from the scores."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from typing import Annotated, Any, Literal

import typer
from rich.progress import Progress

from evalpipe.cli.read import Json, since_of
from evalpipe.cli.tables import as_json
from evalpipe.cli.trouble import opened
from evalpipe.store.levels import LEVELS
from evalpipe.wiring import now

app = typer.Typer(
    no_args_is_help=True, help="Sums of scores by minute, hour and day, which charts and alert rules read."
)


@app.callback()
def root() -> None:
    """See the app's help."""


@app.command()
def rebuild(
    since: Annotated[
        str, typer.Option(help="From the UTC day that lies so far back, for example 7d. All that can be, without it.")
    ] = "",
    level: Annotated[Literal["minute", "hour", "day"] | None, typer.Option(help="Only this one.")] = None,
    machine: Json = False,
) -> None:
    """Make the rollups anew from the scores, day by day, while everything runs: the same bytes, if nothing was wrong.

    They are written in the transaction of the scores, so there is no need for it in daily life: run it after rows were
    repaired or restored by hand. `changed` counts the buckets that were wrong. Days whose scores are past their
    retention stay as they are; writers wait while a day is made anew (seconds).
    """
    from evalpipe.store.rebuild import rebuild as run

    with closing(opened()) as wiring, Progress(transient=True, disable=machine) as bar:
        task = bar.add_task("days", total=None)
        done = run(
            wiring.store,
            since=since_of(since) if since else None,
            now=now(),
            retention=wiring.settings.retention,
            level=next((one for one in LEVELS if one.name == level), None),
            kept=lambda one: None if (days := wiring.settings.rollups.get(one.name)) is None else now() - days,
            progress=lambda day: bar.update(task, advance=1, description=f"{day:%Y-%m-%d}"),
        )
    told: dict[str, Any] = asdict(done)
    if machine:
        typer.echo(as_json(told))
    elif done.since is None:
        typer.echo("There are no scores.")
    else:
        typer.echo(
            f"{done.scores:,} scores since {done.since:%Y-%m-%d}: {done.buckets:,} rollups, {done.changed:,} changed."
        )
