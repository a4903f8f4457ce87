"""Commands that act on live traffic: kill switches, budgets, weights of a rollout, sampling rates, and their log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from redis import RedisError
from sqlalchemy.exc import SQLAlchemyError

from evalpipe.cli.reach import reach_of, tell_reach
from evalpipe.cli.read import Json
from evalpipe.cli.tables import as_json, show
from evalpipe.cli.trouble import opened, redis_advice, whoami
from evalpipe.errors import ConfigError
from evalpipe.store import controls
from evalpipe.store.controls import Kept
from evalpipe.store.sql import Transaction
from evalpipe.wiring import Wiring, now

switch = typer.Typer(
    no_args_is_help=True,
    help="Kill switches: stop the calls of a feature, segment or variant in every application, within a second.",
)
budget = typer.Typer(no_args_is_help=True, help="Budgets: tokens or money for each user, feature or segment.")
weights = typer.Typer(no_args_is_help=True, help="Weights of a rollout: who gets the canary.")
rate = typer.Typer(no_args_is_help=True, help="Sampling rates: how much of the traffic is captured.")
control = typer.Typer(no_args_is_help=True, help="What hooks obey, as a whole.")

Service = Annotated[str, typer.Argument(help="The service, as its hook is named.")]
Name = Annotated[str, typer.Argument(help="The control's name; you choose it.")]
OnlyService = Annotated[str | None, typer.Argument(help="Only this service.")]
Reason = Annotated[str, typer.Option(help="Why; kept forever.")]
Actor = Annotated[str, typer.Option(help="Who does this; you, by default.", show_default=False)]
Feature = Annotated[str | None, typer.Option(help="Only calls of this feature.", show_default=False)]
Segment = Annotated[str | None, typer.Option(help="Only calls of this segment.", show_default=False)]
Variant = Annotated[str | None, typer.Option(help="Only calls of this variant.", show_default=False)]
Environment = Annotated[str, typer.Option(help="Only in this environment; in all, if not given.", show_default=False)]
Incident = Annotated[str | None, typer.Option(help="A link that refused calls carry.", show_default=False)]
Fail = Annotated[
    str | None,
    typer.Option(help="open or closed: do calls pass where hooks heard nothing for --max-staleness-s? [open]"),
]
Staleness = Annotated[float | None, typer.Option(help="How old what a hook knows may be, in seconds. [300]")]


@switch.command()
def engage(
    service: Service,
    name: Name,
    reason: Reason,
    feature: Feature = None,
    segment: Segment = None,
    variant: Variant = None,
    environment: Environment = "",
    incident: Incident = None,
    fail: Fail = None,
    max_staleness_s: Staleness = None,
    actor: Actor = "",
    machine: Json = False,
) -> None:
    """Stop calls. They stay stopped until somebody releases the switch.

    What is not given stays as it is if the switch is engaged already; one that was released starts from nothing.
    Without a feature, segment or variant it stops the whole service.

    Example: `evalpipe switch engage support-bot stop-agent --feature agent --reason "cost x40" --incident URL`
    """
    given = {"engaged": True, "feature": feature, "segment": segment, "variant": variant, "incident": incident,
             "fail": fail, "max_staleness_s": max_staleness_s}  # fmt: skip
    _set(service, "switch", name, environment, given, actor, reason, machine=machine)


@switch.command()
def release(
    service: Service,
    name: Name,
    reason: Reason,
    environment: Environment = "",
    actor: Actor = "",
    machine: Json = False,
) -> None:
    """Let the calls through again.

    Example: `evalpipe switch release support-bot stop-agent --reason "fixed in 1.4.2"`
    """
    who = {"actor": actor or whoami(), "reason": reason}
    _change(service, lambda tx: controls.release(tx, service, name, environment, **who, now=now()), machine=machine)


@budget.command("set")
def set_budget(
    service: Service,
    name: Name,
    limit: Annotated[float | None, typer.Option(help="Of each account in each window.", show_default=False)] = None,
    unit: Annotated[str | None, typer.Option(help="tokens or usd.", show_default=False)] = None,
    per: Annotated[
        str | None, typer.Option(help="Whose account: user, feature, segment or service.", show_default=False)
    ] = None,
    window: Annotated[str | None, typer.Option(help="minute, hour or day, in UTC.", show_default=False)] = None,
    feature: Feature = None,
    segment: Segment = None,
    environment: Environment = "",
    lease: Annotated[float | None, typer.Option(help="Share that a process takes at a time. [0.02]")] = None,
    incident: Incident = None,
    fail: Fail = None,
    max_staleness_s: Staleness = None,
    reason: Reason = "",
    actor: Actor = "",
    machine: Json = False,
) -> None:
    """Set a budget, or change what is given of one.

    Example: `evalpipe budget set support-bot user-day --per user --limit 200000 --unit tokens --window day`
    """
    given = {"limit": limit, "unit": unit, "per": per, "window": window, "feature": feature, "segment": segment,
             "lease": lease, "incident": incident, "fail": fail, "max_staleness_s": max_staleness_s}  # fmt: skip
    _set(service, "budget", name, environment, given, actor, reason, machine=machine)


@weights.command("set")
def set_weights(
    service: Service,
    name: Annotated[str, typer.Argument(help="The rollout's name: what the application asks hook.variant() for.")],
    shares: Annotated[list[str], typer.Argument(help="VARIANT=WEIGHT, for example canary=5 baseline=95.")],
    baseline: Annotated[
        str | None, typer.Option(help="The variant of everybody else. [baseline]", show_default=False)
    ] = None,
    feature: Annotated[list[str] | None, typer.Option(help="Only these features; repeat it.")] = None,
    environment: Environment = "",
    sample: Annotated[
        float | None, typer.Option(help="Sampling rate of the canary; the baseline's is made equal. [1]")
    ] = None,
    shadow_rate: Annotated[float | None, typer.Option(help="Share of calls that the canary shadows.")] = None,
    shadow_per_minute: Annotated[int, typer.Option(help="Shadow calls a minute of a process at the most.")] = 60,
    reason: Reason = "",
    actor: Actor = "",
    machine: Json = False,
) -> None:
    """Split the traffic; what is not given stays. Users of a growing canary stay in it.

    Example: `evalpipe weights set support-bot refund-prompt canary=5 baseline=95`
    """
    shadow = None if shadow_rate is None else {"rate": shadow_rate, "per_minute": shadow_per_minute}
    given = {"weights": _shares(shares), "baseline": baseline, "features": feature, "sample": sample, "shadow": shadow}
    _set(service, "weights", name, environment, given, actor, reason, machine=machine)


@weights.command()
def resume(
    service: Service,
    name: Name,
    reason: Reason,
    shares: Annotated[
        list[str] | None, typer.Argument(help="The weights from now on, as VARIANT=WEIGHT; as they are, if not given.")
    ] = None,
    environment: Environment = "",
    actor: Actor = "",
    machine: Json = False,
) -> None:
    """Let a canary that was rolled back have traffic again.

    Example: `evalpipe weights resume support-bot refund-prompt canary=1 baseline=99 --reason "fixed the prompt"`
    """
    who = {"actor": actor or whoami(), "reason": reason}
    given = _shares(shares) if shares else None
    _change(
        service, lambda tx: controls.resume(tx, service, name, environment, given, **who, now=now()), machine=machine
    )


@rate.command("set")
def set_rate(
    service: Service,
    name: Name,
    share: Annotated[str, typer.Argument(metavar="RATE", help="For example 5% or 0.05.")],
    feature: Feature = None,
    variant: Variant = None,
    environment: Environment = "",
    reason: Reason = "",
    actor: Actor = "",
    machine: Json = False,
) -> None:
    """Set how much of the traffic is captured, over what the application says.

    Example: `evalpipe rate set support-bot agent 20% --feature agent`
    """
    given = {"rate": _share(share), "feature": feature, "variant": variant}
    _set(service, "rate", name, environment, given, actor, reason, machine=machine)


@control.command("log")
def log(
    service: OnlyService = None,
    limit: Annotated[int, typer.Option(help="The newest so many.", min=1)] = 50,
    machine: Json = False,
) -> None:
    """Who changed what, when and why, newest first. `--json` has it before and after."""
    with _reading() as tx:
        rows = controls.changes(tx, service, limit)
    columns = ["at", "service", "revision", "kind", "name", "environment", "action", "actor", "reason"]
    show(rows, columns, machine=machine)


@control.command()
def document(service: Service) -> None:
    """The control document as the service's hooks read it, as JSON."""
    with _reading() as tx:
        typer.echo(as_json(controls.document(tx, service, now())))


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    for kind, group in {"switch": switch, "budget": budget, "weights": weights, "rate": rate}.items():
        group.command("list", help="All of them as they stand.")(_lister(kind))
        group.command("remove", help="Take one away; the log keeps it.")(_remover(kind))
        app.add_typer(group, name=kind)
    app.add_typer(control, name="control")


