"""What a baseline consists of, how it is read from the series, and how it is packed."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import func, select

from evalpipe.detectors.view import Calls
from evalpipe.profile import Profile, Profiles, packed, unpacked
from evalpipe.rollup import SUMS, Rollup
from evalpipe.sketch import Sketch
from evalpipe.stats.clustering import design_effect
from evalpipe.store import series
from evalpipe.store.meter_slots import calls_between
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import meters, records, releases, scores

RESEMBLANCE_OF: Final = 20_000
"""The newest so many scores of a criterion tell how much those of one conversation resemble each other."""
HOUR: Final = timedelta(hours=1)
COMMON: Final = 3
"""A word of answers is kept if the answers to so many conversations have it: names and addresses are not."""
RATES: Final = ("calls", "tokens", "cost_usd")
"""What is kept by the hour of the week."""


@dataclass(frozen=True, slots=True)
class Part:
    """The scores of one criterion, epoch and feature in a baseline.

    Attributes:
        scorecard, criterion, epoch, feature: whose.
        rollup: counts, moments and histogram.
        since, until: from when to when they were captured, to the hour.
        design_effect: see ``stats.clustering``; of the criterion and epoch, whatever the feature.
    """

    scorecard: str
    criterion: str
    epoch: str
    feature: str
    rollup: Rollup
    since: datetime
    until: datetime
    design_effect: float = 1.0


@dataclass(slots=True)
class MeterPart:
    """What the meter counted of one feature, and its rates per hour by the hour of the week (0: Monday, 00:00 UTC)."""

    calls: Calls = field(default_factory=Calls)
    hours: dict[int, dict[str, float]] = field(default_factory=dict)


def read_scores(tx: Transaction, since: datetime, until: datetime, place: Mapping[str, str]) -> list[Part]:
    """The scores of a place, by scorecard, criterion, epoch and feature."""
    found: dict[tuple[str, str, str, str], tuple[Rollup, list[datetime]]] = {}
    for at, one, rollup in series.read_rollups(tx, since=since, until=until, width=HOUR, **place):
        key = one.scorecard, one.criterion, one.epoch, one.feature
        total, times = found.setdefault(key, (Rollup(), [at, at]))
        total.merge(rollup)
        times[0], times[1] = min(times[0], at), max(times[1], at + HOUR)
    effects = {key: _design_effect(tx, since, until, place, key) for key in {key[:3] for key in found}}
    return [
        Part(*key, total, max(times[0], since), min(times[1], until), effects[key[:3]])
        for key, (total, times) in sorted(found.items())
    ]


def _design_effect(
    tx: Transaction, since: datetime, until: datetime, place: Mapping[str, str], of: tuple[str, str, str]
) -> float:
    scorecard, criterion, epoch = of
    query = (
        select(scores.c.value, records.c.unit)
        .join(records, records.c.record_id == scores.c.record_id)
        .where(
            scores.c.criterion == criterion,
            scores.c.captured_at >= since,
            scores.c.captured_at < until,
            scores.c.epoch == epoch,
            scores.c.scorecard == scorecard,
            scores.c.value.is_not(None),
            scores.c.weight > 0.0,
            scores.c.arm == series.SERVED,
            *(scores.c[name] == value for name, value in place.items()),
        )
        .order_by(scores.c.captured_at.desc())
        .limit(RESEMBLANCE_OF)
    )
    rows = tx.connection.execute(query).all()
    # A record without a unit is its own.
    return design_effect([row.value for row in rows], [row.unit or index for index, row in enumerate(rows)])


def read_calls(
    tx: Transaction, since: datetime, until: datetime, place: Mapping[str, str], now: datetime
) -> dict[str, MeterPart]:
    """What the meter counted, by feature; beyond two days ago in whole hours."""
    found: dict[str, MeterPart] = {}
    for of, calls in calls_between(tx, since, until, now).items():
        if all(getattr(of, name) == value for name, value in place.items()):
            found.setdefault(of.feature, MeterPart()).calls.merge(calls)
    first, last = _ceil(since), until.replace(minute=0, second=0, microsecond=0)
    query = (
        select(meters.c.feature, meters.c.hour_at, *_RATES)
        .join(releases, releases.c.release_id == meters.c.release_id)
        .where(meters.c.hour_at >= first, meters.c.hour_at < last)
        .where(*((meters if name == "release_id" else releases).c[name] == value for name, value in place.items()))
        .group_by(meters.c.feature, meters.c.hour_at)
    )
    times = _hours_between(first, last)
    for feature, hour_at, *sums in tx.connection.execute(query):
        hour = hour_of_week(hour_at)
        mine = found.setdefault(feature, MeterPart()).hours.setdefault(hour, dict.fromkeys(RATES, 0.0))
        for name, amount in zip(RATES, sums, strict=True):
            mine[name] += float(amount) / times[hour]
    return found


_RATES: Final = (
    func.sum(meters.c.calls), func.sum(meters.c.input_tokens + meters.c.output_tokens), func.sum(meters.c.cost_usd),
)  # fmt: skip


def hour_of_week(at: datetime) -> int:
    """0 for Monday from 00:00 UTC, up to 167."""
    return at.weekday() * 24 + at.hour


def _ceil(at: datetime) -> datetime:
    start = at.replace(minute=0, second=0, microsecond=0)
    return start if start == at else start + HOUR


def _hours_between(first: datetime, end: datetime) -> dict[int, int]:
    """How often each hour of the week occurs."""
    found: dict[int, int] = {}
    while first < end:
        hour = hour_of_week(first)
        found[hour] = found.get(hour, 0) + 1
        first += HOUR
    return found


def pack(parts: Sequence[Part], calls: Mapping[str, MeterPart]) -> dict[str, Any]:
    """Scores and meter as one JSON-safe document."""
    return {
        "scores": [
            {
                "scorecard": p.scorecard,
                "criterion": p.criterion,
                "epoch": p.epoch,
                "feature": p.feature,
                "sums": [getattr(p.rollup, name) for name in SUMS],
                "bins": {str(index): count for index, count in sorted(p.rollup.bins.items())},
                "since": p.since.timestamp(),
                "until": p.until.timestamp(),
                "design_effect": p.design_effect,
            }
            for p in parts
        ],
        "calls": {
            feature: {
                "seconds": part.calls.seconds,
                "sums": part.calls.sums,
                "sketches": {name: sketch.to_wire() for name, sketch in part.calls.sketches.items()},
                "hours": {str(hour): rates for hour, rates in sorted(part.hours.items())},
            }
            for feature, part in sorted(calls.items())
        },
    }


def unpack(body: Mapping[str, Any]) -> tuple[tuple[Part, ...], dict[str, MeterPart]]:
    """The inverse of ``pack``."""
    parts = tuple(
        Part(
            p["scorecard"],
            p["criterion"],
            p["epoch"],
            p["feature"],
            Rollup(**dict(zip(SUMS, p["sums"], strict=True)), bins={int(index): n for index, n in p["bins"].items()}),
            datetime.fromtimestamp(p["since"], UTC),
            datetime.fromtimestamp(p["until"], UTC),
            p["design_effect"],
        )
        for p in body["scores"]
    )
    calls = {
        feature: MeterPart(
            Calls(c["seconds"], dict(c["sums"]), {name: Sketch.from_wire(s) for name, s in c["sketches"].items()}),
            {int(hour): rates for hour, rates in c["hours"].items()},
        )
        for feature, c in body["calls"].items()
    }
    return parts, calls


_VECTORS: Final = ("input_embedding", "output_embedding")


def pack_profiles(profiles: Profiles) -> dict[str, Any]:
    """Profiles as one JSON-safe document, without the words of few: a baseline outlives the records that it is of."""
    users: dict[str, set[str]] = {}
    for profile in profiles:
        for term in profile.words.get("terms", "").split():
            users.setdefault(term, set()).add(profile.unit)
    rows, number = [], itertools.count(1)
    for profile in profiles:
        row = {**asdict(profile), "captured_at": profile.captured_at.timestamp()}
        # A number of its own for each: as a set of words the answer is as large, and as unlike others, as it was.
        terms = profile.words.get("terms", "").split()
        kept = [term if len(users[term]) >= COMMON else f"#{next(number)}" for term in terms]
        row["words"] = {**profile.words, "terms": " ".join(kept)} if terms else profile.words
        for name in _VECTORS:
            row[name] = base64.b64encode(packed(row[name])).decode()
        rows.append(row)
    return {"profiles": rows}


def unpack_profiles(body: Mapping[str, Any]) -> Profiles:
    """The inverse of ``pack_profiles``; embeddings are to half precision, as everywhere in the store."""
    found = []
    for row in body["profiles"]:
        vectors = {name: unpacked(base64.b64decode(row[name])) for name in _VECTORS}
        found.append(Profile(**{**row, **vectors, "captured_at": datetime.fromtimestamp(row["captured_at"], UTC)}))
    return found
