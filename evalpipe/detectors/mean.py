"""The mean of a criterion crosses a line: what ``mean:`` in an alert rule stands for."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar

from pydantic import Field

from evalpipe.detectors.base import DetectorParams, Finding, Input, Kind, State, detectors
from evalpipe.detectors.line import Line
from evalpipe.detectors.view import View, numbers_of
from evalpipe.scorecard.values import Window, format_duration


class MeanParams(DetectorParams):
    """Parameters of ``mean``."""

    criterion: str = Field(description="Whose scores.")
    below: float | None = Field(default=None, ge=0, le=1, description="True while the windowed mean is below this.")
    above: float | None = Field(default=None, ge=0, le=1, description="True while the windowed mean is above this.")
    window: Window = Field(default=timedelta(minutes=10), description="The mean is taken over this long; from 1m.")
    min_sample: int = Field(default=30, ge=1, description="With fewer scores in the window there is no mean.")


@detectors.register("mean")
class Mean:
    """The mean of a criterion over a window is below, or above, a line. A line has no false-alarm rate of its own.

    The mean is weighted by 1 / inclusion probability, and of the newest epoch in the window.
    """

    Params: ClassVar[type[DetectorParams]] = MeanParams
    version: ClassVar[str] = "1"
    kind: ClassVar[Kind] = "quality"
    inputs: ClassVar[frozenset[Input]] = frozenset({"scores"})

    def __init__(self, params: MeanParams) -> None:
        self._params = params
        self._line = Line("mean", params.below, params.above)

    @property
    def criteria(self) -> tuple[str, ...]:
        """The one."""
        return (self._params.criterion,)

    def look(self, view: View, state: State) -> tuple[State, Finding]:
        """Compare the mean of the window that ends now."""
        params = self._params
        seen = view.scores(params.criterion, view.at - params.window, view.at)
        value, n = (seen.rollup.mean, seen.rollup.n_scored) if seen is not None else (None, 0)
        what = f"mean of {params.criterion} over {format_duration(params.window)}"
        if value is None or n < params.min_sample:
            reason = f"{what} has {n} scores of at least {params.min_sample} needed (min_sample)"
            return state, Finding(None, value, n, reason, threshold=self._line.at)
        numbers: dict[str, Any] = numbers_of(seen.rollup) if seen is not None else {}
        numbers |= {"window_s": params.window.total_seconds(), "worst": "lowest" if params.above is None else "highest"}
        return state, self._line.finding(value, n, f"{what} is {value:.3f} of {n} scores", numbers)
