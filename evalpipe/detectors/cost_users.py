"""Single users that run away: the heaviest ones of the last minutes against their own past. Part of ``cost``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from math import log
from typing import Any, Final, Literal

from evalpipe.detectors.base import Finding
from evalpipe.detectors.view import Place, Spender, View
from evalpipe.stats.spending import SAFETY, log_chance

MINUTE: Final = timedelta(minutes=1)
WINDOWS: Final = (MINUTE, 5 * MINUTE)
"""Each is looked at when its last minute is over."""
MOST: Final = 32
"""Users looked at in a window: so many tests are made."""

Severity = Literal["SEV1", "SEV2", "SEV3"]


@dataclass(frozen=True, slots=True)
class Norm:
    """What a user is compared with.

    Attributes:
        column: ``cost_usd`` or ``tokens``, of a ``Spender``.
        unit: how it is called.
        before: what the same users did over ``minutes``, some time ago.
        least: a minute; nobody's past is taken for less.
        lump: what comes at once at the place, as a dollar sees it: a call, or the calls of a session where they come
            in sessions. Users do the same.
        times: so many times the past is too much.
        tolerated: so many times the past is no evidence.
        per_minute: false alarms a minute that are allowed.
    """

    column: Literal["cost_usd", "tokens"]
    unit: str
    before: Mapping[str, Spender]
    minutes: float
    least: float
    lump: float
    times: float
    tolerated: float
    per_minute: float


@dataclass(frozen=True, slots=True)
class Runaway:
    """A user that spends too much: money or tokens a minute, and usually."""

    user: str
    unit: str
    rate: float
    usual: float
    minutes: float
    calls: int
    log_p: float
    times: float

    @property
    def ratio(self) -> float:
        """How many times the usual."""
        return self.rate / self.usual

    def to_state(self) -> dict[str, Any]:
        """JSON-safe."""
        return asdict(self)

    def finding(self, place: Place, severity: Severity | None) -> Finding:
        """For people."""
        where = place.feature or place.service
        reason = (
            f"user {self.user} spends {self.rate:.4g} {self.unit} a minute on {where} (over {self.minutes:g} min, "
            f"{self.calls} calls), {self.ratio:.3g} times what is usual for one user ({self.usual:.4g})"
        )
        numbers = {"user": self.user, "feature": place.feature, "measure": self.unit, "per": "minute",
                   "rate": self.rate, "usual": self.usual, "window_s": 60 * self.minutes,
                   "log_p": self.log_p}  # fmt: skip
        return Finding(True, self.rate, self.calls, reason, ratio=self.ratio, threshold=self.times * self.usual,
                       severity=severity, numbers=numbers)  # fmt: skip


def runaway(view: View, minute: datetime, norm: Norm) -> Runaway | None:
    """The user that is furthest above the usual in the minutes before ``minute``; None if nobody is.

    A bound for each user and window: what is spent in lumps no larger than the user's own calls is compound Poisson.
    """
    found = []
    for window in WINDOWS:
        if minute.minute % int(window / MINUTE):
            continue
        allowed = log(norm.per_minute * (window / MINUTE) / (MOST * len(WINDOWS)))
        for spender in view.users(minute - window, minute)[:MOST]:
            one = _compared(spender, window / MINUTE, norm)
            if one is not None and one.ratio >= norm.times and one.log_p <= allowed:
                found.append(one)
    return max(found, key=lambda one: one.ratio, default=None)


def _compared(spender: Spender, minutes: float, norm: Norm) -> Runaway | None:
    spent: float = getattr(spender, norm.column)
    if spent <= 0.0 or spender.calls <= 0:
        return None
    past = norm.before.get(spender.user)
    usual = max(norm.least, getattr(past, norm.column) / norm.minutes if past is not None else 0.0)
    unit = SAFETY * max(norm.lump, spent / spender.calls)
    chance = log_chance(spent, norm.tolerated * usual * minutes, unit)
    return Runaway(
        spender.user, norm.unit, spent / minutes, usual, minutes, int(spender.calls), max(chance, -1e6), norm.times
    )
