"""Votes: what judges said of works, and what of it need not be asked for again."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, select

from evalpipe.judges.base import Grade
from evalpipe.score import Status
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import grades
from evalpipe.store.works import Work


@dataclass(frozen=True, slots=True)
class Cast:
    """One judge's vote on one work, as it goes into the store.

    Attributes:
        version: the judge's and the prompt's.
        vote: number among those of this judge.
        role: ``first``, ``swapped`` or ``escalated``.
        key: equal for equal questions.
        reused: the grade was known, and cost nothing.
    """

    work: Work
    version: str
    grade: Grade
    vote: int = 0
    role: str = "first"
    key: str = ""
    reused: bool = False


def add_grades(tx: Transaction, votes: Sequence[Cast], now: datetime) -> None:
    """Keep what judges said."""
    tx.insert_new(grades, [_grade_row(vote, now) for vote in votes])


def known_grades(tx: Transaction, keys: Sequence[str]) -> dict[str, dict[str, Grade]]:
    """Grades that equal questions got, by key and criterion; those of erased records have lost their words."""
    if not keys:
        return {}
    settled = grades.c.status.in_(("scored", "abstained")), grades.c.reused == 0
    found: dict[str, dict[str, Grade]] = {}
    for _, key, criterion, grade in _grades(tx, grades.c.content_key.in_(keys), *settled):
        found.setdefault(key, {})[criterion] = grade
    return found


def failed_votes(tx: Transaction, work_ids: Collection[str]) -> dict[str, dict[str, dict[str, Grade]]]:
    """Votes of these works that were errors, by work, key and criterion: paid for, repaired in vain, and final."""
    found: dict[str, dict[str, dict[str, Grade]]] = {}
    if work_ids:
        for work_id, key, criterion, grade in _grades(tx, grades.c.work_id.in_(work_ids), grades.c.status == "error"):
            found.setdefault(work_id, {}).setdefault(key, {})[criterion] = grade
    return found


def cost_usd(tx: Transaction, work_ids: Collection[str]) -> dict[str, float]:
    """US dollars that the votes of works cost, those of earlier attempts too."""
    if not work_ids:
        return {}
    cost = func.coalesce(func.sum(grades.c.cost_usd), 0.0)
    query = select(grades.c.work_id, cost).where(grades.c.work_id.in_(work_ids)).group_by(grades.c.work_id)
    return {work_id: float(usd) for work_id, usd in tx.connection.execute(query)}


def _grades(tx: Transaction, *where: ColumnElement[bool]) -> Iterator[tuple[str, str, str, Grade]]:
    """Stored grades with their work, key and criterion."""
    told = ("value", "label", "explanation", "quotation", "raw", "cause", "reading", "confidence")
    names = ("work_id", "content_key", "criterion", "status", *told)
    for row in tx.connection.execute(select(*(grades.c[name] for name in names)).where(*where)).mappings():
        grade = Grade(Status(row["status"]), **{name: row[name] for name in told})
        yield row["work_id"], row["content_key"], row["criterion"], grade


def _grade_row(vote: Cast, now: datetime) -> dict[str, Any]:
    item, grade, answer = vote.work, vote.grade, vote.grade.answer
    return {
        "work_id": item.work_id,
        "judge_version": vote.version,
        "vote": vote.vote,
        "record_id": item.record_id,
        "criterion": item.criterion,
        "status": grade.status.value,
        "value": grade.value,
        "label": grade.label,
        "explanation": grade.explanation,
        "quotation": grade.quotation,
        "raw": grade.raw,
        "cause": grade.cause,
        "reading": grade.reading,
        "confidence": grade.confidence,
        "role": vote.role,
        "content_key": vote.key,
        "reused": int(vote.reused),
        "model": answer.model if answer else "",
        "fingerprint": answer.fingerprint if answer else "",
        "request_id": answer.request_id if answer else "",
        "input_tokens": answer.input_tokens if answer else 0,
        "cached_tokens": answer.cached_tokens if answer else 0,
        "output_tokens": answer.output_tokens if answer else 0,
        "cost_usd": answer.cost_usd if answer else 0.0 if vote.reused else None,
        "latency_ms": answer.latency_ms if answer else None,
        "attempts": 0 if vote.reused else answer.attempts if answer else item.attempts,
        "graded_at": now,
    }
