"""What was told of alerts: the groups as they stand, and the log; and who has taken an alert."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Select, delete, func, or_, select, update

from evalpipe.alerts.escalation import RANK
from evalpipe.alerts.grouping import Group, Notice
from evalpipe.controls import ControlError
from evalpipe.store.sql import Transaction, storable
from evalpipe.store.tables import alert_groups, alerts, notices


def lock(tx: Transaction) -> None:
    """One notifier at a time: whoever comes second waits, and then sees what the first one told.

    On SQLite there is one writer anyhow.
    """
    if tx.is_postgresql:
        tx.end_if_silent()
        tx.connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended("evalpipe.notify", 0))))


def groups(tx: Transaction) -> dict[str, Group]:
    """Every group that was told, or gathers, by ``dedup_key``."""
    rows = tx.connection.execute(select(alert_groups.c.dedup_key, alert_groups.c.group_key, alert_groups.c.state))
    return {row.dedup_key: Group.from_state(row.group_key, row.state) for row in rows}


def save(tx: Transaction, before: Mapping[str, Group], after: Mapping[str, Group], now: datetime) -> None:
    """Write the groups that changed; to be called under ``lock``."""
    gone = [key for key in before if key not in after]
    if gone:
        tx.connection.execute(delete(alert_groups).where(alert_groups.c.dedup_key.in_(gone)))
    for key, group in after.items():
        if key not in before:
            row = {"dedup_key": key, "group_key": group.key, "state": group.to_state(), "updated_at": now}
            tx.insert_new(alert_groups, [row])
        elif before[key] != group:
            mine = update(alert_groups).where(alert_groups.c.dedup_key == key)
            tx.connection.execute(mine.values(state=group.to_state(), updated_at=now))


def log(tx: Transaction, notice: Notice, channels: Iterable[str]) -> None:
    """Keep that it was told, and count the escalations on the alerts."""
    group = notice.group
    row = {
        "group_key": group.key,
        "since": group.since,
        "number": group.number,
        "at": notice.at,
        "cause": notice.cause,
        "severity": group.worst or "",
        "channels": list(channels),
        "alerts": [*notice.firing, *notice.resolved],
    }
    tx.insert_new(notices, [row])
    if notice.escalated:
        mine = update(alerts).where(alerts.c.alert_id.in_(notice.escalated))
        tx.connection.execute(mine.values(escalation=alerts.c.escalation + 1))


def told(tx: Transaction, alert_id: str, since: datetime) -> list[dict[str, Any]]:
    """The last hundred notices from ``since`` on that an alert was part of, oldest first."""
    query = select(notices).where(notices.c.at >= since).order_by(notices.c.at.desc()).limit(10_000)
    found = [dict(row) for row in tx.connection.execute(query).mappings() if alert_id in row["alerts"]]
    return found[:100][::-1]


def remove_old(tx: Transaction, before: datetime) -> None:
    """Forget notices that were made before."""
    tx.connection.execute(delete(notices).where(notices.c.at < before))


_SMALL = [c for c in alerts.c if c.name not in {"state", "explanation"}]


def standing(tx: Transaction, also: Iterable[str] = ()) -> list[dict[str, Any]]:
    """The alerts that fire or are noted as muted, and those of these ids; without state and explanation."""
    ids = list(also)
    fires = or_(alerts.c.status == "firing", alerts.c.muted_by != "")
    return _rows(tx, select(*_SMALL).where(or_(fires, alerts.c.alert_id.in_(ids)) if ids else fires))


def whole(tx: Transaction, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """These alerts with everything, by id."""
    return {row["alert_id"]: row for row in _rows(tx, select(alerts).where(alerts.c.alert_id.in_(list(ids))))}


def _rows(tx: Transaction, query: Select[Any]) -> list[dict[str, Any]]:
    return [dict(row) for row in tx.connection.execute(query).mappings()]


def fires_anywhere(tx: Transaction) -> bool:
    """Whether an alert fires, or a group has still something to hear."""
    fires = or_(alerts.c.status == "firing", alerts.c.muted_by != "")
    some = select(alerts.c.alert_id).where(fires).limit(1)
    return any(tx.connection.execute(q).first() for q in (some, select(alert_groups.c.dedup_key).limit(1)))


def mute(tx: Transaction, alert_id: str, by: str) -> None:
    """Note what mutes an alert; "" for nothing."""
    tx.connection.execute(update(alerts).where(alerts.c.alert_id == alert_id).values(muted_by=by))


def acknowledge(tx: Transaction, ids: Iterable[str], *, actor: str, reason: str, now: datetime) -> list[dict[str, Any]]:
    """Take alerts that fire: they are neither repeated nor escalated until they become more severe, or fire anew.

    Returns:
        The alerts, as they were before.

    Raises:
        ControlError: nobody stands for it, or none of them fires.
    """
    if not actor.strip() or not reason.strip():
        where = "reason" if actor.strip() else "actor"
        raise ControlError("an acknowledgement needs an actor and a reason", where=where, advice="say who, and why")
    wanted = list(ids)
    mine = select(alerts).where(alerts.c.alert_id.in_(wanted), alerts.c.status == "firing")
    found = _rows(tx, mine.order_by(alerts.c.alert_id).with_for_update())
    if not found:
        raise ControlError(
            "it does not fire", where=f"alert {', '.join(wanted)}", value=wanted[0] if len(wanted) == 1 else wanted,
            advice="only an alert that fires can be acknowledged", cause="latched",
        )  # fmt: skip
    values = {"acked_at": now, "acked_by": storable(actor), "ack_reason": storable(reason)}
    for row in found:
        change = update(alerts).where(alerts.c.alert_id == row["alert_id"])
        tx.connection.execute(change.values(**values, acked_severity=row["severity"]))
    return found


def is_acked(row: Mapping[str, Any]) -> bool:
    """Whether somebody has taken an alert, at the severity that it has."""
    at_most = RANK.get(row["acked_severity"], 0)
    return row["acked_at"] is not None and RANK.get(row["severity"], 0) <= at_most
