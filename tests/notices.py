"""What channels are told in tests: notices, decisions and effects, as the pipeline makes them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from evalpipe.notification import ALERT_FIRING, ALERT_RESOLVED, ROLLBACK, Notification

AT = datetime(2026, 11, 22, 3, 30, tzinfo=UTC)
FIRED = "2026-11-22T03:29:00+00:00"
INJECTED = "<!channel> *bold* <https://evil.example|click> & <script>alert(1)</script> \u202e\r\nBcc: x@evil.example"
"""What a judged text may say."""


def alert(**more: Any) -> dict[str, Any]:
    """One alert of a notice."""
    return {
        "alert_id": "desk/production/canary/support/too-low", "rule": "too-low", "kind": "quality", "status": "firing",
        "severity": "SEV2", "service": "desk", "environment": "production", "variant": "canary", "feature": "",
        "release_id": "", "scorecard": "support", "criterion": "grounded", "value": 0.712345, "n": 240,
        "threshold": 0.9, "ratio": None, "reason": "grounded fell from 0.95 to 0.71", "fired_at": FIRED,
        "resolved_at": None, "runbook": "https://wiki.example.com/too-low", "labels": {"team": "support"}, "url": "",
        "explanation": {
            "normal": "release r-7, 14 days", "share": {"estimate": 0.31, "low": 0.2, "high": 0.4},
            "examples": [{"record_id": f"rec-{i}", "value": 0.0, "explanation": "promises a refund", "at": FIRED}
                         for i in range(10)],
        },
        **more,
    }  # fmt: skip


def notice(cause: str = "first", *alerts: dict[str, Any], event_id: str = "evt_1", **more: Any) -> Notification:
    """A notice of a group."""
    listed = list(alerts) or [alert()]
    status = "resolved" if cause == "resolved" else "firing"
    title = f"{'resolved: ' if status == 'resolved' else ''}{listed[0]['severity']} desk production: too-low"
    data = {
        "group_key": "desk/production/canary", "dedup_key": "evalpipe/desk/production/canary/1795318140",
        "status": status, "cause": cause, "severity": listed[0]["severity"], "title": title,
        "summary": "grounded fell from 0.95 to 0.71 on 31 % of the traffic", "service": "desk",
        "environment": "production", "variant": "canary", "started_at": FIRED,
        "respond_by": "2026-11-22T04:29:00+00:00", "acked_by": "", "escalation": 0,
        "url": "https://evalpipe.example.com/alerts", "labels": {"team": "support"}, "alerts": listed,
        "n_alerts": len(listed), **{k: listed[0][k] for k in ("alert_id", "reason", "fired_at", "value", "n")}, **more,
    }  # fmt: skip
    type_ = ALERT_RESOLVED if status == "resolved" else ALERT_FIRING
    return Notification(event_id, type_, data["group_key"], AT, data, "/evalpipe/test")


def decision(type_: str = ROLLBACK, **more: Any) -> Notification:
    """A decision of a rollout, or its effect."""
    data = {
        "decision_id": "dec_ro_7", "rollout_id": "ro", "seq": 7, "service": "desk", "environment": "production",
        "baseline": "v6", "canary": "v7", "action": type_.split(".")[-2], "cause": "harm", "gate": "grounded",
        "phase": "rolled_back", "from_percent": 5.0, "to_percent": 0.0, "actor": "evalpipe", "severity": "SEV2",
        "reason": "grounded is worse than its margin allows", "evidence": [], **more,
    }  # fmt: skip
    return Notification("evt_7", type_, "ro", AT, data, "/evalpipe/test")


def old_alert(**more: Any) -> Notification:
    """An alert that is told by itself, without a group."""
    data = {
        "alert_id": "judge/judge-stopped/openai:m", "state": "firing", "service": "", "environment": "",
        "variant": "", "scorecard": "", "rule": "judge-stopped", "criterion": "", "value": 1.0, "n": 1,
        "threshold": 0.0, "severity": "SEV2", "fired_at": FIRED, "reason": "the judge is stopped", **more,
    }  # fmt: skip
    return Notification("evt_9", ALERT_FIRING, data["alert_id"], AT, data, "/evalpipe/test")
