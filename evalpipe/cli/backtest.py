"""``evalpipe backtest``: what a policy, or alert rules, would have done on what was recorded."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from evalpipe.cli.alert_backtest import Wish, backtest_alerts
from evalpipe.cli.policy_option import PolicyOption, policy_from, report_notices
from evalpipe.cli.read import Json
from evalpipe.cli.score_file import Recorded, ScoreFile
from evalpipe.cli.tables import finite, show
from evalpipe.errors import ConfigError
from evalpipe.rollout.backtest import Rehearsed, comparison, rehearse, untimed
from evalpipe.rollout.decision import Decision
from evalpipe.rollout.from_policy import plan_of
from evalpipe.rollout.plan import RolloutPlan
from evalpipe.scorecard.checks import nearest


def backtest(
    scores: Annotated[
        Path | None,
        typer.Option("--scores", help="CSV with a header, or Parquet: one score a row.", show_default=False),
    ] = None,
    policy: PolicyOption = None,
    ramp: Annotated[
        bool, typer.Option("--ramp", help="Climb the policy's steps too; without it there is one comparison.")
    ] = False,
    log: Annotated[bool, typer.Option("--all", help="Every decision of each rollout, not only the last.")] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave rows out that cannot be used, instead of stopping.")
    ] = False,
    alerts: Annotated[
        list[Path] | None,
        typer.Option("--alerts", help="Instead: files of alert rules, played over stored history.", show_default=False),
    ] = None,
    since: Annotated[str, typer.Option("--since", help="With --alerts: 30d ago, or a time.")] = "30d",
    until: Annotated[str, typer.Option("--until", help="With --alerts: 1d ago, or a time; now without it.")] = "",
    baselines_of_now: Annotated[
        bool, typer.Option("--baselines-of-now", help="With --alerts: as if the baselines of now had been there.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="With --alerts: a picture of when they would have fired (PNG, SVG).")
    ] = None,
    machine: Json = False,
) -> None:
    """Run a policy over recorded scores: one rollout, or thousands in one file. Nothing is sent and nothing kept.

    Or alert rules (files of `alerts:`, scorecards) over stored history, minute by minute: when each would have fired,
    how severely, and for how long.

        evalpipe backtest --alerts alerts.yaml --since 30d

    Columns: rollout, seq, at, arm (baseline or canary), unit, criterion, value, weight; perhaps pair, status, epoch,
    segment. latency_ms, cost_usd and safety are rows like others, by criterion. A score's value is from 0 (bad) to 1.
    seq, at (ISO 8601, or seconds since 1970), unit and weight may be absent: then the order of the file counts, time
    decides nothing, every row is a unit of its own and weighs 1.

    Prints one object a rollout: its decision is `rollback` if it ever came to that, else the one that stands at the
    end. Gates on criteria that a rollout has no row of are left out. It ends at `max_duration` only where the policy
    writes it, and there is a shadow phase where rows have a `pair`.

        evalpipe backtest --scores scores.csv
        evalpipe backtest --policy scorecards/support-bot.yaml --scores scores.parquet --json
    """
    if bool(alerts) == (scores is not None):
        raise ConfigError("say what to play: --scores FILE for a rollout's policy, or --alerts FILE for alert rules")
    if alerts:
        backtest_alerts(Wish(alerts, since, until, baselines_of_now, plot, machine))
        return
    assert scores is not None
    written = policy_from(policy)
    report_notices(written)
    found = ScoreFile(scores, {"baseline": "baseline", "canary": "canary",
                               written.policy.baseline: "baseline", written.policy.canary: "canary"})  # fmt: skip
    plan = plan_of(written.policy, rollout_id="backtest", service="backtest", steps=ramp)
    plan = replace(plan if found.timed else untimed(plan), weights="")
    _check(found, plan, skip_bad)
    expires = "max_duration" in written.policy.model_fields_set
    rows: list[dict[str, Any]] = []
    with _progress(len(found), quiet=machine) as advance, _few_collections():
        for place, recorded in enumerate(found):
            row = _object(_rehearsed(recorded, plan, expires), recorded, log=log)
            if machine:
                typer.echo(("[" if place == 0 else ",\n") + _json(row), nl=False)
            else:
                rows.append(_line(row))
            advance(len(recorded))
    if machine:
        typer.echo("]")
    else:
        _tell(rows)
    _notes(found, plan)


def add_to(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(backtest)


def _check(found: ScoreFile, plan: RolloutPlan, skip_bad: bool) -> None:
    """Stop at bad rows, and where no gate reads any of the scores."""
    for bad in found.bad:
        typer.echo(bad, err=True)
    if found.n_bad > len(found.bad):
        typer.echo(f"... and {found.n_bad - len(found.bad):,} more", err=True)
    if found.n_bad and not skip_bad:
        typer.echo(f"{found.n_bad:,} rows cannot be used: correct them, or leave them out with --skip-bad", err=True)
        raise typer.Exit(1)
    if not len(found):
        raise ConfigError("no row is left")
    read = [gate.criterion for gate in plan.gates if gate.kind != "ratio"]
    if not read:
        raise ConfigError("the policy has no gate but the sample ratio: add one on a criterion")
    if not set(read) & set(found.criteria):
        first = next(iter(found.criteria))
        raise ConfigError(
            f"the policy has gates on {', '.join(dict.fromkeys(read))}, and the scores are of "
            f"{', '.join(found.criteria)}: no gate reads them{nearest(first, read, there_are='')}"
        )


def _rehearsed(recorded: Recorded, plan: RolloutPlan, expires: bool) -> Rehearsed | None:
    """What the gates on what this rollout has decide; None where no gate reads any of it."""
    own = replace(
        plan,
        rollout_id=recorded.rollout,
        gates=tuple(
            replace(gate, max_weights=recorded.weights[gate.criterion])
            if gate.max_weights is None and gate.criterion in recorded.weights
            else gate
            for gate in plan.gates
        ),
    )
    part = comparison(own, recorded.criteria, pairs=recorded.pairs, expires=expires)
    return None if part is None else rehearse(part, recorded.evidence, recorded.started_at)


def _object(rehearsed: Rehearsed | None, recorded: Recorded, *, log: bool) -> dict[str, Any]:
    """What is printed of one rollout."""
    if rehearsed is None:
        return {
            "rollout": recorded.rollout, "decision": "hold", "cause": "no_data", **recorded.place(-1), "gate": None,
            "estimate": None, "interval": None, "reason": "no gate reads any of its scores", "phase": "running",
            "scores": len(recorded), "stale": 0, "evidence": {}, **({"decisions": []} if log else {}),
        }  # fmt: skip
    decision, numbers = rehearsed.decision, rehearsed.numbers
    return {
        "rollout": recorded.rollout,
        **_made(decision, recorded),
        "estimate": numbers.get("estimate"),
        "interval": numbers.get("interval"),
        "reason": decision.reason,
        "phase": decision.phase,
        "scores": len(recorded),
        "stale": rehearsed.stale,
        "evidence": decision.evidence["gates"],
        **({"decisions": [_made(entry, recorded) | {"reason": entry.reason} for entry in rehearsed.log]}
           if log else {}),
    }  # fmt: skip


def _made(decision: Decision, recorded: Recorded) -> dict[str, Any]:
    """A decision with ``seq`` and ``at`` of the row that it came with; None before the first."""
    return {
        "decision": decision.action,
        "cause": decision.cause,
        **({"seq": None, "at": None} if decision.evidence_seq < 0 else recorded.place(decision.evidence_seq)),
        "gate": decision.gate or None,
    }


def _json(row: dict[str, Any]) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(finite(row), ensure_ascii=False, allow_nan=False)


def _line(row: dict[str, Any]) -> dict[str, Any]:
    interval = row["interval"] or {}
    low, high = interval.get("low"), interval.get("high")
    return {
        **{name: row[name] for name in ("rollout", "decision", "cause", "seq", "at", "gate", "scores")},
        "estimate": "" if row["estimate"] is None else f"{row['estimate']:+.1%}",
        "interval": "" if low is None or high is None else f"{low:+.1%} to {high:+.1%}",
    }


def _tell(rows: list[dict[str, Any]]) -> None:
    columns = ("rollout", "decision", "seq", "at", "gate", "cause", "estimate", "interval", "scores")
    show(rows, columns, less=("scores", "at", "interval", "cause"))
    counts = Counter(row["decision"] for row in rows)
    told = ", ".join(
        f"{counts[word]:,} {word} ({counts[word] / len(rows):.1%})" for word in ("rollback", "hold", "advance")
    )
    typer.echo(f"{len(rows):,} rollouts: {told}")


def _notes(found: ScoreFile, plan: RolloutPlan) -> None:
    """What was left out, and why."""
    gates = {gate.criterion: None for gate in plan.gates if gate.kind != "ratio"}
    read = {name for gate in plan.gates for name in gate.reads}
    notes = [f"no scores of {name}: its gate is left out" for name in gates if name not in found.criteria]
    notes += [f"{n:,} rows of {name} are read by no gate" for name, n in found.criteria.items() if name not in read]
    notes += [
        f"no scores of {gate.confirm}: no flag of {gate.name} can be confirmed, so flags hold, and their rate decides"
        for gate in plan.gates
        if gate.kind == "safety"
        and gate.confirm
        and gate.criterion in found.criteria
        and gate.confirm not in found.criteria
    ]
    if found.n_bad:
        notes.append(f"{found.n_bad:,} rows that cannot be used are left out")
    if found.repeated:
        notes.append(f"{found.repeated:,} rows that repeat another (rollout, seq, criterion, arm, unit) are left out")
    if found.missing:
        notes.append(f"{found.missing:,} rows without a value count as errors")
    for note in notes:
        typer.echo(f"note: {note}", err=True)


@contextmanager
def _few_collections() -> Iterator[None]:
    """Looking for cycles among a million scores, which have none, would cost a fifth of the time."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def _progress(total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    console = Console(stderr=True)
    if quiet or total < 100_000 or not console.is_terminal:
        yield lambda _: None
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("scores", total=total)
        yield lambda n: progress.advance(task, n)
