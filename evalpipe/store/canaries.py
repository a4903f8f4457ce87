"""Which rollouts a canary's name means, for deployers who know their releases and not our ids."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select

from evalpipe.store.sql import Transaction
from evalpipe.store.tables import decisions, releases, rollouts


@dataclass(frozen=True, slots=True)
class Trial:
    """A rollout of a canary.

    Attributes:
        rollout_id: see ``store.rollouts``.
        service, environment: where it is.
        phase: that it is in.
        decided_at: of its newest decision; None before the first.
    """

    rollout_id: str
    service: str
    environment: str
    phase: str
    decided_at: datetime | None


def trials(tx: Transaction, canary: str, *, service: str = "", environment: str | None = None) -> list[Trial]:
    """The rollouts of a variant, newest first, without those that a newer release of it has superseded."""
    decided = (select(func.max(decisions.c.decided_at)).where(decisions.c.rollout_id == rollouts.c.rollout_id)).label(
        "decided_at"
    )
    names = [rollouts.c[name] for name in ("rollout_id", "service", "environment", "phase")]
    query = select(*names, decided).where(rollouts.c.canary == canary, rollouts.c.phase != "superseded")
    if service:
        query = query.where(rollouts.c.service == service)
    if environment is not None:
        query = query.where(rollouts.c.environment == environment)
    found = tx.connection.execute(query.order_by(rollouts.c.started_at.desc(), rollouts.c.rollout_id).limit(100))
    return [Trial(**row) for row in found.mappings()]


def is_known(tx: Transaction, variant: str, service: str = "") -> bool:
    """Whether a release of this variant was ever seen in traffic."""
    query = select(releases.c.release_id).where(releases.c.variant == variant).limit(1)
    if service:
        query = query.where(releases.c.service == service)
    return tx.connection.scalar(query) is not None


def environments(tx: Transaction, service: str) -> list[str]:
    """The environments that traffic of a service has come from."""
    query = select(releases.c.environment).where(releases.c.service == service).distinct()
    return sorted(tx.connection.scalars(query))


def newest_decisions(tx: Transaction, rollout_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The newest decision of each rollout that has one, without the evidence."""
    columns = [decisions.c[name] for name in ("rollout_id", "action", "cause", "gate", "reason", "actor", "decided_at")]
    newest = (decisions.c.rollout_id == rollouts.c.rollout_id) & (decisions.c.seq == rollouts.c.decision_seq)
    query = select(*columns).join(rollouts, newest).where(rollouts.c.rollout_id.in_(list(rollout_ids)))
    return {row["rollout_id"]: dict(row) for row in tx.connection.execute(query).mappings()}
