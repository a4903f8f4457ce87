"""Stored records under another scorecard version: new scores beside the old, in new epochs as definitions changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from sqlalchemy import select

from evalpipe.pipeline.findings import Scored, add_findings, score_record
from evalpipe.record import Record
from evalpipe.scorers.plan import ScoringPlan
from evalpipe.store import intake
from evalpipe.store.sql import Store, Transaction
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
        found = store.patiently(partial(_commit, version=plan.scorecard.version, scored=scored, now=now()))
        total.rescored += found.rescored
        total.known += found.known
        total.owed += found.owed
        done += len(batch)
        progress(done)
    return total


def _batches(store: Store, since: datetime) -> Iterator[list[Record]]:
    """Stored records in the order of their ids, payload and all."""
    after = ""
    while True:
        query = (
            select(records.c.record_id)
            .where(records.c.record_id > after, records.c.captured_at >= since, records.c.payload.is_not(None))
            .order_by(records.c.record_id)
            .limit(BATCH)
        )
        with store.read() as tx:
            ids = list(tx.connection.scalars(query))
            found = intake.payloads(tx, ids)
        if not ids:
            return
        after = ids[-1]
        yield list(found.values())


def _commit(tx: Transaction, version: str, scored: Sequence[Scored], now: datetime) -> Rescored:
    """Write what is new. The records are locked first: two at once count nothing twice, and erasure is noticed."""
    ids = [s.record.record_id for s in scored]
    kept = intake.lock_kept(tx, ids)
    known = {
        record_id
        for table in (scores, work)
        for record_id in tx.connection.scalars(
            select(table.c.record_id).where(table.c.record_id.in_(ids), table.c.scorecard_version == version)
        )
    }
    new = [s for s in scored if s.record.record_id in kept - known]
    return Rescored(len(new), len(known), add_findings(tx, new, now, origin="rescore"))
