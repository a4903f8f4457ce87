"""What there is to see of judges in trouble: fallbacks in use, and money that runs short."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import func, select

from evalpipe.store.judge_states import JudgeState, waiting_for
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import judge_calls, judge_spend, scores, work

WINDOW: Final = timedelta(minutes=5)
"""A score of a fallback judge that is older than this says nothing of now."""
CAPTURED: Final = timedelta(minutes=30)
"""How long before its score a record was captured at the most, to be looked at: bounds what is read."""


def fallbacks(tx: Transaction, now: datetime) -> list[Any]:
    """Scores of the last minutes that a later step of a ladder gave: scorecard, criterion, step, scorer and ``n``."""
    of = scores.c.scorecard, scores.c.criterion, scores.c.step, scores.c.scorer
    query = select(*of, func.count().label("n")).where(
        scores.c.captured_at >= now - WINDOW - CAPTURED, scores.c.scored_at >= now - WINDOW, scores.c.step > 0
    )
    return list(tx.connection.execute(query.group_by(*of).order_by(*of)))


def nobody_asks(tx: Transaction, judge: str, state: JudgeState, now: datetime) -> datetime | None:
    """Since when a judge that failed may be tried again, where nobody needs it: no work waits for it, and no call came.

    None while its breaker is open, while work waits for it, and for ``WINDOW`` after its last call.
    """
    since = {"open": state.until_at, "half_open": state.since_at}.get(state.state)
    if since is None or since > now:
        return None
    called = select(judge_calls.c.n).where(judge_calls.c.judge == judge, judge_calls.c.minute_at > now - WINDOW)
    starts = work.c.reason.startswith(waiting_for(judge), autoescape=True)
    waits = select(work.c.work_id).where(work.c.state == "pending", starts)
    needed = any(tx.connection.execute(query.limit(1)).first() is not None for query in (called, waits))
    return None if needed else since


def spending(tx: Transaction, now: datetime) -> dict[str, float]:
    """US dollars that are spent or held today (UTC), by scope."""
    query = select(judge_spend.c.scope, judge_spend.c.spent_usd + judge_spend.c.reserved_usd)
    rows = tx.connection.execute(query.where(judge_spend.c.day == now.astimezone(UTC).date().isoformat()))
    return {scope: usd for scope, usd in rows}  # noqa: C416 - a row is no pair for dict()
