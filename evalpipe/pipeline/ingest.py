"""Queue → store: decode, score the heuristics, and commit all that follows in one transaction.

From the commit on the database is the truth. A redelivered message finds its records there and changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from evalpipe.errors import RecordError
from evalpipe.pipeline.findings import Scored, add_findings, score_record
from evalpipe.record import Batch, Record, decode_batch, to_wire
from evalpipe.rollout.plan import Gate, RolloutPlan
from evalpipe.scorecard.model import Scorecard
from evalpipe.scorers.plan import ScoringPlan
from evalpipe.store import intake, rollouts
from evalpipe.store.intake import Arrival, DeadLetter
from evalpipe.store.ledgers import hour_of, places
from evalpipe.store.sql import Store, Transaction


@dataclass(frozen=True, slots=True)
class Ingested:
    """What one message brought.

    Attributes:
        new: records stored now; a replay brings 0.
        owed: judge calls owed now.
        dead: dead letters kept now.
    """

    new: int = 0
    owed: int = 0
    dead: int = 0


class Ingest:
    """The stage, with what it needs.

    Args:
        store: where it commits.
        plans: one for each scorecard.
        max_record_bytes: a larger record becomes a dead letter.
    """

    def __init__(self, store: Store, plans: Sequence[ScoringPlan], *, max_record_bytes: int) -> None:
        self._store = store
        self._plans = plans
        self._max_bytes = max_record_bytes

    def __call__(self, blob: str, headers: Mapping[str, Any], now: datetime) -> Ingested:
        """Take one message in.

        Args:
            blob: the text that the hook wrote.
            headers: the message's own headers; they tell where its records belong if the blob cannot be read.
            now: aware UTC.
        """
        try:
            batch = decode_batch(blob, orjson.loads)
        except RecordError as error:
            return self.bury(blob, headers, str(error), now)
        scored, letters = self._score(batch, places(headers))
        return self._store.patiently(lambda tx: commit(tx, batch, scored, letters, now))

    def bury(self, blob: str, headers: Mapping[str, Any], reason: str, now: datetime) -> Ingested:
        """Make a whole message a dead letter."""
        letters = intake.dead_message("message", blob.encode("utf-8", "surrogatepass"), headers, reason)
        return Ingested(dead=len(self._store.patiently(lambda tx: intake.add_dead_letters(tx, letters, now))))

    def _score(self, batch: Batch, told: Mapping[tuple[str, datetime], int]) -> tuple[list[Scored], list[DeadLetter]]:
        scored, letters = [], []
        # What the message's headers count and no record of it is: there the rejects belong.
        good = Counter((r.release.service, hour_of(r.captured_at)) for r in batch.records)
        spare = list((Counter(told) - good).elements())
        for index, reject in enumerate(batch.rejects):
            raw = reject.raw.encode("utf-8", "surrogatepass")
            place = spare[index] if index < len(spare) else _place(raw, batch.sent_at)
            letters.append(_dead_record(batch, f"reject-{index}", reject.reason, raw, place))
        for record in batch.records:
            payload = orjson.dumps(to_wire(record))
            if len(payload) > self._max_bytes:
                reason = f"the record has {len(payload)} bytes, more than EVALPIPE_MAX_RECORD_BYTES={self._max_bytes}"
                place = record.release.service, hour_of(record.captured_at)
                letters.append(_dead_record(batch, record.record_id, reason, payload, place))
                continue
            scored.append(Scored(record, payload, score_record(record, self._plans)))
        return scored, letters


def commit(
    tx: Transaction, batch: Batch, scored: Sequence[Scored], letters: Sequence[DeadLetter], now: datetime
) -> Ingested:
    """Write everything that a batch brings, once."""
    dead = intake.add_dead_letters(tx, letters, now)
    intake.add_releases(tx, {s.record.release for s in scored}, now)
    unique = list({s.record.record_id: s for s in scored}.values())
    new_ids = intake.add_records(tx, [Arrival(s.record, s.payload, s.outcome) for s in unique], now)
    new = [s for s in unique if s.record.record_id in new_ids]
    if not new:
        return Ingested(dead=len(dead))
    arms = _enter_rollouts(tx, new, now)
    ended = [s for s in new if s.outcome != "in_flight"]
    whole = Counter((hour_of(s.record.captured_at), s.record.release.service, "", s.outcome) for s in ended)
    owed = add_findings(tx, new, now, urgent=arms, booked=whole)
    hours = Counter((s.record.release.service, hour_of(s.record.captured_at)) for s in new)
    intake.add_receipts(tx, batch.process_id, hours)
    return Ingested(new=len(new), owed=owed, dead=len(dead))


def _dead_record(batch: Batch, key: str, reason: str, payload: bytes, place: tuple[str, datetime]) -> DeadLetter:
    name = f"{batch.process_id}|{batch.sequence}|{key}"
    return DeadLetter("record", name, reason, payload, 1, batch.process_id, *place)


def _place(payload: bytes, sent_at: datetime) -> tuple[str, datetime]:
    """Service and hour of a record that cannot be read, as far as it says."""
    wire = orjson.loads(payload)
    release = wire.get("release") if isinstance(wire, dict) else None
    service = release.get("service") if isinstance(release, dict) else None
    at = wire.get("captured_at") if isinstance(wire, dict) else None
    known = isinstance(at, int | float) and 0 < at < 4e9
    hour_at = hour_of(datetime.fromtimestamp(at, UTC) if known else sent_at)  # type: ignore[arg-type]
    return (service if isinstance(service, str) else "", hour_at)


def _enter_rollouts(tx: Transaction, new: Sequence[Scored], now: datetime) -> frozenset[str]:
    """Give the records of running rollouts their place in the order; returns the ids of those records."""
    entered: set[str] = set()
    by_place: dict[tuple[str, str], list[Scored]] = {}
    for s in new:
        by_place.setdefault((s.record.release.service, s.record.release.environment), []).append(s)
    for (service, environment), group in sorted(by_place.items()):
        running = rollouts.running(tx, service, environment)
        if _open_rollouts(tx, group, service, environment, now, {row.rollout_id for row in running}):
            running = rollouts.running(tx, service, environment)
        for row in running:
            entrants = [e for s in group if (e := _entrant(s, row)) is not None]
            if entrants:
                rollouts.add_evidence(tx, row.rollout_id, entrants, now)
                entered.update(e.record_id for e in entrants)
    return frozenset(entered)


def _entrant(s: Scored, row: Any) -> rollouts.Entrant | None:
    record = s.record
    if row.scorecard not in {card.name for card, _ in s.findings}:
        return None
    if record.release.variant == row.baseline:
        arm = "baseline"
    elif record.release.release_id == row.canary_release_id:
        arm = "canary"
    else:
        return None
    if record.weight == 0.0 or record.reason.startswith("keep:"):
        return None  # kept for what it is: one arm may have more of these because it is sampled less
    unit = record.unit or record.session_id or record.user_id or record.trace_id
    return rollouts.Entrant(record.record_id, arm, unit, record.captured_at, _factor(record))


def _factor(record: Record) -> float:
    """What makes the records of an arm weigh the same, though some were certain to be captured anyhow.

    The arms of a rollout are each sampled at one rate at a time, which follows the traffic's weights; records are
    compared with those of the same time, so there they all weigh 1.
    """
    if record.reason.startswith("rollout:"):
        return record.probability
    return record.probability / (record.rate_probability or record.probability)


def _open_rollouts(
    tx: Transaction, group: Sequence[Scored], service: str, environment: str, now: datetime, known: set[str]
) -> bool:
    """A canary's first record starts its rollout: nobody has to remember to. Says whether one was started."""
    opened = False
    for s in group:
        release = s.record.release
        for card, _ in s.findings:
            if card.rollout is None or release.variant != card.rollout.canary:
                continue
            rollout_id = f"{service}-{release.variant}-{card.name}-{release.release_id[:8]}"
            if rollout_id in known:
                continue
            known.add(rollout_id)
            plan = rollout_plan(rollout_id, service, card)
            opened |= rollouts.open_rollout(
                tx,
                {
                    "rollout_id": rollout_id,
                    "service": service,
                    "environment": environment,
                    "scorecard": card.name,
                    "scorecard_version": card.version,
                    "baseline": card.rollout.baseline,
                    "canary": card.rollout.canary,
                    "canary_release_id": release.release_id,
                    "plan": plan.to_dict(),
                    "started_at": now,
                    "updated_at": now,
                },
            )
    return opened


def rollout_plan(rollout_id: str, service: str, card: Scorecard) -> RolloutPlan:
    """The pure plan of what a scorecard declares."""
    assert card.rollout is not None
    gates = tuple(
        Gate(
            name=gate.criterion,
            criterion=gate.criterion,
            margin=gate.margin,
            alpha=gate.alpha,
            promote_alpha=gate.advance_alpha,
            min_canary=gate.min_canary,
        )
        for gate in card.rollout.gates
    )
    return RolloutPlan(rollout_id, service, card.rollout.baseline, card.rollout.canary, gates)
