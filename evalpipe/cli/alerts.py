"""``evalpipe alerts``: what fires and why, who has taken it, and of what nobody is told."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from contextlib import closing
from typing import Annotated, Any

import typer

from evalpipe.cli import alert_test
from evalpipe.cli.read import Json
from evalpipe.cli.tables import as_json, cell, finite, show
from evalpipe.cli.trouble import opened, whoami
from evalpipe.errors import ConfigError
from evalpipe.pipeline.alert_view import acknowledge, listed, the_one, view
from evalpipe.scorecard.values import parse_duration
from evalpipe.store import silences
from evalpipe.store.silences import Wanted
from evalpipe.store.sql import Transaction
from evalpipe.wiring import now

app = typer.Typer(
    invoke_without_command=True,
    help="Alerts: what fires and why, who has taken it, and silences. Alone it lists every alert, firing ones first.",
)

alert_test.add_to(app)

RULE_AT = 4
"""Part of an alert's id: after service, environment, variant and scorecard."""
WIDEST = 200
"""Characters of a summary in the list; `show` has it whole."""

Reason = Annotated[str, typer.Option(help="Why; kept with the incident.")]
Actor = Annotated[str, typer.Option(help="Who does this; you, by default.", show_default=False)]
AlertName = Annotated[str, typer.Argument(help="An alert's id, the end of one, or its rule.")]


@app.callback()
def root(context: typer.Context, machine: Json = False) -> None:
    """See the group's help."""
    if context.invoked_subcommand is None:
        _list(firing=False, machine=machine)


@app.command("list")
def list_(
    firing: Annotated[bool, typer.Option("--firing", help="Only those that fire.")] = False, machine: Json = False
) -> None:
    """Every alert that was ever evaluated: firing ones first, the most severe on top."""
    _list(firing=firing, machine=machine)


@app.command("show")
def show_(alert: AlertName, machine: Json = False) -> None:
    """One alert: the numbers, what is normal, how much of the traffic, the ten worst records, and what happened.

    Example: `evalpipe alerts show answers-ungrounded`
    """
    with closing(opened()) as wiring, wiring.store.read() as tx:
        found = view(tx, the_one(tx, alert), now())
    assert found is not None
    if machine:
        typer.echo(as_json(finite(found)))
        return
    _tell(found)


@app.command()
def ack(
    alert: Annotated[str, typer.Argument(help="An alert's id, the end of one, its rule, or a group.")],
    reason: Reason,
    actor: Actor = "",
    machine: Json = False,
) -> None:
    """Take an alert: it is not told again and not escalated, until it gets more severe or has resolved.

    Example: `evalpipe alerts ack answers-ungrounded --reason "index of yesterday, rolling back"`
    """
    with closing(opened()) as wiring, wiring.store.begin() as tx:
        ids = acknowledge(tx, alert, actor=actor or whoami(), reason=reason, now=now())
    if machine:
        typer.echo(as_json({"acknowledged": ids}))
        return
    for alert_id in ids:
        _say(f"{alert_id} is acknowledged")


@app.command()
def silence(
    match: Annotated[list[str], typer.Option(help="label=glob; several must all fit.")],
    lasts: Annotated[str, typer.Option("--for", help="How long, for example 90m, 2h or 7d.")],
    reason: Annotated[str, typer.Option(help="Why nobody need be told; kept forever.")],
    actor: Actor = "",
    machine: Json = False,
) -> None:
    """Tell nobody of some alerts for a while. They fire all the same, and so do decisions and incidents.

    Labels: rule, kind, severity, service, environment, variant, feature, release_id, scorecard, criterion,
    alert_id, and the rule's own. What still fires when it ends is told then; that something told before has resolved is
    told anyway.

    Example: `evalpipe alerts silence --match rule=p99-slow --match 'service=support-*' --for 2h --reason "load test"`
    """
    wanted = Wanted(_matchers(match), actor or whoami(), reason, _duration(lasts))
    with closing(opened()) as wiring, wiring.store.begin() as tx:
        _check_labels(tx, wanted.matchers)
        found = silences.add(tx, wanted, now())
    if machine:
        typer.echo(as_json(found))
    else:
        _say(f"{found['silence_id']} mutes {_words(found)} until {cell(found['until'])} UTC")


@app.command()
def unsilence(
    silence_id: Annotated[str, typer.Argument(help="A silence's id: see `evalpipe alerts silences`.")],
    reason: Annotated[str, typer.Option(help="Why; kept with it.")] = "",
    actor: Actor = "",
    machine: Json = False,
) -> None:
    """End a silence now. What still fires is told."""
    with closing(opened()) as wiring, wiring.store.begin() as tx:
        found = silences.end(tx, silence_id, author=actor or whoami(), reason=reason, now=now())
    typer.echo(as_json(found) if machine else f"{silence_id} has ended")


