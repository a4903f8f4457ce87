"""The state of alerts, and the incidents that alerts and rollbacks opened."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import select, update

from evalpipe.store.sql import Transaction
from evalpipe.store.tables import alerts, incidents


def lock_alert(tx: Transaction, alert_id: str, values: Mapping[str, Any], now: datetime) -> Any | None:
    """The alert, made if need be and locked for this transaction; None if another evaluator has it."""
    query = select(alerts).where(alerts.c.alert_id == alert_id)
    if tx.connection.execute(query).first() is None:
        tx.insert_new(alerts, [{"alert_id": alert_id, **values, "state": {}, "updated_at": now}])
    return tx.connection.execute(query.with_for_update(skip_locked=True)).first()


def save_alert(tx: Transaction, alert_id: str, values: Mapping[str, Any], now: datetime) -> None:
    """Write the state of an alert that this transaction has locked."""
    tx.connection.execute(update(alerts).where(alerts.c.alert_id == alert_id).values(updated_at=now, **values))


def list_alerts(tx: Transaction) -> list[dict[str, Any]]:
    """All alerts that were ever evaluated."""
    query = select(alerts).order_by(alerts.c.scorecard, alerts.c.rule, alerts.c.variant)
    return [dict(row) for row in tx.connection.execute(query).mappings()]


def open_incident(tx: Transaction, values: Mapping[str, Any]) -> bool:
    """Open an incident; False if it is open already."""
    return bool(tx.insert_new(incidents, [values]))


def resolve_incident(tx: Transaction, incident_id: str, text: str, now: datetime) -> bool:
    """Close an incident that is open, with a last entry in its timeline; False if there is none."""
    mine = incidents.c.incident_id == incident_id, incidents.c.resolved_at.is_(None)
    timeline = tx.connection.scalar(select(incidents.c.timeline).where(*mine).with_for_update())
    if timeline is None:
        return False
    ended = [*timeline, {"at": now.isoformat(), "text": text}]
    tx.connection.execute(update(incidents).where(*mine).values(resolved_at=now, timeline=ended))
    return True


def list_incidents(tx: Transaction, limit: int = 50) -> list[dict[str, Any]]:
    """The newest incidents."""
    query = select(incidents).order_by(incidents.c.opened_at.desc()).limit(limit)
    return [dict(row) for row in tx.connection.execute(query).mappings()]
