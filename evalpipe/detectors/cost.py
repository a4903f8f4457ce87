"""Money and tokens a minute against what is usual: finds an application that runs away within seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from math import inf, sqrt
from typing import Any, ClassVar, Final, Literal

from pydantic import Field

from evalpipe.detectors.base import DetectorParams, Finding, Input, Kind, RatedParams, State, detectors
from evalpipe.detectors.cost_slots import APART, SLOT, SPREADS, awake, between, floor, known, slots, spread
from evalpipe.detectors.cost_users import Norm, Runaway, runaway
from evalpipe.detectors.view import Calls, View
from evalpipe.errors import ConfigError
from evalpipe.scorecard.values import Duration, Share, format_duration
from evalpipe.stats.spending import SAFETY, Spread, fold

SHORTEST: Final = timedelta(minutes=10)
LONGEST: Final = timedelta(minutes=100)
SETTLED: Final = timedelta(seconds=10)
"""A slot's calls are known so long after it: hooks tell every three seconds."""
WINDOWS: Final = (timedelta(seconds=15), timedelta(minutes=1), timedelta(minutes=5))
"""The ratio is the greatest of these."""
USERS_APART: Final = timedelta(minutes=5)
"""What is usual of a user ends so long ago."""
FEWEST: Final = 5
"""Calls in a window that a ratio is taken of; of a single slot ``MANY``."""
MANY: Final = 30
LUMPS: Final = 10.0
"""As many calls of one size must stand behind what the newest ones cost."""
PATIENCE: Final = timedelta(seconds=1.5)
"""What does not look like a SEV2 yet may do so at the next look, about two seconds later."""
Severity = Literal["SEV1", "SEV2", "SEV3"]
_SEVERITIES: Final[tuple[tuple[float, Severity], ...]] = ((100.0, "SEV1"), (10.0, "SEV2"), (2.0, "SEV3"))
NEARLY: Final = 0.9
"""Of such a ratio, as nearly as it is known after some seconds."""
_SUMS: Final = {"usd": "cost_usd", "tokens": "tokens"}
_WORDS: Final = {"usd": "USD", "tokens": "tokens"}

Of = Literal["usd", "tokens"]


class CostParams(RatedParams):
    """What a rule's author writes."""

    measure: Literal["usd", "tokens", "both"] = Field(default="both", description="Money, tokens, or either of them.")
    rate: Literal["minute", "call"] = Field(
        default="minute",
        description="`minute`: what is spent a minute. `call`: what is spent a call, which does not rise with traffic.",
    )
    times: float = Field(default=3.0, ge=1.5, le=1000, description="So many times the usual is too much.")
    trailing: Duration = Field(
        default=timedelta(hours=1),
        description="What was spent over this long, up to five minutes ago, is usual: 10m to 2h.",
    )
    least_usd_per_minute: float = Field(
        default=0.05, gt=0, description="What is usual is taken for no less than this: a quiet night is no norm."
    )
    least_tokens_per_minute: float = Field(default=5_000.0, gt=0, description="The same for tokens.")
    users: bool = Field(default=True, description="Look for single users that run away, too.")
    user_share: Share = Field(
        default=0.1,
        description="A user's own past is taken for no less than this share of what the whole place usually spends.",
    )
    settle: Duration = Field(
        default=timedelta(minutes=10), description="A place has calls for so long before anything is usual there."
    )
    accept_after: Duration = Field(
        default=timedelta(days=1), description="What has been too much for so long is what is usual from then on."
    )


@dataclass(frozen=True, slots=True)
class Usual:
    """What is usual at a place.

    Attributes:
        a_minute: money or tokens.
        a_call: the same; 0 if unknown.
        lump: mean lump as a dollar sees it.
        calls: it is taken of.
        minutes: it is taken of.
        words: what it is, for people.
    """

    a_minute: float
    a_call: float
    lump: float
    calls: int
    minutes: float
    words: str


