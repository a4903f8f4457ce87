"""Baselines over HTTP: which there are, what is in one, and capture another."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Security
from pydantic import BaseModel, ConfigDict, Field

from evalpipe.api.access import bearer
from evalpipe.api.bodies import MAX_JSON_BYTES
from evalpipe.api.problems import REFUSALS, Failure, refuse
from evalpipe.api.queries import Asked, Tx, When, writing
from evalpipe.errors import ConfigError
from evalpipe.pipeline.baseline_view import header_view, view
from evalpipe.pipeline.rollout_view import environment_of
from evalpipe.store import baselines
from evalpipe.store.baselines import Wanted
from evalpipe.wiring import Wiring, now

router = APIRouter(
    prefix="/v1",
    tags=["alerts"],
    dependencies=[Security(bearer)],
    max_body_size=MAX_JSON_BYTES,
    responses=REFUSALS,
)
_MISSING: dict[int | str, dict[str, Any]] = {404: {"model": Failure, "description": "There is no such baseline."}}
_REFUSED: dict[int | str, dict[str, Any]] = {
    409: {"model": Failure, "description": "The name is taken, or there are too few scores."}
}

Text = Annotated[str, Field(min_length=1, max_length=200)]


class BaselineAnswer(BaseModel):
    """A baseline in short."""

    name: str
    service: str
    environment: str
    variant: str
    release_id: str = Field(description="Of one release; empty: of all of the variant.")
    since_at: datetime = Field(description="What was captured from here on, up to `until_at`, is in it.")
    until_at: datetime
    span_s: float
    captured_at: datetime
    actor: str = Field(description="`evalpipe` where it was captured of a release that stayed healthy.")
    reason: str
    n_scores: int
    n_calls: int
    n_profiles: int = Field(description="Records whose inputs and outputs stand for all.")
    epochs: dict[str, dict[str, int]] = Field(description="Scored values by `scorecard/criterion` and epoch.")
    retired_at: datetime | None = Field(description="`latest` skips it from then on; null while it does not.")
    retired_by: str
    retired_reason: str
    words: str = Field(description="What it is, in words.")


class BaselineDetail(BaselineAnswer):
    """A baseline with what is in it."""

    criteria: list[dict[str, Any]] = Field(description="By scorecard, criterion and epoch: sizes, mean, sd, quantiles.")
    meter: list[dict[str, Any]] = Field(description="By feature: sums over all calls, rates, quantiles, hours of week.")


class Baselines(BaseModel):
    """Baselines, newest first."""

    baselines: list[BaselineAnswer]


class Capturing(BaseModel):
    """A baseline that somebody wants."""

    model_config = ConfigDict(extra="forbid")

    name: Text = Field(description="Of your own choice; it is never reused.")
    service: Text
    environment: str = Field(default="", description="Where the service's traffic comes from, if not given.")
    variant: Text = "baseline"
    release_id: str = Field(default="", description="Only this release.")
    since: When = Field(
        default_factory=lambda: now() - timedelta(days=7), description="From here on; 7 days ago, if not given."
    )
    until: When | None = Field(default=None, description="Up to here; now, if not given.")
    actor: Text = Field(description="Who stands for this, for example `ada@example.com`.")
    reason: str = Field(default="", max_length=1000, description="Why this is normal.")


class BaselinesQuery(Asked):
    """Which baselines."""

    service: str | None = Field(default=None, description="Only of this service.")
    retired: bool = Field(default=False, description="Also those that were retired.")
    limit: int = Field(default=100, ge=1, le=1000, description="The newest so many.")


@router.get("/baselines")
def get_baselines(tx: Tx, query: Annotated[BaselinesQuery, Query()]) -> Baselines:
    """Baselines, newest first."""
    where = {"service": query.service} if query.service is not None else {}
    found = baselines.listing(tx, where, retired=query.retired, limit=query.limit)
    return Baselines(baselines=[BaselineAnswer.model_validate(header_view(header)) for header in found])


@router.get("/baselines/{name}", responses=_MISSING)
def get_baseline(tx: Tx, name: Annotated[str, Path(description="The baseline's name.")]) -> BaselineDetail:
    """What is in a baseline."""
    found = baselines.get(tx, name)
    if found is None:
        raise refuse(
            404, "there is no such baseline", where="path.name", value=name,
            advice="GET /v1/baselines lists those that there are",
        )  # fmt: skip
    return BaselineDetail.model_validate(view(found))


@router.post("/baselines", responses=_REFUSED)
def post_baseline(request: Request, body: Capturing) -> BaselineAnswer:
    """Capture what is normal. A baseline is never changed; at least 1,000 scores of one criterion are needed."""
    wiring: Wiring = request.app.state.wiring
    at = now()
    try:
        with writing(wiring.store) as tx:
            environment = environment_of(tx, body.service, body.environment)
            wanted = Wanted(
                body.name, body.service, environment, body.variant, body.since, body.until or at, body.actor,
                body.reason, body.release_id,
            )  # fmt: skip
            header = baselines.capture(tx, wanted, at)
    except ConfigError as error:
        raise refuse(409, str(error), where="body", advice="GET /v1/baselines shows what there is") from None
    return BaselineAnswer.model_validate(header_view(header))
