"""One evaluation of 1,000 alert rules, and the dashboard's queries, over a database of ten million scores of 30 days.

    python bench/alerting.py [--json] [--quick]

PostgreSQL as durable as it is by default. The scores are made by the database itself: 8 criteria of 3 features and 2
variants, one record every 2 s; their rollups by `evalpipe rollup rebuild`'s own code, which is measured too. Then each
evaluation folds a new commit of 480 scores. The dashboard asks for count, mean and p99 of one criterion: the last 24 h
in points of 15 minutes, and 30 days in points of an hour, from rollups and, in turn, from the scores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from machine import Figure, main
from services import Postgres
from sqlalchemy import text
from sqlalchemy.schema import CreateIndex

from evalpipe.alerts.round import evaluate
from evalpipe.alerts.rules import Rule, rule_of
from evalpipe.alerts.state import AlertState
from evalpipe.pipeline.store_feed import StoreFeed
from evalpipe.score import scored
from evalpipe.scorecard.alert_rule import AlertRule
from evalpipe.scorecard.model import Scorecard
from evalpipe.store import migrate, series
from evalpipe.store.rebuild import rebuild
from evalpipe.store.series import Entry, Series
from evalpipe.store.shelf import Shelf
from evalpipe.store.sql import Store, Transaction
from evalpipe.store.tables import scores
from evalpipe.store.windows import points

NOW = datetime(2026, 6, 30, 12, 0, 20, tzinfo=UTC)
DAYS = 30
CRITERIA, FEATURES, VARIANTS = 8, ("chat", "search", "mail"), ("baseline", "canary")
SETTINGS = {"shared_buffers": "512MB", "maintenance_work_mem": "512MB", "max_wal_size": "8GB"}
KEY = ("service", "environment", "variant", "scorecard", "criterion", "epoch")
CARD = Scorecard.model_validate({
    "name": "bench",
    "match": {"service": "desk"},
    "criteria": [{"name": f"c{i}", "heuristic": "length", "params": {"max": 200}} for i in range(CRITERIA)],
})  # fmt: skip


def measure(quick: bool) -> list[Figure]:
    n = 400_000 if quick else 10_000_000
    with Postgres(settings=SETTINGS) as postgres:
        store = Store(postgres.url())
        migrate.upgrade(store)
        fill(store, n)
        started = time.perf_counter()
        done = rebuild(store, since=None, now=NOW, retention=timedelta(days=90))
        took = time.perf_counter() - started
        with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
        figures = [
            Figure("scores", [done.scores], ""),
            Figure("rollups", [done.buckets], ""),
            Figure("rebuild", [done.scores / took], "scores/s"),
            *evaluations(store, 3 if quick else 9),
            *dashboard(store, 3 if quick else 7),
        ]
        store.close()
    return figures


def fill(store: Store, n: int) -> None:
    """Scores without their indexes, which are made afterwards: that is much quicker."""
    record = f"g / {CRITERIA}"
    values = {
        "record_id": f"'r-' || {record}",
        "criterion": f"'c' || g % {CRITERIA}",
        "scorecard_version": "'v1'",
        "epoch": "'e1'",
        "scorecard": "'bench'",
        "service": "'desk'",
        "feature": f"(CAST(:features AS text[]))[1 + {record} % {len(FEATURES)}]",
        "environment": "'production'",
        "variant": f"(CAST(:variants AS text[]))[1 + {record} / 7 % {len(VARIANTS)}]",
        "release_id": f"'release-' || {record} / 7 % {len(VARIANTS)}",
        "captured_at": f"CAST(:now AS timestamptz) - CAST(:days AS interval) * (1 - g / CAST({n} AS float8))",
        "scored_at": f"CAST(:now AS timestamptz) - CAST(:days AS interval) * (1 - g / CAST({n} AS float8))",
        "status": "'scored'",
        "value": f"CASE WHEN g % {CRITERIA} < 4 THEN (random() < 0.93)::int ELSE sqrt(random()) END",
        "weight": "20.0",
        "scorer": "'heuristic:length@1'",
    }
    columns, made = ", ".join(values), ", ".join(values.values())
    with store.begin() as tx:
        execute = tx.connection.execute
        execute(text("ALTER TABLE scores DROP CONSTRAINT scores_pkey"))
        for index in scores.indexes:
            execute(text(f"DROP INDEX {index.name}"))
        execute(
            text(f"INSERT INTO scores ({columns}) SELECT {made} FROM generate_series(0, {n - 1}) AS g"),
            {"now": NOW, "days": timedelta(days=DAYS), "features": list(FEATURES), "variants": list(VARIANTS)},
        )
        keys = ", ".join(c.name for c in scores.primary_key)
        execute(text(f"ALTER TABLE scores ADD PRIMARY KEY ({keys})"))
        for index in scores.indexes:
            execute(CreateIndex(index))


def rules() -> list[Rule]:
    """A thousand: means over windows of several lengths, and streams, at places of several kinds."""
    found: list[Rule] = []
    windows = (5, 10, 30, 60, 360, 1440)
    bys: tuple[list[Any], ...] = ([], ["feature"], ["feature", "release"])
    for i in range(1_000):
        criterion, by = f"c{i % CRITERIA}", bys[i // CRITERIA % len(bys)]
        if i % 4 == 3:
            fields: dict[str, Any] = {
                "detect": "quality",
                "params": {"criterion": criterion},
                "normal": {"previous": "1d"},
            }
        else:
            minutes = windows[i // (3 * CRITERIA) % len(windows)]
            fields = {"criterion": criterion, "mean": {"below": 0.3}, "window": f"{minutes}m"}
        written = AlertRule.model_validate({"name": f"rule-{i}", "by": by, **fields})
        found.append(rule_of(written, CARD, CARD.match.fits_place))
    return found


def evaluations(store: Store, rounds: int) -> list[Figure]:
    """Each in its own transaction, after a commit of scores."""
    made, shelf = rules(), Shelf()
    book: dict[str, AlertState] = {}
    took, feeds = [], []
    for turn in range(rounds + 1):
        now = NOW + timedelta(seconds=30 * turn)
        batch = list(commit(turn, now))
        store.patiently(lambda tx, b=batch, at=now: series.add_scores(tx, b, at))
        started = time.perf_counter()
        with store.begin() as tx:
            feed = StoreFeed(tx, now, shelf)
            done = evaluate(made, feed, book, now)
        if turn:
            took.append((time.perf_counter() - started) * 1000.0)
            feeds.append(float(len(done.states)))
        assert not done.errors, done.errors[0]
        book |= done.states
    return [
        Figure("alerts looked at in an evaluation", feeds, ""),
        Figure("one evaluation of 1,000 rules", took, "ms", 2_000.0, at_most=True),
    ]


def commit(turn: int, at: datetime) -> Iterator[Entry]:
    """What a worker writes at once."""
    for i in range(480):
        which = i // CRITERIA
        arm = which // len(FEATURES) % len(VARIANTS)
        of = Series("desk", FEATURES[which % len(FEATURES)], "production", VARIANTS[arm], f"release-{arm}", "bench",
                    f"c{i % CRITERIA}", "e1")  # fmt: skip
        yield Entry(f"new-{turn}-{which}", "v1", of, at, scored(float(i % 13 > 0)), 20.0, "heuristic:length@1")


def dashboard(store: Store, rounds: int) -> list[Figure]:
    """From rollups and from scores, in turn."""
    day, month = NOW - timedelta(days=1), NOW - timedelta(days=DAYS)
    quarter, hour = timedelta(minutes=15), timedelta(hours=1)
    ways: dict[str, Callable[[Transaction], Any]] = {
        "24 h, rollups": lambda tx: points(tx, day, NOW, quarter, KEY, criterion="c5"),
        "24 h, scores": lambda tx: scan(tx, day, quarter),
        "30 days, rollups": lambda tx: points(tx, month, NOW, hour, KEY, criterion="c5"),
        "30 days, scores": lambda tx: scan(tx, month, hour),
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            with store.read() as tx:
                told(way(tx))
            if turn:
                took[name].append((time.perf_counter() - started) * 1000.0)
    held = {"24 h, rollups": 100.0, "30 days, rollups": 200.0}
    figures = [Figure(name, values, "ms", held.get(name), at_most=True) for name, values in took.items()]
    for span, target in (("24 h", None), ("30 days", 50.0)):
        both = zip(took[f"{span}, scores"], took[f"{span}, rollups"], strict=True)
        figures.append(Figure(f"{span}, scores / rollups", [a / b for a, b in both], "x", target))
    return figures


def told(found: Any) -> list[Any]:
    """What is shown of rollups; the scan's rows have it already."""
    if not isinstance(found, dict):
        return list(found)
    return [(at, r.n_scored, r.mean, r.quantile(0.99)) for line in found.values() for at, r in line.items()]


def scan(tx: Transaction, since: datetime, width: timedelta) -> Sequence[Any]:
    """The same from the scores, by the database alone: it need not send them."""
    keys = ", ".join(KEY)
    start = "date_bin(CAST(:width AS interval), captured_at, TIMESTAMPTZ '1970-01-01Z')"
    query = text(
        f"SELECT {keys}, {start} AS at, count(*), sum(weight * value) / sum(weight), "
        "percentile_disc(0.99) WITHIN GROUP (ORDER BY value) FROM scores "
        f"WHERE criterion = 'c5' AND captured_at >= :since AND captured_at < :until GROUP BY {keys}, at"
    )
    return tx.connection.execute(query, {"since": since, "until": NOW, "width": width}).all()


if __name__ == "__main__":
    main(__doc__ or "", measure)
