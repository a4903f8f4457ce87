"""Has quality changed against its baseline: the mean of a criterion, or of several together?

For several criteria the evidence is averaged with their weights: an average of Shiryaev-Roberts sums is one, so
the false-alarm rate holds whatever the dependence between the criteria. A weight is a criterion's share of the
sensitivity; a change of any one of them is found.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from evalpipe.detectors import base
from evalpipe.detectors.base import Finding, Input, Kind, State
from evalpipe.detectors.streams import (
    NO_RATE,
    TRUSTED,
    Outcome,
    Series,
    StreamParams,
    counts_of,
    dates,
    evidence_of,
    follow,
    moments,
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
from evalpipe.stats.change import limits, mean_bets


class QualityParams(StreamParams):
    """Parameters of ``quality``."""

    criterion: str = Field(default="", description="The criterion whose mean is followed.")
    criteria: dict[str, float] = Field(
        default_factory=dict,
        max_length=8,
        description="Instead of `criterion`: several, with weights; a change of any of them is found, of those with "
        "more weight sooner.",
    )
    direction: Literal["down", "up", "both"] = Field(
        default="down", description="Which change: a mean that is too good can be wrong as well."
    )
    tolerance: float = Field(
        default=0.01,
        ge=0.0,
        lt=0.5,
        description="Relative change of the mean that is none: what the baseline itself may be off by.",
    )


@base.detectors.register("quality")
class Quality:
    """A change of a mean, found as fast as by a test that was tuned to it (see ``evalpipe.stats.change``)."""

    Params: ClassVar[type[base.DetectorParams]] = QualityParams
    version: ClassVar[str] = "1"
    kind: ClassVar[Kind] = "quality"
    inputs: ClassVar[frozenset[Input]] = frozenset({"growth"})

    def __init__(self, params: QualityParams) -> None:
        if bool(params.criterion) == bool(params.criteria):
            raise ConfigError("quality: write either 'criterion: name' or 'criteria: {name: weight, ...}'")
        if any(not weight > 0.0 for weight in params.criteria.values()):
            raise ConfigError(f"quality: weights of criteria must be positive, not {params.criteria!r}")
        self._params = params
        written = params.criteria or {params.criterion: 1.0}
        self._weights = {name: weight / sum(written.values()) for name, weight in written.items()}

    @property
    def criteria(self) -> tuple[str, ...]:
        """Those that it follows."""
        return tuple(self._weights)

    def look(self, view: View, state: State) -> tuple[State, Finding]:
        """Take what arrived; see ``Detector``."""
        grown = {name: view.growth(name) for name in self._weights}
        fresh = [stretch for stretch in grown.values() if stretch is not None and stretch.rollup.n_scored]
        if not fresh:
            return state, told(state, "no scores have arrived yet")
        normal = normal_of(view, fresh)
        series, why = self._series(normal, grown)
        if normal is None or not series:
            return remembered({}, Finding(None, reason="; ".join(why)))
        threshold = run_length(self._params, series)
        if threshold is None:
            return remembered(state, Finding(None, reason=NO_RATE))
        after, outcome = follow(series, threshold, state)
        return remembered(after, self._finding(series, outcome, normal, why))

    def _series(self, normal: Normal | None, grown: dict[str, Stretch | None]) -> tuple[list[Series], list[str]]:
        series, why = [], []
        for name, weight in self._weights.items():
            arrived = grown[name]
            usual = normal.scores(name) if normal is not None else None
            counts = counts_of(usual.rollup) if usual is not None else []
            size = int(sum(count for _, count in counts))
            if reason := unfit(usual, arrived, size, self._params.min_baseline):
                why.append(f"{name} is not followed: {reason}")
            elif usual is not None:
                series.append(self._one(name, weight, usual, arrived))
        return series, why

    def _one(self, name: str, weight: float, usual: Stretch, arrived: Stretch | None) -> Series:
        mean, variance, n = moments(counts_of(usual.rollup))
        independent = int(n / max(usual.design_effect, 1.0))
        within = limits(mean, variance, independent, self._params.tolerance)
        return Series(
            name=name,
            weight=weight,
            counts=[] if arrived is None else counts_of(arrived.rollup),
            epoch=usual.epoch if arrived is None else arrived.epoch,
            design_effect=max(usual.design_effect, 1.0 if arrived is None else arrived.design_effect),
            usual=mean,
            normal=within,
            bets=mean_bets(mean, variance, within, self._params.direction),
            n=n,
            per_second=per_second(usual, n),
            variance=variance,
        )

    def _finding(self, series: list[Series], outcome: Outcome, normal: Normal, why: list[str]) -> Finding:
        whole = sum(one.weight for one in series)
        value = sum(one.weight * outcome.means[one.name] for one in series) / whole
        usual = sum(one.weight * one.usual for one in series) / whole
        line = _line(series, whole, up=value > usual)
        known = min(one.n for one in series)
        trust = "" if known >= TRUSTED else f"; the baseline of {known:,} scores is not fully trusted below {TRUSTED:,}"
        what = _what(series, outcome)
        words = (
            f"{what} has changed: {value:.3f} over {outcome.n:,} scores, normal is {usual:.3f} ({normal.words})"
            if outcome.changed
            else f"{what} is as usual: {value:.3f}, normal is {usual:.3f} ({normal.words})"
        )
        evidence = (
            f"evidence {outcome.evidence:,.0f} of {outcome.threshold:,.0f}, {rarely(self._params, outcome.threshold)}"
        )
        return Finding(
            violated=outcome.changed,
            value=value,
            n=outcome.n,
            reason="; ".join([f"{words}; {evidence}{trust}", *why]),
            ratio=value / usual if usual > 0.0 else None,
            threshold=line,
            numbers={
                "test": "e-SR",
                **evidence_of(series, outcome, up=value > usual),
                "baseline": dates(normal.scores(series[0].name)),
                "criteria": {one.name: _numbers(one, outcome.means[one.name]) for one in series},
            },
        )


def _line(series: list[Series], whole: float, *, up: bool) -> float:
    return sum(one.weight * (one.normal.high if up else one.normal.low) for one in series) / whole


def _what(series: list[Series], outcome: Outcome) -> str:
    if len(series) == 1:
        return series[0].name
    most = max(series, key=lambda one: abs(outcome.means[one.name] - one.usual) / max(one.usual, 1e-3))
    return f"the mean of {len(series)} criteria, {most.name} the most,"


def _numbers(one: Series, mean: float) -> dict[str, Any]:
    numbers = {"mean": mean, "normal": one.usual, "as_usual_from": one.normal.low, "as_usual_to": one.normal.high}
    return {
        **{name: round(value, 5) for name, value in numbers.items()},
        "baseline_n": one.n,
        "design_effect": round(one.design_effect, 2),
    }
