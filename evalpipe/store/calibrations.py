"""How far a judge agrees with people, measured: what was graded by both, and the measurement that is kept.

A calibration belongs to one epoch of one criterion, and corrects no other: another judge or prompt errs otherwise.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from statistics import fmean
from typing import Any, Final

import orjson
from sqlalchemy import and_, func, select

from evalpipe.record import Record
from evalpipe.rollup import Rollup
from evalpipe.stats.correction import Corrected, Labelled, corrected
from evalpipe.store.intake import payloads
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import calibrations, grades, labels, scores

BATCH: Final = 500
UNCALIBRATED: Final = "not calibrated in this epoch"
"""Why there is no corrected value, where nothing was measured."""

Key = tuple[str, str, str]
"""Scorecard, criterion, epoch."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """One measurement.

    Attributes:
        judge_version: whom it measures.
        at: when it was made.
        n: labelled records in it.
        body: ``labelled`` has the sums that correct; the rest is for people.
    """

    scorecard: str
    criterion: str
    epoch: str
    judge_version: str
    at: datetime
    n: int
    body: Mapping[str, Any]

    @property
    def labelled(self) -> Labelled:
        """The sums that correct."""
        return Labelled.from_state(self.body["labelled"])


@dataclass(slots=True)
class Both:
    """One record that a judge and people graded for one criterion.

    Attributes:
        epoch, judge_version, scorecard_version: of the score.
        status, value, label, weight, cost_usd: of the score; a cost of None is unknown.
        people: label and value by annotator; the value is None where the person could not tell.
        chosen: how the record came to be labelled: ``random``, ``given`` or ``uncertain``.
        record: None where its payload is gone.
    """

    record_id: str
    epoch: str
    judge_version: str
    scorecard_version: str
    captured_at: datetime
    status: str
    value: float | None
    label: str
    weight: float
    cost_usd: float | None
    people: dict[str, tuple[str, float | None]] = field(default_factory=dict)
    chosen: str = "given"
    record: Record | None = None


def save(tx: Transaction, calibration: Calibration) -> str:
    """Keep a calibration; from now on it corrects what is reported of its epoch. Returns its id."""
    body = orjson.loads(orjson.dumps(calibration.body))
    named = orjson.dumps([*_key(calibration), calibration.at, body], option=orjson.OPT_SORT_KEYS)
    calibration_id = hashlib.sha256(named).hexdigest()[:32]
    row = {name: getattr(calibration, name) for name in _COLUMNS}
    tx.insert_new(calibrations, [{**row, "calibration_id": calibration_id, "body": body}])
    return calibration_id


def newest(tx: Transaction, epochs: Collection[str]) -> dict[Key, Calibration]:
    """The newest calibration of each of these epochs, where there is one."""
    c, wanted, ids = calibrations.c, sorted(epochs), {}
    for start in range(0, len(wanted), BATCH):
        query = select(c.scorecard, c.criterion, c.epoch, c.calibration_id)
        some = query.where(c.epoch.in_(wanted[start : start + BATCH])).order_by(c.at, c.calibration_id)
        for *key, calibration_id in tx.connection.execute(some):
            ids[tuple(key)] = calibration_id
    found: dict[Key, Calibration] = {}
    latest = list(ids.values())
    for start in range(0, len(latest), BATCH):
        bodies = select(*(c[name] for name in _COLUMNS)).where(c.calibration_id.in_(latest[start : start + BATCH]))
        for row in tx.connection.execute(bodies).mappings():
            calibration = Calibration(**row)
            found[_key(calibration)] = calibration
    return found


def correct(rollup: Rollup, calibration: Calibration | None) -> Corrected:
    """A rollup's mean, corrected by the calibration of its own epoch."""
    if calibration is None:
        return Corrected(reason=UNCALIBRATED)
    return corrected(rollup, calibration.labelled)


