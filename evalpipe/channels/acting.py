"""Base of the channels that act: they set a flag or start a job, where others only tell.

What they do is idempotent, and only the newest decision of a rollout counts: the deliverer leaves out what was
overtaken.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final

from pydantic import Field

from evalpipe.channels.base import TIMEOUT_S, Channel, ChannelConfig, Delivery, Secret
from evalpipe.channels.http import Request, check_url, send
from evalpipe.notification import ADVANCE, HOLD, ROLLBACK, Notification

_DECISIONS: Final = frozenset({ROLLBACK, ADVANCE, HOLD})
EVERYBODY: Final = 100.0


class ActingConfig(ChannelConfig):
    """Which decisions are acted on, and as whom."""

    service: str = Field(min_length=1, description="Only rollouts of this service.")
    environment: str | None = Field(None, description="Only rollouts in this environment; in any if not given.")
    canary: str | None = Field(None, description="Only rollouts of this canary; of any if not given.")
    token: Secret = Field(repr=False, description="The API token.")
    timeout_s: float = Field(TIMEOUT_S, gt=0, le=TIMEOUT_S, description="Seconds for one attempt.")


@dataclass(frozen=True, slots=True)
class Step:
    """What a decision asks for.

    Attributes:
        percent: of the units that get the canary from now on; 0 for nobody.
        action: advance, hold or rollback.
        decision_id, reason: of the decision.
        data: all that the notification says.
    """

    percent: float
    action: str
    decision_id: str
    reason: str
    data: Mapping[str, Any]

    @property
    def comment(self) -> str:
        """Who asks for it and why, in a line."""
        return f"evalpipe {self.decision_id}: {self.reason}"[:500]


@dataclass(frozen=True, slots=True)
class Call:
    """One request to an API.

    Attributes:
        path: below the API's URL, with its slash.
        body: JSON, or None for none.
    """

    method: str
    path: str
    body: Any = None


class Acting(Channel):
    """Turns decisions into calls of an API, which every attempt makes in their order."""

    Config: ClassVar[type[ChannelConfig]] = ActingConfig

    def __init__(self, config: ChannelConfig, url: str) -> None:
        assert isinstance(config, ActingConfig)
        self._of = config
        self._url = check_url(url, "the url").rstrip("/")

    @abstractmethod
    def calls(self, step: Step) -> Sequence[Call]:
        """The calls that bring the step about: each may be made again without harm."""

    @abstractmethod
    def headers(self) -> Mapping[str, str]:
        """Of each call."""

    def render(self, notification: Notification) -> bytes:
        """The calls as JSON; empty where the decision changes no share, or is another rollout's."""
        step = step_of(notification)
        data = notification.data
        wanted = {"service": self._of.service, "environment": self._of.environment, "canary": self._of.canary}
        if step is None or any(value is not None and data.get(name) != value for name, value in wanted.items()):
            return b""
        text = json.dumps([asdict(call) for call in self.calls(step)], sort_keys=True, separators=(",", ":"))
        return text.encode()

    def send(self, body: bytes, *, event_id: str, at: datetime) -> Delivery:
        """Make the calls, until one fails."""
        done = Delivery(ok=True)
        elapsed_ms = 0.0
        for call in json.loads(body):
            left_s = self._of.timeout_s - elapsed_ms / 1000
            if left_s <= 0:
                error = f"no time left for {call['method']} {call['path']} within {self._of.timeout_s:g} s"
                return Delivery(ok=False, error=error, recoverable=True, elapsed_ms=elapsed_ms)
            content = b"" if call["body"] is None else json.dumps(call["body"]).encode()
            headers = {"content-type": "application/json", "user-agent": "evalpipe", "x-request-id": event_id}
            request = Request(call["method"], self._url + call["path"], content, headers | dict(self.headers()))
            done = send(request, timeout_s=left_s, at=at + timedelta(milliseconds=elapsed_ms), secrets=[self._of.token])
            elapsed_ms += done.elapsed_ms
            if not done.ok:
                break
        return replace(done, elapsed_ms=elapsed_ms)


def step_of(notification: Notification) -> Step | None:
    """What a notification asks for; None if it is no decision, or one that changes no share."""
    if notification.type not in _DECISIONS:
        return None
    data = notification.data
    percent = data.get("to_percent")
    if notification.type == ROLLBACK:
        percent = 0.0
    elif not isinstance(percent, int | float) or percent == data.get("from_percent"):
        return None
    return Step(
        percent=min(max(float(percent), 0.0), EVERYBODY),
        action=str(data.get("action") or notification.type.split(".")[-2]),
        decision_id=str(data.get("decision_id", notification.event_id)),
        reason=str(data.get("reason", "")),
        data=data,
    )
