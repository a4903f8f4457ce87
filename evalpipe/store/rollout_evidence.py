"""The ordered evidence of a rollout: records in the order of arrival, and what is known of each by criterion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select, update

from evalpipe.scorecard.rollout import COST, MEASURED
from evalpipe.store.ledgers import ENDED_UNGRADED
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import evidence, rollouts, scores, work
from evalpipe.store.works import OWED


@dataclass(frozen=True, slots=True)
class Entrant:
    """A record that enters a rollout, in the order of arrival.

    Attributes:
        unit: names its user or conversation, and nobody can read whom.
        captured_at: no later than its arrival, whatever the clock of its hook said.
        weight: of the record.
        factor: its scores weigh so many times as much here as in estimates of the traffic.
        pair: while shadowing: names the input.
        cost_usd, latency_ms, ttft_ms: of the call; None if unknown.
        unpriced: it has tokens and no cost: a model without a price.
    """

    record_id: str
    arm: str
    unit: str
    captured_at: datetime
    weight: float = 1.0
    factor: float = 1.0
    pair: str = ""
    segment: str = ""
    cost_usd: float | None = None
    latency_ms: float | None = None
    ttft_ms: float | None = None
    unpriced: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """One criterion of one record in a rollout's evidence.

    Attributes:
        at: when it arrived.
        status: None while the score is still owed.
        asked: whether a score is owed for it; else it waits for another criterion to say so.
    """

    seq: int
    record_id: str
    arm: str
    unit: str
    at: datetime
    captured_at: datetime
    criterion: str
    status: str | None = None
    value: float | None = None
    weight: float = 1.0
    epoch: str = ""
    pair: str = ""
    segment: str = ""
    asked: bool = True


def add(tx: Transaction, rollout_id: str, entrants: Sequence[Entrant], now: datetime) -> None:
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
        {"rollout_id": rollout_id, "seq": first + i, "at": now, **{name: getattr(e, name) for name in _COPIED}}
        for i, e in enumerate(entrants)
    ]
    tx.connection.execute(evidence.insert(), rows)


def readings(
    tx: Transaction,
    rollout_id: str,
    after: Mapping[str, int],
    scorecard: str,
    limit: int,
    *,
    confirms: Mapping[str, str] | None = None,
) -> dict[str, list[Reading]]:
    """The next records of a rollout with what is known of them, by criterion and in order.

    Args:
        tx: the transaction.
        rollout_id: of the rollout.
        after: by criterion: the newest place that needs not be read again.
        scorecard: whose scores count.
        limit: records read for each criterion, at the most.
        confirms: by criterion: the one whose flags it confirms, so that its score is only then owed.
    """
    windows = {place: _entrants(tx, rollout_id, place, limit) for place in sorted(set(after.values()))}
    names = [name for name in after if name not in MEASURED]
    asked = [*names, *(name for name in (confirms or {}).values() if name not in names)]
    ids = sorted({row.record_id for rows in windows.values() for row in rows})
    # Work before scores: what ends in between has its score, and is not taken for something that nobody will score.
    states = _states(tx, ids, asked, scorecard)
    known = _scores(tx, ids, asked, scorecard)
    look = _Look(states, known, confirms or {})
    return {
        name: [_measured(row, name) if name in MEASURED else look.reading(row, name) for row in windows[place]]
        for name, place in after.items()
    }


def closed(reading: Reading) -> Reading:
    """A reading whose score will not come, or comes too late: an error, which never counts against an arm."""
    return replace(reading, status="error" if reading.asked else "skipped")


def complete(found: Sequence[Reading], late_before: datetime, asked_later: timedelta = timedelta(0)) -> list[Reading]:
    """The readings of one criterion up to the first that still waits for its score; late ones are closed.

    ``asked_later``: by so much later what confirms is asked at the latest, and its answer is late.

    Order is that of arrival, never that in which judges answer: a judge that is slow on bad answers must not make them
    count later.
    """
    return list(_up_to_the_first_that_waits(found, late_before, asked_later))


def _up_to_the_first_that_waits(
    found: Sequence[Reading], late_before: datetime, asked_later: timedelta
) -> Iterator[Reading]:
    for reading in found:
        if reading.status is not None:
            yield reading
        elif reading.at <= (late_before - asked_later if reading.asked else late_before):
            yield closed(reading)
        else:
            return


@dataclass(frozen=True, slots=True)
class _Look:
    """What is known of records, by record and criterion."""

    states: Mapping[tuple[str, str], str]
    scores: Mapping[tuple[str, str], Any]
    confirms: Mapping[str, str]

    def reading(self, row: Any, criterion: str) -> Reading:
        key = row.record_id, criterion
        found = _reading(row, criterion)
        score = self.scores.get(key)
        if score is not None:
            return replace(
                found, status=score.status, value=score.value, weight=score.weight * row.factor, epoch=score.epoch
            )
        state = self.states.get(key)
        if state in OWED:
            return found
        if state in ENDED_UNGRADED:
            return closed(found)
        # Nobody owes a score; unless it is owed once another criterion has found a flag.
        first = self.confirms.get(criterion)
        waits = first is not None and self.states.get((row.record_id, first)) in OWED
        return replace(found, asked=False, status=None if waits else "skipped")


def _reading(row: Any, criterion: str) -> Reading:
    return Reading(
        row.seq, row.record_id, row.arm, row.unit, row.at, row.captured_at, criterion,
        pair=row.pair, segment=row.segment,
    )  # fmt: skip


def _measured(row: Any, criterion: str) -> Reading:
    value = getattr(row, criterion)
    # A cost that nobody knows is missing: else the calls of a model without a price would be left out unseen.
    missing = "error" if criterion == COST and row.unpriced else "skipped"
    status = missing if value is None else "scored"
    return replace(_reading(row, criterion), status=status, value=value, weight=row.weight * row.factor)


def _entrants(tx: Transaction, rollout_id: str, after: int, limit: int) -> list[Any]:
    mine = evidence.c.rollout_id == rollout_id, evidence.c.seq > after
    return list(tx.connection.execute(select(evidence).where(*mine).order_by(evidence.c.seq).limit(limit)))


def _states(tx: Transaction, ids: Sequence[str], criteria: Sequence[str], scorecard: str) -> dict[tuple[str, str], str]:
    """The state of the work that is or was owed; of several versions' that of one which still is."""
    query = select(work.c.record_id, work.c.criterion, work.c.state).where(
        work.c.record_id.in_(ids), work.c.criterion.in_(criteria), work.c.scorecard == scorecard
    )
    rows = tx.connection.execute(query).all() if ids else []
    return {(row.record_id, row.criterion): row.state for row in sorted(rows, key=lambda row: row.state in OWED)}


def _scores(tx: Transaction, ids: Sequence[str], criteria: Sequence[str], scorecard: str) -> dict[tuple[str, str], Any]:
    """The first score stands: rescoring under another version must not change what is being decided."""
    columns = (scores.c[name] for name in ("record_id", "criterion", "status", "value", "weight", "epoch"))
    query = select(*columns).where(
        scores.c.record_id.in_(ids), scores.c.criterion.in_(criteria), scores.c.scorecard == scorecard
    )
    newest_first = query.order_by(scores.c.scored_at.desc(), scores.c.epoch)
    return {(row.record_id, row.criterion): row for row in tx.connection.execute(newest_first)} if ids else {}


_COPIED = tuple(Entrant.__slots__)
