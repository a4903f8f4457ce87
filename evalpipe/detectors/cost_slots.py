"""The slots that ``cost`` folds: which are over, which are not, and how bursty they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Final

from evalpipe.detectors.view import Calls, View
from evalpipe.stats.spending import Spread

SLOT: Final = timedelta(seconds=5)
APART: Final = timedelta(minutes=5)
"""What is usual ends so long ago: what is compared with it is no part of it."""
LONGEST_GAP: Final = timedelta(minutes=1)
"""After a longer time without a look the test goes on here: what was in between is over."""
MANY_CALLS: Final = 30
"""In a part of a window: with so many on the average none is empty by chance."""
_BY_MINUTE: Final = 12
_BY_FIVE: Final = 5
_WAIT: Final = int(APART / SLOT)
_MEMORY: Final = (1000.0, 300.0, 60.0)
_AT_ONCE: Final = 16.0
"""Times the variance of five minutes that one step counts for: four standard deviations."""
SPREADS: Final = ("slot", "minute", "five")


def floor(at: datetime) -> datetime:
    """When the slot of ``at`` began."""
    return at - timedelta(seconds=at.second % int(SLOT.total_seconds()), microseconds=at.microsecond)


def between(since: datetime, until: datetime) -> Iterator[tuple[datetime, datetime]]:
    """Slot by slot."""
    while since < until:
        yield since, (since := since + SLOT)


def slots(since: datetime | None, until: datetime) -> list[tuple[datetime, datetime]]:
    """The slots that were over since the last look; after a pause, or if the clock was set, the last one only."""
    if since is None or not timedelta(0) <= until - since <= LONGEST_GAP:
        since = until - SLOT
    return list(between(since, until))


def awake(view: View, past: Calls, until: datetime) -> float:
    """The share of ``past`` in which calls came: when hooks were silent nothing was spent, and that is not usual.

    By parts of ``APART``; a part after a silent one is left out, since calls began somewhere in it. Where calls are so
    few that parts are empty by chance it is all of it.
    """
    ends = [until - i * APART for i in range(int(past.seconds / APART.total_seconds()))]
    alive = [view.calls(end - APART, end).n > 0 for end in reversed(ends)]
    if all(alive) or past.n < MANY_CALLS * sum(alive):
        return 1.0
    return sum(now and before for before, now in pairwise(alive)) / len(alive)


def known(state: Mapping[str, Any], name: str, now: datetime) -> datetime | None:
    """A time of the state, unless it is none or in the future."""
    text = state.get(name)
    at = datetime.fromisoformat(text) if text else None
    return at if at is not None and at <= now else None


def spread(spreads: Sequence[Spread], own: Mapping[str, Any], spent: Sequence[float]) -> dict[str, Any]:
    """The moments of slots, of minutes and of five minutes, with the slots that were over for ``APART``."""
    by_slot, by_minute, by_five = spreads
    part: list[float] = list(own.get("part", [0, 0.0]))
    minutes: list[float] = list(own.get("minutes", [0, 0.0]))
    waiting = [*own.get("new", ()), *(float(f"{one:.4g}") for one in spent)]
    ripe, waiting = waiting[:-_WAIT], waiting[-_WAIT:]
    for one in ripe:
        by_slot = by_slot.add(one, _MEMORY[0])
        part = [part[0] + 1, part[1] + one]
        if part[0] >= _BY_MINUTE:
            by_minute = by_minute.add(part[1], _MEMORY[1])
            minutes = [minutes[0] + 1, minutes[1] + part[1]]
            part = [0, 0.0]
        if minutes[0] >= _BY_FIVE:
            by_five = by_five.add(minutes[1], _MEMORY[2], _AT_ONCE)
            minutes = [0, 0.0]
    kept = {"slot": list(by_slot), "minute": list(by_minute), "five": list(by_five)}
    return {**kept, "part": part, "minutes": minutes, "new": waiting}
