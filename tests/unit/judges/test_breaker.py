"""When a judge is left alone, and when it is tried again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from evalpipe.judges import breaker
from evalpipe.judges.breaker import Counts, JudgeState, after, probes, resumed_by, stopped_by, usable
from evalpipe.judges.desk import Call

AT = datetime(2026, 11, 22, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
CLOSED = JudgeState()


def calls(*outcomes: str, at: datetime = AT) -> list[Call]:
    """Calls that took a tenth of a second and ended one after the other until ``at``."""
    first = at - SECOND / 1000 * len(outcomes)
    return [
        Call(first + SECOND / 1000 * number, "fake:m", "", outcome, None, 0.1, f"it was {outcome}")
        for number, outcome in enumerate(outcomes, 1)
    ]


def opened(times: int = 1) -> JudgeState:
    """One that opened so often in a row, just now."""
    state = after(CLOSED, calls(*["timeout"] * 8), AT)
    for _ in range(times - 1):
        assert state.until_at is not None
        at = state.until_at + SECOND
        state = after(state, calls("timeout", at=at), at)
    assert state.state == "open"
    return state


def test_a_judge_that_answers_stays_closed() -> None:
    """Also with answers that are no grades: those were answered."""
    outcomes = ["request", "answered", "malformed", "refused", "truncated"] * 20
    assert after(CLOSED, calls(*outcomes), AT, Counts(Counter(outcomes))) == CLOSED


@pytest.mark.parametrize(
    ("newest", "before", "state"),
    [
        ({"answered": 90, "timeout": 10}, {}, "open"),
        ({"answered": 91, "timeout": 5, "server": 4}, {}, "closed"),
        ({"answered": 95, "timeout": 3, "unreachable": 2}, {"answered": 95, "server": 5}, "open"),
        ({"answered": 96, "timeout": 4}, {"answered": 50, "server": 50}, "closed"),
        ({"answered": 10, "timeout": 9}, {}, "closed"),
        ({"answered": 16, "timeout": 4}, {}, "closed"),
        ({"answered": 15, "timeout": 5}, {}, "open"),
        ({"answered": 50, "throttled": 49}, {"answered": 50, "throttled": 49}, "closed"),
        ({"answered": 40, "throttled": 60}, {"answered": 50, "throttled": 49}, "closed"),
        ({"answered": 40, "throttled": 60}, {"answered": 40, "throttled": 60}, "open"),
        ({"answered": 90, "malformed": 60, "refused": 60, "timeout": 5}, {}, "closed"),
        ({"answered": 9, "request": 500, "timeout": 2}, {}, "closed"),
    ],
)
def test_it_opens_at_a_tenth_of_failures_or_at_a_twentieth_for_long(
    newest: dict[str, int], before: dict[str, int], state: str
) -> None:
    """Of enough calls; throttled ones count only where slowing down does not help."""
    last = "throttled" if "throttled" in newest else "timeout"
    found = after(CLOSED, calls("answered", last), AT, Counts(newest), Counts(before))
    assert found.state == state


def test_an_answer_opens_nothing() -> None:
    """A bad window is no reason while calls go well: the last failure was one."""
    bad = Counts({"answered": 50, "timeout": 50})
    assert after(CLOSED, calls("answered"), AT, bad, bad).state == "closed"


def test_the_reason_says_how_many_failed_and_how() -> None:
    """For whoever is paged."""
    found = after(CLOSED, calls("server"), AT, Counts({"answered": 80, "timeout": 5, "server": 15}))
    assert found.reason == "20 of 100 calls had no answer (15 server, 5 timeout); the last: it was server"
    assert found.cause == "server"


def test_a_dead_endpoint_opens_it_before_there_is_a_share() -> None:
    """Eight failures without an answer between them, in whatever portions they come."""
    state = CLOSED
    for count in (3, 4):
        state = after(state, calls(*["unreachable"] * count), AT)
        assert state.state == "closed"
    assert after(state, calls("answered", "unreachable"), AT).failed == 1
    assert after(state, calls("unreachable"), AT).state == "open"


def test_a_burst_that_is_throttled_opens_nothing_but_throttling_without_end_does() -> None:
    """Slowing down takes some round trips; half a minute without one answer is something else."""
    state = after(CLOSED, calls(*["throttled"] * 200), AT)
    assert state.state == "closed"
    later = AT + timedelta(seconds=31)
    assert after(after(state, calls("answered"), AT), calls("throttled", at=later), later).state == "closed"
    assert after(state, calls("throttled", at=later), later).state == "open"


def test_it_opens_for_longer_each_time_and_starts_anew_after_a_good_time() -> None:
    """One minute, two, four, eight, then fifteen, while probes fail; as long as the last time if one did not."""
    times = [opened(n) for n in (1, 2, 3, 4, 5, 6)]
    waits = [state.until_at - state.since_at for state in times if state.until_at and state.since_at]
    assert [wait.total_seconds() / 60 for wait in waits] == [1, 2, 4, 8, 15, 15]
    last = times[-1]
    assert last.until_at is not None
    good_at = last.until_at + SECOND
    closed = after(last, calls(*["answered"] * 5, at=good_at), good_at)
    soon, late = good_at + timedelta(minutes=9), good_at + timedelta(minutes=11)
    again, anew = (after(closed, calls(*["timeout"] * 8, at=at), at) for at in (soon, late))
    assert (again.state, again.opened) == ("open", 6)
    assert (anew.state, anew.opened) == ("open", 1)


def test_five_of_five_probes_close_it() -> None:
    """One after the other or at once; one that fails opens it again, and a throttled one says nothing."""
    state = opened()
    assert state.until_at is not None
    at = state.until_at + SECOND
    assert not usable(state, state.until_at - SECOND)
    assert usable(state, at)
    assert probes(state) == 5
    half = after(state, calls(*["answered"] * 4, "throttled", at=at), at)
    assert (half.state, half.answered) == ("half_open", 4)
    assert usable(half, at)
    assert after(half, calls("answered", at=at), at).state == "closed"
    assert after(half, calls("answered", "timeout", at=at), at).state == "open"


def test_calls_from_before_say_nothing_about_now() -> None:
    """Calls that were under way when it opened are no probes."""
    state = opened()
    assert state.until_at is not None
    at = state.until_at + SECOND
    old = [Call(at, "fake:m", "", "answered", None, 120_000.0)] * 5
    assert after(state, old, at).answered == 0


@pytest.mark.parametrize("cause", ["key", "credit", "gone"])
def test_a_rejection_stops_it_at_once_with_the_providers_words(cause: str) -> None:
    """Asking on would burn attempts; one call every ten minutes asks whether it was mended."""
    state = after(CLOSED, calls("answered", cause, "answered"), AT)
    assert (state.state, state.cause, state.reason) == ("stopped", cause, f"it was {cause}")
    assert not usable(state, AT + timedelta(minutes=9))
    at = AT + timedelta(minutes=11)
    assert usable(state, at)
    assert probes(state) == 1
    still = after(state, calls("credit", at=at), at)
    assert (still.state, still.cause, still.since_at) == ("stopped", "credit", AT)
    assert not usable(still, at + timedelta(minutes=9))
    assert after(state, calls("timeout", at=at), at) == state
    assert after(state, calls("answered", at=at), at).state == "closed"


def test_a_judge_that_has_answered_nothing_is_stopped_by_what_it_forbids() -> None:
    """HTTP 403 is what a key gets that may not use the model; while stopped, a probe that is forbidden keeps it so."""
    state = after(CLOSED, calls("forbidden"), AT)
    assert (state.state, state.cause) == ("stopped", "forbidden")
    at = AT + timedelta(minutes=11)
    still = after(state, calls("forbidden", at=at), at, answering=True)
    assert (still.state, still.since_at) == ("stopped", AT)
    assert not usable(still, at + timedelta(minutes=9))
    assert after(state, calls("forbidden", "answered", at=at), at, answering=True).state == "closed"


def test_what_a_judge_forbids_that_answers_others_is_that_one_request() -> None:
    """A gateway may dislike one record: that stops nothing, unless nothing else comes any more."""
    state = after(CLOSED, calls(*["answered", "forbidden"] * 20), AT, answering=True)
    assert state.state == "closed"
    state = after(state, calls(*["forbidden"] * 6), AT, answering=True)
    assert state.state == "closed"
    state = after(state, calls("forbidden"), AT, answering=True)
    assert (state.state, state.cause) == ("open", "forbidden")


def test_a_gateway_that_refuses_every_request_is_left_alone() -> None:
    """Each refusal ends a work for good: eight in a row without an answer open it, and a probe opens it again."""
    assert after(CLOSED, calls(*["request"] * 7), AT).state == "closed"
    assert after(CLOSED, calls(*["request"] * 7, "answered", "request"), AT).failed == 1
    state = after(CLOSED, calls(*["request"] * 8), AT)
    assert (state.state, state.cause) == ("open", "request")
    assert state.until_at is not None
    at = state.until_at + SECOND
    assert after(state, calls("request", at=at), at).state == "open"
    assert after(state, calls("request", "answered", at=at), at).state == "half_open"


def test_a_request_that_is_refused_says_nothing_of_a_bad_window() -> None:
    """The window is looked at when a call fails that says something of the judge."""
    bad = Counts({"answered": 50, "timeout": 50})
    assert after(CLOSED, calls("answered", "request"), AT, bad, bad).state == "closed"


def test_what_a_human_stopped_only_a_human_resumes() -> None:
    """Whatever its calls say."""
    state = stopped_by(CLOSED, "ada: too costly", AT)
    later = AT + timedelta(days=3)
    assert not usable(state, later)
    assert after(state, calls("answered", "key", "timeout", at=later), later) == state
    resumed = resumed_by(state, "ada: paid", later)
    assert resumed.state == "closed"
    assert usable(resumed, later)


OUTCOMES = st.sampled_from(
    sorted({*breaker.ANSWERS, *breaker.FAILURES, *breaker.REJECTIONS, *breaker.OF_ITSELF, "throttled"}),
)


class Life(RuleBasedStateMachine):
    """Any sequence of calls, pauses and people."""

    def __init__(self) -> None:
        super().__init__()
        self.now = AT
        self.state = CLOSED
        self.stopped_by_human = False
        self.ended: list[tuple[datetime, str]] = []

    @rule(seconds=st.sampled_from([0.1, 5.0, 31.0, 61.0, 301.0, 901.0]))
    def time_passes(self, seconds: float) -> None:
        """Nothing happens."""
        self.now += timedelta(seconds=seconds)

    @rule(outcomes=st.lists(OUTCOMES, max_size=12), seconds=st.sampled_from([0.05, 20.0]))
    def calls_end(self, outcomes: list[str], seconds: float) -> None:
        """Some calls end that took so long."""
        self.take([Call(self.now, "fake:m", "", outcome, None, seconds * 1000.0, outcome) for outcome in outcomes])

    @rule(outcome=OUTCOMES, count=st.integers(1, 60))
    def the_same_happens_often(self, outcome: str, count: int) -> None:
        """As in an outage."""
        self.take([Call(self.now, "fake:m", "", outcome, None, 50.0, outcome)] * count)

    @rule()
    def a_human_stops_it(self) -> None:
        """By the command."""
        self.state, self.stopped_by_human = stopped_by(self.state, "ada: stop", self.now), True

    @rule()
    def a_human_resumes_it(self) -> None:
        """By the command."""
        self.state, self.stopped_by_human = resumed_by(self.state, "ada: go", self.now), False
        assert usable(self.state, self.now)

    def take(self, found: Sequence[Call]) -> None:
        """The calls end, and the breaker is run."""
        self.ended += [(self.now, call.outcome) for call in found]
        old = self.state
        since = self.now - breaker.ANSWERING
        answering = any(at > since and outcome in breaker.ANSWERS for at, outcome in self.ended)
        new = after(old, found, self.now, self.window(0), self.window(1), answering=answering)
        if old.state == "stopped" and new.state != "stopped":
            assert any(call.outcome in breaker.ANSWERS for call in found)
        if old.state == "closed" and new.state == "open":
            assert new.until_at is not None
            assert breaker.FIRST_OPEN <= new.until_at - self.now <= breaker.LONGEST_OPEN
        if old.state == "open" and new.state == "closed":
            assert old.until_at is not None
            assert old.until_at <= self.now
            assert sum(call.outcome in breaker.ANSWERS for call in found) >= breaker.PROBES
        if not found and not (old.state == "open" and usable(old, self.now)):
            assert new == old
        self.state = new

    def window(self, back: int) -> Counts:
        """The calls of a window."""
        until = self.now - back * breaker.WINDOW
        return Counts(Counter(o for at, o in self.ended if until - breaker.WINDOW < at <= until))

    @invariant()
    def it_keeps_its_word(self) -> None:
        """What a human stopped stays stopped; what is shut names a time, and nothing is shut without a reason."""
        if self.stopped_by_human:
            assert (self.state.state, self.state.cause) == ("stopped", "human")
            assert not usable(self.state, self.now + timedelta(days=365))
        elif self.state.state in {"open", "stopped"}:
            assert self.state.until_at is not None
            assert usable(self.state, self.state.until_at)
            assert self.state.reason
        else:
            assert usable(self.state, self.now)
        assert self.state.answered < breaker.PROBES


TestLife = Life.TestCase


@given(st.lists(OUTCOMES, max_size=60), st.integers(0, 60))
def test_portions_do_not_matter_while_it_is_closed(outcomes: list[str], cut: int) -> None:
    """Whether calls are committed together or in two portions, the streak is the same."""
    outcomes = [outcome for outcome in outcomes if outcome not in breaker.REJECTIONS]
    found = calls(*outcomes)
    whole = after(CLOSED, found, AT, answering=True)
    parts = after(after(CLOSED, found[:cut], AT, answering=True), found[cut:], AT, answering=True)
    if whole.state == parts.state == "closed":
        assert whole == parts
