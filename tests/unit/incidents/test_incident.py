"""What opens an incident, and that nothing opens it twice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from evalpipe.alerts.rules import Life
from evalpipe.alerts.state import AlertState, advance
from evalpipe.detectors.base import Finding
from evalpipe.incidents.incident import open_from_alert, open_from_decision
from evalpipe.rollout.fold import replay
from evalpipe.rollout.inputs import Batch, Evidence
from evalpipe.rollout.plan import Gate, RolloutPlan

START = datetime(2026, 11, 22, 2, 0, tzinfo=UTC)
LIFE = Life("faithful-low", for_=timedelta(minutes=1), severity="SEV2")
LOW = Finding(violated=True, value=0.5, n=100, reason="the mean is 0.5")


def rollout_log():
    """The decisions on a canary that always fails."""
    plan = RolloutPlan("r-1", "support-bot", "v1", "v2", (Gate("quality", "faithful", severity="SEV1"),))
    arms = ("baseline", "canary")
    items = [
        Evidence(i, START + timedelta(seconds=i), arms[i % 2], f"user-{i}", "faithful", float(i % 2 == 0))
        for i in range(60)
    ]
    return replay(plan, START, [Batch(items[-1].at, evidence=tuple(items))])[1]


def alert_transitions(start=START):
    """From inactive to firing."""
    state, found = AlertState(), []
    for minute in range(3):
        now = start + timedelta(minutes=minute)
        state, transition = advance(LIFE, state, LOW, now)
        found += [transition] if transition else []
    return found


def opened(transition, about):
    """The incident of a transition."""
    return open_from_alert(transition, "SEV2", about, {"criterion": "faithful"})


def test_a_rollback_opens_an_incident_with_its_evidence():
    """Severity of the gate, the reason as first entry, fifteen minutes to respond."""
    decision = rollout_log()[-1]
    incident = open_from_decision(decision)
    assert (incident.source, incident.severity, incident.service) == ("rollback", "SEV1", "support-bot")
    assert incident.title == "support-bot: canary v2 rolled back by gate quality"
    assert incident.opened_at == decision.decided_at
    assert incident.respond_by - incident.opened_at == timedelta(minutes=15)
    assert [entry.text for entry in incident.timeline] == [decision.reason]
    assert incident.evidence["inputs_hash"] == decision.inputs_hash


def test_an_alert_opens_an_incident_when_it_fires():
    """The timeline begins with pending."""
    transition = alert_transitions()[-1]
    incident = opened(transition, "support-bot")
    assert (incident.source, incident.severity, incident.title) == ("alert", "SEV2", "support-bot: faithful-low")
    assert [entry.at for entry in incident.timeline] == [START, START + timedelta(minutes=1)]
    assert incident.respond_by == START + timedelta(minutes=61)
    assert incident.evidence == {"criterion": "faithful", "value": 0.5, "n": 100}


def test_the_same_cause_has_the_same_incident_and_another_cause_another():
    """So redelivery opens nothing twice, and the next episode opens its own."""
    assert open_from_decision(rollout_log()[-1]) == open_from_decision(rollout_log()[-1])
    first, again = (opened(alert_transitions()[-1], "support-bot") for _ in range(2))
    assert first == again
    later = opened(alert_transitions(START + timedelta(days=1))[-1], "support-bot")
    elsewhere = opened(alert_transitions()[-1], "search")
    ids = {i.incident_id for i in (first, later, elsewhere, open_from_decision(rollout_log()[-1]))}
    assert len(ids) == 4


def test_nothing_else_opens_an_incident():
    """A hold is not an incident, nor is a pending alert."""
    with pytest.raises(ValueError, match="only a rollback"):
        open_from_decision(rollout_log()[0])
    with pytest.raises(ValueError, match="only a firing alert"):
        opened(alert_transitions()[0], "support-bot")
