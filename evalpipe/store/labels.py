"""What people say of records. Each person's own is kept beside the others', and beside what they said before."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Select, and_, func, or_, select, tuple_, update

from evalpipe.record import AFTERTHOUGHT
from evalpipe.store.intake import lock_kept
from evalpipe.store.sql import Transaction, storable
from evalpipe.store.tables import grades, labels, records, scores, work

BATCH: Final = 500
POOL: Final = 20_000
"""Records that a sample is drawn from at the most: the newest."""
ABSTAINED: Final = "cannot_tell"
"""The label of a person who cannot tell: no opinion, so nobody disagrees with it."""

Key = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class Label:
    """What one person says of one record for one criterion.

    Attributes:
        record_id, scorecard, criterion: of what.
        annotator: who; the same name is the same person.
        label: a grade of the criterion as a word, or ``cannot_tell``.
        value: of the grade, in [0, 1]; None for ``cannot_tell``.
        source: ``import``, ``api`` or ``page``.
        at: when, aware UTC.
        chosen: how the record came to be labelled: ``random``, ``uncertain``, or ``given`` where nobody knows.
    """

    record_id: str
    scorecard: str
    criterion: str
    annotator: str
    label: str
    value: float | None
    comment: str
    source: str
    at: datetime
    chosen: str = "given"

    @property
    def key(self) -> Key:
        """What there is one current label of."""
        return self.record_id, self.scorecard, self.criterion, self.annotator


@dataclass(slots=True)
class Added:
    """What became of labels: ``new``, ``changed`` (an older one is superseded), ``known`` already."""

    new: int = 0
    changed: int = 0
    known: int = 0


def missing(tx: Transaction, record_ids: Iterable[str]) -> set[str]:
    """Those of these ids that are no record of the store."""
    wanted = sorted(set(record_ids))
    found: set[str] = set()
    for start in range(0, len(wanted), BATCH):
        some = wanted[start : start + BATCH]
        found.update(tx.connection.scalars(select(records.c.record_id).where(records.c.record_id.in_(some))))
    return set(wanted) - found


def add(tx: Transaction, found: Sequence[Label], now: datetime, *, dry_run: bool = False) -> Added:
    """Store labels of records that are in the store; the same ones again change nothing.

    Of one person's labels of the same thing the one given last counts, by ``at``. A comment on a record whose payload
    is gone is not kept: it may quote it.
    """
    done = Added()
    # In the order of the records, which are locked: two who label at once cannot deadlock.
    ordered = sorted(found, key=lambda one: (one.record_id, one.at))
    for start in range(0, len(ordered), BATCH):
        _add(tx, ordered[start : start + BATCH], now, done, dry_run=dry_run)
    return done


def _add(tx: Transaction, found: Sequence[Label], now: datetime, done: Added, *, dry_run: bool) -> None:
    ids = sorted({one.record_id for one in found})
    kept = lock_kept(tx, ids)
    weights = _weights(tx, ids)
    history: dict[Key, list[dict[str, Any]]] = defaultdict(list)
    for old in tx.connection.execute(select(labels).where(labels.c.record_id.in_(ids))).mappings():
        history[old["record_id"], old["scorecard"], old["criterion"], old["annotator"]].append(dict(old))
    new, superseded = [], []
    for given in found:
        past = history[given.key]
        row = _row(given, kept=given.record_id in kept, weight=weights.get(given.record_id, 1.0))
        current = next((one for one in past if one["superseded_at"] is None), None)
        if any(_is_same(row, one) and (one is current or one["at"] == row["at"]) for one in past):
            done.known += 1
            continue
        if current is None:
            done.new += 1
        elif row["at"] < current["at"]:  # an older one arrives late: it is history
            done.changed += 1
            row["superseded_at"] = now
        else:
            done.changed += 1
            current["superseded_at"] = now
            superseded.append(current["label_id"])
        past.append(row)
        new.append(row)
    if not dry_run:
        tx.insert_new(labels, new)
        tx.connection.execute(update(labels).where(labels.c.label_id.in_(superseded)).values(superseded_at=now))


def _weights(tx: Transaction, ids: Sequence[str]) -> dict[str, float]:
    query = select(records.c.record_id, records.c.probability, records.c.reason).where(records.c.record_id.in_(ids))
    return {i: 0.0 if reason == AFTERTHOUGHT else 1.0 / p for i, p, reason in tx.connection.execute(query)}


def _row(one: Label, *, kept: bool, weight: float) -> dict[str, Any]:
    comment = storable(one.comment) if kept else ""
    named = "\x1f".join([*one.key, one.label, comment, one.at.isoformat()])
    return {
        "label_id": hashlib.sha256(named.encode("utf-8", "replace")).hexdigest()[:32],
        "record_id": one.record_id,
        "scorecard": one.scorecard,
        "criterion": one.criterion,
        "annotator": one.annotator,
        "label": one.label,
        "value": one.value,
        "comment": comment,
        "source": one.source,
        "chosen": one.chosen,
        "weight": weight,
        "at": one.at,
        "superseded_at": None,
    }


def _is_same(row: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    return all(row[name] == old[name] for name in ("label", "value", "comment"))


def query_labels(
    *, since: datetime | None = None, superseded: bool = False, limit: int | None = None, **where: str
) -> Select[Any]:
    """Labels in the order in which they were given; ``limit`` keeps the newest; ``superseded`` has all of them."""
    query = select(labels).where(*(labels.c[name] == value for name, value in where.items()))
    if not superseded:
        query = query.where(labels.c.superseded_at.is_(None))
    if since is not None:
        query = query.where(labels.c.at >= since)
    if limit is not None:
        newest = query.order_by(labels.c.at.desc(), labels.c.label_id.desc()).limit(limit).subquery()
        return select(newest).order_by(newest.c.at, newest.c.label_id)
    return query.order_by(labels.c.at, labels.c.label_id)


def disagreements(tx: Transaction, *, limit: int | None = None, **where: str) -> list[dict[str, Any]]:
    """What two people label differently, newest first, with everybody's ``labels``; who cannot tell has no opinion."""
    thing = (labels.c.record_id, labels.c.scorecard, labels.c.criterion)
    current = and_(labels.c.superseded_at.is_(None), *(labels.c[name] == value for name, value in where.items()))
    differing = (
        select(*thing, func.max(labels.c.at).label("at"))
        .where(current, labels.c.label != ABSTAINED)
        .group_by(*thing)
        .having(func.count(labels.c.label.distinct()) > 1)
        .order_by(func.max(labels.c.at).desc(), labels.c.record_id)
        .limit(limit)
    )
    found = [dict(row) for row in tx.connection.execute(differing).mappings()]
    for start in range(0, len(found), BATCH):
        some = {(row["record_id"], row["scorecard"], row["criterion"]): row for row in found[start : start + BATCH]}
        query = select(labels).where(labels.c.superseded_at.is_(None), tuple_(*thing).in_(list(some)))
        for row in tx.connection.execute(query.order_by(labels.c.annotator)).mappings():
            of = some[row["record_id"], row["scorecard"], row["criterion"]]
            of.setdefault("labels", []).append({name: row[name] for name in ("annotator", "label", "comment", "at")})
    return found


