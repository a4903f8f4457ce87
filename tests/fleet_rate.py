"""Processes that ask a judge as fast as its limits allow: a module of its own, so that a new process can import it."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

from evalpipe.judges.base import Judge, Prompt
from evalpipe.judges.config import common_options, open_judge, parse_judge
from evalpipe.judges.desk import Call, Desk

SCHEMA = {"properties": {"grade": {"enum": ["pass", "fail"]}}}


def desk(redis_url: str, **options: int) -> Desk:
    """A desk with limits over the fleet."""

    def open_model(model: str) -> Judge:
        return open_judge(parse_judge(model, attempts=1))

    return Desk(
        open_model,
        clock=lambda: datetime.now(UTC),
        redis_url=redis_url,
        options_of=lambda model: common_options(parse_judge(model)),
        **options,
    )


async def hammer(redis_url: str, model: str, start_at: float, seconds: float) -> list[Call]:
    """Ask as much as possible for so long, 24 calls at once; the calls."""
    mine = desk(redis_url)
    prompt = Prompt("", "x", SCHEMA)

    async def ask() -> None:
        while time.time() < start_at + seconds:
            await mine.ask(model, prompt)

    await asyncio.sleep(max(0.0, start_at - time.time()))
    tasks = [asyncio.create_task(ask()) for _ in range(24)]
    await asyncio.wait(tasks, timeout=seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await mine.aclose()
    return mine.take_calls()


def in_a_process(redis_url: str, model: str, start_at: float, seconds: float) -> list[float]:
    """When the calls of one process were made, in seconds."""
    calls = asyncio.run(hammer(redis_url, model, start_at, seconds))
    return [call.at.timestamp() - call.latency_ms / 1000.0 for call in calls]
