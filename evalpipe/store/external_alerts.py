"""Alerts that another system found, as rows among our own: told, grouped, silenced and made incidents as these are.

Nothing here knows rollouts: whatever comes in, fires or resolves, leaves every latch as it is.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import select

from evalpipe.incidents.incident import id_of_alert
from evalpipe.store import alerting
from evalpipe.store.sql import Transaction, storable
from evalpipe.store.tables import alerts

KIND: Final = "external"
_MOST: Final = 500
"""Characters of a label."""
_TEXT: Final = 2_000
"""Characters of a sentence."""
_SEVERITIES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("1", "sev1", "p1", "critical", "page", "emergency", "disaster"), "SEV1"),
    **dict.fromkeys(("2", "sev2", "p2", "error", "high", "major"), "SEV2"),
    **dict.fromkeys(("3", "sev3", "p3", "warning", "warn", "medium", "ticket", "minor"), "SEV3"),
    **dict.fromkeys(("4", "sev4", "p4", "p5", "info", "low", "notice", "none"), "SEV4"),
}
_WHERE: Final = {"service": ("service", "app", "job"), "environment": ("environment", "env")}


@dataclass(frozen=True, slots=True)
class ExternalAlert:
    """What the other system says of one of its alerts.

    Attributes:
        fingerprint: of its labels; "" to make one.
        labels: who it is; ``alertname`` is its rule.
        annotations: what it says; ``summary`` or ``description`` for people.
        starts_at: of this episode, aware: with the status it tells repetitions from news.
        group_key, url: of the other system's group and page, or "".
    """

    fingerprint: str
    status: Literal["firing", "resolved"]
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    starts_at: datetime
    group_key: str = ""
    url: str = ""

    @property
    def alert_id(self) -> str:
        """Of our row."""
        text = "\x1f".join(f"{name}\x1e{value}" for name, value in sorted(self.labels.items()))
        return f"external/{self.fingerprint or hashlib.sha256(text.encode(errors='replace')).hexdigest()[:16]}"


def severity_of(labels: Mapping[str, str]) -> str:
    """SEV1 to SEV4 by the labels ``sev``, ``severity`` or ``priority``; SEV3 if none of them says so."""
    for name in ("sev", "severity", "priority"):
        if found := _SEVERITIES.get(labels.get(name, "").strip().lower()):
            return found
    return "SEV3"


def receive(tx: Transaction, found: Iterable[ExternalAlert], now: datetime) -> Counter[str]:
    """Take alerts in, each once; returns how many of them are now ``firing``, ``resolved``, and were ``unchanged``."""
    counted: Counter[str] = Counter()
    # By id: two senders at once wait for one another, and neither for both.
    for alert in sorted(found, key=lambda alert: (alert.alert_id, alert.starts_at, alert.status == "resolved")):
        counted[_one(tx, alert, now)] += 1
    return counted


def _one(tx: Transaction, alert: ExternalAlert, now: datetime) -> str:
    query = select(alerts).where(alerts.c.alert_id == alert.alert_id)
    if alert.status == "firing":
        tx.insert_new(alerts, [{"alert_id": alert.alert_id, **_columns(alert), "state": {}, "updated_at": now}])
    row = tx.connection.execute(query.with_for_update()).first()
    if row is None:
        return "unchanged"  # resolved, and nobody heard of it while it fired
    known = row.state.get("starts_at", "")
    starts_at = alert.starts_at.isoformat()
    if alert.status == "resolved":
        if row.status != "firing" or datetime.fromisoformat(known) > alert.starts_at:
            return "unchanged"
        _resolve(tx, row, alert, now)
        return "resolved"
    if known and datetime.fromisoformat(known) >= alert.starts_at:
        return "unchanged"  # a repetition, or an episode that is over
    state = {"starts_at": starts_at, "group_key": storable(alert.group_key)[:_TEXT], "url": storable(alert.url)[:_TEXT]}
    values = {**_columns(alert), "state": state}
    if row.status == "firing":  # its end was never heard of: to people it is one episode
        alerting.save_alert(tx, alert.alert_id, values, now)
        return "unchanged"
    fired = {"status": "firing", "fired_at": now, "resolved_at": None, **alerting.ANEW}
    alerting.save_alert(tx, alert.alert_id, {**values, **fired}, now)
    alerting.open_incident(tx, _incident(alert, values, now))
    return "firing"


def _resolve(tx: Transaction, row: Any, alert: ExternalAlert, now: datetime) -> None:
    alerting.save_alert(tx, alert.alert_id, {"status": "resolved", "resolved_at": now}, now)
    if row.fired_at is not None:
        text = f"{row.rule} is resolved, says Alertmanager"
        alerting.resolve_incident(tx, id_of_alert(alert.alert_id, row.fired_at), text, now)


def _columns(alert: ExternalAlert) -> dict[str, Any]:
    labels = {storable(name)[:_MOST]: storable(value)[:_MOST] for name, value in sorted(alert.labels.items())}
    rule = labels.get("alertname", "alert")
    said = next((text for name in ("summary", "description", "message") if (text := alert.annotations.get(name))), rule)
    where = {name: next((labels[key] for key in keys if labels.get(key)), "") for name, keys in _WHERE.items()}
    runbook = storable(alert.annotations.get("runbook_url", ""))[:_TEXT]
    return {
        "scorecard": "",
        "rule": rule,
        "kind": KIND,
        "severity": severity_of(alert.labels),
        "labels": labels,
        "summary": storable(said)[:_TEXT],
        "explanation": {"runbook": runbook} if runbook else {},
        **where,
    }


def _incident(alert: ExternalAlert, values: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    return {
        "incident_id": id_of_alert(alert.alert_id, now),
        "service": values["service"],
        "severity": values["severity"],
        "title": f"{values['service']}: {values['rule']}".removeprefix(": "),
        "source": "alert",
        "evidence": {"labels": values["labels"], "url": values["state"]["url"]},
        "timeline": [{"at": now.isoformat(), "text": values["summary"]}],
        "opened_at": now,
    }
