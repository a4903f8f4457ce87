"""``evalpipe judge list``, ``stop`` and ``resume``: which judges can be asked, and what they did."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Annotated, Any

import typer

from evalpipe.cli.control import Actor, Reason
from evalpipe.cli.read import Json
from evalpipe.cli.tables import as_json, show
from evalpipe.cli.trouble import opened, whoami
from evalpipe.errors import ConfigError
from evalpipe.judges.breaker import ANSWERS
from evalpipe.store import judge_states
from evalpipe.store.judge_states import NANO, JudgeState
from evalpipe.store.sql import Transaction
from evalpipe.wiring import now

DAY = timedelta(days=1)

Name = Annotated[
    str,
    typer.Argument(metavar="JUDGE", help="As 'evalpipe judge list' names it, or its beginning if no other has it."),
]


def list_judges(machine: Json = False) -> None:
    """Every judge that was asked in the last 24 hours, or is known not to be asked.

    A judge is *open* after an outage: it is left alone until the time shown, then tried with a few calls (*half_open*),
    as soon as somebody needs it.
    It is *stopped* where its provider refuses us (key, credit, gone): mend that, and within 10 minutes a call finds
    out, or resume it. Meanwhile its scorecards go on with the next judge of their ladder, or their work waits; no
    attempt is lost.
    """
    with closing(opened()) as wiring, wiring.store.read() as tx:
        rows = judges_of(tx, now())
    if machine:
        typer.echo(as_json(rows))
        return
    for row in rows:
        if row["waits_for_call"]:
            row["state"] += " (waits for a call)"
        row["failed"] = ", ".join(f"{outcome} {share:.1%}" for outcome, share in row["errors"].items())
    columns = [
        "judge",
        "state",
        "since_at",
        "until_at",
        "calls",
        "failed",
        "latency_ms",
        "tokens",
        "cost_usd",
        "reason",
    ]
    found = [name for name in columns if any(row[name] not in {None, ""} for row in rows)]
    show(rows, found, less=["tokens", "latency_ms", "since_at"])


def stop(judge: Name, reason: Reason, actor: Actor = "", machine: Json = False) -> None:
    """Ask a judge nothing until somebody resumes it. What is under way ends.

    Example: `evalpipe judge stop openai:gpt-5 --reason "grades like last week's, and we pay for it"`
    """
    _set(judge, lambda tx, name: judge_states.stop(tx, name, reason, actor or whoami(), now()), machine=machine)


def resume(judge: Name, reason: Reason, actor: Actor = "", machine: Json = False) -> None:
    """Ask a judge again, whoever or whatever stopped it.

    Example: `evalpipe judge resume openai:gpt-5 --reason "topped the credit up"`
    """
    _set(judge, lambda tx, name: judge_states.resume(tx, name, reason, actor or whoami(), now()), machine=machine)


def judges_of(tx: Transaction, at: datetime) -> list[dict[str, Any]]:
    """What is known of each judge, by name.

    ``errors`` is the share of the day's calls by outcome, of all that brought no grade; ``latency_ms`` the mean of
    those that brought an answer, None without one. A judge that was left alone for long enough is ``half_open``, and
    ``waits_for_call`` until somebody asks it.
    """
    states = judge_states.read(tx)
    calls = judge_states.calls_since(tx, at - DAY)
    found = []
    for judge in sorted(states.keys() | {row.judge for row in calls}):
        state = states.get(judge, JudgeState())
        waits = state.state == "open" and state.until_at is not None and state.until_at <= at
        if waits:
            state = replace(state, state="half_open", since_at=state.until_at, until_at=None)
        mine = [row for row in calls if row.judge == judge]
        total = sum(row.n for row in mine)
        outcomes: Counter[str] = Counter()
        for row in mine:
            outcomes[row.outcome] += row.n
        answered = [row for row in mine if row.outcome in ANSWERS]
        n_answered = sum(row.n for row in answered)
        found.append({
            "judge": judge,
            "state": state.state,
            "since_at": None if state.state == "closed" else state.since_at,
            "until_at": state.until_at,
            "waits_for_call": waits,
            "cause": state.cause,
            "reason": state.reason,
            "calls": total,
            "errors": {name: n / total for name, n in outcomes.most_common() if name != "answered"},
            "latency_ms": round(sum(row.latency_ms for row in answered) / n_answered) if n_answered else None,
            "tokens": sum(row.input_tokens + row.output_tokens for row in mine),
            "cost_usd": sum(row.nano_usd for row in mine) / NANO,
        })  # fmt: skip
    return found


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("list")(list_judges)
    app.command()(stop)
    app.command()(resume)


def _set(written: str, change: Callable[[Transaction, str], JudgeState], *, machine: bool) -> None:
    with closing(opened()) as wiring, wiring.store.begin() as tx:
        name = _named(tx, written, now())
        state = change(tx, name)
    if machine:
        typer.echo(as_json({"judge": name, "state": state.state, "reason": state.reason}))
    else:
        told = "is asked again" if state.state == "closed" else "is asked nothing until somebody resumes it"
        typer.echo(f"{name} {told}. Workers follow within seconds.")


def _named(tx: Transaction, written: str, at: datetime) -> str:
    """The judge that was meant.

    Raises:
        ConfigError: there is none, or several; the message names the nearest.
    """
    names = sorted(judge_states.read(tx).keys() | {row.judge for row in judge_states.calls_since(tx, at - DAY)})
    if written in names:
        return written
    begun = [name for name in names if name.startswith(written)]
    if len(begun) == 1:
        return begun[0]
    if begun:
        raise ConfigError(f"several judges begin with {written!r}: {', '.join(begun)}; write more of the name")
    close = difflib.get_close_matches(written, names, n=3, cutoff=0.4)
    meant = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    raise ConfigError(
        f"no judge {written!r} was asked in the last 24 hours; {meant}'evalpipe judge list' has those that were"
    )
