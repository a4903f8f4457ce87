"""``evalpipe judge batches``: what waits for providers' batches, and what they brought."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from evalpipe.cli.read import Json
from evalpipe.cli.tables import as_json, show
from evalpipe.cli.trouble import opened
from evalpipe.store import judge_batches

COLUMNS = ("batch_id", "judge", "state", "n", "n_waiting", "n_graded", "n_returned", "cost_usd", "submitted_at",
           "ended_at", "next_poll_at", "reason")  # fmt: skip


def batches(
    limit: Annotated[int, typer.Option(help="How many.", min=1, max=10_000)] = 20,
    machine: Json = False,
) -> None:
    """The latest batches of judge work, newest first.

    Criteria with `lane: batch` go through the provider's batch API, at half the price and within a day. *submitting*:
    being handed in; *submitted*: the provider has it, and it is looked at again at the time shown; *ended*; *failed*:
    the provider refused or lost it; *abandoned*: it was too old, or its judge is another one by now. `n` counts
    requests; waiting, graded and returned count works. What is returned is sent in one more batch, and then judged at
    once.

    Example: `evalpipe judge batches --json`
    """
    with closing(opened()) as wiring, wiring.store.read() as tx:
        rows = judge_batches.listed(tx, limit)
    if machine:
        typer.echo(as_json(rows))
        return
    if not rows:
        typer.echo("No batches yet: criteria with `lane: batch` send them.")
        return
    show(rows, COLUMNS, less=["next_poll_at", "ended_at", "n_returned", "reason", "judge"])


def add_to(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(batches)
