"""What was told of a group of alerts: Alertmanager's notification log, which survives a restart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, cast

from evalpipe.alerts.escalation import RANK
from evalpipe.alerts.rules import Severity

Cause = Literal["first", "added", "raised", "repeat", "escalated", "acknowledged", "resolved"]


@dataclass(frozen=True, slots=True)
class Mark:
    """What was told of one alert.

    Attributes:
        severity: the highest that was told.
        told_at: when it was, or when it was told anew: as more severe, or after it was muted.
        escalated: steps of escalation since then.
        muted: it is muted now; if it still fires when that ends, it is told anew.
        acked: that somebody has taken it was told.
    """

    severity: Severity
    told_at: datetime
    escalated: int = 0
    muted: bool = False
    acked: bool = False

    @property
    def rank(self) -> int:
        """The higher, the more severe."""
        return RANK[self.severity]


@dataclass(frozen=True, slots=True)
class Group:
    """An episode of a group: from its first alert until those who were told of it have heard that it is over.

    Attributes:
        key: of the group: route and labels.
        route: the name of its route.
        since: when its first alert was there to be told; names the episode.
        number: of notices so far; before the first one the group gathers.
        told_at: when the newest notice was made.
        marks: by alert, what was told; those that resolved are in here until the next notice has said so.
        channels: who was told; None is every channel.
        worst: the highest severity of the episode; None before the first notice.
    """

    key: str
    route: str
    since: datetime
    number: int = 0
    told_at: datetime | None = None
    marks: Mapping[str, Mark] = field(default_factory=dict)
    channels: tuple[str, ...] | None = ()
    worst: Severity | None = None

    @property
    def dedup_key(self) -> str:
        """The same for all notices of the episode, at most 255 characters."""
        episode = hashlib.sha256(f"{self.key}\x1f{self.since.isoformat()}".encode()).hexdigest()[:16]
        return f"evalpipe/{self.key[:200]}/{episode}"

    @property
    def news_at(self) -> datetime | None:
        """When something was told of which people did not know; None while it gathers."""
        return max((mark.told_at for mark in self.marks.values()), default=self.told_at)

    def to_state(self) -> dict[str, Any]:
        """JSON-safe values by name."""
        marks = {
            alert_id: [mark.severity, mark.told_at.isoformat(), mark.escalated, mark.muted, mark.acked]
            for alert_id, mark in self.marks.items()
        }
        return {
            "route": self.route,
            "since": self.since.isoformat(),
            "number": self.number,
            "told_at": self.told_at.isoformat() if self.told_at else None,
            "marks": marks,
            "channels": None if self.channels is None else list(self.channels),
            "worst": self.worst,
        }

    @classmethod
    def from_state(cls, key: str, state: Mapping[str, Any]) -> Group:
        """The inverse of ``to_state``."""
        marks = {
            alert_id: Mark(cast("Severity", severity), datetime.fromisoformat(at), *rest)
            for alert_id, (severity, at, *rest) in state["marks"].items()
        }
        return cls(
            key=key,
            route=state["route"],
            since=datetime.fromisoformat(state["since"]),
            number=state["number"],
            told_at=datetime.fromisoformat(state["told_at"]) if state["told_at"] else None,
            marks=marks,
            channels=None if state["channels"] is None else tuple(state["channels"]),
            worst=state["worst"],
        )


@dataclass(frozen=True, slots=True)
class Notice:
    """Something to tell.

    Attributes:
        group: as it is once this is told; names the notice by key, episode and number.
        cause: why it is told now.
        channels: who is told; None is every channel.
        at: when; aware UTC.
        firing: ids of alerts that fire and are not muted, the most severe first.
        resolved: ids of alerts that were told and have resolved since the last notice.
        respond_by: when somebody must have answered; None where nobody need.
        escalated: ids of alerts that nobody acknowledged in time, and that take their next step with this notice.
    """

    group: Group
    cause: Cause
    channels: tuple[str, ...] | None
    at: datetime
    firing: tuple[str, ...]
    resolved: tuple[str, ...] = ()
    respond_by: datetime | None = None
    escalated: tuple[str, ...] = ()

    @property
    def status(self) -> Literal["firing", "resolved"]:
        """Whether anything of it fires."""
        return "resolved" if self.cause == "resolved" else "firing"

    @property
    def escalation(self) -> int:
        """How many steps of escalation were taken for the alert that got furthest."""
        return max((mark.escalated for mark in self.group.marks.values()), default=0)


def joined(some: tuple[str, ...] | None, others: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The channels of both; None is every channel."""
    return None if some is None or others is None else tuple(dict.fromkeys([*some, *others]))
