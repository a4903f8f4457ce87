"""What idempotent score inserts cost against a plain COPY, on PostgreSQL with default durability.

    python bench/inserts.py [--json] [--quick]

Each batch is a transaction of its own, with its commit. Plain is psycopg's COPY of finished rows into a table with the
columns, the primary key and the index of `scores`. Ours is `Transaction.insert_new(scores, rows)`, of finished rows,
and `series.add_scores(tx, entries)`, which also makes the rows and keeps the minute rollups: of eight series, as the
shipped support bot has, in one minute. The ways take turns. Each batch of ours is then sent again: the replay must
change no row and no rollup.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from machine import Figure, main, servers
from sqlalchemy import func, select
from sqlalchemy.schema import CreateIndex, CreateTable

from evalpipe.score import scored
from evalpipe.store import migrate, series
from evalpipe.store.series import Entry, Series
from evalpipe.store.sql import Store, Transaction
from evalpipe.store.tables import rollups, scores

TARGETS = {500: 0.4, 5_000: 0.6}
AT = datetime(2026, 6, 1, 12, 30, tzinfo=UTC)
SERIES = [
    Series("support-desk", "chat", "production", "baseline", "0123456789abcdef", "support-bot", f"criterion-{i}", "e1")
    for i in range(8)
]
Batch = Sequence[Any]
"""Rows of the table, or the entries of which `add_scores` makes them."""


def measure(quick: bool) -> list[Figure]:
    rounds, per_round = (2, 5_000) if quick else (9, 20_000)
    figures: list[Figure] = []
    with servers() as (_, _, postgres):
        store = Store(postgres.url())
        migrate.upgrade(store)
        make_plain_table(store)
        for size, target in TARGETS.items():
            figures += compare(store, size, target, rounds, per_round)
        store.close()
    return figures


def compare(store: Store, size: int, target: float, rounds: int, per_round: int) -> list[Figure]:
    """Rows a second by each way in turn, and the ratios within a round."""
    ways: dict[str, Callable[[Transaction, Batch], Any]] = {
        "COPY": copy,
        "insert_new": lambda tx, rows: tx.insert_new(scores, rows),
        "add_scores": lambda tx, found: series.add_scores(tx, found, AT),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    replays: list[float] = []
    for turn in range(rounds + 1):
        for name, way in ways.items():
            batches: list[Batch] = [entries(f"{size}-{turn}-{name}-{i}", size) for i in range(per_round // size)]
            if name != "add_scores":
                batches = [[series._row(e, AT) for e in batch] for batch in batches]  # noqa: SLF001
            before = count(store)
            rate = play(store, way, batches)
            after = count(store)
            assert after[name == "COPY"] - before[name == "COPY"] == per_round
            if name != "COPY":
                again = play(store, way, batches)
                assert count(store) == after, f"a replay through {name} changed something"
            if turn:  # the first warms up
                rates[name].append(rate)
                if name == "insert_new":
                    replays.append(again)
    label = f"{size:,} rows"
    figures = [Figure(f"{name}, {label}", values, "rows/s") for name, values in rates.items()]
    figures.append(Figure(f"insert_new, {label}, replayed", replays, "rows/s"))
    for name in ("insert_new", "add_scores"):
        both = zip(rates[name], rates["COPY"], strict=True)
        figures.append(Figure(f"{name} / COPY, {label}", [a / b for a, b in both], "x", target))
    return figures


def play(store: Store, way: Callable[[Transaction, Batch], Any], batches: Sequence[Batch]) -> float:
    """Rows a second."""
    started = time.perf_counter()
    for batch in batches:
        with store.begin() as tx:
            way(tx, batch)
    return sum(map(len, batches)) / (time.perf_counter() - started)


def entries(prefix: str, n: int) -> list[Entry]:
    """Scores of records that have one for each of the eight criteria."""
    numbers = itertools.islice(itertools.product(range(n), enumerate(SERIES)), n)
    return [
        Entry(f"{prefix}-{i:016x}", "abcdef012345", s, AT, scored((i % 50) / 50, "ok"), 20.0, f"heuristic:h{k}@1")
        for i, (k, s) in numbers
    ]


def copy(tx: Transaction, rows: Sequence[dict[str, Any]]) -> None:
    driver: Any = tx.connection.connection.driver_connection
    names = ", ".join(rows[0])
    with driver.cursor() as cursor, cursor.copy(f"COPY plain ({names}) FROM STDIN") as copying:
        for row in rows:
            copying.write_row(list(row.values()))


def make_plain_table(store: Store) -> None:
    """A table like `scores`, its key and its index included."""
    with store.begin() as tx:
        for statement in (CreateTable(scores), *(CreateIndex(index) for index in scores.indexes)):
            sql = str(statement.compile(tx.connection)).replace("scores", "plain", 1)
            tx.connection.exec_driver_sql(sql.replace(" ON scores", " ON plain"))


def count(store: Store) -> tuple[int, int, int]:
    """Rows of `scores`, rows of the plain table, and scores counted by rollups."""
    with store.read() as tx:
        counted = tx.connection.scalar(select(func.sum(rollups.c.n_scored))) or 0
        plain = tx.connection.exec_driver_sql("SELECT count(*) FROM plain").scalar_one()
        return tx.connection.scalar(select(func.count()).select_from(scores)) or 0, plain, int(counted)


if __name__ == "__main__":
    main(__doc__, measure)
