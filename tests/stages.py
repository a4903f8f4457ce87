"""The stages of the pipeline, called directly on a real database: no Celery, and a clock that the test sets."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from pathlib import Path
from typing import Any

from sqlalchemy import Table, func, select

from evalpipe.channels.base import Channel
from evalpipe.detectors.base import detectors
from evalpipe.judges.base import Judge, judges
from evalpipe.judges.config import judge_config, open_judge
from evalpipe.judges.desk import Desk
from evalpipe.pipeline.evaluate import Evaluate
from evalpipe.pipeline.ingest import Ingest, Ingested
from evalpipe.pipeline.judge import Drained, JudgeStage
from evalpipe.pipeline.measure import Measure
from evalpipe.record import Record, Release, encode_batch, to_wire
from evalpipe.rollup import Rollup
from evalpipe.score import Score, Status
from evalpipe.scorecard.load import load_scorecards
from evalpipe.scorers.base import heuristics
from evalpipe.scorers.plan import ScoringPlan
from evalpipe.settings import Settings
from evalpipe.store import ledgers, levels, series
from evalpipe.store.ledgers import Line, Queued
from evalpipe.store.sql import Store
from evalpipe.store.tables import metadata, scores

AT = datetime(2026, 3, 1, 10, 0, tzinfo=UTC)
"""When the tests' clock starts."""
PASS = 'fake:demo?rules={"REFUND": "fail"}&acts=pass'
CARD = """
name: support
match: {service: desk}
criteria:
  - {name: length, heuristic: length, params: {max: 200}}
  - {name: grounded, judge: {kind: boolean, rubric: "Is it grounded?"}}
  - {name: polite, judge: {kind: boolean, rubric: "Is it polite?", priority: 7}}
alerts:
  - {name: too-low, criterion: grounded, mean: {below: 0.8}, min_sample: 10, window: 10m, severity: SEV2}
rollout:
  gates:
    - {criterion: grounded, min_canary: 20}
"""


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.at = AT

    def __call__(self) -> datetime:
        """The time."""
        return self.at

    def pass_(self, **units: float) -> datetime:
        """Move it on, by the arguments of ``timedelta``."""
        self.at += timedelta(**units)
        return self.at


class World:
    """One migrated database with the stages on it.

    Args:
        url: of a migrated database.
        folder: for scorecards.
        card: the scorecards' YAML.
        judge: ``provider:model?options``; "" for none.
        channels: where decisions go.
    """

    def __init__(
        self,
        url: str,
        folder: Path,
        *,
        card: str = CARD,
        judge: str = PASS,
        channels: Mapping[str, Channel] | None = None,
        max_record_bytes: int = 20_000,
    ) -> None:
        self.clock = Clock()
        self.store = Store(url)
        self.settings = Settings(database_url=url, judge=judge)
        (folder / "support.yaml").write_text(card)
        self.cards = load_scorecards(folder, heuristics=heuristics, judges=judges, detectors=detectors)
        self.plans = [ScoringPlan(card, lambda _: bool(judge)) for card in self.cards]
        self.ingest_stage = Ingest(self.store, self.plans, max_record_bytes=max_record_bytes)
        self.measure = Measure(self.store)
        self.evaluate = Evaluate(self.store, self.cards, channels or {}, source="/test")
        self._channels = channels or {}
        self._sequences = itertools.count(1)

    def evaluation(self, **options: Any) -> Evaluate:
        """A stage of its own, as another worker would have it."""
        return Evaluate(self.store, self.cards, self._channels, source="/test", **options)

    def open_judge(self, model: str) -> Judge | None:
        """The judge that a scorecard's word means."""
        return open_judge(replace(judge_config(self.settings, model), attempts=1)) if self.settings.judge else None

    def ingest(self, *records: Record | Mapping[str, Any], process: str = "app-1", sequence: int = 0) -> Ingested:
        """Take one message with these records in."""
        blob, headers = message(records, process=process, sequence=sequence or next(self._sequences))
        return self.ingest_stage(blob, headers, self.clock())

    def judge_stage(self, judge: Judge | None = None, **options: Any) -> JudgeStage:
        """A judge stage of its own, as another worker would have it."""
        settings: dict[str, Any] = {"concurrency": 8, "lease": timedelta(seconds=60), "attempts": 3, **options}
        desk = Desk((lambda _: judge) if judge else self.open_judge, clock=self.clock)
        return JudgeStage(self.store, desk, clock=self.clock, **settings)

    def drain(self, judge: Judge | None = None, *, seconds: float = 20, **options: Any) -> Drained:
        """Grade what is owed and due."""
        return asyncio.run(self.judge_stage(judge, **options).drain(seconds, lambda: None))

    def drain_with(self, stage: JudgeStage, *, seconds: float = 20) -> Drained:
        """Grade what is owed and due, by a worker that has been at it before."""
        return asyncio.run(stage.drain(seconds, lambda: None))

    def meter(self, process: str = "app-1", *, sequence: int = 1, at: datetime | None = None, **counts: Any) -> str:
        """A meter message of one row; ``counts`` are its counters."""
        sent_at = (at or self.clock()).timestamp()
        row = {"service": "desk", "release": {}, "hour": AT.timestamp(), "calls": 0, "sampled": 0, "not_sampled": 0,
               "enqueued": 0, **counts}  # fmt: skip
        return dumps({"schema": 1, "hook": "0.1.0", "process": process, "seq": sequence, "sent_at": sent_at,
                      "started_at": sent_at, "rows": [row]})  # fmt: skip

    def lines(self, queued: Mapping[tuple[str, datetime], int] | None = None, **options: Any) -> dict[str, Line]:
        """The ledger of the service's first hour by scorecard."""
        with self.store.read() as tx:
            found = ledgers.read(tx, Queued(queued or {}), self.clock(), **options)
        return {line.scorecard: line for line in found if (line.hour_at, line.service) == (AT, "desk")}

    def rows(self, table: Table, **where: Any) -> list[dict[str, Any]]:
        """Rows of a table, in the order of their keys."""
        query = select(table).order_by(*table.primary_key)
        for name, value in where.items():
            query = query.where(table.c[name] == value)
        with self.store.read() as tx:
            return [dict(row) for row in tx.connection.execute(query).mappings()]

    def count(self, table: Table, **where: Any) -> int:
        """How many rows."""
        query = select(func.count()).select_from(table)
        for name, value in where.items():
            query = query.where(table.c[name] == value)
        with self.store.read() as tx:
            return tx.connection.scalar(query) or 0

    def everything(self, *without: str) -> dict[str, list[dict[str, Any]]]:
        """All rows of all tables."""
        return {table.name: self.rows(table) for table in metadata.sorted_tables if table.name not in without}

    def close(self) -> None:
        """Close the connections."""
        self.store.close()


