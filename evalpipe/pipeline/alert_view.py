"""Alerts as people are shown them, on the command line, over the API and on the page; and what people do with them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from difflib import get_close_matches
from math import ceil
from typing import Any, Final

from sqlalchemy import select

from evalpipe.alerts.escalation import RANK, RESPONSE_TIME
from evalpipe.alerts.grouping import Group
from evalpipe.controls import ControlError
from evalpipe.incidents.incident import id_of_alert
from evalpipe.store import alerting, notices
from evalpipe.store.points import points
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import alerts, incidents

_ORDER: Final = {"firing": 0, "pending": 1, "resolved": 2, "inactive": 3}
POINTS: Final = 120
"""Of a series at the most."""


def listed(tx: Transaction, *, firing: bool = False) -> list[dict[str, Any]]:
    """Every alert that was ever evaluated: those that fire first, the most severe of them on top.

    Each has ``acked`` (somebody has it), ``muted_by``, and ``respond_by``: when somebody must have answered.
    """
    query = select(*(c for c in alerts.c if c.name != "explanation"))
    if firing:
        query = query.where(alerts.c.status == "firing")
    rows = [dict(row) for row in tx.connection.execute(query).mappings()]
    groups = notices.groups(tx)
    found = [_shown(row, groups) for row in rows]
    return sorted(found, key=_place)


def view(tx: Transaction, alert_id: str, now: datetime) -> dict[str, Any] | None:
    """One alert with its explanation, its series, and what happened; None if there is none of that id."""
    row = notices.whole(tx, [alert_id]).get(alert_id)
    if row is None:
        return None
    groups = notices.groups(tx)
    mine = sorted({group.key for group in groups.values() if alert_id in group.marks})
    return {
        **_shown(row, groups),
        "groups": mine,
        "incident_id": id_of_alert(alert_id, row["fired_at"]) if row["fired_at"] else None,
        "timeline": _timeline(tx, row),
        "series": _series(tx, row, now),
    }


def find(tx: Transaction, name: str) -> list[str]:
    """The ids of the alerts that ``name`` means: an id, the end of one, a rule, or a group that was told.

    Raises:
        ControlError: there is none.
    """
    groups = [group for group in notices.groups(tx).values() if name in {group.key, group.dedup_key}]
    if groups:
        return sorted({alert_id for group in groups for alert_id in group.marks})
    ids = list(tx.connection.execute(select(alerts.c.alert_id, alerts.c.rule).order_by(alerts.c.alert_id)))
    if any(row.alert_id == name for row in ids):
        return [name]
    found = [row.alert_id for row in ids if row.rule == name or row.alert_id.endswith(f"/{name}")]
    if not found:
        near = get_close_matches(name, [*(row.alert_id for row in ids), *(row.rule for row in ids)], n=1)
        advice = (f"did you mean {near[0]!r}? " if near else "") + "'evalpipe alerts' lists those that there are"
        raise ControlError(
            "there is no such alert", where=f"alert {name!r}", value=name, advice=advice, cause="missing"
        )
    return found


def the_one(tx: Transaction, name: str) -> str:
    """The id of the alert that ``name`` means; of several of a rule, the one that fires.

    Raises:
        ControlError: there is none, or several.
    """
    found = find(tx, name)
    if len(found) > 1:
        fires = set(tx.connection.scalars(select(alerts.c.alert_id).where(alerts.c.status == "firing")))
        found = [alert_id for alert_id in found if alert_id in fires] or found
    if len(found) > 1:
        advice = f"say which: {', '.join(found[:5])}{' ...' if len(found) > 5 else ''}"
        raise ControlError(f"{len(found)} alerts are meant", where="alert", value=name, advice=advice)
    return found[0]


def acknowledge(tx: Transaction, name: str, *, actor: str, reason: str, now: datetime) -> list[str]:
    """Take an alert, or all of a rule or group that fire; returns their ids. It stands in their incidents.

    Raises:
        ControlError: there is none, none fires, or nobody stands for it.
    """
    taken = notices.acknowledge(tx, find(tx, name), actor=actor, reason=reason, now=now)
    for row in taken:
        if row["fired_at"] is not None:
            text = f"{actor} acknowledged {row['rule']}: {reason}"
            alerting.note_incident(tx, id_of_alert(row["alert_id"], row["fired_at"]), text, now)
    return [row["alert_id"] for row in taken]


def _shown(row: Mapping[str, Any], groups: Mapping[str, Group]) -> dict[str, Any]:
    acked = notices.is_acked(row)
    marks = [group.marks[row["alert_id"]] for group in groups.values() if row["alert_id"] in group.marks]
    told_at = min((mark.told_at for mark in marks), default=None)
    answers = row["status"] == "firing" and not acked and not row["muted_by"] and not row["dry_run"]
    since = told_at or row["fired_at"]
    by = since + RESPONSE_TIME[row["severity"]] if answers and since and row["severity"] in RANK else None
    return {**row, "dry_run": bool(row["dry_run"]), "acked": acked, "told_at": told_at, "respond_by": by}


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    since = row["fired_at"].timestamp() if row["fired_at"] else 0.0
    return _ORDER.get(row["status"], 9), row["dry_run"], -RANK.get(row["severity"], 0), -since, row["alert_id"]


def _timeline(tx: Transaction, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What happened in the newest episode, oldest first: of the incident where there is one, and who was told."""
    if row["fired_at"] is None:
        return []
    incident = id_of_alert(row["alert_id"], row["fired_at"])
    entries = tx.connection.scalar(select(incidents.c.timeline).where(incidents.c.incident_id == incident))
    found = [{"at": datetime.fromisoformat(entry["at"]), "text": entry["text"]} for entry in entries or ()]
    if entries is None:
        found.append({"at": row["fired_at"], "text": f"{row['rule']} fires"})
        if row["acked_at"] is not None:
            found.append({"at": row["acked_at"], "text": f"{row['acked_by']} acknowledged it: {row['ack_reason']}"})
        if row["status"] == "resolved" and row["resolved_at"] is not None:
            found.append({"at": row["resolved_at"], "text": "resolved"})
    for notice in notices.told(tx, row["alert_id"], row["fired_at"]):
        to = ", ".join(notice["channels"]) or "no channel"
        found.append({"at": notice["at"], "text": f"told to {to} ({notice['cause']})"})
    return sorted(found, key=lambda entry: entry["at"])


def _series(tx: Transaction, row: Mapping[str, Any], now: datetime) -> list[dict[str, Any]]:
    """The mean of the alert's criterion around its newest episode; empty where it is about no criterion."""
    criterion = (row["explanation"] or {}).get("criterion")
    if not criterion or not row["scorecard"]:
        return []
    until = min(row["resolved_at"] + timedelta(hours=1), now) if row["resolved_at"] else now
    since = max((row["fired_at"] or until) - timedelta(hours=3), until - timedelta(days=2))
    where = {name: row[name] for name in ("service", "environment", "variant", "scorecard")}
    where |= {name: row[name] for name in ("feature", "release_id") if row[name]}
    step = timedelta(minutes=max(1, ceil((until - since) / timedelta(minutes=1) / POINTS)))
    found = [
        {"at": at, "value": rollup.mean, "n": rollup.n_scored, "epoch": line.key[0]}
        for line in points(tx, since, until, step, ("epoch",), criterion=criterion, **where)
        for at, rollup in zip(line.starts, line.rollups(), strict=True)
    ]
    return sorted(found, key=lambda point: (point["at"], point["epoch"]))
