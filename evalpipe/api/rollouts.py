"""Rollouts over HTTP: start one, look at it, order something of it, and say that a service has changed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Path, Query, Request, Security
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator

from evalpipe.api import answers
from evalpipe.api.access import bearer
from evalpipe.api.bodies import MAX_JSON_BYTES
from evalpipe.api.problems import REFUSALS, Failure, refuse
from evalpipe.api.queries import Asked, Tx, writing
from evalpipe.errors import ConfigError
from evalpipe.pipeline.rollout_view import HOLDS_FOR, LONGEST, begin, environment_of, ordered, view
from evalpipe.pipeline.start_rollout import Started, ask
from evalpipe.rollout.inputs import OverrideAction
from evalpipe.scorecard.model import Scorecard
from evalpipe.scorecard.policy import RolloutEntry
from evalpipe.scorecard.rollout import RolloutPolicy
from evalpipe.scorecard.values import Duration
from evalpipe.store import changes, rollouts
from evalpipe.store.changes import Change
from evalpipe.store.sql import Transaction
from evalpipe.wiring import Wiring, now

log = logging.getLogger("evalpipe.api")

T = TypeVar("T")

router = APIRouter(
    prefix="/v1",
    tags=["decisions"],
    dependencies=[Security(bearer)],
    max_body_size=MAX_JSON_BYTES,
    responses=REFUSALS,
)
_MISSING: dict[int | str, dict[str, Any]] = {404: {"model": Failure, "description": "There is no such rollout."}}
_ENDED: dict[int | str, dict[str, Any]] = {
    **_MISSING,
    409: {"model": Failure, "description": "It takes no such order any more, or another one moves its weights."},
}

RolloutId = Annotated[str, Path(description="The rollout's id.")]
Id = Annotated[str, Field(max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]*$")]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class Sent(BaseModel):
    """Base of what is sent here: a field that is not known is an error."""

    model_config = ConfigDict(extra="forbid")


class Starting(Sent):
    """A rollout that somebody wants."""

    scorecard: Name = Field(description="Whose scores are its evidence: a scorecard of this installation.")
    policy: RolloutPolicy | None = Field(
        default=None, description="Gates, ramp and so on; what the scorecard says under `rollout:`, if not given."
    )
    service: Name
    environment: str = Field(
        default="", description="Of both releases; where the service's traffic comes from, if not given."
    )
    canary_release_id: str = Field(
        default="", description="The exact canary; the first release of that variant that is seen, if not given."
    )
    rollout_id: Id | None = Field(default=None, description="Of your own choice; a known one changes nothing.")
    actor: Name = Field(description="Who stands for this, for example `ada@example.com`.")
    reason: Name = Field(description="Why.")


class Ordering(Sent):
    """What somebody orders."""

    actor: Name = Field(description="Who stands for this, for example `ada@example.com`.")
    reason: Name = Field(description="Why; it is in the log of decisions.")
    holds_for: Duration = Field(
        default=HOLDS_FOR,
        description=f"A freeze lasts so long; another order is void if nothing has come of it by then. At most "
        f"{LONGEST.days} days.",
    )
    order_id: Id | None = Field(default=None, description="Of your own choice: the same one twice is one order.")

    @field_validator("holds_for")
    @classmethod
    def _not_for_ever(cls, value: timedelta) -> timedelta:
        if not timedelta(0) < value <= LONGEST:
            raise ValueError(f"must be more than 0 s and at most {LONGEST.days}d")
        return value


class ChangeSent(Sent):
    """A dated change of a service."""

    change_id: Id = Field(description="The same id is the same change: sending it again changes nothing.")
    service: Name
    environment: str = Field(default="", description="Where; where the service's traffic comes from, if not given.")
    variant: str = Field(default="", description="What changed; the name of the canary, if it is one.")
    kind: Literal["model", "prompt", "retrieval", "index", "tool_schema", "data_pipeline", "config", "release"] = Field(
        default="release", description="Which version changed; `release` for several or the whole."
    )
    version: str = Field(default="", description="To which version.")
    canary_release_id: str = Field(default="", description="Of the canary, if it is known.")
    at: AwareDatetime | None = Field(default=None, description="When it changed; now, if not given.")
    source: str = Field(default="", description="Who tells, for example the pipeline's URL.")
    data: dict[str, Any] = Field(default={}, description="Anything else that is to be kept of it.")


class ChangesQuery(Asked):
    """Which change events."""

    service: str | None = Field(default=None, description="Only this service.")
    limit: int = Field(default=100, ge=1, le=1000, description="The newest so many.")


@router.post("/rollouts", responses={409: _ENDED[409]})
def post_rollout(request: Request, body: Starting) -> answers.RolloutStarted:
    """Start a rollout. It ends a live one of the same service, environment and scorecard."""
    wiring: Wiring = request.app.state.wiring
    card = _card(wiring, body.scorecard)

    def run(tx: Transaction) -> Started:
        wanted = {"service": body.service, "environment": body.environment, "actor": body.actor, "reason": body.reason}
        return begin(
            tx, card, policy=body.policy, canary_release_id=body.canary_release_id,
            rollout_id=body.rollout_id or "", now=now(), **wanted,
        )[0]  # fmt: skip

    return _told(wiring, body.service, _write(wiring, run))


@router.get("/rollouts/{rollout_id}", responses=_MISSING)
def get_rollout(tx: Tx, rollout_id: RolloutId) -> answers.RolloutView:
    """Where a rollout stands: its gates by now, steps, decisions and orders."""
    found = view(tx, rollout_id)
    if found is None:
        raise _no_such(rollout_id)
    return answers.RolloutView.model_validate(found)


@router.post("/rollouts/{rollout_id}/{order}", responses=_ENDED)
def post_order(
    request: Request,
    rollout_id: RolloutId,
    order: Annotated[OverrideAction, Path(description="What is ordered.")],
    body: Ordering,
) -> answers.OrderAnswer:
    """Order something of a rollout. The next evaluation carries it out, and it is a decision in the log.

    `advance`: the next step, whatever the evidence, but not past proven harm. `rollback`: latched, as one by evidence.
    `freeze`: nothing advances for `holds_for`; proven harm still rolls back. `resume`: ends a freeze, or lifts the
    latch of a rollback. `abort`: ends it, all traffic goes back to the baseline, without an incident.
    """
    wiring: Wiring = request.app.state.wiring

    def run(tx: Transaction) -> dict[str, Any]:
        if rollouts.get(tx, rollout_id) is None:
            raise _no_such(rollout_id)
        who = {"actor": body.actor, "reason": body.reason}
        return ordered(tx, rollout_id, order, **who, holds_for=body.holds_for, order_id=body.order_id or "", now=now())

    found = _write(wiring, run)
    ask(wiring.queue)
    return answers.OrderAnswer.model_validate(found)


@router.post("/changes")
def post_change(request: Request, body: ChangeSent) -> answers.ChangeTaken:
    """Say that a service has changed. Scorecards whose `rollout` has this variant as its canary start it."""
    wiring: Wiring = request.app.state.wiring
    at = now()
    told = {"version": body.version, "canary_release_id": body.canary_release_id, **body.data}
    change = Change(body.change_id, min(body.at or at, at), body.service, body.environment, body.variant, body.kind,
                    body.source, {name: value for name, value in told.items() if value not in {"", None}})  # fmt: skip

    def run(tx: Transaction) -> tuple[bool, list[Started]]:
        if not changes.add(tx, change)[1]:
            return False, []
        return True, start_declared(tx, wiring, change, body.canary_release_id, at)

    new, started = _write(wiring, run)
    return answers.ChangeTaken(
        change_id=body.change_id, new=new, started=[_told(wiring, body.service, one) for one in started]
    )


@router.get("/changes")
def get_changes(tx: Tx, query: Annotated[ChangesQuery, Query()]) -> answers.ChangeEvents:
    """Change events, newest first."""
    rows = changes.listing(tx, service=query.service or "", limit=query.limit)
    return answers.ChangeEvents(changes=[answers.ChangeEventAnswer.model_validate(row) for row in rows])


def start_declared(
    tx: Transaction, wiring: Wiring, change: Change, canary_release_id: str, at: datetime
) -> list[Started]:
    """Start what scorecards and files of rollouts declare for the service and variant of a change.

    Raises:
        ConfigError, ControlError: as ``begin``.
    """
    policies: list[tuple[Scorecard, RolloutPolicy, RolloutEntry | None]] = [
        (card, card.rollout, None) for card in wiring.scorecards if card.rollout is not None
    ]
    policies += [(card, entry, entry) for card, entry in wiring.rollouts if entry.service == change.service]
    declared = [(card, entry) for card, policy, entry in policies if policy.canary == change.variant]
    if not declared:
        return []
    place = _Place(change.service, environment_of(tx, change.service, change.environment), change.variant)
    found: list[Started] = []
    for card, entry in declared:
        elsewhere = entry is not None and entry.environment not in {"", place.environment}
        if elsewhere or not card.match.fits_place(place):
            continue
        started, _ = begin(
            tx, card, policy=entry, service=place.service, environment=place.environment,
            canary_release_id=canary_release_id, actor=change.source or "change event",
            reason=f"change {change.change_id}", now=at,
        )  # fmt: skip
        if not found:
            changes.started(tx, change.change_id, started.rollout_id)
        found.append(started)
    return found


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a change was, as a scorecard's match looks at it; a change is of no feature in particular."""

    service: str
    environment: str
    variant: str
    feature: str = "*"


