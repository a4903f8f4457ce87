"""``evalpipe rollout plan``: how long a rollout will take, what it will see and cost, before it is started."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from math import isfinite, sqrt
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from evalpipe.cli.policy_option import PolicyOption, policy_from, report_notices
from evalpipe.cli.read import Json
from evalpipe.cli.tables import as_json, finite, show
from evalpipe.cli.trouble import opened
from evalpipe.errors import ConfigError
from evalpipe.rollout.from_policy import plan_of
from evalpipe.rollout.outlook import MINUTES_A_DAY, SLOW, Baseline, Outlook, Traffic, outlook
from evalpipe.rollout.plan import RolloutPlan
from evalpipe.scorecard.load import load_scorecard
from evalpipe.scorecard.values import format_duration
from evalpipe.scorers.base import heuristics
from evalpipe.store import judge_costs, metered, series
from evalpipe.wiring import now

ASSUMED: Final = {"quality": (0.85, 0.237), "rate": (0.95, 0.218), "cost": (1.0, 0.95), "latency": (1.0, 0.8)}
"""Mean and sd where nobody knows better: a rubric of five steps, a share of 95 %, log-normals with sigma 0.8."""
LONGEST: Final = 100 * 365 * MINUTES_A_DAY
"""What takes more minutes than this is said to take for ever."""
_GIVEN: Final = re.compile(r"(?P<name>[^=]+)=(?P<mean>[0-9.]+)/(?P<sd>[0-9.]+)")


@dataclass(slots=True)
class _Known:
    """What is known of the baseline, from options and from the store."""

    baselines: dict[str, Baseline] = field(default_factory=dict)
    per_minute: float | None = None
    usd_per_call: float | None = None


def plan_rollout(
    policy: PolicyOption = None,
    per_minute: Annotated[float | None, typer.Option(min=0.001, help="Queries of users a minute, both arms.")] = None,
    calls_per_day: Annotated[float | None, typer.Option(min=1, help="Judge calls a day that you can have.")] = None,
    usd_per_day: Annotated[float | None, typer.Option(min=0.0001, help="US dollars a day for judges.")] = None,
    usd_per_call: Annotated[float | None, typer.Option(min=0.0, help="What one judge call costs.")] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(help="criterion=mean/sd of one score, `quality=0.85/0.24`; of latency_ms sd is that of ln(ms)."),
    ] = None,
    service: Annotated[
        str, typer.Option(help="Take what is not given from the last days of this service in the store.")
    ] = "",
    days: Annotated[int, typer.Option(min=1, max=30, help="With --service: how many days.")] = 7,
    machine: Json = False,
) -> None:
    """Tell how long a rollout will take, the smallest harm it will see, and what its judges cost. Nothing is started.

    Times are medians; one rollout in ten takes about twice as long. What is neither given nor in the store is assumed,
    and the output says so.

        evalpipe rollout plan --per-minute 600
        evalpipe rollout plan --policy scorecards/support-bot.yaml --service support-desk --usd-per-day 20
        evalpipe rollout plan --per-minute 40 --calls-per-day 5000 --baseline quality=0.9/0.3
    """
    written = policy_from(policy)
    report_notices(written)
    plan = plan_of(written.policy, rollout_id="plan", service=service or "plan")
    known = _stored(service, days, written.policy.baseline) if service else _Known()
    known.baselines |= _given(baseline or [])
    judged, calls = _judged(policy, plan)
    traffic = _traffic(known, per_minute, calls_per_day, usd_per_day, usd_per_call, max(1, calls))
    assumed = _assume(plan, known, judged)
    found = outlook(plan, traffic, known.baselines)
    if machine:
        typer.echo(as_json(finite({
            "minutes": found.minutes, "slow_minutes": found.minutes * SLOW, "judge_calls": found.calls,
            "queries": sum(phase.queries for phase in found.phases),
            "usd": None if traffic.usd_per_call is None else found.calls * traffic.usd_per_call,
            **asdict(found), "traffic": asdict(traffic),
            "baselines": {name: asdict(of) for name, of in known.baselines.items()}, "assumed": assumed,
        })))  # fmt: skip
        return
    _tell(found, traffic, assumed)


def add_to(app: typer.Typer) -> None:
    """Add this module's command to those of ``evalpipe rollout``."""
    app.command(name="plan")(plan_rollout)


def _given(baselines: Iterable[str]) -> dict[str, Baseline]:
    found = {}
    for text in baselines:
        match = _GIVEN.fullmatch(text)
        if match is None or not float(match["mean"]) or not float(match["sd"]):
            raise ConfigError(
                f"--baseline is {text!r}; write criterion=mean/sd, both above 0, such as quality=0.85/0.24"
            )
        found[match["name"]] = Baseline(float(match["mean"]), float(match["sd"]))
    return found


def _judged(policy: Path | None, plan: RolloutPlan) -> tuple[set[str], int]:
    """The criteria that a judge grades, and the calls that takes for one record."""
    if policy is not None and "criteria:" in policy.read_text(encoding="utf-8", errors="replace"):
        card = load_scorecard(policy, heuristics)
        judges = {c.name: c.judge for c in card.criteria if c.judge is not None and not c.judge.confirms}
        calls = {judge.together or name: len(judge.ladder[0]) * judge.votes for name, judge in judges.items()}
        return set(judges), sum(calls.values())
    names = {gate.criterion for gate in plan.gates if gate.kind in ("quality", "safety")}
    return names, len(names)


