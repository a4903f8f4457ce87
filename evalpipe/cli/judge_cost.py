"""``evalpipe judge cost``: what judges cost, what a month comes to, and what a change of a scorecard would cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from evalpipe.cli.cost_forecast import Forecast, forecast
from evalpipe.cli.read import Json
from evalpipe.cli.tables import as_json, show
from evalpipe.cli.trouble import opened
from evalpipe.errors import EvalpipeError
from evalpipe.judges.base import judges
from evalpipe.scorecard.load import load_scorecards
from evalpipe.scorers.base import heuristics
from evalpipe.store import judge_costs
from evalpipe.store.judge_costs import Calls, Spend
from evalpipe.wiring import Wiring, now

DAY = timedelta(hours=24)


def cost(
    scorecard: Annotated[
        Path | None, typer.Option(help="A scorecard file, or a folder, as changed: what would it cost?")
    ] = None,
    days: Annotated[float, typer.Option(help="How long a month is.", min=1, max=366)] = 30.0,
    machine: Json = False,
) -> None:
    """What judges cost, what a month comes to, and what a changed scorecard would cost before it is applied.

    The month is the last 24 hours, again and again. With --scorecard the prompts of up to 200 of the day's records are
    rendered by the changed file and by the version in force, and priced; no judge is asked.

    Example: `evalpipe judge cost --scorecard scorecards/support.yaml`
    """
    at = now()
    changed = load_scorecards(scorecard, heuristics=heuristics, judges=judges) if scorecard is not None else []
    with closing(opened()) as wiring:
        with wiring.store.read() as tx:
            calls = judge_costs.read_calls(tx, at - DAY)
            first = judge_costs.first_call_at(tx)
            spends = judge_costs.read_spend(tx, at)
            forecasts = [forecast(tx, wiring, card, at, days) for card in changed]
        caps = _caps(wiring, spends)
    hours = _hours(first, at)
    rows = _by_judge(calls, hours, days)
    if machine:
        found = [_forecast_json(f) for f in forecasts]
        typer.echo(as_json({"hours": hours, "days": days, "judges": rows, "caps": caps, "changes": found}))
        return
    _tell_calls(rows, hours, days)
    _tell_caps(caps)
    for found_forecast in forecasts:
        _tell_forecast(found_forecast)


def add_to(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(cost)


def _hours(first: datetime | None, at: datetime) -> float:
    """How much of the last day is known; at least a minute."""
    return max(1 / 60, min(24.0, (at - first).total_seconds() / 3600)) if first is not None else 0.0


def _by_judge(calls: Sequence[Calls], hours: float, days: float) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str], list[Calls]] = {}
    for found in calls:
        groups.setdefault((found.judge, found.scorecard), []).append(found)
    rows = []
    for (judge, scorecard), some in groups.items():
        failed = {c.outcome: c.n for c in some if c.outcome != "answered"}
        usd, tokens = sum(c.cost_usd for c in some), sum(c.input_tokens for c in some)
        rows.append({
            "judge": judge,
            "scorecard": scorecard,
            "calls": sum(c.n for c in some),
            "failed": failed,
            "input_tokens": tokens,
            "cached_share": sum(c.cached_tokens for c in some) / tokens if tokens else None,
            "output_tokens": sum(c.output_tokens for c in some),
            "usd": usd,
            "wasted_usd": sum(c.cost_usd for c in some if c.outcome != "answered"),
            "usd_month": usd * 24.0 / hours * days if hours else 0.0,
        })  # fmt: skip
    return sorted(rows, key=lambda row: -float(row["usd"]))


def _caps(wiring: Wiring, spends: Mapping[str, Spend]) -> list[dict[str, Any]]:
    caps: dict[str, float] = {}
    with suppress(EvalpipeError):  # without scorecards here, the money that was counted is still worth showing
        caps = wiring.caps
    return [
        {
            "scope": scope,
            "usd_per_day": caps.get(scope),
            "spent_usd": spends[scope].spent_usd if scope in spends else 0.0,
            "reserved_usd": spends[scope].reserved_usd if scope in spends else 0.0,
            "kept_share": spends[scope].keep if scope in spends and scope in caps else 1.0,
        }
        for scope in sorted({*caps, *spends})
    ]


def _tell_calls(rows: Sequence[dict[str, Any]], hours: float, days: float) -> None:
    if not rows:
        typer.echo("No judge was asked in the last 24 hours.")
        return
    shown = [{**row, "failed": _failed(row), "cached": _percent(row["cached_share"]), "usd": _usd(row["usd"]),
              "usd_month": _usd(row["usd_month"])} for row in rows]  # fmt: skip
    columns = ["judge", "scorecard", "calls", "failed", "input_tokens", "cached", "output_tokens", "usd", "usd_month"]
    show(shown, columns, less=["output_tokens", "cached", "input_tokens", "failed"])
    usd, month, wasted = (sum(row[name] for row in rows) for name in ("usd", "usd_month", "wasted_usd"))
    share = f"; {wasted / usd:.1%} of it for answers that were no grade" if wasted else ""
    typer.echo(f"In all {_usd(usd)} USD in the last {_span(hours)}{share}: {_usd(month)} USD in {days:g} days like it.")
    if hours < 23.9:
        typer.echo(f"Only {_span(hours)} are known, and scaled up: other hours may bring more or less.")


def _tell_caps(caps: Sequence[dict[str, Any]]) -> None:
    if not caps:
        return
    typer.echo("\nToday (UTC), in USD:")
    shown = [{**row, "cap": "none" if row["usd_per_day"] is None else _usd(row["usd_per_day"]),
              "spent": _usd(row["spent_usd"]), "reserved": _usd(row["reserved_usd"]),
              "judged": _percent(row["kept_share"])} for row in caps]  # fmt: skip
    show(shown, ["scope", "cap", "spent", "reserved", "judged"], less=["reserved"])
    if any(row["kept_share"] < 1.0 for row in caps):
        typer.echo("judged: share of less urgent work that is judged, so that the money lasts the day.")


def _tell_forecast(found: Forecast) -> None:
    typer.echo(f"\n{found.scorecard} as changed, in USD for {found.days:g} days:")
    for sentence in found.changes:
        typer.echo(f"  {sentence}")
    rows = [
        {"criterion": line.criterion, "change": line.change, "before": _usd(line.before_usd),
         "after": _usd(line.after_usd), "from": _usd(line.low_usd), "to": _usd(line.high_usd)}
        for line in (*found.lines, found.total)
    ]  # fmt: skip
    show(rows, ["criterion", "change", "before", "after", "from", "to"], less=["change"])
    typer.echo(
        f"Reckoned by the prompts of {found.sampled} records; {found.records_per_day:,.0f} a day, by the last "
        f"{_span(found.hours)}. from, to: 95 % for the choice and the number of the records."
    )
    if found.paid_to_reckoned is not None:
        typer.echo(
            f"The version in force cost {found.paid_to_reckoned:.2f} times what this reckoning says (repairs, retries, "
            "thinning, equal questions): all numbers above are multiplied by that."
        )
    for note in found.assumed:
        typer.echo(f"Assumed: {note}.")
    if found.cap_usd is not None and found.total.after_usd is not None and found.total.after_usd > found.cap_usd:
        typer.echo(f"Its cap allows {_usd(found.cap_usd)} USD of it: the rest would be thinned out.")


def _forecast_json(found: Forecast) -> dict[str, Any]:
    return {**asdict(found), "lines": [asdict(line) for line in found.lines], "total": asdict(found.total)}


def _failed(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{n} {outcome}" for outcome, n in row["failed"].items())


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}" if share >= 0.1 or not share else f"{share:.1%}"


def _usd(usd: float | None) -> str:
    """Dollars with as many digits as tell something."""
    if usd is None:
        return ""
    return f"{usd:,.2f}" if abs(usd) >= 1 or not usd else f"{usd:.3g}"


def _span(hours: float) -> str:
    return f"{hours:.3g} hours" if hours >= 1 else f"{hours * 60:.0f} minutes"
