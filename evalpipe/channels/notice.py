"""What a notification says, for channels that people read: one shape for alerts, decisions and rollbacks' effects.

Texts in it may quote what models and users wrote: each channel escapes them in its own way. Here they become one line
without control characters, and short.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from pydantic import Field

from evalpipe.channels.base import ChannelConfig
from evalpipe.notification import (
    ADVANCE,
    ALERT_FIRING,
    ALERT_RESOLVED,
    HOLD,
    ROLLBACK,
    ROLLBACK_INEFFECTIVE,
    ROLLBACK_VERIFIED,
    Notification,
)

Kind = Literal["alert", "decision", "effect"]
Severity = Literal["SEV1", "SEV2", "SEV3", "SEV4"]
MOST_KEY: Final = 255
"""Characters of a key: PagerDuty takes no more."""
_EFFECTS: Final = {ROLLBACK_INEFFECTIVE: "firing", ROLLBACK_VERIFIED: "resolved"}
_ALERTS: Final = {ALERT_FIRING: "firing", ALERT_RESOLVED: "resolved"}
_DECISIONS: Final = {ROLLBACK: "rolled back", ADVANCE: "goes on", HOLD: "is held"}
_CAUSES: Final = {
    "added": "more alerts",
    "raised": "more severe",
    "repeat": "still firing",
    "escalated": "nobody acknowledged",
    "acknowledged": "acknowledged",
}


class PeopleConfig(ChannelConfig):
    """Which notifications are told."""

    types: tuple[Kind, ...] = Field(
        ("alert", "decision", "effect"),
        description="Of these only: alerts, decisions of rollouts, whether a rollback took effect.",
    )
    severities: tuple[Severity, ...] = Field(
        ("SEV1", "SEV2", "SEV3", "SEV4"), description="Of alerts, those of these severities only."
    )


@dataclass(frozen=True, slots=True)
class Notice:
    """What is told.

    Attributes:
        kind: an alert, a decision, or a rollback's effect.
        status: ``firing`` or ``resolved``; "" of a decision.
        cause: of an alert, why it is told now; of a decision, its action.
        severity: SEV1 to SEV4, or "".
        title, summary: one line each.
        key: the same for all that is told of one episode; at most ``MOST_KEY`` characters.
        url: of a page, or "".
        at, started_at: when it was decided, and since when it is so.
        facts: names and values for people.
        alerts, n_alerts: of an alert, those of its group that are listed, the most severe first; how many there are.
        data: all that the notification says.
    """

    kind: Kind
    status: str
    cause: str
    severity: str
    title: str
    summary: str
    key: str
    url: str
    at: datetime
    started_at: str
    facts: tuple[tuple[str, str], ...]
    alerts: tuple[Mapping[str, Any], ...]
    n_alerts: int
    data: Mapping[str, Any]

    @property
    def headline(self) -> str:
        """Severity, state and title in a line."""
        told = "resolved" if self.status == "resolved" else _CAUSES.get(self.cause, "") if self.kind == "alert" else ""
        return " ".join(part for part in (self.severity, f"({told})" if told else "", self.title) if part)


def notice_of(notification: Notification, config: PeopleConfig) -> Notice | None:
    """What ``notification`` says; None if it is none of these, or not among what the channel is told of."""
    if notification.type in _ALERTS:
        notice = _alert(notification)
        heard = {notice.severity, *(str(alert.get("severity")) for alert in notice.alerts)}
        if not heard & set(config.severities):
            return None
    elif notification.type in _DECISIONS:
        notice = _decision(notification)
    elif notification.type in _EFFECTS:
        notice = _effect(notification)
    else:
        return None
    return notice if notice.kind in config.types else None


def line(value: Any, most: int = 300) -> str:
    """``value`` as one line of at most so many characters, without what plays with a terminal or a layout."""
    if value is None:
        return ""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    text = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * most]).split())
    return text if len(text) <= most else text[: most - 1] + "…"


def link(value: Any) -> str:
    """``value`` if it is a web address, else ""."""
    text = str(value or "")
    good = text.startswith(("https://", "http://")) and text.isprintable() and not set(text) & set(" <>\"'|\\^`{}")
    return text if good and len(text) <= 2000 else ""


def numbers(alert: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What was measured, by name; what is not known is left out."""
    explanation = alert.get("explanation")
    more = explanation if isinstance(explanation, Mapping) else {}
    found = {name: alert.get(name, more.get(name)) for name in ("value", "n", "threshold", "ratio")}
    found["normal"] = more.get("normal")
    share = more.get("share")
    if isinstance(share, Mapping) and isinstance(share.get("estimate"), int | float):
        found["traffic affected"] = f"{share['estimate']:.0%}"
    return tuple((name, line(value)) for name, value in found.items() if value not in (None, ""))


