"""Change events: dated changes of a service, each stored once, and what deployers asked under which name."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final

from sqlalchemy import func, select, update

from evalpipe.store.sql import Transaction
from evalpipe.store.tables import changes

DEPLOYMENT: Final = "deployment"
"""Kind of a change that nobody sent: a deployer asked about a canary under a new deployment's name."""
LEAVE: Final = "leave"
"""Kind of a change that evalpipe answered with: a deployer was let go on to a step."""
OWN: Final = (DEPLOYMENT, LEAVE)


@dataclass(frozen=True, slots=True)
class Change:
    """A dated change.

    Attributes:
        change_id: the same id is the same change.
        at: when it happened, aware UTC.
        service, environment, variant: of what changed.
        kind: what changed: one of the versions of a release, ``config``, or one of ``OWN``.
        source: who told.
        body: anything else that was told, JSON-safe.
        rollout_id: that it started; "" for none.
    """

    change_id: str
    at: datetime
    service: str
    environment: str = ""
    variant: str = ""
    kind: str = "config"
    source: str = ""
    body: dict[str, Any] = field(default_factory=dict)
    rollout_id: str = ""


def add(tx: Transaction, change: Change) -> tuple[Change, bool]:
    """Store a change unless it is there; returns the one that is stored, and whether it is new."""
    is_new = bool(tx.insert_new(changes, [asdict(change)]))
    row = tx.connection.execute(select(changes).where(changes.c.change_id == change.change_id)).mappings().one()
    return Change(**row), is_new


def started(tx: Transaction, change_id: str, rollout_id: str) -> None:
    """Note which rollout a change started."""
    tx.connection.execute(update(changes).where(changes.c.change_id == change_id).values(rollout_id=rollout_id))


def listing(tx: Transaction, *, service: str = "", limit: int = 100) -> list[dict[str, Any]]:
    """The newest changes that somebody sent, newest first."""
    query = select(changes).where(changes.c.kind.not_in(OWN)).order_by(changes.c.at.desc(), changes.c.change_id)
    if service:
        query = query.where(changes.c.service == service)
    return [dict(row) for row in tx.connection.execute(query.limit(limit)).mappings()]


def lock(tx: Transaction, name: str) -> None:
    """One deployer at a time that asks under this name. SQLite has one writer."""
    if tx.is_postgresql:
        tx.connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"evalpipe.change:{name}", 0))))
