"""The contract of a heuristic: a scorer without a model."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from evalpipe.record import Record
from evalpipe.registry import Registry
from evalpipe.score import Score


class Params(BaseModel):
    """Base of every heuristic's parameters: what a scorecard's author writes under ``params``."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Heuristic(Protocol):
    """Scores records in microseconds, deterministically, on the ingest path.

    Attributes:
        Params: the parameter model; its field descriptions are the manual.
        version: raised whenever the same record could now get another score; opens a new epoch.
    """

    Params: ClassVar[type[Params]]
    version: ClassVar[str]

    def __init__(self, params: Any) -> None:
        """Compile what can be compiled; ``params`` is a ``Params`` of the class.

        Raises:
            ConfigError: the parameters are well-formed but cannot work, for example a pattern that does not compile.
        """

    def score(self, record: Record) -> Score:
        """The score of ``record``: ``skipped`` where the criterion does not apply."""
        ...


heuristics: Registry[type[Heuristic]] = Registry("heuristic", "evalpipe.scorers")
"""All heuristics by the name that scorecards use."""
