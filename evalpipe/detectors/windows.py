"""What detectors share that look once at each closed window: when, at what level, and what they say until then."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from evalpipe.detectors.base import Finding, State
from evalpipe.detectors.view import Place, View

SETTLING: Final = timedelta(minutes=1)
"""How long after its end a window is looked at: records arrive a few seconds after their calls."""
SPREAD: Final = 1 / 6
"""Of a window: over so long after its end the places are looked at, each at its own time."""
MOST_LEVEL: Final = 0.05
_MOST_STATE: Final = 1_400
"""Characters of examples and evidence kept in the state."""


def level_of(window: timedelta, false_alarm_every: timedelta) -> float:
    """The rate of false alarms for one window by which they come as seldom as wanted."""
    return min(MOST_LEVEL, window / false_alarm_every)


def closed_window(at: datetime, window: timedelta) -> tuple[datetime, datetime]:
    """The newest window that is over and has settled; windows lie end to end since 1970."""
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    until = epoch + window * ((at - SETTLING - epoch) // window)
    return until - window, until


def wait_of(place: Place, window: timedelta) -> timedelta:
    """How much longer a place waits: all at once, with the hour, would hold up every other alert."""
    return window * SPREAD * (zlib.crc32("\x1f".join(place).encode("utf-8", "replace")) / 2**32)


def once_a_window(
    view: View, state: State, window: timedelta, look: Callable[[datetime, datetime], Finding]
) -> tuple[State, Finding]:
    """Look if a window has closed since the last look; else say what was found then.

    A clock that goes back finds the last window again, and changes nothing.
    """
    since, until = closed_window(view.at - wait_of(view.place, window), window)
    if (last := state.get("until")) is not None and until.timestamp() <= last:
        return state, _held(state.get("found"))
    finding = look(since, until)
    return {"until": until.timestamp(), "found": _kept(finding)}, finding


def _kept(finding: Finding) -> dict[str, Any]:
    """A finding as JSON, without what would make the state large."""
    kept = {field.name: getattr(finding, field.name) for field in fields(finding)}
    kept["reason"] = finding.reason[:600]
    examples: list[str] = []
    for example in finding.examples:
        if sum(map(len, examples)) + len(example) > 500:
            break
        examples.append(example)
    kept["examples"] = examples
    numbers = dict(finding.numbers)
    kept["numbers"] = numbers if len(repr(numbers)) <= _MOST_STATE - 600 else {}
    return kept


def _held(found: Mapping[str, Any] | None) -> Finding:
    if not found:
        return Finding(None, reason="no window has closed yet")
    return Finding(**{**found, "examples": tuple(found["examples"])})
