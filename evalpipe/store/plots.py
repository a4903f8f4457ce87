"""A series as a picture: in the terminal, or as a PNG."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from evalpipe.rollup import Rollup
from evalpipe.stats.mean_interval import mean_interval
from evalpipe.store.series import read_rollups
from evalpipe.store.sql import Transaction

WANTED_POINTS = 120
"""Buckets are joined until about so many are left."""


@dataclass(frozen=True, slots=True)
class Point:
    """The mean of one variant and epoch over some minutes, with its 95 % interval."""

    at: datetime
    variant: str
    epoch: str
    n: int
    mean: float
    low: float
    high: float


def points_of(tx: Transaction, criterion: str, since: datetime, *, service: str = "") -> list[Point]:
    """The points of a criterion's plot, in order of time; nothing is joined over epochs."""
    where: dict[str, Any] = {"criterion": criterion} | ({"service": service} if service else {})
    found = read_rollups(tx, since=since, **where)
    if not found:
        return []
    first = found[0][0]
    width_s = max(60.0, (found[-1][0] - first).total_seconds() / WANTED_POINTS)
    joined: dict[tuple[str, str, int], tuple[datetime, Rollup]] = {}
    for bucket_at, s, rollup in found:
        key = s.variant, s.epoch, int((bucket_at - first).total_seconds() // width_s)
        joined.setdefault(key, (bucket_at, Rollup()))[1].merge(rollup)
    points = [_point(at, variant, epoch, rollup) for (variant, epoch, _), (at, rollup) in joined.items()]
    return sorted((p for p in points if p is not None), key=lambda p: p.at)


def _point(at: datetime, variant: str, epoch: str, rollup: Rollup) -> Point | None:
    interval = mean_interval(rollup.n_scored, rollup.sum_w, rollup.sum_wx, rollup.sum_wx2, rollup.sum_w2)
    if interval is None or rollup.mean is None:
        return None
    return Point(at, variant, epoch, rollup.n_scored, rollup.mean, interval.low, interval.high)


def _lines(points: list[Point]) -> dict[tuple[str, str], list[Point]]:
    lines: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        lines.setdefault((point.variant, point.epoch), []).append(point)
    return lines


def draw_png(points: list[Point], title: str, path: Path) -> None:
    """Write the plot as a PNG: a line and a band for each variant; a new epoch is a new line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (variant, epoch), line in _lines(points).items():
        times = [p.at for p in line]
        axes.plot(times, [p.mean for p in line], marker=".", label=f"{variant} (epoch {epoch[:6]})")  # type: ignore[arg-type]  # dates are fine
        axes.fill_between(times, [p.low for p in line], [p.high for p in line], alpha=0.15)  # type: ignore[arg-type]  # dates are fine
    axes.set_ylim(-0.02, 1.02)
    axes.set_title(f"{title}: mean with 95 % interval")
    axes.legend(loc="lower left", frameon=False)
    axes.grid(visible=True, alpha=0.3)
    figure.autofmt_xdate()
    figure.savefig(path, dpi=120)


def draw_terminal(points: list[Point], title: str) -> None:
    """Draw the plot with characters."""
    import plotext

    plotext.clear_figure()
    plotext.date_form("H:M")
    for (variant, epoch), line in _lines(points).items():
        times = [p.at.strftime("%H:%M") for p in line]
        plotext.plot(times, [p.mean for p in line], label=f"{variant} {epoch[:6]}", marker="braille")
    plotext.ylim(0, 1)
    plotext.plotsize(100, 22)
    plotext.title(f"{title}: mean by time (UTC)")
    plotext.show()