def _traffic(
    known: _Known,
    per_minute: float | None,
    calls_per_day: float | None,
    usd_per_day: float | None,
    usd_per_call: float | None,
    calls: int,
) -> Traffic:
    per_minute = per_minute or known.per_minute
    if per_minute is None:
        raise ConfigError("how much traffic there is must be known: give --per-minute, or --service to read it")
    price = usd_per_call if usd_per_call is not None else known.usd_per_call
    if usd_per_day is not None:
        if not price:
            raise ConfigError("--usd-per-day needs the price of a call: give --usd-per-call, or --service to read it")
        calls_per_day = min(calls_per_day or float("inf"), usd_per_day / price)
    records = None if calls_per_day is None else calls_per_day / calls / MINUTES_A_DAY
    return Traffic(per_minute, records, calls, price)


def _stored(service: str, days: int, variant: str) -> _Known:
    """What the store has of a service."""
    known, since = _Known(), now() - timedelta(days=days)
    with closing(opened()) as wiring, wiring.store.read() as tx:
        for _, of, sums in series.read_sums(tx, since, None, service=service, variant=variant):
            if sums.n_scored >= 100 and sums.sum_w > 0.0:
                mean = sums.sum_wx / sums.sum_w
                variance = sums.sum_wx2 / sums.sum_w - mean * mean
                if mean > 0.0 and variance > 0.0:
                    known.baselines[of.criterion] = Baseline(mean, sqrt(variance))
        meters = metered.read_meters(tx, since=now() - timedelta(days=1), service=service)
        calls = judge_costs.read_calls(tx, since)
    if not known.baselines and not meters:
        raise ConfigError(f"the store has no scores and no calls of {service!r}; 'evalpipe meter' lists the services")
    n = sum(meter.sums["calls"] for meter in meters)
    known.per_minute = n / MINUTES_A_DAY if n else None
    _latency(known, meters)
    asked = sum(found.n for found in calls)
    known.usd_per_call = sum(found.cost_usd for found in calls) / asked if asked else None
    return known


def _latency(known: _Known, meters: Iterable[metered.Metered]) -> None:
    """The spread of the busiest release's latency: of a log-normal, ln(p99 / p50) is 2.326 sigma."""
    from math import log

    for meter in meters:
        p50, p99 = (meter.sketches["latency"].quantile(q) for q in (0.5, 0.99))
        if p50 and p99 and p99 > p50:
            known.baselines["latency_ms"] = Baseline(1.0, log(p99 / p50) / 2.326)
            return


def _assume(plan: RolloutPlan, known: _Known, judged: set[str]) -> list[str]:
    """Fill in what nobody knows, and say what judges do not grade."""
    assumed = []
    for gate in plan.gates:
        if gate.kind in ASSUMED and gate.criterion not in known.baselines:
            mean, sd = ASSUMED[gate.kind]
            known.baselines[gate.criterion] = Baseline(mean, sd)
            what = f"sd {sd:g} of ln(ms)" if gate.kind == "latency" else f"mean {mean:g}, sd {sd:g}"
            assumed.append(f"{gate.criterion}: {what}")
    for name, of in known.baselines.items():
        known.baselines[name] = Baseline(of.mean, of.sd, name in judged)
    return assumed


def _tell(found: Outlook, traffic: Traffic, assumed: list[str]) -> None:
    rows = [
        {
            "step": phase.name,
            "lasts": _span(phase.minutes),
            "waits_for": phase.because,
            "queries": _count(phase.queries),
            "canary_graded": _count(phase.canary),
            "judge_calls": _count(phase.calls),
        }
        for phase in found.phases
    ]
    show(rows, ("step", "lasts", "waits_for", "queries", "canary_graded", "judge_calls"), less=("queries",))
    gates = [
        {
            "gate": gate.gate,
            "margin": f"{gate.margin:.1%}",
            "smallest_seen": f"{gate.smallest:.1%}",
            "proven_safe_after": "never" if gate.proof_minutes is None else _span(gate.proof_minutes),
            **{
                f"harm_x{times}_found_after": _span(after) if (after := _at(gate.harm_minutes, place)) else "-"
                for place, times in enumerate((1, 2, 4))
            },
        }
        for gate in found.gates
    ]
    names = ("gate", "margin", "smallest_seen", "proven_safe_after", "harm_x1_found_after", "harm_x2_found_after",
             "harm_x4_found_after")  # fmt: skip
    show(gates, names, less=("proven_safe_after", "harm_x1_found_after"))
    cost = "" if traffic.usd_per_call is None else f", {found.calls * traffic.usd_per_call:,.2f} USD"
    typer.echo(
        f"In all {_span(found.minutes)} (one in ten {_span(found.minutes * SLOW)} or more), {_count(found.calls)} "
        f"judge calls{cost}, at {traffic.per_minute:g} queries a minute."
    )
    typer.echo("harm x1: of the margin, x2: of twice the margin; -: not before the last step ends.")
    for note in assumed:
        typer.echo(f"Assumed: {note} (--baseline, or --service to read it).")
    for warning in found.warnings:
        typer.echo(f"warning: {warning}", err=True)


def _at(harm: Any, place: int) -> float | None:
    values = list(harm.values())
    return values[place] if place < len(values) else None


def _span(minutes: float) -> str:
    if minutes > LONGEST:
        return "for ever"
    if minutes < 1.0:
        return "under 1m"
    unit = 1_440 if minutes > 14_400 else 60 if minutes > 600 else 1
    return format_duration(timedelta(minutes=round(minutes / unit) * unit))


def _count(n: float) -> str:
    return f"{n:,.0f}" if isfinite(n) else "no end"
