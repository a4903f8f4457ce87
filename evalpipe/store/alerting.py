"""The state of alerts, and the incidents that alerts and rollbacks opened."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import case, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from evalpipe.store.sql import Transaction, storable, storable_json
from evalpipe.store.tables import alerts, incidents, records, scores

ANEW: Final[Mapping[str, Any]] = {
    "acked_at": None,
    "acked_by": "",
    "ack_reason": "",
    "acked_severity": "",
    "escalation": 0,
}
"""What an alert begins a new episode with: nobody knows of it yet."""
_LOCK: Final = func.hashtextextended("evalpipe.alerts", 0)
"""Of the one evaluation at a time, on PostgreSQL; SQLite has one writer anyhow."""
_OTHERS: Final = ("judge", "delivery", "external")
"""Kinds of alerts that no rule evaluates."""


def try_lock(tx: Transaction) -> bool:
    """Whether this transaction is the one that evaluates alert rules now."""
    if not tx.is_postgresql:
        return True
    tx.end_if_silent()
    return bool(tx.connection.scalar(select(func.pg_try_advisory_xact_lock(_LOCK))))


def of_rules(tx: Transaction) -> list[Any]:
    """The alerts that rules have, as they were left; only those that fire with their explanation."""
    a = alerts.c
    told = case((a.status == "firing", a.explanation)).label("explanation")
    query = select(a.alert_id, a.state, a.summary, told, a.labels, a.updated_at).where(a.kind.not_in(_OTHERS))
    return list(tx.connection.execute(query))


def save_alerts(tx: Transaction, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write many alerts, new or not; each row has ``alert_id``, and rows of the same columns go together."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row), []).append(_storable(row))
    for names, group in groups.items():
        insert = (postgresql.insert if tx.is_postgresql else sqlite.insert)(alerts)
        values = {name: insert.excluded[name] for name in names if name != "alert_id"}
        tx.connection.execute(insert.on_conflict_do_update(index_elements=["alert_id"], set_=values), group)


def worst(
    tx: Transaction,
    criterion: str,
    where: Mapping[str, str],
    since: datetime,
    until: datetime,
    *,
    highest: bool = False,
    limit: int = 10,
) -> list[dict[str, Any]]:
    """The records with the lowest (or highest) scores of a criterion in a window, with what was said of each."""
    value = scores.c.value.desc() if highest else scores.c.value
    query = (
        select(scores.c.record_id, scores.c.value, scores.c.explanation, scores.c.captured_at)
        .where(scores.c.criterion == criterion, scores.c.captured_at >= since, scores.c.captured_at <= until)
        .where(scores.c.status == "scored", scores.c.weight > 0, scores.c.arm == "served")
        .where(*(scores.c[name] == wanted for name, wanted in where.items()))
        .order_by(value, scores.c.captured_at.desc(), scores.c.record_id)
        .limit(limit)
    )
    return [_example(row) for row in tx.connection.execute(query)]


def examples(tx: Transaction, record_ids: Sequence[str], criterion: str = "") -> list[dict[str, Any]]:
    """These records in this order, with their scores of a criterion; those that are not kept any more are left out."""
    query = select(records.c.record_id, records.c.captured_at).where(records.c.record_id.in_(record_ids))
    found = {row.record_id: {**_example(row), "value": None, "explanation": ""} for row in tx.connection.execute(query)}
    if criterion:
        mine = scores.c.record_id.in_(record_ids), scores.c.criterion == criterion
        wanted = select(scores.c.record_id, scores.c.value, scores.c.explanation, scores.c.captured_at).where(*mine)
        found |= {row.record_id: _example(row) for row in tx.connection.execute(wanted.order_by(scores.c.scored_at))}
    return [found[record_id] for record_id in record_ids if record_id in found]


def _example(row: Any) -> dict[str, Any]:
    value = getattr(row, "value", None)
    said = getattr(row, "explanation", "")[:EXPLANATION_CHARS]
    return {"record_id": row.record_id, "value": value, "explanation": said, "at": row.captured_at.isoformat()}


def _storable(row: Mapping[str, Any]) -> dict[str, Any]:
    """One number or sign that the database refuses must not stop every alert."""
    return {name: storable_json(value) for name, value in row.items()}


EXPLANATION_CHARS: Final = 500
"""Of each example's explanation: the whole is with the record."""


