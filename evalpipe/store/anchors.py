"""Anchors, what judges said of them, and how each judge stands.

An anchor is a copy: the retention of records does not touch it, the erasure of its user does.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import orjson
from sqlalchemy import ColumnElement, delete, func, or_, select, update

from evalpipe.errors import RecordError
from evalpipe.record import Record, from_wire, to_wire
from evalpipe.stats.attribution import Standing
from evalpipe.stats.judge_shift import JudgeShift
from evalpipe.store.sql import Transaction, storable
from evalpipe.store.tables import anchor_grades, anchors, judge_health, labels, records

ABSTAINED: Final = "cannot_tell"
"""The label of a person who cannot tell: nobody can agree with it."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """A record with the grade that people agree on."""

    anchor_id: str
    label: str
    value: float
    record: Record


@dataclass(frozen=True, slots=True)
class Key:
    """What a test is about: one judge (with its prompt) on the anchors of one criterion."""

    scorecard: str
    criterion: str
    judge: str

    @property
    def where(self) -> list[ColumnElement[bool]]:
        """The row of ``judge_health``."""
        c = judge_health.c
        return [c.scorecard == self.scorecard, c.criterion == self.criterion, c.judge_version == self.judge]


@dataclass(frozen=True, slots=True)
class New:
    """An anchor to add; ``source`` is ``labels`` or a file."""

    scorecard: str
    criterion: str
    label: str
    value: float
    record: Record
    source: str
    actor: str


def add(tx: Transaction, found: Sequence[New], now: datetime) -> int:
    """Freeze copies of records; how many were not there. One that was retired comes back.

    Raises:
        RecordError: a record could not be read again.
    """
    rows = {row["anchor_id"]: row for row in (_row(new, now) for new in found)}
    known = list(rows)
    back = update(anchors).where(anchors.c.anchor_id.in_(known), anchors.c.retired_at.is_not(None))
    returned = tx.connection.execute(back.values(retired_at=None)).rowcount
    return len(tx.insert_new(anchors, list(rows.values()))) + returned


def agreed(tx: Transaction, scorecard: str, criterion: str, n: int) -> list[tuple[str, str, float]]:
    """Up to ``n`` records that all who labelled them agree on and that are no anchors yet: id, label and value.

    Those of the most people come first, and the labels take turns: anchors of one label cannot show both directions.
    """
    of = labels.c.scorecard == scorecard, labels.c.criterion == criterion, labels.c.superseded_at.is_(None)
    known = select(anchors.c.record_id).where(
        anchors.c.scorecard == scorecard, anchors.c.criterion == criterion, anchors.c.retired_at.is_(None)
    )
    one, people = func.min(labels.c.label), func.count(labels.c.annotator.distinct())
    query = (
        select(labels.c.record_id, one, func.min(labels.c.value), people)
        .join(records, records.c.record_id == labels.c.record_id)
        .where(*of, records.c.payload.is_not(None), labels.c.record_id.not_in(known))
        .group_by(labels.c.record_id)
        .having(func.count(labels.c.label.distinct()) == 1, one != ABSTAINED)
    )
    by_label: dict[str, list[tuple[str, str, float]]] = defaultdict(list)
    for record_id, label, value, _ in sorted(tx.connection.execute(query), key=lambda row: (-row[3], row[0])):
        by_label[label].append((record_id, label, value))
    chosen: list[tuple[str, str, float]] = []
    queues = [by_label[label] for label in sorted(by_label)]
    while len(chosen) < n and any(queues):
        chosen += [queue.pop(0) for queue in queues if queue]
    return chosen[:n]


def active(tx: Transaction, scorecard: str, criterion: str) -> list[Anchor]:
    """The anchors of a criterion that are graded, in the order of their ids; what this code cannot read is left out."""
    query = select(anchors).where(
        anchors.c.scorecard == scorecard, anchors.c.criterion == criterion, anchors.c.retired_at.is_(None)
    )
    found = []
    for row in tx.connection.execute(query.order_by(anchors.c.anchor_id)):
        with suppress(RecordError, ValueError):
            found.append(Anchor(row.anchor_id, row.label, row.value, from_wire(orjson.loads(row.payload))))
    return found


def counts(tx: Transaction) -> dict[tuple[str, str], int]:
    """Anchors that are graded, by scorecard and criterion."""
    of = anchors.c.scorecard, anchors.c.criterion
    query = select(*of, func.count()).where(anchors.c.retired_at.is_(None)).group_by(*of)
    return {(scorecard, criterion): n for scorecard, criterion, n in tx.connection.execute(query)}


def listing(tx: Transaction, *, retired: bool = False, **where: str) -> list[dict[str, Any]]:
    """Anchors without their records, each with the newest grade of any judge as ``judged``."""
    newest = (
        select(anchor_grades.c.anchor_id, func.max(anchor_grades.c.at).label("at"))
        .group_by(anchor_grades.c.anchor_id)
        .subquery()
    )
    shown = [column for column in anchors.c if column.name != "payload"]
    query = (
        select(*shown, func.max(anchor_grades.c.label).label("judged"), newest.c.at.label("graded_at"))
        .outerjoin(newest, newest.c.anchor_id == anchors.c.anchor_id)
        .outerjoin(
            anchor_grades,
            (anchor_grades.c.anchor_id == newest.c.anchor_id) & (anchor_grades.c.at == newest.c.at),
        )
        .where(*(anchors.c[name] == value for name, value in where.items() if value))
        .group_by(*shown, newest.c.at)
        .order_by(anchors.c.scorecard, anchors.c.criterion, anchors.c.anchor_id)
    )
    if not retired:
        query = query.where(anchors.c.retired_at.is_(None))
    return [dict(row) for row in tx.connection.execute(query).mappings()]


def retire(tx: Transaction, now: datetime, *, ids: Sequence[str] = (), **where: str) -> int:
    """Take anchors out of the set, by their ids or all of a scorecard or criterion; what was graded stays."""
    query = update(anchors).where(anchors.c.retired_at.is_(None))
    if ids:
        query = query.where(anchors.c.anchor_id.in_(ids))
    query = query.where(*(anchors.c[name] == value for name, value in where.items() if value))
    return tx.connection.execute(query.values(retired_at=now)).rowcount


def erase(tx: Transaction, user_id: str) -> int:
    """Remove the anchors that were made of a user's records; what judges graded them stays, and quotes nothing."""
    mine = select(records.c.record_id).where(records.c.user_id == user_id)
    made = or_(anchors.c.user_id == user_id, anchors.c.record_id.in_(mine))
    return tx.connection.execute(delete(anchors).where(made)).rowcount


