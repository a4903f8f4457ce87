"""Signed webhooks: a CloudEvents body with Standard Webhooks headers, by POST."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from evalpipe.channels.base import TIMEOUT_S, Channel, ChannelConfig, Delivery, Secrets, channels
from evalpipe.channels.http import Request, check_url, send
from evalpipe.notification import CONTENT_TYPE, Notification, to_cloudevent
from evalpipe.signing import check_secrets, sign


class WebhookConfig(ChannelConfig):
    """Where decisions go, and how they are signed."""

    url: str = Field(description="http(s) URL that takes the POST.")
    secrets: Secrets = Field(repr=False, description="whsec_... secrets; each signs, so they can be changed.")
    timeout_s: float = Field(
        TIMEOUT_S, gt=0, le=TIMEOUT_S, description="Seconds for one attempt, name look-up and answer included."
    )


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
        check_url(config.url, "the webhook URL")
        self._config = config

    def render(self, notification: Notification) -> bytes:
        """The CloudEvent."""
        return to_cloudevent(notification)

    def send(self, body: bytes, *, event_id: str, at: datetime) -> Delivery:
        """POST ``body``, signed for this attempt."""
        headers = sign(body, secrets=self._config.secrets, event_id=event_id, at=at)
        headers |= {"content-type": CONTENT_TYPE, "user-agent": "evalpipe"}
        request = Request("POST", self._config.url, body, headers)
        return send(request, timeout_s=self._config.timeout_s, at=at, secrets=self._config.secrets)
