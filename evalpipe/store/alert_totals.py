"""Alerts and what is around them in numbers, for metrics: bounded, however many alerts there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import case, func, or_, select

from evalpipe.alerts.escalation import RANK
from evalpipe.store import evaluations, exports, prints, silences
from evalpipe.store.evaluations import Evaluation
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import alerts, baselines, notices

MOST: Final = 1_000
"""Alerts that are shown one by one: those that fire, then those that pend, then the rest."""
RECENT: Final = timedelta(days=1)
"""Alerts that do not fire, and of which there was no news for so long, are only counted."""
_SHOWN: Final = (
    "scorecard", "rule", "kind", "service", "environment", "variant", "feature", "severity", "dry_run", "status",
    "acked_at", "acked_severity", "muted_by",
)  # fmt: skip
_ORDER: Final = {"firing": 0, "pending": 1}


@dataclass(frozen=True, slots=True)
class Around:
    """What alerts are at, and what they need.

    Attributes:
        shown: at most ``MOST`` alerts, most urgent first; columns ``_SHOWN``.
        counted: (kind, dry_run, status, n) of all alerts.
        notices: (cause, severity, n) of the day so far.
        silences: that mute now.
        evaluation: the last one of all rules; None if there never was one.
        growths: commits of scores that no evaluation has folded, and since when.
        exports: scores owed to an OpenTelemetry endpoint, and since when.
        baselines: (service, environment, variant, until_at) of the newest ones in use.
        prints: (name, round_at, error, rounds since the reference began) of every set of fingerprints.
    """

    shown: Sequence[Any]
    counted: Sequence[Any]
    notices: Sequence[Any]
    silences: int
    evaluation: Evaluation | None
    growths: tuple[int, datetime | None]
    exports: tuple[int, datetime | None]
    baselines: Sequence[Any]
    prints: Sequence[Any]


def read(tx: Transaction, midnight: datetime, now: datetime) -> Around:
    """Look at all of it."""
    return Around(
        shown=_shown(tx, now),
        counted=_counted(tx),
        notices=_notices(tx, midnight),
        silences=len(silences.active(tx, now)),
        evaluation=evaluations.last(tx),
        growths=evaluations.waiting(tx),
        exports=exports.waiting(tx),
        baselines=_baselines(tx),
        prints=prints.sets(tx),
    )


def is_acked(row: Any) -> bool:
    """Whether somebody has taken a shown alert, at the severity that it has."""
    return row.acked_at is not None and RANK.get(row.severity, 0) <= RANK.get(row.acked_severity, 0)


def _shown(tx: Transaction, now: datetime) -> Sequence[Any]:
    order = case(_ORDER, value=alerts.c.status, else_=len(_ORDER))
    query = (
        select(*(alerts.c[name] for name in _SHOWN))
        .where(or_(alerts.c.status.in_(_ORDER), alerts.c.updated_at >= now - RECENT))
        .order_by(order, alerts.c.alert_id)
        .limit(MOST)
    )
    return tx.connection.execute(query).all()


def _counted(tx: Transaction) -> Sequence[Any]:
    of = (alerts.c.kind, alerts.c.dry_run, alerts.c.status)
    return tx.connection.execute(select(*of, func.count().label("n")).group_by(*of).order_by(*of)).all()


def _notices(tx: Transaction, midnight: datetime) -> Sequence[Any]:
    of = (notices.c.cause, notices.c.severity)
    query = select(*of, func.count().label("n")).where(notices.c.at >= midnight).group_by(*of).order_by(*of)
    return tx.connection.execute(query).all()


def _baselines(tx: Transaction) -> Sequence[Any]:
    of = (baselines.c.service, baselines.c.environment, baselines.c.variant)
    newest = func.max(baselines.c.until_at, type_=baselines.c.until_at.type).label("until_at")
    query = select(*of, newest).where(baselines.c.retired_at.is_(None)).group_by(*of).order_by(*of)
    return tx.connection.execute(query).all()