def labelled(tx: Transaction, scorecard: str, criterion: str) -> dict[str, dict[str, str]]:
    """The records that people labelled: by whom, and how each record was chosen."""
    query = select(labels.c.record_id, labels.c.annotator, labels.c.chosen).where(
        labels.c.scorecard == scorecard, labels.c.criterion == criterion, labels.c.superseded_at.is_(None)
    )
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for record_id, annotator, chosen in tx.connection.execute(query.order_by(labels.c.at)):
        found[record_id][annotator] = chosen
    return dict(found)


def count_by_criterion(tx: Transaction) -> dict[tuple[str, str], tuple[int, int]]:
    """Current labels, and people who gave them, by scorecard and criterion."""
    of = labels.c.scorecard, labels.c.criterion
    query = select(*of, func.count(), func.count(labels.c.annotator.distinct()))
    rows = tx.connection.execute(query.where(labels.c.superseded_at.is_(None)).group_by(*of))
    return {(scorecard, criterion): (n, people) for scorecard, criterion, n, people in rows}


def count_since(tx: Transaction, scorecard: str, criterion: str, annotator: str, since: datetime) -> int:
    """Things that one person labelled since then."""
    query = select(func.count(labels.c.record_id.distinct())).where(
        labels.c.scorecard == scorecard,
        labels.c.criterion == criterion,
        labels.c.annotator == annotator,
        labels.c.at >= since,
    )
    return tx.connection.scalar(query) or 0


