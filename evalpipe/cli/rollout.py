"""``evalpipe rollout``: start rollouts, look at them, order something of them, and replay what was decided."""

from __future__ import annotations

import difflib
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from evalpipe.cli import rollout_orders, rollout_replay
from evalpipe.cli.control import Actor, OnlyService, Reason
from evalpipe.cli.read import Json
from evalpipe.cli.rollout_text import place_in_ramp, tell, tell_plan
from evalpipe.cli.tables import as_json, show
from evalpipe.cli.trouble import opened, whoami
from evalpipe.errors import ConfigError
from evalpipe.pipeline.rollout_view import begin, listed, planned, view
from evalpipe.pipeline.start_rollout import Started, ask
from evalpipe.rollout.plan import RolloutPlan
from evalpipe.scorecard.model import Scorecard
from evalpipe.scorecard.policy import RolloutEntry, load_rollouts
from evalpipe.store import rollouts
from evalpipe.wiring import Wiring, now

app = typer.Typer(
    no_args_is_help=True,
    help="Rollouts: a canary against its baseline, decided on evidence that may be looked at as often as one likes.",
)

RolloutId = Annotated[
    str, typer.Argument(metavar="ID", help="The rollout, as 'list' names it, or its beginning if no other has it.")
]


@app.command()
def start(
    name: Annotated[str, typer.Argument(help="A scorecard with `rollout:`; with --file the name of its entry.")],
    reason: Reason,
    file: Annotated[
        Path | None, typer.Option(help="A file of `rollouts:` (or a folder of them).", show_default=False)
    ] = None,
    service: Annotated[str, typer.Option(help="Of both releases; the entry's, if not given.")] = "",
    environment: Annotated[
        str, typer.Option(help="Of both releases; the entry's, or where the service's traffic comes from, without it.")
    ] = "",
    canary_release: Annotated[
        str, typer.Option(help="Release id of the canary; the first of that variant that is seen, if not given.")
    ] = "",
    rollout_id: Annotated[str, typer.Option("--id", help="An id of your own; a known one changes nothing.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, start nothing.")] = False,
    actor: Actor = "",
    machine: Json = False,
) -> None:
    """Start a rollout, and say what it will do: steps, gates, and how often it may err.

    It ends a live rollout of the same service, environment and scorecard. `evalpipe rollout plan` tells beforehand how
    long it will take.

    Example: `evalpipe rollout start support-bot --service support-bot --reason "prompt v7"`
    """
    wiring = Wiring() if dry_run else opened()
    with closing(wiring):
        card, entry = _wanted(wiring, name, file)
        service = service or (entry.service if entry else "")
        environment = environment or (entry.environment if entry else "")
        if not service:
            raise ConfigError("which service? Say it with --service")
        if dry_run:
            plan = planned(card, entry, service=service, canary_release_id=canary_release, rollout_id=rollout_id,
                           now=now())  # fmt: skip
            _tell_start(None, plan, machine=machine)
            return
        with wiring.store.begin() as tx:
            started, plan = begin(
                tx, card, policy=entry, service=service, environment=environment, canary_release_id=canary_release,
                rollout_id=rollout_id, actor=actor or whoami(), reason=reason, now=now(),
            )  # fmt: skip
        published = wiring.publish.soon(service, now()) if started.steered else True
        if started.new:
            ask(wiring.queue)
    _tell_start(started, plan, machine=machine)
    if not published:
        raise ConfigError(
            "it has started, but no hook knows its weights yet, because Redis does not answer: once that is over, "
            "workers tell them within seconds; see 'evalpipe doctor'"
        )


