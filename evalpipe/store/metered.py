"""What the meters say: 100 % of the calls, by release and feature, whichever process made them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select

from evalpipe.sketch import Sketch
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import meters, processes, releases

QUANTILES = (0.5, 0.9, 0.99)
SILENT = timedelta(seconds=60)
"""A process with traffic sends every few seconds; one that said no goodbye and is silent for so long is ``silent``."""
SUMS = ("calls", "errors", "sampled", "not_sampled", "shed", "input_tokens", "output_tokens", "cached_tokens",
        "cost_usd", "unpriced", "screened", "refusals")  # fmt: skip
SKETCHES = ("latency", "ttft", "tpot")
KEYS = ("service", "environment", "variant", "release_id", "feature")


@dataclass(slots=True)
class Metered:
    """The counts of one release and feature over a period; merging is adding.

    Attributes:
        key: service, environment, variant, release id and feature.
        sums: ``SUMS`` by name.
        blocked, finish_reasons: counts by reason.
        sketches: ``SKETCHES`` by name, in ms; ``tpot`` is the time of each output token after the first.
    """

    key: Mapping[str, str]
    sums: Counter[str] = field(default_factory=Counter)
    blocked: Counter[str] = field(default_factory=Counter)
    finish_reasons: Counter[str] = field(default_factory=Counter)
    sketches: Mapping[str, Sketch] = field(default_factory=lambda: {name: Sketch() for name in SKETCHES})

    def add(self, row: Any) -> None:
        """Add one process's counters of one hour."""
        self.sums.update({name: getattr(row, name) for name in SUMS})
        self.blocked.update(row.blocked)
        self.finish_reasons.update(row.finish_reasons)
        for name, sketch in self.sketches.items():
            if wire := getattr(row, name):
                sketch.merge(Sketch.from_wire(wire))

    def as_dict(self) -> dict[str, Any]:
        """Counts, rates and quantiles; a rate of nothing is None."""
        calls, screened = self.sums["calls"], self.sums["screened"]
        return {
            **self.key,
            **{name: self.sums[name] for name in SUMS},
            "error_rate": self.sums["errors"] / calls if calls else None,
            "refusal_rate": self.sums["refusals"] / screened if screened else None,
            "blocked": dict(self.blocked),
            "finish_reasons": dict(self.finish_reasons.most_common()),
            **{
                f"{name}_ms": {f"p{q * 100:g}": sketch.quantile(q) for q in QUANTILES} if sketch.count else None
                for name, sketch in self.sketches.items()
            },
        }


def read_meters(tx: Transaction, *, since: datetime, **where: str) -> list[Metered]:
    """The meters from the hour of ``since`` on, by release and feature, the busiest first.

    Args:
        tx: a transaction.
        since: whole hours: the meters are kept by the hour.
        where: service, environment, variant, release_id or feature.

    Raises:
        RecordError: a sketch in the store is damaged.
    """
    columns = {**{name: releases.c[name] for name in ("environment", "variant")}, **{c.name: c for c in meters.c}}
    query = (
        select(meters, releases.c.environment, releases.c.variant)
        .join(releases, releases.c.release_id == meters.c.release_id)
        .where(meters.c.hour_at >= since.replace(minute=0, second=0, microsecond=0))
    )
    for name, value in where.items():
        query = query.where(columns[name] == value)
    found: dict[tuple[str, ...], Metered] = {}
    for row in tx.connection.execute(query):
        key = {name: getattr(row, name) for name in KEYS}
        found.setdefault(tuple(key.values()), Metered(key)).add(row)
    return sorted(found.values(), key=lambda metered: (-metered.sums["calls"], tuple(metered.key.values())))


def read_processes(tx: Transaction, *, since: datetime, now: datetime, service: str = "") -> list[dict[str, Any]]:
    """The processes heard of since then, newest first, each with its ``state`` and how many messages were ``missing``.

    A missing message loses nothing by itself, because counters are cumulative. A ``silent`` process ended without
    a goodbye, so what it counted after its last message is lost: at most one interval.
    """
    query = select(processes).where(processes.c.sent_at >= since).order_by(processes.c.sent_at.desc())
    if service:
        query = query.where(processes.c.service == service)
    rows = []
    for row in tx.connection.execute(query).mappings():
        quiet = "silent" if now - row["sent_at"] > SILENT else "running"
        state = "ended" if row["ended_at"] else quiet
        rows.append({**row, "state": state, "missing": max(0, row["sequence"] - row["messages"])})
    return rows
