"""The ledger: what became of every call, each term counted by itself.

The hooks' cumulative counters say what was observed, sampled, shed and enqueued. Receipts say what arrived. The
``ledger`` table says what became of it, written in the transaction that did it. What is in flight is counted where it
waits. Nothing is computed as the rest, so a difference between the two sides is news.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, select, update

from evalpipe.store.sql import Transaction, storable
from evalpipe.store.tables import dead_letters, ledger, meters, receipts, records, scores, work

OUTCOMES = ("scored", "skipped", "abstained", "error", "dead")
"""What can become of a record under a scorecard, or as a whole; and ``shed``, which hooks count too."""
ENDED_UNGRADED = ("dead", "shed")
"""States of works that ended without a grade."""
MOST_RECORDS = 1_000_000
"""No message has so many: a header that tells more is wrong."""
LAG = timedelta(seconds=60)
"""How long hooks' counters and arrivals may disagree before the difference is called lost."""

Counts = Mapping[tuple[datetime, str, str, str], int]


def hour_of(at: datetime) -> datetime:
    """The hour that a record is booked in."""
    return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def places(headers: Mapping[str, Any]) -> dict[tuple[str, datetime], int]:
    """Where a message's records belong, (service, hour) -> n, by its headers; what they tell wrongly is left out."""
    told = headers.get("evalpipe_hours")
    found: dict[tuple[str, datetime], int] = {}
    for name, n in told.items() if isinstance(told, dict) else ():
        service, _, seconds = str(name).rpartition("|")
        try:
            place = storable(service), hour_of(datetime.fromtimestamp(int(seconds), UTC))
        except (ValueError, OverflowError, OSError):
            continue
        if isinstance(n, int) and 0 < n <= MOST_RECORDS:
            found[place] = found.get(place, 0) + n
    return found


def outcome_of(statuses: Sequence[str]) -> str:
    """The one word for several criteria: what went wrong wins, then what was scored; shed if nothing was."""
    for outcome in ("dead", "error", "scored", "abstained", "shed"):
        if outcome in statuses:
            return outcome
    return "skipped"


def count(tx: Transaction, counts: Counts) -> None:
    """Add to the ledger: (hour, service, scorecard or "", term) -> n."""
    rows = [
        {"hour_at": hour_at, "service": service, "scorecard": scorecard, "term": term, "n": n}
        for (hour_at, service, scorecard, term), n in counts.items()
        if n
    ]
    tx.add_up(ledger, rows, ["n"])


