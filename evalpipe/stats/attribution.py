"""Where a movement of a judged series comes from: the judge, or the product. Told by the judge's anchors."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

MIN_ANCHORS: Final = 20
"""With fewer anchors that answered, nothing is said of where a movement comes from."""

Origin = Literal["judge", "product", "both", "unknown"]


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a judge from its anchors.

    Attributes:
        judge: its version.
        state: ``unknown``, ``healthy`` or ``suspect``.
        n: anchors that answered in the latest run.
        tested_at: of the latest run, aware UTC.
        stale_at: from here on the run is too old to tell anything.
        shift: mean change of the value on the anchors; below 0 is stricter.
        direction: of the movement, in a word.
    """

    judge: str
    state: str
    n: int
    tested_at: datetime
    stale_at: datetime
    shift: float = 0.0
    direction: str = ""


@dataclass(frozen=True, slots=True)
class Attribution:
    """Where a movement of a judged series comes from, and the sentence that says so."""

    origin: Origin
    words: str


def attribute(standing: Standing | None, gap: float, now: datetime) -> Attribution:
    """Tell "the judge moved" from "the product moved", where a judged series crossed a line.

    A judge that has not moved leaves the product. One that has explains a movement of its own size: what is left of
    the gap is the product's.

    Args:
        standing: of the judge that graded the series; None if no anchors of it are graded yet.
        gap: how far the series is beyond the line, signed as a change of the value: below 0 if it fell below.
        now: aware UTC.
    """
    if standing is None:
        return Attribution("unknown", "whether the judge moved is unknown: it has no graded anchors")
    ago = _ago(now - standing.tested_at)
    if standing.state == "suspect":
        moved = f"{standing.judge} is suspect: its anchors moved by {standing.shift:+.2f} ({standing.direction})"
        if (gap - standing.shift) * gap > 0 or gap == 0:
            return Attribution("both", f"{moved}, which does not explain all of it: the judge and the product moved")
        return Attribution("judge", f"{moved}, which explains it: the judge moved")
    if standing.state != "healthy" or standing.n < MIN_ANCHORS:
        few = f"{standing.n} anchors of at least {MIN_ANCHORS}" if standing.state == "healthy" else "no reference yet"
        return Attribution("unknown", f"whether the judge moved is unknown: {few}")
    if now >= standing.stale_at:
        return Attribution("unknown", f"whether the judge moved is unknown: its anchors were graded {ago} ago")
    words = f"the judge's anchors have not moved ({standing.n} graded {ago} ago): the product moved"
    return Attribution("product", words)


def _ago(age: timedelta) -> str:
    minutes = max(0, round(age.total_seconds() / 60))
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"
