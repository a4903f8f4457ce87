"""Queue → store: decode, score the heuristics, and commit all that follows in one transaction.

From the commit on the database is the truth. A redelivered message finds its records there and changes nothing.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from evalpipe.errors import ConfigError, RecordError
from evalpipe.pipeline.findings import Scored, add_findings, score_record
from evalpipe.pipeline.start_rollout import start_from_card
from evalpipe.profile import Profile
from evalpipe.profiling.profiler import Profiler
from evalpipe.record import MAX_NAME, Batch, Record, decode_batch, to_wire
from evalpipe.scorers.plan import ScoringPlan
from evalpipe.store import intake, profiles, rollout_evidence, rollouts
from evalpipe.store.intake import Arrival, DeadLetter
from evalpipe.store.ledgers import hour_of, places
from evalpipe.store.rollout_evidence import Entrant
from evalpipe.store.rollout_meter import arm_of, shadowing
from evalpipe.store.sql import Store, Transaction, storable

log = logging.getLogger("evalpipe")


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
        profiler: makes the profiles that drift is found by.
    """

    def __init__(
        self, store: Store, plans: Sequence[ScoringPlan], *, max_record_bytes: int, profiler: Profiler | None = None
    ) -> None:
        self._profiler = profiler or Profiler()
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
            scored.append(Scored(record, payload, score_record(record, self._plans), self._profile(record)))
        return scored, letters

    def _profile(self, record: Record) -> Profile | None:
        """The record's profile; a text that no profile can be made of costs drift one example, and never a record."""
        try:
            return self._profiler.profile(record)
        except Exception:
            log.exception("record %s has no profile", record.record_id)
            return None


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
    profiles.add(tx, [(s.record, s.profile) for s in new if s.profile is not None])
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
    """Give the records of live rollouts their place in the order; returns the ids of those records."""
    entered: set[str] = set()
    by_place: dict[tuple[str, str], list[Scored]] = {}
    for s in new:
        by_place.setdefault((s.record.release.service, s.record.release.environment), []).append(s)
    for (service, environment), group in sorted(by_place.items()):
        running = rollouts.running(tx, service, environment)
        if _bind_releases(tx, group, running) or _open_rollouts(tx, group, environment, running, now):
            running = rollouts.running(tx, service, environment)
        for row in running:
            entrants = [e for s in group if (e := _entrant(s, row, now)) is not None]
            if entrants:
                rollout_evidence.add(tx, row.rollout_id, entrants, now)
                entered.update(e.record_id for e in entrants)
    return frozenset(entered)


def _entrant(s: Scored, row: Any, now: datetime) -> Entrant | None:
    record = s.record
    if row.scorecard not in {card.name for card, _ in s.findings}:
        return None
    arm = arm_of(row, record.release, record.feature)
    if arm is None or record.weight == 0.0 or record.reason.startswith("keep:"):
        return None  # kept for what it is: one arm may have more of these because it is sampled less
    shadow, weights = shadowing(row), row.plan["weights"]
    if arm == "canary" and not shadow and _is_of_an_earlier_canary(record, row):
        return None
    if shadow and arm == "canary" and weights and record.attributes.get("shadow", weights) != weights:
        return None  # another rollout's
    unit = record.unit or record.session_id or record.user_id or record.trace_id
    return Entrant(
        record_id=record.record_id,
        arm=arm,
        unit=hashlib.blake2b(f"{row.rollout_id}\x1f{unit}".encode("utf-8", "replace"), digest_size=8).hexdigest(),
        captured_at=min(record.captured_at, now),
        weight=record.weight,
        factor=_factor(record),
        pair=record.trace_id if shadow else "",
        segment=_segment(record, row.plan["segments"]),
        cost_usd=record.cost_usd,
        latency_ms=record.latency_ms,
        ttft_ms=record.ttft_ms,
        unpriced=record.cost_usd is None and bool(record.input_tokens or record.output_tokens),
    )


def _is_of_an_earlier_canary(record: Record, row: Any) -> bool:
    """Of a rollout that waits for its canary's first record: one from before its start may be of the canary before."""
    return not row.canary_release_id and record.captured_at < row.started_at


def _segment(record: Record, watched: Mapping[str, Any] | None) -> str:
    """The part of the traffic that a record belongs to; "" where the rollout watches none."""
    if watched is None:
        return ""
    by = watched["by"]
    if by in {"feature", "segment"}:
        return str(getattr(record, by))
    return storable(str(record.attributes.get(by, "")))[:MAX_NAME]


def _factor(record: Record) -> float:
    """What makes the records of an arm weigh the same, though some were certain to be captured anyhow.

    The arms of a rollout are each sampled at one rate at a time, which follows the traffic's weights; records are
    compared with those of the same time, so there they all weigh 1.
    """
    if record.reason.startswith("rollout:"):
        return record.probability
    return record.probability / (record.rate_probability or record.probability)


def _bind_releases(tx: Transaction, group: Sequence[Scored], running: Sequence[Any]) -> bool:
    """Where nobody said which release the canary is, it is the first that is seen. Says whether one was bound."""
    bound = False
    for row in running:
        if not row.canary_release_id:
            canaries = (s.record for s in group if s.record.release.variant == row.canary)
            seen = (r.release.release_id for r in canaries if not _is_of_an_earlier_canary(r, row))
            release_id = next(seen, None)
            if release_id is not None:
                rollouts.bind_release(tx, row.rollout_id, release_id)
                bound = True
    return bound


def _open_rollouts(
    tx: Transaction, group: Sequence[Scored], environment: str, running: Sequence[Any], now: datetime
) -> bool:
    """A canary's first record starts its rollout: nobody has to remember to. Says whether one was started.

    Not beside one that moves the traffic: there somebody has said what the canary is.
    """
    known = {(row.scorecard, row.canary_release_id) for row in running}
    steered = {row.scorecard for row in running if row.plan["steps"]}
    opened = False
    for s in group:
        release = s.record.release
        for card, _ in s.findings:
            if card.rollout is None or release.variant != card.rollout.canary or card.name in steered:
                continue
            if (card.name, release.release_id) in known:
                continue
            known.add((card.name, release.release_id))
            try:
                started = start_from_card(
                    tx,
                    card,
                    service=release.service,
                    environment=environment,
                    release_id=release.release_id,
                    reason="its first record arrived",
                    now=now,
                )
            except (ConfigError, ValueError) as error:
                log.error("no rollout of %s: %s", release.variant, error)  # noqa: TRY400 - records must get in
                continue
            opened |= started is not None and started.new
    return opened
