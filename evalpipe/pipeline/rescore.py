"""Stored records under another scorecard version: new scores beside the old, in new epochs where definitions changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import orjson
from sqlalchemy import select

from evalpipe.pipeline.findings import Scored, add_findings, score_record
from evalpipe.record import Record, from_wire
from evalpipe.scorers.plan import ScoringPlan
from evalpipe.store.sql import Store
from evalpipe.store.tables import records, scores, work

BATCH = 500


@dataclass(slots=True)
class Rescored:
    """What a rescoring did: records scored anew, those that had these scores already, and judge calls owed."""

    rescored: int = 0
    known: int = 0
    owed: int = 0


def rescore(
    store: Store,
    plan: ScoringPlan,
    *,
    since: datetime,
    now: Callable[[], datetime],
    progress: Callable[[int], None],
) -> Rescored:
    """Score every stored record that the scorecard matches, unless this version has scored it; safe to run again.

    Args:
        store: where.
        plan: the scorecard version to score under.
        since: records captured from here on.
        now: the clock.
        progress: is told how many records have been looked at, batch by batch.
    """
    total, done = Rescored(), 0
    for batch in _batches(store, since):
        scored = [Scored(record, b"", findings) for record in batch if (findings := score_record(record, [plan]))]
        known = _known(store, plan.scorecard.version, [s.record.record_id for s in scored])
        new = [s for s in scored if s.record.record_id not in known]
        total.owed += store.patiently(partial(add_findings, scored=new, now=now(), origin="rescore"))
        total.rescored += len(new)
        total.known += len(known)
        done += len(batch)
        progress(done)
    return total


def _batches(store: Store, since: datetime) -> Iterator[list[Record]]:
    """Stored records in the order of their ids, payload and all."""
    after = ""
    while True:
        query = (
            select(records.c.record_id, records.c.payload)
            .where(records.c.record_id > after, records.c.captured_at >= since, records.c.payload.is_not(None))
            .order_by(records.c.record_id)
            .limit(BATCH)
        )
        with store.read() as tx:
            rows = tx.connection.execute(query).all()
        if not rows:
            return
        after = rows[-1].record_id
        yield [from_wire(orjson.loads(row.payload)) for row in rows]


def _known(store: Store, version: str, record_ids: Sequence[str]) -> set[str]:
    with store.read() as tx:
        return {
            record_id
            for table in (scores, work)
            for record_id in tx.connection.scalars(
                select(table.c.record_id).where(table.c.record_id.in_(record_ids), table.c.scorecard_version == version)
            )
        }