@app.command("list")
def list_rollouts(
    service: OnlyService = None,
    live: Annotated[bool, typer.Option("--live", help="Only those that have not ended.")] = False,
    limit: Annotated[int, typer.Option(help="The newest so many.", min=1)] = 20,
    machine: Json = False,
) -> None:
    """Rollouts, newest first: phase, step, and what was decided last, since when."""
    with closing(opened()) as wiring, wiring.store.read() as tx:
        rows = listed(tx, rollouts.listing(tx, service=service or "", live=live, limit=limit))
    if machine:
        typer.echo(as_json(rows))
        return
    for row in rows:
        newest = row["decision"]
        row["step"] = place_in_ramp(row)
        row["decision"] = newest and f"{newest['action']}: {newest['cause'].replace('_', ' ')}"
        row["since"] = newest and newest["decided_at"]
        row["percent"] = None if row["percent"] is None else f"{row['percent']:g}"
    columns = ["rollout_id", "service", "phase", "step", "percent", "decision", "since"]
    show(rows, columns, less=["service", "since", "percent"])


@app.command("show")
def show_rollout(
    rollout_id: RolloutId,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Also draw its gates into a PNG.", show_default=False)
    ] = None,
    machine: Json = False,
) -> None:
    """Where a rollout stands: its ramp, each gate with its evidence, the decisions.

    A gate finds harm once its evidence reaches the threshold (1 / alpha) and the estimate is beyond most of the margin.
    """
    with closing(opened()) as wiring, wiring.store.read() as tx:
        found = view(tx, named(wiring, rollout_id))
    assert found is not None
    if plot is not None:
        from evalpipe.cli.rollout_plot import draw_png

        draw_png(found, plot)
        typer.echo(f"{plot} written", err=True)
    if machine:
        typer.echo(as_json(found))
    else:
        tell(found)


def named(wiring: Wiring, written: str) -> str:
    """The rollout that was meant.

    Raises:
        ConfigError: there is none, or several; the message names the nearest.
    """
    with wiring.store.read() as tx:
        if rollouts.get(tx, written) is not None:
            return written
        known = [row["rollout_id"] for row in rollouts.listing(tx, limit=1_000)]
    begun = [rollout_id for rollout_id in known if rollout_id.startswith(written)]
    if len(begun) == 1:
        return str(begun[0])
    if begun:
        raise ConfigError(f"several rollouts begin with {written!r}: {', '.join(begun[:5])}; write more of the id")
    close = difflib.get_close_matches(written, known, n=3, cutoff=0.4)
    meant = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    raise ConfigError(f"there is no rollout {written!r}; {meant}'evalpipe rollout list' shows those that there are")


def _wanted(wiring: Wiring, name: str, file: Path | None) -> tuple[Scorecard, RolloutEntry | None]:
    """The scorecard, and the entry of a file where one is given."""
    if file is None:
        return _card(wiring, name), None
    entries = {entry.name: entry for entry in load_rollouts(file, wiring.scorecards)}
    if name not in entries:
        raise ConfigError(f"{file} has no rollout {name!r}; it has: {', '.join(entries)}")
    entry = entries[name]
    if not entry.scorecard:
        raise ConfigError(f"{file}: rollout {name!r} names no scorecard: write 'scorecard:', whose scores it compares")
    return _card(wiring, entry.scorecard), entry


def _card(wiring: Wiring, name: str) -> Scorecard:
    cards = {card.name: card for card in wiring.scorecards}
    if name not in cards:
        close = difflib.get_close_matches(name, list(cards), n=1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"there is no scorecard {name!r}; {meant}there are: {', '.join(cards)}")
    return cards[name]


def _tell_start(started: Started | None, plan: RolloutPlan, *, machine: bool) -> None:
    if machine:
        told: dict[str, Any] = {"rollout_id": plan.rollout_id, "plan": plan.to_dict()}
        if started is not None:
            told |= {"new": started.new, "superseded": list(started.superseded)}
        typer.echo(as_json(told))
        return
    if started is not None and not started.new:
        typer.echo(f"{plan.rollout_id} was started before: nothing changed. See 'evalpipe rollout show'.")
        return
    tell_plan(plan)
    for other in started.superseded if started else ():
        typer.echo(f"It takes the place of {other}.")
    if started is not None:
        typer.echo(f"Started. 'evalpipe rollout show {plan.rollout_id}' says where it stands.")


rollout_orders.add_to(app, named)
rollout_replay.add_to(app, named)
