"""Alerts, incidents and outbox rows in one transaction: so nothing is decided without being told, nor told twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from evalpipe.alerts.rules import Observation, ThresholdRule
from evalpipe.alerts.state import AlertState, Transition, advance, standing
from evalpipe.channels.base import Channel
from evalpipe.incidents.incident import Incident, id_of_alert, open_from_alert
from evalpipe.notification import ALERT_FIRING, ALERT_RESOLVED, Notification
from evalpipe.store import alerting, outbox
from evalpipe.store.sql import Transaction

Words = Callable[[Transition], tuple[str, Mapping[str, Any]]]
"""What an alert says when it fires, while it fires, and when it resolves: its reason, and further data."""


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
        rule: ThresholdRule,
        seen: Observation,
        *,
        about: str,
        words: Words | None = None,
        incident: bool = True,
    ) -> Transition | None:
        """Evaluate one alert, and tell where it fires or resolves; None if nothing changed or another evaluator has it.

        Args:
            tx: the transaction.
            alert_id: of the alert.
            keys: the alert's further columns.
            rule: when it fires.
            seen: what the rule sees now.
            about: what an incident's title begins with.
            words: what it says; the numbers of the rule by default.
            incident: open one when it fires; it is closed when the alert resolves.
        """
        row = alerting.lock_alert(tx, alert_id, keys, seen.at)
        if row is None:
            return None
        before = AlertState.from_state(row.state) if row.state else AlertState()
        after, transition = advance(rule, before, seen, seen.at)
        more: Mapping[str, Any] = {}
        shown = transition
        if shown is None and after.phase == "firing" and after is not before:
            shown = standing(rule, after, seen)
        if shown is not None and words is not None and shown.after in {"firing", "resolved"}:
            reason, more = words(shown)
            shown = replace(shown, reason=reason)
        summary = shown.reason if shown is not None else row.summary
        values = {"state": after.to_state(), "status": after.phase, "severity": rule.severity, "summary": summary}
        alerting.save_alert(tx, alert_id, values, seen.at)
        if transition is None or shown is None:
            return None
        if shown.after in {"firing", "resolved"}:
            self._alert(tx, alert_id, keys, rule, shown, more)
            if incident and shown.after == "firing":
                open_incident(tx, open_from_alert(rule, shown, about, alert_id))
            elif shown.after == "resolved" and shown.fired_at is not None:
                alerting.resolve_incident(tx, id_of_alert(alert_id, shown.fired_at), shown.reason, shown.at)
        return shown

    def _alert(
        self,
        tx: Transaction,
        alert_id: str,
        keys: Mapping[str, str],
        rule: ThresholdRule,
        transition: Transition,
        more: Mapping[str, Any],
    ) -> None:
        assert transition.fired_at is not None
        data = {
            **keys,
            "alert_id": alert_id,
            "state": transition.after,
            "criterion": rule.criterion,
            "value": transition.value,
            "n": transition.n,
            "threshold": rule.threshold,
            "reason": transition.reason,
            "fired_at": transition.fired_at.isoformat(),
            **more,
        }
        key = alert_id, transition.fired_at.isoformat(), transition.after
        type_ = ALERT_FIRING if transition.after == "firing" else ALERT_RESOLVED
        self.tell(tx, key, type_, alert_id, data, transition.at)


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
