"""What a simulation gives."""

from __future__ import annotations

from typing import Any, NamedTuple


class Fires(NamedTuple):
    """By run, the number of scores until the first key turned, and until both did; 0 is never."""

    first: Any
    both: Any
