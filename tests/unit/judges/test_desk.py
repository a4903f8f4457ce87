"""The desk: every call passes it, no more at once than a judge bears, and each is noted with what came of it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from stopwatch import assert_quick

from evalpipe.errors import ConfigError, EvalpipeError, JudgeUnavailable
from evalpipe.judges.base import Judge, Prompt
from evalpipe.judges.config import common_options, open_judge, parse_judge
from evalpipe.judges.desk import Call, Desk

AT = datetime(2026, 11, 22, 12, tzinfo=UTC)
SCHEMA = {"properties": {"grade": {"enum": ["pass", "fail"]}}}


def prompt(text: str = "a record") -> Prompt:
    """A question that some scorecard pays for."""
    return Prompt("The rubric.", text, SCHEMA, account="support")


def open_model(model: str) -> Judge | None:
    """Judges that are asked once for each call; the one with many faults may hang for a fifth of a second."""
    timeout_s = 0.2 if "truncated" in model else 60.0
    return open_judge(parse_judge(model, attempts=1, timeout_s=timeout_s)) if model != "default" else None


def run(main: Callable[[Desk], Awaitable[Any]], **options: Any) -> list[Call]:
    """The calls that a desk noted of what is done with it."""
    desk = Desk(open_model, clock=lambda: AT, **options)

    async def within() -> None:
        async with asyncio.timeout(60):
            await main(desk)
        await desk.aclose()

    asyncio.run(within())
    return desk.take_calls()


async def outcomes(desk: Desk, model: str, times: int) -> list[str]:
    """What so many calls one after the other came to."""
    found = []
    for _ in range(times):
        try:
            await desk.ask(model, prompt())
        except EvalpipeError as error:
            found.append(str(getattr(error, "cause", "request")))
        else:
            found.append("answered")
    return found


def test_each_call_is_noted_with_what_came_of_it() -> None:
    """Answers by how they ended, failures by their cause and in words; and who pays."""
    acts = "pass,truncated,refused,429,529,500,504,disconnect,hang,403,400,401"
    calls = run(lambda desk: outcomes(desk, f"fake:m?acts={acts}", 12))
    assert [call.outcome for call in calls] == [
        "answered", "truncated", "refused", "throttled", "throttled", "server", "timeout", "unreachable", "timeout",
        "forbidden", "request", "key",
    ]  # fmt: skip
    assert {(call.account, call.at) for call in calls} == {("support", AT)}
    assert [call.answer is not None for call in calls] == [True] * 3 + [False] * 9
    assert [bool(call.reason) for call in calls] == [False] * 3 + [True] * 9
    assert calls[8].latency_ms >= 200
    assert "did not answer within 0.2 s" in calls[8].reason


@pytest.mark.parametrize(("status", "outcome"), [(401, "key"), (402, "credit"), (404, "gone")])
def test_a_rejection_holds_the_calls_that_follow_until_the_store_knows(status: int, outcome: str) -> None:
    """They are not made, and say why with the words of the one that was; another judge of the model is asked."""

    async def main(desk: Desk) -> None:
        assert await outcomes(desk, f"fake:m?acts={status}", 3) == [outcome, "paused", "paused"]
        with pytest.raises(JudgeUnavailable, match=f"HTTP {status}"):
            await desk.ask(f"fake:m?acts={status}", prompt())
        assert await outcomes(desk, "fake:m", 1) == ["answered"]

    assert [call.outcome for call in run(main)] == [outcome, "answered"]


def test_an_answer_without_a_grade_counts_as_malformed() -> None:
    """Whoever reads it says so."""

    async def main(desk: Desk) -> None:
        await desk.ask("fake:m", prompt("one"))
        answer = await desk.ask("fake:m", prompt("two"))
        await desk.ask("fake:m", prompt("three"))
        desk.unread(answer)

    assert [call.outcome for call in run(main)] == ["answered", "malformed", "answered"]


def test_calls_are_taken_once() -> None:
    """The second taker finds the new ones only, and what was taken is not changed any more."""

    async def main(desk: Desk) -> None:
        answer = await desk.ask("fake:m", prompt())
        assert len(desk.take_calls()) == 1
        desk.unread(answer)
        await desk.ask("fake:m", prompt())

    assert [call.outcome for call in run(main)] == ["answered"]


def test_no_more_calls_are_under_way_than_the_concurrency() -> None:
    """Twenty calls of 50 ms, five at once, take 200 ms."""

    async def main(desk: Desk) -> None:
        started = time.perf_counter()
        await asyncio.gather(*(desk.ask("fake:m?latency_ms=50", prompt()) for _ in range(20)))
        took = time.perf_counter() - started
        assert took >= 0.2
        assert_quick(took, 0.9)

    assert len(run(main, concurrency=5)) == 20


def test_judges_of_one_model_share_its_slots() -> None:
    """Whatever their other options are: the provider counts them together."""

    async def main(desk: Desk) -> None:
        started = time.perf_counter()
        models = ["fake:m?latency_ms=50", "fake:m?latency_ms=50&acts=pass", "fake:other?latency_ms=50"]
        await asyncio.gather(*(desk.ask(model, prompt()) for model in models * 2))
        assert time.perf_counter() - started >= 0.1

    run(main, concurrency=2)


def test_a_throttled_judge_gets_fewer_calls_at_once() -> None:
    """After a burst that was turned away, the next one is slower; the other judges are not."""

    async def timed(desk: Desk, model: str) -> float:
        started = time.perf_counter()
        await asyncio.gather(*(desk.ask(model, prompt()) for _ in range(8)), return_exceptions=True)
        return time.perf_counter() - started

    async def main(desk: Desk) -> None:
        acts = "429," * 24 + "pass"
        for _ in range(3):
            await timed(desk, f"fake:m?acts={acts}&latency_ms=20")
        took = await timed(desk, f"fake:m?acts={acts}&latency_ms=20")
        assert took >= 0.059  # 8 * 0.7^3 is 2.7: two at once, then three
        assert_quick(await timed(desk, "fake:other?latency_ms=20"), took)

    calls = run(main, concurrency=8)
    assert Counter(call.outcome for call in calls) == {"throttled": 24, "answered": 16}


def test_the_pause_that_a_provider_asks_for_is_kept_by_all_calls() -> None:
    """The call that was told of it fails; the others wait, and are not turned away themselves."""

    async def main(desk: Desk) -> None:
        model = "fake:m?acts=429,pass&retry_after_s=0.3"
        assert await outcomes(desk, model, 1) == ["throttled"]
        started = time.perf_counter()
        await asyncio.gather(*(desk.ask(model, prompt()) for _ in range(4)))
        assert time.perf_counter() - started >= 0.3

    assert [call.outcome for call in run(main)] == ["throttled"] + ["answered"] * 4


def test_waiting_for_a_turn_is_no_latency() -> None:
    """A judge is not slow because many wait for it."""

    async def main(desk: Desk) -> None:
        await asyncio.gather(*(desk.ask("fake:m?latency_ms=20", prompt()) for _ in range(10)))

    assert_quick(max(call.latency_ms for call in run(main, concurrency=1)) / 1000, 0.1)


def test_a_cancelled_call_frees_its_slot() -> None:
    """A worker that stops leaves nothing behind."""

    async def main(desk: Desk) -> None:
        hanging = [asyncio.create_task(desk.ask("fake:m?acts=hang,pass", prompt())) for _ in range(3)]
        await asyncio.sleep(0.01)
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
        await desk.ask("fake:m?acts=hang,pass", prompt())

    assert [call.outcome for call in run(main, concurrency=1)] == ["answered"]


def test_a_judge_that_is_not_configured_is_named() -> None:
    """With what to set."""
    with pytest.raises(ConfigError, match="no judge is configured for model 'default': set EVALPIPE_JUDGE"):
        Desk(open_model, clock=lambda: AT).judge("default")


def test_limits_are_written_with_the_judge_and_are_no_part_of_its_version() -> None:
    """A new limit opens no new epoch."""
    config = parse_judge("fake:m?rpm=600&tpm=1e6&usd_per_day=5&retires=2027-03-31&latency_ms=5")
    options = common_options(config)
    assert (options.rpm, options.tpm, options.usd_per_day, options.retires) == (600, 1e6, 5, "2027-03-31")
    assert open_judge(config).version == "fake:m"


@pytest.mark.parametrize("written", ["rpm=0", "rpm=many", "tpm=-1", "usd_per_day=-1", "retires=soon", "retires=2027"])
def test_a_wrong_limit_is_named_with_its_value(written: str) -> None:
    """By the option's name."""
    name, _, value = written.partition("=")
    with pytest.raises(ConfigError, match=rf"option '{name}': .*{value}"):
        common_options(parse_judge(f"fake:m?{written}"))
