"""Has a share of the scores changed, in either direction: refusals, broken formats, flags, errors of judges?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal, NamedTuple

from pydantic import Field

from evalpipe.detectors import base
from evalpipe.detectors.base import Finding, Input, Kind, State
from evalpipe.detectors.streams import (
    NO_RATE,
    TRUSTED,
    Outcome,
    Series,
    StreamParams,
    dates,
    evidence_of,
    follow,
    normal_of,
    per_second,
    rarely,
    remembered,
    run_length,
    told,
    unfit,
)
from evalpipe.detectors.view import Normal, Stretch, View
from evalpipe.errors import ConfigError
from evalpipe.rollup import Rollup, bin_of
from evalpipe.stats.change import Direction, share_bets, share_limits

Of = Literal["low", "error", "abstained", "skipped"]


class RateParams(StreamParams):
    """Parameters of ``rate``."""

    criterion: str = Field(min_length=1, description="The criterion whose scores are counted.")
    of: Of = Field(
        default="low",
        description="What is counted. `low`: values of at most `flag_at`, of those with a value (for `refusal` a "
        "refusal, for `json_schema` a broken format). `error`: of those that were tried (for a judge its error rate). "
        "`abstained`: of those with or without a value. `skipped`: of all (for `grounding`, answers without context).",
    )
    flag_at: float = Field(
        default=0.5, ge=0.0, lt=1.0, description="The highest value that counts as low; to a fiftieth."
    )
    direction: Literal["above", "below", "both"] = Field(
        default="above",
        description="Which change of the share: `below` for too few (a model that no longer refuses what it should).",
    )
    tolerance: float = Field(
        default=0.1,
        ge=0.0,
        lt=1.0,
        description="Relative change of the share that is none: what is usual on some days.",
    )
    confirm: str = Field(
        default="",
        description="A criterion whose scores confirm the flags: only what it flags too counts, of all the scores of "
        "`criterion`.",
    )


class Tally(NamedTuple):
    """Scores, and how many of them count."""

    n: int
    events: int


def tally(rollup: Rollup, of: Of, flag_at: float) -> Tally:
    """What a rollup adds to a share."""
    scored, tried = rollup.n_scored, rollup.n_scored + rollup.n_abstained
    if of == "low":
        last = bin_of(flag_at)
        return Tally(sum(rollup.bins.values()), sum(n for index, n in rollup.bins.items() if index <= last))
    if of == "abstained":
        return Tally(tried, rollup.n_abstained)
    if of == "error":
        return Tally(tried + rollup.n_error, rollup.n_error)
    return Tally(scored + rollup.n_abstained + rollup.n_error + rollup.n_skipped, rollup.n_skipped)


_WORDS: Final[Mapping[Of, str]] = {
    "low": "low scores",
    "error": "errors",
    "abstained": "no score",
    "skipped": "skipped",
}
_SIDES: Final[Mapping[str, Direction]] = {"above": "up", "below": "down", "both": "both"}


@base.detectors.register("rate")
class Rate:
    """A change of a share, found as fast as by a test that was tuned to it (see ``evalpipe.stats.change``)."""

    Params: ClassVar[type[base.DetectorParams]] = RateParams
    version: ClassVar[str] = "1"
    kind: ClassVar[Kind] = "rate"
    inputs: ClassVar[frozenset[Input]] = frozenset({"growth"})

    def __init__(self, params: RateParams) -> None:
        if params.confirm and params.of != "low":
            raise ConfigError(
                f"rate: 'confirm' confirms low scores; with 'of: {params.of}' there is nothing to confirm"
            )
        if params.confirm == params.criterion:
            raise ConfigError(f"rate: 'confirm' must be another criterion than {params.criterion!r}")
        self._params = params
        self._part = 1.0  # of the false alarms that are allowed

    @property
    def criteria(self) -> tuple[str, ...]:
        """What it reads."""
        return (self._params.criterion, self._params.confirm) if self._params.confirm else (self._params.criterion,)

    def look(self, view: View, state: State) -> tuple[State, Finding]:
        """Take what arrived; see ``Detector``."""
        return self._rated(view, state, [view.growth(name) for name in self.criteria])

    def _rated(self, view: View, state: State, grown: list[Stretch | None]) -> tuple[State, Finding]:
        fresh = [stretch for stretch in grown if stretch is not None]
        if not fresh:
            return state, told(state, "no scores have arrived yet")
        owed = self._owed(grown, state)
        normal = normal_of(view, fresh)
        series, why = self._series(normal, grown, owed)
        if normal is None or series is None:
            return remembered({}, Finding(None, reason=why))
        threshold = run_length(self._params, [series])
        if threshold is None:
            return remembered({**state, "owed": 0}, Finding(None, reason=NO_RATE))
        after, outcome = follow([series], threshold / self._part, state)
        late = max(0, owed.events - owed.n)
        return remembered({**after, "owed": late}, self._finding(series, outcome, normal))

    def _tally(self, stretch: Stretch | None) -> Tally:
        return Tally(0, 0) if stretch is None else tally(stretch.rollup, self._params.of, self._params.flag_at)

    def _owed(self, grown: list[Stretch | None], state: State) -> Tally:
        """What arrived. A confirmation that comes after its score is counted with the scores that come then."""
        arrived = self._tally(grown[0])
        if self._params.confirm:
            arrived = Tally(arrived.n, self._tally(grown[1]).events + int(state.get("owed", 0)))
        return arrived

    def _usual(self, normal: Normal | None) -> tuple[Stretch | None, Tally]:
        stretch = normal.scores(self._params.criterion) if normal is not None else None
        usual = self._tally(stretch)
        if self._params.confirm and normal is not None:
            usual = Tally(usual.n, min(usual.n, self._tally(normal.scores(self._params.confirm)).events))
        return stretch, usual

    def _series(self, normal: Normal | None, grown: list[Stretch | None], arrived: Tally) -> tuple[Series | None, str]:
        stretch, usual = self._usual(normal)
        why = unfit(stretch, grown[0], usual.n, self._params.min_baseline)
        if self._params.confirm and normal is not None and not why:
            confirming = normal.scores(self._params.confirm)
            if confirming is not None and confirming.rollup.n_scored:
                why = unfit(confirming, grown[1], 1, 1)
        if why or stretch is None:
            return None, f"{self._what} are not followed: {why}"
        share = usual.events / usual.n
        effect = max([stretch.design_effect, *(one.design_effect for one in grown if one is not None)])
        within = share_limits(share, int(usual.n / effect), self._params.tolerance)
        events = float(min(arrived.events, arrived.n))
        return Series(
            name=self._params.criterion,
            weight=1.0,
            counts=[(1.0, events), (0.0, arrived.n - events)] if arrived.n else [],
            epoch=stretch.epoch if grown[0] is None else grown[0].epoch,
            design_effect=effect,
            usual=share,
            normal=within,
            bets=share_bets(within, _SIDES[self._params.direction]),
            n=usual.n,
            per_second=per_second(stretch, usual.n),
        ), ""

    @property
    def _what(self) -> str:
        confirmed = f" confirmed by {self._params.confirm}" if self._params.confirm else ""
        return f"{self._params.criterion}: {_WORDS[self._params.of]}{confirmed}"

    def _finding(self, series: Series, outcome: Outcome, normal: Normal) -> Finding:
        value, usual = outcome.means[series.name], series.usual
        line = series.normal.high if value > usual else series.normal.low
        words = (
            f"{self._what} have changed: {value:.2%} of {outcome.n:,}, normal is {usual:.2%} ({normal.words})"
            if outcome.changed
            else f"{self._what} are as usual: {value:.2%}, normal is {usual:.2%} ({normal.words})"
        )
        evidence = f"evidence {outcome.evidence:,.0f} of {outcome.threshold:,.0f}"
        trust = f"; the baseline of {series.n:,} is not fully trusted below {TRUSTED:,}" if series.n < TRUSTED else ""
        return Finding(
            violated=outcome.changed,
            value=value,
            n=outcome.n,
            reason=f"{words}; {evidence}, {rarely(self._params, outcome.threshold)}{trust}",
            ratio=value / usual if usual > 0.0 else None,
            threshold=line,
            # Errors and abstentions of a judge hurt what is known of the answers, not the answers.
            severity="SEV3" if outcome.changed and self._params.of in {"error", "abstained"} else None,
            numbers=_numbers(series, outcome, normal),
        )


def _numbers(series: Series, outcome: Outcome, normal: Normal) -> dict[str, Any]:
    return {
        "test": "e-SR of a share",
        **evidence_of([series], outcome, up=outcome.means[series.name] < series.usual),
        "share": outcome.means[series.name],
        "normal": series.usual,
        "as_usual_from": series.normal.low,
        "as_usual_to": series.normal.high,
        "baseline_n": series.n,
        "baseline": dates(normal.scores(series.name)),
        "design_effect": series.design_effect,
    }
