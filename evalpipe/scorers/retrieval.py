"""Did retrieval find anything, and is it still fresh?"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from pydantic import Field

from evalpipe.record import Record
from evalpipe.score import Score, abstained, scored, skipped
from evalpipe.scorecard.values import Lasting, format_duration
from evalpipe.scorers import base


class RetrievalParams(base.Params):
    """Parameters of ``retrieval``."""

    min: int = Field(1, ge=1, description="Documents with text that there must be; with fewer the value is 0.")
    min_score: float | None = Field(
        None, description="A document whose 'score' is lower counts as not found; one without a score is found."
    )
    max_age: Lasting | None = Field(
        None, description="Older documents are stale, by 'date_field': `7d`, `12h`. Empty: age does not matter."
    )
    date_field: str = Field(
        "updated_at",
        min_length=1,
        description="Where a document has its date: ISO 8601 text or seconds since 1970. Where it has none, the "
        "attribute of the record with this name is taken, for example the time of the index.",
    )


@base.heuristics.register("retrieval")
class Retrieval:
    """The share of the documents found that are fresh; 0 if too few were found. Labels ``found``, ``empty``, ``stale``.

    Every record that has no context counts, so this is for features that retrieve for every answer: give the criterion
    its features in ``match``. With ``max_age`` it abstains where no document has a date.
    """

    Params: ClassVar[type[base.Params]] = RetrievalParams
    version: ClassVar[str] = "1"

    def __init__(self, params: RetrievalParams) -> None:
        self._params = params

    def score(self, record: Record) -> Score:
        """The score of ``record``."""
        if record.error:
            return skipped(f"the call failed: {record.error[:200]}")
        params = self._params
        found = [document for document in record.context if self._found(document)]
        if len(found) < params.min:
            return scored(0.0, "empty", f"{len(found)} documents with text were found, at least {params.min} wanted")
        if params.max_age is None:
            return scored(1.0, "found")
        return self._aged(record, found, params.max_age)

    def _found(self, document: Any) -> bool:
        if not isinstance(document, Mapping):
            return False
        text, score = document.get("text"), document.get("score")
        if not isinstance(text, str) or not text.strip():
            return False
        if self._params.min_score is None or not isinstance(score, int | float) or isinstance(score, bool):
            return True
        return score >= self._params.min_score

    def _aged(self, record: Record, found: list[Mapping[str, Any]], most: timedelta) -> Score:
        common = _instant(record.attributes.get(self._params.date_field))
        dates = [_instant(document.get(self._params.date_field)) or common for document in found]
        ages = [record.captured_at - date for date in dates if date is not None]
        if not ages:
            return abstained(f"no document has a date in {self._params.date_field[:80]!r}, nor has the record")
        fresh = sum(age <= most for age in ages)
        oldest = format_duration(max(*ages, timedelta(0)))
        return scored(
            fresh / len(ages), "found" if fresh == len(ages) else "stale", f"the oldest of {len(ages)} is {oldest} old"
        )


def _instant(value: Any) -> datetime | None:
    """The time in a field; None if it is none. Without a zone it is UTC."""
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC)
        at = datetime.fromisoformat(value.strip()) if isinstance(value, str) else None
    except (ValueError, OverflowError, OSError):
        return None
    return at.replace(tzinfo=UTC) if at is not None and at.tzinfo is None else at
