"""What the demo shows: the traffic as the customers saw it, and what evalpipe's store says of it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from sqlalchemy import func, select

from evalpipe.cli.up import Stack
from evalpipe.store import ledgers
from evalpipe.store.metered import Metered, read_meters, read_processes
from evalpipe.store.queue import Queue
from evalpipe.store.sql import Store
from evalpipe.store.tables import feedback, records

if TYPE_CHECKING:
    from demo import Played

BARS = " ▁▂▃▄▅▆▇█"
TERMS = ("observed", "not_sampled", "sampled", "scored", "skipped", "abstained", "error", "dead", "shed", "lost",
         "in_flight", "difference")  # fmt: skip
ALWAYS = frozenset({"observed", "not_sampled", "sampled", "scored", "shed", "lost", "difference"})


@dataclass
class Seen:
    """What evalpipe's store says at one moment.

    Attributes:
        meters: of 100 % of the calls, by variant.
        ledger: its terms, all hours together.
        balanced: whether every line of the ledger adds up.
        processes: states of the application's processes.
        feedback: how often users said something; ``joined`` of them about a record that is there.
    """

    meters: dict[str, Metered] = field(default_factory=dict)
    ledger: dict[str, int] = field(default_factory=dict)
    balanced: bool = False
    processes: list[str] = field(default_factory=list)
    feedback: int = 0
    joined: int = 0

    def calls(self) -> int:
        """Model calls that were made for customers."""
        return sum(int(m.sums["calls"]) for variant, m in self.meters.items() if variant != "shadow")

    def blocked(self) -> int:
        """Model calls of customers that a kill switch stopped."""
        return sum(m.blocked["kill_switch"] for variant, m in self.meters.items() if variant != "shadow")


_OPEN: dict[str, Any] = {}


def look(stack: Stack) -> Seen:
    """Read the store as it is now."""
    store: Store = _OPEN.setdefault("store", Store(stack.settings.database_url))
    queue: Queue = _OPEN.setdefault("queue", Queue(stack.settings.redis_url))
    now = datetime.now(UTC)
    hour_ago = now - timedelta(hours=1)
    said = select(func.count()).select_from(feedback)
    with store.read() as tx:
        lines = ledgers.read(tx, queue.queued(), now, lag=timedelta(seconds=10))
        meters: dict[str, Metered] = {}
        for metered in read_meters(tx, since=hour_ago, service="chat"):
            meters.setdefault(metered.key["variant"], metered)
        return Seen(
            meters=meters,
            ledger={term: sum(getattr(line, term) for line in lines if not line.scorecard) for term in TERMS},
            balanced=bool(lines) and all(line.difference == 0 for line in lines),
            processes=[row["state"] for row in read_processes(tx, since=hour_ago, now=now, service="chat")],
            feedback=tx.connection.scalar(said) or 0,
            joined=tx.connection.scalar(said.where(feedback.c.trace_id.in_(select(records.c.trace_id)))) or 0,
        )


def live_view(played: Played, seen: Seen) -> Group:
    """The screen while the traffic runs."""
    return Group(
        Panel(_traffic(played), title="what customers got, second by second", title_align="left"),
        Panel(meter_table(seen), title="the meter: 100 % of the calls", title_align="left"),
        Panel(Text("\n".join(played.said) or "nothing yet"), title="control", title_align="left"),
    )


def meter_table(seen: Seen) -> Table:
    """Calls, latencies, refusals and cost, by variant; 80 columns are enough for it."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True)
    table.add_column("variant", no_wrap=True)
    names = ("calls", "blocked", "refused", "TTFT p50 ms", "p99 ms", "TPOT p50 ms", "latency p50 ms", "p99 ms")
    for name in (*names, "tokens", "cost"):
        table.add_column(name, justify="right", min_width=max(map(len, name.split())))
    for variant, metered in sorted(seen.meters.items()):
        row = metered.as_dict()
        ttft, tpot, latency = (row[f"{name}_ms"] or {} for name in ("ttft", "tpot", "latency"))
        refused = row["refusal_rate"]
        cells = (
            str(row["calls"]),
            str(sum(row["blocked"].values())),
            "-" if refused is None else f"{refused:.1%}",
            *(_ms(found) for found in (ttft.get("p50"), ttft.get("p99"), tpot.get("p50"), latency.get("p50"))),
            _ms(latency.get("p99")),
            f"{row['input_tokens'] + row['output_tokens']:,}",
            f"${row['cost_usd']:.4f}",
        )
        table.add_row(variant, *cells)
        for column, cell in zip(table.columns[1:], cells, strict=True):
            column.min_width = column.width = max(column.width or 0, column.min_width or 0, len(cell))
    return table


def ledger_table(seen: Seen) -> Table:
    """The ledger of all records; outcomes that none had are left out."""
    table = Table(title="ledger", title_justify="left", header_style="bold", box=None, padding=(0, 1, 0, 0))
    shown = [term for term in TERMS if seen.ledger.get(term) or term in ALWAYS]
    for term in shown:
        words = term.replace("difference", "diff").split("_")
        table.add_column(" ".join(words), justify="right", min_width=max(map(len, words)))
    table.add_row(*(str(seen.ledger.get(term, 0)) for term in shown))
    return table


def reason_of(body: str) -> tuple[str, str]:
    """Reason and incident link that a refusal names; empty where it is no clean one."""
    try:
        told = json.loads(body)
        return str(told["reason"]), str(told["incident"])
    except (ValueError, KeyError, TypeError):
        return "", ""


def _traffic(played: Played) -> Text:
    text = Text()
    if played.load is None:
        return text
    asked = list(played.load.asked)
    seconds = int(time.monotonic() - played.started) + 1
    most = played.load.per_second * 1.25
    for name, style, wanted in (("answered", "green", 200), ("stopped ", "red", 503)):
        text.append(f"{name}  ")
        counts = [0] * seconds
        for one in asked:
            if one.status == wanted:
                counts[min(seconds - 1, int(one.at - played.started))] += 1
        text.append("".join(BARS[min(8, round(8 * n / most))] for n in counts), style=style)
        text.append(f"  {sum(counts)}\n")
    text.append(f"failed    {sum(one.status not in {200, 503} for one in asked)}")
    return text


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