def examples(alert: Mapping[str, Any], most: int) -> tuple[str, ...]:
    """The worst records of an alert, each as a line that may quote users."""
    explanation = alert.get("explanation")
    found = explanation.get("examples") if isinstance(explanation, Mapping) else None
    told = [e for e in found if isinstance(e, Mapping)] if isinstance(found, Sequence) else []
    parts = [(line(e.get("record_id"), 80), line(e.get("value"), 20), line(e.get("explanation"))) for e in told[:most]]
    return tuple(": ".join(part for part in found if part) for found in parts)


def key_of(*parts: Any) -> str:
    """A key of these parts, with the end of a long one replaced by its hash."""
    text = "/".join(line(part, 2000) for part in parts)
    if len(text) <= MOST_KEY:
        return text
    return text[: MOST_KEY - 33] + "#" + hashlib.sha256(text.encode()).hexdigest()[:32]


def _alert(notification: Notification) -> Notice:
    data = notification.data
    status = _ALERTS[notification.type]
    # An alert that is told by itself is the only one of its group.
    listed = [a for a in data.get("alerts") or () if isinstance(a, Mapping)] or [{**data, "status": status}]
    first = listed[0]
    started = data.get("started_at") or data.get("fired_at") or ""
    severity = str(data.get("severity") or "")
    # The headline says both by itself.
    given = str(data.get("title") or "").removeprefix("resolved: ").removeprefix(f"{severity} ")
    title = given or ": ".join(str(part) for part in (data.get("service"), data.get("rule")) if part)
    counted = data.get("n_alerts")
    n_alerts = counted if isinstance(counted, int) else len(listed)
    facts = {
        "service": data.get("service"),
        "environment": data.get("environment"),
        "variant": data.get("variant"),
        "firing since" if status == "firing" else "fired": _clock(started),
        "respond by": _clock(data.get("respond_by")) if status == "firing" else None,
        "acknowledged by": data.get("acked_by"),
        "escalation": data.get("escalation") or None,
        "alerts": n_alerts if n_alerts != 1 else None,
        "runbook": first.get("runbook"),
    }
    return Notice(
        kind="alert",
        status=status,
        cause=str(data.get("cause") or ("first" if status == "firing" else "resolved")),
        severity=severity,
        title=line(title or notification.subject, 200),
        summary=line(data.get("summary") or data.get("reason") or first.get("reason"), 1000),
        key=key_of(line(data.get("dedup_key"), 2000) or f"{notification.subject}/{started}"),
        url=link(data.get("url")),
        at=notification.at,
        started_at=str(started),
        facts=_told(facts),
        alerts=tuple(listed),
        n_alerts=n_alerts,
        data=data,
    )


def _clock(told: Any) -> Any:
    """A time as people read it; what is none stays as it is."""
    try:
        at = datetime.fromisoformat(str(told))
    except ValueError:
        return told
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if at.tzinfo else told


def _decision(notification: Notification) -> Notice:
    data = notification.data
    action = _DECISIONS[notification.type]
    before, after = data.get("from_percent"), data.get("to_percent")
    share = f"{line(before)} % to {line(after)} %" if None not in (before, after) and before != after else None
    who = data.get("actor")
    return Notice(
        kind="decision",
        status="",
        cause=notification.type.split(".")[-2],
        severity=str(data.get("severity") or "") if notification.type == ROLLBACK else "",
        title=line(f"{data.get('service') or notification.subject}: canary {data.get('canary') or ''} {action}", 200),
        summary=line(data.get("reason"), 1000),
        key=key_of("rollout", notification.subject, data.get("seq", "")),
        url=link(data.get("url")),
        at=notification.at,
        started_at=notification.at.isoformat(),
        facts=_told({
            "service": data.get("service"), "environment": data.get("environment"), "baseline": data.get("baseline"),
            "canary": data.get("canary"), "traffic": share, "gate": data.get("gate"), "phase": data.get("phase"),
            "by": who if who != "evalpipe" else None, "decision": data.get("decision_id"),
        }),
        alerts=(),
        n_alerts=0,
        data=data,
    )  # fmt: skip


def _effect(notification: Notification) -> Notice:
    data = notification.data
    status = _EFFECTS[notification.type]
    what = "took effect" if status == "resolved" else "is ineffective"
    title = f"{data.get('service') or notification.subject}: rollback of canary {data.get('canary') or ''} {what}"
    said = "the meters saw the canary's calls end" if status == "resolved" else ""
    return Notice(
        kind="effect",
        status=status,
        cause=status,
        severity=str(data.get("severity") or "") if status == "firing" else "",
        title=line(title, 200),
        summary=line(data.get("reason") or said, 1000),
        key=key_of("rollback-effect", data.get("decision_id") or notification.subject),
        url=link(data.get("url")),
        at=notification.at,
        started_at=notification.at.isoformat(),
        facts=_told({name: data.get(name) for name in ("service", "environment", "canary", "decision_id")}),
        alerts=(),
        n_alerts=0,
        data=data,
    )


def _told(facts: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((name, line(value)) for name, value in facts.items() if value not in (None, ""))
