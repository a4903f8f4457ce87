"""What the demo shows: read from evalpipe's own store while it works, drawn in the terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from judge import Judge
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from sqlalchemy import func, select

from evalpipe.cli.up import Stack
from evalpipe.rollup import Rollup
from evalpipe.stats.mean_interval import mean_interval
from evalpipe.store import alerting, ledgers, outbox, rollouts, series
from evalpipe.store.queue import Queue
from evalpipe.store.sql import Store, Transaction
from evalpipe.store.tables import grades, records, work

if TYPE_CHECKING:
    from demo import Played

SHOWN = ("grounded", "supported", "cites_policy", "no_refusal", "brief")


@dataclass
class Seen:
    """What evalpipe's store says at one moment.

    Attributes:
        records: stored; ``conversations`` of them are different ones.
        means: by criterion and variant.
        spend: judge calls, tokens and dollars so far.
        owed: judge calls.
        balanced: whether the ledger adds up, what is in flight included.
        at_rest: whether nothing is in flight.
    """

    records: int = 0
    conversations: int = 0
    means: dict[tuple[str, str], Rollup] = field(default_factory=dict)
    spend: tuple[int, int, float] = (0, 0, 0.0)
    owed: int = 0
    balanced: bool = False
    at_rest: bool = False
    lines: list[ledgers.Line] = field(default_factory=list)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    deliveries: list[dict[str, Any]] = field(default_factory=list)


_OPEN: dict[str, Any] = {}


def look(stack: Stack) -> Seen:
    """Read the store as it is now."""
    settings = stack.settings
    store: Store = _OPEN.setdefault("store", Store(settings.database_url))
    queue: Queue = _OPEN.setdefault("queue", Queue(settings.redis_url))
    with store.read() as tx:
        lines = ledgers.read(tx, queue.queued(), datetime.now(UTC))
        return Seen(
            records=tx.connection.scalar(select(func.count()).select_from(records)) or 0,
            conversations=tx.connection.scalar(select(func.count(records.c.session_id.distinct()))) or 0,
            means=_means(tx),
            spend=_spend(tx),
            owed=tx.connection.scalar(select(func.count()).where(work.c.state == "pending")) or 0,
            balanced=bool(lines) and all(line.difference == 0 for line in lines),
            at_rest=not any(line.in_flight for line in lines),
            lines=lines,
            alerts=alerting.list_alerts(tx),
            decisions=rollouts.list_decisions(tx),
            deliveries=outbox.listing(tx),
        )


def live_view(played: Played, judge: Judge, seen: Seen, *, total: int) -> Group:
    """The screen while the traffic runs."""
    asked = sum(played.calls.values())
    traffic = (
        f"conversations {asked} of {total}  (baseline {played.calls['baseline']}, canary {played.calls['canary']})   "
        f"sampled and stored {seen.records} (all: a demo has few)   judge calls owed {seen.owed}"
    )
    calls, tokens, usd = seen.spend
    spend = f"{calls} grades, {tokens:,} tokens, ${usd:.4f}" if judge.name else "none"
    return Group(
        Panel(Text(f"{traffic}\njudge spend  {spend}\n{judge.says}"), title="traffic", title_align="left"),
        Panel(_scores_table(seen), title="scores: mean with 95 % interval", title_align="left"),
        Panel(_events(played, seen), title="alerts, decision, webhook", title_align="left"),
    )


def summary(console: Console, played: Played, judge: Judge, seen: Seen, home: Path) -> int:
    """Say what happened and where to look next; returns the exit code."""
    decision = next((d for d in seen.decisions if d["action"] == "rollback"), None)
    problems = _problems(played, seen, decision)
    console.print()
    console.rule("Summary")
    if decision is not None:
        console.print(f"[bold red]Rolled back.[/bold red] {decision['reason']}", highlight=False)
        if played.first_bad_at is not None and played.rollback_at is not None:
            asked = sum(played.calls_at_rollback.values())
            seconds = (played.rollback_at - played.first_bad_at).total_seconds()
            console.print(
                f"From the canary's first wrong answer to the verified rollback: [bold]{seconds:.1f} s[/bold], after "
                f"{asked} conversations; {played.wrong} customers were told something wrong by the canary.",
                highlight=False,
            )
            late = played.calls["canary"] - played.calls_at_rollback["canary"]
            console.print(f"After the rollback the canary was asked {late} times.", highlight=False)
    else:
        console.print(
            f"[bold green]Nothing was rolled back[/bold green] in {sum(played.calls.values())} conversations."
        )
    console.print(judge.says, highlight=False)
    console.print(_ledger_table(seen))
    for problem in problems:
        console.print(f"[bold red]NOT AS IT SHOULD BE:[/bold red] {problem}", highlight=False)
    _where_next(console, home)
    return 1 if problems else 0


def _problems(played: Played, seen: Seen, decision: dict[str, Any] | None) -> list[str]:
    asked = sum(played.calls.values())
    found = []
    if played.null and decision is not None:
        found.append("two identical releases, and one was rolled back")
    if not played.null and decision is None:
        found.append("the canary was not rolled back")
    if not played.null and played.rollback is None:
        found.append("the consumer received no verified rollback")
    if seen.conversations != seen.records:
        found.append(f"{seen.records} records of {seen.conversations} conversations: something was counted twice")
    if seen.records != asked:
        found.append(f"{asked} conversations were played and {seen.records} records were stored")
    if not seen.balanced:
        found.append("the ledger does not balance")
    return found


def _where_next(console: Console, home: Path) -> None:
    shown = home.relative_to(Path.cwd()) if home.is_relative_to(Path.cwd()) else home
    console.print("\nWhere to look next (the data stays until the next demo):")
    environ = f"EVALPIPE_HOME={shown} EVALPIPE_SCORECARDS={shown}/scorecards"
    for command in ("decisions", "scores --variant canary --criterion supported", "plot supported", "ledger"):
        console.print(f"  {environ} .venv/bin/evalpipe {command}", highlight=False, soft_wrap=True)
    console.print("  .venv/bin/evalpipe up        the same stack, for as long as you want", highlight=False)
    console.print("  README.md, docs/hook.md      the hook in your own application", highlight=False)


def _means(tx: Transaction) -> dict[tuple[str, str], Rollup]:
    means: dict[tuple[str, str], Rollup] = {}
    for _, s, rollup in series.read_rollups(tx):
        means.setdefault((s.criterion, s.variant), Rollup()).merge(rollup)
    return means


def _spend(tx: Transaction) -> tuple[int, int, float]:
    sums = (func.count(), func.sum(grades.c.input_tokens + grades.c.output_tokens), func.sum(grades.c.cost_usd))
    calls, tokens, usd = tx.connection.execute(select(*sums).select_from(grades)).one()
    return calls or 0, int(tokens or 0), float(usd or 0.0)


def _scores_table(seen: Seen) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("criterion", width=14)
    for variant in ("baseline", "canary"):
        table.add_column(variant, width=23, no_wrap=True)
        table.add_column("", width=21, no_wrap=True)
    for criterion in SHOWN:
        cells = []
        for variant in ("baseline", "canary"):
            cells += _mean_cells(seen.means.get((criterion, variant)))
        table.add_row(criterion, *cells)
    return table


def _mean_cells(rollup: Rollup | None) -> list[str]:
    if rollup is None or rollup.mean is None:
        return ["-", f"skipped {rollup.n_skipped}" if rollup is not None and rollup.n_skipped else ""]
    found = mean_interval(rollup.n_scored, rollup.sum_w, rollup.sum_wx, rollup.sum_wx2, rollup.sum_w2)
    assert found is not None
    bar = "█" * round(rollup.mean * 16)
    return [f"{rollup.mean:.3f} [{found.low:.2f}, {found.high:.2f}]", f"{bar:<16}{rollup.n_scored:>4}"]


def _events(played: Played, seen: Seen) -> Text:
    text = Text()
    for alert in seen.alerts:
        if alert["status"] != "inactive":
            style = {"firing": "bold red", "pending": "yellow"}.get(alert["status"], "green")
            text.append(f"{alert['status']:<9}", style=style)
            text.append(f"{alert['severity']}  {alert['rule']} ({alert['variant']}): {alert['summary']}\n")
    for decision in seen.decisions[-2:]:
        style = {"rollback": "bold red", "advance": "bold green"}.get(decision["action"], "yellow")
        text.append(f"decision {decision['seq']}: {decision['action']}", style=style)
        text.append(f"  {decision['reason']}\n")
    if played.rollback is not None:
        data = played.rollback["data"]
        text.append("webhook verified by the consumer", style="bold red")
        text.append(f": {played.rollback['type']} {played.rollback['id']} seq {data['seq']}, {data['canary']} to 0 %\n")
    return text or Text("nothing yet")


def _ledger_table(seen: Seen) -> Table:
    columns = ("observed", "sampled", "scored", "skipped", "error", "dead", "shed", "lost", "in_flight", "difference")
    table = Table(
        title="ledger (records)", title_justify="left", header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    whole = [line for line in seen.lines if not line.scorecard]
    table.add_row(*(str(sum(getattr(line, column) for line in whole)) for column in columns))
    return table
