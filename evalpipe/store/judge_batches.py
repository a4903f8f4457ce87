"""Batches that providers answer later: whose they are, how far they are, and when to look again.

A batch is ``submitting`` from before the provider is asked until its name for the batch is known, then ``submitted``
until it is ``ended``, ``failed`` or ``abandoned``. Who takes one that is due has it until the time that is then set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import delete, func, select, update

from evalpipe.store.sql import Transaction, storable
from evalpipe.store.tables import judge_batches, work

OPEN: Final = ("submitting", "submitted")
"""States of batches that have not ended."""
REASON_CHARS: Final = 500


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch.

    Attributes:
        batch_id: our own.
        judge: version of the judge that is asked.
        model: the judge as scorecards write it.
        n: requests.
        provider_id: the provider's name for it; "" before it is known.
        next_poll_at: when it is looked after again.
    """

    batch_id: str
    judge: str
    model: str
    n: int
    submitted_at: datetime
    next_poll_at: datetime
    provider_id: str = ""
    state: str = "submitting"


def add(tx: Transaction, batch: Batch) -> None:
    """Note a batch that is about to be handed in."""
    tx.insert_new(judge_batches, [{name: getattr(batch, name) for name in _COLUMNS}])


def submitted(tx: Transaction, batch_id: str, provider_id: str, next_poll_at: datetime) -> bool:
    """Note the provider's name for a batch; False if it was given up meanwhile."""
    statement = update(judge_batches).where(
        judge_batches.c.batch_id == batch_id, judge_batches.c.state.in_(OPEN), judge_batches.c.provider_id == ""
    )
    values = {"state": "submitted", "provider_id": provider_id, "next_poll_at": next_poll_at, "reason": ""}
    return bool(tx.connection.execute(statement.values(**values)).rowcount)


def take_due(tx: Transaction, now: datetime, until: datetime) -> Batch | None:
    """The batch that has been due for longest; nobody else takes it before ``until``."""
    query = (
        select(*(judge_batches.c[name] for name in _COLUMNS))
        .where(judge_batches.c.state.in_(OPEN), judge_batches.c.next_poll_at <= now)
        .order_by(judge_batches.c.next_poll_at, judge_batches.c.batch_id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    row = tx.connection.execute(query).mappings().first()
    if row is None:
        return None
    look_again(tx, row["batch_id"], until)
    return Batch(**row)


def look_again(tx: Transaction, batch_id: str, at: datetime, reason: str | None = None) -> bool:
    """Look after a batch at ``at``; ``reason`` says what is the matter with it. False if it was given up meanwhile."""
    values: dict[str, Any] = {"next_poll_at": at}
    if reason is not None:
        values["reason"] = storable(reason)[:REASON_CHARS]
    statement = update(judge_batches).where(judge_batches.c.batch_id == batch_id, judge_batches.c.state.in_(OPEN))
    return bool(tx.connection.execute(statement.values(**values)).rowcount)


def tally(tx: Transaction, batch_id: str, graded: int, returned: int, usd: float) -> None:
    """Count what came of works of a batch."""
    of = judge_batches.c
    tx.connection.execute(
        update(judge_batches)
        .where(of.batch_id == batch_id)
        .values(n_graded=of.n_graded + graded, n_returned=of.n_returned + returned, cost_usd=of.cost_usd + usd)
    )


def close(tx: Transaction, batch_id: str, state: str, reason: str, now: datetime) -> None:
    """End a batch: as ``ended``, ``failed`` or ``abandoned``."""
    statement = update(judge_batches).where(judge_batches.c.batch_id == batch_id, judge_batches.c.state.in_(OPEN))
    tx.connection.execute(statement.values(state=state, reason=storable(reason)[:REASON_CHARS], ended_at=now))


def provider_ids(tx: Transaction, judge: str, since: datetime) -> set[str]:
    """The provider's names for batches of a judge that were handed in since then."""
    query = select(judge_batches.c.provider_id).where(
        judge_batches.c.judge == judge, judge_batches.c.submitted_at >= since, judge_batches.c.provider_id != ""
    )
    return set(tx.connection.scalars(query))


def listed(tx: Transaction, limit: int) -> list[dict[str, Any]]:
    """The latest batches, newest first, with ``n_waiting``: works that still wait for them."""
    query = select(judge_batches).order_by(judge_batches.c.submitted_at.desc(), judge_batches.c.batch_id).limit(limit)
    found = [dict(row) for row in tx.connection.execute(query).mappings()]
    ids = [row["batch_id"] for row in found if row["state"] in OPEN]
    counts = (
        select(work.c.batch_id, func.count().label("n"))
        .where(work.c.batch_id.in_(ids), work.c.batch_id != "", work.c.state == "batched")
        .group_by(work.c.batch_id)
    )
    waiting = {row.batch_id: int(row.n) for row in tx.connection.execute(counts)}
    return [{**row, "n_waiting": waiting.get(row["batch_id"], 0)} for row in found]


def clean(tx: Transaction, before: datetime) -> None:
    """Remove batches that ended before."""
    tx.connection.execute(delete(judge_batches).where(judge_batches.c.ended_at < before))


_COLUMNS: Sequence[str] = ("batch_id", "judge", "model", "n", "submitted_at", "next_poll_at", "provider_id", "state")
