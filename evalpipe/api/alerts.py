"""Alerts over HTTP: what fires and why, taking one, and silences."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Security
from pydantic import BaseModel, ConfigDict, Field

from evalpipe.api.access import bearer
from evalpipe.api.bodies import MAX_JSON_BYTES
from evalpipe.api.problems import REFUSALS, Failure, refuse
from evalpipe.api.queries import AlertsQuery, Asked, Tx, writing
from evalpipe.pipeline.alert_view import acknowledge, listed, view
from evalpipe.scorecard.values import Duration
from evalpipe.store import silences
from evalpipe.wiring import now

router = APIRouter(
    prefix="/v1",
    tags=["alerts"],
    dependencies=[Security(bearer)],
    max_body_size=MAX_JSON_BYTES,
    responses=REFUSALS,
)
_MISSING: dict[int | str, dict[str, Any]] = {404: {"model": Failure, "description": "There is none of that id."}}
_OVER: dict[int | str, dict[str, Any]] = {**_MISSING, 409: {"model": Failure, "description": "It is over already."}}

AlertId = Annotated[str, Path(description="The alert's id, with its slashes as they are.")]
SilenceId = Annotated[str, Path(description="The silence's id.")]
Words = Annotated[str, Field(min_length=1, max_length=200)]


class AlertAnswer(BaseModel):
    """An alert rule at one place."""

    alert_id: str
    scorecard: str = Field(description="Empty where the rule belongs to none.")
    rule: str
    kind: str = Field(description="What it is about: quality, cost, latency ...")
    service: str
    environment: str
    variant: str
    feature: str
    release_id: str
    severity: str
    status: str = Field(description="`inactive`, `pending`, `firing` or `resolved`.")
    dry_run: bool = Field(description="Nobody is told.")
    labels: dict[str, str]
    summary: str
    state: dict[str, Any] = Field(description="Since when, and the value and count as last observed.")
    fired_at: datetime | None = Field(description="Of the newest episode.")
    resolved_at: datetime | None
    told_at: datetime | None = Field(description="When it was first told in this episode; null if it was not.")
    respond_by: datetime | None = Field(description="When somebody must have answered; null where nobody need.")
    acked: bool = Field(description="Somebody has it: it is neither repeated nor escalated.")
    acked_at: datetime | None
    acked_by: str
    ack_reason: str
    escalation: int = Field(description="How often it was escalated, because nobody acknowledged it in time.")
    muted_by: str = Field(description="The silence, or the alert, for which nobody is told now; empty for none.")
    updated_at: datetime


class Alerts(BaseModel):
    """Every alert that was ever evaluated: firing ones first, the most severe on top."""

    alerts: list[AlertAnswer]


class Happened(BaseModel):
    """Something that happened to an alert."""

    at: datetime
    text: str


class SeriesPoint(BaseModel):
    """The mean of the alert's criterion over a stretch."""

    at: datetime
    value: float | None
    n: int
    epoch: str = Field(description="Points of two epochs cannot be compared.")


class AlertView(AlertAnswer):
    """One alert with all that is known of it."""

    explanation: dict[str, Any] = Field(
        description="`value`, `n`, `threshold`, `ratio`, `normal` in words, `numbers` of the test, `share` of the "
        "traffic with its interval, and `examples`: the ten worst records."
    )
    groups: list[str] = Field(description="The groups in which it was told.")
    incident_id: str | None
    timeline: list[Happened] = Field(description="Of the newest episode, oldest first.")
    series: list[SeriesPoint] = Field(description="Around the newest episode; empty where it is about no criterion.")


class Taking(BaseModel):
    """Who takes an alert."""

    model_config = ConfigDict(extra="forbid")

    actor: Words = Field(description="Who stands for this, for example `ada@example.com`.")
    reason: Words = Field(description="Why; it stands in the incident.")


class Taken(BaseModel):
    """What was acknowledged."""

    acknowledged: list[str]


