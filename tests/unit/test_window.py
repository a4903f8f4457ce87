"""The sliding window: nobody waits for the slowest, nothing is lost, and a quick stream is claimed ahead."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest
from stopwatch import assert_quick

from evalpipe.pipeline.window import Window


class Work:
    """Tasks are seconds to sleep; counts what a window does with them."""

    def __init__(self, tasks: Sequence[float], width: int = 10, *, commit_s: float = 0.0, claim_s: float = 0.0) -> None:
        self.owed = list(tasks)
        self.committed: list[float] = []
        self.renewed: list[int] = []
        self.under_way = self.most = self.ahead = 0
        self._commit_s, self._claim_s = commit_s, claim_s
        self.window = Window[float, float](
            width, claim=self.claim, run=self.run, commit=self.commit, renew=self.renew, renew_every_s=0.05
        )

    def claim(self, limit: int, held: Sequence[float]) -> list[float]:
        """The next ones."""
        time.sleep(self._claim_s)
        taken, self.owed = self.owed[:limit], self.owed[limit:]
        self.ahead = max(self.ahead, len(held) + len(taken) - self.under_way)
        return taken

    async def run(self, seconds: float) -> float:
        """Sleep."""
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(seconds)
        self.under_way -= 1
        return seconds

    def commit(self, ended: Sequence[float]) -> None:
        """Keep them."""
        time.sleep(self._commit_s)
        self.committed += ended

    def renew(self, held: Sequence[float]) -> None:
        """Count them."""
        self.renewed.append(len(held))


def drained(work: Work, seconds: float = 60.0) -> float:
    """Seconds that a drain takes."""
    started = time.monotonic()
    asyncio.run(work.window.drain(seconds))
    return time.monotonic() - started


def test_every_task_is_committed_once_and_never_too_many_run() -> None:
    """Whatever the speeds of claims, tasks and commits are."""
    tasks = [0.001 * (i % 7) for i in range(500)]
    work = Work(tasks, commit_s=0.01, claim_s=0.005)
    drained(work)
    assert sorted(work.committed) == sorted(tasks)
    assert work.most <= 10


def test_slow_tasks_claims_and_commits_idle_nothing() -> None:
    """One task of a second among a hundred short ones, with claims and commits that take as long as a task."""
    work = Work([1.0, *[0.1] * 100], commit_s=0.1, claim_s=0.1)
    took = drained(work)
    assert len(work.committed) == 101
    assert_quick(took, 2.2)  # 1.1 s of tasks; with the claims between them it would take 2.2 s, with the commits more


def test_a_straggler_goes_on_with_the_next_drain_where_more_waits() -> None:
    """One slow task at the end of a drain does not keep what is owed waiting, and is neither lost nor run twice."""
    work = Work([1.0, *[0.02] * 400])

    async def twice() -> tuple[int, float, int]:
        started = time.monotonic()
        left = await work.window.drain(0.2)
        assert_quick(time.monotonic() - started, 0.9)
        early = len(work.committed)
        assert 1.0 not in work.committed
        return left, early, await work.window.drain(60)

    left, early, at_last = asyncio.run(twice())
    assert (left, at_last) == (1, 0)
    assert 0 < early < 401
    assert sorted(work.committed) == sorted([1.0, *[0.02] * 400])


def test_the_last_task_of_all_is_waited_for() -> None:
    """Where nothing more is owed, a drain ends with its slowest task."""
    work = Work([0.5, 0.01])

    async def twice() -> list[int]:
        return [await work.window.drain(0.1), await work.window.drain(0.1)]

    assert asyncio.run(twice())[-1] == 0
    assert work.committed == [0.01, 0.5]


def test_nothing_is_claimed_ahead_of_slow_tasks() -> None:
    """What cannot start soon is left to other workers."""
    work = Work([0.6] * 12, width=4)
    drained(work)
    assert len(work.committed) == 12
    assert work.ahead <= 8  # four start together, and four more are claimed when these have ended together


def test_no_task_is_claimed_after_the_time_is_over() -> None:
    """Those under way end and are committed."""
    work = Work([0.05] * 1000, width=5)
    assert_quick(drained(work, 0.3), 2.0)
    assert work.owed
    assert len(work.committed) + len(work.owed) == 1000


def test_what_is_held_is_renewed() -> None:
    """Also what was claimed ahead."""
    work = Work([0.4] * 10)
    drained(work)
    assert 10 in work.renewed


def test_an_error_of_the_store_ends_the_drain() -> None:
    """And what is under way is given up: its leases end."""
    work = Work([0.01, *[5.0] * 9])

    def broken(_: Sequence[float]) -> None:
        raise OSError("the store is away")

    work.window._commit = broken
    started = time.monotonic()
    with pytest.raises(OSError, match="away"):
        drained(work)
    assert_quick(time.monotonic() - started, 2.0)


def test_what_ended_is_committed_although_the_drain_fails() -> None:
    """It was paid for: when nothing more can be claimed, and when a commit fails that would not fail again."""
    work = Work([0.01, 0.02, *[5.0] * 8])
    claim = work.window._claim

    def once(limit: int, held: Sequence[float]) -> Sequence[float]:
        if work.owed:
            return claim(limit, held)
        time.sleep(0.1)  # sooner than what ends is committed
        raise OSError("the store is away")

    work.window._claim = once
    with pytest.raises(OSError, match="away"):
        drained(work)
    assert work.committed == [0.01, 0.02]

    work = Work([0.01] * 3)
    failed: list[int] = []

    def fails_once(ended: Sequence[float]) -> None:
        if not failed:
            failed.append(1)
            raise OSError("the store was away")
        work.committed += ended

    work.window._commit = fails_once
    with pytest.raises(OSError, match="was away"):
        drained(work)
    assert work.committed == [0.01] * 3


def test_a_drain_that_is_cancelled_leaves_no_task_behind() -> None:
    """A warning about one would fail this test."""
    work = Work([5.0] * 10)

    async def go() -> None:
        task = asyncio.create_task(work.window.drain(60.0))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert work.under_way == 10
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(go())
