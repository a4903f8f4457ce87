"""Who may ask: whoever has a key. Health and readiness are open, for load balancers; so is a page that asks for one."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from evalpipe.api.problems import Problem, failure

OPEN = frozenset({"/healthz", "/readyz", "/label", "/rollouts", "/alerts"})
"""Paths that need no key; what the pages show needs one."""
INTAKE = frozenset(("POST", f"/v1/{what}") for what in ("traces", "records", "feedback", "alertmanager"))
"""What an intake key opens: what applications, and Alertmanager, send."""
LABELLING = frozenset({("GET", "/v1/labels/criteria"), ("GET", "/v1/labels/next"), ("POST", "/v1/labels")})
"""What a labelling key opens: what the labelling page asks for. Not what others said, and no grade."""

GATES = frozenset({("GET", "/v1/canaries/*/verdict"), ("POST", "/v1/flagger/*"), ("GET", "/v1/flags/*")})
"""What a deployer's key opens: whether a canary may go on, and flagd's weights. ``*`` is one part of a path."""
BASIC = "/v1/flagger/"
"""Below it a key may also come as the password of HTTP basic authentication: Flagger can send no other."""

bearer = HTTPBearer(auto_error=False, description="A key of EVALPIPE_API_KEYS: `Authorization: Bearer KEY`.")
"""For the OpenAPI document only: ``KeyGuard`` does the work, for every path, known or not."""


@dataclass(frozen=True, slots=True)
class _Door:
    """Keys that open these requests, (method, path or pattern), and no other; ``only`` says so."""

    digests: Sequence[bytes]
    opens: frozenset[tuple[str, str]]
    only: str


class KeyGuard:
    """Middleware that refuses whatever comes without a key; a new path is closed until ``OPEN`` names it.

    Args:
        app: what is behind it.
        keys: any of them opens everything. Without keys nothing is open.
        intake_keys: any of them opens ``INTAKE``: applications have them, and must not release a kill switch.
        label_keys: any of them opens ``LABELLING``: people who label have them, and must not see grades.
        gate_keys: any of them opens ``GATES``: deployers have them, where many can read them.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Iterable[str],
        intake_keys: Iterable[str] = (),
        label_keys: Iterable[str] = (),
        gate_keys: Iterable[str] = (),
    ) -> None:
        self._app = app
        self._digests = [_digest(key) for key in keys]
        self._doors = (
            _Door(
                [_digest(key) for key in intake_keys],
                INTAKE,
                "an intake key only takes spans, records, feedback and Alertmanager's alerts in",
            ),
            _Door(
                [_digest(key) for key in label_keys],
                LABELLING,
                "a labelling key only shows what to label and takes labels in",
            ),
            _Door([_digest(key) for key in gate_keys], GATES, "a deployer's key only asks how a canary does"),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let it through, or answer for it."""
        answer = None if scope["type"] == "lifespan" or scope.get("path") in OPEN else self._refusal(scope)
        await (answer or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        """What to answer instead, if the request has no key that opens it."""
        if not self._digests and not any(door.digests for door in self._doors):
            what = "this API has no keys, so it answers nobody"
            advice = "set EVALPIPE_API_KEYS (several are separated by spaces) for the process that runs 'evalpipe api'"
            return failure(503, Problem(what=what, where="EVALPIPE_API_KEYS", advice=advice))
        key, where = _key(scope), (scope.get("method", ""), scope.get("path", ""))
        given = _digest(key) if key else b""
        if _is_one_of(given, self._digests):
            return None
        known = [door for door in self._doors if _is_one_of(given, door.digests)]
        if any(_fits(pattern, where) for door in known for pattern in door.opens):
            return None
        if known:
            opens = ", ".join(f"{method} {path}" for method, path in sorted(known[0].opens))
            advice = f"it opens {opens}; use a key of EVALPIPE_API_KEYS for everything else"
            return failure(403, Problem(what=known[0].only, where="header.authorization", advice=advice))
        what = "the key is not one of this API's" if key else "a key is needed"
        advice = "send 'Authorization: Bearer KEY' with a key of EVALPIPE_API_KEYS; 'evalpipe up' keeps one in its home"
        return failure(
            401, Problem(what=what, where="header.authorization", advice=advice), {"WWW-Authenticate": "Bearer"}
        )


def _key(scope: Scope) -> str:
    """The key of a request; "" if it has none."""
    scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return given.strip()
    if scheme.lower() != "basic" or not scope.get("path", "").startswith(BASIC):
        return ""
    try:
        return base64.b64decode(given.strip(), validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _fits(pattern: tuple[str, str], where: tuple[str, str]) -> bool:
    expected, found = pattern[1].split("/"), where[1].split("/")
    return (
        pattern[0] == where[0]
        and len(expected) == len(found)
        and all(mine == theirs or (mine == "*" and theirs) for mine, theirs in zip(expected, found, strict=True))
    )


def _is_one_of(given: bytes, digests: Iterable[bytes]) -> bool:
    # All are compared, digest by digest: neither time nor order tells anything of a key.
    return sum(hmac.compare_digest(given, digest) for digest in digests) > 0


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
