"""Latency, time to first token, or time per token: have the slowest calls become slower?"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from math import sqrt
from typing import Any, ClassVar, Final, Literal, NamedTuple

from pydantic import Field

from evalpipe.detectors.base import DetectorParams, Finding, Input, Kind, RatedParams, State, detectors
from evalpipe.detectors.view import View
from evalpipe.scorecard.values import Duration
from evalpipe.sketch import Sketch, bin_of
from evalpipe.stats.change import Bet, Limits, Run, fold, settle, share_bets, share_limits

MINUTE: Final = timedelta(minutes=1)
SETTLED: Final = timedelta(seconds=10)
"""A minute's calls are known so long after it."""
CATCH_UP: Final = 10
"""Minutes that one look folds at the most; after a longer pause the test goes on with the newest."""
REFRESH: Final = timedelta(hours=1)
"""How often the past is read anew."""
DECIDED: Final = 1_000
PATIENCE: Final = timedelta(minutes=10)
"""A SEV4 is told when so many calls of the change are known, or after so long: till then it may show to be a SEV3."""
WINDOWS: Final = (timedelta(minutes=5), timedelta(minutes=30), timedelta(hours=2))
DOUBLED: Final = 2.0
"""From here on it is a SEV3, if not by more than the standard error of the quantile of now below that."""
ENOUGH: Final = 500
"""Calls for a quantile of now: the shortest of the windows with as many is taken, or the longest. None reaches back
before the change: a few minutes of it would be lost among the minutes before."""


class LatencyParams(RatedParams):
    """What a rule's author writes."""

    measure: Literal["latency", "ttft", "tpot"] = Field(
        default="latency",
        description="`latency` of the whole call, `ttft` (to the first token) or `tpot` (each further).",
    )
    quantile: float = Field(default=0.99, ge=0.5, le=0.999, description="Which quantile: 0.99 is the p99.")
    times: float = Field(default=1.2, gt=1.0, le=100, description="So many times the usual quantile is too slow.")
    trailing: Duration = Field(
        default=timedelta(days=1), description="Where the rule has no `normal`: this long, up to an hour ago, is usual."
    )
    min_calls: int = Field(default=5_000, ge=500, description="Calls that the usual quantile must be taken of.")
    design_effect: float = Field(
        default=2.0,
        ge=1.0,
        le=100,
        description="How many slow calls come together where nothing is wrong (a slow second of the provider). The "
        "test takes calls to be independent but for this.",
    )


class Norm(NamedTuple):
    """What is usual: the quantile in ms, its bin, the share of calls above that, how many calls, calls a second."""

    value: float
    bin: int
    above: float
    calls: int
    rate: float
    words: str


