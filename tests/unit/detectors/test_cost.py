"""Money that runs away is found in seconds; what only looks like it is not."""

from __future__ import annotations

import json
from collections import Counter
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from metered_world import START, Stream, StreamView, spending

from evalpipe.detectors.base import Finding
from evalpipe.detectors.cost import Cost, CostParams, severity_of
from evalpipe.detectors.view import Spender
from evalpipe.errors import ConfigError

PAST_S = 4800.0
"""Before it there is the hour that is usual, and what is left out."""


def watch(
    stream: Stream, since: float, until: float, *, every: float = 2.0, usual: Any = None, **params: Any
) -> tuple[list[tuple[float, Finding]], Finding, dict[str, Any]]:
    """Look every two seconds: when an alarm began and what it said, the last finding and the state."""
    detector = Cost(CostParams(**{"users": False, "settle": timedelta(minutes=2), **params}))
    state: Any = {}
    began: list[tuple[float, Finding]] = []
    finding, was = Finding(None), False
    for now in np.arange(since, until, every):
        state, finding = detector.look(StreamView(stream, float(now), usual=usual), json.loads(json.dumps(state)))
        if finding.violated and not was:
            began.append((float(now), finding))
        was = bool(finding.violated)
    return began, finding, state


def changed(steps: int, at: int, factor: float) -> Any:
    """One, and from a second on ``factor``."""
    factors = np.ones(steps)
    factors[at:] = factor
    return factors


@pytest.mark.parametrize("dear", [True, False])
def test_ten_times_the_cost_at_a_thousand_calls_a_minute_is_found_within_twelve_seconds(dear):
    """Dearer calls or more of them; with what hooks tell three seconds late. The hundredfold is worse."""
    factors = changed(5200, 5000, 10.0)
    stream = spending(3, 5200, 1000, **({"dear": factors} if dear else {"factor": factors}))
    (at, first), *_ = watch(stream, PAST_S, 5200)[0]
    assert 5000 < at <= 5012
    assert first.severity in {"SEV2", "SEV3"}
    assert first.reason.startswith("chat spends ")
    _, last, state = watch(stream, PAST_S, 5060)
    assert (last.violated, last.severity, last.numbers["feature"]) == (True, "SEV2", "chat")
    assert last.ratio == pytest.approx(10.0, rel=0.2)
    assert len(json.dumps(state)) < 2_000
    assert [severity_of(ratio) for ratio in (1.5, 2.0, 9.5, 10.0, 100.0)] == [None, "SEV3", "SEV3", "SEV2", "SEV1"]


def test_how_bad_it_is_may_show_until_the_next_look_and_no_longer():
    """Looks are two seconds apart, or a little less."""
    stream = spending(3, 5100, 1000, factor=changed(5100, 5000, 4.0))
    detector, state, waits = Cost(CostParams(users=False, settle=timedelta(minutes=2), measure="usd")), {}, 0
    for now in np.arange(PAST_S, 5100, 1.95):
        state, finding = detector.look(StreamView(stream, float(now)), state)
        if finding.violated:
            break
        waits += bool(state["usd"]["crossed"])
    assert (finding.violated, finding.severity, waits) == (True, "SEV3", 1)


def test_the_severity_of_what_lasts_is_raised_by_what_is_sure_only():
    """What grows to nearly ten times the usual stays a SEV3; a later explosion is a SEV2 at once."""
    factors = changed(9200, 5000, 5.0)
    factors[5000:9000] *= np.linspace(1.0, 1.9, 4000)
    factors[9000:] = 30.0
    stream = spending(17, 9200, 500, factor=factors)
    found: list[str] = []
    detector, state = Cost(CostParams(users=False, settle=timedelta(minutes=2))), {}
    for now in np.arange(PAST_S, 9080.0, 5.0):
        state, finding = detector.look(StreamView(stream, float(now)), state)
        if finding.violated:
            found.append(f"{finding.severity} {'late' if now >= 9000 else ''}".strip())
    assert set(found[: found.index("SEV2 late")]) <= {"SEV3", "SEV3 late"}
    assert found[-1] == "SEV2 late"


