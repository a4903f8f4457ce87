"""A value of the meter crosses a line: what ``meter:`` in an alert rule stands for."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import ClassVar

from pydantic import Field

from evalpipe.detectors.base import DetectorParams, Finding, Input, Kind, State, detectors
from evalpipe.detectors.line import Line
from evalpipe.detectors.view import View
from evalpipe.scorecard.alert_rule import Metered
from evalpipe.scorecard.values import Window, format_duration


class MeterParams(DetectorParams):
    """Parameters of ``meter``."""

    meter: Metered = Field(description="What is watched on 100 % of the calls.")
    below: float | None = Field(default=None, description="True while the value is below this.")
    above: float | None = Field(default=None, description="True while the value is above this.")
    window: Window = Field(default=timedelta(minutes=10), description="The value is taken over this long; from 1m.")
    min_sample: int = Field(default=30, ge=1, description="With fewer calls in the window there is no value.")


@detectors.register("meter")
class Meter:
    """A value of the meter over a window is below, or above, a line. A line has no false-alarm rate of its own."""

    Params: ClassVar[type[DetectorParams]] = MeterParams
    version: ClassVar[str] = "1"
    kind: ClassVar[Kind] = "meter"
    inputs: ClassVar[frozenset[Input]] = frozenset({"calls"})

    def __init__(self, params: MeterParams) -> None:
        self._params = params
        self._line = Line("meter", params.below, params.above)

    @property
    def criteria(self) -> tuple[str, ...]:
        """None: it reads no scores."""
        return ()

    def look(self, view: View, state: State) -> tuple[State, Finding]:
        """Compare the value of the window that ends now."""
        params = self._params
        calls = view.calls(view.at - params.window, view.at)
        # A rate is of the whole window, also where the service is younger: its first second says little of a minute.
        calls = replace(calls, seconds=max(calls.seconds, params.window.total_seconds()))
        value, n = calls.value(params.meter), calls.size(params.meter)
        what = f"{params.meter} over {format_duration(params.window)}"
        if value is None or n < params.min_sample:
            reason = f"{what} has {n} calls of at least {params.min_sample} needed (min_sample)"
            return state, Finding(None, value, n, reason, threshold=self._line.at)
        numbers = {
            "window_s": params.window.total_seconds(),
            **{name: amount for name, amount in calls.sums.items() if amount},
        }
        return state, self._line.finding(value, n, f"{what} is {value:.4g} of {n} calls", numbers)
