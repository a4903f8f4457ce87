"""Worlds whose scorecard has the judged criteria that a test asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages import World

from evalpipe.store.tables import scores

CARD = """
name: support
match: {{service: desk}}
criteria:
  - {{name: length, heuristic: length, params: {{max: 200}}}}
{criteria}
"""


@contextmanager
def judged_worlds(url: str, home: Path) -> Iterator[Callable[..., World]]:
    """Makes worlds with the judged criteria that it is given, ``c0``, ``c1`` and so on; closes them in the end."""
    made: list[World] = []

    def make(*judges: str, **options: Any) -> World:
        lines = "\n".join(f"  - {{name: c{n}, judge: {{{text}}}}}" for n, text in enumerate(judges))
        made.append(World(url, home, card=CARD.format(criteria=lines), **options))
        return made[-1]

    yield make
    for world in made:
        world.close()


def boolean(**fields: str) -> str:
    """A judge of kind boolean, as YAML."""
    return ", ".join(
        ["kind: boolean", 'rubric: "Is it right?"', *(f"{name}: {value}" for name, value in fields.items())]
    )


def judged(world: World) -> list[dict[str, Any]]:
    """The judged scores, by record and criterion."""
    found = [row for row in world.rows(scores) if row["criterion"] != "length"]
    return sorted(found, key=lambda row: (row["record_id"], row["criterion"]))
