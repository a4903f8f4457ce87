"""``POST /v1/records`` and ``POST /v1/feedback``: the way in for applications in any language."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from io import BytesIO
from itertools import islice
from typing import Annotated, Any, Final, Self, TypeVar

import orjson
from anyio import to_thread
from fastapi import APIRouter, Request, Response, Security
from fastapi.responses import JSONResponse
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from evalpipe.api.access import bearer
from evalpipe.api.attributes import DEEPEST, is_too_deep, read_json
from evalpipe.api.bodies import BodyError, received, unpacked
from evalpipe.api.counting import TooMuchError, check_json
from evalpipe.api.otlp import RETRY_AFTER_S, limiter
from evalpipe.api.problems import Failure, Problem, failure
from evalpipe.api.taps import Busy, Reported, Taps
from evalpipe.hook.tap import OLDEST_S
from evalpipe.record import LEAST_PROBABILITY, MAX_ID, MAX_NAME, Release

MAX_RECORDS: Final = 1000
"""In one request."""
MAX_FEEDBACK: Final = 500
AHEAD: Final = timedelta(hours=1)
"""Clocks may be so far off."""
BEHIND: Final = timedelta(seconds=OLDEST_S)
"""The hook counts an older call as one of now; here it is told instead."""
JSON: Final = "application/json"
NDJSON: Final = ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines")

Amount = Annotated[float, Field(ge=0, lt=1e12, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Key = Annotated[str, Field(max_length=MAX_ID)]
Name = Annotated[str, Field(max_length=MAX_NAME)]
Object = dict[str, Any]


class Sent(BaseModel):
    """Base: a name that is not known is an error, not a field that is lost."""

    model_config = ConfigDict(extra="forbid")


class ReleaseSent(Sent):
    """What was running."""

    variant: Name = "baseline"
    environment: Name = "production"
    model: Name = ""
    prompt: Name = ""
    retrieval: Name = ""
    index: Name = ""
    tool_schema: Name = ""
    data_pipeline: Name = ""


class RecordSent(Sent):
    """One model call that happened."""

    service: Annotated[Name, Field(min_length=1)]
    release: ReleaseSent = Field(default_factory=ReleaseSent)
    feature: Name = ""
    segment: Name = Field(default="", description="A class of traffic: a plan, a language, a tenant.")
    record_id: Key = Field(default="", description="Yours: the same one sent again counts once.")
    trace_id: Key = Field(default="", description="Whole traces are sampled or not. The record's id if not given.")
    session_id: Key = ""
    user_id: Key = ""
    unit: Key = Field(default="", description="Of assignment in experiments; session, else user, else trace.")
    at: AwareDatetime | None = Field(default=None, description="When it ended: ISO 8601, or seconds since 1970.")
    latency_ms: Amount | None = None
    ttft_ms: Amount | None = Field(default=None, description="Time to the first token.")
    messages: list[Object] = Field(default=[], description="As sent to the model: dicts with role and content.")
    output: str = Field(default="", description="What the user saw.")
    context: list[Object] = Field(default=[], description="Retrieved documents: id, text, score.")
    tools: list[Any] = []
    tool_calls: list[Object] = []
    parameters: Object = {}
    model: Key = Field(default="", description="That answered.")
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cached_tokens: Count | None = Field(default=None, description="The part of the input that was cached.")
    cost_usd: Amount | None = None
    finish_reason: Key = ""
    error: str = Field(default="", description="Class and message of a call that failed.")
    attributes: Object = {}
    sampled: bool = Field(
        default=False, description="You sampled already: the record is kept, and counts 1/probability."
    )
    probability: Annotated[float, Field(ge=LEAST_PROBABILITY, le=1)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.sampled != (self.probability is not None):
            raise ValueError("'sampled' and 'probability' belong together: give both if you sampled already, else none")
        now = datetime.now(UTC)
        if self.at is not None and not now - BEHIND <= self.at <= now + AHEAD:
            raise ValueError(f"'at' is {self.at.isoformat()}: in the future, or more than {BEHIND.days} days ago")
        return self


class FeedbackSent(Sent):
    """What somebody said of an answer."""

    service: Annotated[Name, Field(min_length=1)]
    trace_id: Key = ""
    record_id: Key = Field(default="", description="Where the trace has several answers.")
    value: Annotated[float, Field(ge=0, le=1)] | None = Field(default=None, description="From 0 (bad) to 1 (good).")
    label: Annotated[str, Field(max_length=200)] = Field(default="", description="For example `thumbs_down`.")
    comment: Annotated[str, Field(max_length=4000)] = ""
    user_id: Key = ""
    feedback_id: Key = Field(default="", description="Yours: the same one sent again counts once.")

    @model_validator(mode="after")
    def _about_something(self) -> Self:
        if not self.trace_id and not self.record_id:
            raise ValueError("give 'trace_id' or 'record_id': what is it about?")
        if self.value is None and not self.label and not self.comment:
            raise ValueError("give 'value', 'label' or 'comment'")
        return self


class Rejected(BaseModel):
    """An entry of the request that was not taken."""

    index: int = Field(description="In the request, from 0.")
    field: str
    error: str


class RecordsTaken(BaseModel):
    """What became of the records."""

    accepted: int = Field(description="Metered now.")
    sampled: int = Field(description="Of these, captured: they will be scored.")
    duplicates: int = Field(description="Their record_id was sent within the last 15 minutes.")
    rejected: list[Rejected]


class FeedbackTaken(BaseModel):
    """What became of the feedback."""

    accepted: int
    feedback_ids: list[str] = Field(description="Of those accepted, in the order of the request.")
    rejected: list[Rejected]


M = TypeVar("M", bound=Sent)

router = APIRouter(
    prefix="/v1",
    tags=["intake"],
    dependencies=[Security(bearer)],
    responses={
        401: {"model": Failure, "description": "No key, or a wrong one."},
        413: {"model": Failure, "description": "The body is too large."},
        415: {"model": Failure, "description": "Neither JSON nor NDJSON."},
        503: {"model": Failure, "description": "Nothing was taken: send it again after Retry-After seconds."},
    },
)


def _described(model: type[BaseModel]) -> dict[str, Any]:
    one = model.model_json_schema(ref_template="#/components/schemas/{model}")
    one.pop("$defs", None)
    if "release" in one.get("properties", {}):
        one["properties"]["release"] = ReleaseSent.model_json_schema()
    many = {"oneOf": [one, {"type": "array", "items": one}]}
    lines = {"type": "string", "description": "One JSON object a line."}
    return {"requestBody": {"required": True, "content": {JSON: {"schema": many}, NDJSON[0]: {"schema": lines}}}}


@router.post(
    "/records",
    status_code=202,
    response_model=RecordsTaken,
    openapi_extra=_described(RecordSent),
    responses={400: {"model": RecordsTaken, "description": "No record was good; or the body is not JSON (an error)."}},
)
async def post_records(request: Request) -> Response:
    """Take model calls in: an object, an array, or NDJSON. All are metered; the sampled ones become records."""
    return await _answered(request, partial(_take_records, request.app.state.wiring.settings.max_record_bytes))


@router.post(
    "/feedback",
    status_code=202,
    response_model=FeedbackTaken,
    openapi_extra=_described(FeedbackSent),
    responses={400: {"model": FeedbackTaken, "description": "None was good; or the body is not JSON (an error)."}},
)
async def post_feedback(request: Request) -> Response:
    """Take in what users said of answers, before or after the answer's record arrived."""
    return await _answered(request, _take_feedback)


