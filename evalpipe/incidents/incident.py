"""An incident: opened by a rollback or by an alert, once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from evalpipe.alerts.escalation import RESPONSE_TIME
from evalpipe.alerts.rules import Severity
from evalpipe.alerts.state import Transition
from evalpipe.rollout.decision import Decision


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """Something that happened, and when (aware UTC)."""

    at: datetime
    text: str


@dataclass(frozen=True, slots=True)
class Incident:
    """What the person on call gets.

    Attributes:
        incident_id: follows from the cause, so that a redelivered cause opens nothing twice.
        severity, title, service: what it says on the page.
        opened_at: aware UTC.
        source: ``alert`` or ``rollback``.
        timeline: oldest first.
        evidence: JSON-safe numbers behind it.
    """

    incident_id: str
    severity: Severity
    title: str
    service: str
    opened_at: datetime
    source: Literal["alert", "rollback"]
    timeline: tuple[TimelineEntry, ...]
    evidence: dict[str, Any] = field(default_factory=dict)

    @property
    def respond_by(self) -> datetime:
        """When a human must have answered."""
        return self.opened_at + RESPONSE_TIME[self.severity]


def open_from_decision(decision: Decision) -> Incident:
    """The incident of a rollback.

    Raises:
        ValueError: the decision is not a rollback.
    """
    if decision.action != "rollback":
        raise ValueError(f"only a rollback opens an incident, not {decision.action!r} ({decision.rollout_id})")
    by = f"gate {decision.gate}" if decision.gate else decision.actor
    return Incident(
        incident_id=_incident_id("rollback", decision.rollout_id, str(decision.seq)),
        severity=decision.severity,
        title=f"{decision.service}: canary {decision.evidence['canary']} rolled back by {by}",
        service=decision.service,
        opened_at=decision.decided_at,
        source="rollback",
        timeline=(TimelineEntry(decision.decided_at, decision.reason),),
        evidence={**decision.evidence, "inputs_hash": decision.inputs_hash},
    )


def open_from_alert(
    transition: Transition,
    severity: Severity,
    about: str,
    evidence: Mapping[str, Any],
    alert_id: str = "",
    service: str = "",
) -> Incident:
    """The incident of an alert that began to fire; an episode has one, of the id ``id_of_alert`` (see there).

    Args:
        transition: to firing.
        severity: of the alert.
        about: what the title begins with.
        evidence: JSON-safe numbers behind it.
        alert_id: of the alert.
        service: whose it is; ``about`` where it is no service's.

    Raises:
        ValueError: the transition is not one to firing.
    """
    if transition.after != "firing" or transition.fired_at is None:
        raise ValueError(f"only a firing alert opens an incident, not {transition.after!r} ({transition.rule})")
    entries = [TimelineEntry(transition.fired_at, transition.reason)]
    if transition.active_at is not None and transition.active_at < transition.fired_at:
        entries.insert(0, TimelineEntry(transition.active_at, f"{transition.rule} became pending"))
    return Incident(
        incident_id=id_of_alert(alert_id or f"{about}/{transition.rule}", transition.fired_at),
        severity=severity,
        title=f"{about}: {transition.rule}",
        service=service or about,
        opened_at=transition.fired_at,
        source="alert",
        timeline=tuple(entries),
        evidence={**evidence, "value": transition.value, "n": transition.n},
    )


def id_of_alert(alert_id: str, fired_at: datetime) -> str:
    """The id of the incident that an alert opened when it fired: who resolves it finds it by the same two."""
    return _incident_id("alert", alert_id, fired_at.isoformat())


def _incident_id(*parts: str) -> str:
    return "inc_" + hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:20]
