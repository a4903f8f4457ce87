"""Commands that read: scores, series, ledger, decisions, incidents, and what happened to one record."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from redis import RedisError
from rich.console import Console

from evalpipe.cli.tables import as_json, cell, show
from evalpipe.cli.trouble import opened, redis_advice
from evalpipe.errors import ConfigError
from evalpipe.scorecard.values import parse_duration
from evalpipe.store.ledgers import Queued
from evalpipe.wiring import Wiring, now

Since = Annotated[str, typer.Option(help="How far back, for example 90s, 15m, 24h, 7d.")]
Json = Annotated[bool, typer.Option("--json", help="For machines.")]
Service = Annotated[str, typer.Option(help="Only this service.")]
Criterion = Annotated[str, typer.Option(help="Only this criterion.")]
Variant = Annotated[str, typer.Option(help="Only this variant, for example canary.")]


def since_of(text: str) -> datetime:
    """The instant that lies ``text`` back."""
    try:
        return now() - parse_duration(text)
    except ValueError as error:
        raise ConfigError(f"--since {text!r}: {error}") from None


def scores(
    since: Since = "24h",
    service: Service = "",
    criterion: Criterion = "",
    variant: Variant = "",
    limit: Annotated[int, typer.Option(help="The newest so many.", min=1)] = 50,
    csv: Annotated[Path | None, typer.Option(help="Write all of them as CSV ('-' is stdout).")] = None,
    parquet: Annotated[Path | None, typer.Option(help="Write all of them as Parquet.")] = None,
    machine: Json = False,
) -> None:
    """Scores, newest last: a table, CSV, Parquet or JSON. In Python: `evalpipe.read_scores(...)`."""
    from evalpipe.store.frames import read_scores

    filters = {"service": service, "criterion": criterion, "variant": variant}
    where: dict[str, Any] = {name: value for name, value in filters.items() if value}
    whole = csv is not None or parquet is not None
    wiring = opened()
    frame = read_scores(
        database_url=wiring.settings.database_url, since=since_of(since), limit=None if whole else limit, **where
    )
    if csv is not None:
        frame.to_csv(sys.stdout if str(csv) == "-" else csv, index=False)
    if parquet is not None:
        frame.to_parquet(parquet, index=False)
    if whole:
        typer.echo(f"{len(frame)} scores written", err=True)
        return
    rows = json.loads(frame.to_json(orient="records", date_format="iso"))
    columns = ["captured_at", "service", "variant", "criterion", "status", "value", "label", "record_id", "explanation"]
    show(rows, columns, less=["explanation", "label", "variant", "captured_at"], machine=machine)


def plot(
    criterion: Annotated[str, typer.Argument(help="The criterion to plot.")],
    since: Since = "24h",
    service: Service = "",
    shadow: Annotated[bool, typer.Option("--shadow", help="The answers of shadows instead, which nobody saw.")] = False,
    png: Annotated[Path | None, typer.Option(help="Write a PNG instead of drawing in the terminal.")] = None,
) -> None:
    """A criterion's mean over time, one line for each variant and epoch; a mark shows where an epoch begins.

    `raw` is as the judge says. `corr` is what people would have said, where the judge was measured in that epoch
    (`evalpipe judge calibrate --save`); its interval includes the judge's error.
    """
    from evalpipe.store.plots import draw_png, draw_terminal, points_of
    from evalpipe.store.series import SERVED, SHADOW

    with closing(opened()) as wiring, wiring.store.read() as tx:
        arm = SHADOW if shadow else SERVED
        points = points_of(tx, criterion, since_of(since), now(), service=service, arm=arm)
    if not points:
        raise ConfigError(f"no scores of {criterion!r} in the last {since}: see 'evalpipe scores'")
    if png is not None:
        draw_png(points, criterion, png)
        typer.echo(f"{png} written")
    else:
        draw_terminal(points, criterion)


def estimates(
    since: Since = "24h",
    service: Service = "",
    criterion: Criterion = "",
    variant: Variant = "",
    machine: Json = False,
) -> None:
    """Each criterion's mean with its 95 % interval: raw, and corrected for the judge's measured error.

    `raw` is as the judge (or the heuristic) says. `corrected` is what people would have said, by the newest calibration
    of the epoch (`evalpipe judge calibrate --save`): for pass and fail by sensitivity and specificity (rogan-gladen),
    for other grades prediction-powered (ppi); its interval includes the judge's error. It assumes that the judge errs
    alike on all variants of the epoch. Decisions go by the raw values.
    """
    from evalpipe.store.estimates import read_estimates

    filters = {"service": service, "criterion": criterion, "variant": variant}
    with closing(opened()) as wiring, wiring.store.read() as tx:
        found = read_estimates(tx, since_of(since), **{name: value for name, value in filters.items() if value})
    rows = [estimate.as_dict() for estimate in found]
    if machine:
        typer.echo(as_json(rows))
        return
    for row in rows:
        row["n"], row["how"], row["epoch"] = row["n_scored"], row["correction"], row["epoch"][:6]
        for name in ("raw", "corrected"):
            mean, low, high = (row[f"{name}_{part}"] for part in ("mean", "low", "high"))
            row[name] = None if mean is None else f"{mean:.3f}[{low:.2f},{high:.2f}]"
        at = row["calibrated_at"]
        row["calibrated"] = f"{at:%m-%d} n={row['calibration_n']}" if at else None
    columns = ["service", "variant", "criterion", "epoch", "n", "raw", "corrected", "how", "calibrated"]
    columns += ["escalated", "disagreement"]
    rare = [name for name in ("escalated", "disagreement") if not any(row[name] for row in rows)]
    less = ["disagreement", "escalated", "epoch", "service", "n", "calibrated"]
    shown = [name for name in columns if name not in rare]
    show(rows, shown, less=[name for name in less if name in shown])
    for row in rows:
        if row["calibrated_at"] and row["correction_reason"]:
            typer.echo(f"{row['variant']} {row['criterion']} is not corrected: {row['correction_reason']}.")
    if any(row["how"] for row in rows):
        typer.echo("raw: as the judge says. corrected: as people would; [] holds the judge's error.")


def ledger(
    since: Since = "24h",
    service: Service = "",
    machine: Json = False,
) -> None:
    """How much was really evaluated: every sampled record is somewhere in this table.

    sampled = scored + skipped + abstained + error + dead + shed + lost + in flight, each counted by itself. The first
    line of an hour counts records; the lines below count records under each scorecard. `diff` is 0 at rest.
    """
    from evalpipe.store import ledgers

    wiring = opened()
    queued = _queued(wiring)
    with wiring.store.read() as tx:
        lines = ledgers.read(tx, queued, now(), since=ledgers.hour_of(since_of(since)))
    rows = [line.as_dict() for line in lines if not service or line.service == service]
    if machine:
        typer.echo(as_json(rows))
        return
    for row in rows:
        row["hour"] = row["hour_at"][5:13].replace("T", " ") + "h"
        row["scorecard"] = row["scorecard"] or "(records)"
        row["diff"] = row["difference"]
    columns = ["hour", "service", "scorecard", "observed", "not_sampled", "sampled", *ledgers.OUTCOMES]
    terms = [*ledgers.OUTCOMES, "shed", "lost", "in_flight"]
    empty = [term for term in terms if not any(row[term] for row in rows)]
    show(rows, [*columns, "shed", "lost", "in_flight", "diff"], less=[*empty, "not_sampled"])
    balance = sum(abs(row["difference"]) for row in rows)
    typer.echo("The ledger balances." if not balance else f"Out of balance by {balance}: traffic of the last minute.")


def meter(
    since: Annotated[str, typer.Option(help="How far back, for example 1h, 24h, 7d; in whole hours.")] = "24h",
    service: Service = "",
    variant: Variant = "",
    feature: Annotated[str, typer.Option(help="Only this feature.")] = "",
    machine: Json = False,
) -> None:
    """What was counted on 100 % of the calls: errors, refusals, tokens, cost, latency, TTFT and TPOT, blocked calls."""
    from evalpipe.store.metered import read_meters

    where = {"service": service, "variant": variant, "feature": feature}
    with opened().store.read() as tx:
        found = read_meters(tx, since=since_of(since), **{name: value for name, value in where.items() if value})
    rows = [metered.as_dict() for metered in found]
    if machine:
        typer.echo(as_json(rows))
        return
    for row in rows:
        for name in ("latency", "ttft"):
            quantiles = row[f"{name}_ms"]
            row[f"{name}_p50"], row[f"{name}_p99"] = (quantiles["p50"], quantiles["p99"]) if quantiles else (None, None)
        row["tpot_p50"] = row["tpot_ms"]["p50"] if row["tpot_ms"] else None
        row["tokens"] = row["input_tokens"] + row["output_tokens"]
        row["blocked"] = sum(row["blocked"].values())
    columns = ["service", "variant", "feature", "calls", "sampled", "error_rate", "refusal_rate", "blocked", "tokens"]
    columns += ["cost_usd", "unpriced", "latency_p50", "latency_p99", "ttft_p50", "ttft_p99", "tpot_p50"]
    rare = [name for name in ("unpriced", "blocked") if not any(row[name] for row in rows)]
    less = ["tpot_p50", "ttft_p99", *rare, "sampled", "tokens", "refusal_rate", "latency_p99", "unpriced", "ttft_p50"]
    show(rows, columns, less=less)
    typer.echo("Durations in ms, each within 0.5 %.")


def processes(since: Since = "24h", service: Service = "", machine: Json = False) -> None:
    """The processes that hooks run in. `silent`: no goodbye, so what it counted in its last 3 s may be missing."""
    from evalpipe.store.metered import read_processes

    with opened().store.read() as tx:
        rows = read_processes(tx, since=since_of(since), now=now(), service=service)
    columns = ["process_id", "service", "state", "started_at", "sent_at", "messages", "missing", "hook_version"]
    show(rows, columns, less=["hook_version", "messages", "started_at"], machine=machine)


def why(
    trace_id: Annotated[str, typer.Argument(help="A trace id or a record id.")],
    machine: Json = False,
) -> None:
    """What happened to one record: scored how, by whom, or why not."""
    from evalpipe.store import feedback
    from evalpipe.store.why import dead_letters_with
    from evalpipe.store.why import why as explain

    wiring = opened()
    with wiring.store.read() as tx:
        found = explain(tx, trace_id)
        letters = [] if found else dead_letters_with(tx, trace_id)
        waiting = [] if found else feedback.waiting(tx, trace_id)
    if machine:
        typer.echo(as_json({"records": found, "dead_letters": letters, "feedback": waiting}))
        return
    for record in found:
        _tell_record(record)
    for letter in letters:
        typer.echo(f"{trace_id} is in dead letter {letter['dead_letter_id']}: {letter['reason']}")
    _tell_feedback(waiting)
    if not found and not letters:
        queued = sum(_queued(wiring).counts.values())
        typer.echo(
            f"{trace_id} is not in the store. Either it was not sampled (the hook decides by the trace id), or it was "
            f"shed, or it is one of the {queued} records that wait in the queue; 'evalpipe ledger' counts each."
        )
        raise typer.Exit(1)


def decisions(
    rollout: Annotated[str, typer.Option(help="Only this rollout.")] = "",
    limit: Annotated[int, typer.Option(help="The newest so many.", min=1)] = 20,
    machine: Json = False,
) -> None:
    """What was decided about canaries, with the evidence."""
    from evalpipe.store import rollouts

    with opened().store.read() as tx:
        rows = rollouts.list_decisions(tx, rollout_id=rollout or None, limit=limit)
    show(rows, ["decided_at", "rollout_id", "seq", "action", "reason"], machine=machine)


def incidents(machine: Json = False) -> None:
    """What alerts and rollbacks opened. An alert's is resolved with its alert; a rollback's stays open."""
    from evalpipe.store import alerting

    with closing(opened()) as wiring, wiring.store.read() as tx:
        rows = alerting.list_incidents(tx)
    for row in rows:
        row["state"] = "open" if row["resolved_at"] is None else "resolved"
    columns = ["incident_id", "state", "opened_at", "resolved_at", "severity", "service", "source", "title"]
    show(rows, columns, less=["source", "service", "resolved_at"], machine=machine)


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (scores, plot, estimates, ledger, meter, processes, why, decisions, incidents):
        app.command()(command)


def _queued(wiring: Wiring) -> Queued:
    """What waits in Redis; without Redis the store can still be read, and the reader is told what is missing."""
    try:
        return wiring.queue.queued()
    except RedisError as error:
        typer.echo(f"Redis does not answer, so what waits there is not counted: {error}", err=True)
        typer.echo(f"-> {redis_advice(wiring.settings)}", err=True)
        return Queued({})


def _tell_record(record: dict[str, Any]) -> None:
    console = Console()
    console.print(
        f"[bold]{record['record_id']}[/bold]  {record['service']}/{record['variant']}"
        f"  captured {cell(record['captured_at'])}  outcome [bold]{record['outcome']}[/bold]"
    )
    console.print(
        f"  kept by {record['reason']!r} with probability {record['probability']:g};"
        f" stored {cell(record['ingested_at'])}" + ("; its payload has been erased" if record["erased"] else "")
    )
    if not record["scores"] and not record["work"]:
        console.print("  no scorecard matches it: see 'match' in the scorecards")
    for s in record["scores"]:
        value = "" if s["value"] is None else f" {s['value']:.3f}"
        console.print(f"  {s['criterion']}: {s['status']}{value} {s['label']} by {s['scorer']}", highlight=False)
        if s["explanation"]:
            console.print(f"      {s['explanation']}", highlight=False, markup=False)
    for w in record["work"]:
        if w["state"] != "done":
            console.print(f"  {w['criterion']}: {_state_of(w)} {w['reason']}".rstrip(), markup=False)
    for r in record["rollouts"]:
        seen = "counted" if r["folded_seq"] >= r["seq"] else "waits for its turn"
        console.print(f"  rollout {r['rollout_id']}: {r['arm']}, number {r['seq']}, {seen}")
    _tell_feedback(record["feedback"])


def _state_of(work: dict[str, Any]) -> str:
    """What became of work that is not done, in words."""
    if work["state"] == "shed":
        return "was not judged, to save money:"
    if work["state"] == "batched":
        return f"waits for the provider's batch {work['batch_id']}"
    waits = f"waits for a judge (due {cell(work['due_at'])})" if work["state"] == "pending" else "was given up"
    return f"{waits} after {work['attempts']} attempts"


def _tell_feedback(found: list[dict[str, Any]]) -> None:
    console = Console()
    for f in found:
        said = " ".join(part for part in ("" if f["value"] is None else f"{f['value']:g}", f["label"]) if part)
        console.print(f"  feedback {cell(f['at'])}: {said} {f['comment']}".rstrip(), highlight=False, markup=False)
