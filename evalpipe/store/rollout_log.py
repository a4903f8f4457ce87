"""Everything that was folded into a rollout, batch by batch and in order: its decisions can be made again from it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson
from sqlalchemy import select

from evalpipe.rollout.inputs import Batch, Evidence, Health, MeterReading, Override
from evalpipe.score import Status
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import rollout_inputs

DEFLATED_FROM: Final = 256
"""Bytes from which a batch is deflated."""
PAGE: Final = 500
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICRO: Final = timedelta(microseconds=1)
_DEFLATED: Final = b"\x78"


def append(tx: Transaction, rollout_id: str, n: int, batch: Batch) -> None:
    """Keep a batch as the ``n``-th of its rollout.

    Raises:
        sqlalchemy.exc.IntegrityError: there is an ``n``-th, so this one must not be folded.
    """
    row = {"rollout_id": rollout_id, "n": n, "at": batch.now, "body": encode(batch)}
    tx.connection.execute(rollout_inputs.insert(), [row])


def inputs(tx: Transaction, rollout_id: str) -> Iterator[Batch]:
    """The batches of a rollout as they were folded, in order; read page by page."""
    after = 0
    while True:
        query = select(rollout_inputs.c.n, rollout_inputs.c.body).where(
            rollout_inputs.c.rollout_id == rollout_id, rollout_inputs.c.n > after
        )
        rows = tx.connection.execute(query.order_by(rollout_inputs.c.n).limit(PAGE)).all()
        if not rows:
            return
        after = rows[-1].n
        for row in rows:
            yield decode(row.body)


def encode(batch: Batch) -> bytes:
    """A batch as stored: every value comes back bit by bit."""
    body: dict[str, Any] = {"now": _us(batch.now), "health": [batch.health.judge, batch.health.detail]}
    if batch.overrides:
        body["overrides"] = [[o.action, o.actor, o.reason, _us(o.at), _us(o.expires_at)] for o in batch.overrides]
    if batch.meter:
        body["meter"] = [[_us(m.at), m.arm, m.calls, _pairs(m.latency), _pairs(m.ttft)] for m in batch.meter]
    if batch.evidence:
        body["evidence"] = [
            [e.seq, _us(e.at), e.arm, e.unit, e.criterion, e.value, e.weight, e.status.value, e.epoch, e.pair,
             e.segment, e.suspect]
            for e in batch.evidence
        ]  # fmt: skip
    text = orjson.dumps(body)
    return text if len(text) < DEFLATED_FROM else zlib.compress(text)


def decode(body: bytes) -> Batch:
    """The inverse of ``encode``."""
    found = orjson.loads(zlib.decompress(body) if body[:1] == _DEFLATED else body)
    return Batch(
        now=_at(found["now"]),
        health=Health(*found["health"]),
        overrides=tuple(
            Override(action, actor, reason, _at(at), _at(until))
            for action, actor, reason, at, until in found.get("overrides", ())
        ),
        meter=tuple(
            MeterReading(_at(at), arm, calls, dict(latency), dict(ttft))
            for at, arm, calls, latency, ttft in found.get("meter", ())
        ),
        evidence=tuple(
            Evidence(seq, _at(at), arm, unit, criterion, value, weight, Status(status), *rest)
            for seq, at, arm, unit, criterion, value, weight, status, *rest in found.get("evidence", ())
        ),
    )


def _us(at: datetime) -> int:
    """Microseconds since 1970: exact, unlike seconds as a float."""
    return (at - _EPOCH) // _MICRO


def _at(us: int) -> datetime:
    return _EPOCH + us * _MICRO


def _pairs(counts: Any) -> list[list[int]]:
    return [[key, counts[key]] for key in sorted(counts)]