def _write(wiring: Wiring, change: Callable[[Transaction], T]) -> T:
    """Run a change in a transaction of its own; what people did wrong is told with its status."""
    try:
        with writing(wiring.store) as tx:
            return change(tx)
    except ConfigError as error:
        raise refuse(409, str(error), where="body", advice="GET /v1/rollouts shows what there is") from None


def _told(wiring: Wiring, service: str, started: Started) -> answers.RolloutStarted:
    """Publish what a start changed, and say what came of it."""
    published = wiring.publish.soon(service, now()) if started.steered else None
    if started.new:
        ask(wiring.queue)
    return answers.RolloutStarted(
        rollout_id=started.rollout_id,
        new=started.new,
        superseded=list(started.superseded),
        published=published,
    )


def _card(wiring: Wiring, name: str) -> Scorecard:
    for card in wiring.scorecards:
        if card.name == name:
            return card
    there = ", ".join(card.name for card in wiring.scorecards)
    raise refuse(
        422, f"there is no scorecard {name!r}", where="body.scorecard", value=name, advice=f"there are: {there}"
    )


def _no_such(rollout_id: str) -> Exception:
    return refuse(
        404, "there is no such rollout", where="path.rollout_id", value=rollout_id,
        advice="GET /v1/rollouts lists those that there are",
    )  # fmt: skip