def outcomes(tx: Transaction, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """The outcome by (record, scorecard version), from stored scores and work that ended without one."""
    ids = sorted({record_id for record_id, _ in pairs})
    statuses: dict[tuple[str, str], list[str]] = {pair: [] for pair in pairs}
    scored = select(scores.c.record_id, scores.c.scorecard_version, scores.c.status).where(scores.c.record_id.in_(ids))
    ungraded = select(work.c.record_id, work.c.scorecard_version, work.c.state).where(
        work.c.record_id.in_(ids), work.c.state.in_(ENDED_UNGRADED)
    )
    for record_id, version, status in (*tx.connection.execute(scored), *tx.connection.execute(ungraded)):
        if (record_id, version) in statuses:
            statuses[record_id, version].append(status)
    return {pair: outcome_of(found) for pair, found in statuses.items()}


def outcomes_of_records(tx: Transaction, record_ids: Sequence[str]) -> dict[str, str]:
    """The outcome of records as a whole, over all scorecards that scored them on arrival."""
    owed = select(work.c.record_id, work.c.scorecard_version).where(
        work.c.record_id.in_(record_ids), work.c.origin == "rescore"
    )
    rescored = {(record_id, version) for record_id, version in tx.connection.execute(owed)}
    found = select(scores.c.record_id, scores.c.scorecard_version, scores.c.status).where(
        scores.c.record_id.in_(record_ids)
    )
    ungraded = select(work.c.record_id, work.c.scorecard_version, work.c.state).where(
        work.c.record_id.in_(record_ids), work.c.state.in_(ENDED_UNGRADED)
    )
    statuses: dict[str, list[str]] = {record_id: [] for record_id in record_ids}
    for record_id, version, status in (*tx.connection.execute(found), *tx.connection.execute(ungraded)):
        if (record_id, version) not in rescored:
            statuses[record_id].append(status)
    return {record_id: outcome_of(found) for record_id, found in statuses.items()}


def set_outcomes(tx: Transaction, changed: Mapping[str, str]) -> None:
    """Write what became of records as a whole."""
    for outcome in set(changed.values()):
        ids = [record_id for record_id, value in changed.items() if value == outcome]
        tx.connection.execute(update(records).where(records.c.record_id.in_(ids)).values(outcome=outcome))


@dataclass(frozen=True, slots=True)
class Queued:
    """Records that wait in Redis, by service and hour, as counted there."""

    counts: Mapping[tuple[str, datetime], int]


@dataclass(slots=True)
class Line:
    """The ledger of one service, scorecard ("" for records as a whole) and hour.

    ``unmetered`` are records that arrived before their hook's counters did; they are part of observed and sampled.
    ``difference`` is sampled minus the sum of all that became of it: 0 at rest, and within ``LAG`` of traffic else.
    """

    hour_at: datetime
    service: str
    scorecard: str
    observed: int = 0
    not_sampled: int = 0
    sampled: int = 0
    unmetered: int = 0
    scored: int = 0
    skipped: int = 0
    abstained: int = 0
    error: int = 0
    dead: int = 0
    shed: int = 0
    lost: int = 0
    in_flight: int = 0

    @property
    def difference(self) -> int:
        """Sampled minus all that became of it."""
        became = [getattr(self, name) for name in (*OUTCOMES, "shed", "lost", "in_flight")]
        return self.sampled - int(sum(became))

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return {**asdict(self), "hour_at": self.hour_at.isoformat(), "difference": self.difference}


def read(
    tx: Transaction, queued: Queued, now: datetime, *, since: datetime | None = None, lag: timedelta = LAG
) -> list[Line]:
    """The ledger, line by line: records as a whole first, then by scorecard.

    Args:
        tx: the transaction.
        queued: what waits in Redis.
        now: aware UTC.
        since: only hours from here on.
        lag: how long a hook must have been silent before what it enqueued and never arrived is called lost.
    """
    lines = _Lines(since)
    hours = since or datetime.min.replace(tzinfo=UTC)
    _add_hooks(tx, lines, hours)
    _add_arrivals(tx, lines, queued, now - lag, hours)
    _add_outcomes(tx, lines, hours)
    _add_in_flight(tx, lines, queued)
    return sorted(lines.found.values(), key=lambda line: (line.hour_at, line.service, line.scorecard))


class _Lines:
    def __init__(self, since: datetime | None) -> None:
        self.found: dict[tuple[datetime, str, str], Line] = {}
        self.since = since

    def add(self, hour_at: datetime, service: str, scorecard: str, **terms: int) -> None:
        if self.since is not None and hour_at < self.since:
            return
        line = self.found.setdefault((hour_at, service, scorecard), Line(hour_at, service, scorecard))
        for name, n in terms.items():
            setattr(line, name, getattr(line, name) + n)


def _add_hooks(tx: Transaction, lines: _Lines, since: datetime) -> None:
    sums = [func.sum(meters.c[name]).label(name) for name in ("calls", "sampled", "not_sampled", "shed")]
    place = meters.c.hour_at, meters.c.service
    for row in tx.connection.execute(select(*place, *sums).where(meters.c.hour_at >= since).group_by(*place)):
        terms = {"observed": row.calls, "sampled": row.sampled, "not_sampled": row.not_sampled, "shed": row.shed}
        lines.add(row.hour_at, row.service, "", **{name: int(n) for name, n in terms.items()})


def _add_arrivals(tx: Transaction, lines: _Lines, queued: Queued, silent_since: datetime, since: datetime) -> None:
    """Compare, hook process by hook process, what was enqueued with what arrived."""
    keys = (meters.c.process_id, meters.c.service, meters.c.hour_at)
    sent = {
        (row.process_id, row.service, row.hour_at): (int(row.n), row.sent_at)
        for row in tx.connection.execute(
            select(*keys, func.sum(meters.c.enqueued).label("n"), func.max(meters.c.sent_at).label("sent_at"))
            .where(meters.c.hour_at >= since)
            .group_by(*keys)
        )
    }
    received = select(receipts).where(receipts.c.hour_at >= since)
    arrived = {(r.process_id, r.service, r.hour_at): int(r.n) for r in tx.connection.execute(received)}
    dead_keys = (dead_letters.c.process_id, dead_letters.c.service, dead_letters.c.hour_at)
    dead = select(*dead_keys, func.sum(dead_letters.c.n_records).label("n")).where(
        dead_letters.c.redriven_at.is_(None), dead_letters.c.hour_at >= since
    )
    for row in tx.connection.execute(dead.group_by(*dead_keys)):
        key = row.process_id, row.service, row.hour_at
        arrived[key] = arrived.get(key, 0) + int(row.n)
        lines.add(row.hour_at, row.service, "", dead=int(row.n))
    missing: dict[tuple[str, datetime], int] = {}
    for key in sent.keys() | arrived.keys():
        enqueued, sent_at = sent.get(key, (0, silent_since))
        difference = enqueued - arrived.get(key, 0)
        _, service, hour_at = key
        if difference < 0:
            lines.add(hour_at, service, "", unmetered=-difference, sampled=-difference, observed=-difference)
        elif difference and sent_at <= silent_since:
            missing[service, hour_at] = missing.get((service, hour_at), 0) + difference
    for (service, hour_at), n in missing.items():
        lost = n - queued.counts.get((service, hour_at), 0)
        if lost > 0:
            lines.add(hour_at, service, "", lost=lost)


def _add_outcomes(tx: Transaction, lines: _Lines, since: datetime) -> None:
    for row in tx.connection.execute(select(ledger).where(ledger.c.hour_at >= since)):
        if row.term in (*OUTCOMES, "shed", "sampled"):
            lines.add(row.hour_at, row.service, row.scorecard, **{row.term: row.n})


def _add_in_flight(tx: Transaction, lines: _Lines, queued: Queued) -> None:
    for (service, hour_at), n in queued.counts.items():
        lines.add(hour_at, service, "", in_flight=n)
    hour = tx.hour(records.c.captured_at).label("hour_at")
    whole = select(hour, records.c.service, func.count()).where(records.c.outcome == "in_flight")
    for hour_at, service, n in tx.connection.execute(whole.group_by(hour, records.c.service)):
        lines.add(hour_at, service, "", in_flight=n)
    hour = tx.hour(work.c.captured_at).label("hour_at")
    keys = (hour, work.c.service, work.c.scorecard, work.c.scorecard_version, work.c.origin)
    # Each half has an index; a record that owes work in both lanes is one.
    waiting = select(*keys, work.c.record_id).where(work.c.state == "pending")
    sent = select(*keys, work.c.record_id).where(work.c.batch_id != "", work.c.state == "batched")
    owed = waiting.union(sent).subquery()
    by = [owed.c[name] for name in ("hour_at", "service", "scorecard", "scorecard_version", "origin")]
    for row in tx.connection.execute(select(*by, func.count().label("n")).group_by(*by)):
        name = label(row.scorecard, row.scorecard_version, row.origin)
        lines.add(row.hour_at, row.service, name, in_flight=row.n)


def label(scorecard: str, version: str, origin: str) -> str:
    """What the ledger calls a scorecard: rescored records are booked under the version that rescored them."""
    return scorecard if origin == "ingest" else f"{scorecard}@{version}"
