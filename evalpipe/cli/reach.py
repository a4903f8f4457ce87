"""Whom a kill switch reaches: a mistyped service must not look like success."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from datetime import timedelta

import typer
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from evalpipe.store.controls import Kept
from evalpipe.store.metered import read_processes
from evalpipe.store.tables import processes, releases
from evalpipe.wiring import Wiring, now

RECENT = timedelta(minutes=10)
"""A running process was heard of much later than this."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Who hears of a control.

    Attributes:
        running: processes of the service that run.
        known: whether any was ever heard of.
        close: services that were, with a similar name.
    """

    running: int
    known: bool
    close: list[str]


def reach_of(wiring: Wiring, kept: Kept) -> Reach | None:
    """Who hears of a switch that is engaged; None for other controls, and where the database went away meanwhile."""
    if kept.kind != "switch" or not kept.body["engaged"]:
        return None
    at = now()
    try:
        with wiring.store.read() as tx:
            found = read_processes(tx, since=at - RECENT, now=at, service=kept.service)
            names = set(tx.connection.scalars(select(processes.c.service).union(select(releases.c.service))))
    except SQLAlchemyError:
        return None
    known = kept.service in names
    close = [] if known else difflib.get_close_matches(kept.service, sorted(names), n=3, cutoff=0.5)
    return Reach(sum(row["state"] == "running" for row in found), known, close)


def tell_reach(kept: Kept, reach: Reach, *, machine: bool) -> None:
    """Say what was engaged, and on stderr what is odd about it."""
    if not machine:
        typer.echo(_in_words(kept, reach))
    if not reach.known:
        meant = f" Did you mean {' or '.join(map(repr, reach.close))}?" if reach.close else ""
        typer.echo(
            f"evalpipe: WARNING: no process of {kept.service!r} was ever heard of, so this may stop nothing.{meant} "
            "'evalpipe processes' lists those that were.",
            err=True,
        )


def _in_words(kept: Kept, reach: Reach) -> str:
    scope = [f"{part} {kept.body[part]!r}" for part in ("feature", "segment", "variant") if kept.body[part]]
    what = f"{', '.join(scope)} of {kept.service!r}" if scope else f"the whole service {kept.service!r}"
    where = f" in {kept.environment!r}" if kept.environment else ""
    running = "1 process of it is" if reach.running == 1 else f"{reach.running} processes of it are"
    return f"The switch {kept.name!r} stops {what}{where}; {running} running."
