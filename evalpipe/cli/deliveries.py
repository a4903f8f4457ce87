"""``evalpipe deliveries``: what was told to whom, what was not and why, and how to send it again."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated, Any

import typer

from evalpipe.cli.read import Json, since_of
from evalpipe.cli.tables import as_json, cell, show
from evalpipe.cli.trouble import opened, whoami
from evalpipe.errors import ConfigError
from evalpipe.store import endpoints, outbox
from evalpipe.wiring import Wiring, now

app = typer.Typer(
    invoke_without_command=True,
    help="Notifications: delivered, waiting, overtaken or given up, with the last error. Alone it lists the newest.",
)

_STATES = ("pending", "delivered", "overtaken", "dead")
Channel = Annotated[str, typer.Option(help="Only this channel.")]


@app.callback()
def root(context: typer.Context, machine: Json = False) -> None:
    """See the group's help."""
    if context.invoked_subcommand is None:
        _list(limit=50, state="", channel="", machine=machine)


@app.command("list")
def list_(
    state: Annotated[str, typer.Option(help="Only pending, delivered, overtaken or dead ones.")] = "",
    channel: Channel = "",
    limit: Annotated[int, typer.Option(help="The newest so many.", min=1)] = 50,
    machine: Json = False,
) -> None:
    """The newest notifications, each with what became of it."""
    if state not in {"", *_STATES}:
        raise ConfigError(f"--state: {state!r} is not one of {', '.join(_STATES)}")
    _list(limit=limit, state=state, channel=channel, machine=machine)


@app.command("show")
def show_(
    event_id: Annotated[str, typer.Argument(help="An event's id, as the list has it.")], machine: Json = False
) -> None:
    """One notification: its body, and every attempt with status, error and duration."""
    with closing(opened()) as wiring, wiring.store.read() as tx:
        found = outbox.story(tx, event_id)
    if found is None:
        raise ConfigError(f"no event {event_id!r}: see 'evalpipe deliveries'")
    if machine:
        typer.echo(as_json(found))
        return
    seq = "" if found["seq"] is None else f" number {found['seq']}"
    _say(f"{event_id}  {found['type']}  {found['subject']}{seq}")
    _say(f"for channel {found['channel']}, made {cell(found['created_at'])} UTC: {_state(found)}")
    show(found["tried"], ["attempt", "at", "ok", "status", "elapsed_ms", "error"], less=["elapsed_ms"])
    _say(bytes(found["body"]).decode(errors="replace"))


@app.command()
def redeliver(
    event_ids: Annotated[list[str] | None, typer.Argument(help="Ids of events, as the list has them.")] = None,
    since: Annotated[
        str, typer.Option(help="Instead of ids: all that was given up of so long ago or less, for example 6h or 2d.")
    ] = "",
    channel: Channel = "",
) -> None:
    """Send notifications again, now, under their old ids and with the same bytes.

    A receiver that has them ignores them. A channel that is disabled is tried too, and enabled again if it takes one.

    Example: `evalpipe deliveries redeliver --since 6h --channel deployer`
    """
    if bool(event_ids) == bool(since):
        raise ConfigError("name events, or say --since for all that was given up; one of the two")
    with closing(opened()) as wiring, wiring.store.begin() as tx:
        ids = event_ids or outbox.missed(tx, since_of(since), channel)
        n = outbox.redeliver(tx, ids, now())
        if n < len(set(ids)):
            raise ConfigError(
                f"{len(set(ids)) - n} of these ids are unknown, so none is sent: see 'evalpipe deliveries'"
            )
    typer.echo(f"{n} to be sent again")


@app.command("endpoints")
def endpoints_(machine: Json = False) -> None:
    """The channels: well, failing since when, or disabled and why."""
    with closing(opened()) as wiring, wiring.store.read() as tx:
        known = {row["channel"]: row for row in endpoints.listing(tx)}
        names = known.keys() | _configured(wiring)
        rows = [_endpoint(name, known.get(name, {})) for name in sorted(names)]
    show(rows, ["channel", "state", "since", "reason", "actor"], machine=machine)


@app.command()
def enable(
    channel: Annotated[str, typer.Argument(help="The channel's name.")],
    reason: Annotated[str, typer.Option(help="Why it will work now; kept with the incident.")],
    actor: Annotated[str, typer.Option(help="Who does this; you, by default.", show_default=False)] = "",
) -> None:
    """Send to a channel again that was disabled.

    What was given up meanwhile is not sent by itself: `evalpipe deliveries redeliver --since 1d --channel NAME` does.

    Example: `evalpipe deliveries enable deployer --reason "new URL since 14:00"`
    """
    with closing(opened()) as wiring, wiring.store.begin() as tx:
        endpoints.enable(tx, channel, actor=actor or whoami(), reason=reason, now=now())
        n = len(outbox.listing(tx, 1_000, state="dead", channel=channel))
    typer.echo(f"{channel} is enabled" + (f"; {n} given up: 'evalpipe deliveries redeliver' sends them" if n else ""))


def _list(*, limit: int, state: str, channel: str, machine: bool) -> None:
    with closing(opened()) as wiring, wiring.store.read() as tx:
        rows = outbox.listing(tx, limit, state=state, channel=channel)
    columns = ["event_id", "created_at", "type", "subject", "channel", "state", "attempts", "next_attempt_at", "reason"]
    show(rows, columns, less=["created_at", "channel", "next_attempt_at", "subject"], machine=machine)


def _configured(wiring: Wiring) -> set[str]:
    """The names of the channels; who may look need not have their secrets."""
    try:
        return set(wiring.channels)
    except ConfigError as error:
        typer.echo(f"Only channels that have, or had, trouble are listed: {error}", err=True)
        return set()


def _endpoint(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """A channel as people and machines are told of it."""
    disabled_at, failing_since = row.get("disabled_at"), row.get("failing_since")
    return {
        "channel": name,
        "state": "disabled" if disabled_at else "failing" if failing_since else "well",
        "since": disabled_at or failing_since,
        "reason": row.get("reason", ""),
        "actor": row.get("actor", ""),
    }


def _state(found: dict[str, Any]) -> str:
    if found["state"] == "pending":
        return f"pending, next attempt {cell(found['next_attempt_at'])} UTC"
    return f"{found['state']}{': ' if found['reason'] else ''}{found['reason']}"


def _say(text: str) -> None:
    # What models and users wrote, and what a receiver answered: control characters must not reach the terminal.
    typer.echo("".join(c if c.isprintable() else " " for c in text))
