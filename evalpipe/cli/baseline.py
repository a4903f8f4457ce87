"""``evalpipe baseline``: what is normal, captured under a name; and what can be seen with it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from evalpipe.cli.baseline_text import tell_baseline, tell_calibrated, tell_captured
from evalpipe.cli.read import Json
from evalpipe.cli.tables import as_json, finite, show
from evalpipe.cli.trouble import opened, whoami
from evalpipe.errors import ConfigError
from evalpipe.pipeline.baseline_view import calibrate as calibrated_by
from evalpipe.pipeline.baseline_view import header_view, proposals, view
from evalpipe.pipeline.rollout_view import environment_of
from evalpipe.scorecard.values import parse_duration
from evalpipe.store import baselines
from evalpipe.store.baselines import Baseline, Wanted
from evalpipe.wiring import now

app = typer.Typer(
    no_args_is_help=True,
    help="Baselines: what is normal, captured once under a name and never changed. Alert rules compare with them.",
)

Name = Annotated[str, typer.Argument(help="The baseline's name.")]
Actor = Annotated[str, typer.Option(help="Who does this; you, by default.", show_default=False)]


@app.command()
def capture(
    name: Annotated[str, typer.Argument(help="Of your choice, for example `support-2026-11`; it is never reused.")],
    service: Annotated[str, typer.Option(help="The service, as its hook is named.", show_default=False)],
    environment: Annotated[
        str, typer.Option(help="Where; where the service's traffic comes from, by default.", show_default=False)
    ] = "",
    variant: Annotated[str, typer.Option(help="The variant.")] = "baseline",
    release: Annotated[str, typer.Option(help="Only this release, by its id.", show_default=False)] = "",
    since: Annotated[str, typer.Option(help="From here on: so long ago (24h, 7d), or an instant.")] = "7d",
    until: Annotated[str, typer.Option(help="Up to here; now, by default.", show_default=False)] = "",
    reason: Annotated[str, typer.Option(help="Why this is normal; kept.")] = "",
    actor: Actor = "",
    machine: Json = False,
) -> None:
    """Capture what is normal: the scores, the meter, and what inputs and outputs look like.

    At least 1,000 scores of one criterion are needed, and 3,000 are good: the baseline's own error makes most false
    alarms. Take a time in which nothing was wrong, and whole weeks where traffic differs by the day.

        evalpipe baseline capture support-2026-11 --service support-bot --since 14d --reason "quiet fortnight"
    """
    at = now()
    with closing(opened()) as wiring:
        with wiring.store.read() as tx:
            place = environment_of(tx, service, environment)
        wanted = Wanted(
            name, service, place, variant, _when("--since", since, at), _when("--until", until or "0s", at),
            actor or whoami(), reason, release,
        )  # fmt: skip
        header = wiring.store.patiently(lambda tx: baselines.capture(tx, wanted, at))
    if machine:
        typer.echo(as_json(header_view(header)))
        return
    tell_captured(header)


@app.command("list")
def list_(
    service: Annotated[str, typer.Option(help="Only of this service.", show_default=False)] = "",
    retired: Annotated[bool, typer.Option("--retired", help="Also those that were retired.")] = False,
    machine: Json = False,
) -> None:
    """The baselines, newest first. Those that begin with `auto-` evalpipe captured of releases that stayed healthy.

    Example: `evalpipe baseline list --service support-bot`
    """
    with closing(opened()) as wiring, wiring.store.read() as tx:
        found = baselines.listing(tx, {"service": service} if service else None, retired=retired)
    rows = [header_view(header) for header in found]
    columns = ["name", "service", "environment", "variant", "since_at", "until_at", "n_scores", "n_calls", "n_profiles",
               "actor", "reason"]  # fmt: skip
    if retired:
        columns.append("retired_at")
    show(rows, columns, less=["n_profiles", "reason", "actor", "environment", "since_at", "n_calls"], machine=machine)


@app.command("show")
def show_(name: Name, machine: Json = False) -> None:
    """What is in a baseline: each criterion by epoch, and the meter by feature.

    Example: `evalpipe baseline show support-2026-11`
    """
    found = view(_read(name))
    if machine:
        typer.echo(as_json(finite(found)))
        return
    tell_baseline(found)


@app.command()
def retire(
    name: Name,
    reason: Annotated[str, typer.Option(help="Why it is no longer normal; kept.", show_default=False)],
    actor: Actor = "",
    machine: Json = False,
) -> None:
    """Have `latest` skip a baseline. It stays, and rules that name it go on with it.

    Example: `evalpipe baseline retire support-2026-11 --reason "the week of the outage"`
    """
    by = actor or whoami()
    with closing(opened()) as wiring, wiring.store.begin() as tx:
        done = baselines.retire(tx, name, actor=by, reason=reason, now=now())
    if machine:
        typer.echo(as_json({"name": name, "retired": done}))
    else:
        typer.echo(f"{name} is retired" if done else f"{name} was retired before")


@app.command()
def calibrate(
    name: Name,
    criterion: Annotated[str, typer.Option(help="Only this criterion.", show_default=False)] = "",
    false_alarm_every: Annotated[
        str, typer.Option(help="The wanted time between two false alarms of a rule: 30d is one a month.")
    ] = "30d",
    plot: Annotated[Path | None, typer.Option(help="Also draw it, as PNG.", show_default=False)] = None,
    machine: Json = False,
) -> None:
    """Propose alert rules for a wanted rate of false alarms, and tell the smallest drop they will see, and how fast.

    The detector itself is run over scores drawn from the baseline, with the mean dropped by so much. Nothing is
    changed: paste the rules under `alerts:` of the scorecard.

        evalpipe baseline calibrate support-2026-11 --criterion grounded --false-alarm-every 30d
    """
    every = _every(false_alarm_every)
    found = calibrated_by(_read(name), every, criterion=criterion)
    if plot is not None:
        from evalpipe.cli.baseline_plot import draw_png

        draw_png(name, found, plot)
        typer.echo(f"{plot} written", err=True)
    if machine:
        rows: list[dict[str, Any]] = [{**asdict(one), "rules": proposals(name, one, every)} for one in found]
        typer.echo(as_json(finite(rows)))
        return
    tell_calibrated(name, found, every)


def _read(name: str) -> Baseline:
    with closing(opened()) as wiring, wiring.store.read() as tx:
        found = baselines.get(tx, name)
        if found is None:
            raise baselines.missing(tx, name)
        return found


def _every(text: str) -> timedelta:
    try:
        every = parse_duration(text)
    except ValueError as error:
        raise ConfigError(f"--false-alarm-every {text!r} {error}") from None
    if every < timedelta(hours=1):
        raise ConfigError(f"--false-alarm-every {text!r}: write 1h or more; 30d is one false alarm a month")
    return every


def _when(option: str, text: str, at: datetime) -> datetime:
    try:
        return at - parse_duration(text)
    except (ValueError, OverflowError):
        pass
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise ConfigError(
            f"{option} {text!r} is not a time: write so long ago as 24h or 7d, or an instant as 2026-11-22T03:00:00Z"
        )
    return found
