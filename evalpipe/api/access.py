"""Who may ask: whoever has a key. Health and readiness are open, for load balancers; so is a page that asks for one."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from evalpipe.api.problems import Problem, failure

OPEN = frozenset({"/healthz", "/readyz", "/label"})
"""Paths that need no key; what the labelling page shows needs one."""
INTAKE = frozenset({"/v1/traces", "/v1/records", "/v1/feedback"})
"""Paths that an intake key opens, for POST: what applications send."""

bearer = HTTPBearer(auto_error=False, description="A key of EVALPIPE_API_KEYS: `Authorization: Bearer KEY`.")
"""For the OpenAPI document only: ``KeyGuard`` does the work, for every path, known or not."""


class KeyGuard:
    """Middleware that refuses whatever comes without a key; a new path is closed until ``OPEN`` names it.

    Args:
        app: what is behind it.
        keys: any of them opens everything. Without keys nothing is open.
        intake_keys: any of them opens ``INTAKE``: applications have them, and must not release a kill switch.
    """

    def __init__(self, app: ASGIApp, keys: Iterable[str], intake_keys: Iterable[str] = ()) -> None:
        self._app = app
        self._digests = [_digest(key) for key in keys]
        self._intake = [_digest(key) for key in intake_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let it through, or answer for it."""
        if scope["type"] == "lifespan" or scope.get("path") in OPEN:
            await self._app(scope, receive, send)
            return
        if not self._digests and not self._intake:
            what = "this API has no keys, so it answers nobody"
            advice = "set EVALPIPE_API_KEYS (several are separated by spaces) for the process that runs 'evalpipe api'"
            await failure(503, Problem(what=what, where="EVALPIPE_API_KEYS", advice=advice))(scope, receive, send)
            return
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        given = _digest(key.strip()) if scheme.lower() == "bearer" else b""
        if _is_one_of(given, self._digests):
            await self._app(scope, receive, send)
            return
        if _is_one_of(given, self._intake):
            if scope.get("method") == "POST" and scope.get("path") in INTAKE:
                await self._app(scope, receive, send)
                return
            what = "an intake key only takes spans, records and feedback in"
            advice = f"it opens POST {', '.join(sorted(INTAKE))}; use a key of EVALPIPE_API_KEYS for everything else"
            await failure(403, Problem(what=what, where="header.authorization", advice=advice))(scope, receive, send)
            return
        what = "the key is not one of this API's" if key else "a key is needed"
        advice = "send 'Authorization: Bearer KEY' with a key of EVALPIPE_API_KEYS; 'evalpipe up' keeps one in its home"
        answer = failure(
            401, Problem(what=what, where="header.authorization", advice=advice), {"WWW-Authenticate": "Bearer"}
        )
        await answer(scope, receive, send)


def _is_one_of(given: bytes, digests: Iterable[bytes]) -> bool:
    # All are compared, digest by digest: neither time nor order tells anything of a key.
    return sum(hmac.compare_digest(given, digest) for digest in digests) > 0


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
