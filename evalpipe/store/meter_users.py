"""What the heaviest users of each feature spent, minute by minute: to see one who runs away.

Hooks count them for each row of the meter and tell cumulative counts since a user came into the sketch. The user's key
is the application's own, as records carry it; whoever is erased is erased here too, and stays away: a user who came in
before the last message and is not remembered is taken for erased.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import delete, func, select, update

from evalpipe.detectors.view import Place, Spender
from evalpipe.store.counters import MeterRow
from evalpipe.store.meter_minutes import KEPT, MINUTE, Known, floor
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import meter_users, meters, releases

COUNTS: Final = 4
"""Of each user: the row's calls when it came in, and since then calls, tokens and dollars."""
_SUMS: Final = ("calls", "tokens", "cost_usd")


def add(tx: Transaction, rows: Sequence[MeterRow], known: Known, now: datetime) -> list[MeterRow]:
    """Add what the users of ``rows`` grew by, in the minute of the message; the rows as they are to be kept."""
    kept, grown = [], []
    for row in rows:
        before = known.get((row.release_id, row.feature, row.hour_at))
        if row.users is None or (before is not None and row.sequence <= before.sequence):
            kept.append(row)
            continue
        users = {user: counts for user, counts in row.users.items() if not _erased(user, counts, before)}
        kept.append(replace(row, users=users or None))
        for user, counts in users.items():
            growth = _growth(counts, before.users.get(user) if before is not None and before.users else None)
            if growth["calls"] > 0:
                at = floor(min(row.sent_at, now), MINUTE)
                grown.append({"minute_at": at, "process_id": row.process_id, "release_id": row.release_id,
                              "feature": row.feature, "user_id": user, **growth})  # fmt: skip
    tx.add_up(meter_users, grown, _SUMS)
    return kept


def users_between(tx: Transaction, since: datetime, until: datetime) -> dict[Place, list[Spender]]:
    """The heaviest users by service, environment, variant, feature and release, of the minutes in a window.

    Args:
        tx: a transaction.
        since: the minute of it is the first one.
        until: the minute of it is no part of it, unless it has only begun.
    """
    place = releases.c.service, releases.c.environment, releases.c.variant
    columns = *place, meter_users.c.feature, meter_users.c.release_id
    query = (
        select(*columns, meter_users.c.user_id, *(func.sum(meter_users.c[name]) for name in _SUMS))
        .join(releases, releases.c.release_id == meter_users.c.release_id)
        .where(meter_users.c.minute_at >= floor(since, MINUTE), meter_users.c.minute_at < until)
        .group_by(*columns, meter_users.c.user_id)
    )
    found: dict[Place, list[Spender]] = {}
    for *where, user, calls, tokens, cost in tx.connection.execute(query):
        found.setdefault(Place(*where), []).append(Spender(user, float(calls), float(tokens), float(cost)))
    for spenders in found.values():
        spenders.sort(key=lambda spender: (-spender.cost_usd, -spender.tokens, spender.user))
    return found


def forget(tx: Transaction, user_id: str) -> None:
    """Remove a user; processes that still tell of it are not listened to."""
    tx.connection.execute(delete(meter_users).where(meter_users.c.user_id == user_id))
    keys = tuple(meters.primary_key)
    for *key, users in tx.connection.execute(select(*keys, meters.c.users).where(meters.c.users.is_not(None))):
        if users and user_id in users:
            left = {user: counts for user, counts in users.items() if user != user_id}
            where = (column == value for column, value in zip(keys, key, strict=True))
            tx.connection.execute(update(meters).where(*where).values(users=left or {}))


def remove(tx: Transaction, now: datetime) -> None:
    """Delete what no rule looks at any more."""
    before = now - KEPT
    tx.connection.execute(delete(meter_users).where(meter_users.c.minute_at < before))
    old = meters.c.hour_at < before - timedelta(hours=1)
    tx.connection.execute(update(meters).where(old, meters.c.users.is_not(None)).values(users=None))


def _erased(user: str, counts: Sequence[float], before: Any) -> bool:
    """Whether the last message told of the user, and nobody remembers."""
    return before is not None and counts[0] < before.calls and user not in (before.users or {})


def _growth(counts: Sequence[float], before: Sequence[float] | None) -> dict[str, float]:
    """What came in since; a user that left the sketch and came back began anew."""
    came, calls, tokens, cost = counts
    if before is not None and before[0] == came:
        calls, tokens, cost = calls - before[1], tokens - before[2], cost - before[3]
    return {"calls": max(0, int(calls)), "tokens": max(0, int(tokens)), "cost_usd": max(0.0, cost)}
