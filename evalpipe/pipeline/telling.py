"""What is decided, and the outbox rows that tell of it, in one transaction; alerts and incidents of fixed rules."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from evalpipe.alerts.rules import Life
from evalpipe.alerts.state import AlertState, Transition, advance, standing
from evalpipe.channels.base import Channel
from evalpipe.detectors.base import Finding
from evalpipe.incidents.incident import Incident, id_of_alert, open_from_alert
from evalpipe.notification import Notification
from evalpipe.store import alerting, outbox
from evalpipe.store.sql import Transaction

Words = Callable[[Transition], str]
"""What an alert says when it fires, while it fires, and when it resolves."""


class Telling:
    """Who hears of what happens.

    Args:
        channels: every notification goes to each.
        source: CloudEvents' ``source``.
    """

    def __init__(self, channels: Mapping[str, Channel], source: str) -> None:
        self._channels = channels
        self._source = source

    def tell(
        self, tx: Transaction, key: tuple[str, ...], type_: str, subject: str, data: Mapping[str, Any], now: datetime
    ) -> None:
        """Owe every channel a notification; ``key`` names what happened, so that it is owed once."""
        for name, channel in self._channels.items():
            # Receivers compare the webhook's id with the event's, so each channel's event has an id of its own.
            notification = Notification(event_id(*key, name), type_, subject, now, data, self._source)
            outbox.post(tx, notification, name, channel.render(notification))

    def advance(
        self,
        tx: Transaction,
        alert_id: str,
        keys: Mapping[str, str],
        life: Life,
        finding: Finding,
        now: datetime,
        *,
        about: str,
        words: Words | None = None,
        labels: Mapping[str, str] | None = None,
        incident: bool = True,
    ) -> Transition | None:
        """Evaluate one alert; None if nothing changed or another worker has it. ``Notify`` tells of it.

        Args:
            tx: the transaction.
            alert_id: of the alert.
            keys: the alert's further columns.
            life: of the alert; its severity is fixed.
            finding: what is seen now.
            now: aware UTC.
            about: what an incident's title begins with.
            words: what it says; the finding's reason by default.
            labels: of the alert.
            incident: open one when it fires; it is closed when the alert resolves.
        """
        row = alerting.lock_alert(tx, alert_id, keys, now)
        if row is None:
            return None
        before = AlertState.from_state(row.state) if row.state else AlertState()
        after, transition = advance(life, before, finding, now)
        if after is before:
            return None
        shown = transition or (standing(life, after, finding, now) if after.phase == "firing" else None)
        if shown is not None and words is not None and shown.after in {"firing", "resolved"}:
            shown = replace(shown, reason=words(shown))
        values: dict[str, Any] = {
            "state": after.to_state(),
            "status": after.phase,
            "severity": life.severity,
            "summary": shown.reason if shown is not None else row.summary,
            "labels": dict(labels or {}),
            "explanation": {**dict(labels or {}), "value": finding.value, "n": finding.n},
            "fired_at": after.fired_at,
            "resolved_at": after.resolved_at,
        }
        if transition is not None and transition.after == "firing":
            values |= alerting.ANEW
        alerting.save_alert(tx, alert_id, values, now)
        if transition is None or shown is None:
            return None
        if incident and shown.after == "firing":
            severity: Any = life.severity
            open_incident(tx, open_from_alert(shown, severity, about, labels or {}, alert_id, keys["service"]))
        elif shown.after == "resolved" and shown.fired_at is not None:
            alerting.resolve_incident(tx, id_of_alert(alert_id, shown.fired_at), shown.reason, shown.at)
        return shown


def event_id(*parts: str) -> str:
    """The id of an event: what happened and to which channel it is told."""
    return "evt_" + hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:24]


def open_incident(tx: Transaction, incident: Incident) -> None:
    """Open an incident, unless it is open already."""
    alerting.open_incident(
        tx,
        {
            "incident_id": incident.incident_id,
            "service": incident.service,
            "severity": incident.severity,
            "title": incident.title,
            "source": incident.source,
            "evidence": incident.evidence,
            "timeline": [{"at": entry.at.isoformat(), "text": entry.text} for entry in incident.timeline],
            "opened_at": incident.opened_at,
        },
    )