def graded(tx: Transaction, scorecard: str, criterion: str, since: datetime) -> dict[str, float]:
    """The newest records that a judge was asked about and whose payload is kept, each with how doubtful its grade is.

    The doubt is 1 where the judge could not tell or failed; else the greatest of the votes' disagreement, what the
    confidence lacks of 1, how near the value is to the middle, and 0.5 where a stronger judge was asked.
    """
    sure = _confidences(scorecard, criterion, since)
    query = (
        select(scores.c.record_id, scores.c.status, scores.c.value, scores.c.disagreement, scores.c.escalated)
        .add_columns(sure.c.confidence)
        .join(records, records.c.record_id == scores.c.record_id)
        .outerjoin(sure, sure.c.record_id == scores.c.record_id)
        .where(scores.c.scorecard == scorecard, scores.c.criterion == criterion, scores.c.captured_at >= since)
        .where(scores.c.status != "skipped", records.c.payload.is_not(None), records.c.reason != AFTERTHOUGHT)
        .order_by(scores.c.captured_at.desc(), scores.c.record_id, scores.c.scored_at.desc())
        .limit(POOL)
    )
    found: dict[str, float] = {}
    for record_id, status, value, disagreement, escalated, confidence in tx.connection.execute(query):
        doubts = [disagreement or 0.0, 0.5 * bool(escalated), 0.0 if confidence is None else 1.0 - confidence]
        doubts.append(1.0 if status != "scored" or value is None else 1.0 - abs(2.0 * value - 1.0))
        found.setdefault(record_id, max(doubts))
    return found


def _confidences(scorecard: str, criterion: str, since: datetime) -> Any:
    """The least confidence of the grades of each record."""
    return (
        select(work.c.record_id, func.min(grades.c.confidence).label("confidence"))
        .join(grades, grades.c.work_id == work.c.work_id)
        .where(work.c.scorecard == scorecard, work.c.criterion == criterion, work.c.captured_at >= since)
        .where(grades.c.confidence.is_not(None))
        .group_by(work.c.record_id)
        .subquery()
    )


def places(tx: Transaction, since: datetime) -> list[Any]:
    """Where records since then came from: rows of service, feature, environment and variant."""
    query = select(*_PLACE).where(records.c.captured_at >= since, records.c.payload.is_not(None)).distinct()
    return list(tx.connection.execute(query))


def stored(tx: Transaction, of: Sequence[Any], since: datetime) -> list[str]:
    """The newest records of these places whose payload is kept."""
    if not of:
        return []
    query = select(records.c.record_id).where(
        records.c.captured_at >= since,
        records.c.payload.is_not(None),
        records.c.reason != AFTERTHOUGHT,
        or_(*(and_(*(c == value for c, value in zip(_PLACE, place, strict=True))) for place in of)),
    )
    return list(tx.connection.scalars(query.order_by(records.c.captured_at.desc(), records.c.record_id).limit(POOL)))


def forget(tx: Transaction, record_ids: Sequence[str]) -> None:
    """Remove the comments on records that are erased: they may quote them. Labels stay."""
    tx.connection.execute(update(labels).where(labels.c.record_id.in_(record_ids)).values(comment=""))


_PLACE = (records.c.service, records.c.feature, records.c.environment, records.c.variant)
