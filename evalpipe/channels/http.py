"""One HTTP request of a channel: bounded in time whatever the other side does, and without secrets in what it says.

httpx2 comes with the judges' SDKs. Unlike the standard library's client it takes proxies and the system's certificate
store from the environment, which a fleet behind an egress proxy needs.
"""

from __future__ import annotations

import base64
import ipaddress
import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Final

import httpx2

from evalpipe.channels.base import Delivery
from evalpipe.errors import ConfigError

# It logs the URL of each request at INFO, and the URLs of some receivers are secrets.
logging.getLogger("httpx2").setLevel(logging.WARNING)

UNREADABLE: Final = frozenset({400, 413})
"""What receivers answer to what they will not be able to read at the next attempt either."""
_TEXT_BYTES = 4_000
"""How much of an error's text is read."""
_ERROR = 500
"""How much of it goes to the delivery log."""
_LEAST = 6
"""Shorter texts are no secrets, and would be found everywhere."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent."""

    method: str
    url: str
    body: bytes
    headers: Mapping[str, str]


def check_url(url: str, what: str) -> str:
    """``url``, if requests can be sent to it.

    Raises:
        ConfigError: they cannot; the message has no password.
    """
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ConfigError(f"{what} is no URL: {error}") from None
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ConfigError(f"{what} must be http://host/... or https://host/..., not {hidden(url, url_secrets(url))!r}")
    return url


def check_secret_url(url: str, what: str) -> str:
    """``url``, as ``check_url``, of a receiver that trusts whoever knows its URL.

    Raises:
        ConfigError: requests cannot be sent to it; the message has nothing of the URL.
    """
    try:
        return check_url(url, what)
    except ConfigError:
        raise ConfigError(f"{what} must be http://host/... or https://host/...") from None


def url_secrets(url: str) -> tuple[str, ...]:
    """The password in a URL, as it is written and as it is sent; nothing if there is none."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        return ()
    if not parsed.password:
        return ()
    sent = base64.b64encode(f"{parsed.username}:{parsed.password}".encode()).decode()
    return parsed.password, sent


def send(
    request: Request, *, timeout_s: float, at: datetime, secrets: Iterable[str] = (), final: Collection[int] = ()
) -> Delivery:
    """Make one attempt. Every answer but 2xx is a failure that may be tried again, redirects and 4xx too, but for 410.

    Args:
        request: what is sent.
        timeout_s: for all of it, name look-up and answer included.
        at: the time of the attempt, aware.
        secrets: are cut out of whatever the other side says.
        final: statuses after which it is not tried again.
    """
    return bounded(
        lambda: _attempt(request, timeout_s, at, final),
        timeout_s=timeout_s,
        secrets=[*secrets, *url_secrets(request.url)],
    )


def bounded(attempt: Callable[[], Delivery], *, timeout_s: float, secrets: Iterable[str]) -> Delivery:
    """What ``attempt`` says within ``timeout_s``, without the secrets; a failure that may be tried again else."""
    outcome: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
    started = time.monotonic()
    # A client's own timeouts are for one read or write each, and none is for looking up a name: a receiver that
    # trickles, or a dead name server, would hold the worker for hours. A thread left behind ends by itself.
    threading.Thread(target=lambda: outcome.put(attempt()), name="channel", daemon=True).start()
    try:
        delivery = outcome.get(timeout=timeout_s)
    except queue.Empty:
        delivery = Delivery(ok=False, error=f"no answer within {timeout_s:g} s", recoverable=True)
    # Cut only now: half a secret would not be found. Control characters must not reach anybody's terminal.
    error = hidden(delivery.error, secrets)[:_ERROR]
    error = "".join(c if c.isprintable() else " " for c in error)
    return replace(delivery, error=error, elapsed_ms=(time.monotonic() - started) * 1000)


def hidden(text: str, secrets: Iterable[str]) -> str:
    """``text`` without the secrets."""
    for secret in secrets:
        if len(secret) >= _LEAST:
            text = text.replace(secret, "***")
    return text


def retry_after_s(header: str, at: datetime) -> float | None:
    """Seconds that a Retry-After header asks for, a day at the most, or None if it asks for none.

    Both forms are read: seconds, and a date. Source: RFC 9110, section 10.2.3.
    """
    if header.isascii() and header.isdigit():
        asked_s = float(header)
    else:
        try:
            asked_s = (parsedate_to_datetime(header) - at).total_seconds()
        except (ValueError, TypeError):  # no date, or one without a zone
            return None
    return min(max(asked_s, 0.0), 86_400.0)


def _attempt(request: Request, timeout_s: float, at: datetime, final: Collection[int]) -> Delivery:
    try:
        with (
            httpx2.Client(timeout=timeout_s, follow_redirects=False, trust_env=not _is_loopback(request.url)) as client,
            client.stream(request.method, request.url, content=request.body, headers=dict(request.headers)) as answer,
        ):
            return _judged(answer, at, final)
    except Exception as error:  # noqa: BLE001 - whatever a library raises is told; else nobody would wait for it in vain
        return Delivery(ok=False, error=f"{type(error).__name__}: {error}", recoverable=True)


def _is_loopback(url: str) -> bool:
    # A proxy cannot reach this machine's own addresses, whatever the environment says.
    host = httpx2.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _judged(answer: httpx2.Response, at: datetime, final: Collection[int]) -> Delivery:
    if answer.is_success:
        return Delivery(ok=True, status=answer.status_code)
    gone = answer.status_code == httpx2.codes.GONE
    try:
        text = next(answer.iter_raw(_TEXT_BYTES), b"").decode(errors="replace")
    except httpx2.HTTPError:
        text = ""  # the status says enough
    return Delivery(
        ok=False,
        status=answer.status_code,
        error=f"HTTP {answer.status_code} {answer.reason_phrase}: {text}".rstrip(": "),
        recoverable=not gone and answer.status_code not in final,
        retry_after_s=retry_after_s(answer.headers.get("retry-after", ""), at),
        disable=gone,
    )