@detectors.register("latency")
class Latency:
    """Calls above the usual quantile are counted, and tested sequentially; and the quantile itself must have risen.

    The share of calls above the usual quantile is what ``evalpipe.stats.change`` is given: by it false alarms come as
    rarely as asked for, however often one looks and whatever the distribution. It holds where calls are independent
    given the past, but for clusters of ``design_effect``.
    """

    Params: ClassVar[type[DetectorParams]] = LatencyParams
    version: ClassVar[str] = "1"
    kind: ClassVar[Kind] = "latency"
    inputs: ClassVar[frozenset[Input]] = frozenset({"calls"})

    def __init__(self, params: LatencyParams) -> None:
        self._params = params

    @property
    def criteria(self) -> tuple[str, ...]:
        """None: it reads the meter."""
        return ()

    def look(self, view: View, state: State) -> tuple[State, Finding]:
        """Fold the minutes that are over since the last look; once a minute at the most."""
        until = (view.at - SETTLED).replace(second=0, microsecond=0)
        last = datetime.fromisoformat(state["at"]) if state.get("at") else until - MINUTE
        if until <= last:
            return state, _again(state)
        since = max(last, until - CATCH_UP * MINUTE)
        norm, new = self._norm(view, state)
        new["at"] = until.isoformat()
        if norm is None:
            return _told(new, Finding(None, reason=f"too little is known of what is usual: {self._params.min_calls} "
                                      "calls with this measure are needed"))  # fmt: skip
        n, k = _above(view.calls(since, until).sketches[self._params.measure], norm.bin)
        bets = share_bets(self._limits(norm), "up")
        counts = [(1.0, float(k)), (0.0, float(n - k))]
        sums = fold(new.get("sums", ()), bets, counts, self._params.design_effect)
        threshold = max(100.0, self._params.false_alarm_every.total_seconds() * norm.rate)
        sums, changed = settle(sums, threshold, bool(new.get("changed")))
        new["sums"], new["changed"] = [float(f"{m:.9g}") for m in sums], changed
        if state.get("changed") and not changed:
            new["run"], new["began"] = [], until.isoformat()  # the next change begins by itself
        began = self._run(new, bets[1], counts, since, until)
        change = (changed, began if changed else None, bool(state.get("found", {}).get("violated")))
        return _told(new, self._finding(view, until, norm, change, sum(sums) / threshold))

    def _limits(self, norm: Norm) -> Limits:
        """The share of slow calls that is no change; slow calls that come together tell as much as one."""
        return share_limits(norm.above, int(norm.calls / self._params.design_effect), 0.0)

    def _run(
        self, new: dict[str, Any], bet: Bet, counts: list[tuple[float, float]], since: datetime, until: datetime
    ) -> datetime | None:
        """Since when calls have been slower, most likely; None if they are not now."""
        run = Run(*new.get("run", ())).after(bet, counts, self._params.design_effect)
        began = datetime.fromisoformat(new["began"]) if new.get("began") else since
        new["run"], new["began"] = list(run), (began if run.n else until).isoformat()
        return began if run.n else None

    def _finding(
        self, view: View, until: datetime, norm: Norm, change: tuple[bool, datetime | None, bool], evidence: float
    ) -> Finding:
        params = self._params
        changed, began, was = change
        sketch, window = Sketch(), WINDOWS[0]
        for longest in WINDOWS:
            window = longest if began is None else min(longest, until - began)
            sketch = view.calls(until - window, until).sketches[params.measure]
            if sketch.count >= ENOUGH or window < longest:
                break
        value = sketch.quantile(params.quantile)
        if value is None:
            return Finding(None, reason="no calls")
        ratio = value / norm.value
        name = f"p{params.quantile * 100:g}"
        minutes = int(window / MINUTE)
        reason = (
            f"{params.measure} {name} is {value:.0f} ms (over {minutes} min, {sketch.count} calls), {ratio:.2f} times "
            f"the usual {norm.value:.0f} ms ({norm.words}, {norm.calls} calls)"
        )
        numbers = {"measure": params.measure, "quantile": params.quantile, "usual_ms": norm.value,
                   "window_min": minutes, "evidence": evidence, "share_above": norm.above,
                   "as_usual_to": self._limits(norm).high, "usual_calls": norm.calls}  # fmt: skip
        error = sqrt(params.quantile * (1.0 - params.quantile) / sketch.count)
        most = sketch.quantile(min(1.0, params.quantile + error)) or value
        severity: Literal["SEV3", "SEV4"] = "SEV3" if most >= DOUBLED * norm.value else "SEV4"
        soon = not was and began is not None and until - began < PATIENCE and sketch.count < DECIDED
        # Chance moves the quantile of few calls: what fires does so until it is surely below.
        enough = (most if was else value) >= params.times * norm.value
        violated = changed and enough and not (soon and severity == "SEV4")
        return Finding(violated, value, sketch.count, reason, ratio=ratio, threshold=params.times * norm.value,
                       severity=severity if violated else None, numbers=numbers)  # fmt: skip

    def _norm(self, view: View, state: State) -> tuple[Norm | None, dict[str, Any]]:
        """What is usual, and the state to go on with: read anew every hour, and not while something is wrong."""
        kept = state.get("norm")
        fresh = kept and view.at - datetime.fromisoformat(state["read_at"]) < REFRESH
        if kept and (fresh or state.get("changed")):
            return Norm(*kept), dict(state)
        normal = view.normal(view.at - MINUTE, view.at)
        calls = normal.calls() if normal is not None else None
        words = normal.words if normal is not None else "the day before"
        if normal is None:
            end = view.at.replace(minute=0, second=0, microsecond=0) - REFRESH
            calls = view.calls(end - self._params.trailing, end)
        sketch = calls.sketches[self._params.measure] if calls is not None else Sketch()
        value = sketch.quantile(self._params.quantile)
        if calls is None or value is None or sketch.count < self._params.min_calls or calls.seconds <= 0 or value <= 0:
            return None, {**state, "norm": None}
        key = bin_of(value)
        n, k = _above(sketch, key)
        norm = Norm(value, key, k / n, n, n / calls.seconds, words)
        return norm, {**state, "norm": list(norm), "read_at": view.at.isoformat()}


def _above(sketch: Sketch, key: int) -> tuple[int, int]:
    """Calls, and those of them that took longer than what is in bin ``key``."""
    return sketch.count, sum(count for at, count in sketch.bins.items() if at > key)


def _told(state: Mapping[str, Any], finding: Finding) -> tuple[State, Finding]:
    kept = {"violated": finding.violated, "value": finding.value, "n": finding.n, "reason": finding.reason,
            "ratio": finding.ratio, "threshold": finding.threshold, "severity": finding.severity,
            "numbers": dict(finding.numbers)}  # fmt: skip
    return {**state, "found": kept}, finding


def _again(state: State) -> Finding:
    kept = state.get("found")
    return Finding(**kept) if kept else Finding(None, reason="the first minute is not over")
