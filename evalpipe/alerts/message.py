"""What a notice says: the data of ``io.evalpipe.alert.firing.v1`` and ``io.evalpipe.alert.resolved.v1``. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

from evalpipe.alerts.escalation import RANK
from evalpipe.alerts.grouping import Notice

MOST: Final = 20
"""Alerts in a notice; ``n_alerts`` says how many there are."""
MOST_BYTES: Final = 15_000
"""Of the data, so that the event stays below what receivers are at ease with."""
LONGEST: Final = 300
"""Characters of a text that a model or a user wrote."""
Row = Mapping[str, Any]

_PLACE: Final = ("service", "environment", "variant")
_NUMBERS: Final = ("value", "n", "threshold", "ratio")


def notice_data(notice: Notice, rows: Mapping[str, Row], url: str, *, whole: bool = False) -> dict[str, Any]:
    """The data of a notice.

    Args:
        notice: what is to be told.
        rows: its alerts as they are stored, by id; one that is not there any more is left out.
        url: where the pages are; "" if nobody has said.
        whole: all of its alerts, however many; those beyond ``MOST`` without explanations.
    """
    firing = [rows[id_] for id_ in notice.firing if id_ in rows]
    resolved = sorted((rows[i] for i in notice.resolved if i in rows), key=lambda r: (-_rank(r), r["alert_id"]))
    listed = [*firing, *resolved]
    group = notice.group
    told = [_alert(row, url, "firing" if index < len(firing) else "resolved") for index, row in enumerate(listed)]
    leading: Row = told[0] if told else {}
    severity = group.worst if notice.status == "resolved" else max(
        (row["severity"] for row in firing), key=lambda name: RANK.get(name, 0), default=group.worst
    )  # fmt: skip
    labels = _shared([row["labels"] or {} for row in listed])
    data = {
        **labels,
        **{name: leading.get(name) for name in ("alert_id", "rule", "scorecard", "criterion", *_NUMBERS, "reason")},
        **{name: leading.get(name) for name in ("fired_at", "resolved_at")},
        **({"moved": moved} if (moved := (listed[0]["explanation"] or {}).get("moved") if listed else None) else {}),
        **_common({name: row[name] for name in _PLACE} for row in listed),
        "state": notice.status,
        "group_key": group.key,
        "dedup_key": group.dedup_key,
        "status": notice.status,
        "cause": notice.cause,
        "severity": severity,
        "title": _title(notice, severity or "", listed),
        "summary": _summary(notice, listed),
        "started_at": min((row["fired_at"] for row in listed if row["fired_at"]), default=group.since).isoformat(),
        "respond_by": notice.respond_by.isoformat() if notice.respond_by else None,
        "acked_by": ", ".join(sorted({row["acked_by"] for row in firing if row["acked_by"]})),
        "escalation": notice.escalation,
        "url": page_url(url, leading.get("alert_id", "")),
        "labels": labels,
        "alerts": told[:MOST],
        "n_alerts": len(listed),
    }
    if whole:
        return {**data, "alerts": [*told[:MOST], *map(_without_explanation, told[MOST:])]}
    return _bounded(data)


def page_url(url: str, alert_id: str) -> str:
    """The page of an alert; "" if nobody has said where the pages are."""
    return f"{url.rstrip('/')}/alerts#{quote(alert_id, safe='')}" if url else ""


def _alert(row: Row, url: str, status: str) -> dict[str, Any]:
    explanation = dict(row["explanation"] or {})
    names = ("alert_id", "rule", "kind", "severity", *_PLACE, "feature", "release_id", "scorecard")
    return {
        **{name: row[name] for name in names},
        **{name: explanation.get(name) for name in _NUMBERS},
        "status": status,
        "criterion": explanation.get("criterion", ""),
        "reason": row["summary"],
        "fired_at": _iso(row["fired_at"]),
        "resolved_at": _iso(row["resolved_at"]) if status == "resolved" else None,
        "runbook": explanation.get("runbook", ""),
        "labels": dict(row["labels"] or {}),
        "url": page_url(url, row["alert_id"]),
        "explanation": _cut(explanation),
    }


def _title(notice: Notice, severity: str, listed: Sequence[Row]) -> str:
    if not listed:
        return f"{severity} {notice.group.key}: {notice.status}"
    first = listed[0]
    where = "/".join(first[name] for name in (*_PLACE, "feature") if first[name])
    more = f" (and {len(listed) - 1} more)" if len(listed) > 1 else ""
    over = "resolved: " if notice.status == "resolved" else ""
    return f"{over}{severity} {where + ': ' if where else ''}{first['rule']}{more}"


def _summary(notice: Notice, listed: Sequence[Row]) -> str:
    if not listed:
        return "the alerts of this group are not there any more"
    reason = listed[0]["summary"]
    if notice.cause == "escalated":
        return f"nobody has acknowledged this in time: {reason}"
    if notice.cause == "acknowledged":
        who = ", ".join(sorted({row["acked_by"] for row in listed if row["acked_by"]}))
        return f"{who} has taken this: {reason}"
    return str(reason)


def _common(rows: Any) -> dict[str, str]:
    """What all of them have; "" where they differ."""
    found: dict[str, str] = dict.fromkeys(_PLACE, "")
    for index, row in enumerate(rows):
        found = dict(row) if index == 0 else {k: v if row[k] == v else "" for k, v in found.items()}
    return found


def _shared(labels: Sequence[Mapping[str, str]]) -> dict[str, str]:
    if not labels:
        return {}
    return {k: v for k, v in labels[0].items() if all(other.get(k) == v for other in labels[1:])}


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= LONGEST else value[: LONGEST - 1] + "…"
    if isinstance(value, Mapping):
        return {str(name): _cut(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_cut(entry) for entry in value]
    return value


def _bounded(data: dict[str, Any]) -> dict[str, Any]:
    """Leave out examples, then explanations, long texts, and alerts, the least severe first, until it is small enough.

    The words of the leading alert at the top stay whole for as long as that is possible.
    """
    alerts = data["alerts"]
    for shrink in (_without_examples, _without_explanation, _cut):
        for place in range(len(alerts) - 1, -1, -1):
            if _size(data) <= MOST_BYTES:
                return data
            alerts[place] = shrink(alerts[place])
    while len(alerts) > 1 and _size(data) > MOST_BYTES:
        alerts.pop()
    return data if _size(data) <= MOST_BYTES else {**_cut(data), "labels": {}}


def _without_examples(alert: dict[str, Any]) -> dict[str, Any]:
    return {**alert, "explanation": {k: v for k, v in alert["explanation"].items() if k != "examples"}}


def _without_explanation(alert: dict[str, Any]) -> dict[str, Any]:
    return {**alert, "explanation": {}}


def _size(data: Mapping[str, Any]) -> int:
    return len(json.dumps(data, default=str, ensure_ascii=False).encode(errors="replace"))


def _rank(row: Row) -> int:
    return RANK.get(row["severity"], 0)


def _iso(at: datetime | None) -> str | None:
    return at.isoformat() if at else None
