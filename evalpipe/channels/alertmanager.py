"""Alertmanager: alerts by POST /api/v2/alerts; it groups, silences and routes them once more, by its own configuration.

Alertmanager resolves what is not repeated before its ``endsAt``, and forgets all alerts when it restarts. So a firing
alert is sent with an ``endsAt`` far ahead (``expires_after_s``), the deliverer sends the newest notice of what fires
again every five minutes (``resend_after``), and only our resolution ends it: neither an evalpipe that is down for an
hour nor an Alertmanager that was restarted makes an alert look resolved.
Source: Alertmanager's ``api/v2/openapi.yaml`` and ``docs/alerts_api.md``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final

from pydantic import Field

from evalpipe.channels.base import TIMEOUT_S, Channel, ChannelConfig, Delivery, Secret, channels
from evalpipe.channels.http import UNREADABLE, Request, check_url, send
from evalpipe.channels.notice import Notice, PeopleConfig, examples, line, link, notice_of, numbers
from evalpipe.channels.pagerduty import SEVERITIES
from evalpipe.notification import ROLLBACK, Notification

REPORTED_BY: Final = "reported_by"
"""The label that says whose alert it is: what comes back to evalpipe with it is no news."""
EXTERNAL: Final = "external"
"""The kind of alerts that Alertmanager told evalpipe of: it is not told of them in turn."""
ROLLED_BACK_FOR: Final = timedelta(hours=1)
"""A rollback is no state that ends: it stands in Alertmanager for so long."""
_NAME: Final = re.compile(r"[^a-zA-Z0-9_]")


class AlertmanagerConfig(PeopleConfig):
    """Which Alertmanager is told; of a cluster each member is a channel of its own."""

    url: str = Field(description="Of the Alertmanager, with its route prefix: http://alertmanager:9093")
    token: Secret = Field("", repr=False, description="Bearer token, if something before it asks for one.")
    expires_after_s: float = Field(
        86_400.0, ge=900, le=604_800, description="It resolves what it has not heard of for so long."
    )
    timeout_s: float = Field(TIMEOUT_S, gt=0, le=TIMEOUT_S, description="Seconds for one attempt.")


@channels.register("alertmanager")
class Alertmanager(Channel):
    """Sends the alerts of a notice in one request: what never changes as labels, numbers and texts as annotations."""

    Config = AlertmanagerConfig
    in_order = True
    whole = True
    resend_after: ClassVar[timedelta | None] = timedelta(minutes=5)

    def __init__(self, config: ChannelConfig) -> None:
        assert isinstance(config, AlertmanagerConfig)
        self._url = check_url(config.url, "the url").rstrip("/") + "/api/v2/alerts"
        self._config = config

    def render(self, notification: Notification) -> bytes:
        """The alerts; those that fire get their ``endsAt`` with each attempt. Empty for what is not told."""
        notice = notice_of(notification, self._config)
        if notice is None:
            return b""
        if notice.kind == "alert":
            found = [alert for told in notice.alerts for alert in _alerts(notice, told)]
        elif notice.kind == "effect" or notification.type == ROLLBACK:
            found = [_of_rollback(notice)]
        else:
            found = []
        if not found:
            return b""
        return json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")

    def send(self, body: bytes, *, event_id: str, at: datetime) -> Delivery:
        """POST the alerts."""
        ends_at = _text(at + timedelta(seconds=self._config.expires_after_s))
        alerts = [{"endsAt": ends_at, **alert} for alert in json.loads(body)]
        headers = {"content-type": "application/json", "user-agent": "evalpipe", "x-request-id": event_id}
        if self._config.token:
            headers["authorization"] = f"Bearer {self._config.token}"
        request = Request("POST", self._url, json.dumps(alerts).encode(), headers)
        secrets = [self._config.token]
        return send(request, timeout_s=self._config.timeout_s, at=at, secrets=secrets, final=UNREADABLE)


def _alerts(notice: Notice, told: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """An alert as it stands, and as ended under each lower severity: to Alertmanager that would be another alert."""
    if told.get("kind") == EXTERNAL:
        return
    severity = str(told.get("severity") or notice.severity)
    ended = _moment(told.get("resolved_at"), notice.at) if _is_over(notice, told) else None
    alert: dict[str, Any] = {"labels": _labels(told, severity), "annotations": _annotations(notice, told)}
    started = min(_moment(told.get("fired_at"), notice.at), ended or notice.at)
    alert["startsAt"] = _text(started)
    if page := link(told.get("url")) or notice.url:
        alert["generatorURL"] = page
    yield alert | ({"endsAt": _text(ended)} if ended is not None else {})
    if notice.cause == "first":
        return
    for lower in [name for name in SEVERITIES if name > severity]:
        yield {"labels": _labels(told, lower), "startsAt": _text(started), "endsAt": _text(max(notice.at, started))}


def _is_over(notice: Notice, told: Mapping[str, Any]) -> bool:
    return notice.status == "resolved" or told.get("status", told.get("state")) not in (None, "firing")


def _labels(told: Mapping[str, Any], severity: str) -> dict[str, str]:
    given = told.get("labels")
    own = {_name(name): value for name, value in given.items()} if isinstance(given, Mapping) else {}
    labels = own | {
        "alertname": told.get("rule") or "evalpipe",
        "severity": SEVERITIES.get(severity, "warning"),
        "sev": severity.removeprefix("SEV"),
        **{
            name: told.get(name)
            for name in ("service", "environment", "variant", "feature", "scorecard", "criterion", "kind", "alert_id")
        },
        REPORTED_BY: "evalpipe",
    }
    return {name: text for name, value in labels.items() if (text := line(value))}


def _name(name: Any) -> str:
    text = _NAME.sub("_", str(name))
    return text if text[:1].isalpha() or text[:1] == "_" else f"_{text}"


def _annotations(notice: Notice, told: Mapping[str, Any]) -> dict[str, str]:
    runbook = told.get("runbook")
    found = {
        "summary": line(told.get("reason") or notice.summary, 1000),
        "description": notice.summary,
        "title": notice.headline,
        **{name.replace(" ", "_"): value for name, value in numbers(told)},
        "respond_by": line(notice.data.get("respond_by")),
        "runbook_url" if link(runbook) else "runbook": link(runbook) or line(runbook),
        "examples": "\n".join(examples(told, 3)),
    }
    return {name: text for name, text in found.items() if text}


def _of_rollback(notice: Notice) -> dict[str, Any]:
    data = notice.data
    severity = notice.severity or "SEV1"
    name = "canary-rolled-back" if notice.kind == "decision" else "rollback-ineffective"
    labels = {
        "alertname": name,
        "severity": SEVERITIES.get(severity, "critical"),
        "sev": severity.removeprefix("SEV"),
        **{label: data.get(label) for label in ("service", "environment", "canary", "rollout_id")},
        REPORTED_BY: "evalpipe",
    }
    alert: dict[str, Any] = {
        "labels": {label: text for label, value in labels.items() if (text := line(value))},
        "annotations": {"title": notice.headline, "summary": notice.summary or notice.title},
    }
    if notice.status != "resolved":
        alert["startsAt"] = _text(notice.at)
    if notice.kind == "decision":
        alert["endsAt"] = _text(notice.at + ROLLED_BACK_FOR)
    elif notice.status == "resolved":
        alert["endsAt"] = _text(notice.at)
    if notice.url:
        alert["generatorURL"] = notice.url
    return alert


def _moment(value: Any, otherwise: datetime) -> datetime:
    try:
        found = datetime.fromisoformat(str(value))
    except ValueError:
        return otherwise
    return found if found.tzinfo is not None else otherwise


def _text(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")