async def _answered(request: Request, take: Any) -> Response:
    where = request.url.path
    try:
        body = await received(request)
        kind = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
        encoding = request.headers.get("content-encoding", "")
        work = partial(take, request.app.state.taps, body, encoding, kind)
        answer: RecordsTaken | FeedbackTaken = await to_thread.run_sync(work, limiter=limiter(request))
    except BodyError as error:
        return failure(error.status, Problem(what=error.what, where="body", advice=error.advice))
    except Busy as error:
        problem = Problem(what=f"nothing was taken: {error}", where=where, advice="send the same again a little later")
        return failure(503, problem, {"Retry-After": str(RETRY_AFTER_S)})
    duplicates = answer.duplicates if isinstance(answer, RecordsTaken) else 0
    return JSONResponse(answer.model_dump(mode="json"), 202 if answer.accepted or duplicates else 400)


def _take_records(max_record_bytes: int, taps: Taps, body: bytes, encoding: str, kind: str) -> RecordsTaken:
    items = _items(unpacked(body, encoding), kind, MAX_RECORDS)
    good, rejected = _checked(items, RecordSent, max_record_bytes)
    taken = taps.take([_reported(record) for record in good])
    return RecordsTaken(accepted=taken.accepted, sampled=taken.sampled, duplicates=taken.duplicates, rejected=rejected)


