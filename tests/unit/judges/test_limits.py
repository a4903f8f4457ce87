"""Calls in flight: the limit finds what a provider bears, and slots are given in turn."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.judges.limits import LONGEST_PAUSE_S, Aimd, Slots


class Server:
    """A simulated provider: at most ``capacity`` calls at once take ``latency_s``; others are turned away at once."""

    def __init__(self, capacity: int, latency_s: float = 0.3, seed: int = 1) -> None:
        self.capacity = capacity
        self.latency_s = latency_s
        self.random = random.Random(seed)
        self.busy = self.answered = self.throttled = 0
        self.now_s = 0.0
        self.events: list[tuple[float, int, int, float, bool]] = []
        self.in_flight: Counter[int] = Counter()
        self.numbers = itertools.count()

    def drive(self, limits: list[Aimd], seconds: float) -> list[float]:
        """Processes with these limits ask as much as they may; the limits of the first, sampled at each answer."""
        seen = []
        events, in_flight = self.events, self.in_flight
        end_s = self.now_s + seconds

        def fill(index: int) -> None:
            while in_flight[index] + 1 <= limits[index].limit:
                in_flight[index] += 1
                number = next(self.numbers)
                fits = self.busy < self.capacity
                self.busy += fits
                took_s = (
                    self.latency_s * self.random.uniform(0.7, 1.3) if fits else 0.02 * self.random.uniform(0.5, 1.5)
                )
                heapq.heappush(events, (self.now_s + took_s, number, index, self.now_s, fits))

        for index in range(len(limits)):
            fill(index)
        while events and self.now_s < end_s:
            self.now_s, _, index, started_s, fits = heapq.heappop(events)
            if fits:
                self.busy -= 1
                self.answered += 1
                limits[index].answered(in_flight[index])
            else:
                self.throttled += 1
                limits[index].throttled(started_s, self.now_s)
            in_flight[index] -= 1
            seen.append(limits[0].limit)
            fill(index)
        return seen


def test_the_limit_converges_to_what_the_server_bears() -> None:
    """From 200 at once down to a server of 40, with more than 80 % of it used and few calls turned away."""
    server = Server(capacity=40)
    limit = Aimd(200)
    server.drive([limit], 10)
    server.answered = server.throttled = 0
    seen = server.drive([limit], 60)
    assert 40 * 0.6 < sum(seen) / len(seen) < 42
    assert server.answered > 0.8 * 60 * 40 / 0.3
    assert server.throttled < 0.02 * server.answered


@pytest.mark.parametrize("capacity", [1, 2, 5, 10, 40])
def test_few_calls_are_made_in_vain_whatever_the_capacity(capacity: int) -> None:
    """Each is an attempt of some work: also where a server bears one call at a time, few works may lose all of them."""
    server = Server(capacity)
    limit = Aimd(64)
    server.drive([limit], 20)
    server.answered = server.throttled = 0
    server.drive([limit], 200)
    assert server.throttled < 0.09 * (server.answered + server.throttled)
    assert server.answered > 0.8 * 200 * capacity / 0.3


def test_the_limit_follows_a_capacity_that_comes_back() -> None:
    """An hour's bad time is not remembered for ever: the limit climbs by about one in each round trip."""
    server = Server(capacity=10)
    limit = Aimd(100)
    server.drive([limit], 10)
    assert limit.limit < 12
    server.capacity = 1000
    server.drive([limit], 60)
    assert limit.limit == 100


def test_processes_share_a_server_fairly() -> None:
    """Two that know nothing of one another end near half each, wherever they started."""
    server = Server(capacity=60)
    limits = [Aimd(200), Aimd(200)]
    limits[0].limit = 5.0
    server.drive(limits, 60)
    halves: list[float] = []
    for _ in range(50):
        server.drive(limits, 1)
        halves.append(limits[0].limit / (limits[0].limit + limits[1].limit))
    assert 0.35 < sum(halves) / len(halves) < 0.65


def test_one_round_trip_decreases_once() -> None:
    """Fifty calls that started together and were turned away are one piece of news."""
    limit = Aimd(100)
    for _ in range(50):
        limit.throttled(0.0, 1.0)
    assert limit.limit == 70.0
    limit.throttled(1.0, 1.5)
    assert limit.limit == 49.0


def test_a_limit_that_nobody_reaches_does_not_grow() -> None:
    """One call at a time says nothing about a hundred."""
    limit = Aimd(100)
    for at in range(20):
        limit.throttled(float(at), float(at))
    assert limit.limit == 1.0
    for _ in range(1000):
        limit.answered(1)
    assert limit.limit < 4.0


@given(st.integers(1, 500), st.lists(st.tuples(st.booleans(), st.integers(0, 500))))
def test_the_limit_stays_between_one_and_the_most(most: int, steps: list[tuple[bool, int]]) -> None:
    """Whatever happens."""
    limit = Aimd(most)
    for at, (answered, in_flight) in enumerate(steps):
        if answered:
            limit.answered(in_flight)
        else:
            limit.throttled(float(at), float(at))
        assert 1.0 <= limit.limit <= most


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run it, for a minute at the most."""

    async def within() -> None:
        async with asyncio.timeout(60):
            await main()

    asyncio.run(within())


def test_slots_are_given_in_turn_and_never_too_many() -> None:
    """A hundred calls, four slots: the first come are the first served."""

    async def main() -> None:
        slots = Slots(4)
        order: list[int] = []
        most = 0

        async def call(number: int) -> None:
            nonlocal most
            await slots.enter()
            order.append(number)
            most = max(most, slots.in_flight)
            await asyncio.sleep(0)
            slots.leave()

        await asyncio.gather(*(call(number) for number in range(100)))
        assert order == list(range(100))
        assert (most, slots.in_flight) == (4, 0)

    run(main)


def test_cancelled_calls_leave_no_slot_behind() -> None:
    """Calls are cancelled while they wait, as they are given a slot, and while they have one."""

    async def main() -> None:
        slots = Slots(3)
        chance = random.Random(2)

        async def call() -> None:
            await slots.enter()
            try:
                await asyncio.sleep(chance.random() * 0.002)
            finally:
                slots.leave()

        for _ in range(50):
            tasks = [asyncio.create_task(call()) for _ in range(20)]
            await asyncio.sleep(chance.random() * 0.002)
            for task in chance.sample(tasks, 10):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert slots.in_flight == 0
            assert slots.enter_now()
            slots.leave()

    run(main)


def test_a_call_that_is_cancelled_as_it_gets_its_slot_passes_it_on() -> None:
    """The slot was given, and the call never came to know of it."""

    async def main() -> None:
        slots = Slots(1)
        await slots.enter()
        first, second = asyncio.create_task(slots.enter()), asyncio.create_task(slots.enter())
        await asyncio.sleep(0)
        slots.leave()
        first.cancel()
        await second
        assert first.cancelled()
        assert slots.in_flight == 1

    run(main)


def test_a_pause_has_an_end_whatever_a_provider_asks() -> None:
    """A day's pause is a minute's, and a shorter one does not shorten it."""
    slots = Slots(1)
    slots.pause(86_400, 100.0)
    slots.pause(1, 100.0)
    assert slots.paused_until_s == 100.0 + LONGEST_PAUSE_S
