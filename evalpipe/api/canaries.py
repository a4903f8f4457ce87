"""Whether a canary may go on, for deployers that ask: Argo Rollouts, Flagger, and anything that can read JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Path, Query, Request, Response, Security
from pydantic import BaseModel, Field

from evalpipe.api.access import bearer
from evalpipe.api.bodies import MAX_JSON_BYTES
from evalpipe.api.problems import Failure, refuse
from evalpipe.api.queries import Asked, reading, writing
from evalpipe.errors import ConfigError
from evalpipe.pipeline.canary_answer import CanaryAnswer, Question, UnknownCanaryError, answer, leave
from evalpipe.store.sql import Transaction
from evalpipe.wiring import now

MOST_BYTES: Final = 2_000
"""Of an answer: Argo keeps each in the cluster's database."""

router = APIRouter(
    prefix="/v1",
    tags=["deployers"],
    dependencies=[Security(bearer)],
    max_body_size=MAX_JSON_BYTES,
    responses={
        401: {"model": Failure, "description": "No key, or a wrong one."},
        503: {"model": Failure, "description": "The database does not answer."},
    },
)


class Evidence(BaseModel):
    """Where one gate stands."""

    gate: str
    change: float | None = Field(description="Estimated change of the canary: -.05 is 5 % lower; null if unknown.")
    interval: list[float | None] = Field(description="Of that change: low, high.")
    margin: float = Field(description="The change that is not tolerated.")
    e_value: float | None = Field(description="Evidence of harm; `threshold` proves it.")
    threshold: float | None
    n_baseline: int
    n_canary: int


class Verdict(BaseModel):
    """What may be done with the canary."""

    decision: Literal["advance", "hold", "rollback"]
    step: float | None = Field(description="Percent that it is about; null: all of the traffic.")
    rollout: str = Field(description="The rollout's id; empty before it has begun.")
    phase: str
    policy: str = Field(description="Scorecard and version that it rests on.")
    decision_id: str
    reason: str
    evidence: list[Evidence] = Field(description="As many gates as there is room for.")
    data_through: datetime | None = Field(description="When evidence was last looked at.")


class VerdictAnswer(BaseModel):
    """The answer to a deployer."""

    data: Verdict


class VerdictQuery(Asked):
    """Which canary, and at which step."""

    service: str = Field(default="", description="Of the canary; needed where several services have one of that name.")
    environment: str = Field(default="", description="Of the canary, for example `production`.")
    deployment: str = Field(
        default="",
        max_length=200,
        description="Names this attempt to deploy, for example the pod template's hash. Needed where releases take "
        "turns under one variant's name: what ended before this was first asked does not count.",
    )
    step: float | None = Field(
        default=None,
        ge=0,
        le=100,
        description="Percent that the canary has and is to leave: `advance` once the rollout has gone beyond it. "
        "Without it the question is whether the canary may have all of the traffic.",
    )


class Hook(BaseModel):
    """What Flagger sends; fields that are not known are ignored."""

    name: str = Field(max_length=200, description="Of the Canary object.")
    namespace: str = Field(default="", max_length=200)
    phase: str = ""
    checksum: str = Field(default="", max_length=200, description="Of what is being deployed.")
    metadata: dict[str, str] | None = Field(
        default=None,
        description="`service` (the Canary's name without it), `canary` (a variant or a rollout's id; without it the "
        "variant `canary`) and `environment`.",
    )


HookType = Literal[
    "rollback",
    "confirm-rollout",
    "confirm-traffic-increase",
    "confirm-promotion",
    "pre-rollout",
    "rollout",
    "post-rollout",
    "event",
]


