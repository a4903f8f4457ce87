"""Health that proves progress, and readiness. Both answer within three seconds, whatever hangs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

import orjson
from alembic.script import ScriptDirectory
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from redis import RedisError
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from evalpipe import __version__
from evalpipe.api.probe import Probe
from evalpipe.errors import RecordError
from evalpipe.record import decode_batch
from evalpipe.settings import Settings
from evalpipe.store import evaluations, migrate, progress
from evalpipe.store.progress import Progress
from evalpipe.store.queue import Queue
from evalpipe.store.rollouts import LIVE, unattended, unattended_words
from evalpipe.store.sql import Store, Transaction
from evalpipe.store.tables import evidence, rollouts
from evalpipe.wiring import now

MAX_AGE_S = 300.0
"""Evaluation that is later than this is not getting on, unless the caller names another limit."""
MAX_UNDELIVERED_S = 60.0
"""A notification that waits for longer than this is not being told."""
MAX_STARTS_WAITING = 150
"""The beat asks for these stages every second or two: so many starts that wait mean that nobody serves one."""
TIMEOUT_S = 2.5
FRESH_S = 1.0

log = logging.getLogger("evalpipe.api")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stored:
    """What the database says: its revision, and how far evaluation is.

    ``progress`` is None where ``unmigrated`` says that it cannot be read yet.
    """

    revision: str | None
    unmigrated: str = ""
    progress: Progress | None = None
    oldest_undecided_s: float = 0.0
    oldest_growth_s: float = 0.0
    unattended: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Waiting:
    """What Redis says: messages by stage, and how long the oldest with records has waited for a worker."""

    lengths: Mapping[str, int]
    oldest_queued_s: float


class Probes:
    """The two questions that health, readiness and metrics ask, with connections of their own.

    Requests that use up the API's connections, or hang, then do not make it look ill.
    """

    def __init__(self, settings: Settings) -> None:
        self.store = Store(settings.database_url, pool_size=1)
        self.queue = Queue(settings.redis_url)
        scripts = ScriptDirectory(str(migrate.folder()))
        self.head = migrate.head()
        self._known = {script.revision for script in scripts.walk_revisions()}
        self.stored = Probe(lambda: self.look_at_store(now()), timeout_s=TIMEOUT_S, fresh_s=FRESH_S)
        self.waiting = Probe(lambda: look_at_queue(self.queue, now()), timeout_s=TIMEOUT_S, fresh_s=FRESH_S)

    def look_at_store(self, at: datetime) -> Stored:
        """Revision and progress, in that order: before the migration there is no progress to read."""
        revision = migrate.current(self.store)
        # A revision that this code does not know is newer, and newer databases work with older code.
        if revision is None or (revision in self._known and revision != self.head):
            found = f"at revision {revision}" if revision else "empty"
            return Stored(revision, f"the database is {found}, this code wants {self.head}: run 'evalpipe migrate'")
        with self.store.read() as tx:
            seen = progress.read(tx, at)
            return Stored(
                revision, "", seen, oldest_undecided_s(tx, at), oldest_growth_s(tx, at), tuple(unattended(tx, at))
            )

    def close(self) -> None:
        """Close the connections."""
        self.store.close()
        self.queue.close()


def oldest_undecided_s(tx: Transaction, at: datetime) -> float:
    """How long the oldest evidence of a live rollout has waited for a decision; 0 if none does."""
    query = (
        select(func.min(evidence.c.at))
        .join(rollouts, rollouts.c.rollout_id == evidence.c.rollout_id)
        .where(rollouts.c.phase.in_(LIVE), evidence.c.seq > rollouts.c.folded_seq)
    )
    oldest: datetime | None = tx.connection.scalar(query)
    return 0.0 if oldest is None else max(0.0, (at - oldest).total_seconds())


def oldest_growth_s(tx: Transaction, at: datetime) -> float:
    """How long the oldest scores have waited for the alert rules; 0 if none do."""
    _, oldest = evaluations.waiting(tx)
    return 0.0 if oldest is None else max(0.0, (at - oldest).total_seconds())


def look_at_queue(queue: Queue, at: datetime) -> Waiting:
    """Lengths of the queues, and the age of the oldest message with records."""
    lengths = queue.lengths()
    oldest = queue.client.lindex("evalpipe.ingest", -1)
    return Waiting(lengths, 0.0 if oldest is None else _age_s(oldest, at))


def _age_s(message: bytes | str, at: datetime) -> float:
    """How long ago the hook sent a message; 0 where the message does not tell."""
    try:
        blob = orjson.loads(orjson.loads(message)["body"])[0][0]
        return max(0.0, (at - decode_batch(blob, orjson.loads).sent_at).total_seconds())
    except (ValueError, KeyError, TypeError, IndexError, RecordError):
        return 0.0


class Health(BaseModel):
    """Whether evaluation gets on. What is not known, because a server does not answer, is null."""

    status: Literal["ok", "failing"]
    reasons: list[str] = Field(description="Why it is failing, in words; empty when it is not.")
    oldest_unscored_s: float | None = Field(description="Age of the oldest stored record that still owes a score.")
    oldest_queued_s: float | None = Field(description="How long the oldest message with records waits in Redis.")
    oldest_undecided_s: float | None = Field(description="How long the oldest evidence waits for its decision.")
    oldest_undelivered_s: float | None = Field(description="Age of the oldest notification that waits.")
    newest_record_s: float | None = Field(description="How long ago a record was stored; null if none ever was.")
    owed: int | None = Field(description="Judge calls that are owed.")
    dead_work: int | None = Field(description="Judge calls given up; `evalpipe dead-letters` lists them.")
    dead_letters: int | None = Field(description="Messages and records that could not be read.")
    undelivered: int | None = Field(description="Notifications that wait.")
    queues: dict[str, int] | None = Field(description="Messages that wait in Redis, by stage.")
    version: str


class Readiness(BaseModel):
    """Whether this API can answer."""

    status: Literal["ok", "failing"]
    reasons: list[str] = Field(description="Why not, in words.")
    revision: str | None = Field(description="The database's; null if it is empty or does not answer.")
    version: str


class HealthQuery(BaseModel):
    """What counts as late."""

    model_config = ConfigDict(extra="forbid")

    max_age_s: float = Field(
        default=MAX_AGE_S, ge=1, le=604_800, description="Records, evidence and messages may wait for so many seconds."
    )


router = APIRouter(tags=["health"])


@router.get("/healthz", responses={503: {"model": Health, "description": "It does not get on; `reasons` says why."}})
async def healthz(request: Request, response: Response, query: Annotated[HealthQuery, Query()]) -> Health:
    """Whether records are scored, decisions made and notifications delivered: progress, not "the process is up".

    For alerting. It fails while any part of the fleet is stuck, so do not let it restart or remove API processes:
    `/readyz` is for that. Needs no key.
    """
    probes: Probes = request.app.state.probes
    (stored, database_trouble), (waiting, redis_trouble) = await asyncio.gather(
        _ask(probes.stored, "the database"), _ask(probes.waiting, "redis")
    )
    reasons = [trouble for trouble in (database_trouble, redis_trouble) if trouble]
    if stored is not None:
        reasons += _reasons_of_store(stored, query.max_age_s)
    if waiting is not None:
        reasons += _reasons_of_queue(waiting, query.max_age_s)
    _head(response, reasons)
    seen = stored.progress if stored is not None else None
    numbers: dict[str, Any] = {name: getattr(seen, name) if seen else None for name in Progress.__slots__}
    return Health(
        status="failing" if reasons else "ok",
        reasons=reasons,
        oldest_queued_s=waiting.oldest_queued_s if waiting is not None else None,
        oldest_undecided_s=stored.oldest_undecided_s if stored is not None and seen else None,
        queues=dict(waiting.lengths) if waiting is not None else None,
        version=__version__,
        **numbers,
    )


@router.get("/readyz", responses={503: {"model": Readiness, "description": "It cannot answer; `reasons` says why."}})
async def readyz(request: Request, response: Response) -> Readiness:
    """Whether this API can answer: the database is reachable and migrated, and Redis answers. Needs no key.

    For load balancers, readiness probes and `depends_on`. A database that is newer than this code is fine.
    """
    probes: Probes = request.app.state.probes
    (stored, database_trouble), (_, redis_trouble) = await asyncio.gather(
        _ask(probes.stored, "the database"), _ask(probes.waiting, "redis")
    )
    reasons = [trouble for trouble in (database_trouble, redis_trouble) if trouble]
    if stored is not None and stored.unmigrated:
        reasons.append(stored.unmigrated)
    _head(response, reasons)
    revision = stored.revision if stored is not None else None
    return Readiness(status="failing" if reasons else "ok", reasons=reasons, revision=revision, version=__version__)


async def _ask(probe: Probe[T], name: str) -> tuple[T, str] | tuple[None, str]:
    """The answer, or why there is none. Details, which may name hosts, go to the log: anyone may read the reasons."""
    try:
        return await probe.ask(), ""
    except TimeoutError:
        return None, f"{name} has not answered within {TIMEOUT_S:g} s"
    except (SQLAlchemyError, RedisError, OSError) as error:
        log.warning("%s does not answer: %s", name, error)
        return None, f"{name} does not answer ({type(error).__name__}; the API's log has the details)"


def _head(response: Response, reasons: list[str]) -> None:
    response.headers["Cache-Control"] = "no-store"
    if reasons:
        response.status_code = 503


def _reasons_of_store(stored: Stored, max_age_s: float) -> list[str]:
    seen = stored.progress
    if seen is None:
        return [stored.unmigrated]
    reasons = []
    if seen.oldest_unscored_s > max_age_s:
        reasons.append(
            f"the oldest unscored record is {seen.oldest_unscored_s:.0f} s old (limit {max_age_s:g} s) and "
            f"{seen.owed} judge calls are owed: are judge workers running, and is the judge up?"
        )
    if stored.oldest_undecided_s > max_age_s:
        reasons.append(
            f"evidence of a rollout has waited {stored.oldest_undecided_s:.0f} s for its decision (limit "
            f"{max_age_s:g} s): does a worker serve 'evaluate'?"
        )
    if stored.oldest_growth_s > max_age_s:
        reasons.append(
            f"scores have waited {stored.oldest_growth_s:.0f} s for the alert rules (limit {max_age_s:g} s): does a "
            "worker serve 'evaluate', and does its log say why it fails?"
        )
    if stored.unattended:
        reasons.append(unattended_words(stored.unattended))
    if seen.oldest_undelivered_s > MAX_UNDELIVERED_S:
        reasons.append(
            f"{seen.undelivered} notifications wait, the oldest for {seen.oldest_undelivered_s:.0f} s (limit "
            f"{MAX_UNDELIVERED_S:g} s): 'evalpipe deliveries' says why"
        )
    return reasons


def _reasons_of_queue(waiting: Waiting, max_age_s: float) -> list[str]:
    reasons = []
    if waiting.oldest_queued_s > max_age_s:
        reasons.append(
            f"records have waited {waiting.oldest_queued_s:.0f} s in the queue (limit {max_age_s:g} s): "
            "does a worker serve 'ingest'?"
        )
    reasons += [
        f"{waiting.lengths[stage]} messages wait for '{stage}': no worker serves it"
        for stage in ("evaluate", "deliver")
        if waiting.lengths.get(stage, 0) > MAX_STARTS_WAITING
    ]
    return reasons
