"""Rollouts, their ordered evidence, and the decisions made on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import and_, func, select, update

from evalpipe.store.ledgers import ENDED_UNGRADED
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import decisions, evidence, rollouts, scores, work


@dataclass(frozen=True, slots=True)
class Entrant:
    """A record that enters a rollout, in the order of arrival.

    Its scores weigh ``factor`` times as much here as in estimates of the traffic.
    """

    record_id: str
    arm: str
    unit: str
    captured_at: datetime
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Reading:
    """One criterion of one record in a rollout's evidence; ``status`` is None while the score is still owed."""

    seq: int
    record_id: str
    arm: str
    unit: str
    at: datetime
    captured_at: datetime
    criterion: str
    status: str | None
    value: float | None
    weight: float
    epoch: str
    scored_at: datetime | None


def running(tx: Transaction, service: str, environment: str) -> list[Any]:
    """The rollouts that take evidence: a rollback is latched, and needs none."""
    query = select(rollouts).where(
        rollouts.c.service == service,
        rollouts.c.environment == environment,
        rollouts.c.phase == "running",
    )
    return list(tx.connection.execute(query.order_by(rollouts.c.rollout_id)))


def open_rollout(tx: Transaction, values: Mapping[str, Any]) -> bool:
    """Start a rollout unless it is there; says whether it was started now.

    It supersedes running ones of the same service, environment and scorecard: a new canary release has replaced theirs.
    """
    if not tx.insert_new(rollouts, [values]):
        return False
    same = [rollouts.c[name] == values.get(name, "") for name in ("service", "environment", "scorecard")]
    older = update(rollouts).where(*same, rollouts.c.rollout_id != values["rollout_id"], rollouts.c.phase == "running")
    tx.connection.execute(older.values(phase="superseded", updated_at=values["updated_at"]))
    return True


def add_evidence(tx: Transaction, rollout_id: str, entrants: Sequence[Entrant], now: datetime) -> None:
    """Give records their place in the rollout's order. The rollout's row is locked until the transaction ends."""
    statement = (
        update(rollouts)
        .where(rollouts.c.rollout_id == rollout_id)
        .values(evidence_seq=rollouts.c.evidence_seq + len(entrants))
        .returning(rollouts.c.evidence_seq)
    )
    last: int = tx.connection.execute(statement).scalar_one()
    first = last - len(entrants) + 1
    rows = [
        {
            "rollout_id": rollout_id,
            "seq": first + i,
            "record_id": e.record_id,
            "arm": e.arm,
            "unit": e.unit,
            "at": now,
            "captured_at": e.captured_at,
            "factor": e.factor,
        }
        for i, e in enumerate(entrants)
    ]
    tx.connection.execute(evidence.insert(), rows)


def list_running(tx: Transaction) -> list[str]:
    """Rollouts that have not ended."""
    return list(tx.connection.scalars(select(rollouts.c.rollout_id).where(rollouts.c.phase == "running")))


def lock(tx: Transaction, rollout_id: str) -> Any | None:
    """The rollout, for this evaluator alone until the transaction ends; None if another has it.

    The row itself is not locked: it is what gives evidence its order, so ingest would stand still, and under load keep
    every evaluator out.
    """
    if tx.is_postgresql:
        key = func.hashtextextended(f"evalpipe.rollout:{rollout_id}", 0)
        if not tx.connection.scalar(select(func.pg_try_advisory_xact_lock(key))):
            return None
    return tx.connection.execute(select(rollouts).where(rollouts.c.rollout_id == rollout_id)).first()


def readings(
    tx: Transaction, rollout_id: str, after: int, criteria: Sequence[str], scorecard: str, limit: int
) -> list[Reading]:
    """The next records of a rollout with their scores for the gates' criteria, in order."""
    entrants = (
        select(evidence)
        .where(evidence.c.rollout_id == rollout_id, evidence.c.seq > after)
        .order_by(evidence.c.seq)
        .limit(limit)
        .subquery()
    )
    found: dict[tuple[int, str], Reading] = {}
    rows = tx.connection.execute(select(entrants).order_by(entrants.c.seq)).all()
    by_record = {row.record_id: row for row in rows}
    for row in rows:
        for criterion in criteria:
            found[row.seq, criterion] = Reading(
                row.seq, row.record_id, row.arm, row.unit, row.at, row.captured_at, criterion, None, None, 1.0, "", None
            )
    scored = select(scores).where(
        scores.c.record_id.in_(by_record), scores.c.criterion.in_(criteria), scores.c.scorecard == scorecard
    )
    # The first score stands: rescoring under another version must not change what is being decided.
    for s in tx.connection.execute(scored.order_by(scores.c.scored_at.desc(), scores.c.epoch)):
        row = by_record[s.record_id]
        found[row.seq, s.criterion] = Reading(
            row.seq, row.record_id, row.arm, row.unit, row.at, row.captured_at,
            s.criterion, s.status, s.value, s.weight * row.factor, s.epoch, s.scored_at,
        )  # fmt: skip
    dead = select(work.c.record_id, work.c.criterion).where(
        and_(
            work.c.record_id.in_(by_record),
            work.c.criterion.in_(criteria),
            work.c.scorecard == scorecard,
            work.c.state.in_(ENDED_UNGRADED),
        )
    )
    for record_id, criterion in tx.connection.execute(dead):
        reading = found[by_record[record_id].seq, criterion]
        if reading.status is None:
            found[reading.seq, criterion] = closed(reading)
    return [found[key] for key in sorted(found)]


def closed(reading: Reading) -> Reading:
    """A reading whose score will not come, or comes too late: an error, which never counts against an arm."""
    return Reading(
        reading.seq, reading.record_id, reading.arm, reading.unit, reading.at, reading.captured_at,
        reading.criterion, "error", None, 1.0, reading.epoch, None,
    )  # fmt: skip


def save(tx: Transaction, rollout_id: str, values: Mapping[str, Any], now: datetime) -> None:
    """Write the state of a rollout that this transaction has locked."""
    tx.connection.execute(update(rollouts).where(rollouts.c.rollout_id == rollout_id).values(updated_at=now, **values))


def add_decision(tx: Transaction, values: Mapping[str, Any]) -> bool:
    """Append a decision; False if it is already there."""
    return bool(tx.insert_new(decisions, [values]))


def list_decisions(tx: Transaction, *, rollout_id: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
    """The newest decisions, oldest of them first."""
    query = select(decisions).order_by(decisions.c.decided_at.desc(), decisions.c.seq.desc()).limit(limit)
    if rollout_id is not None:
        query = query.where(decisions.c.rollout_id == rollout_id)
    return [dict(row) for row in tx.connection.execute(query).mappings()][::-1]