@app.command("silences")
def silences_(
    everything: Annotated[bool, typer.Option("--all", help="Those that are over, too.")] = False, machine: Json = False
) -> None:
    """Who muted what, why and until when."""
    with closing(opened()) as wiring, wiring.store.read() as tx:
        rows = silences.listing(tx, now(), only_active=not everything)
    if not machine:
        rows = [{**row, "match": _words(row)} for row in rows]
    columns = ["silence_id", "state", "match", "until", "author", "reason", "starts_at", "ended_by"]
    show(rows, columns, less=["ended_by", "starts_at", "author"], machine=machine)


def _list(*, firing: bool, machine: bool) -> None:
    with closing(opened()) as wiring, wiring.store.read() as tx:
        rows = listed(tx, firing=firing)
    if machine:
        typer.echo(as_json(finite(rows)))
        return
    for row in rows:
        row["who"] = _who(row)
        row["summary"] = _shortened(row["summary"])
        row["since"] = row["fired_at"] if row["status"] == "firing" else row["resolved_at"]
    columns = ["status", "severity", "rule", "service", "variant", "feature", "since", "respond_by", "who", "summary"]
    rare = [name for name in ("feature", "who", "respond_by") if not any(row[name] for row in rows)]
    shown = [name for name in columns if name not in rare]
    less = [name for name in ("respond_by", "since", "who", "feature", "variant") if name in shown]
    show(rows, shown, less=less)


def _shortened(summary: str) -> str:
    """A summary for a table: what was found, without what is normal in every detail."""
    return summary if len(summary) <= WIDEST else summary[: WIDEST - 1].rstrip() + "…"


def _who(row: dict[str, Any]) -> str:
    """Who has it, or why nobody is told."""
    if row["status"] != "firing":
        return ""
    if row["dry_run"]:
        return "dry run"
    if row["acked"]:
        return f"{row['acked_by']} has it"
    # The id of another alert: its rule, and what tells its places apart, come last. `show` has it whole.
    by = "/".join(row["muted_by"].split("/")[RULE_AT:]) or row["muted_by"]
    return f"muted by {by}" if by else ""


def _tell(found: dict[str, Any]) -> None:
    explanation = found["explanation"] or {}
    _say(f"{found['alert_id']}  {found['status']}  {found['severity']}  {_who(found)}".rstrip())
    _say(f"  {found['summary']}")
    if found["respond_by"]:
        _say(f"  somebody must answer by {cell(found['respond_by'])} UTC: evalpipe alerts ack {found['alert_id']}")
    _explain(explanation)
    if found["labels"]:
        _say("  labels     " + ", ".join(f"{name}={value}" for name, value in sorted(found["labels"].items())))
    if found["timeline"]:
        _say("  what happened:")
        for entry in found["timeline"]:
            _say(f"    {cell(entry['at'])}  {entry['text']}")


def _explain(explanation: dict[str, Any]) -> None:
    for name in ("value", "n", "threshold", "ratio", "normal"):
        if explanation.get(name) not in {None, ""}:
            _say(f"  {name:<10} {_number(explanation[name])}")
    if share := explanation.get("share"):
        _say(f"  {'affected':<10} {_share(share)} of the traffic")
    if numbers := explanation.get("numbers"):
        _say("  test       " + ", ".join(f"{name} {_number(value)}" for name, value in numbers.items()))
    if examples := explanation.get("examples"):
        _say("  worst records ('evalpipe why ID' tells each):")
        for example in examples:
            _say(f"    {example['record_id']}  {_number(example.get('value'))}  {example.get('explanation') or ''}")


def _share(share: dict[str, Any]) -> str:
    low, high = share.get("low"), share.get("high")
    between = f" ({low:.0%} to {high:.0%})" if low is not None and high is not None else ""
    return f"{share['estimate']:.0%}{between}" if share.get("estimate") is not None else f"an unknown share{between}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value) if value is not None else "-"


def _matchers(words: list[str]) -> dict[str, str]:
    found = {}
    for word in words:
        name, is_there, glob = word.partition("=")
        if not is_there or not name:
            raise ConfigError(f"--match {word!r} is not label=glob; write, for example, rule=p99-slow")
        if name in found:
            raise ConfigError(f"--match names {name!r} twice; a glob such as {name}=a* fits several")
        found[name] = glob
    return found


def _check_labels(tx: Transaction, names: Iterable[str]) -> None:
    """A label that no alert has would mute nothing, unseen."""
    known = sorted({*silences.LABELS, *(name for row in listed(tx) for name in row["labels"])})
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]!r}? " if nearest else ""
            raise ConfigError(f"--match: no alert has a label {name!r}; {hint}There are: {', '.join(known)}")


def _duration(text: str) -> Any:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ConfigError(f"--for {text!r} {error}") from None


def _words(row: dict[str, Any]) -> str:
    return ", ".join(f"{name}={glob}" for name, glob in sorted(row["matchers"].items()))


def _say(text: str) -> None:
    # What models, users and applications wrote is in it: control characters must not reach the terminal.
    typer.echo("".join(c if c.isprintable() else " " for c in text))
