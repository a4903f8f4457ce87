"""Signed webhooks: a CloudEvents body with Standard Webhooks headers, by POST.

httpx2 comes with the judges' SDKs. Unlike the standard library's client it takes proxies and the system's certificate
store from the environment, which a fleet behind an egress proxy needs.
"""

from __future__ import annotations

import ipaddress
import queue
import threading
import time
from dataclasses import replace
from datetime import datetime
from email.utils import parsedate_to_datetime

import httpx2
from pydantic import Field

from evalpipe.channels.base import Channel, ChannelConfig, Delivery, channels
from evalpipe.errors import ConfigError
from evalpipe.notification import CONTENT_TYPE, Notification, to_cloudevent
from evalpipe.signing import check_secrets, sign

_TEXT_BYTES = 500
"""How much of an error's text goes to the delivery log."""


class WebhookConfig(ChannelConfig):
    """Where decisions go, and how they are signed."""

    url: str = Field(description="http(s) URL that takes the POST.")
    secrets: tuple[str, ...] = Field(repr=False, description="whsec_... secrets; each signs, so they can be changed.")
    timeout_s: float = Field(15.0, gt=0, description="Seconds for one attempt, name look-up and answer included.")


@channels.register("webhook")
class Webhook(Channel):
    """Delivers to one URL. Every answer but 2xx is a failure that is tried again, redirects and 4xx too.

    A receiver that is being deployed, or has a wrong secret for an hour, shall still learn of a rollback. Only 410
    says that nobody wants these any more.
    """

    Config = WebhookConfig

    def __init__(self, config: ChannelConfig) -> None:
        assert isinstance(config, WebhookConfig)
        check_secrets(config.secrets)
        try:
            url = httpx2.URL(config.url)
        except httpx2.InvalidURL as error:
            raise ConfigError(f"the webhook URL {config.url!r} is no URL: {error}") from None
        if url.scheme not in {"http", "https"} or not url.host:
            raise ConfigError(f"the webhook URL must be http://host/... or https://host/..., not {config.url!r}")
        self._config = config

    def render(self, notification: Notification) -> bytes:
        """The CloudEvent."""
        return to_cloudevent(notification)

    def send(self, body: bytes, *, event_id: str, at: datetime) -> Delivery:
        """POST ``body``, signed for this attempt."""
        headers = sign(body, secrets=self._config.secrets, event_id=event_id, at=at)
        headers |= {"content-type": CONTENT_TYPE, "user-agent": "evalpipe"}
        outcome: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        started = time.monotonic()
        # The client's own timeouts are for one read or write each, and none is for looking up a name: a receiver that
        # trickles, or a dead name server, would hold the worker for hours. A thread left behind ends by itself.
        threading.Thread(
            target=lambda: outcome.put(_attempt(self._config, body, headers, at)), name="webhook", daemon=True
        ).start()
        try:
            delivery = outcome.get(timeout=self._config.timeout_s)
        except queue.Empty:
            delivery = Delivery(ok=False, error=f"no answer within {self._config.timeout_s:g} s", recoverable=True)
        return replace(delivery, elapsed_ms=(time.monotonic() - started) * 1000)


def _attempt(config: WebhookConfig, body: bytes, headers: dict[str, str], at: datetime) -> Delivery:
    try:
        with (
            httpx2.Client(
                timeout=config.timeout_s, follow_redirects=False, trust_env=not _is_loopback(config.url)
            ) as client,
            client.stream("POST", config.url, content=body, headers=headers) as answer,
        ):
            return _judged(answer, at)
    except (httpx2.HTTPError, OSError, ValueError) as error:
        return Delivery(ok=False, error=f"{type(error).__name__}: {error}", recoverable=True)


def _is_loopback(url: str) -> bool:
    # A proxy cannot reach this machine's own addresses, whatever the environment says.
    host = httpx2.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _judged(answer: httpx2.Response, at: datetime) -> Delivery:
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
        recoverable=not gone,
        retry_after_s=retry_after_s(answer.headers.get("retry-after", ""), at),
        disable=gone,
    )


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
