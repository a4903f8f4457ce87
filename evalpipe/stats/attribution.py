"""Where a movement of a judged series comes from: the judge, or the product. Told by the judge's anchors."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from math import sqrt
from typing import Final, Literal

from evalpipe.stats.judge_shift import MARGIN

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


def attribute(standing: Standing | None, gap: float, now: datetime, since: datetime | None = None) -> Attribution:
    """Tell "the judge moved" from "the product moved", where a judged series crossed a line.

    A judge that has not moved leaves the product, if its anchors were graded no earlier than most of the scores: one
    that changes between two runs moves the series first. A judge that has moved explains a movement of its own size;
    what is left of the gap is the product's where it is more than twice the standard error of that size.

    Args:
        standing: of the judge that graded the series; None if no anchors of it are graded yet.
        gap: how far the series is beyond the line, signed as a change of the value: below 0 if it fell below.
        now: aware UTC.
        since: anchors graded before it say nothing of most of the scores, aware UTC; None if that is not known.
    """
    if standing is not None and standing.state == "suspect":
        return _suspect(standing, gap)
    if unsure := _unsure(standing, now, since):
        return Attribution("unknown", f"whether the judge moved is unknown: {unsure}")
    assert standing is not None
    ago = _ago(now - standing.tested_at)
    return Attribution(
        "product", f"the judge's anchors have not moved ({standing.n} graded {ago} ago): the product moved"
    )


def _suspect(standing: Standing, gap: float) -> Attribution:
    """A judge that moved explains so much of the gap, or not all of it."""
    moved = (
        f"{standing.judge} is suspect: the mean of its anchors moved by {standing.shift:+.2f} ({standing.direction})"
    )
    rest = gap - standing.shift
    if rest * gap < 0 or rest == 0 != gap:
        return Attribution("judge", f"{moved}, which explains it: the judge moved")
    # Anchors either stay or change by the whole scale at the most: no standard error of their mean is larger.
    error = sqrt(max(abs(standing.shift), MARGIN) / max(standing.n, 1))
    if gap == 0 or abs(rest) > 2.0 * error:
        return Attribution("both", f"{moved}, which does not explain all of it: the judge and the product moved")
    return Attribution("judge", f"{moved}: the judge moved; whether the product moved too is unknown")


def _unsure(standing: Standing | None, now: datetime, since: datetime | None) -> str:
    """Why a judge that is not suspect may have moved all the same; "" if the anchors say that it did not."""
    if standing is None:
        return "it has no graded anchors"
    n, ago = standing.n, _ago(now - standing.tested_at)
    reasons = {
        "no reference yet": standing.state != "healthy",
        f"{n} anchors of at least {MIN_ANCHORS}": n < MIN_ANCHORS,
        f"its anchors were graded {ago} ago": now >= standing.stale_at,
        f"its {n} anchors had not moved, but were graded {ago} ago, before most of these scores": since is not None
        and standing.tested_at < since,
        f"the mean of its anchors moved by {standing.shift:+.2f}, which is not proven yet": abs(standing.shift)
        >= MARGIN,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _ago(age: timedelta) -> str:
    minutes = max(0, round(age.total_seconds() / 60))
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"
