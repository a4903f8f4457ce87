"""CDEvents: says that a service was rolled back, once the meter has seen it.

The event states a fact, so it follows the verification and not the decision.
Source: CDEvents 0.5.1, ``service.rolledback`` 0.3.0, and its CloudEvents binding: https://github.com/cdevents/spec.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

from pydantic import Field

from evalpipe.channels.base import TIMEOUT_S, Channel, ChannelConfig, Delivery, Secrets, channels
from evalpipe.channels.http import Request, check_url, send
from evalpipe.errors import ConfigError
from evalpipe.notification import CONTENT_TYPE, ROLLBACK_VERIFIED, Notification
from evalpipe.signing import check_secrets, sign

SPEC: Final = "0.5.1"
ROLLED_BACK: Final = "dev.cdevents.service.rolledback.0.3.0"
_SAID: Final = ("decision_id", "rollout_id", "baseline", "canary", "verified_at")


class CDEventsConfig(ChannelConfig):
    """Where the events go."""

    url: str = Field(description="http(s) URL that takes CloudEvents by POST.")
    secrets: Secrets = Field((), repr=False, description="whsec_... secrets, if the other side checks signatures.")
    artifact: str = Field(
        "pkg:generic/{service}@{baseline}", description="The package URL of what runs again, of {service}, {baseline}."
    )
    timeout_s: float = Field(TIMEOUT_S, gt=0, le=TIMEOUT_S, description="Seconds for one attempt.")


@channels.register("cdevents")
class CDEvents(Channel):
    """Tells of rollbacks that the meter verified, and of nothing else."""

    Config = CDEventsConfig

    def __init__(self, config: ChannelConfig) -> None:
        assert isinstance(config, CDEventsConfig)
        check_url(config.url, "the url")
        if config.secrets:
            check_secrets(config.secrets)
        try:
            config.artifact.format(service="", baseline="")
        except (LookupError, ValueError) as error:
            raise ConfigError(
                f"artifact may hold {{service}} and {{baseline}} and no other braces, unlike {config.artifact!r}"
            ) from error
        self._config = config

    def render(self, notification: Notification) -> bytes:
        """The CDEvent in a CloudEvent; empty for everything but a verified rollback."""
        if notification.type != ROLLBACK_VERIFIED:
            return b""
        event = self._event(notification)
        context = event["context"]
        envelope = {
            "specversion": "1.0",
            "id": context["id"],
            "source": context["source"],
            "type": context["type"],
            "subject": event["subject"]["id"],
            "time": context["timestamp"],
            "datacontenttype": "application/json",
            "data": event,
        }
        return json.dumps(envelope, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")

    def send(self, body: bytes, *, event_id: str, at: datetime) -> Delivery:
        """POST ``body``, signed if there are secrets."""
        headers = sign(body, secrets=self._config.secrets, event_id=event_id, at=at) if self._config.secrets else {}
        headers |= {"content-type": CONTENT_TYPE, "user-agent": "evalpipe"}
        request = Request("POST", self._config.url, body, headers)
        return send(request, timeout_s=self._config.timeout_s, at=at, secrets=self._config.secrets)

    def _event(self, notification: Notification) -> dict[str, Any]:
        data = notification.data
        service, baseline = str(data.get("service") or notification.subject), str(data.get("baseline") or "unknown")
        return {
            "context": {
                "specversion": SPEC,
                "id": notification.event_id,
                "source": notification.source,
                "type": ROLLED_BACK,
                "timestamp": notification.at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
            },
            "subject": {
                "id": service,
                "content": {
                    "environment": {"id": str(data.get("environment") or "unknown")},
                    "artifactId": self._config.artifact.format(
                        service=quote(service, safe=""), baseline=quote(baseline, safe="")
                    ),
                },
            },
            "customData": {name: str(data[name]) for name in _SAID if data.get(name) is not None},
            "customDataContentType": "application/json",
        }
