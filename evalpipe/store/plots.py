"""A series as a picture: in the terminal, or as a PNG."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from evalpipe.rollup import Rollup
from evalpipe.stats.mean_interval import interval_of
from evalpipe.store.series import read_rollups
from evalpipe.store.sql import Transaction

WANTED_POINTS = 60
"""Buckets are joined until about so many are left."""
GAUGE = 50
"""Characters from 0 to 1 in the terminal."""


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
    interval = interval_of(rollup)
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
    """Print the plot as a table: for each variant and bucket the mean as a dot on its interval."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{title}: mean with 95 % interval", title_justify="left", header_style="bold", box=None)
    for column in ("time (UTC)", "variant", "epoch", "n", "mean", "0" + " " * (GAUGE - 2) + "1"):
        table.add_column(column, justify="right" if column in {"n", "mean"} else "left", no_wrap=True)
    for (variant, epoch), line in _lines(points).items():
        for p in line:
            at = p.at.strftime("%m-%d %H:%M")
            table.add_row(at, variant, epoch[:6], str(p.n), f"{p.mean:.3f}", _gauge(p))
        table.add_section()
    Console().print(table)


def _gauge(point: Point) -> str:
    cells = ["·"] * GAUGE
    low, mean, high = (round(x * (GAUGE - 1)) for x in (point.low, point.mean, point.high))
    cells[low : high + 1] = ["─"] * (high - low + 1)
    cells[mean] = "●"
    return "".join(cells)
