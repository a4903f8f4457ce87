"""What the detectors of streams share: which series they follow, when they are armed, and what they remember.

A stream is followed score by score, in batches: see ``evalpipe.stats.change``. Values are those of the bins of a
rollup, in the baseline as in the stream, so that both mean the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final

from pydantic import Field

from evalpipe.detectors.base import Finding, RatedParams, State
from evalpipe.detectors.view import Normal, Stretch, View
from evalpipe.rollup import BINS, Rollup
from evalpipe.scorecard.values import format_duration
from evalpipe.stats.change import RECOVERED, Bet, Limits, Run, back, fold, limits, settle, share_limits

Counts = Sequence[tuple[float, float]]
"""Values in [0, 1], and how many scores have each."""

TRUSTED: Final = 3_000
"""Scores from which on a baseline's own error is small beside the default tolerance."""
LEAST_RUN_LENGTH: Final = 1_000.0
_SHORTEST_WINDOW_S: Final = 3_600.0
_LONGEST_WINDOW_S: Final = 7 * 86_400.0
"""How far back examples of a change are looked for."""
RECENT: Final = 1_000.0
"""Scores behind the mean that is shown while nothing has changed."""
FADED: Final = 1e-4
"""Part of the threshold below which a change of graded scores is over."""
NO_RATE: Final = (
    "how often scores come is not known, since the baseline has no dates: set average_run_length, the scores between "
    "two false alarms"
)


class StreamParams(RatedParams):
    """Parameters of every detector of streams."""

    min_baseline: int = Field(
        default=1_000,
        ge=100,
        description="With fewer scores in the baseline the rule is not armed. From 3,000 on the baseline is fully "
        "trusted; with fewer its own error widens what counts as no change.",
    )
    average_run_length: float | None = Field(
        default=None,
        ge=100,
        description="Scores between two false alarms on the average, instead of `false_alarm_every`.",
    )


@dataclass(frozen=True, slots=True)
class Series:
    """One series to follow at one evaluation.

    Attributes:
        name: of the criterion.
        weight: its part of the whole.
        counts: what arrived.
        epoch: of it.
        design_effect: of it.
        usual: the mean that is normal.
        normal: means that count as no change.
        bets: on a change.
        n: scores of the baseline.
        per_second: at which scores arrived in the baseline; None if unknown.
        variance: of scores; None for 0/1 scores, of which the mean tells it.
    """

    name: str
    weight: float
    counts: Counts
    epoch: str
    design_effect: float
    usual: float
    normal: Limits
    bets: tuple[Bet, ...]
    n: int
    per_second: float | None
    variance: float | None = None


def counts_of(rollup: Rollup) -> Counts:
    """The scored values of a rollup, each as the middle of its bin; 0 and 1 are exact."""
    return [(min(max((index - 0.5) / BINS, 0.0), 1.0), float(n)) for index, n in sorted(rollup.bins.items())]


def moments(counts: Counts) -> tuple[float, float, int]:
    """Mean, variance and number."""
    n = sum(count for _, count in counts)
    mean = sum(value * count for value, count in counts) / n
    return mean, sum(count * (value - mean) ** 2 for value, count in counts) / n, int(n)


def per_second(stretch: Stretch, n: float) -> float | None:
    """How often scores came in a baseline; None where it is not known from when to when they are."""
    if stretch.since is None or stretch.until is None or stretch.until <= stretch.since:
        return None
    return n / (stretch.until - stretch.since).total_seconds()


def normal_of(view: View, grown: Sequence[Stretch]) -> Normal | None:
    """What the scores that arrived are compared with."""
    since = min((stretch.since for stretch in grown if stretch.since is not None), default=view.at)
    return view.normal(min(since, view.at), view.at)


