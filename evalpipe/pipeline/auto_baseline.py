"""A release that stayed healthy is what is normal from then on: its baseline is captured without anybody's asking."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import ScalarSelect, func, select

from evalpipe.controls import EVALPIPE
from evalpipe.errors import ConfigError
from evalpipe.store import baselines, series
from evalpipe.store.baselines import AUTO, WANTED, Header, Wanted
from evalpipe.store.rollouts import LIVE
from evalpipe.store.series import SERVED
from evalpipe.store.sql import Store, Transaction
from evalpipe.store.tables import alerts, rollouts, rollup_days, rollups
from evalpipe.store.tables import series as series_table

log = logging.getLogger("evalpipe")

EVERY: Final = timedelta(minutes=30)
"""How often it is looked for releases that are due."""
HEALTHY: Final = timedelta(hours=24)
"""A release must have been in traffic, and healthy, for so long."""
PATIENCE: Final = timedelta(days=7)
"""After so long it is captured though not every criterion has enough scores, and no baseline is of more days."""
ALIVE: Final = timedelta(hours=1)
"""A release without scores for so long is not in traffic."""
UNHEALTHY: Final = ("SEV1", "SEV2", "SEV3")


@dataclass(frozen=True, slots=True)
class _Candidate:
    service: str
    environment: str
    variant: str
    release_id: str
    first_at: datetime

    @property
    def place(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in ("service", "environment", "variant", "release_id")}


class AutoBaseline:
    """Captures a baseline of each release that is due, once, and again after each change of an epoch.

    A release is due at a place (service, environment, variant) when it has been in traffic there for 24 h, without an
    alert of SEV1 to SEV3 firing, a rollback, a rollout of it under way or a new epoch meanwhile, and every criterion
    that has scores has 3,000 of them; after seven days those that have as many suffice.

    Args:
        store: where.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._next_at: datetime | None = None

    def __call__(self, now: datetime) -> list[Header]:
        """Capture what is due; looks at most every half hour."""
        if self._next_at is not None and now < self._next_at:
            return []
        self._next_at = now + EVERY
        with self._store.read() as tx:
            wanted = [one for candidate in _candidates(tx, now) if (one := _due(tx, candidate, now)) is not None]
        return [header for one in wanted if (header := self._capture(one, now)) is not None]

    def _capture(self, wanted: Wanted, now: datetime) -> Header | None:
        try:
            header = self._store.patiently(lambda tx: baselines.capture(tx, wanted, now))
        except ConfigError as error:  # another worker was quicker
            log.info("no baseline was captured: %s", error)
            return None
        log.info("captured %s", header.words)
        return header


def _candidates(tx: Transaction, now: datetime) -> list[_Candidate]:
    """The releases in traffic that have been for long enough."""
    place = [series_table.c[name] for name in ("service", "environment", "variant", "release_id")]
    mine = series_table.c.arm == SERVED, series_table.c.release_id != ""
    recent = select(rollup_days.c.series_id).where(rollup_days.c.bucket_at >= now - ALIVE - timedelta(days=1))
    newest = select(*place, _newest().label("newest")).where(*mine, series_table.c.series_id.in_(recent))
    alive = {
        (row.service, row.environment, row.variant, row.release_id)
        for row in tx.connection.execute(newest)
        if row.newest is not None and row.newest >= now - ALIVE
    }
    first = select(*place, func.min(series_table.c.first_seen_at).label("first_at")).where(*mine).group_by(*place)
    return [
        _Candidate(row.service, row.environment, row.variant, row.release_id, row.first_at)
        for row in tx.connection.execute(first.order_by(*place))
        if tuple(row)[:4] in alive and now - row.first_at >= HEALTHY
    ]


def _newest() -> ScalarSelect[datetime]:
    """The newest minute of a series with a scored value."""
    of = rollups.c.series_id == series_table.c.series_id, rollups.c.n_scored > 0
    return select(func.max(rollups.c.bucket_at)).where(*of).scalar_subquery()


