"""Limits of wall time where the machine may be busy with other things.

Such a test is run again when it took too long, and fails if it does so every time (see ``conftest.py``): what the
machine adds is not there each time, and what the code waits for is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

TRIES = 4


class TookTooLongError(AssertionError):
    """Of a test, this time."""


def assert_quick(took_s: float, limit_s: float) -> None:
    """It took less than so many seconds."""
    if took_s >= limit_s:
        raise TookTooLongError(f"{took_s:.3f} s, and not below {limit_s:g} s")


@contextlib.contextmanager
def within(limit_s: float) -> Iterator[None]:
    """What is done inside takes less than so many seconds."""
    started = time.monotonic()
    yield
    assert_quick(time.monotonic() - started, limit_s)
