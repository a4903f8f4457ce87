"""Requests and tokens per minute over several processes, against a real Redis."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

import pytest
import redis
from fleet_rate import SCHEMA, desk, in_a_process
from services import Valkey
from stopwatch import TookTooLongError, assert_quick

from evalpipe.judges import rates
from evalpipe.judges.base import Prompt
from evalpipe.judges.rates import CHUNK_S, Fleet, Rates


def assert_within(times: Sequence[float], per_s: float, more: float) -> None:
    """In no stretch of time there is more than the rate allows, and ``more``."""
    ordered = sorted(times)
    for first, since in enumerate(ordered):
        for last in range(first, len(ordered)):
            # The clocks of a loop and of Redis differ by some milliseconds.
            assert last - first + 1 <= per_s * (ordered[last] - since + 0.02) + more + 1


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run it, for a minute at the most."""

    async def within() -> None:
        async with asyncio.timeout(60):
            await main()

    asyncio.run(within())


def test_two_processes_share_a_limit_of_requests(redis_url: str) -> None:
    """In three seconds both together make what one may, and one chunk each at the most; nearly all of it is used."""
    per_s = 40.0
    model = f"fake:m?rpm={per_s * 60:g}&latency_ms=10"
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        ready = [pool.submit(in_a_process, redis_url, "fake:other", 0.0, 0.0) for _ in range(2)]
        assert all(future.result(60) == [] for future in ready)
        start_at = time.time() + 0.2
        found = [pool.submit(in_a_process, redis_url, model, start_at, 3.0) for _ in range(2)]
        one, two = (future.result(60) for future in found)
    chunk = per_s * CHUNK_S
    assert_within(one + two, per_s, 2 * chunk)
    assert len(one) + len(two) <= 3 * per_s + 2 * chunk
    if len(one) + len(two) < 0.85 * 3 * per_s or not 0.25 < len(one) / (len(one) + len(two)) < 0.75:
        raise TookTooLongError(f"{len(one)} and {len(two)} calls")


def test_tokens_are_counted_as_they_were_and_not_as_they_were_thought(redis_url: str) -> None:
    """Ten calls of 1,000 tokens a second; what answers were thought to have, and had not, is given back."""

    async def main() -> None:
        desks = [desk(redis_url), desk(redis_url)]
        started = time.perf_counter()
        prompt = Prompt("", "x" * 4000, SCHEMA)
        await asyncio.gather(*(mine.ask("fake:m?tpm=600000", prompt) for mine in desks * 10))
        took = time.perf_counter() - started
        answers = [call.answer for mine in desks for call in mine.take_calls() if call.answer is not None]
        tokens = sum(answer.input_tokens + answer.output_tokens for answer in answers)
        assert 20 * 1000 < tokens < 20 * 1100
        assert (tokens - 2 * (10_000 * CHUNK_S + 1_200)) / 10_000 <= took < 4
        for mine in desks:
            await mine.aclose()

    run(main)


def test_a_call_that_took_more_than_it_was_thought_to_is_paid_for_later(redis_url: str) -> None:
    """A debt of 500 tokens is half a second of 60,000 a minute, which those that come next wait for."""

    async def main() -> None:
        fleet = Fleet(redis_url)
        mine = Rates(fleet, "m", rpm=None, tpm=60_000)
        await mine.take(10)
        mine.took(10, 510, 300)
        started = time.perf_counter()
        for _ in range(30):
            await mine.take(10)
        assert time.perf_counter() - started >= (500 + 300) / 1000 - CHUNK_S
        await fleet.aclose()

    run(main)


def test_one_round_trip_to_redis_serves_many_calls(redis_url: str) -> None:
    """A chunk is a quarter of a second: a thousand calls at a thousand a second need some, and not a thousand."""

    async def main() -> None:
        mine = desk(redis_url, concurrency=64)
        with redis.Redis.from_url(redis_url) as client:
            before = client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]
            prompt = Prompt("", "x", SCHEMA)
            await asyncio.gather(*(mine.ask("fake:m?rpm=60000&latency_ms=5", prompt) for _ in range(1000)))
            after = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        assert len(mine.take_calls()) == 1000
        assert after - before < 60
        await mine.aclose()

    run(main)


def test_what_is_not_used_is_lost(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was idle does not come back with a minute's permits."""
    monkeypatch.setattr(rates, "KEPT_S", 0.1)

    async def main() -> None:
        fleet = Fleet(redis_url)
        mine = Rates(fleet, "m", rpm=6000, tpm=None)
        await asyncio.gather(*(mine.take(1) for _ in range(25)))
        await mine.take(1)
        await asyncio.sleep(0.4)
        assert not mine.take_now(1)
        await fleet.aclose()

    run(main)


def test_a_cancelled_call_does_not_hold_up_those_behind_it(redis_url: str) -> None:
    """What was taken for it serves the next."""

    async def main() -> None:
        fleet = Fleet(redis_url)
        mine = Rates(fleet, "m", rpm=120, tpm=None)
        await mine.take(1)
        waiting = [asyncio.create_task(mine.take(1)) for _ in range(3)]
        await asyncio.sleep(0.1)
        waiting[0].cancel()
        waiting[1].cancel()
        started = time.perf_counter()
        await waiting[2]
        assert_quick(time.perf_counter() - started, 0.6)
        await fleet.aclose()

    run(main)


def test_without_redis_judging_goes_on_and_comes_back_under_the_limit(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once that the limit is not kept, and once that it is again."""
    monkeypatch.setattr(rates, "BLIND_S", 0.2)
    model, prompt = "fake:m?rpm=120", Prompt("", "x", SCHEMA)
    caplog.set_level(logging.INFO, "evalpipe")

    async def main() -> None:
        mine = desk(valkey.url)
        await mine.ask(model, prompt)
        await asyncio.to_thread(valkey.kill)
        started = time.perf_counter()
        for _ in range(60):
            await mine.ask(model, prompt)
            await asyncio.sleep(0.01)
        assert_quick(time.perf_counter() - started, 5)  # under the limit it would be 30 s
        await asyncio.to_thread(valkey.start)
        await asyncio.sleep(0.3)
        started = time.perf_counter()
        for _ in range(3):
            await mine.ask(model, prompt)
        assert time.perf_counter() - started >= 0.9
        await mine.aclose()

    run(main)
    said = [record.getMessage() for record in caplog.records if "fleet" in record.getMessage()]
    assert len(said) == 2
    assert "for want of Redis" in said[0]
    assert "again" in said[1]


def test_a_judge_without_limits_asks_redis_nothing() -> None:
    """There need not even be one."""

    async def main() -> None:
        mine = desk("redis://127.0.0.1:1/0")
        await mine.ask("fake:m", Prompt("", "x", SCHEMA))
        await mine.aclose()

    run(main)
