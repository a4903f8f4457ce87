"""Is the answer as long as it should be, and did it come to its end?"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from evalpipe.errors import ConfigError
from evalpipe.record import Record
from evalpipe.score import Score, scored, skipped
from evalpipe.scorers import base
from evalpipe.scorers.answer import CUT_OFF, nothing_to_score


class LengthParams(base.Params):
    """Parameters of ``length``."""

    unit: Literal["words", "characters"] = Field(
        "words",
        description="What is counted: 'words' (by white space; use 'characters' for languages written without spaces).",
    )
    min: int = Field(1, ge=0, description="Shortest good answer.")
    max: int = Field(400, ge=1, description="Longest good answer.")
    allow_cut_off: bool = Field(
        False,
        description="Do not mind an answer that the token limit cut off (finish reason 'length' or 'max_tokens').",
    )


@base.heuristics.register("length")
class Length:
    """1 within [min, max]; below it length / min, above it max / length; 0 if the token limit cut the answer off.

    Labels ``ok``, ``short``, ``long``, ``cut off``. An empty answer of a call that worked is too short, not skipped.
    """

    Params: ClassVar[type[base.Params]] = LengthParams
    version: ClassVar[str] = "1"

    def __init__(self, params: LengthParams) -> None:
        if params.min > params.max:
            raise ConfigError(f"length: min is {params.min} and max is {params.max}: no answer can be that long")
        self._params = params

    def score(self, record: Record) -> Score:
        """The score of ``record``."""
        if record.error or (record.tool_calls and not record.output):
            return skipped(nothing_to_score(record))
        params, output = self._params, record.output
        if not params.allow_cut_off and record.finish_reason.lower() in CUT_OFF:
            return scored(
                0.0, "cut off", f"the token limit cut the answer off (finish reason {record.finish_reason!r})"
            )
        length = len(output.split()) if params.unit == "words" else len(output)
        if length < params.min:
            return scored(length / params.min, "short", f"{length} {params.unit}, at least {params.min} wanted")
        if length > params.max:
            return scored(params.max / length, "long", f"{length} {params.unit}, at most {params.max} wanted")
        return scored(1.0, "ok")
