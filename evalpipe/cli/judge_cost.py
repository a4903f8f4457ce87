"""``evalpipe judge cost``: what judges cost, what a month comes to, and what a change of a scorecard would cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from datetime import datetime, timedelta
from math import floor, log10
from pathlib import Path
from typing import Annotated, Any, Self

import typer

from evalpipe.cli.cost_forecast import ENOUGH, Forecast, forecast
from evalpipe.cli.read import Json
from evalpipe.cli.tables import as_json, cell, show
from evalpipe.cli.trouble import opened
from evalpipe.errors import ConfigError, EvalpipeError
from evalpipe.judges.base import judges
from evalpipe.scorecard.load import load_scorecards
from evalpipe.scorecard.model import Scorecard
from evalpipe.scorers.base import heuristics
from evalpipe.store import judge_costs
from evalpipe.store.judge_costs import Calls, LeftOut, Spend
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

    The month is the last 24 hours, again and again; there is none before an hour is known. With --scorecard the prompts
    of up to 200 of the day's records are rendered by the changed file and by the version in force, and priced; no judge
    is asked.

    Example: `evalpipe judge cost --scorecard scorecards/support.yaml`
    """
    at = now()
    with closing(opened()) as wiring:
        changed = _changed(wiring, scorecard) if scorecard is not None else []
        with wiring.store.read() as tx:
            calls = judge_costs.read_calls(tx, at - DAY)
            first = judge_costs.first_call_at(tx)
            spends = judge_costs.read_spend(tx, at)
            left_out = judge_costs.read_left_out(tx, at)
            forecasts = [forecast(tx, wiring, card, at, days) for card in changed]
        caps = _caps(wiring, spends)
    hours = _hours(first, at)
    month_from = first + ENOUGH if first is not None and at - first < ENOUGH else None
    rows = _by_judge(calls, hours, days if month_from is None else None)
    if machine:
        typer.echo(as_json({
            "hours": hours, "days": days, "no_month": _no_month(hours, month_from), "month_from_at": month_from,
            "judges": rows, "caps": caps, "left_out": [asdict(found) for found in left_out],
            "changes": [asdict(found) for found in forecasts],
        }))  # fmt: skip
        return
    _tell_calls(rows, hours, days, month_from)
    _tell_caps(caps)
    _tell_left_out(left_out)
    for found in forecasts:
        _tell_forecast(found)