def record(i: int | str = 0, *, variant: str = "baseline", output: str = "Within 30 days.", **fields: Any) -> Record:
    """A record of the first hour."""
    values: dict[str, Any] = {
        "record_id": f"r-{i}",
        "trace_id": f"t-{i}",
        "captured_at": AT + timedelta(seconds=i if isinstance(i, int) else 0),
        "release": Release("desk", variant),
        "session_id": f"s-{i}",
        "messages": [{"role": "user", "content": f"question {i}"}],
        "output": output,
        **fields,
    }
    return Record(**values)


def records(n: int, *, start: int = 0, **fields: Any) -> list[Record]:
    """So many different records of the first minutes of the first hour."""
    return [record(start + i, **{"captured_at": AT + timedelta(seconds=i % 180), **fields}) for i in range(n)]


def message(
    found: Iterable[Record | Mapping[str, Any]], *, process: str = "app-1", sequence: int = 1
) -> tuple[str, dict[str, Any]]:
    """What a hook sends: the text and the headers."""
    found = list(found)
    wires = [to_wire(r) if isinstance(r, Record) else r for r in found]
    hours = Counter(f"desk|{int(_hour(r).timestamp())}" for r in found)
    blob = encode_batch(wires, process_id=process, sequence=sequence, sent_at=AT.timestamp(), hook_version="0.1.0")
    return blob, {"origin": process, "evalpipe_hours": dict(hours)}


def at_once(*runs: Callable[[], Any]) -> list[Any]:
    """Call all at the same moment, each in a thread; their results, or the first exception."""
    start = threading.Barrier(len(runs))
    results: list[Any] = [None] * len(runs)
    errors: list[BaseException] = []

    def call(index: int) -> None:
        try:
            start.wait(60)
            results[index] = runs[index]()
        except BaseException as error:  # noqa: BLE001 - raised in the test's own thread below
            errors.append(error)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    return results


def assert_rollups_are_the_sums_of_the_scores(store: Store) -> None:
    """Every stored rollup of every level is what its scores add up to, to the last bit, histogram and all."""
    wanted: dict[tuple[datetime, str], Rollup] = {}
    with store.read() as tx:
        for row in tx.connection.execute(select(scores)):
            of = series.Series(row.service, row.feature, row.environment, row.variant, row.release_id, row.scorecard,
                               row.criterion, row.epoch, row.arm)  # fmt: skip
            key = row.captured_at.replace(second=0, microsecond=0), of.series_id
            score = Score(Status(row.status), row.value, row.label, row.explanation)
            wanted.setdefault(key, Rollup()).add(score, row.weight, row.cost_usd)
        for level in levels.LEVELS:
            wanted = wanted if level is levels.MINUTE else levels.wider(level, wanted)
            stored = [dict(row) for row in tx.connection.execute(select(level.table)).mappings()]
            expected = [levels.row_of(key, rollup) for key, rollup in wanted.items()]
            order = itemgetter("bucket_at", "series_id")
            assert sorted(stored, key=order) == sorted(expected, key=order), level.name


def dumps(value: Any) -> str:
    """JSON text."""
    import json

    return json.dumps(value)


def _hour(found: Record | Mapping[str, Any]) -> datetime:
    at = found.captured_at if isinstance(found, Record) else AT
    return ledgers.hour_of(at)


__all__: Sequence[str] = (
    "AT",
    "CARD",
    "PASS",
    "Clock",
    "World",
    "assert_rollups_are_the_sums_of_the_scores",
    "at_once",
    "message",
    "record",
    "records",
)
