"""Does the answer match given patterns, or keep clear of them?"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from evalpipe.record import Record
from evalpipe.score import Score, scored, skipped
from evalpipe.scorers import base
from evalpipe.scorers.answer import nothing_to_score
from evalpipe.scorers.linear import Linear, utf8


class PatternParams(base.Params):
    """Parameters of ``pattern``."""

    patterns: list[str] = Field(
        min_length=1,
        description="Regular expressions in RE2's syntax (no look-around, no back-references; '\\b' and '\\w' know "
        "ASCII only, '\\pL' is a letter of any script), searched for anywhere in the output.",
    )
    match: Literal["any", "all", "none"] = Field(
        "any", description="What is good: 'any' pattern is found, 'all' are, or 'none' is (a list of forbidden words)."
    )
    ignore_case: bool = Field(True, description="Do not tell capital from small letters.")


@base.heuristics.register("pattern")
class Pattern:
    """1 if the patterns are found as ``match`` says, else 0. Labels ``pass`` and ``fail``."""

    Params: ClassVar[type[base.Params]] = PatternParams
    version: ClassVar[str] = "1"

    def __init__(self, params: PatternParams) -> None:
        self._match = params.match
        self._patterns = [(p, Linear(p, ignore_case=params.ignore_case)) for p in params.patterns]

    def score(self, record: Record) -> Score:
        """The score of ``record``; the explanation has the pattern that decided, and for ``none`` the words found."""
        if reason := nothing_to_score(record):
            return skipped(reason)
        text = utf8(record.output)
        for pattern, regex in self._patterns:
            found = regex.first(text)
            if self._match == "all" and found is None:
                return scored(0.0, "fail", f"pattern {pattern!r} is not there")
            if self._match == "none" and found is not None:
                return scored(0.0, "fail", f"pattern {pattern!r} matches {found[:80]!r}")
            if self._match == "any" and found is not None:
                return scored(1.0, "pass", f"pattern {pattern!r} matches {found[:80]!r}")
        if self._match == "any":
            return scored(0.0, "fail", "no pattern is there")
        return scored(1.0, "pass")
