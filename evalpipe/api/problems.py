"""Errors as the API tells them: ``{"error": {"what", "where", "value", "advice"}}``, in words, never a traceback."""

from __future__ import annotations

import difflib
import logging
from typing import Any, Final

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from redis import RedisError
from sqlalchemy.exc import DataError, DBAPIError, SQLAlchemyError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evalpipe.api.bodies import MAX_BYTES, MAX_JSON_BYTES
from evalpipe.errors import EvalpipeError
from evalpipe.store.sql import is_passing

log = logging.getLogger("evalpipe.api")

TABLE_OF_CONTENTS = "GET /openapi.json lists every path with its parameters"


class Problem(BaseModel):
    """What went wrong, and what to do."""

    what: str = Field(description="What is wrong, in one sentence.")
    where: str = Field(description="The part of the request, or of evalpipe, that it is about.")
    value: Any = Field(default=None, description="The value that cannot be used, as it came.")
    advice: str = Field(description="What to do about it.")


class Failure(BaseModel):
    """The body of every answer that is not a success."""

    error: Problem


REFUSALS: Final[dict[int | str, dict[str, Any]]] = {
    401: {"model": Failure, "description": "No key, or a wrong one."},
    422: {"model": Failure, "description": "It cannot be used as it is written."},
    503: {"model": Failure, "description": "The database does not answer."},
}
"""How any request that reads or changes the store may be answered."""


_TOO_LARGE: Final = Problem(
    what="the body is too large",
    where="body",
    advice=f"send at most {MAX_JSON_BYTES:,} bytes, to /v1/alertmanager {MAX_BYTES:,}",
)


def refuse(status: int, what: str, *, where: str, value: Any = None, advice: str) -> HTTPException:
    """The exception that ends a request with this problem."""
    return HTTPException(status, detail=Problem(what=what, where=where, value=value, advice=advice).model_dump())


def failure(status: int, problem: Problem, headers: dict[str, str] | None = None) -> JSONResponse:
    """The answer for a problem."""
    return JSONResponse(Failure(error=problem).model_dump(mode="json"), status, headers)


def add_to(app: FastAPI) -> None:
    """Handle every exception that can reach the outside."""
    app.add_exception_handler(StarletteHTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    for kind in (SQLAlchemyError, RedisError, EvalpipeError, Exception):
        app.add_exception_handler(kind, _broken)


class LargeBodies:
    """Middleware for a body that says it is too large: Starlette answers in plain text, whatever the handlers do."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Put the problem in the place of that answer."""
        replaced = False

        async def tell(message: Message) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start" and message["status"] == 413:
                replaced = Headers(raw=message["headers"]).get("content-type", "").startswith("text/plain")
                if replaced:
                    await failure(413, _TOO_LARGE)(scope, receive, send)
            if not replaced:
                await send(message)

        await self._app(scope, receive, tell)


def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StarletteHTTPException)
    detail: Any = error.detail
    if error.status_code == 413:
        return failure(413, _TOO_LARGE)
    if not isinstance(detail, dict):
        detail = {"what": str(detail), "where": request.url.path, "advice": TABLE_OF_CONTENTS}
    return failure(error.status_code, Problem.model_validate(detail), dict(error.headers or {}))


def _invalid(request: Request, error: Exception) -> JSONResponse:
    """One problem of the request: the first, which is enough to go on."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    what = str(first["msg"]).removeprefix("Value error, ")
    advice = "GET /openapi.json describes every parameter"
    value = first.get("input")
    if first["type"] == "extra_forbidden":
        known = _parameters(request, in_body=first["loc"][0] == "body")
        what = f"there is no parameter {first['loc'][-1]!r}"
        nearest = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        advice = (f"did you mean {nearest[0]!r}? " if nearest else "") + f"There are: {', '.join(known)}"
    elif isinstance(value, dict):  # a rule over several parameters
        value = {name: str(v) for name, v in value.items()}
    return failure(422, Problem(what=what, where=where, value=value, advice=advice))


def _parameters(request: Request, *, in_body: bool = False) -> list[str]:
    route = request.scope.get("route")
    if not isinstance(route, APIRoute):
        return []
    given = route.dependant.body_params if in_body else route.dependant.query_params
    models = [p.field_info.annotation for p in given]
    return sorted(name for m in models if isinstance(m, type) and issubclass(m, BaseModel) for name in m.model_fields)


def _broken(request: Request, error: Exception) -> JSONResponse:
    log.warning("%s %s: %s: %s", request.method, request.url.path, type(error).__name__, error)
    where = request.url.path
    if isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) == "57014":
        return failure(503, Problem(what="the answer took too long", where=where, advice="ask for less: a later since"))
    if isinstance(error, DataError):
        what = "the database cannot take a value of this request"
        return failure(422, Problem(what=what, where=where, advice="leave out control characters"))
    if isinstance(error, SQLAlchemyError):
        missing = isinstance(error, DBAPIError) and not is_passing(error)
        advice = "run 'evalpipe doctor' where the API runs" + ("; is the database migrated?" if missing else "")
        return failure(503, Problem(what="the database does not answer", where=where, advice=advice))
    if isinstance(error, RedisError):
        advice = "run 'evalpipe doctor' where the API runs"
        return failure(503, Problem(what="redis does not answer", where=where, advice=advice))
    if isinstance(error, EvalpipeError):
        return failure(500, Problem(what=str(error), where=where, advice="run 'evalpipe doctor' where the API runs"))
    # The server logs its traceback.
    return failure(500, Problem(what="evalpipe has a bug here", where=where, advice="the API's log says where"))