def claim(
    tx: Transaction, key: Key, now: datetime, *, until: datetime, every: timedelta, force: bool = False
) -> dict[str, Any] | None:
    """The state of a test that is due, for this caller alone until ``until``; None if it is not due or another has it.

    A judge or prompt that was never tested is due at once.
    """
    row = tx.connection.execute(select(judge_health).where(*key.where)).mappings().first()
    if row is None:
        fresh = {"scorecard": key.scorecard, "criterion": key.criterion, "judge_version": key.judge}
        tx.insert_new(judge_health, [{**fresh, "test": {}, "accepted": [], "since_at": now}])
    elif not force and row["tested_at"] is not None and row["tested_at"] + every > now:
        return None
    c = judge_health.c
    mine = update(judge_health).where(*key.where, or_(c.lease_until.is_(None), c.lease_until <= now))
    if not force:
        mine = mine.where(or_(c.tested_at.is_(None), c.tested_at <= now - every))
    claimed = mine.values(lease_until=until).returning(c.test, c.state, c.since_at, c.accepted)
    got = tx.connection.execute(claimed).mappings().first()
    return dict(got) if got is not None else None


def settle(tx: Transaction, key: Key, until: datetime, values: Mapping[str, Any]) -> bool:
    """Write what a run showed, unless the claim has run out or a human has accepted the judge meanwhile."""
    mine = update(judge_health).where(*key.where, judge_health.c.lease_until == until)
    return tx.connection.execute(mine.values(**values)).rowcount == 1


def add_grades(tx: Transaction, rows: Sequence[Mapping[str, Any]]) -> None:
    """Keep what a judge said in one run."""
    tx.insert_new(anchor_grades, rows)


def remove_old(tx: Transaction, before: datetime) -> int:
    """Remove grades of old runs; the state of the tests holds what they showed."""
    return tx.connection.execute(delete(anchor_grades).where(anchor_grades.c.at < before)).rowcount


def accept(tx: Transaction, keys: Sequence[Key], *, actor: str, reason: str, now: datetime) -> None:
    """Take the judges' present behaviour as the new reference: the next run begins anew. Kept with actor and reason."""
    for key in keys:
        query = select(judge_health).where(*key.where).with_for_update()
        row = tx.connection.execute(query).mappings().one()
        entry = {"at": now.isoformat(), "actor": actor, "reason": reason, "was": row["state"], "because": row["reason"]}
        values = {
            "state": "unknown",
            "reason": f"accepted by {actor}: {reason}",
            "test": {},
            "n": 0,
            "since_at": now,
            "tested_at": None,
            "stale_at": None,
            "lease_until": None,
            "accepted": [*row["accepted"], entry],
        }
        tx.connection.execute(update(judge_health).where(*key.where).values(**values))


def health(tx: Transaction, *, scorecard: str = "", criterion: str = "") -> list[dict[str, Any]]:
    """How each judge stands, the latest tested of each criterion first: of that one ``current`` is true."""
    c = judge_health.c
    given = {"scorecard": scorecard, "criterion": criterion}
    query = select(judge_health).where(*(c[name] == value for name, value in given.items() if value))
    rows = [dict(row) for row in tx.connection.execute(query).mappings()]
    # A judge that was accepted has no run yet, and is no less the one that grades.
    rows.sort(key=lambda row: (row["tested_at"] or row["since_at"], row["judge_version"]), reverse=True)
    rows.sort(key=lambda row: (row["scorecard"], row["criterion"]))
    seen: set[tuple[str, str]] = set()
    for row in rows:
        of = row["scorecard"], row["criterion"]
        row["current"] = of not in seen
        seen.add(of)
    return rows


def standing(row: Mapping[str, Any]) -> Standing | None:
    """A row of ``health`` as the attribution takes it; None before the first run."""
    if row["tested_at"] is None or row["stale_at"] is None:
        return None
    movement = JudgeShift.from_state(row["test"].get("shift", {})).movement
    return Standing(
        row["judge_version"],
        row["state"],
        row["n"],
        row["tested_at"],
        row["stale_at"],
        movement.shift,
        movement.direction,
    )


def _row(new: New, now: datetime) -> dict[str, Any]:
    payload = orjson.dumps(to_wire(new.record))
    from_wire(orjson.loads(payload))
    named = f"{new.scorecard}\x1f{new.criterion}\x1f{new.label}\x1f".encode() + payload
    return {
        "anchor_id": "anc_" + hashlib.sha256(named).hexdigest()[:20],
        "scorecard": new.scorecard,
        "criterion": new.criterion,
        "label": new.label,
        "value": new.value,
        "payload": payload,
        "record_id": new.record.record_id,
        "user_id": new.record.user_id,
        "source": storable(new.source),
        "actor": storable(new.actor),
        "added_at": now,
        "retired_at": None,
    }
