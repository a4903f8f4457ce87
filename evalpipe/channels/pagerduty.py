"""PagerDuty, Events API v2: an alert triggers and resolves, a decision of a rollout is a change event and pages nobody.

Source: PagerDuty's "Send an Alert Event" and "Send a Change Event": summary of at most 1,024 characters, dedup_key of
at most 255, 512 kB; 429, 5xx and network errors may be tried again, 400 never.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from pydantic import Field

from evalpipe.channels.base import TIMEOUT_S, Channel, ChannelConfig, Delivery, Secret, channels
from evalpipe.channels.http import UNREADABLE, Request, check_url, send
from evalpipe.channels.notice import Notice, PeopleConfig, examples, line, link, notice_of, numbers
from evalpipe.channels.pace import Pace
from evalpipe.notification import Notification

SEVERITIES: Final = {"SEV1": "critical", "SEV2": "error", "SEV3": "warning", "SEV4": "info"}
SUMMARY: Final = 1024
ALERTS: Final = "/v2/enqueue"
CHANGES: Final = "/v2/change/enqueue"


class PagerDutyConfig(PeopleConfig):
    """Which service of PagerDuty is told."""

    routing_key: Secret = Field(repr=False, description="The integration key of an Events API v2 integration.")
    api_url: str = Field(
        "https://events.pagerduty.com", description="Of the Events API; https://events.eu.pagerduty.com in the EU."
    )
    timeout_s: float = Field(TIMEOUT_S, gt=0, le=TIMEOUT_S, description="Seconds for one attempt.")


@channels.register("pagerduty")
class PagerDuty(Channel):
    """All notices of one episode have one dedup key, so PagerDuty has one alert for them."""

    Config = PagerDutyConfig
    in_order = True
    by_episode = True

    def __init__(self, config: ChannelConfig) -> None:
        assert isinstance(config, PagerDutyConfig)
        self._url = check_url(config.api_url, "the api_url").rstrip("/")
        self._config = config
        self._pace = Pace()

    def render(self, notification: Notification) -> bytes:
        """The path and the event without its routing key; empty for what is not told."""
        notice = notice_of(notification, self._config)
        if notice is None:
            return b""
        if notice.kind == "decision":
            path, event = CHANGES, _change(notice, notification.source)
        else:
            path, event = ALERTS, _event(notice, notification.source)
        return json.dumps({"path": path, "event": event}, sort_keys=True, separators=(",", ":")).encode()

    def send(self, body: bytes, *, event_id: str, at: datetime) -> Delivery:
        """POST the event, with the routing key."""
        if (refused := self._pace.wait(at)) is not None:
            return refused
        written = json.loads(body)
        content = json.dumps({**written["event"], "routing_key": self._config.routing_key}).encode()
        headers = {"content-type": "application/json", "user-agent": "evalpipe", "x-request-id": event_id}
        request = Request("POST", self._url + written["path"], content, headers)
        secrets = [self._config.routing_key]
        done = send(request, timeout_s=self._config.timeout_s, at=at, secrets=secrets, final=UNREADABLE)
        return self._pace.heard(done, at)


def _event(notice: Notice, source: str) -> dict[str, Any]:
    """Trigger, acknowledge or resolve."""
    action = {"resolved": "resolve"}.get(notice.status, "trigger")
    if notice.cause == "acknowledged" and not notice.data.get("respond_by"):  # nobody is waited for any more
        action = "acknowledge"
    event: dict[str, Any] = {"event_action": action, "dedup_key": notice.key}
    if action != "trigger":
        return event
    first: Mapping[str, Any] = notice.alerts[0] if notice.alerts else {}
    payload = {
        "summary": line(f"{notice.headline}: {notice.summary}".rstrip(": "), SUMMARY),
        "source": line(source or "evalpipe"),
        "severity": SEVERITIES.get(notice.severity, "warning"),
        "timestamp": _time(notice),
        "component": line(notice.data.get("service")),
        "group": line(notice.data.get("environment")),
        "class": line(first.get("kind") or notice.kind),
        "custom_details": _details(notice),
    }
    links = [{"href": notice.url, "text": "evalpipe"}] if notice.url else []
    if runbook := link(first.get("runbook")):
        links.append({"href": runbook, "text": "runbook"})
    event |= {"client": "evalpipe", "payload": {name: value for name, value in payload.items() if value}}
    if links:
        event["links"] = links
    if notice.url:
        event["client_url"] = notice.url
    return event


def _change(notice: Notice, source: str) -> dict[str, Any]:
    event: dict[str, Any] = {
        "payload": {
            "summary": line(f"{notice.headline}: {notice.summary}".rstrip(": "), SUMMARY),
            "timestamp": notice.at.astimezone(UTC).isoformat(),
            "source": line(source or "evalpipe"),
            "custom_details": dict(notice.facts),
        }
    }
    if notice.url:
        event["links"] = [{"href": notice.url, "text": "evalpipe"}]
    return event


def _time(notice: Notice) -> str:
    """Since when, in ISO 8601; PagerDuty refuses an event whose time it cannot read."""
    try:
        started = datetime.fromisoformat(notice.started_at)
    except ValueError:
        started = notice.at
    return (started if started.tzinfo else notice.at).astimezone(UTC).isoformat()


def _details(notice: Notice) -> dict[str, Any]:
    """What is known, in lines: far below 512 kB, whatever the alerts say."""
    details: dict[str, Any] = {"what": notice.summary, **dict(notice.facts)}
    listed = {}
    for alert in notice.alerts[:20]:
        told = ", ".join(f"{name} {value}" for name, value in numbers(alert))
        name = line(alert.get("alert_id") or alert.get("rule") or "alert", 200)
        head = " ".join(line(alert.get(name)) for name in ("severity", "status"))
        listed[name] = line(f"{head}: {line(alert.get('reason'), 500)} ({told})", 1000)
    if listed:
        details["alerts"] = listed
        details["examples"] = list(examples(notice.alerts[0], 10))
    return details