def test_three_times_the_cost_is_found_within_minutes():
    """The estimate itself must reach what the rule says, so it takes longer than the proof that something changed."""
    stream = spending(5, 5400, 1000, factor=changed(5400, 5000, 3.2))
    (at, first), *_ = watch(stream, PAST_S, 5400)[0]
    assert (5000 < at < 5120, first.severity) == (True, "SEV3")


@pytest.mark.parametrize(
    ("a_minute", "options"),
    [(1000, {}), (100, {"sigma": 1.5}), (30, {"sigma": 1.5, "burst": 5.0}), (2, {})],
)
def test_a_stream_that_does_not_drift_raises_no_alarm(a_minute, options):
    """Bursts, heavy tails and little traffic; fifty times the six minutes that are asked for."""
    stream = spending(11, 4800, a_minute, step_s=5.0, **options)
    began, last, _ = watch(stream, PAST_S, 23_000, every=10.0, false_alarm_every=timedelta(minutes=6), times=2.0,
                           measure="usd", least_usd_per_minute=0.001)  # fmt: skip
    assert len(began) <= 5
    assert last.violated is not None


@pytest.mark.parametrize("measure", ["usd", "tokens"])
def test_two_dear_calls_are_no_explosion(measure):
    """Calls that cost as much as half an hour of all others are one lump each, whichever window has them."""
    stream = spending(7, 5200, 100)
    for second in (5000, 5012):
        stream.cost_usd[second] += 30.0
        stream.cost_squares[second] += 900.0
        stream.tokens[second] += 30.0 / 5e-6
    again = Stream(1.0, stream.calls, stream.tokens, stream.cost_usd, stream.cost_squares)
    began, *_ = watch(again, PAST_S, 5200, measure=measure)
    assert began == []


def test_a_morning_that_doubles_the_traffic_is_no_explosion_and_cost_per_call_does_not_see_more_calls():
    """Twice is less than three times; and with the rate per call traffic may do what it likes."""
    doubled = spending(9, 5600, 600, factor=changed(5600, 5000, 2.0))
    assert watch(doubled, PAST_S, 5600, every=5.0)[0] == []
    grown = spending(9, 5600, 100, factor=changed(5600, 5000, 20.0))
    assert watch(grown, PAST_S, 5600, every=5.0, rate="call")[0] == []
    dearer = spending(9, 5600, 300, dear=changed(5600, 5000, 5.0))
    (_, first), *_ = watch(dearer, PAST_S, 5600, every=5.0, rate="call")[0]
    assert "a call" in first.reason


def test_what_is_usual_in_a_quiet_night_is_taken_for_no_less_than_the_least():
    """Ten times nearly nothing is nearly nothing."""
    stream = spending(13, 5300, 1, usd=0.001, factor=changed(5300, 5000, 30.0))
    assert watch(stream, PAST_S, 5300, every=5.0)[0] == []


def test_what_runs_away_for_long_does_not_become_usual_and_its_end_is_seen():
    """The norm stands still while the alarm is on; within a minute after the end it is off."""
    factors = changed(14_000, 5000, 10.0)
    factors[12_000:] = 1.0
    stream = spending(15, 14_000, 200, factor=factors)
    began, last, _ = watch(stream, PAST_S, 11_990, every=10.0)
    assert (len(began), last.violated) == (1, True)
    assert last.ratio == pytest.approx(10.0, rel=0.3)
    began, last, _ = watch(stream, PAST_S, 12_500, every=10.0)
    assert (len(began), last.violated) == (1, False)


def test_nothing_is_usual_where_there_was_nothing_or_a_service_is_new():
    """Then the rule's word for no data decides."""
    empty = spending(1, 5000, 0)
    assert watch(empty, PAST_S, 4900)[1].violated is None
    new = spending(1, 600, 100)
    _, last, _ = watch(new, 10, 500, settle=timedelta(minutes=10))
    assert (last.violated, "learnt" in last.reason or "usual" in last.reason) == (None, True)


