"""Silences: alerts of which nobody is told for a while, because somebody said so. Nothing else is silenced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase


def fits(matchers: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether every glob fits the label of its name; a label that is not there is empty, as in Alertmanager."""
    return all(_fits(glob, labels.get(name, "")) for name, glob in matchers.items())


def _fits(glob: str, value: str) -> bool:
    return glob == value or fnmatchcase(value, glob)


@dataclass(frozen=True, slots=True)
class Silence:
    """Mutes what it fits from ``starts_at`` until ``until``: notification only, never a decision or an incident.

    Attributes:
        silence_id: of it.
        matchers: globs by label; all must fit.
        author, reason: who stands for it, and why.
        starts_at, until: aware UTC.
        ended_at: when somebody ended it before its time; None if nobody did.
    """

    silence_id: str
    matchers: Mapping[str, str]
    author: str
    reason: str
    starts_at: datetime
    until: datetime
    ended_at: datetime | None = None

    def is_active(self, now: datetime) -> bool:
        """Whether it mutes at ``now``."""
        return self.starts_at <= now < self.until and (self.ended_at is None or now < self.ended_at)

    def mutes(self, labels: Mapping[str, str], now: datetime) -> bool:
        """Whether an alert with these labels is muted at ``now``."""
        return self.is_active(now) and fits(self.matchers, labels)
