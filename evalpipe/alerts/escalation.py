"""How soon somebody must look, and who hears of it when nobody does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from evalpipe.alerts.rules import Severity

RESPONSE_TIME: Final[Mapping[Severity, timedelta]] = {
    "SEV1": timedelta(minutes=15),
    "SEV2": timedelta(hours=1),
    "SEV3": timedelta(hours=4),
    "SEV4": timedelta(hours=24),
}
"""From opening to the first human answer."""
RANK: Final[Mapping[Severity, int]] = {"SEV1": 4, "SEV2": 3, "SEV3": 2, "SEV4": 1}
"""The higher, the more severe."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of escalation.

    Attributes:
        after: from when the alert was told; None for the response time of its severity.
        channels: who hears; None for every channel.
        severities: that it is for; empty for all.
    """

    after: timedelta | None = None
    channels: tuple[str, ...] | None = None
    severities: frozenset[Severity] = frozenset()

    def delay(self, severity: Severity) -> timedelta:
        """How long an alert of this severity waits for somebody to acknowledge it."""
        return RESPONSE_TIME[severity] if self.after is None else self.after


def ladder(steps: tuple[Step, ...], severity: Severity) -> tuple[Step, ...]:
    """The steps that an alert of this severity takes, the earliest first."""
    mine = [step for step in steps if not step.severities or severity in step.severities]
    return tuple(sorted(mine, key=lambda step: step.delay(severity)))