def lock_alert(tx: Transaction, alert_id: str, values: Mapping[str, Any], now: datetime) -> Any | None:
    """The alert, made if need be and locked for this transaction; None if another evaluator has it."""
    query = select(alerts).where(alerts.c.alert_id == alert_id)
    if tx.connection.execute(query).first() is None:
        tx.insert_new(alerts, [{"alert_id": alert_id, **values, "state": {}, "updated_at": now}])
    return tx.connection.execute(query.with_for_update(skip_locked=True)).first()


def save_alert(tx: Transaction, alert_id: str, values: Mapping[str, Any], now: datetime) -> None:
    """Write the state of an alert that this transaction has locked."""
    tx.connection.execute(
        update(alerts).where(alerts.c.alert_id == alert_id).values(updated_at=now, **_storable(values))
    )


def remove_old(tx: Transaction, before: datetime) -> None:
    """Forget alerts that neither wait nor fire, and of which nothing has changed since: their place is gone."""
    is_over = alerts.c.status.in_(("inactive", "resolved")), alerts.c.updated_at < before
    tx.connection.execute(delete(alerts).where(*is_over))


def forget(tx: Transaction, record_ids: Collection[str]) -> None:
    """Blank what alerts quote of these records; an evaluation that has read it already is waited for."""
    if tx.is_postgresql:
        tx.connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    gone = set(record_ids)
    for alert_id, explanation in tx.connection.execute(select(alerts.c.alert_id, alerts.c.explanation)).all():
        quoted = explanation.get("examples") or ()
        if any(one["record_id"] in gone for one in quoted):
            left = [{**one, "explanation": ""} if one["record_id"] in gone else one for one in quoted]
            mine = update(alerts).where(alerts.c.alert_id == alert_id)
            tx.connection.execute(mine.values(explanation={**explanation, "examples": left}))


def list_alerts(tx: Transaction) -> list[dict[str, Any]]:
    """All alerts that were ever evaluated."""
    query = select(alerts).order_by(alerts.c.scorecard, alerts.c.rule, alerts.c.variant)
    return [dict(row) for row in tx.connection.execute(query).mappings()]


def open_incident(tx: Transaction, values: Mapping[str, Any]) -> bool:
    """Open an incident; False if it is open already."""
    return bool(tx.insert_new(incidents, [_storable(values)]))


def note_incident(tx: Transaction, incident_id: str, text: str, now: datetime, **changes: Any) -> bool:
    """Add an entry to the timeline of an incident that is open, and change these columns; False if there is none."""
    mine = incidents.c.incident_id == incident_id, incidents.c.resolved_at.is_(None)
    timeline = tx.connection.scalar(select(incidents.c.timeline).where(*mine).with_for_update())
    if timeline is None:
        return False
    entries = [*timeline, {"at": now.isoformat(), "text": storable(text)}]
    tx.connection.execute(update(incidents).where(*mine).values(timeline=entries, **changes))
    return True


def resolve_incident(tx: Transaction, incident_id: str, text: str, now: datetime) -> bool:
    """Close an incident that is open, with a last entry in its timeline; False if there is none."""
    return note_incident(tx, incident_id, text, now, resolved_at=now)


def list_incidents(tx: Transaction, limit: int = 50) -> list[dict[str, Any]]:
    """The newest incidents."""
    query = select(incidents).order_by(incidents.c.opened_at.desc()).limit(limit)
    return [dict(row) for row in tx.connection.execute(query).mappings()]
