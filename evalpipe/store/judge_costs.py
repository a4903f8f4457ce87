"""What judges cost, as it was counted: calls by judge and scorecard, what caps have left, and what a forecast needs."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import case, func, select

from evalpipe.store.purse import THINNED
from evalpipe.store.spend import day_of
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import grades, judge_calls, judge_spend, records, scorecards, scores, work


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls of one judge for one scorecard with one outcome.

    Attributes:
        judge: its version.
        scorecard: who pays; "" for nobody, such as a command line.
        outcome: ``answered``, or what went wrong.
    """

    judge: str
    scorecard: str
    outcome: str
    n: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_usd: float


@dataclass(frozen=True, slots=True)
class Spend:
    """A scope's day; see ``purse``."""

    scope: str
    spent_usd: float
    reserved_usd: float
    keep: float


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Works of a criterion that were not judged, to save money.

    Attributes:
        thinned: left out by chance; those that were kept stand for them.
        shed: no money was left for them; they have no score.
    """

    scorecard: str
    criterion: str
    thinned: int
    shed: int


@dataclass(frozen=True, slots=True)
class Sample:
    """Records at random.

    Attributes:
        n: records that fitted.
        ids: of some of them.
    """

    n: int
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Took:
    """Tokens of a call, the shares of so many criteria together."""

    input_tokens: int
    output_tokens: int
    criteria: int


@dataclass(frozen=True, slots=True)
class Told:
    """How often a criterion's scores came out in which way."""

    n: int
    escalated: int
    unsure: int
    failed: int


def read_calls(tx: Transaction, since: datetime) -> list[Calls]:
    """All calls from ``since`` on."""
    keys = judge_calls.c.judge, judge_calls.c.scorecard, judge_calls.c.outcome
    names = ("n", "input_tokens", "cached_tokens", "output_tokens", "cost_usd")
    query = select(*keys, *(func.sum(judge_calls.c[name]).label(name) for name in names))
    rows = tx.connection.execute(query.where(judge_calls.c.minute_at >= since).group_by(*keys).order_by(*keys))
    return [
        Calls(r.judge, r.scorecard, r.outcome, int(r.n), int(r.input_tokens), int(r.cached_tokens),
              int(r.output_tokens), float(r.cost_usd))
        for r in rows
    ]  # fmt: skip


def first_call_at(tx: Transaction) -> datetime | None:
    """The minute of the first call that is known, or None."""
    return tx.connection.scalar(select(judge_calls.c.minute_at).order_by(judge_calls.c.minute_at).limit(1))


def first_record_at(tx: Transaction) -> datetime | None:
    """When the oldest record that is kept arrived, or None."""
    return tx.connection.scalar(select(records.c.ingested_at).order_by(records.c.ingested_at).limit(1))


def read_spend(tx: Transaction, now: datetime) -> dict[str, Spend]:
    """Today's money by scope."""
    rows = tx.connection.execute(select(judge_spend).where(judge_spend.c.day == day_of(now)))
    return {r.scope: Spend(r.scope, r.spent_usd, r.reserved_usd, r.keep) for r in rows}


def read_left_out(tx: Transaction, now: datetime) -> list[LeftOut]:
    """Works that were due today (UTC) and left out, by scorecard and criterion."""
    midnight = datetime.combine(now.astimezone(UTC).date(), datetime.min.time(), UTC)
    keys = work.c.scorecard, work.c.criterion
    by_chance = func.sum(case((work.c.reason.like(f"{THINNED}%"), 1), else_=0))
    query = select(*keys, func.count().label("n"), by_chance.label("thinned"))
    rows = tx.connection.execute(
        query.where(work.c.state == "shed", work.c.due_at >= midnight).group_by(*keys).order_by(*keys)
    )
    return [LeftOut(r.scorecard, r.criterion, int(r.thinned), int(r.n) - int(r.thinned)) for r in rows]


def sample(tx: Transaction, fits: Callable[[Any], bool], since: datetime, most: int) -> Sample:
    """Records that arrived from ``since`` on, with their payload, and that ``fits`` says yes to: up to ``most``.

    The choice is by hash, so that the same day gives the same answer.
    """
    place = (records.c[n] for n in ("record_id", "service", "feature", "environment", "variant"))
    query = select(*place).where(records.c.ingested_at >= since, records.c.payload.is_not(None))
    n = 0
    chosen: list[tuple[int, str]] = []
    for row in tx.connection.execute(query.execution_options(yield_per=5_000)):
        if not fits(row):
            continue
        n += 1
        digest = hashlib.blake2b(row.record_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        entry = -int.from_bytes(digest, "big"), row.record_id
        if len(chosen) < most:
            heapq.heappush(chosen, entry)
        else:
            heapq.heappushpop(chosen, entry)
    return Sample(n, tuple(sorted(record_id for _, record_id in chosen)))


def read_tokens(tx: Transaction, record_ids: Sequence[str]) -> dict[tuple[str, str, int], Took]:
    """What first answers to these records took, by (record, judge and prompt version, vote).

    Several criteria of one call share its tokens.
    """
    query = select(grades).where(
        grades.c.record_id.in_(record_ids), grades.c.input_tokens > 0, grades.c.reused == 0, grades.c.attempts <= 1
    )
    found: dict[tuple[str, str, int], Took] = {}
    for r in tx.connection.execute(query):
        before = found.get((r.record_id, r.judge_version, r.vote), Took(0, 0, 0))
        found[r.record_id, r.judge_version, r.vote] = Took(
            before.input_tokens + r.input_tokens, before.output_tokens + r.output_tokens, before.criteria + 1
        )
    return found


def read_told(tx: Transaction, scorecard: str, since: datetime) -> dict[str, Told]:
    """How a scorecard's scores came out, by criterion."""
    unsure = case((scores.c.status.in_(("abstained", "error")), 1), else_=0)
    failed = case((scores.c.value < 1.0, 1), else_=0)
    query = (
        select(
            scores.c.criterion,
            func.count().label("n"),
            func.sum(scores.c.escalated).label("escalated"),
            func.sum(unsure).label("unsure"),
            func.sum(failed).label("failed"),
        )
        .where(scores.c.captured_at >= since, scores.c.scorecard == scorecard, scores.c.status != "skipped")
        .group_by(scores.c.criterion)
    )
    return {
        r.criterion: Told(int(r.n), int(r.escalated), int(r.unsure), int(r.failed))
        for r in tx.connection.execute(query)
    }


def body_in_force(tx: Transaction, name: str) -> dict[str, Any] | None:
    """The scorecard of that name that scored the newest record, as it was; None if none ever did."""
    newest = select(scores.c.scorecard_version).where(scores.c.scorecard == name)
    version = tx.connection.scalar(newest.order_by(scores.c.captured_at.desc()).limit(1))
    query = select(scorecards.c.body).where(scorecards.c.name == name)
    if version is not None:
        query = query.where(scorecards.c.version == version)
    body = tx.connection.scalar(query.order_by(scorecards.c.first_seen_at.desc()).limit(1))
    return None if body is None else dict(body)
