"""What a person orders of a rollout: advance, rollback, freeze, resume, abort. Each is a decision in the log."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from typing import Annotated, Any, Final

import typer

from evalpipe.cli.control import Actor, Reason
from evalpipe.cli.read import Json
from evalpipe.cli.tables import as_json
from evalpipe.cli.trouble import opened, whoami
from evalpipe.errors import ConfigError
from evalpipe.pipeline.rollout_view import HOLDS_FOR, ordered
from evalpipe.pipeline.start_rollout import ask
from evalpipe.rollout.inputs import OverrideAction
from evalpipe.scorecard.values import format_duration, parse_duration
from evalpipe.store import rollouts
from evalpipe.wiring import Wiring, now

LOOK_EVERY_S: Final = 0.1
HOLDS: Final = format_duration(HOLDS_FOR)

Named = Callable[[Wiring, str], str]

_HELP: Final[dict[OverrideAction, str]] = {
    "advance": "Take the next step, whatever the evidence. Harm that is proven is not passed over.",
    "rollback": "Roll back now. It is latched, as one by evidence is: only 'resume' leaves it.",
    "freeze": "Let nothing advance for a while. Harm that is proven still rolls back.",
    "resume": "End a freeze; or lift the latch of a rollback: the first step begins again without the evidence.",
    "abort": "End it: all traffic goes back to the baseline, without an incident.",
}

RolloutId = Annotated[str, typer.Argument(metavar="ID", help="The rollout, as 'list' names it, or its beginning.")]
For = Annotated[
    str,
    typer.Option("--for", help="A freeze lasts so long; another order is void if nothing came of it by then."),
]
Timeout = Annotated[float, typer.Option(help="Wait so many seconds for its decision; 0 does not wait.", min=0)]


def add_to(app: typer.Typer, named: Named) -> None:
    """Add the five commands; ``named`` finds the rollout that was meant."""
    for action, words in _HELP.items():
        example = f'Example: `evalpipe rollout {action} ID --reason "{_EXAMPLES[action]}"`'
        app.command(action, help=f"{words}\n\n{example}")(_command(action, named))


_EXAMPLES: Final[dict[OverrideAction, str]] = {
    "advance": "traffic is low at night, looked at 40 answers",
    "rollback": "customers call",
    "freeze": "release of the day is on, wait for it' --for '2h",
    "resume": "fixed the retrieval index",
    "abort": "superseded by v8",
}


def _command(action: OverrideAction, named: Named) -> Callable[..., None]:
    def run(
        rollout_id: RolloutId,
        reason: Reason,
        holds_for: For = HOLDS,
        timeout_s: Timeout = 15.0,
        actor: Actor = "",
        machine: Json = False,
    ) -> None:
        with closing(opened()) as wiring:
            _order(wiring, named(wiring, rollout_id), action, actor or whoami(), reason, _duration(holds_for),
                   timeout_s, machine=machine)  # fmt: skip

    return run


def _order(
    wiring: Wiring,
    rollout_id: str,
    action: OverrideAction,
    actor: str,
    reason: str,
    holds_for: timedelta,
    timeout_s: float,
    *,
    machine: bool,
) -> None:
    with wiring.store.begin() as tx:
        row = rollouts.get(tx, rollout_id)
        seen = row["decision_seq"] if row else 0
        order = ordered(tx, rollout_id, action, actor=actor, reason=reason, holds_for=holds_for, now=now())
    ask(wiring.queue)
    decision = _decision(wiring, order, seen, timeout_s)
    if machine:
        typer.echo(as_json({"order": order, "decision": decision}))
    elif decision is not None:
        typer.echo(f"{decision['action']}: {decision['reason']}")
    if decision is None:
        if not machine:
            typer.echo(_waits(order, timeout_s), err=True)
        raise typer.Exit(1 if timeout_s else 0)
    if decision["action"] == "hold" and decision["cause"] == "override":
        raise typer.Exit(1)


def _decision(wiring: Wiring, order: dict[str, Any], seen: int, timeout_s: float) -> dict[str, Any] | None:
    """The decision that an order became; None if nobody has folded it in time."""
    end = time.monotonic() + timeout_s
    while True:
        with wiring.store.read() as tx:
            newer = [d for d in rollouts.list_decisions(tx, rollout_id=order["rollout_id"]) if d["seq"] > seen]
        mine = [d for d in newer if d["actor"] == order["actor"] and d["expires_at"] == order["expires_at"]]
        if mine:
            return mine[0]
        if time.monotonic() >= end:
            return None
        time.sleep(LOOK_EVERY_S)


def _waits(order: dict[str, Any], timeout_s: float) -> str:
    told = f"The order is stored as {order['order_id']} and waits until {order['expires_at']:%Y-%m-%d %H:%M:%S} UTC"
    if not timeout_s:
        return told + "."
    return (
        f"{told}: nothing took it up within {timeout_s:g} s. Does a worker serve 'evaluate'? 'evalpipe doctor' looks. "
        "Deployers that ask are told to hold meanwhile, if it stops something."
    )


def _duration(written: str) -> timedelta:
    try:
        return parse_duration(written)
    except ValueError as error:
        raise ConfigError(f"--for {written!r} {error}") from None
