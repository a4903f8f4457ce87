"""What is reported of each series as a whole: the judge's mean as it is, and corrected for the judge's error."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import func, select

from evalpipe.rollup import Rollup, merged
from evalpipe.stats.correction import Corrected
from evalpipe.stats.mean_interval import interval_of
from evalpipe.store import calibrations
from evalpipe.store.calibrations import Calibration
from evalpipe.store.series import SERVED, read_sums
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import scores

KEY: Final = ("service", "environment", "variant", "scorecard", "criterion", "epoch")
"""Releases and features are taken together; epochs never are."""
_EVER: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Estimate:
    """One series over the whole time that was asked for.

    Attributes:
        key: values by the names of ``KEY``.
        newest_at: the newest bucket with a score: a minute of the current hour, or an hour or a day before.
        rollup: its scores.
        corrected: what people would have said, or why that is not known.
        calibration: the newest of this epoch.
        escalated: share of the scored records that a stronger judge was asked about.
        disagreement: mean distance of two votes in [0, 1]; None where there was one vote each.
    """

    key: dict[str, str]
    newest_at: datetime | None
    rollup: Rollup
    corrected: Corrected
    calibration: Calibration | None
    escalated: float | None
    disagreement: float | None

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        raw, found, calibration = interval_of(self.rollup), self.corrected, self.calibration
        return {
            **self.key,
            "n_scored": self.rollup.n_scored,
            "n_abstained": self.rollup.n_abstained,
            "n_error": self.rollup.n_error,
            "raw_mean": raw.mean if raw else None,
            "raw_low": raw.low if raw else None,
            "raw_high": raw.high if raw else None,
            "corrected_mean": found.mean,
            "corrected_low": found.low,
            "corrected_high": found.high,
            "correction": found.method,
            "correction_reason": found.reason,
            "calibrated_at": calibration.at if calibration else None,
            "calibration_n": calibration.n if calibration else None,
            "escalated": self.escalated,
            "disagreement": self.disagreement,
            "newest_at": self.newest_at,
        }


def read_estimates(tx: Transaction, since: datetime, **where: str) -> list[Estimate]:
    """The estimate of every series since then, by its key; ``where`` compares columns of ``Series``."""
    joined: dict[tuple[str, ...], tuple[Rollup, list[datetime]]] = {}
    for newest_at, series, rollup in read_sums(tx, since, None, **where):
        key = tuple(getattr(series, name) for name in KEY)
        whole, times = joined.setdefault(key, (Rollup(), []))
        whole.merge(rollup)
        times.extend([newest_at] if newest_at else [])
    known = calibrations.newest(tx, {key[-1] for key in joined})
    asked = _asked(tx, since, **where)
    found = []
    for key, (rollup, times) in sorted(joined.items(), key=lambda item: item[0][:-1]):
        calibration = known.get((key[3], key[4], key[5]))
        escalated, disagreement = asked.get(key, (None, None))
        corrected = calibrations.correct(rollup, calibration)
        named = dict(zip(KEY, key, strict=True))
        found.append(Estimate(named, max(times, default=None), rollup, corrected, calibration, escalated, disagreement))
    return found


def _asked(tx: Transaction, since: datetime, **where: str) -> dict[tuple[str, ...], tuple[float | None, float | None]]:
    """How often a stronger judge was asked, and how far votes differed, by key."""
    columns = [scores.c[name] for name in KEY]
    query = (
        select(*columns, func.avg(scores.c.escalated), func.avg(scores.c.disagreement))
        .where(scores.c.captured_at >= since, scores.c.status == "scored")
        .where(*(scores.c[name] == value for name, value in {"arm": SERVED, **where}.items()))
        .group_by(*columns)
    )
    return {tuple(row[:6]): (_float(row[6]), _float(row[7])) for row in tx.connection.execute(query)}


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


@dataclass(frozen=True, slots=True)
class Whole:
    """All scores of one epoch of a criterion, whatever the service, the variant and the time."""

    rollup: Rollup
    escalated: float | None
    disagreement: float | None


def read_whole(tx: Transaction, scorecard: str, criterion: str, epoch: str) -> Whole:
    """Everything that one epoch of a criterion has."""
    where = {"scorecard": scorecard, "criterion": criterion, "epoch": epoch}
    rollup = merged(sums for _, _, sums in read_sums(tx, _EVER, None, **where))
    query = select(func.avg(scores.c.escalated), func.avg(scores.c.disagreement)).where(
        scores.c.status == "scored", *(scores.c[name] == value for name, value in where.items())
    )
    escalated, disagreement = tx.connection.execute(query).one()
    return Whole(rollup, _float(escalated), _float(disagreement))
