"""Hooks for tests, and what arrives in the queue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from unit.hook.harness import NOWHERE, Queue

from evalpipe import Hook


@pytest.fixture
def make_hook() -> Iterator[Callable[..., Hook]]:
    """A maker of hooks that are shut down when the test ends; by default nothing listens where they write."""
    made: list[Hook] = []

    def make(**options: Any) -> Hook:
        options = {"service": "support-bot", "redis_url": NOWHERE, "sample_rate": 1.0, **options}
        made.append(Hook(**options))
        return made[-1]

    yield make
    for hook in made:
        hook.shutdown(0.5)


@pytest.fixture
def queue(redis_url: str) -> Iterator[Queue]:
    """The queue of the test's Redis, empty."""
    queue = Queue(redis_url)
    yield queue
    queue.client.close()


@pytest.fixture
def hook(make_hook: Callable[..., Hook], redis_url: str) -> Hook:
    """A hook that captures everything and writes to the test's Redis."""
    return make_hook(redis_url=redis_url)
