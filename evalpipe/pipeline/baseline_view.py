"""Baselines as they are shown, and what can be watched with one: for the API and the command line."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import timedelta
from math import sqrt
from typing import Any, Final

from evalpipe.detectors.outlook import Watched, WatchOutlook, outlook
from evalpipe.detectors.view import Calls
from evalpipe.errors import ConfigError
from evalpipe.scorecard.values import format_duration
from evalpipe.store.baseline_parts import Part
from evalpipe.store.baselines import LEAST, WANTED, Baseline, Header
from evalpipe.store.normal import merged

QUANTILES: Final = (0.5, 0.99)


@dataclass(frozen=True, slots=True)
class Calibrated:
    """One criterion and epoch of a baseline, and what watching it will show; see ``WatchOutlook``.

    Attributes:
        refused: why no rule is proposed; "" where one is.
        warning: what should be known of the proposal; "" for nothing.
    """

    scorecard: str
    criterion: str
    epoch: str
    n: int
    per_day: float
    design_effect: float
    outlook: WatchOutlook | None
    refused: str = ""
    warning: str = ""


def header_view(header: Header) -> dict[str, Any]:
    """Name, place, dates and size; durations in seconds."""
    shown = asdict(header)
    return {**shown, "span_s": (header.until_at - header.since_at).total_seconds(), "words": header.words}


def view(baseline: Baseline) -> dict[str, Any]:
    """All of a baseline but for its profiles: criteria by epoch, with their features together, and the meter."""
    return {
        **header_view(baseline.header),
        "criteria": [_criterion_view(parts) for parts in grouped(baseline).values()],
        "meter": [_meter_view(feature, part.calls, part.hours) for feature, part in sorted(baseline.calls.items())],
    }


def grouped(baseline: Baseline) -> dict[tuple[str, str, str], list[Part]]:
    """The parts of each scorecard, criterion and epoch, whatever the feature."""
    found: dict[tuple[str, str, str], list[Part]] = {}
    for part in baseline.parts:
        found.setdefault((part.scorecard, part.criterion, part.epoch), []).append(part)
    return found


def calibrate(baseline: Baseline, every: timedelta, *, criterion: str = "") -> list[Calibrated]:
    """What rules for this wanted time between false alarms would be, and would show, for each criterion and epoch.

    Raises:
        ConfigError: the baseline has no such criterion; the message says which it has.
    """
    found = [_calibrated(parts, every) for (_, name, _), parts in grouped(baseline).items() if criterion in ("", name)]
    if not found:
        names = ", ".join(sorted(baseline.header.epochs)) or "none"
        raise ConfigError(f"baseline {baseline.header.name!r} has no scores of {criterion!r}; it has: {names}")
    return found


def proposals(baseline: str, found: Calibrated, every: timedelta) -> str:
    """Alert rules in YAML, to paste under ``alerts:`` of the scorecard."""
    if found.outlook is None:
        return ""
    lines = [
        f"- name: {found.criterion}-changed",
        f"  detect: {found.outlook.detector}",
        f"  params: {{criterion: {found.criterion}, false_alarm_every: {format_duration(every)}}}",
        f"  normal: {{baseline: {baseline}}}",
    ]
    if (window := found.outlook.window) is not None:
        lines += [
            f"- name: {found.criterion}-low",
            f"  criterion: {found.criterion}",
            f"  mean: {{below: {window.below:g}}}",
            f"  window: {format_duration(window.window)}",
            f"  min_sample: {max(1, window.n // 2)}",
        ]
    return "\n".join(lines) + "\n"


def _calibrated(parts: list[Part], every: timedelta) -> Calibrated:
    stretch = merged(parts)
    assert stretch is not None
    assert stretch.since is not None
    assert stretch.until is not None
    of = Watched(stretch.rollup, max((stretch.until - stretch.since) / timedelta(days=1), 1e-6), stretch.design_effect)
    n = of.rollup.n_scored
    refused = warning = ""
    if n < LEAST:
        refused = f"it has {n:,} scores, and {LEAST:,} are needed ({WANTED:,} are good): capture a longer baseline"
    elif not of.rollup.sum_wx:
        refused = "all its scores are 0: nothing can drop"
    elif n < WANTED:
        warning = f"{n:,} scores: below {WANTED:,} the baseline's own error widens what counts as no change"
    made = None if refused else outlook(of, every)
    return Calibrated(
        parts[0].scorecard, parts[0].criterion, parts[0].epoch, n, of.per_day, of.design_effect, made, refused, warning
    )


def _criterion_view(parts: list[Part]) -> dict[str, Any]:
    stretch = merged(parts)
    assert stretch is not None
    rollup, mean = stretch.rollup, stretch.rollup.mean
    variance = None if mean is None else max(rollup.sum_wx2 / rollup.sum_w - mean * mean, 0.0)
    return {
        "scorecard": parts[0].scorecard,
        "criterion": parts[0].criterion,
        "epoch": parts[0].epoch,
        "features": sorted(part.feature for part in parts),
        "n": rollup.n_scored,
        "n_skipped": rollup.n_skipped,
        "n_abstained": rollup.n_abstained,
        "n_error": rollup.n_error,
        "mean": mean,
        "sd": None if variance is None else sqrt(variance),
        "p10": rollup.quantile(0.1),
        "p50": rollup.quantile(0.5),
        "design_effect": stretch.design_effect,
        "since_at": stretch.since,
        "until_at": stretch.until,
    }


def _meter_view(feature: str, calls: Calls, hours: dict[int, dict[str, float]]) -> dict[str, Any]:
    quantiles = {
        f"{name}_ms": {f"p{q * 100:g}": sketch.quantile(q) for q in QUANTILES} if sketch.count else None
        for name, sketch in calls.sketches.items()
    }
    return {
        "feature": feature,
        **calls.sums,
        "calls_per_minute": calls.per_minute("calls"),
        "tokens_per_minute": calls.per_minute("tokens"),
        "cost_usd_per_minute": calls.per_minute("cost_usd"),
        **quantiles,
        "hours_of_week": {str(hour): rates for hour, rates in sorted(hours.items())},
    }
