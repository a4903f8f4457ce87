"""What happened to one trace: every record of it, with all that is known."""

from __future__ import annotations

from typing import Any

from sqlalchemy import LargeBinary, func, literal, select

from evalpipe.store import feedback
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import dead_letters, evidence, grades, records, rollouts, scores, work


def why(tx: Transaction, trace_id: str) -> list[dict[str, Any]]:
    """The records of a trace (or the one record of that id) with scores, work, grades, rollouts and feedback."""
    query = select(*(c for c in records.c if c.name != "payload"), records.c.payload.is_(None).label("erased"))
    found = tx.connection.execute(
        query.where((records.c.trace_id == trace_id) | (records.c.record_id == trace_id)).order_by(
            records.c.captured_at
        )
    ).mappings()
    return [_told(tx, dict(row)) for row in found]


def dead_letters_with(tx: Transaction, text: str) -> list[dict[str, Any]]:
    """Dead letters whose bytes hold ``text``, without those bytes: the last place where a record can be."""
    needle = literal(text.encode(), LargeBinary)
    if tx.is_postgresql:
        at = func.position(needle.op("IN")(dead_letters.c.payload))
    else:
        at = func.instr(dead_letters.c.payload, needle)
    columns = [column for column in dead_letters.c if column.name != "payload"]
    query = select(*columns).where(dead_letters.c.redriven_at.is_(None), at > 0).limit(20)
    return [dict(row) for row in tx.connection.execute(query).mappings()]


def _told(tx: Transaction, record: dict[str, Any]) -> dict[str, Any]:
    record_id = record["record_id"]
    of_record = {
        name: [
            dict(row) for row in tx.connection.execute(select(table).where(table.c.record_id == record_id)).mappings()
        ]
        for name, table in (("scores", scores), ("work", work), ("grades", grades))
    }
    entered = select(evidence.c.rollout_id, evidence.c.seq, evidence.c.arm, rollouts.c.folded_seq, rollouts.c.phase)
    joined = entered.join(rollouts, rollouts.c.rollout_id == evidence.c.rollout_id)
    of_record["rollouts"] = [
        dict(row) for row in tx.connection.execute(joined.where(evidence.c.record_id == record_id)).mappings()
    ]
    of_record["feedback"] = feedback.of_record(tx, record)
    return {**record, **of_record}