def unfit(normal: Stretch | None, grown: Stretch | None, n: int, least: int) -> str:
    """Why a series cannot be compared, with what to do about it; "" if it can.

    An empty epoch fits any: the rule compares across epochs.
    """
    if normal is None or n == 0:
        return "there is nothing to compare with yet: capture a baseline with `evalpipe baseline capture`"
    if grown is not None and normal.epoch != grown.epoch and normal.epoch and grown.epoch:
        return (
            "the baseline is of another epoch (the scorecard, a judge or the sampling changed since): capture a new "
            "one, or set across_epochs"
        )
    if n < least:
        return (
            f"the baseline has {n:,} scores and {least:,} are needed (it is fully trusted from {TRUSTED:,} on): "
            "capture a longer one"
        )
    return ""


def run_length(params: StreamParams, series: Sequence[Series]) -> float | None:
    """The threshold: scores between two false alarms; None where nobody knows how often scores come."""
    if params.average_run_length is not None:
        return params.average_run_length
    rates = [one.per_second for one in series]
    known = sum(one.weight * rate for one, rate in zip(series, rates, strict=True) if rate is not None)
    if None in rates or not known:
        return None
    return max(LEAST_RUN_LENGTH, known * params.false_alarm_every.total_seconds())


@dataclass(frozen=True, slots=True)
class Outcome:
    """What following the series came to."""

    changed: bool
    evidence: float
    threshold: float
    means: Mapping[str, float]
    n: int


def follow(series: Sequence[Series], threshold: float, state: State) -> tuple[dict[str, Any], Outcome]:
    """Fold what arrived into the state; a series of another epoch than before starts anew."""
    old = state.get("series", {})
    kept: dict[str, Any] = {}
    for one in series:
        before = old.get(one.name, {})
        if before.get("epoch", "") != one.epoch and one.counts:
            before = {}
        kept[one.name] = _folded(one, before)
    sums = [each for one in series for each in kept[one.name]["sums"]]
    evidence = sum(sums)
    sums, rises = settle(sums, threshold, changed=False)
    changed = rises or bool(state.get("changed"))
    for one in series:
        mine = kept[one.name]
        mine["sums"], sums = sums[: len(mine["sums"])], sums[len(mine["sums"]) :]
    if changed:
        # With few graded scores the evidence fades before a recovery is proven; that of 0/1 scores fades by chance.
        faded = all(one.variance is not None for one in series) and evidence < FADED * threshold
        changed = not faded and not _is_back(series, kept, rises=rises)
    if state.get("changed") and not changed:
        for mine in kept.values():
            mine.update(sums=[0.0] * len(mine["sums"]), runs=[list(Run()) for _ in mine["runs"]], back=None)
    most = max(_leading(each).evidence for each in kept.values())
    means = {
        one.name: _mean(kept[one.name], one, changed=changed and 2.0 * _leading(kept[one.name]).evidence >= most)
        for one in series
    }
    n = max(_leading(each).n if changed else each["recent"][0] for each in kept.values())
    outcome = Outcome(changed, min(evidence, threshold), threshold, means, int(n))
    return {"series": kept, "changed": changed}, outcome


def _is_back(series: Sequence[Series], kept: Mapping[str, Any], *, rises: bool) -> bool:
    """Whether the series that have changed are as usual again (or new); while the evidence rises, none is."""
    most = max(_leading(mine).evidence for mine in kept.values())
    for one in series:
        mine = kept[one.name]
        run = _leading(mine)
        if rises:
            mine["back"] = [_least(run, mine["recent"], one), 0.0] if 2.0 * run.evidence >= most else None
        elif mine["back"] is not None:
            mean, evidence = mine["back"]
            spread = mean * (1.0 - mean) if one.variance is None else one.variance
            mine["back"] = [mean, back(evidence, mean, one.usual, spread, one.counts, one.design_effect)]
    known = [mine["back"] for mine in kept.values() if mine["back"] is not None]
    return not rises and all(evidence >= RECOVERED for _, evidence in known)


def _least(run: Run, recent: Sequence[float], one: Series) -> float:
    """The mean of the changed scores, as near to the usual as it may be: chance is not taken for a recovery."""
    n, total = (run.n, run.total) if run.n else recent
    mean = (total + 0.5) / (n + 1.0)
    independent = max(1, int(n / one.design_effect))
    if one.variance is None:
        within = share_limits(mean, independent, 0.0)
    else:
        within = limits(mean, one.variance, independent, 0.0)
    nearest = min(max(one.usual, within.low), within.high)
    return nearest if nearest != one.usual else (mean + one.usual) / 2.0