def add_to(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(cost)


def _changed(wiring: Wiring, file: Path) -> list[Scorecard]:
    """The scorecards of a file or folder; who names a scorecard instead is told its file."""
    if file.exists():
        return load_scorecards(file, heuristics=heuristics, judges=judges)
    try:
        cards = load_scorecards(wiring.settings.scorecards, heuristics=heuristics, judges=judges)
    except EvalpipeError:
        cards = []
    where = wiring.settings.scorecards
    named = [str(card.path) for card in cards if card.name == str(file)]
    if named:
        advice = f"the scorecard of that name is {' and '.join(named)}: name a changed copy of it"
    elif cards:
        advice = f"{where} (EVALPIPE_SCORECARDS) has {', '.join(str(card.path) for card in cards)}"
    else:
        advice = f"{where} (EVALPIPE_SCORECARDS) has no scorecard that can be read"
    raise ConfigError(f"--scorecard wants a file or a folder, and there is no {str(file)!r}; {advice}")


def _hours(first: datetime | None, at: datetime) -> float:
    """How much of the last day is known; at least a minute."""
    return max(1 / 60, min(24.0, (at - first).total_seconds() / 3600)) if first is not None else 0.0


def _by_judge(calls: Sequence[Calls], hours: float, days: float | None) -> list[dict[str, Any]]:
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
            "usd_month": None if days is None or not hours else usd * 24.0 / hours * days,
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


def _tell_calls(rows: Sequence[dict[str, Any]], hours: float, days: float, month_from: datetime | None) -> None:
    if not rows:
        typer.echo("No judge was asked in the last 24 hours.")
        return
    shown = [{**row, "failed": _failed(row), "cached": _share(row["cached_share"])} for row in rows]
    _as_usd(shown, "usd")
    _as_usd(shown, "usd_month")
    columns = ["judge", "scorecard", "calls", "failed", "input_tokens", "cached", "output_tokens", "usd", "usd_month"]
    show(shown, columns if month_from is None else columns[:-1],
         less=["output_tokens", "cached", "input_tokens", "failed"])  # fmt: skip
    usd, wasted = (sum(row[name] for row in rows) for name in ("usd", "wasted_usd"))
    share = f"; {wasted / usd:.1%} of it for answers that were no grade" if wasted else ""
    told = f"In all {_usd(usd)} USD in the last {_span(hours)}{share}"
    if month_from is not None:
        typer.echo(f"{told}. {_no_month(hours, month_from)}.")
        return
    typer.echo(f"{told}: {_usd(sum(row['usd_month'] for row in rows))} USD in {days:g} days like it.")
    if hours < 23.9:
        typer.echo(f"Scaled up from {_span(hours)} of data: other hours may bring more or less.")


def _no_month(hours: float, month_from: datetime | None) -> str | None:
    """Why there is no figure for a month; None if there is."""
    if month_from is None:
        return None
    return f"What a month comes to is told from {cell(month_from)} UTC on: {_span(hours)} of data are not enough"


def _tell_caps(caps: Sequence[dict[str, Any]]) -> None:
    if not caps:
        return
    typer.echo("\nToday (UTC), in USD:")
    shown = [{**row, "cap": row["usd_per_day"], "spent": row["spent_usd"], "reserved": row["reserved_usd"],
              "judged": _share(row["kept_share"])} for row in caps]  # fmt: skip
    for name in ("cap", "spent", "reserved"):
        _as_usd(shown, name)
    show(shown, ["scope", "cap", "spent", "reserved", "judged"], less=["reserved"])
    if any(row["usd_per_day"] is None for row in caps):
        typer.echo("Without a cap, money is only counted.")
    if any(row["kept_share"] < 1.0 for row in caps):
        typer.echo("judged: share of less urgent work that is judged, so that the money lasts the day.")


def _tell_left_out(left_out: Sequence[LeftOut]) -> None:
    if not left_out:
        return
    typer.echo("\nNot judged today (UTC), to save money; records whose other criteria were scored count as scored:")
    show([asdict(found) for found in left_out], ["scorecard", "criterion", "thinned", "shed"])
    typer.echo("thinned: by chance, and those that were judged weigh more; shed: no money was left for them.")


def _tell_forecast(found: Forecast) -> None:
    span = f"the last {_span(found.hours)}" if found.days is None else f"{found.days:g} days"
    typer.echo(f"\n{found.scorecard} as changed, in USD for {span}:")
    for sentence in found.changes:
        typer.echo(f"  {sentence}")
    rows = [
        {"criterion": line.criterion, "change": line.change, "before": line.before_usd, "after": line.after_usd,
         "from": line.low_usd, "to": line.high_usd}
        for line in (*found.lines, found.total)
    ]  # fmt: skip
    for name in ("before", "after", "from", "to"):
        _as_usd(rows, name)
    show(rows, ["criterion", "change", "before", "after", "from", "to"], less=["change"])
    if found.days_from_at is not None:
        typer.echo(f"{_no_month(found.hours, found.days_from_at)}.")
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


def _failed(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{n} {outcome}" for outcome, n in row["failed"].items())


class _Figure(float):
    """A number that is shown as it is told to be, whatever others a table has."""

    spec: str

    def __new__(cls, value: float, spec: str) -> Self:
        """The number, and how it is written."""
        made = super().__new__(cls, value)
        made.spec = spec
        return made

    def __format__(self, spec: str, /) -> str:
        """As was told."""
        return super().__format__(self.spec)


def _share(share: float | None) -> _Figure | None:
    return None if share is None else _Figure(share, ".0%" if share >= 0.1 or not share else ".1%")


def _as_usd(rows: Sequence[dict[str, Any]], name: str) -> None:
    """Write a column of dollars in one precision: two digits, or as many as the smallest sum needs, up to six."""
    least = min((abs(row[name]) for row in rows if row[name]), default=1.0)
    digits = min(6, max(2, 1 - floor(log10(least))))
    for row in rows:
        row[name] = None if row[name] is None else _Figure(row[name], f",.{digits}f")


def _usd(usd: float) -> str:
    """Dollars with as many digits as tell something."""
    return f"{usd:,.2f}" if abs(usd) >= 1 or not usd else f"{usd:.3g}"


def _span(hours: float) -> str:
    n, unit = (f"{hours:.3g}", "hour") if hours >= 1 else (f"{hours * 60:.0f}", "minute")
    return f"{n} {unit}{'' if n == '1' else 's'}"