def _due(tx: Transaction, of: _Candidate, now: datetime) -> Wanted | None:
    epochs, changed_at = _epochs(tx, of)
    there = [one for one in baselines.listing(tx, of.place) if one.actor == EVALPIPE]
    since = _healthy_since(tx, of, now)
    if since is None or not epochs or any(_knows(one, epochs) for one in there):
        return None
    since = max(since, changed_at or since)
    if now - since < HEALTHY:
        return None
    enough = [n >= WANTED for n in _sizes(tx, of, since, epochs)]
    if not any(enough) or not (now - since >= PATIENCE or all(enough)):
        return None
    name = f"{AUTO}{_word(of.variant)}-{_word(of.release_id)[:8]}-{now:%Y%m%d}"
    taken = {one.name for one in there}
    numbered = (name if n == 1 else f"{name}-{n}" for n in range(1, len(taken) + 2))
    free = next(one for one in numbered if one not in taken)
    hours = (now - since).total_seconds() / 3600
    reason = f"release {of.release_id} has been in traffic and healthy for {hours:.0f} hours"
    return Wanted(free, since_at=since, until_at=_minute(now), actor=EVALPIPE, reason=reason, **of.place)


def _healthy_since(tx: Transaction, of: _Candidate, now: datetime) -> datetime | None:
    """From when on nothing was wrong there; None while something is, or while it is only on trial."""
    if _on_trial(tx, of):
        return None
    # An alert that tells no environments or variants apart is about all of them.
    place = [alerts.c[name].in_(["", getattr(of, name)]) for name in ("environment", "variant")]
    fired = select(alerts.c.status, alerts.c.resolved_at).where(
        alerts.c.service == of.service, *place, alerts.c.severity.in_(UNHEALTHY), alerts.c.dry_run == 0,
        alerts.c.fired_at.is_not(None), alerts.c.release_id.in_(["", of.release_id]),
    )  # fmt: skip
    times = [of.first_at, now - PATIENCE]
    for status, resolved_at in tx.connection.execute(fired):
        if status == "firing":
            return None
        times += [resolved_at] if resolved_at is not None else []
    rolled_back = select(rollouts.c.rolled_back_at).where(
        rollouts.c.service == of.service, rollouts.c.environment == of.environment, rollouts.c.canary == of.variant,
        rollouts.c.canary_release_id.in_(["", of.release_id]), rollouts.c.rolled_back_at.is_not(None),
    )  # fmt: skip
    times += tx.connection.scalars(rolled_back)
    return _minute(max(times) + timedelta(seconds=59))


def _on_trial(tx: Transaction, of: _Candidate) -> bool:
    """Whether a rollout of this canary has not ended: until then the variant before it is what is normal."""
    query = select(rollouts.c.rollout_id).where(
        rollouts.c.service == of.service, rollouts.c.environment == of.environment, rollouts.c.canary == of.variant,
        rollouts.c.canary_release_id.in_(["", of.release_id]), rollouts.c.phase.in_(LIVE),
    )  # fmt: skip
    return tx.connection.execute(query.limit(1)).first() is not None


def _epochs(tx: Transaction, of: _Candidate) -> tuple[dict[str, str], datetime | None]:
    """The present epoch by scorecard/criterion, and when the last of those before ended; None if there was none."""
    columns = (series_table.c[name] for name in ("scorecard", "criterion", "epoch", "first_seen_at"))
    place = (series_table.c[name] == value for name, value in of.place.items())
    query = select(_newest().label("newest"), *columns).where(series_table.c.arm == SERVED, *place)
    newest: dict[str, dict[str, tuple[datetime, datetime]]] = {}
    for at, scorecard, criterion, epoch, seen_at in tx.connection.execute(query):
        if at is not None:
            mine = newest.setdefault(f"{scorecard}/{criterion}", {})
            mine[epoch] = max(mine.get(epoch, (at, seen_at)), (at, seen_at))
    present = {key: max(mine, key=lambda epoch: (*mine[epoch], epoch)) for key, mine in newest.items()}
    ended = [at for key, mine in newest.items() for epoch, (at, _) in mine.items() if epoch != present[key]]
    return present, max(ended) + timedelta(minutes=1) if ended else None


def _knows(one: Header, epochs: dict[str, str]) -> bool:
    """Whether a baseline has all these epochs."""
    return all(epoch in one.epochs.get(key, {}) for key, epoch in epochs.items())


def _sizes(tx: Transaction, of: _Candidate, since: datetime, epochs: dict[str, str]) -> list[int]:
    """Scored values of each criterion in its present epoch."""
    found = dict.fromkeys(epochs, 0)
    for _, one, rollup in series.read_sums(tx, since, None, **of.place):
        key = f"{one.scorecard}/{one.criterion}"
        if key in epochs and one.epoch == epochs[key]:
            found[key] += rollup.n_scored
    return list(found.values())


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:40] or "unnamed"


def _minute(at: datetime) -> datetime:
    return at.replace(second=0, microsecond=0)