def _folded(one: Series, before: Mapping[str, Any]) -> dict[str, Any]:
    sums = before.get("sums", [])
    runs = [Run(*run) for run in before.get("runs", ())]
    leaders = _leaders(one.bets)
    if len(sums) != len(one.bets) or len(runs) != len(leaders):
        sums, runs = [0.0] * len(one.bets), [Run()] * len(leaders)
    n, total = before.get("recent", (0.0, 0.0))
    if one.counts:
        sums = fold(sums, one.bets, one.counts, one.design_effect, one.weight)
        runs = [run.after(bet, one.counts, one.design_effect) for run, bet in zip(runs, leaders, strict=True)]
        fresh = sum(count for _, count in one.counts)
        share = max(0.0, 1.0 - fresh / RECENT)
        n, total = n * share + fresh, total * share + sum(value * count for value, count in one.counts)
    epoch = one.epoch if one.counts else before.get("epoch", one.epoch)
    return {"epoch": epoch, "sums": list(sums), "runs": [list(run) for run in runs], "recent": [n, total],
            "back": before.get("back")}  # fmt: skip


def _leaders(bets: Sequence[Bet]) -> list[Bet]:
    """The bets on the smallest and on the greatest change, of each direction: one of them knows best when it began."""
    smallest = {bet.stake > 0: bet for bet in reversed(bets)}
    greatest = {bet.stake > 0: bet for bet in bets}
    both = [side[up] for up in (False, True) for side in (smallest, greatest) if up in side]
    return list(dict.fromkeys(both))


def _leading(kept: Mapping[str, Any]) -> Run:
    return max((Run(*run) for run in kept["runs"]), key=lambda run: run.evidence)


def _mean(kept: Mapping[str, Any], one: Series, *, changed: bool) -> float:
    """Since the likely change; or of the recent scores."""
    mean = _leading(kept).mean if changed else None
    n, total = kept["recent"]
    return mean if mean is not None else total / n if n else one.usual


def told(state: State, nothing: str) -> Finding:
    """What was found the last time, for an evaluation to which nothing has arrived."""
    last = state.get("told")
    if last is None:
        return Finding(None, reason=nothing)
    return Finding(**{**last, "examples": tuple(last.get("examples", ()))})


def remembered(state: Mapping[str, Any], finding: Finding) -> tuple[State, Finding]:
    """State and finding, the finding kept in the state."""
    kept = {one.name: getattr(finding, one.name) for one in fields(finding)} | {"numbers": dict(finding.numbers)}
    kept["examples"] = list(finding.examples)
    return {**state, "told": kept}, finding


def evidence_of(series: Sequence[Series], outcome: Outcome, *, up: bool) -> dict[str, Any]:
    """The numbers of a finding: the test, and where to look for examples."""
    numbers: dict[str, Any] = {
        "evidence": outcome.evidence,
        "average_run_length": outcome.threshold,
        "n_since_change": outcome.n if outcome.changed else None,
        "worst": "highest" if up else "lowest",
    }
    rates = [one.per_second for one in series if one.per_second]
    if outcome.changed and rates:
        numbers["window_s"] = min(max(outcome.n / min(rates), _SHORTEST_WINDOW_S), _LONGEST_WINDOW_S)
    return numbers


def rarely(params: StreamParams, threshold: float) -> str:
    """How often a false alarm is to be expected, for people."""
    if params.average_run_length is not None:
        return f"one false alarm in {threshold:,.0f} scores"
    return f"one false alarm in {format_duration(params.false_alarm_every)}, {threshold:,.0f} scores"


def dates(stretch: Stretch | None) -> str:
    """From when to when a baseline is; "" if unknown."""
    if stretch is None or stretch.since is None or stretch.until is None:
        return ""
    return f"{_day(stretch.since)} to {_day(stretch.until)}"


def _day(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M}"