class Silencing(Taking):
    """A silence that somebody wants."""

    match: dict[str, str] = Field(
        min_length=1, max_length=20, description="Globs by label; all must fit.", examples=[{"rule": "p99-slow"}]
    )
    lasts: Duration = Field(
        default=timedelta(hours=2), description=f"How long: `2h`; at most {silences.LONGEST.days} days."
    )


class SilenceAnswer(BaseModel):
    """Who muted what, why and until when."""

    silence_id: str
    matchers: dict[str, str]
    author: str
    reason: str
    starts_at: datetime
    until: datetime
    state: str = Field(description="`active`, `expired`, or `ended` by somebody.")
    ended_at: datetime | None
    ended_by: str
    end_reason: str


class Silences(BaseModel):
    """Silences, newest first."""

    silences: list[SilenceAnswer]


class SilencesQuery(Asked):
    """Which silences."""

    active: bool = Field(default=False, description="Only those that mute now.")
    limit: int = Field(default=100, ge=1, le=1000, description="The newest so many.")


class EndQuery(Asked):
    """Who ends it."""

    actor: Words = Field(description="Who stands for this.")
    reason: str = Field(default="", max_length=200, description="Why.")


@router.get("/alerts")
def get_alerts(tx: Tx, query: Annotated[AlertsQuery, Query()]) -> Alerts:
    """The state of every alert, firing ones first; see `/v1/alerts/{alert_id}` for the numbers behind one."""
    wanted = query.where("service", "environment", "variant", "status")
    rows = [
        row
        for row in listed(tx, firing=query.status == "firing")
        if all(row[name] == value for name, value in wanted.items())
    ]
    return Alerts(alerts=[AlertAnswer.model_validate(row) for row in rows])


@router.post("/alerts/{alert_id:path}/ack", responses=_OVER)
def post_ack(request: Request, alert_id: AlertId, body: Taking) -> Taken:
    """Take an alert, or a group by its key: it is not told again and not escalated.

    That ends when it becomes more severe, or has resolved and fires anew.
    """
    who = {"actor": body.actor, "reason": body.reason}
    with writing(request.app.state.wiring.store) as tx:
        return Taken(acknowledged=acknowledge(tx, alert_id, **who, now=now()))


@router.get("/alerts/{alert_id:path}", responses=_MISSING)
def get_alert(tx: Tx, alert_id: AlertId) -> AlertView:
    """One alert: its explanation, its series, and what happened."""
    found = view(tx, alert_id, now())
    if found is None:
        advice = "GET /v1/alerts lists those that there are"
        raise refuse(404, "there is no such alert", where="path.alert_id", value=alert_id, advice=advice)
    return AlertView.model_validate(found)


@router.get("/silences")
def get_silences(tx: Tx, query: Annotated[SilencesQuery, Query()]) -> Silences:
    """Silences, newest first. They are never deleted."""
    rows = silences.listing(tx, now(), only_active=query.active, limit=query.limit)
    return Silences(silences=[SilenceAnswer.model_validate(row) for row in rows])


@router.post("/silences")
def post_silence(request: Request, body: Silencing) -> SilenceAnswer:
    """Tell nobody of some alerts for a while. They fire all the same, and so do decisions and incidents."""
    wanted = silences.Wanted(body.match, body.actor, body.reason, body.lasts)
    with writing(request.app.state.wiring.store) as tx:
        return SilenceAnswer.model_validate(silences.add(tx, wanted, now()))


@router.delete("/silences/{silence_id}", responses=_OVER)
def delete_silence(request: Request, silence_id: SilenceId, query: Annotated[EndQuery, Query()]) -> SilenceAnswer:
    """End a silence now; it stays in the list. What still fires is told."""
    who = {"author": query.actor, "reason": query.reason}
    with writing(request.app.state.wiring.store) as tx:
        return SilenceAnswer.model_validate(silences.end(tx, silence_id, **who, now=now()))
