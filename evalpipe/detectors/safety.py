"""Safety flags: a confirmed one acts at once where false ones are rare enough, and their rate is followed beside it.

A flag acts by itself only while the false ones that are to be expected in ``false_alarm_every`` fit half of the one
false alarm that this allows: scores in that time x the share of clean records that is flagged x (with ``confirm``) the
share of those that is confirmed. The other half is for the rate of confirmed flags (``rate``), which decides alone
where single flags may not: a judge that flags one clean record in 200 would raise an alarm in almost any 1,000 records.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final

from pydantic import Field

from evalpipe.detectors import base
from evalpipe.detectors.base import Finding, Kind, State
from evalpipe.detectors.rate import Rate, RateParams
from evalpipe.detectors.streams import normal_of, per_second
from evalpipe.detectors.view import Stretch, View
from evalpipe.scorecard.values import Duration, Lasting, format_duration

BUDGET: Final = 0.5
"""Of the one false alarm in ``false_alarm_every`` that single flags may cause."""


class SafetyParams(RateParams):
    """Parameters of ``safety``."""

    false_alarm_every: Duration = Field(
        default=timedelta(days=30),
        description="As for other detectors, but one false alarm a month by default: more single flags may act at "
        "once.",
    )
    false_flags: float | None = Field(
        default=None,
        ge=0.0,
        le=1.0,
        description="Share of clean records that `criterion` flags, as measured on labelled ones; 0 for a detector "
        "that is never wrong. Without it single flags do not act.",
    )
    false_confirms: float | None = Field(
        default=None,
        ge=0.0,
        le=1.0,
        description="Share of the false flags that `confirm` flags too, as measured; with `confirm`.",
    )
    quiet: Lasting = Field(
        default=timedelta(hours=3),
        description="After a single flag: how long there must be no other until the condition is over.",
    )


@base.detectors.register("safety")
class Safety(Rate):
    """Flags of a criterion, confirmed by another: single ones where that may be, else their rate."""

    Params: ClassVar[type[base.DetectorParams]] = SafetyParams
    kind: ClassVar[Kind] = "safety"

    def __init__(self, params: SafetyParams) -> None:
        super().__init__(params)
        self._safety = params
        if self._false_share is not None:
            self._part = 1.0 - BUDGET

    @property
    def _false_share(self) -> float | None:
        """Of clean records that would act; None where nobody has measured it."""
        params = self._safety
        if params.false_flags == 0.0 or not params.confirm or params.false_flags is None:
            return params.false_flags
        return None if params.false_confirms is None else params.false_flags * params.false_confirms

    def look(self, view: View, state: State) -> tuple[State, Finding]:
        """The rate, and single flags."""
        grown = [view.growth(name) for name in self.criteria]
        after, finding = self._rated(view, state, grown)
        kept: dict[str, Any] = {**after}
        flagged_at = self._flagged_at(view, state, grown[-1])
        kept["flagged_at"] = None if flagged_at is None else flagged_at.isoformat()
        expected = self._expected(view)
        armed = expected is not None and expected <= BUDGET
        if not armed:
            return kept, finding
        recent = flagged_at is not None and view.at - flagged_at < self._safety.quiet
        return kept, self._single(finding, at=flagged_at if recent else None, expected=expected or 0.0)

    def _flagged_at(self, view: View, state: State, arrived: Stretch | None) -> datetime | None:
        if self._tally(arrived).events:
            return view.at
        before = state.get("flagged_at")
        return None if before is None else min(datetime.fromisoformat(before), view.at)

    def _expected(self, view: View) -> float | None:
        share = self._false_share
        if share is None or share == 0.0:
            return share
        normal = normal_of(view, [])
        stretch = normal.scores(self._safety.criterion) if normal is not None else None
        rate = None if stretch is None else per_second(stretch, self._tally(stretch).n)
        return None if rate is None else rate * self._safety.false_alarm_every.total_seconds() * share

    def _single(self, finding: Finding, at: datetime | None, expected: float) -> Finding:
        reckoning = f"{expected:.2g} false ones expected in {format_duration(self._safety.false_alarm_every)}"
        numbers = {**finding.numbers, "single_flags_act": True, "false_flags_expected": expected}
        if at is None:
            return replace(finding, violated=bool(finding.violated), numbers=numbers)
        kind = "confirmed flag" if self._safety.confirm else "flag"
        reason = f"{self._safety.criterion}: a {kind} at {at:%Y-%m-%d %H:%M} UTC acts at once ({reckoning}); "
        return replace(finding, violated=True, reason=reason + finding.reason, numbers=numbers)
