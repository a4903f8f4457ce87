"""The last evaluation of the alert rules: when it was, how long it took, and what could not be evaluated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from sqlalchemy import func, select

from evalpipe.store.sql import Transaction
from evalpipe.store.tables import evaluations, growths

_STAGE: Final = "alerts"
MOST_ERRORS: Final = 100
"""Rules whose errors are kept: of those that fail at most places."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation of every alert rule.

    Attributes:
        at: of which moment, aware UTC.
        seconds: how long it took, but for its commit.
        rules, alerts: how many rules there were, and how many states they have.
        errors: by rule, at how many places it could not be evaluated.
    """

    at: datetime
    seconds: float
    rules: int
    alerts: int
    errors: Mapping[str, int] = field(default_factory=dict)


def errors_of(rules: Iterable[str]) -> dict[str, int]:
    """How often each of these rules failed; those that fail most."""
    return dict(Counter(rules).most_common(MOST_ERRORS))


def note(tx: Transaction, done: Evaluation) -> None:
    """Keep this evaluation instead of the one before."""
    values = {"at": done.at, "seconds": done.seconds, "rules": done.rules, "alerts": done.alerts,
              "errors": dict(done.errors)}  # fmt: skip
    mine = evaluations.c.stage == _STAGE
    if not tx.connection.execute(evaluations.update().where(mine).values(values)).rowcount:
        tx.insert_new(evaluations, [{"stage": _STAGE, **values}])


def last(tx: Transaction) -> Evaluation | None:
    """The last one; None if there never was one."""
    row = tx.connection.execute(select(evaluations).where(evaluations.c.stage == _STAGE)).first()
    return None if row is None else Evaluation(row.at, row.seconds, row.rules, row.alerts, row.errors)


def waiting(tx: Transaction) -> tuple[int, datetime | None]:
    """Commits of scores that no evaluation has folded, and when the oldest of them was."""
    n, oldest = tx.connection.execute(select(func.count(), func.min(growths.c.at))).one()
    return n, oldest
