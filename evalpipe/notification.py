"""What evalpipe tells the world, and its form: a CloudEvents 1.0 event as one JSON object.

Standard library only and without a clock: the same notification always has the same bytes. They are stored with the
decision and sent unchanged in every attempt.
Source: https://github.com/cloudevents/spec, version 1.0.2, with its JSON event format.
"""

from __future__ import annotations

import json
import math
import numbers
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from evalpipe.signing import check_event_id

ROLLBACK: Final = "io.evalpipe.decision.rollback.v1"
ADVANCE: Final = "io.evalpipe.decision.advance.v1"
HOLD: Final = "io.evalpipe.decision.hold.v1"
ROLLBACK_VERIFIED: Final = "io.evalpipe.rollback.verified.v1"
"""The meter saw the canary's calls fall to nothing. Its data has no ``seq``: it is no decision."""
ROLLBACK_INEFFECTIVE: Final = "io.evalpipe.rollback.ineffective.v1"
"""The meter still sees calls of a canary that was rolled back."""
ALERT_FIRING: Final = "io.evalpipe.alert.firing.v1"
ALERT_RESOLVED: Final = "io.evalpipe.alert.resolved.v1"

CONTENT_TYPE: Final = "application/cloudevents+json"
MAX_BYTES: Final = 20_000
"""Receivers and proxies are at ease with less than 20 kB (Standard Webhooks, "Payload size")."""


@dataclass(frozen=True, slots=True)
class Notification:
    """One thing to tell.

    Attributes:
        event_id: unique, and the same however often it is delivered; letters, digits, ``_`` and ``-``.
        type: one of this module's types; its version rises when ``data`` changes its shape.
        subject: what it is about, for example a rollout; the numbers ``data["seq"]`` of one subject only rise.
        at: when it was decided, aware.
        data: JSON-ready; where there is a list ``evidence``, the most telling entry comes first.
        source: the evalpipe that says so; with ``event_id`` unique in the world.
    """

    event_id: str
    type: str
    subject: str
    at: datetime
    data: Mapping[str, Any]
    source: str

    def __post_init__(self) -> None:
        check_event_id(self.event_id)
        if self.at.tzinfo is None:
            raise ValueError(f"the time of a notification must be aware, unlike {self.at!r}")
        if not self.type or not self.source:
            raise ValueError("a notification needs a type and a source")

    @property
    def urgent(self) -> bool:
        """Whether it takes a canary out of traffic: a rollback, or the end of a rollout that was aborted or expired."""
        ends = self.type == HOLD and self.data.get("to_percent") == 0.0 != self.data.get("from_percent")
        return self.type == ROLLBACK or ends


def to_cloudevent(notification: Notification) -> bytes:
    """The body of a webhook: UTF-8 JSON, keys sorted, no spaces.

    Nothing in ``data`` can stop a rollback from being told: a number that JSON does not know (NaN, infinity) becomes
    null, text that is not Unicode loses the characters that are not, and what is no JSON type is told as text. Above
    ``MAX_BYTES`` entries of ``evidence`` are left out from the end, and ``evidence_omitted`` says how many.
    """
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": notification.event_id,
        "source": notification.source,
        "type": notification.type,
        "time": _timestamp(notification.at),
        "datacontenttype": "application/json",
        "data": _plain(notification.data),
    }
    if notification.subject:
        event["subject"] = notification.subject
    return _within_limit(event)


def _within_limit(event: dict[str, Any]) -> bytes:
    body = _encode(event)
    evidence = event["data"].get("evidence")
    if len(body) <= MAX_BYTES or not isinstance(evidence, list):
        return body

    def without(omitted: int) -> bytes:
        data = {**event["data"], "evidence": evidence[: len(evidence) - omitted], "evidence_omitted": omitted}
        return _encode({**event, "data": data})

    fewest = bisect_left(range(len(evidence)), True, key=lambda omitted: len(without(omitted)) <= MAX_BYTES)
    return without(fewest)


def _encode(event: Mapping[str, Any]) -> bytes:
    text = json.dumps(event, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode(errors="replace")


def _timestamp(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _plain(value: Any) -> Any:  # noqa: PLR0911 - one line for each kind
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, datetime) and value.tzinfo is not None:
        return _timestamp(value)
    return str(value)
