"""Have the inputs become others?"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import ClassVar, Final, Literal

from pydantic import Field

from evalpipe.detectors.base import DetectorParams, Finding, Input, Kind, State, detectors
from evalpipe.detectors.drift import DriftParams, Test, by_embedding, by_size, by_word, find
from evalpipe.detectors.view import View
from evalpipe.detectors.windows import once_a_window

Dimension = Literal["language", "length", "topic", "entities", "schema", "feature"]
INPUT_TESTS: Final[Mapping[Dimension, Test]] = {
    "language": by_word("language", without=("", "unknown")),
    "length": by_size("input_chars", "characters"),
    "topic": by_embedding("input"),
    "entities": by_word("entities"),
    "schema": by_word("input_schema"),
    "feature": by_word("feature", without=()),
}


class InputDriftParams(DriftParams):
    """Parameters of ``input_drift``."""

    dimensions: list[Dimension] = Field(
        default_factory=lambda: list(INPUT_TESTS),
        min_length=1,
        description="What is compared: the language of the user's message, its length, its topic (by embedding), the "
        "kinds of personal data in it, its schema where it is JSON, and the mix of features.",
    )


@detectors.register("input_drift")
class InputDrift:
    """Compares what people ask in each closed window with what is normal.

    Every dimension has a test; together they keep the rate of false alarms (Holm), and each has a floor below which a
    change is too small to matter. Conversations count as wholes, and records by their weights.
    """

    Params: ClassVar[type[DetectorParams]] = InputDriftParams
    version: ClassVar[str] = "1"
    kind: ClassVar[Kind] = "input_drift"
    inputs: ClassVar[frozenset[Input]] = frozenset({"profiles"})

    def __init__(self, params: InputDriftParams) -> None:
        self._params = params
        self._tests = {name: INPUT_TESTS[name] for name in params.dimensions}

    @property
    def criteria(self) -> tuple[str, ...]:
        """None: it reads no scores."""
        return ()

    def look(self, view: View, state: State) -> tuple[State, Finding]:
        """Look at the newest closed window, once."""

        def compared(since: datetime, until: datetime) -> Finding:
            return find(view, self._params, self._tests, since, until)[0]

        return once_a_window(view, state, self._params.window, compared)
