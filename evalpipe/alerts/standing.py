"""An alert of a rule as far as telling people goes, where there is no database."""

from __future__ import annotations

from typing import cast

from evalpipe.alerts.routing import Standing
from evalpipe.alerts.rules import Rule, Severity
from evalpipe.alerts.state import AlertState


def standing_of(alert_id: str, rule: Rule, state: AlertState) -> Standing:
    """As ``pipeline.notify`` makes it of a row; ``state`` has a severity.

    The judges behind a rule's scores are not known here: a judge in trouble mutes nothing.
    """
    labels = {
        **rule.labels, **state.place._asdict(), "alert_id": alert_id, "rule": rule.name, "kind": rule.kind,
        "severity": state.severity, "scorecard": rule.scorecard, "criterion": rule.criterion,
    }  # fmt: skip
    return Standing(
        alert_id=alert_id,
        severity=cast("Severity", state.severity),
        firing=state.phase == "firing",
        fired_at=cast("object", state.fired_at) or state.evaluated_at,  # type: ignore[arg-type]  # one of them is there
        labels=labels,
        dry_run=rule.dry_run,
    )
