"""The control plane's door: read and set what hooks obey, and give flagd the weights as flags."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response, Security
from pydantic import BaseModel, ConfigDict, Field

from evalpipe.api.access import bearer
from evalpipe.api.bodies import MAX_JSON_BYTES
from evalpipe.api.problems import REFUSALS, Failure
from evalpipe.api.queries import Asked, Tx, writing
from evalpipe.controls import Kind, Weights
from evalpipe.store import controls
from evalpipe.store.controls import Kept
from evalpipe.store.sql import Transaction
from evalpipe.wiring import Wiring, now

router = APIRouter(
    prefix="/v1",
    tags=["control"],
    dependencies=[Security(bearer)],
    max_body_size=MAX_JSON_BYTES,
    responses=REFUSALS,
)
_LATCHED: dict[int | str, dict[str, Any]] = {
    404: {"model": Failure, "description": "There is no such control."},
    409: {"model": Failure, "description": "It is latched: released or resumed by a person with a reason."},
}

ServiceName = Annotated[str, Path(description="The service, as its hook is named.")]
ControlName = Annotated[str, Path(description="The control's name.")]
ControlKind = Annotated[Kind, Path(description="What it is: `switch`, `budget`, `weights` or `rate`.")]


class ControlAnswer(BaseModel):
    """One control as it stands."""

    service: str
    kind: str
    name: str
    environment: str
    control: dict[str, Any] = Field(description="What was set.")
    latched: dict[str, str] = Field(description="Variants that were rolled back, and why; they stay at 0.")
    revision: int = Field(description="Of the service's document, when this was set.")
    actor: str
    reason: str
    updated_at: datetime


class ControlsAnswer(BaseModel):
    """Controls, by service, kind and name."""

    controls: list[ControlAnswer]


class ChangeAnswer(BaseModel):
    """One change of a control."""

    service: str
    revision: int
    kind: str
    name: str
    environment: str
    action: str = Field(description="set, engage, release, resume, rollback, remove or overtake.")
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    actor: str = Field(description="`evalpipe` where a rollback did it.")
    reason: str
    at: datetime


class ChangesAnswer(BaseModel):
    """Changes, newest first."""

    changes: list[ChangeAnswer]


class Done(BaseModel):
    """What a change came to."""

    revision: int = Field(description="Of the service's document now.")
    published: bool = Field(description="False: Redis does not answer; hooks get it within seconds of its return.")
    control: ControlAnswer | None = Field(default=None, description="As it stands now; null if it was removed.")


class Wanted(BaseModel):
    """Who wants it, and why."""

    model_config = ConfigDict(extra="forbid")

    actor: str = Field(description="Who stands for this, for example `ada@example.com`.")
    reason: str = Field(default="", description="Why. Needed for kill switches and for resuming.")


class Setting(Wanted):
    """A control as a whole."""

    control: dict[str, Any] = Field(
        description="Its fields; those not given get their defaults.",
        examples=[
            {"feature": "agent", "incident": "https://example.com/42"},
            {"weights": {"canary": 5, "baseline": 95}},
        ],
    )


class Lifting(Wanted):
    """What lifts a latch."""

    environment: str = Field(default="", description="Of the control.")


class Resuming(Lifting):
    """What lets a canary that was rolled back have traffic again."""

    weights: dict[str, int] | None = Field(default=None, description="The weights from now on; as they are, if null.")


class ControlsQuery(Asked):
    """Which controls."""

    service: str | None = Field(default=None, description="Only this service.")
    kind: Kind | None = Field(default=None, description="Only this kind.")


class ChangesQuery(Asked):
    """Which changes."""

    service: str | None = Field(default=None, description="Only this service.")
    limit: int = Field(default=100, ge=1, le=1000, description="The newest so many.")


class RemoveQuery(Asked):
    """Who removes it from where, and why."""

    actor: str = Field(description="Who stands for this.")
    reason: str = Field(default="", description="Why. Needed for kill switches.")
    environment: str = Field(default="", description="Of the control.")


class FlagsQuery(Asked):
    """For which environment."""

    environment: str = Field(
        default="", description="The weights of this environment, and those for all. Without it only those for all."
    )


@router.get("/controls")
def get_controls(tx: Tx, query: Annotated[ControlsQuery, Query()]) -> ControlsAnswer:
    """Kill switches, budgets, weights and sampling rates as they stand."""
    return ControlsAnswer(controls=[_answer(kept) for kept in controls.entries(tx, query.service, query.kind)])


@router.get("/control-changes")
def get_changes(tx: Tx, query: Annotated[ChangesQuery, Query()]) -> ChangesAnswer:
    """Who changed what, when and why, newest first."""
    rows = controls.changes(tx, query.service, query.limit)
    return ChangesAnswer(changes=[ChangeAnswer.model_validate(row) for row in rows])


@router.put("/controls/{service}/{kind}/{name}", responses={409: _LATCHED[409]})
def put_control(request: Request, service: ServiceName, kind: ControlKind, name: ControlName, body: Setting) -> Done:
    """Set a control as a whole. Hooks obey within a second.

    A kill switch needs a reason, engaged or released. A variant that was rolled back stays at 0 until it is resumed.
    """
    return _change(
        request,
        service,
        lambda tx: controls.put(tx, service, kind, name, body.control, actor=body.actor, reason=body.reason, now=now()),
    )


@router.post("/controls/{service}/switch/{name}/release", responses=_LATCHED)
def release_switch(request: Request, service: ServiceName, name: ControlName, body: Lifting) -> Done:
    """Let the calls of a kill switch through again."""
    who = {"actor": body.actor, "reason": body.reason}
    return _change(request, service, lambda tx: controls.release(tx, service, name, body.environment, **who, now=now()))


@router.post("/controls/{service}/weights/{name}/resume", responses=_LATCHED)
def resume_weights(request: Request, service: ServiceName, name: ControlName, body: Resuming) -> Done:
    """Lift the latch that a rollback left."""
    who = {"actor": body.actor, "reason": body.reason}
    return _change(
        request,
        service,
        lambda tx: controls.resume(tx, service, name, body.environment, body.weights, **who, now=now()),
    )


@router.delete("/controls/{service}/{kind}/{name}", responses=_LATCHED)
def delete_control(
    request: Request, service: ServiceName, kind: ControlKind, name: ControlName, query: Annotated[RemoveQuery, Query()]
) -> Done:
    """Take a control away; the log keeps it. A switch is released first, a rollback resumed."""
    who = {"actor": query.actor, "reason": query.reason}
    return _change(
        request, service, lambda tx: controls.remove(tx, service, kind, name, query.environment, **who, now=now())
    )


@router.get("/flags/{service}", responses={304: {"description": "Nothing changed since that ETag."}})
def get_flags(tx: Tx, request: Request, service: ServiceName, query: Annotated[FlagsQuery, Query()]) -> Response:
    """The weights as flag definitions, to be polled by flagd as an HTTP source.

    A unit gets the variant that the hook gives it. Without a targeting key everybody gets the baseline.
    """
    body = json.dumps(flags(controls.in_force(controls.entries(tx, service, "weights"), query.environment)))
    tag = f'"{hashlib.sha256(body.encode()).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if _known(request.headers.get("if-none-match", ""), tag):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


def flags(found: Iterable[Kept]) -> dict[str, Any]:
    """Flag definitions as flagd reads them, in an order that does not change."""
    return {
        "$schema": "https://flagd.dev/schema/v0/flags.json",
        "flags": {kept.name: _flag(kept) for kept in found},
    }


def _flag(kept: Kept) -> dict[str, Any]:
    control = kept.control
    assert isinstance(control, Weights)
    shares: list[Any] = [[variant, weight] for variant, weight in control.in_order().items()]
    unit = {"cat": [{"var": "$flagd.flagKey"}, {"var": "targetingKey"}]}
    return {
        "state": "ENABLED",
        "variants": {variant: variant for variant in control.in_order()},
        "defaultVariant": control.baseline,
        # Without a key all would hash alike, and might all be canaries.
        "targeting": {"if": [{"var": "targetingKey"}, {"fractional": [unit, *shares]}]},
        "metadata": {"service": kept.service, "environment": kept.environment, "revision": kept.revision},
    }


def _known(header: str, tag: str) -> bool:
    tags = [given.strip().removeprefix("W/") for given in header.split(",")]
    return tag in tags or "*" in tags


def _change(request: Request, service: str, change: Callable[[Transaction], Kept | int]) -> Done:
    """Make one change, then publish it: what is committed is never unsaid because Redis is away."""
    wiring: Wiring = request.app.state.wiring
    with writing(wiring.store) as tx:
        done = change(tx)
    published = wiring.publish.soon(service, now())
    if isinstance(done, int):
        return Done(revision=done, published=published)
    return Done(revision=done.revision, published=published, control=_answer(done))


def _answer(kept: Kept) -> ControlAnswer:
    return ControlAnswer(
        service=kept.service,
        kind=kept.kind,
        name=kept.name,
        environment=kept.environment,
        control=kept.body,
        latched=kept.latched,
        revision=kept.revision,
        actor=kept.actor,
        reason=kept.reason,
        updated_at=kept.updated_at,
    )
