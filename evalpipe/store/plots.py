"""A series as a picture, raw and corrected for the judge's error: in the terminal, or as a PNG."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from evalpipe.rollup import Rollup
from evalpipe.stats.correction import Corrected
from evalpipe.stats.mean_interval import interval_of
from evalpipe.store import calibrations
from evalpipe.store.calibrations import Calibration, correct
from evalpipe.store.points import points
from evalpipe.store.series import SERVED
from evalpipe.store.sql import Transaction

WANTED_POINTS = 60
"""About so many for each line, at the most."""
WIDTHS = tuple(timedelta(minutes=m) for m in (1, 2, 5, 10, 15, 20, 30, 60, 120, 180, 360, 720, 1440, 10_080, 40_320))
"""Of points: multiples of hours and days are read from rollups of hours and days."""
KEY = ("variant", "scorecard", "epoch")
GAUGE = 50
"""Characters from 0 to 1 in the terminal, at the most."""
_LEAST_GAUGE, _BESIDE = 20, 48
"""At the least; and what stands beside them."""


@dataclass(frozen=True, slots=True)
class Point:
    """The mean of one variant and epoch over some minutes, with its 95 % interval.

    ``corrected`` is what people would have said, where the judge was measured in this epoch.
    """

    at: datetime
    variant: str
    epoch: str
    n: int
    mean: float
    low: float
    high: float
    corrected: Corrected


def points_of(
    tx: Transaction, criterion: str, since: datetime, until: datetime, *, service: str = "", arm: str = SERVED
) -> list[Point]:
    """The points of a criterion's plot, in order of time; nothing is joined over epochs."""
    where = {"criterion": criterion, "arm": arm} | ({"service": service} if service else {})
    wanted = (until - since) / WANTED_POINTS
    width = next((w for w in WIDTHS if w >= wanted), WIDTHS[-1])
    found = points(tx, since, None, width, KEY, **where)
    known = calibrations.newest(tx, {epoch for _, _, epoch in (line.key for line in found)})
    drawn = []
    for line in found:
        variant, scorecard, epoch = line.key
        calibration = known.get((scorecard, criterion, epoch))
        both = zip(line.starts, line.rollups(), strict=True)
        drawn += [_point(at, variant, epoch, rollup, calibration) for at, rollup in both]
    return sorted((p for p in drawn if p is not None), key=lambda p: p.at)


def breaks_of(points: list[Point]) -> list[tuple[datetime, str, str]]:
    """Where a variant's epoch changes: when the new one begins, the variant, and the new epoch."""
    found, current = [], dict[str, set[str]]()
    for p in points:
        seen = current.setdefault(p.variant, set())
        if seen and p.epoch not in seen:
            found.append((p.at, p.variant, p.epoch))
        seen.add(p.epoch)
    return found


def _point(at: datetime, variant: str, epoch: str, rollup: Rollup, calibration: Calibration | None) -> Point | None:
    interval = interval_of(rollup)
    if interval is None or rollup.mean is None:
        return None
    corrected = correct(rollup, calibration)
    return Point(at, variant, epoch, rollup.n_scored, rollup.mean, interval.low, interval.high, corrected)


def _lines(points: list[Point]) -> dict[tuple[str, str], list[Point]]:
    lines: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        lines.setdefault((point.variant, point.epoch), []).append(point)
    return lines


def draw_png(points: list[Point], title: str, path: Path) -> None:
    """Write the plot as a PNG: a line and a band for each variant and epoch, dashed where raw.

    A vertical mark stands where a new epoch begins.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (variant, epoch), line in _lines(points).items():
        fixed = [(p.at, c.mean, c.low, c.high) for p in line if (c := p.corrected).mean is not None]
        raw = [(p.at, p.mean, p.low, p.high) for p in line]
        name = f"{variant} (epoch {epoch[:6]})"
        colour = _draw(axes, raw, f"{name}, raw", "--" if fixed else "-", 0.0 if fixed else 0.15)
        if fixed:
            _draw(axes, fixed, f"{name}, corrected", "-", 0.15, colour)
    _mark(axes, points)
    axes.set_ylim(-0.02, 1.02)
    axes.set_title(_title(points, title))
    axes.legend(loc="best", frameon=False)
    axes.grid(visible=True, alpha=0.3)
    figure.autofmt_xdate()
    figure.savefig(path, dpi=120)


def _mark(axes: Any, points: list[Point]) -> None:
    """A vertical line where each epoch begins that is not a variant's first."""
    for at, _, epoch in breaks_of(points):
        axes.axvline(at, color="0.4", linestyle=":", linewidth=1)
        axes.annotate(f"epoch {epoch[:6]}", (at, 0.0), rotation=90, va="bottom", ha="right", fontsize=7, color="0.4")


def _draw(
    axes: Any, line: list[tuple[Any, ...]], label: str, style: str, alpha: float, colour: str | None = None
) -> str:
    """Draw (time, mean, low, high) as a line with a band; returns its colour."""
    times, means, lows, highs = zip(*line, strict=True)
    (drawn,) = axes.plot(times, means, style, marker=".", label=label, color=colour)
    found: str = drawn.get_color()
    if alpha:
        axes.fill_between(times, lows, highs, alpha=alpha, color=found)
    return found


def _title(points: list[Point], title: str) -> str:
    corrected = any(p.corrected.mean is not None for p in points)
    return f"{title}: mean with 95 % interval, " + ("raw and corrected for the judge's error" if corrected else "raw")


def draw_terminal(points: list[Point], title: str) -> None:
    """Print the plot as a table: for each variant and bucket a mean as a dot on its interval, raw, then corrected."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    wide = max(_LEAST_GAUGE, min(GAUGE, console.width - _BESIDE))
    table = Table(
        title=_title(points, title), title_justify="left", header_style="bold", box=None, padding=(0, 1, 0, 0)
    )
    for column in ("time (UTC)", "variant", "epoch", "n", "", "mean", "0" + " " * (wide - 2) + "1"):
        table.add_column(column, justify="right" if column in {"n", "mean"} else "left", no_wrap=True)
    for (variant, epoch), line in _lines(points).items():
        for p in line:
            at, c = p.at.strftime("%m-%d %H:%M"), p.corrected
            gauge = _gauge(p.low, p.mean, p.high, wide, "●")
            table.add_row(at, variant, epoch[:6], str(p.n), "raw", f"{p.mean:.3f}", gauge)
            if c.mean is not None and c.low is not None and c.high is not None:
                table.add_row("", "", "", "", "corr", f"{c.mean:.3f}", _gauge(c.low, c.mean, c.high, wide, "◆"))
        table.add_section()
    console.print(table)
    for begun, variant, epoch in breaks_of(points):
        told = f"{begun:%m-%d %H:%M} {variant}: epoch {epoch[:6]} begins (scorecard, judge or sampling changed)"
        console.print(f"{told}; values before and after cannot be compared.", soft_wrap=True, highlight=False)
    if reasons := dict.fromkeys(p.corrected.reason for p in points if p.corrected.reason):
        console.print(f"Not corrected for the judge's error: {'; '.join(reasons)}.", soft_wrap=True, highlight=False)


def _gauge(low: float, mean: float, high: float, wide: int, dot: str) -> str:
    cells = ["·"] * wide
    first, at, last = (round(x * (wide - 1)) for x in (low, mean, high))
    cells[first : last + 1] = ["─"] * (last - first + 1)
    cells[at] = dot
    return "".join(cells)
