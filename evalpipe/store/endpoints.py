"""The health of channels: since when one fails, and whether anything is sent to it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import select, update

from evalpipe.errors import ConfigError
from evalpipe.store.sql import Transaction, storable
from evalpipe.store.tables import endpoints

FAILS_FOR: Final = timedelta(days=5)
"""A channel whose every attempt failed for so long is disabled."""
AUTOMATIC: Final = "evalpipe"
"""The actor where nobody did it by hand."""


def went_well(tx: Transaction, channel: str, at: datetime) -> None:
    """An attempt was taken: the channel is well, and enabled again if it was not."""
    mine = endpoints.c.channel == channel
    values = {"failing_since": None, "updated_at": at}
    again = {**values, "disabled_at": None, "actor": AUTOMATIC, "reason": "a delivery went through"}
    tx.connection.execute(update(endpoints).where(mine, endpoints.c.disabled_at.isnot(None)).values(**again))
    tx.connection.execute(update(endpoints).where(mine, endpoints.c.failing_since.isnot(None)).values(**values))


def failed(tx: Transaction, channel: str, at: datetime, error: str, *, gone: bool) -> None:
    """An attempt failed: the channel is disabled if its receiver is gone, or has failed for ``FAILS_FOR``."""
    tx.insert_new(endpoints, [{"channel": channel, "failing_since": at, "updated_at": at}])
    mine = endpoints.c.channel == channel
    row = tx.connection.execute(select(endpoints).where(mine).with_for_update()).one()
    since = row.failing_since or at
    values: dict[str, Any] = {"failing_since": since, "updated_at": at}
    if row.disabled_at is None and (gone or at - since >= FAILS_FOR):
        why = "it wants no more" if gone else f"every attempt has failed since {since:%Y-%m-%d %H:%M} UTC"
        values |= {"disabled_at": at, "actor": AUTOMATIC, "reason": storable(f"{why}: {error}")}
    tx.connection.execute(update(endpoints).where(mine).values(**values))


def enable(tx: Transaction, channel: str, *, actor: str, reason: str, now: datetime) -> None:
    """Send to a channel again.

    Raises:
        ConfigError: it is not disabled, or nobody stands for it.
    """
    if not actor.strip() or not reason.strip():
        raise ConfigError("enabling a channel needs an actor and a reason: --actor and --reason")
    found = tx.connection.execute(
        update(endpoints)
        .where(endpoints.c.channel == channel, endpoints.c.disabled_at.isnot(None))
        .values(disabled_at=None, failing_since=None, actor=storable(actor), reason=storable(reason), updated_at=now)
        .returning(endpoints.c.channel)
    ).first()
    if found is None:
        raise ConfigError(f"no channel {channel!r} is disabled: see 'evalpipe deliveries endpoints'")


def listing(tx: Transaction) -> list[dict[str, Any]]:
    """The channels that have, or had, trouble."""
    return [dict(row) for row in tx.connection.execute(select(endpoints).order_by(endpoints.c.channel)).mappings()]
