"""The slowest calls have become slower, or they have not."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest
from metered_world import PLACE, START, Past, sketched

from evalpipe.detectors.latency import Latency, LatencyParams
from evalpipe.detectors.view import Calls, Place

MINUTE = timedelta(minutes=1)


@dataclass
class Minutes:
    """A view of minutes, each with the latencies of its calls; what is usual is given."""

    minutes: list[Calls]
    usual: Any = None
    at: datetime = START
    place: Place = PLACE
    asked: list[tuple[datetime, datetime]] = field(default_factory=list)

    def calls(self, since: datetime, until: datetime) -> Calls:
        """The minutes of a window."""
        self.asked.append((since, until))
        found = Calls()
        for number in range(int((since - START) / MINUTE), int((until - START) / MINUTE)):
            if 0 <= number < len(self.minutes):
                found.merge(self.minutes[number])
        found.seconds = (until - since).total_seconds()
        return found

    def normal(self, since: datetime, until: datetime) -> Any:
        """As given."""
        return self.usual


def minutes(seed: int, n: int, a_minute: int = 200, factor: float = 1.0, measure: str = "latency") -> list[Calls]:
    """Log-normal latencies about 800 ms."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        calls = Calls(60.0)
        calls.sketches = {
            **calls.sketches,
            measure: sketched(factor * rng.lognormal(np.log(800.0), 0.8, rng.poisson(a_minute))),
        }
        calls.sums["calls"] = calls.sketches[measure].count
        found.append(calls)
    return found


def usual(measure: str = "latency", a_minute: int = 200) -> Past:
    """A hundred minutes of it."""
    calls = Calls()
    for minute in minutes(99, 100, a_minute, measure=measure):
        calls.merge(minute)
    calls.seconds = 6_000.0
    return Past(calls)


def watch(view: Minutes, **params: Any) -> list[tuple[int, Any]]:
    """What each minute finds."""
    detector = Latency(LatencyParams(**params))
    state: Any = {}
    found = []
    for number in range(1, len(view.minutes) + 1):
        view.at = START + number * MINUTE + timedelta(seconds=12)
        state, finding = detector.look(view, json.loads(json.dumps(state)))
        found.append((number, finding))
    assert len(json.dumps(state)) < 2_000
    return found


@pytest.mark.parametrize("measure", ["latency", "ttft", "tpot"])
def test_a_p99_that_doubles_is_found_within_minutes_and_is_a_sev3(measure):
    """Each measure by itself; the reason has the number, what is usual, and how many calls stand behind both."""
    view = Minutes(minutes(1, 20, measure=measure) + minutes(2, 12, factor=2.4, measure=measure), usual(measure))
    found = watch(view, measure=measure)
    assert not any(f.violated for number, f in found if number <= 20)
    first, finding = next((number, f) for number, f in found if f.violated)
    assert first <= 25
    last = found[-1][1]
    assert (last.violated, last.severity, last.numbers["measure"]) == (True, "SEV3", measure)
    assert last.ratio == pytest.approx(2.4, rel=0.2)
    assert measure in finding.reason
    assert "the week before" in finding.reason


@pytest.mark.parametrize(("factor", "severity"), [(2.4, "SEV3"), (3.0, "SEV3"), (1.4, "SEV4")])
def test_the_first_alarm_has_the_severity_that_the_change_has(factor, severity):
    """The quantile of now is taken of the calls since the change: among those of before it would look half as bad."""
    right = 0
    for seed in range(8):
        view = Minutes(minutes(seed, 10) + minutes(seed + 50, 30, factor=factor), usual())
        first = next((f for number, f in watch(view) if f.violated and number > 10), None)
        right += first is not None and first.severity == severity
    assert right >= 7


def test_a_second_incident_is_graded_by_its_own_calls():
    """What was slow hours before is no part of it: its first alarm is a SEV3 like that of the first incident."""
    right = 0
    for seed in range(6):
        bad = minutes(seed, 60, 800, factor=3.0) + minutes(seed + 20, 90, 800)
        view = Minutes([*bad, *minutes(seed + 50, 10, 800, factor=2.4)], usual(a_minute=800))
        first = next(f for number, f in watch(view) if f.violated and number > 150)
        right += first.severity == "SEV3"
    assert right >= 5


def test_a_past_of_calls_that_come_together_is_worth_less():
    """Slow calls in fours: how many are usual is known as well as from a quarter of the calls."""
    alone, together = (
        watch(Minutes(minutes(11, 3), usual()), design_effect=effect)[-1][1].numbers for effect in (1.0, 4.0)
    )
    error = alone["as_usual_to"] - alone["share_above"]
    assert together["as_usual_to"] - together["share_above"] == pytest.approx(2 * error, rel=0.2)


def test_a_p99_that_rises_by_half_is_found_and_the_alarm_ends_with_it():
    """It comes down again: evidence is bounded."""
    view = Minutes(minutes(3, 10) + minutes(4, 60, factor=1.5) + minutes(5, 60), usual())
    found = watch(view, design_effect=1.0)
    began = next(number for number, f in found if f.violated)
    assert 10 < began <= 60
    assert found[-1][1].violated is False


def test_latencies_that_do_not_drift_raise_no_alarm():
    """Ten hours, and a false alarm every ten minutes asked for: the sequential test keeps it, and the second key."""
    found = watch(Minutes(minutes(6, 600, 60), usual(a_minute=60)), false_alarm_every=timedelta(minutes=10), times=1.05)
    began = [n for (n, f), (_, before) in zip(found[1:], found, strict=False) if f.violated and not before.violated]
    assert len(began) <= 60


def test_without_a_normal_the_day_before_is_usual_and_it_is_read_once_an_hour():
    """A day of sketches is not read every minute."""
    view = Minutes(minutes(7, 240, 120))
    found = watch(view, trailing=timedelta(hours=2))
    assert found[30][1].violated is None
    assert found[-1][1].violated is False
    assert len([1 for since, until in view.asked if until - since == timedelta(hours=2) and until.minute == 0]) <= 130


def test_too_few_calls_are_no_past():
    """Says how many are needed."""
    finding = watch(Minutes(minutes(8, 3), usual(a_minute=20)))[-1][1]
    assert (finding.violated, "5000 calls" in finding.reason) == (None, True)


def test_nothing_new_is_nothing_to_look_at():
    """Between two minutes the finding stands, and a clock that goes back changes nothing."""
    view = Minutes(minutes(9, 4), usual())
    view.at = START + 2 * MINUTE + timedelta(seconds=12)
    detector = Latency(LatencyParams())
    state, first = detector.look(view, {})
    for seconds in (15, -70):
        view.at = START + 2 * MINUTE + timedelta(seconds=seconds)
        assert detector.look(view, state) == (state, first)
