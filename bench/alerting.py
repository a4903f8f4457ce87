"""One evaluation of 1,000 alert rules, and the dashboard's queries, over a database of ten million scores of 30 days.

    python bench/alerting.py [--json] [--quick]

PostgreSQL as durable as it is by default. The scores are made by the database itself: 8 criteria of 3 features and 2
variants, one record every 2 s; their rollups by `evalpipe rollup rebuild`'s own code, which is measured too. Then each
evaluation folds a new commit of 480 scores. The dashboard asks for count, mean and p99: of one criterion over 24 h in
points of 15 minutes and over 30 days in points of an hour, and of all eight over 30 days. In turn the same is asked of
the scores and their indexes: added up by the database, or sent in its binary format and added up by numpy; the quicker
of the two is what rollups are compared with. All three must find the same counts, means and, to half a bin, p99.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
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
from evalpipe.store.points import points
from evalpipe.store.rebuild import rebuild
from evalpipe.store.series import Entry, Series
from evalpipe.store.shelf import Shelf
from evalpipe.store.sql import Store, Transaction
from evalpipe.store.tables import scores

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
            *dashboard(store, 3 if quick else 5),
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
    whole = NOW.replace(minute=0, second=0)
    day, month = whole - timedelta(days=1), whole - timedelta(days=DAYS)
    quarter, hour = timedelta(minutes=15), timedelta(hours=1)
    asked: tuple[tuple[str, datetime, timedelta, dict[str, str], float | None, float | None], ...] = (
        ("24 h, a criterion", day, quarter, {"criterion": "c5"}, 100.0, None),
        ("30 days, a criterion", month, hour, {"criterion": "c5"}, 200.0, 50.0),
        ("30 days, all criteria", month, hour, {}, None, 50.0),
    )
    figures = []
    for name, since, width, where, most_ms, least in asked:
        took: dict[str, list[float]] = {"rollups": [], "scores by SQL": [], "scores by numpy": []}
        for turn in range(rounds + 1 if where else 3):
            found = []
            for way, read in zip(took, (ask, scan, fetch), strict=True):
                started = time.perf_counter()
                with store.read() as tx:
                    found.append(read(tx, since, width, where))
                if turn:
                    took[way].append((time.perf_counter() - started) * 1000.0)
            check(*found)
        best = zip(took["scores by SQL"], took["scores by numpy"], strict=True)
        ratios = [min(pair) / mine for pair, mine in zip(best, took["rollups"], strict=True)]
        figures += [
            Figure(f"{name}, {way}", ms, "ms", most_ms if way == "rollups" else None, at_most=True)
            for way, ms in took.items()
        ]
        figures.append(Figure(f"{name}, scores / rollups", ratios, "x", least))
    return figures


Found = dict[tuple[Any, ...], tuple[int, float, float]]
"""Count, mean and p99 by line and point."""


def ask(tx: Transaction, since: datetime, width: timedelta, where: dict[str, str]) -> Found:
    """Of rollups, as the API and `evalpipe plot` do."""
    found: Found = {}
    for line in points(tx, since, NOW, width, KEY, **where):
        for at, sums, p99 in zip(line.starts, line.rollups(), line.quantile(0.99), strict=True):
            if sums.mean is not None and p99 is not None:
                found[*line.key, at] = sums.n_scored, sums.mean, p99
    return found


def scan(tx: Transaction, since: datetime, width: timedelta, where: dict[str, str]) -> Found:
    """Of the scores, by the database alone: it need not send them."""
    keys = ", ".join(KEY)
    query = text(
        f"SELECT {keys}, {START} AS at, count(*), sum(weight * value) / sum(weight), "
        f"percentile_disc(0.99) WITHIN GROUP (ORDER BY value) FROM scores WHERE {fits(where)} GROUP BY {keys}, at"
    )
    rows = tx.connection.execute(query, {"since": since, "until": NOW, "width": width, **where})
    return {(*row[:-4], row[-4]): (row[-3], row[-2], row[-1]) for row in rows}


def fetch(tx: Transaction, since: datetime, width: timedelta, where: dict[str, str]) -> Found:
    """Of the scores, sent as they lie, in rows of one length."""
    query = (
        "COPY (SELECT captured_at, CAST(substr(criterion, 2) AS bigint) * 2 + CAST(variant = 'canary' AS int), value, "
        f"weight FROM scores WHERE {fits(where, '%({})s')}) TO STDOUT (FORMAT binary)"
    )
    with tx.driver(query) as cursor, cursor.copy(query, {"since": since, "until": NOW, **where}) as copied:
        sent = b"".join(map(bytes, copied))
    rows = np.frombuffer(sent, ROW, (len(sent) - 19) // ROW.itemsize, 19)
    at, line, value, weight = (
        rows[n].astype(rows[n].dtype.newbyteorder("=")) for n in ("at", "line", "value", "weight")
    )
    point = line << 40 | at // (width // timedelta(microseconds=1))
    order = np.lexsort((value, point))
    point, value, weight = point[order], value[order], weight[order]
    cells, first, counts = np.unique(point, return_index=True, return_counts=True)
    means = np.add.reduceat(weight * value, first) / np.add.reduceat(weight, first)
    p99 = value[first + np.ceil(0.99 * counts).astype(int) - 1]
    found = {}
    for cell, *told in zip(cells.tolist(), counts.tolist(), means.tolist(), p99.tolist(), strict=True):
        line, step = divmod(cell, 1 << 40)
        key = "desk", "production", VARIANTS[line % 2], "bench", f"c{line // 2}", "e1"
        found[*key, datetime(2000, 1, 1, tzinfo=UTC) + step * width] = tuple(told)
    return found


ROW = np.dtype(
    [("", ">i2")]
    + [
        (n, k)
        for name in ("at", "line", "value", "weight")
        for n, k in (("", ">i4"), (name, ">f8" if name in {"value", "weight"} else ">i8"))
    ]
)
START = "date_bin(CAST(:width AS interval), captured_at, TIMESTAMPTZ '1970-01-01Z')"


def fits(where: dict[str, str], bind: str = ":{}") -> str:
    named = [f"{name} = {bind.format(name)}" for name in where]
    return " AND ".join([*named, f"captured_at >= {bind.format('since')} AND captured_at < {bind.format('until')}"])


def check(mine: Found, *others: Found) -> None:
    """The same but for the point that is not over: rollups have whole minutes."""
    last = max(key[-1] for key in mine)
    over, *others = ({key: told for key, told in found.items() if key[-1] < last} for found in (mine, *others))
    for theirs in others:
        assert over.keys() == theirs.keys()
        for key, (n, mean, p99) in over.items():
            other = theirs[key]
            assert n == other[0], (key, other)
            assert abs(mean - other[1]) < 1e-6, (key, other)
            assert abs(p99 - other[2]) <= 0.0101, (key, other)


if __name__ == "__main__":
    main(__doc__ or "", measure)
