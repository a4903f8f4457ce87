"""Whether a judge can be asked: a circuit breaker for each judge, for the whole fleet. Pure: what happened goes in.

``closed`` (asked as usual), ``open`` (not asked until a stated time), ``half_open`` (a few probes pass) and ``stopped``
(its provider refuses us for want of a key, of credit or of the model, or a human stopped it).

What counts as a failure is a call without an answer: timeout, server, unreachable. Truncated, refused and malformed
answers are answers. Throttled calls are the business of the concurrency limit, which backs off: they count as failures
only where that does not help, that is where they are more than half of all calls for two windows in a row, or where
nothing else came for ``STARVED``.

A request that the provider refuses for itself (``request``) says nothing about the judge while others are answered:
it is a failure only in a row without any answer. The same holds for HTTP 403 (``forbidden``), which a gateway may give
to one record and a provider to a key: where the judge has answered nothing for ``ANSWERING``, it stops the judge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, Literal

from evalpipe.judges.desk import REJECTIONS, Call

State = Literal["closed", "open", "half_open", "stopped"]

WINDOW: Final = timedelta(minutes=5)
"""Of calls that are looked at; what was before the breaker closed last does not count."""
LEAST: Final = 20
"""Calls in a window, below which its share says nothing."""
LEAST_FAILED: Final = 5
"""Failures in a window, below which they may be chance."""
OPENS: Final = 0.10
OPENS_IF_AGAIN: Final = 0.05
"""Share of failures that opens: in one window, and in two in a row."""
IN_A_ROW: Final = 8
"""Failures without an answer between them: the endpoint is dead, and no share is waited for."""
STARVED: Final = timedelta(seconds=30)
"""As many calls in a row without an answer, throttled ones included, for so long."""
FIRST_OPEN: Final = timedelta(seconds=60)
LONGEST_OPEN: Final = timedelta(minutes=15)
"""How long it stays open: doubled for each probe that fails."""
LASTING: Final = timedelta(minutes=10)
"""Opened again sooner, it stays open as long as the last time. No longer: it answered in between."""
PROBES: Final = 5
"""Calls of a process that may be under way while half open, and answers that close."""
STOPPED_PROBE_EVERY: Final = timedelta(minutes=10)
"""A key may have been mended: so often one call asks."""
ANSWERING: Final = timedelta(hours=1)
"""A judge that answered something so recently may be asked: what it forbids is that one request."""

ANSWERS: Final = frozenset({"answered", "truncated", "refused", "malformed"})
FAILURES: Final = frozenset({"timeout", "server", "unreachable"})
FORBIDDEN: Final = "forbidden"
OF_ITSELF: Final = frozenset({"request", FORBIDDEN})
"""Refusals that may concern the one request."""
HUMAN: Final = "human"
"""The cause of a stop that only a human ends."""


@dataclass(frozen=True, slots=True)
class JudgeState:
    """What is known of whether a judge can be asked.

    Attributes:
        state: of the breaker.
        reason: why, for people.
        cause: the outcome that brought it about, or ``human``.
        since_at: when it came into this state.
        until_at: of an open or stopped one, when probes may pass; None where they may not, or may now.
        opened: how often it was doubled how long it stays open, and one.
        answered: probes that were answered, while half open.
        failed, silent: calls in a row without an answer: all but those that were throttled, and all of them.
        silent_at: the first of these.
    """

    state: State = "closed"
    reason: str = ""
    cause: str = ""
    since_at: datetime | None = None
    until_at: datetime | None = None
    opened: int = 0
    answered: int = 0
    failed: int = 0
    silent: int = 0
    silent_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """The calls of one window by outcome."""

    by_outcome: Mapping[str, int] = field(default_factory=dict)

    def share(self, *, with_throttled: bool = False) -> float:
        """The share of failures; 0 where there are too few calls to say."""
        answered = sum(n for outcome, n in self.by_outcome.items() if outcome in ANSWERS)
        failed = sum(n for outcome, n in self.by_outcome.items() if outcome in FAILURES)
        failed += self.by_outcome.get("throttled", 0) if with_throttled else 0
        total = answered + failed
        return failed / total if total >= LEAST and failed >= LEAST_FAILED else 0.0

    @property
    def mostly_throttled(self) -> bool:
        """Whether more than half of the calls were turned away, of enough calls."""
        return 2 * self.by_outcome.get("throttled", 0) > max(LEAST, sum(self.by_outcome.values()))

    def told(self) -> str:
        """In words: how many of which kind."""
        failed = {o: n for o, n in self.by_outcome.items() if o in FAILURES or o == "throttled"}
        kinds = ", ".join(f"{n} {outcome}" for outcome, n in sorted(failed.items(), key=lambda item: -item[1]) if n)
        return f"{sum(failed.values())} of {sum(self.by_outcome.values())} calls had no answer ({kinds})"


NOTHING: Final = Counts()


def usable(state: JudgeState, now: datetime) -> bool:
    """Whether the judge may be asked: as usual where it is closed, else by ``probes(state)`` calls at a time."""
    return state.state in {"closed", "half_open"} or (state.until_at is not None and state.until_at <= now)


def probes(state: JudgeState) -> int:
    """How many calls each process may have under way to a judge that is usable and not closed."""
    return 1 if state.state == "stopped" else PROBES


def stopped_by(state: JudgeState, reason: str, now: datetime) -> JudgeState:
    """The state when a human stopped the judge: nothing but a human ends it."""
    return _moved(state, "stopped", reason, HUMAN, now)


def resumed_by(state: JudgeState, reason: str, now: datetime) -> JudgeState:
    """The state when a human lets the judge be asked again."""
    return replace(_moved(state, "closed", reason, HUMAN, now), opened=0)


def after(
    state: JudgeState,
    calls: Sequence[Call],
    now: datetime,
    newest: Counts = NOTHING,
    before: Counts = NOTHING,
    *,
    answering: bool = False,
) -> JudgeState:
    """The state after these calls.

    Args:
        state: before. Calls that started earlier than it began say nothing about it.
        calls: of this judge, that ended since, in the order in which they ended.
        now: aware UTC.
        newest: all calls of the last ``WINDOW``, these included.
        before: all calls of the window before that.
        answering: it answered something in the last ``ANSWERING``, these calls included.
    """
    if state.state == "stopped" and state.cause == HUMAN:
        return state
    if state.state == "open" and state.until_at is not None and state.until_at <= now:
        # Nobody has to be there at that moment: what started since was a probe.
        state = replace(state, state="half_open", since_at=state.until_at, until_at=None)
    fresh = [call for call in calls if state.since_at is None or _started_at(call) >= state.since_at]
    has_answered = any(call.outcome in ANSWERS for call in fresh)
    of_it_all = REJECTIONS
    if not has_answered and (state.state == "stopped" or not answering):
        of_it_all |= {FORBIDDEN}
    if rejected := [call for call in fresh if call.outcome in of_it_all]:
        return _rejected(state, rejected[-1], now)
    if state.state == "closed":
        return _watched(state, fresh, now, newest, before)
    if state.state == "half_open":
        return _probed(state, fresh, now)
    if state.state == "stopped" and has_answered:
        return _moved(state, "closed", "a probe was answered", "", now)
    return state


def _rejected(state: JudgeState, call: Call, now: datetime) -> JudgeState:
    if state.state != "stopped":
        state = _moved(state, "stopped", call.reason, call.outcome, now)
    return replace(state, reason=call.reason, cause=call.outcome, until_at=now + STOPPED_PROBE_EVERY)


def _watched(state: JudgeState, calls: Sequence[Call], now: datetime, newest: Counts, before: Counts) -> JudgeState:
    """A closed one: does it open?"""
    last = None
    for call in calls:
        if call.outcome not in ANSWERS:
            failed = state.failed + (call.outcome != "throttled")
            state = replace(state, failed=failed, silent=state.silent + 1, silent_at=state.silent_at or call.at)
            last = call
        elif state.silent:
            state = replace(state, failed=0, silent=0, silent_at=None)
    if last is None:
        return state
    is_starved = state.silent >= IN_A_ROW and state.silent_at is not None and now - state.silent_at >= STARVED
    if state.failed >= IN_A_ROW or is_starved:
        return _opened(state, f"{state.silent} calls in a row had no answer; the last: {last.reason}", last, now)
    if last.outcome in OF_ITSELF:
        return state
    is_throttled = newest.mostly_throttled and before.mostly_throttled
    share, earlier = (counts.share(with_throttled=is_throttled) for counts in (newest, before))
    if share >= OPENS or (share >= OPENS_IF_AGAIN and earlier >= OPENS_IF_AGAIN):
        return _opened(state, f"{newest.told()}; the last: {last.reason}", last, now)
    return state


def _probed(state: JudgeState, calls: Sequence[Call], now: datetime) -> JudgeState:
    """A half open one: one failure opens it again, ``PROBES`` answers close it."""
    new = sum(call.outcome in ANSWERS for call in calls)
    for call in calls:
        refused = call.outcome in OF_ITSELF and not (state.answered or new)
        if call.outcome in FAILURES or refused:
            return _opened(state, f"a probe had no answer: {call.reason}", call, now)
    if state.answered + new >= PROBES:
        return _moved(state, "closed", f"{state.answered + new} probes were answered", "", now)
    return replace(state, answered=state.answered + new)


def _opened(state: JudgeState, reason: str, call: Call, now: datetime) -> JudgeState:
    opened = 1
    if state.state == "half_open":
        opened = state.opened + 1
    elif state.since_at is not None and now - state.since_at < LASTING:
        opened = max(1, state.opened)
    until_at = now + min(LONGEST_OPEN, FIRST_OPEN * 2.0 ** min(opened - 1, 10))
    return replace(_moved(state, "open", reason, call.outcome, now), until_at=until_at, opened=opened)


def _moved(state: JudgeState, to: State, reason: str, cause: str, now: datetime) -> JudgeState:
    return JudgeState(to, reason, cause, now, opened=state.opened)


def _started_at(call: Call) -> datetime:
    return call.at - timedelta(milliseconds=call.latency_ms)
