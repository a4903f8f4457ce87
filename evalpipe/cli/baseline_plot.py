"""A calibration as a picture: how long each drop takes to be found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evalpipe.errors import ConfigError
from evalpipe.pipeline.baseline_view import Calibrated


def draw_png(name: str, found: Sequence[Calibrated], path: Path) -> None:
    """Draw the delays of all criteria over the drop.

    Raises:
        ConfigError: no criterion has enough scores.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    shown = [one for one in found if one.outlook is not None]
    if not shown:
        raise ConfigError(f"baseline {name!r}: no criterion has enough scores, so there is nothing to draw")
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for one in shown:
        assert one.outlook is not None
        points = [(d.drop * 100.0, d.hours) for d in one.outlook.tried if d.hours is not None]
        label = f"{one.criterion} (mean {one.outlook.mean:.2f}, {one.per_day:,.0f} scores a day)"
        axes.plot([x for x, _ in points], [y for _, y in points], "o-", label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([2, 5, 10, 20, 50], ["2 %", "5 %", "10 %", "20 %", "50 %"])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("drop of the mean")
    axes.set_ylabel("hours until it is found, on the average")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(frameon=False)
    axes.set_title(f"What rules on baseline {name} will see")
    figure.savefig(path, dpi=120)
