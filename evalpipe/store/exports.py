"""Scores that are owed to an OpenTelemetry endpoint: each at least once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import and_, bindparam, delete, func, select, update

from evalpipe.store.sql import Transaction
from evalpipe.store.tables import records, score_exports, scores

LEASE: Final = timedelta(seconds=60)
"""For so long a batch is somebody's: longer than its request may take."""
KEPT: Final = timedelta(days=1)
"""What an endpoint did not take for so long is given up."""
_KEYS: Final = tuple(column.name for column in score_exports.primary_key)

Key = tuple[str, str, str, str]
"""Record, criterion, scorecard's version and epoch."""


def owe(tx: Transaction, keys: Iterable[Key], now: datetime) -> None:
    """Owe these scores."""
    rows = [{**dict(zip(_KEYS, key, strict=True)), "due_at": now, "created_at": now} for key in keys]
    tx.insert_new(score_exports, rows)


def claim(tx: Transaction, now: datetime, limit: int) -> list[Any]:
    """Scores that are due, with their records' trace ids; they are the caller's for ``LEASE``."""
    of = score_exports.c
    due = (
        select(*(of[name] for name in _KEYS))
        .where(of.due_at <= now)
        .order_by(of.due_at, of.record_id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    keys = [tuple(row) for row in tx.connection.execute(due)]
    if not keys:
        return []
    _for_each(tx, update(score_exports).values(due_at=now + LEASE), keys)
    found = {}
    wanted = set(keys)
    same = and_(*(scores.c[name] == score_exports.c[name] for name in _KEYS))
    query = (
        select(scores, records.c.trace_id)
        .join(score_exports, same)
        .outerjoin(records, records.c.record_id == scores.c.record_id)
        .where(scores.c.record_id.in_({key[0] for key in keys}))
    )
    for row in tx.connection.execute(query):
        key = tuple(getattr(row, name) for name in _KEYS)
        if key in wanted:
            found[key] = row
    if gone := [key for key in keys if key not in found]:
        done(tx, gone)  # retention was quicker
    return [found[key] for key in keys if key in found]


def key_of(row: Any) -> Key:
    """Of a claimed score."""
    return row.record_id, row.criterion, row.scorecard_version, row.epoch


def done(tx: Transaction, keys: Sequence[Any]) -> None:
    """These were taken."""
    _for_each(tx, delete(score_exports), keys)


def later(tx: Transaction, keys: Sequence[Any], at: datetime) -> None:
    """These are tried again then."""
    _for_each(tx, update(score_exports).values(due_at=at), keys)


def give_up(tx: Transaction, now: datetime) -> int:
    """Forget what nobody took for ``KEPT``; says how many that were."""
    return tx.connection.execute(delete(score_exports).where(score_exports.c.created_at < now - KEPT)).rowcount


def waiting(tx: Transaction) -> tuple[int, datetime | None]:
    """How many are owed, and since when the oldest is."""
    n, oldest = tx.connection.execute(select(func.count(), func.min(score_exports.c.created_at))).one()
    return n, oldest


def _for_each(tx: Transaction, statement: Any, keys: Sequence[Any]) -> None:
    if keys:
        mine = and_(*(score_exports.c[name] == bindparam(f"of_{name}") for name in _KEYS))
        tx.connection.execute(
            statement.where(mine), [{f"of_{n}": v for n, v in zip(_KEYS, key, strict=True)} for key in keys]
        )
