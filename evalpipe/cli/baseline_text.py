"""Baselines and calibrations as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import typer

from evalpipe.cli.tables import show
from evalpipe.detectors.outlook import HORIZONS, SHOWN
from evalpipe.pipeline.baseline_view import Calibrated, proposals
from evalpipe.scorecard.values import format_duration
from evalpipe.store.baselines import LEAST, WANTED, Header


def tell_captured(header: Header) -> None:
    """What was captured, and which criteria it is too small for."""
    typer.echo(f"Captured {header.words}, {header.n_profiles:,} records' inputs and outputs.")
    for name, epochs in sorted(header.epochs.items()):
        for epoch, n in epochs.items():
            if n < WANTED:
                what = (
                    f"rules on it are not armed below {LEAST:,}"
                    if n < LEAST
                    else f"below {WANTED:,} its own error widens what counts as no change"
                )
                typer.echo(f"warning: {name} (epoch {epoch[:6]}) has {n:,} scores: {what}", err=True)
    typer.echo(f"What it can show: evalpipe baseline calibrate {header.name}")


def tell_baseline(found: Mapping[str, Any]) -> None:
    """Criteria and meter."""
    typer.echo(f"{found['words']}; captured by {found['actor']}{_reason(found['reason'])}")
    if found["retired_at"]:
        typer.echo(f"Retired by {found['retired_by']}{_reason(found['retired_reason'])}")
    rows = [{**row, "epoch": row["epoch"][:6], "features": len(row["features"])} for row in found["criteria"]]
    columns = ["scorecard", "criterion", "epoch", "features", "n", "mean", "sd", "p10", "p50", "design_effect",
               "n_error"]  # fmt: skip
    show(rows, columns, less=["p50", "features", "n_error", "scorecard"])
    meter = [
        {**row, **{f"{name}_p99": (row[f"{name}_ms"] or {}).get("p99") for name in ("latency", "ttft", "tpot")}}
        for row in found["meter"]
    ]
    if meter:
        columns = ["feature", "calls", "calls_per_minute", "tokens_per_minute", "cost_usd_per_minute", "latency_p99",
                   "ttft_p99", "tpot_p99"]  # fmt: skip
        show(meter, columns, less=["tpot_p99", "ttft_p99", "tokens_per_minute"])


def tell_calibrated(name: str, found: Sequence[Calibrated], every: timedelta) -> None:
    """What each criterion's rule will see, and the rules."""
    show([_row(one) for one in found], _COLUMNS, less=["scorecard", "epoch", "sd", "run_length"])
    typer.echo(
        f"One false alarm in {format_duration(every)} for each rule, at the most. sees in 1h, 1d, 7d: the smallest "
        "drop of the mean that is found by then. finds 5%, 10%, 20%: how long it takes to find such a drop, on average."
    )
    for one in found:
        if one.refused or one.warning:
            typer.echo(
                f"{'refused' if one.refused else 'warning'}: {one.criterion}: {one.refused or one.warning}", err=True
            )
    rules = [text for one in found if (text := proposals(name, one, every))]
    if rules:
        typer.echo("alerts:")
        for line in "".join(rules).splitlines():
            typer.echo(f"  {line}")


_COLUMNS = ("scorecard", "criterion", "epoch", "n", "mean", "sd", "design_effect", "run_length",
            *(f"sees_in_{name}" for name in HORIZONS), *(f"finds_{drop:.0%}" for drop in SHOWN))  # fmt: skip


def _row(one: Calibrated) -> dict[str, Any]:
    row: dict[str, Any] = {
        "scorecard": one.scorecard, "criterion": one.criterion, "epoch": one.epoch[:6], "n": one.n,
        "design_effect": round(one.design_effect, 2),
    }  # fmt: skip
    if one.outlook is None:
        return row
    smallest = {
        f"sees_in_{name}": "-" if drop is None else f"{drop:.1%}" for name, drop in one.outlook.smallest.items()
    }
    finds = {f"finds_{d.drop:.0%}": "-" if d.hours is None else _hours(d.hours) for d in one.outlook.delays}
    return {**row, "mean": one.outlook.mean, "sd": one.outlook.sd, "run_length": f"{one.outlook.run_length:,.0f}",
            **smallest, **finds}  # fmt: skip


def _hours(hours: float) -> str:
    minutes = hours * 60.0
    if minutes < 1.0:
        return "under 1m"
    unit = 1_440 if minutes > 14_400 else 60 if minutes > 1_440 else 1
    return format_duration(timedelta(minutes=max(1, round(minutes / unit)) * unit))


def _reason(text: str) -> str:
    return f": {text}" if text else ""