@contextmanager
def _reading() -> Iterator[Transaction]:
    wiring = opened()
    try:
        with wiring.store.read() as tx:
            yield tx
    finally:
        wiring.close()


def _lister(kind: str) -> Callable[..., None]:
    def run(service: OnlyService = None, machine: Json = False) -> None:
        with _reading() as tx:
            found = controls.entries(tx, service, kind)
        if machine:
            typer.echo(as_json([_row(kept) for kept in found]))
            return
        rows = [{"service": k.service, "name": k.name, "setting": _told(k), "set": _who(k)} for k in found]
        show(rows, ["service", "name", "setting", "set"])

    return run


def _remover(kind: str) -> Callable[..., None]:
    def run(
        service: Service,
        name: Name,
        environment: Environment = "",
        reason: Reason = "",
        actor: Actor = "",
        machine: Json = False,
    ) -> None:
        who = {"actor": actor or whoami(), "reason": reason}
        _change(
            service, lambda tx: controls.remove(tx, service, kind, name, environment, **who, now=now()), machine=machine
        )

    return run


def _set(
    service: str,
    kind: str,
    name: str,
    environment: str,
    given: Mapping[str, Any],
    actor: str,
    reason: str,
    *,
    machine: bool,
) -> None:
    """Set what is given, and leave the rest as it was."""
    who = {"actor": actor or whoami(), "reason": reason}

    fields = {name: value for name, value in given.items() if value is not None}

    def run(tx: Transaction) -> Kept:
        return controls.amend(tx, service, kind, name, environment, fields, **who, now=now())

    _change(service, run, machine=machine)


