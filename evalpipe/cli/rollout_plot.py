"""A rollout's gates as a picture: intervals against their margins, and evidence against what is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from evalpipe.errors import ConfigError

HARM, SAFE, PLAIN = "#b3261e", "#1c7a3e", "#1f5fbf"
WIDEST: Final = 2.5
"""Margins that the scale shows to each side, unless an estimate is farther out."""


def draw_png(found: Mapping[str, Any], path: Path) -> None:
    """Draw a rollout, as ``pipeline.rollout_view.view`` gives it.

    Raises:
        ConfigError: no evidence has arrived yet.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    gates = found["gates"]
    if not gates:
        raise ConfigError(f"rollout {found['rollout_id']!r} has no evidence yet, so there is nothing to draw")
    figure = Figure(figsize=(11, 1.6 + 0.55 * len(gates)), layout="constrained")
    intervals, evidence = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    widest = max([WIDEST, *(1.3 * abs((gate["estimate"] or 0.0) / gate["margin"]) for gate in gates)])
    for row, gate in enumerate(reversed(gates)):
        _interval(intervals, row, gate, widest)
        _evidence(evidence, row, gate)
    intervals.set_yticks(range(len(gates)), [gate["gate"] for gate in reversed(gates)])
    intervals.axvline(0, color="0.6", linewidth=1)
    intervals.set_xlim(-widest, widest)
    intervals.set_xlabel("change of the canary, in margins (1 is the change not tolerated)")
    evidence.axvline(1, color=HARM, linewidth=1)
    evidence.set_xlim(0, 1.1)
    evidence.set_xlabel("evidence, on its way to proof (logarithmic)")
    evidence.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    figure.suptitle(f"{found['rollout_id']}: {found['canary']} against {found['baseline']}, {found['phase']}")
    figure.savefig(path, dpi=120)


def _interval(axes: Any, row: int, gate: Mapping[str, Any], widest: float) -> None:
    scale = abs(gate["margin"])
    low, high = gate["interval"]["low"], gate["interval"]["high"]
    start = -widest if low is None else low / scale
    end = widest if high is None else high / scale
    if low is not None or high is not None:
        axes.plot([start, end], [row, row], color=PLAIN, linewidth=2.5, solid_capstyle="butt")
    if gate["estimate"] is not None:
        axes.plot([gate["estimate"] / scale], [row], "o", color=PLAIN)
    edge = math.copysign(1.0, gate["margin"])
    axes.plot([edge, edge], [row - 0.35, row + 0.35], color=HARM, linewidth=2)


def _evidence(axes: Any, row: int, gate: Mapping[str, Any]) -> None:
    for name, needed, offset, color, label in (
        ("max_e_value", "threshold", 0.17, HARM, "harm"),
        ("max_safe_e_value", "safe_threshold", -0.17, SAFE, "no harm"),
    ):
        share = progress(gate[name], gate[needed])
        axes.barh(row + offset, share, 0.3, color=color, label=label if row == 0 else None)


def progress(value: float | None, threshold: float | None) -> float:
    """How far evidence is on its way to the threshold, in [0, 1.1], by its logarithm."""
    if not value or not threshold or threshold <= 1.0:
        return 0.0
    return min(1.1, max(0.0, math.log(max(value, 1.0)) / math.log(threshold)))
