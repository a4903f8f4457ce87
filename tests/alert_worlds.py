"""Worlds whose scorecard has the alert rules that a test asks for, on the length of answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stages import World

CARD = """
name: support
match: {service: desk}
criteria:
  - {name: length, heuristic: length, params: {max: 1}}
alerts:
"""
TOO_LONG = "  - {name: too-long, criterion: length, mean: {below: 0.5}, min_sample: 10, window: 10m, severity: SEV2}\n"


@contextmanager
def alert_worlds(url: str, home: Path) -> Iterator[Callable[..., World]]:
    """Makes worlds on one database, each with the rules that it is given; closes them in the end."""
    made: list[World] = []

    def make(rules: str = TOO_LONG) -> World:
        made.append(World(url, home, card=CARD + rules))
        return made[-1]

    yield make
    for world in made:
        world.close()