def _take_feedback(taps: Taps, body: bytes, encoding: str, kind: str) -> FeedbackTaken:
    items = _items(unpacked(body, encoding), kind, MAX_FEEDBACK)
    good, rejected = _checked(items, FeedbackSent, 65_536)
    found = [{**one.model_dump(), "feedback_id": one.feedback_id or uuid.uuid4().hex} for one in good]
    if found:
        taps.feedback(found)
    return FeedbackTaken(accepted=len(found), feedback_ids=[one["feedback_id"] for one in found], rejected=rejected)


def _reported(record: RecordSent) -> Reported:
    said = record.model_dump(exclude={"service", "release", "record_id", "sampled", "at"}, exclude_defaults=True)
    said.setdefault("trace_id", record.record_id or None)
    if record.at is not None:
        said["at"] = record.at.timestamp()
    return Reported(Release(service=record.service, **record.release.model_dump()), record.record_id, said)


def _items(body: bytes, kind: str, most: int) -> list[Any]:
    """The entries of a body; a line that is no JSON is an entry that will be rejected.

    Raises:
        BodyError: it is of another type, not JSON, empty, or has too many.
    """
    if kind in NDJSON:
        lines = (_line(line) for line in BytesIO(body) if not line.isspace())
        items = list(islice(lines, most + 1))
    elif kind == JSON:
        try:
            check_json(body)
            found = read_json(body)
        except TooMuchError as error:
            raise BodyError(413, str(error).partition(";")[0], "send smaller batches") from error
        except ValueError as error:
            raise BodyError(400, f"the body is not JSON: {error}", "send an object, an array, or NDJSON") from error
        items = found if isinstance(found, list) else [found]
    else:
        raise BodyError(415, f"content-type {kind[:80]!r} is not read here", f"send {JSON} or {NDJSON[0]}")
    if not items:
        raise BodyError(400, "the body is empty", "send an object, an array, or NDJSON")
    if len(items) > most:
        raise BodyError(413, f"the body has more than {most} entries", "send smaller batches")
    return items


def _line(line: bytes) -> Any:
    try:
        return read_json(line)
    except ValueError as error:
        return error


def _checked(items: Sequence[Any], model: type[M], max_bytes: int) -> tuple[list[M], list[Rejected]]:
    good: list[M] = []
    rejected = []
    for index, item in enumerate(items):
        if isinstance(item, ValueError):
            rejected.append(Rejected(index=index, field="", error=f"the line is not JSON: {item}"))
        elif is_too_deep(item):
            rejected.append(Rejected(index=index, field="", error=f"it is nested more than {DEEPEST} deep"))
        elif isinstance(item, Mapping) and (size := len(orjson.dumps(item))) > max_bytes:
            rejected.append(Rejected(index=index, field="", error=f"it has {size} bytes, more than {max_bytes}"))
        else:
            try:
                good.append(model.model_validate(item))
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                where = ".".join(str(part) for part in first["loc"])
                rejected.append(Rejected(index=index, field=where, error=first["msg"].removeprefix("Value error, ")))
    return good, rejected
