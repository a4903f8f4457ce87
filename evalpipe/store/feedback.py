"""What users said of answers. It is joined with records when it is read, so neither has to wait for the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, delete, or_, select

from evalpipe.errors import ConfigError
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import feedback, records

MOST = 100
"""Of a record that are shown."""
NO_USER: Final = (
    "no user is given ('' is the key of all that have none): give the key that the application gave the hook"
)


@dataclass(frozen=True, slots=True)
class Feedback:
    """One thing that a user said.

    Attributes:
        feedback_id: the same one given twice is one row.
        trace_id, record_id: of the answer; one of them may be "".
        value: from 0 (bad) to 1 (good) by custom; None where only words were given.
    """

    feedback_id: str
    service: str
    trace_id: str
    record_id: str
    value: float | None
    label: str
    comment: str
    user_id: str
    at: datetime


def add(tx: Transaction, found: Sequence[Feedback], now: datetime) -> int:
    """Store what is not stored yet, and return how many that were."""
    unique = {one.feedback_id: {**asdict(one), "received_at": now} for one in found}
    return len(tx.insert_new(feedback, list(unique.values())))


def of_record(tx: Transaction, record: Any) -> list[dict[str, Any]]:
    """The feedback on a record: what names it, and what names its trace and no record; oldest first."""
    theirs = _about(record["record_id"], record["trace_id"])
    query = select(feedback).where(theirs).order_by(feedback.c.at, feedback.c.feedback_id).limit(MOST)
    return [dict(row) for row in tx.connection.execute(query).mappings()]


def waiting(tx: Transaction, trace_id: str) -> list[dict[str, Any]]:
    """Feedback on a trace or record that is not in the store: it was not sampled, or has not arrived."""
    theirs = or_(feedback.c.trace_id == trace_id, feedback.c.record_id == trace_id)
    query = select(feedback).where(theirs).order_by(feedback.c.at, feedback.c.feedback_id).limit(MOST)
    return [dict(row) for row in tx.connection.execute(query).mappings()]


def query_feedback(
    *, since: datetime | None = None, until: datetime | None = None, limit: int | None = None, **where: str
) -> Select[Any]:
    """Feedback in the order in which it was given; ``limit`` keeps the newest."""
    query = select(feedback)
    for name, value in where.items():
        query = query.where(feedback.c[name] == value)
    if since is not None:
        query = query.where(feedback.c.at >= since)
    if until is not None:
        query = query.where(feedback.c.at < until)
    if limit is not None:
        newest = query.order_by(feedback.c.at.desc(), feedback.c.feedback_id.desc()).limit(limit).subquery()
        return select(newest).order_by(newest.c.at, newest.c.feedback_id)
    return query.order_by(feedback.c.at, feedback.c.feedback_id)


def erase(tx: Transaction, user_id: str) -> int:
    """Remove what a user said, and what was said of their records; before the records forget whose they are.

    Raises:
        ConfigError: there is no user without a key; it would be everybody who has none.
    """
    if not user_id:
        raise ConfigError(NO_USER)
    mine = records.c.user_id == user_id
    theirs = or_(
        feedback.c.user_id == user_id,
        feedback.c.record_id.in_(select(records.c.record_id).where(mine)),
        feedback.c.trace_id.in_(select(records.c.trace_id).where(mine)),
    )
    return tx.connection.execute(delete(feedback).where(theirs)).rowcount


def remove_old(tx: Transaction, before: datetime, limit: int) -> int:
    """Delete the oldest that came before then."""
    old = select(feedback.c.feedback_id).where(feedback.c.received_at < before).limit(limit)
    return tx.connection.execute(delete(feedback).where(feedback.c.feedback_id.in_(old))).rowcount


def _about(record_id: str, trace_id: str) -> ColumnElement[bool]:
    of_trace = (feedback.c.trace_id == trace_id) & (feedback.c.record_id == "")
    return or_(feedback.c.record_id == record_id, of_trace)