def _change(service: str, change: Callable[[Transaction], Kept | int], *, machine: bool) -> None:
    """Make one change, and give it to the hooks at once."""
    wiring = opened()
    try:
        with wiring.store.begin() as tx:
            done = change(tx)
        kept = done if isinstance(done, Kept) else None
        problem = _publish(wiring, service)  # before anything else: hooks wait for it
        reach = reach_of(wiring, kept) if kept else None
    finally:
        wiring.close()
    revision = kept.revision if kept else done
    if machine:
        row = _row(kept) if kept else None
        running = {"running": reach.running} if reach else {}
        typer.echo(as_json({"revision": revision, "published": not problem, "control": row, **running}))
    else:
        typer.echo(f"{service}, revision {revision}: {_told(kept) if kept else 'removed'}")
    if kept and reach:
        tell_reach(kept, reach, machine=machine)
    if problem:
        raise ConfigError(
            f"it is set, but no hook knows yet, because {problem}: once that is over, workers tell them within "
            "seconds; see 'evalpipe doctor'"
        )


def _publish(wiring: Wiring, service: str) -> str:
    """Why the document could not be published; "" if it was."""
    try:
        done = wiring.publish.one(service, now())
    except RedisError as error:
        return f"Redis does not answer ({error}; {redis_advice(wiring.settings)})"
    except SQLAlchemyError as error:
        return f"the database does not answer ({error})"
    return "" if done else f"Redis has newer control documents of {service!r}, written by another database"


def _row(kept: Kept) -> dict[str, Any]:
    told = {"service": kept.service, "kind": kept.kind, "name": kept.name, **kept.body, "latched": kept.latched}
    return {**told, "revision": kept.revision, "actor": kept.actor, "reason": kept.reason,
            "updated_at": kept.updated_at}  # fmt: skip


def _told(kept: Kept) -> str:
    """What is set, in words: without what is empty, and without what a hook would do anyway."""
    told = [f"{name.removesuffix('_s')} {_shown(v)}" for name, v in kept.body.items() if v not in ("", None, [])]
    if kept.kind == "switch":
        told[:0] = ["ENGAGED" if kept.body["engaged"] else "released"]
        told = [words for words in told if not words.startswith("engaged ")]
    told += [f"{variant} ROLLED BACK ({reason})" for variant, reason in kept.latched.items()]
    return ", ".join(told)


def _who(kept: Kept) -> str:
    return f"{kept.updated_at:%Y-%m-%d %H:%M} {kept.actor}{f': {kept.reason}' if kept.reason else ''}"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={_shown(v)}" for name, v in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _shares(words: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for word in words:
        variant, _, weight = word.partition("=")
        if not variant or not weight.isdecimal() or not weight.isascii():
            raise ConfigError(f"{word!r} is no share: write VARIANT=WEIGHT with a whole number, for example canary=5")
        found[variant] = int(weight)
    return found


def _share(word: str) -> float:
    percent = word.endswith("%")
    try:
        return round(float(word.removesuffix("%")) / (100 if percent else 1), 8)
    except ValueError:
        raise ConfigError(f"{word!r} is no rate: write 5% or 0.05") from None
