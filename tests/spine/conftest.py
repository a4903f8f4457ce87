"""Fixtures of the end-to-end tests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from spine_fleet import Fleet


@pytest.fixture
def make_fleet(tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    """Makes fleets that are stopped at the end."""
    with contextlib.ExitStack() as exits:

        def make(redis_url: str, database_url: str, **environ: str) -> Fleet:
            fleet = Fleet(tmp_path, redis_url, database_url, environ)
            exits.callback(fleet.close)
            return fleet

        yield make