def test_a_clock_that_goes_back_does_no_harm():
    """The state may be of the future."""
    stream = spending(1, 5400, 100)
    _, _, state = watch(stream, PAST_S, 5300, every=5.0)
    _, finding = Cost(CostParams(users=False)).look(StreamView(stream, 5000.0), state)
    assert finding.violated is not True


def test_a_user_that_runs_away_is_named():
    """Against its own past and a part of what the whole place spends; a heavy user that always was is left alone."""
    stream = spending(17, 7200, 300)
    now = START + timedelta(seconds=7200)
    past = {(now - timedelta(hours=1), now - timedelta(minutes=5)): [Spender("bulk", 5500.0, 1e6, 55.0)]}
    view = StreamView(stream, 7203.0)
    view.spenders = {
        **past,
        (now - timedelta(minutes=1), now): [Spender("agent", 400.0, 8e5, 4.0), Spender("bulk", 110.0, 2e4, 1.1)],
    }
    state = {"first": START.isoformat()}
    _, finding = Cost(CostParams()).look(view, state)
    assert (finding.violated, finding.numbers["user"], finding.severity) == (True, "agent", "SEV2")
    assert finding.reason.startswith("user agent spends 4 USD a minute on chat")
    view.spenders[now - timedelta(minutes=1), now] = [Spender("bulk", 110.0, 2e4, 1.1), Spender("once", 1.0, 9e4, 2.0)]
    _, finding = Cost(CostParams()).look(view, state)
    assert finding.violated is False


def test_users_whose_calls_come_in_sessions_do_not_run_away():
    """Thirty calls in half a minute, each time by another user: the place's own bursts say what is usual."""
    rng = np.random.default_rng(21)
    at = np.sort(rng.uniform(0, 14_400, 160))
    size = rng.geometric(1 / 30, len(at))
    user, seconds = np.repeat(np.arange(len(at)), size), np.repeat(at, size) + rng.uniform(0, 30, size.sum())
    calls = np.bincount((seconds // 5).astype(int), minlength=2_890)[:2_890].astype(float)
    view = StreamView(Stream(5.0, calls, calls * 2_000, calls * 0.02, calls * 0.02**2), 0.0)
    detector, state, found = Cost(CostParams()), {}, []
    for now_s in range(60, 14_400, 20):
        view.now_s = now_s + 3.0
        minute = START + timedelta(seconds=now_s - now_s % 60)
        for minutes in (1, 5):
            those = (seconds >= now_s - now_s % 60 - 60 * minutes) & (seconds < now_s - now_s % 60)
            heavy = Counter(user[those].tolist()).most_common(32)
            view.spenders[minute - timedelta(minutes=minutes), minute] = [
                Spender(f"u{u}", n, n * 2_000, n * 0.02) for u, n in heavy
            ]
        state, finding = detector.look(view, state)
        if now_s > 7_200:
            found.append(bool(finding.violated))
    assert not any(found)


def test_a_past_that_the_meter_does_not_keep_is_refused():
    """With what to write instead."""
    with pytest.raises(ConfigError, match=r"trailing: 1d is not from 10m to 100m.*seasonal"):
        Cost(CostParams(trailing=timedelta(days=1)))


@pytest.mark.parametrize("silent_s", [1200, 3900])
def test_after_hooks_were_silent_what_was_usual_before_or_has_been_since_is_usual(silent_s):
    """An hour without a call is no norm; a runaway twenty minutes after it is found as ever."""
    steps = int(PAST_S) + silent_s + 3600
    factors = np.ones(steps)
    factors[int(PAST_S) : int(PAST_S) + silent_s] = 0.0
    back = int(PAST_S) + silent_s
    dear = np.ones(steps)
    dear[back + 2400 :] = 10.0
    stream = spending(5, steps, 600, factor=factors, dear=dear)
    began, *_ = watch(stream, PAST_S - 60, back + 2430, every=5.0)
    assert [at >= back + 2400 for at, _ in began] == [True]
    assert began[0][1].severity in {"SEV2", "SEV3"}
