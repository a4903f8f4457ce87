"""Alertmanager tells evalpipe: its webhook, version 4.

It repeats what was answered with 5xx, and drops what was answered with 4xx: so a 4xx is for what can never be taken.
Source: Alertmanager's ``docs/configuration.md``, "<webhook_config>"; fields that are not known here are left out.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from fastapi import APIRouter, Request, Security
from pydantic import BaseModel, Field, ValidationError

from evalpipe.api.access import bearer
from evalpipe.api.bodies import MAX_BYTES
from evalpipe.api.problems import Failure, refuse
from evalpipe.api.queries import writing
from evalpipe.channels.alertmanager import REPORTED_BY
from evalpipe.store import external_alerts
from evalpipe.store.external_alerts import ExternalAlert
from evalpipe.wiring import Wiring, now

MOST_ALERTS = 5_000
"""In one request."""
_ADVICE = "point a webhook_configs of Alertmanager here: docs/channels.md"

router = APIRouter(
    prefix="/v1",
    tags=["intake"],
    dependencies=[Security(bearer)],
    max_body_size=MAX_BYTES,
    responses={
        401: {"model": Failure, "description": "No key, or a wrong one."},
        422: {"model": Failure, "description": "It is no message of Alertmanager's webhook."},
        503: {"model": Failure, "description": "The database does not answer, or is busy: send it again."},
    },
)


class AlertSent(BaseModel):
    """One alert of Alertmanager's."""

    status: Literal["firing", "resolved"]
    labels: dict[str, str] = Field(max_length=100)
    annotations: dict[str, str] = Field(default_factory=dict, max_length=100)
    startsAt: datetime | None = None  # noqa: N815 - Alertmanager's name
    generatorURL: str = ""  # noqa: N815 - as above
    fingerprint: str = Field("", pattern="^[0-9A-Za-z_-]{0,64}$")


class AlertsSent(BaseModel):
    """A message of Alertmanager's webhook."""

    groupKey: str = ""  # noqa: N815 - Alertmanager's name
    truncatedAlerts: int = 0  # noqa: N815 - as above
    alerts: list[Any] = Field(max_length=MOST_ALERTS, description="Each with `status`, `labels`, `startsAt`, ...")


class AlertsTaken(BaseModel):
    """What became of a message."""

    firing: int = Field(description="Alerts that fire from now on.")
    resolved: int = Field(description="Alerts that ended.")
    unchanged: int = Field(description="Repetitions, and what came too late.")
    own: int = Field(description="Left out, because evalpipe itself reported them.")
    truncated: int = Field(description="What Alertmanager left out: raise its `max_alerts`.")
    rejected: list[str] = Field(description="What is wrong with those that cannot be used.")


@router.post("/alertmanager")
def post_alertmanager(request: Request, body: AlertsSent) -> AlertsTaken:
    """Take in the alerts of an Alertmanager as alerts of kind `external`: sent again, they change nothing.

    They are told, grouped, silenced and acknowledged like all others. None of them lets a canary return that was rolled
    back.
    """
    at = now()
    found: list[ExternalAlert] = []
    rejected: list[str] = []
    for index, sent in enumerate(body.alerts):
        try:
            found.append(_external(AlertSent.model_validate(sent), body.groupKey, at))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            rejected.append(f"alerts.{index}.{'.'.join(map(str, first['loc']))}: {first['msg']}")
    if rejected and not found:
        raise refuse(422, "none of the alerts can be used", where="body.alerts", value=rejected[0], advice=_ADVICE)
    foreign = [alert for alert in found if alert.labels.get(REPORTED_BY) != "evalpipe"]
    wiring: Wiring = request.app.state.wiring
    with writing(wiring.store) as tx:
        counted = external_alerts.receive(tx, foreign, at)
    return AlertsTaken(
        firing=counted["firing"],
        resolved=counted["resolved"],
        unchanged=counted["unchanged"],
        own=len(found) - len(foreign),
        truncated=body.truncatedAlerts,
        rejected=rejected[:20],
    )


def _external(sent: AlertSent, group_key: str, at: datetime) -> ExternalAlert:
    starts_at = sent.startsAt or at
    return ExternalAlert(
        fingerprint=sent.fingerprint,
        status=sent.status,
        labels=sent.labels,
        annotations=sent.annotations,
        starts_at=starts_at if starts_at.tzinfo is not None else starts_at.replace(tzinfo=UTC),
        group_key=group_key,
        url=sent.generatorURL,
    )