def labelled_criteria(tx: Transaction) -> list[tuple[str, str]]:
    """Scorecard and criterion of everything that people have labelled, by name."""
    query = select(labels.c.scorecard, labels.c.criterion).where(labels.c.superseded_at.is_(None)).distinct()
    return sorted((scorecard, criterion) for scorecard, criterion in tx.connection.execute(query))


def read_both(tx: Transaction, scorecard: str, criterion: str) -> dict[str, list[Both]]:
    """What people labelled and something scored, by epoch; the epoch with the newest record first.

    A record that was scored twice in one epoch, under two versions of the scorecard, counts once, as scored last.
    """
    names = ("record_id", "epoch", "scorecard_version", "captured_at", "status", "value", "label", "weight", "cost_usd")
    query = (
        select(
            *(scores.c[name] for name in names),
            scores.c.scorer.label("judge_version"),
            labels.c.annotator,
            labels.c.label.label("said"),
            labels.c.value.label("meant"),
            labels.c.chosen,
        )
        .join(
            labels,
            and_(
                labels.c.record_id == scores.c.record_id,
                labels.c.scorecard == scores.c.scorecard,
                labels.c.criterion == scores.c.criterion,
            ),
        )
        .where(labels.c.superseded_at.is_(None), scores.c.scorecard == scorecard, scores.c.criterion == criterion)
        .order_by(scores.c.scored_at, scores.c.scorecard_version, labels.c.at)
    )
    found: dict[tuple[str, str], Both] = {}
    for row in tx.connection.execute(query).mappings():
        key = row["epoch"], row["record_id"]
        both = found.get(key)
        if both is None or both.scorecard_version != row["scorecard_version"]:
            own = {name: row[name] for name in (*names, "judge_version")}
            both = found[key] = Both(**own)
        both.people[row["annotator"]] = row["said"], row["meant"]
        both.chosen = max(both.chosen, row["chosen"], key=_CHOSEN.index)
    _add_records(tx, list(found.values()))
    by_epoch: dict[str, list[Both]] = defaultdict(list)
    for (epoch, _), both in found.items():
        by_epoch[epoch].append(both)
    return dict(sorted(by_epoch.items(), key=lambda pair: max(both.captured_at for both in pair[1]), reverse=True))


def read_orders(tx: Transaction, scorecard: str, criterion: str, epoch: str) -> list[tuple[float, float]]:
    """Of pairs that were shown in both orders: the value of the answer when shown first, and when shown second."""
    query = (
        select(grades.c.work_id, grades.c.role, grades.c.judge_version, scores.c.scorer, func.avg(grades.c.value))
        .join(scores, and_(scores.c.record_id == grades.c.record_id, scores.c.criterion == grades.c.criterion))
        .where(scores.c.scorecard == scorecard, scores.c.criterion == criterion, scores.c.epoch == epoch)
        .where(grades.c.role.in_(["first", "swapped"]), grades.c.value.is_not(None))
        .group_by(grades.c.work_id, grades.c.role, grades.c.judge_version, scores.c.scorer)
    )
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for work_id, role, judge_version, scorer, value in tx.connection.execute(query):
        judge, _, prompt = judge_version.rpartition("/")
        # A record may have grades of another scorecard's prompt, or of an earlier judge, too.
        if judge in scorer and scorer.endswith(f"/{prompt}"):
            found[work_id][role].append(float(value))
    both = [values for values in found.values() if len(values) == 2]
    return [(fmean(values["first"]), fmean(values["swapped"])) for values in both]


_CHOSEN = ("given", "uncertain", "random")
"""What anybody drew at random is random, whoever else labelled it too."""
_COLUMNS = ("scorecard", "criterion", "epoch", "judge_version", "at", "n", "body")


def _key(calibration: Calibration) -> Key:
    return calibration.scorecard, calibration.criterion, calibration.epoch


def _add_records(tx: Transaction, found: Sequence[Both]) -> None:
    ids = sorted({both.record_id for both in found})
    kept: dict[str, Record] = {}
    for start in range(0, len(ids), BATCH):
        kept |= payloads(tx, ids[start : start + BATCH])
    for both in found:
        both.record = kept.get(both.record_id)