@router.get(
    "/canaries/{name}/verdict",
    response_model=VerdictAnswer,
    responses={
        404: {"model": Failure, "description": "No rollout and no release is called so."},
        422: {"model": Failure, "description": "Several services have a canary of that name, or a parameter is wrong."},
    },
)
def get_verdict(
    request: Request,
    name: Annotated[str, Path(description="A rollout's id, or the canary's variant.", max_length=200)],
    query: Annotated[VerdictQuery, Query()],
) -> Response:
    """Advance, hold or rollback, for Argo Rollouts' `web` provider. Missing data hold; they never advance.

    `rollback` stands for every end at the baseline: rolled back, aborted, expired.
    """
    question = Question(name, query.service, query.environment, query.deployment, query.step)
    with _asked(request, writes=bool(query.deployment)) as tx:
        found = answer(tx, question, now())
    return Response(body_of(found), media_type="application/json", headers={"Cache-Control": "no-store"})


@router.post("/flagger/{hook}", responses={403: {"description": "No; Flagger waits, or does not roll back."}})
def post_flagger(
    request: Request, hook: Annotated[HookType, Path(description="The hook's type, as Flagger calls it.")], body: Hook
) -> Response:
    """Flagger's hooks. 200 is yes and 403 is no; which of them a hook needs is its own contract.

    `rollback`: 200 if the canary is to be rolled back. `confirm-traffic-increase`: 200 once for each step that the
    rollout has come to. `confirm-promotion`: 200 if the canary may have all of the traffic. `confirm-rollout`: 200
    unless somebody froze it. `rollout` and `pre-rollout`: 200 unless it is to be rolled back. Others: 200.
    """
    if hook in {"post-rollout", "event"}:
        return _said(200, "noted")
    question = question_of(hook, body)
    at = now()
    with _asked(request, writes=True) as tx:
        found = _answer(tx, question, at)
        code = 200 if _is_yes(tx, hook, question, found, at) else 403
    return _said(code, f"{found.decision}: {found.reason}")


def question_of(hook: str, body: Hook) -> Question:
    """Whom a hook is about."""
    given = body.metadata or {}
    # Before the rollout Flagger still tells the checksum of what was deployed last.
    named = "" if hook == "confirm-rollout" else f"{body.namespace}/{body.name}/{body.checksum}"
    return Question(
        given.get("canary") or "canary", given.get("service") or body.name, given.get("environment", ""), named
    )


def body_of(found: CanaryAnswer) -> bytes:
    """The answer as strict JSON of at most ``MOST_BYTES``: a body that is no JSON would be taken for a text."""
    data = found.to_dict()
    while True:
        written = json.dumps({"data": data}, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
        if len(written) <= MOST_BYTES:
            return written
        if data["evidence"]:
            data["evidence"].pop()
        else:
            data["reason"] = data["reason"][: len(data["reason"]) // 2] + "…"


def _answer(tx: Transaction, question: Question, at: datetime) -> CanaryAnswer:
    """Before the first canary of all nothing is known, and Flagger must be able to begin."""
    try:
        return answer(tx, question, at)
    except UnknownCanaryError as error:
        return CanaryAnswer("hold", str(error))


def _is_yes(tx: Transaction, hook: HookType, question: Question, found: CanaryAnswer, at: datetime) -> bool:
    if hook == "rollback":
        return found.decision == "rollback"
    if hook == "confirm-traffic-increase":
        return leave(tx, question, found, at)
    if hook == "confirm-promotion":
        return found.decision == "advance"
    if hook == "confirm-rollout":
        return not found.stopped
    return found.decision != "rollback"


@contextmanager
def _asked(request: Request, *, writes: bool) -> Iterator[Transaction]:
    """A transaction to answer in; a question that cannot be understood is refused."""
    store = request.app.state.wiring.store
    try:
        with writing(store) if writes else reading(store) as tx:
            yield tx
    except UnknownCanaryError as error:
        advice = "GET /v1/rollouts lists the rollouts; a canary's first record, or POST /v1/rollouts, starts one"
        raise refuse(404, str(error), where="path.name", advice=advice) from None
    except ConfigError as error:
        raise refuse(422, str(error), where="query", advice="give service and environment, or a rollout's id") from None


def _said(code: int, words: str) -> Response:
    return Response(words, code, media_type="text/plain", headers={"Cache-Control": "no-store"})
