"""Which calls are captured, and with what probability: that is what makes estimates from them right.

A call lies at a fixed position, a hash of its trace id (or session id; in the arms of a rollout, of its unit), and is
captured at rate r if the position is below r: every process says the same, and a smaller sample lies inside a larger
one. Rates may differ by feature, release and segment, follow the traffic (floors), come from the control plane
(``override``) and be raised to one when a call ends (always-keep rules). Each time the rate in force for *such a call*
is its inclusion probability; so it must never depend on which calls were captured, only on what can be seen of every
call.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import exp
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from evalpipe.hook.rates import DEFAULT_RATE, SHADOWED, Keep, Rate, Sampling

if TYPE_CHECKING:
    from evalpipe.hook.call import Call
    from evalpipe.release import Release

__all__ = ("DEFAULT_RATE", "SPAN", "Keep", "Rate", "Sampler", "Sampling", "position")

SPAN: Final = 1 << 32
"""Positions are integers in [0, SPAN)."""
MAX_CELLS: Final = 1024
"""Combinations of release object, feature and segment that are remembered; then they are worked out anew."""
MAX_STRATA: Final = 1024
"""Combinations of feature and segment that have a floor of their own; further ones share one."""
ADAPT_S: Final = 5.0
"""Floors follow the traffic at this pace."""
MEMORY_S: Final = 60.0
"""Traffic is averaged over about this long."""

# Knuth's multiplicative hash spreads what CRC, which is linear, leaves regular in counted-up ids.
_MIX: Final = 2654435761


def position(trace_id: str) -> int:
    """Where the trace lies in [0, 2**32): it is captured at rate r if ``position < r * 2**32``.

    The positions of a 1 % sample lie inside those of a 5 % sample. In any language: CRC-32 of the id's UTF-8 bytes,
    times 2654435761, modulo 2**32.
    """
    return crc32(trace_id.encode("utf-8", "surrogatepass")) * _MIX & 0xFFFFFFFF


class _Traffic:
    """Calls a minute, averaged over about ``MEMORY_S``, and the threshold that a floor makes of it."""

    __slots__ = ("_known", "_mean", "calls", "needed")

    def __init__(self) -> None:
        self.calls = self.needed = 0
        self._mean = self._known = 0.0

    def per_minute(self, seconds: float) -> tuple[float, float]:
        """The average, and that of the last ``seconds`` alone; begins a new interval."""
        calls, self.calls = self.calls, 0
        now, share = calls * 60.0 / seconds, 1.0 - exp(-seconds / MEMORY_S)
        self._mean += share * (now - self._mean)
        self._known += share * (1.0 - self._known)
        return self._mean / self._known, now


class _Cell:
    """What a call of one release, feature and segment is decided by."""

    __slots__ = ("base", "by_unit", "feature", "reason", "release", "segment", "threshold", "traffic")

    def __init__(self, release: Release, feature: str, segment: str, base: int, reason: str, traffic: _Traffic) -> None:
        self.release = release  # its id is the cell's key, and must not go to another
        self.feature = feature
        self.segment = segment
        self.base = base
        # One score of each unit enters a rollout. Were traces drawn, it would be the first of a canary that is captured
        # whole, and any one of the baseline: later turns of a conversation differ from its first. Pairs share a trace.
        self.by_unit = reason.startswith("rollout:") and not reason.endswith(SHADOWED)
        self.reason = reason
        self.traffic = traffic
        self.adapt()

    def adapt(self) -> None:
        """Raise the rate to what the floor needs; one that stands for 'none', or for arms of equal size, is fixed."""
        fixed = self.base == 0 or self.reason.startswith("rollout:")
        self.threshold = self.base if fixed else max(self.base, self.traffic.needed)


class Sampler:
    """Decides. Made once; used by all threads without a lock (a count that a race loses moves a floor by a hair).

    Attributes:
        tail: whether there are always-keep rules, so that any call may be kept when it ends.
        keeps_feedback: whether one may be kept even later, by feedback.
    """

    __slots__ = (
        "_by_session",
        "_cells",
        "_keep",
        "_keep_threshold",
        "_kept",
        "_last",
        "_overrides",
        "_plan",
        "_strata",
        "_waited_s",
        "keeps_feedback",
        "tail",
    )

    def __init__(self, sampling: Sampling | float | Mapping[str, float]) -> None:
        self._plan = sampling if isinstance(sampling, Sampling) else Sampling.of(sampling)
        self._by_session = self._plan.by == "session"
        self._keep = self._plan.keep
        self.tail = self._keep is not None
        self.keeps_feedback = self._keep is not None and self._keep.feedback
        self._keep_threshold = SPAN
        self._kept = _Traffic()
        self._overrides: tuple[tuple[Rate, str], ...] = ()
        self._cells: dict[tuple[int, str, str], _Cell] = {}
        nobody: Any = object()
        self._last: tuple[dict[tuple[int, str, str], _Cell], _Cell] = {}, _Cell(nobody, "", "", 0, "", _Traffic())
        self._strata: dict[tuple[str, str], _Traffic] = {}
        self._waited_s = 0.0

    def decide(self, call: Call) -> None:
        """Say of a call that begins whether it is sampled, and with what probability."""
        cells, cell = self._last
        # Calls in a row are mostly of one cell.
        if (
            cell.release is not call.release
            or cell.feature != call.feature
            or cell.segment != call.segment
            or cells is not self._cells
        ):
            cells = self._cells
            try:
                cell = cells[id(call.release), call.feature, call.segment]
            except KeyError:
                cell = self._cell(call.release, call.feature, call.segment)
            self._last = cells, cell
        cell.traffic.calls += 1
        threshold = cell.threshold
        if cell.by_unit:
            key = _unit(call)
        elif self._by_session:
            key = call.session_id or call.trace_id
        else:
            key = call.trace_id
        # As position() does; written out because this is most of what a call that is not sampled costs.
        try:
            data = key.encode()
        except UnicodeEncodeError:
            data = key.encode("utf-8", "surrogatepass")
        if crc32(data) * _MIX & 0xFFFFFFFF < threshold:
            call.sampled = call.capturing = True
            call.probability = threshold / SPAN
            call.stratum = call.segment
            call.reason = cell.reason
        elif self.tail:
            call.capturing = True

    def uncount(self, call: Call) -> None:
        """The call is none, but a context: floors follow the traffic of calls."""
        if cell := self._cells.get((id(call.release), call.feature, call.segment)):
            cell.traffic.calls -= 1

    def keep(self, call: Call, error: object, cost_usd: float | None, latency_ms: float | None = None) -> bool:
        """Whether a call that ends is captured. To be asked of every capturing call, sampled or not, if ``tail``.

        A call that satisfies a rule is kept wherever it lies: so its probability is 1 also where its rate had captured
        it already, and ``stratum`` names the rule in both cases; ``rate_probability`` is then what the rate alone gave.
        ``reason`` names the rule only where nothing else keeps the record. A rollout compares what the rates captured
        and must leave those out: at 5 % of a baseline and all of a canary they would add twenty times as many errors to
        the baseline's arm.
        """
        if self._keep is None or not (rule := self._keep.rule(call, error, cost_usd, latency_ms)):
            return call.sampled
        self._kept.calls += 1
        threshold = self._keep_threshold
        probability = threshold / SPAN
        if not call.sampled:
            if threshold < SPAN and self._position(call) >= threshold:
                return False
            call.sampled = True
            call.probability = probability
            call.reason = f"keep:{rule}"
        elif probability > call.probability:
            call.rate_probability, call.probability = call.probability, probability
        call.stratum = f"keep:{rule}"
        return True

    def override(self, rates: Iterable[tuple[str, str, str, float, str]]) -> None:
        """Put the control plane's rates before the application's own; replaces those given before.

        Args:
            rates: feature, variant, environment ("" fits all), rate and reason; the first that fits counts.
        """
        self._overrides = tuple(
            (Rate(min(max(float(rate), 0.0), 1.0), feature=feature, variant=variant, environment=environment), reason)
            for feature, variant, environment, rate, reason in rates
        )
        self._cells = {}

    def adapt(self, seconds: float) -> None:
        """Follow the traffic of the last ``seconds``. Called by the shipping thread, as often as it likes."""
        self._waited_s += seconds
        if self._waited_s < ADAPT_S:
            return
        waited_s, self._waited_s = self._waited_s, 0.0
        if self._keep is not None:
            # Up at once and down slowly: this protects the queue.
            most = max(self._kept.per_minute(waited_s))
            self._keep_threshold = _threshold(self._keep.per_minute / max(most, self._keep.per_minute))
        if floor := self._plan.floor_per_minute:
            for traffic in list(self._strata.values()):
                traffic.needed = _threshold(floor / max(traffic.per_minute(waited_s)[0], floor))
            for cell in list(self._cells.values()):
                cell.adapt()

    def _cell(self, release: Release, feature: str, segment: str) -> _Cell:
        """The cell of such calls, made when the first one comes."""
        cells = self._cells  # before the overrides are read: a cell of old ones must not reach a newer table
        stratum = (feature, segment)
        if stratum not in self._strata and len(self._strata) >= MAX_STRATA:
            stratum = ("", "")
        traffic = self._strata.setdefault(stratum, _Traffic())
        base, reason = self._plan.rate, "rate"
        for rate, why in (*self._overrides, *((r, "rate") for r in self._plan.rates)):
            if rate.fits(release, feature, segment):
                base, reason = rate.rate, why
                break
        if len(cells) >= MAX_CELLS:
            cells.clear()
        cell = cells[id(release), feature, segment] = _Cell(
            release, feature, segment, _threshold(base), reason, traffic
        )
        return cell

    def _position(self, call: Call) -> int:
        """The one by which ``decide`` went: samples must lie inside one another."""
        cell = self._cells.get((id(call.release), call.feature, call.segment))
        if cell is not None and cell.by_unit:
            return position(_unit(call))
        return position((call.session_id or call.trace_id) if self._by_session else call.trace_id)


def _unit(call: Call) -> str:
    """What a rollout assigns: the same as ``Record.unit`` says."""
    return str(call.unit or call.session_id or call.user_id or call.trace_id)


def _threshold(rate: float) -> int:
    return round(rate * SPAN)