@detectors.register("cost")
class Cost:
    """A sequential test of what each five seconds cost, and the ratio of the last seconds and minutes to the usual."""

    Params: ClassVar[type[DetectorParams]] = CostParams
    version: ClassVar[str] = "1"
    kind: ClassVar[Kind] = "cost"
    inputs: ClassVar[frozenset[Input]] = frozenset({"calls", "users"})

    def __init__(self, params: CostParams) -> None:
        if not SHORTEST <= params.trailing <= LONGEST:
            raise ConfigError(
                f"trailing: {format_duration(params.trailing)} is not from 10m to 100m: the meter is kept by five "
                "seconds for two hours; to compare with longer ago, say 'normal: {seasonal: 4}'"
            )
        self._params = params
        self._measures: tuple[Of, ...] = ("usd", "tokens") if params.measure == "both" else (params.measure,)
        # As many tests share the rate: users have half of it.
        tests = len(self._measures) * (2 if params.users else 1)
        self._threshold = max(10.0, params.false_alarm_every / SLOT * tests)
        self._tolerated = float(params.times**0.6)

    @property
    def criteria(self) -> tuple[str, ...]:
        """None: it reads the meter."""
        return ()

    def look(self, view: View, state: State) -> tuple[State, Finding]:
        """Fold the slots that are over, look ahead at those that are not, and compare with the usual."""
        new = dict(state)
        now = view.at
        until = floor(now) - SETTLED
        began = known(state, "first", now)
        past = self._past(view, new)
        if began is None and past.n + view.calls(now - APART, now).n > 0:
            began = now
        new["first"] = began.isoformat() if began else ""
        closed = [view.calls(a, b) for a, b in slots(known(state, "at", now), until)]
        ahead = [view.calls(a, b) for a, b in between(until, now)]
        new["at"] = until.isoformat()
        if began is None or (not past.n and not state.get("bad")):
            return new, Finding(None, reason="no calls before now: nothing is usual here yet")
        early = now - began < self._params.settle or past.seconds < min(
            self._params.settle, self._params.trailing).total_seconds() / 2  # fmt: skip
        found = [self._measure(of, view, past, (closed, ahead), new) for of in self._measures]
        if early:
            new |= {of: {**new[of], "sums": []} for of in self._measures}
            return {**new, "bad": {}}, Finding(
                None, n=past.n, reason="too new: what is usual here is still being learnt"
            )
        if self._params.users:
            found += self._users(view, past, new)
        return new, max(found, key=lambda f: (bool(f.violated), f.ratio or 0.0))

    def _past(self, view: View, new: dict[str, Any]) -> Calls:
        """What was spent before, over the time in which hooks were not silent; that is looked at once a minute."""
        until = floor(view.at) - APART
        past = view.calls(until - self._params.trailing, until)
        minute = view.at.replace(second=0, microsecond=0).isoformat()
        if dict(new.get("awake") or {}).get("at") != minute:
            new["awake"] = {"at": minute, "share": awake(view, past, until)}
        share: float = new["awake"]["share"]
        return past if share == 1.0 else replace(past, seconds=past.seconds * share)

    def _measure(
        self, of: Of, view: View, past: Calls, calls: tuple[list[Calls], list[Calls]], new: dict[str, Any]
    ) -> Finding:
        own = dict(new.get(of) or {})
        closed, ahead = calls
        frozen = dict(new.get("bad") or {}).get(of)
        usual = self._usual(of, view, past, frozen)
        spreads = [Spread(*own.get(name, ())) for name in SPREADS]
        unit = SAFETY * max(usual.lump, *(spread.lump for spread in spreads[:2]), 1e-12)
        sums = own.get("sums", [])
        for slot in closed:
            sums = self._fold(of, sums, slot, usual, unit)
        future = sums
        highest: float = sum(sums)
        for slot in ahead:
            # A slot only grows: what is enough before it is over would be enough after it.
            future = self._fold(of, future, slot, usual, unit)
            highest = max(highest, sum(future))
        was = frozen is not None and frozen["active"]
        # How bad it is shows within a minute; later what is worse by chance for some seconds does not raise it.
        calm = was and view.at - datetime.fromisoformat(dict(frozen or {})["since"]) > WINDOWS[1]
        ratio, rate, window, n = self._ratio(of, view, usual, ahead, calm=calm)
        severity = severity_of(ratio / NEARLY if not calm else self._least(of, view, usual)) or "SEV3"
        violated = ratio >= (self._tolerated if was else self._params.times) and (was or highest >= self._threshold)
        if not was:
            violated = self._stands(own, violated, ratio, view.at)
        if was and not violated:
            sums = []
            own["new"] = []
        elif frozen is None:
            own.update(spread(spreads, own, [slot.sums[_SUMS[of]] for slot in closed]))
        own["sums"] = [float(f"{m:.6g}") for m in sums]
        new[of] = own
        new["bad"] = self._bad(of, new.get("bad") or {}, violated, usual, view.at)
        return self._finding(of, view, usual, severity, (violated, ratio, rate, window, n, highest))

    def _stands(self, own: dict[str, Any], crossed: bool, ratio: float, now: datetime) -> bool:
        """Whether an alarm begins: how bad it is shows a moment after that it is bad, and people are told once."""
        since = known(own, "crossed", now)
        if not crossed or ratio >= NEARLY * _SEVERITIES[1][0]:
            own["crossed"] = ""
            return crossed
        own["crossed"] = (since or now).isoformat()
        return since is not None and now - since >= PATIENCE

    def _bad(self, of: Of, bad: Mapping[str, Any], violated: bool, usual: Usual, now: datetime) -> dict[str, Any]:
        """What was usual when too much began to be spent; it stays the norm while that lasts, and a while after."""
        left = {name: kept for name, kept in bad.items() if name != of}
        kept = bad.get(of)
        if violated and kept is None:
            return {**left, of: {"a_minute": usual.a_minute, "a_call": usual.a_call, "lump": usual.lump,
                                 "minutes": usual.minutes, "since": now.isoformat(), "last": now.isoformat(),
                                 "active": True}}  # fmt: skip
        if kept is None:
            return left
        if violated:
            accepted = now - datetime.fromisoformat(kept["since"]) >= self._params.accept_after
            return left if accepted else {**left, of: {**kept, "last": now.isoformat(), "active": True}}
        over = now - datetime.fromisoformat(kept["last"]) >= self._params.trailing + APART
        return left if over else {**left, of: {**kept, "active": False}}

    def _usual(self, of: Of, view: View, past: Calls, frozen: Mapping[str, Any] | None) -> Usual:
        least = self._params.least_usd_per_minute if of == "usd" else self._params.least_tokens_per_minute
        rate = past.per_minute(_SUMS[of]) or 0.0
        spent = past.sums[_SUMS[of]]
        each = spent / past.n if past.n else 0.0
        lump = spent / _worth(past) if _worth(past) < inf else each
        words = f"over {_words(timedelta(seconds=past.seconds))} before"
        if frozen is not None:
            rate, each, lump, words = frozen["a_minute"], frozen["a_call"], frozen["lump"], "before it began"
        elif (normal := view.normal(view.at - WINDOWS[-1], view.at)) and (calls := normal.calls()) is not None:
            other = calls.per_minute(_SUMS[of]) or 0.0
            if other > rate:
                rate, each, words = other, max(each, calls.sums[_SUMS[of]] / max(1, calls.n)), normal.words
        if rate < least:
            rate, words = least, "taken for the least that counts"
        minutes = frozen["minutes"] if frozen is not None else past.seconds / 60.0
        return Usual(rate, each, lump, past.n, max(minutes, 1.0), words)

    def _expected(self, slot: Calls, usual: Usual, unit: float) -> float:
        """What a slot may cost, with what is tolerated and what is not known of the usual."""
        tolerated = self._tolerated
        if self._params.rate == "call":
            return tolerated * slot.n * usual.a_call
        unsure = 2.0 * sqrt(usual.a_minute * unit / usual.minutes)
        return tolerated * (usual.a_minute + unsure) * SLOT.total_seconds() / 60.0

    def _fold(self, of: Of, sums: list[float], slot: Calls, usual: Usual, unit: float) -> list[float]:
        spent = slot.sums[_SUMS[of]]
        return fold(sums, spent, _worth(slot), self._expected(slot, usual, unit), unit, self._threshold)

    def _ratio(
        self, of: Of, view: View, usual: Usual, ahead: Sequence[Calls], *, calm: bool
    ) -> tuple[float, float, timedelta, int]:
        best: tuple[float, float, timedelta, int] = (0.0, 0.0, WINDOWS[0], 0)
        over = floor(view.at) - SETTLED
        # The slots that are over, though hooks may not have told all of the last, then longer stretches.
        ends = () if calm else ((over + SLOT, SLOT), (over + SETTLED, SLOT), (view.at, WINDOWS[0]))
        for end, window in (*ends, *((over, window) for window in WINDOWS[1:])):
            calls = view.calls(end - window, end)
            if calls.n >= (MANY if window == SLOT else FEWEST):
                rate, ratio = self._rate(of, calls, window, usual)
                best = max(best, (ratio, rate, window, calls.n), key=lambda found: found[0])
        return best if calm else max(best, self._dearer(of, view, usual, ahead), key=lambda found: found[0])

    def _rate(self, of: Of, calls: Calls, window: timedelta, usual: Usual) -> tuple[float, float]:
        """What they cost a minute or a call, and how many times the usual that is."""
        spent = calls.sums[_SUMS[of]]
        if self._params.rate == "call":
            return spent / calls.n, spent / calls.n / usual.a_call if usual.a_call else 0.0
        rate = spent / (window / timedelta(minutes=1))
        return rate, rate / usual.a_minute

    def _least(self, of: Of, view: View, usual: Usual) -> float:
        """The ratio that is sure, two standard errors below the measured one: chance does not raise a severity."""
        over, sure = floor(view.at) - SETTLED, 0.0
        for window in WINDOWS[1:]:
            calls = view.calls(over - window, over)
            if calls.n >= FEWEST:
                error = 1.0 / sqrt(min(_worth(calls), calls.n))
                sure = max(sure, self._rate(of, calls, window, usual)[1] * (1.0 - 2.0 * error))
        return sure

    def _dearer(self, of: Of, view: View, usual: Usual, ahead: Sequence[Calls]) -> tuple[float, float, timedelta, int]:
        """What the newest calls cost each, at the pace of the last minute: known though hooks have not told of all."""
        best = (0.0, 0.0, SLOT, 0)
        over = floor(view.at) - SETTLED
        pace = view.calls(over - timedelta(minutes=1), over).n
        for slot in ahead:
            spent, squares = slot.sums[_SUMS[of]], slot.sums["cost_squares"]
            many = of == "usd" and slot.n >= MANY and spent * spent >= LUMPS * squares > 0.0
            if many and self._params.rate == "minute":
                rate = spent / slot.n * pace
                best = max(best, (rate / usual.a_minute, rate, SLOT, slot.n))
        return best

    def _finding(
        self,
        of: Of,
        view: View,
        usual: Usual,
        severity: Severity,
        seen: tuple[bool, float, float, timedelta, int, float],
    ) -> Finding:
        violated, ratio, rate, window, n, evidence = seen
        per = self._params.rate
        norm = usual.a_minute if per == "minute" else usual.a_call
        where = view.place.feature or view.place.service
        reason = (
            f"{where} spends {rate:.4g} {_WORDS[of]} a {per} (over {_words(window)}), {ratio:.3g} times the usual "
            f"{norm:.4g} ({usual.words})"
        )
        numbers = {"measure": of, "per": per, "rate": rate, "usual": norm, "window_s": window.total_seconds(),
                   "feature": view.place.feature, "evidence": min(evidence, self._threshold * 2),
                   "needed": self._threshold, "usual_calls": usual.calls}  # fmt: skip
        return Finding(
            violated, rate, n, reason, ratio=ratio, threshold=self._params.times * norm,
            severity=severity if violated else None, numbers=numbers,
        )  # fmt: skip

    def _users(self, view: View, past: Calls, new: dict[str, Any]) -> list[Finding]:
        """Once a minute."""
        minute = view.at.replace(second=0, microsecond=0)
        kept = new.get("users") or {}
        if kept.get("at") != minute.isoformat():
            looked = [self._heaviest(of, view, past, minute, new.get(of) or {}) for of in self._measures]
            found = [one for one in looked if one is not None]
            worst = max(found, key=lambda one: one.ratio, default=None)
            new["users"] = {"at": minute.isoformat(), "worst": worst.to_state() if worst else None}
        worst_now = new["users"]["worst"]
        worst = Runaway(**worst_now) if worst_now else None
        return [worst.finding(view.place, severity_of(worst.ratio / NEARLY))] if worst else []

    def _heaviest(self, of: Of, view: View, past: Calls, minute: datetime, own: Mapping[str, Any]) -> Runaway | None:
        usual = self._usual(of, view, past, None)
        params = self._params
        before = view.users(minute - params.trailing, minute - USERS_APART)
        norm = Norm(
            column="cost_usd" if of == "usd" else "tokens",
            unit=_WORDS[of],
            before={spender.user: spender for spender in before},
            minutes=(params.trailing - USERS_APART) / timedelta(minutes=1),
            least=usual.a_minute * params.user_share,
            lump=max(usual.lump, *(Spread(*own.get(name, ())).lump for name in SPREADS)),
            times=params.times,
            tolerated=self._tolerated,
            per_minute=timedelta(minutes=1) / params.false_alarm_every / (2 * len(self._measures)),
        )
        return runaway(view, minute, norm)


def _worth(calls: Calls) -> float:
    """How many equal calls they are worth, by what each cost; infinite if unknown.

    Of tokens too: dear calls are long ones, and nobody keeps the squares of tokens.
    """
    spent, squares = calls.sums["cost_usd"], calls.sums["cost_squares"]
    known = spent > 0.0 and squares > 0.0 and not calls.sums["unpriced"]
    return spent * spent / squares if known else inf


def severity_of(ratio: float) -> Severity | None:
    """The severity of spending so many times the usual."""
    return next((severity for least, severity in _SEVERITIES if ratio >= least), None)


def _words(length: timedelta) -> str:
    return format_duration(timedelta(seconds=round(length.total_seconds())))
