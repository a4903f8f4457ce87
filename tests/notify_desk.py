"""Alerts on a real database, put there by hand, and the stage that tells people of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select

from evalpipe.alerts.grouping import Notice
from evalpipe.channels.base import Channel, Delivery
from evalpipe.incidents.incident import id_of_alert
from evalpipe.notification import Notification, to_cloudevent
from evalpipe.pipeline.notify import Notify
from evalpipe.store import alerting
from evalpipe.store.sql import Store
from evalpipe.store.tables import incidents, outbox

AT = datetime(2026, 3, 1, 10, 0, tzinfo=UTC)


class Slip:
    """A channel whose letters are read in the outbox; ``types`` are what it wants."""

    def render(self, notification: Notification) -> bytes:
        """The event itself."""
        return to_cloudevent(notification)

    def send(self, body: bytes, *, event_id: str, at: datetime) -> Delivery:
        """Always taken."""
        del body, event_id, at
        return Delivery(ok=True)


class NotifyDesk:
    """A database with alerts in it.

    Args:
        url: of a migrated database.
        names: of the channels.
        options: of the stage.
    """

    def __init__(self, url: str, names: tuple[str, ...] = ("chat",), **options: Any) -> None:
        self.store = Store(url)
        self.channels: dict[str, Channel] = {name: Slip() for name in names}
        self.options = options
        self.now = AT
        self.stage = self.notifier()

    def notifier(self) -> Notify:
        """A stage of its own, as another worker would have it."""
        return Notify(self.store, self.channels, source="/test", url="https://evals.example", **self.options)

    def fire(self, rule: str, severity: str = "SEV2", **columns: Any) -> str:
        """An alert fires, with an incident if it is none of a dry run; returns its id."""
        values = self._values(rule, severity, columns)
        alert_id = values["alert_id"]
        with self.store.begin() as tx:
            alerting.save_alerts(tx, [{**values, "status": "firing", "fired_at": self.now, **alerting.ANEW}])
            incident = {
                "incident_id": id_of_alert(alert_id, self.now), "service": "desk", "severity": severity,
                "title": rule, "source": "alert", "evidence": {}, "timeline": [], "opened_at": self.now,
            }  # fmt: skip
            alerting.open_incident(tx, incident)
        return str(alert_id)

    def change(self, rule: str, severity: str = "SEV2", **columns: Any) -> None:
        """Another severity, or other columns, in the same episode."""
        with self.store.begin() as tx:
            alerting.save_alerts(tx, [self._values(rule, severity, columns)])

    def resolve(self, rule: str, severity: str = "SEV2", **columns: Any) -> None:
        """It is over."""
        self.change(rule, severity, status="resolved", resolved_at=self.now, **columns)

    def _values(self, rule: str, severity: str, columns: Mapping[str, Any]) -> dict[str, Any]:
        place = {"service": "desk", "environment": "prod", "variant": "v7"}
        place |= {name: columns[name] for name in (*place, "feature") if name in columns}
        explanation = {"criterion": "grounded", "value": 0.7, "n": 120, "threshold": 0.8, "normal": "0.91 of 3,000",
                       "share": {"estimate": 0.4, "low": 0.3, "high": 0.5},
                       "examples": [{"record_id": "r-1", "value": 0.0, "explanation": "<b>no source</b>"}]}  # fmt: skip
        return {
            "alert_id": "/".join([*place.values(), "support", rule]), "scorecard": "support", "rule": rule, **place,
            "kind": "quality", "severity": severity, "state": {}, "labels": {"team": "care"},
            "summary": f"{rule}: 0.70 is below 0.80", "explanation": explanation, "updated_at": self.now, **columns,
        }  # fmt: skip

    def tell(self, **later: float) -> list[Notice]:
        """Run the stage, so much later."""
        self.now += timedelta(**later)
        return self.stage(self.now)

    def letters(self, channel: str = "") -> list[dict[str, Any]]:
        """The data of what is owed, oldest first."""
        query = select(outbox).order_by(outbox.c.created_at, outbox.c.event_id)
        if channel:
            query = query.where(outbox.c.channel == channel)
        with self.store.read() as tx:
            events = [json.loads(row.body) for row in tx.connection.execute(query)]
        return [{**event["data"], "type": event["type"], "subject": event["subject"]} for event in events]

    def timeline(self, alert_id: str, fired_at: datetime) -> list[str]:
        """What stands in the incident of an alert."""
        query = select(incidents.c.timeline).where(incidents.c.incident_id == id_of_alert(alert_id, fired_at))
        with self.store.read() as tx:
            return [entry["text"] for entry in tx.connection.scalar(query) or ()]

    def close(self) -> None:
        """Close the database."""
        self.store.close()
