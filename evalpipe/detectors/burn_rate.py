"""Burn rates of a pass-rate objective in pairs of windows: how fast the budget of failures is used up."""

from __future__ import annotations

from datetime import timedelta
from math import inf, log
from typing import ClassVar, Final

from pydantic import BaseModel, ConfigDict, Field

from evalpipe.detectors.base import DetectorParams, Finding, Input, Kind, RatedParams, State, detectors
from evalpipe.detectors.view import View
from evalpipe.errors import ConfigError
from evalpipe.rollup import Rollup, bin_of
from evalpipe.scorecard.values import Duration, Share, format_duration

HOUR: Final = timedelta(hours=1)
MINUTE: Final = timedelta(minutes=1)
_FAST: Final = (14.4, 0.5)
_SLOW: Final = (6.0, 0.25)
"""Burn rates of the usual pairs (2 % of a month's budget in an hour, 5 % in six), and the part of the greatest possible
burn rate that they are at the most: an objective of 90 % can burn ten times as fast, and no faster."""
STILL: Final = log(0.05)
"""What began is over when it may be chance after all (for ``coverage`` too); and it begins only where the failures of
the short window are not. At an objective that is just kept a burn rate near 1 comes and goes with each score."""


class Pair(BaseModel):
    """Two windows in which the budget must burn so fast."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    short: Duration = Field(description="Still burning: the alert ends soon after the trouble does.")
    long: Duration = Field(description="Enough of the budget is gone to matter.")
    burn: float = Field(gt=0, description="How many times as fast as the objective allows.")


class BurnRateParams(RatedParams):
    """What a rule's author writes."""

    criterion: str = Field(min_length=1, description="The criterion whose scores pass or fail.")
    objective: Share = Field(default=0.9, description="The share of scores that shall pass: `90%`.")
    pass_at: float = Field(default=0.5, gt=0, le=1, description="Scores from here on pass; to a fiftieth.")
    windows: tuple[Pair, ...] = Field(
        default=(),
        max_length=6,
        strict=False,
        description="Pairs `{short: 5m, long: 1h, burn: 5}`; any of them fires. By default 5m and 1h, and 30m and 6h, "
        "with burn rates that this objective can have.",
    )
    min_sample: int = Field(default=30, ge=1, description="With fewer scores in the long window there is no burn rate.")


@detectors.register("burn_rate")
class BurnRate:
    """Both windows of a pair burn too fast, and the failures of the long one are too many to be chance."""

    Params: ClassVar[type[DetectorParams]] = BurnRateParams
    version: ClassVar[str] = "1"
    kind: ClassVar[Kind] = "quality"
    inputs: ClassVar[frozenset[Input]] = frozenset({"scores"})

    def __init__(self, params: BurnRateParams) -> None:
        if params.objective >= 1.0:
            raise ConfigError("objective: 100% has no budget to burn; write less, for example 99%")
        self._params = params
        self._budget = 1.0 - params.objective
        most = 1.0 / self._budget
        pairs = params.windows or tuple(
            Pair(short=short, long=long, burn=min(usual, part * most))
            for (usual, part), short, long in ((_FAST, 5 * MINUTE, HOUR), (_SLOW, 30 * MINUTE, 6 * HOUR))
        )
        for pair in pairs:
            if pair.burn > most:
                raise ConfigError(
                    f"windows: a burn rate of {pair.burn:g} cannot be with an objective of {params.objective:.10g}: if "
                    f"all fail, it is {most:.4g}; write less than that"
                )
            if not MINUTE <= pair.short < pair.long:
                raise ConfigError(
                    f"windows: short ({format_duration(pair.short)}) must be at least 1m and less than long "
                    f"({format_duration(pair.long)})"
                )
        self._pairs = pairs

    @property
    def criteria(self) -> tuple[str, ...]:
        """The one."""
        return (self._params.criterion,)

    def look(self, view: View, state: State) -> tuple[State, Finding]:
        """Look at each pair; the worst is told."""
        held = frozenset(state.get("held", ()))
        found = [self._pair(view, pair, i in held) for i, pair in enumerate(self._pairs)]
        state = {"held": [i for i, one in enumerate(found) if one.violated]}
        return state, max(found, key=lambda f: (f.violated is not None, bool(f.violated), f.ratio or 0.0))

    def _pair(self, view: View, pair: Pair, held: bool) -> Finding:
        n, failed = self._tally(view, pair.long)
        if n < self._params.min_sample:
            return Finding(None, n=n, reason=f"{n} scores in {format_duration(pair.long)}; "
                           f"{self._params.min_sample} are needed")  # fmt: skip
        short = pair.short
        few, short_failed = self._tally(view, short)
        # With little traffic the short window is as long as it takes: a few scores are no rate.
        while few < min(self._params.min_sample, n) and short < pair.long:
            short = min(2 * short, pair.long)
            few, short_failed = self._tally(view, short)
        burn, now = failed / n / self._budget, short_failed / max(few, 1) / self._budget
        windows_a_period = self._params.false_alarm_every / pair.long
        allowed = -log(max(windows_a_period * len(self._pairs), 20.0))
        chance = log_tail(n, failed, self._budget)
        fast = burn >= pair.burn and now >= pair.burn
        sure = chance <= allowed and log_tail(few, short_failed, self._budget) <= STILL
        violated = fast and (chance <= STILL if held else sure)
        reason = (
            f"{self._params.criterion}: {failed} of {n} failed in {format_duration(pair.long)}, "
            f"{short_failed} of {few} in {format_duration(short)}; the budget of {self._budget:.3g} burns {burn:.3g} "
            f"and {now:.3g} times too fast (limit {pair.burn:.3g})"
        )
        numbers = {"objective": self._params.objective, "burn_long": burn, "burn_short": now, "limit": pair.burn,
                   "long_s": pair.long.total_seconds(), "short_s": short.total_seconds(), "failed": failed,
                   "log_p": max(chance, -1e6)}  # fmt: skip
        return Finding(violated, 1.0 - failed / n, n, reason, ratio=burn, threshold=1.0 - pair.burn * self._budget,
                       numbers=numbers)  # fmt: skip

    def _tally(self, view: View, window: timedelta) -> tuple[int, int]:
        stretch = view.scores(self._params.criterion, view.at - window, view.at)
        return (0, 0) if stretch is None else failures(stretch.rollup, self._params.pass_at)


def failures(rollup: Rollup, pass_at: float) -> tuple[int, int]:
    """Scores, and those below ``pass_at``."""
    first = bin_of(pass_at)
    return sum(rollup.bins.values()), sum(n for index, n in rollup.bins.items() if index < first)


def log_tail(n: int, k: int, share: float) -> float:
    """A bound (Chernoff's) of the logarithm of the chance of k or more of n with ``share`` each: -n KL(k/n, share)."""
    seen = k / n if n else 0.0
    if seen <= share:
        return 0.0
    if share <= 0.0:
        return -inf
    rest = (1.0 - seen) * log((1.0 - seen) / (1.0 - share)) if seen < 1.0 else 0.0
    return -n * (seen * log(seen / share) + rest)
