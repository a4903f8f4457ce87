"""Baselines: named snapshots of what is normal at a place. They are captured once, never changed, and never deleted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite

from evalpipe.controls import EVALPIPE, check_who
from evalpipe.detectors.view import Place
from evalpipe.errors import ConfigError
from evalpipe.profile import Profiles
from evalpipe.store.baseline_parts import (
    MeterPart,
    Part,
    pack,
    pack_profiles,
    read_calls,
    read_scores,
    unpack,
    unpack_profiles,
)
from evalpipe.store.profiles import hold, profiles_between
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import baselines

LEAST: Final = 1_000
"""With fewer scores the error of the baseline itself makes false alarms common: one in ten has an average run length
below 5,000 scores where 100,000 were promised."""
WANTED: Final = 3_000
"""From so many on a tolerance of 1 % covers the baseline's own error."""
MOST_PROFILES: Final = 2_000
"""An even choice of so many tells what inputs and outputs look like."""
LATEST: Final = "latest"
"""In rules: the newest baseline that fits. No baseline has this name."""
AUTO: Final = "auto-"
"""How the names of those that evalpipe captures by itself begin; nobody else's do."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Header:
    """A baseline but for what it consists of.

    Attributes:
        name: of the baseline, for ever.
        service, environment, variant: where it was captured.
        release_id: of one release; "" for all of the variant.
        since_at, until_at: what was captured then is in it; aware UTC.
        captured_at: when it was made.
        actor, reason: who made it, and why.
        n_scores, n_calls, n_profiles: how large it is.
        epochs: scored values by ``scorecard/criterion`` and epoch.
        retired_at, retired_by, retired_reason: since when ``latest`` skips it; None while it does not.
    """

    name: str
    service: str
    environment: str
    variant: str
    release_id: str
    since_at: datetime
    until_at: datetime
    captured_at: datetime
    actor: str
    reason: str
    n_scores: int = 0
    n_calls: int = 0
    n_profiles: int = 0
    epochs: dict[str, dict[str, int]] = field(default_factory=dict)
    retired_at: datetime | None = None
    retired_by: str = ""
    retired_reason: str = ""

    @property
    def words(self) -> str:
        """What it is, with its size and dates."""
        of = f", release {self.release_id[:12]}" if self.release_id else ""
        size = f"{self.n_scores:,} scores, {self.n_calls:,} calls"
        return (
            f"baseline {self.name} ({self.service} {self.environment} {self.variant}{of}; {size}; "
            f"{self.since_at:%Y-%m-%d %H:%M} to {self.until_at:%Y-%m-%d %H:%M} UTC)"
        )

    @property
    def place(self) -> dict[str, str]:
        """The columns that it is about."""
        found = {name: str(getattr(self, name)) for name in ("service", "environment", "variant")}
        return {**found, "release_id": self.release_id} if self.release_id else found


@dataclass(frozen=True, slots=True)
class Baseline:
    """A baseline with its distributions; profiles are read by ``read_profiles``.

    Attributes:
        header: name, place, dates and size.
        parts: scores by scorecard, criterion, epoch and feature.
        calls: what the meter counted, by feature, in whole hours.
    """

    header: Header
    parts: tuple[Part, ...]
    calls: Mapping[str, MeterPart]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody wants captured; the fields are those of ``Header``."""

    name: str
    service: str
    environment: str
    variant: str
    since_at: datetime
    until_at: datetime
    actor: str
    reason: str = ""
    release_id: str = ""


def capture(tx: Transaction, wanted: Wanted, now: datetime) -> Header:
    """Make a baseline of what is in the store.

    Raises:
        ConfigError: the name is taken or cannot be one, nobody stands for it, or there are too few scores; the message
            says how many there are and how many are needed.
    """
    actor = _who(wanted)
    _check(tx, wanted, now)
    until = min(wanted.until_at, now)
    draft = Header(**{**asdict(wanted), "actor": actor, "until_at": until}, captured_at=now)
    parts = read_scores(tx, draft.since_at, until, draft.place)
    calls = read_calls(tx, draft.since_at, until, draft.place, now)
    profiles = _profiles(tx, draft)
    epochs = sizes(parts)
    n_calls = sum(part.calls.n for part in calls.values())
    _enough(wanted, epochs, n_calls, len(profiles))
    values = {
        **{f.name: getattr(draft, f.name) for f in fields(Header)},
        "n_scores": sum(part.rollup.n_scored for part in parts),
        "n_calls": n_calls,
        "n_profiles": len(profiles),
        "epochs": epochs,
    }
    insert = (postgresql.insert if tx.is_postgresql else sqlite.insert)(baselines)
    new = insert.values(**values, body=pack(parts, calls), profiles=pack_profiles(profiles)).on_conflict_do_nothing()
    if not tx.connection.execute(new).rowcount:
        raise _taken(tx, wanted)
    return Header(**values)


def sizes(parts: Sequence[Part]) -> dict[str, dict[str, int]]:
    """Scored values by scorecard/criterion and epoch."""
    found: dict[str, dict[str, int]] = {}
    for part in parts:
        of = found.setdefault(f"{part.scorecard}/{part.criterion}", {})
        of[part.epoch] = of.get(part.epoch, 0) + part.rollup.n_scored
    return found


def get(tx: Transaction, name: str) -> Baseline | None:
    """A baseline without its profiles; None if there is none of that name."""
    query = select(*_HEADER, baselines.c.body).where(baselines.c.name == name)
    row = tx.connection.execute(query).mappings().first()
    if row is None:
        return None
    return Baseline(_header(row), *unpack(row["body"]))


def read_profiles(tx: Transaction, name: str) -> Profiles:
    """The profiles of a baseline; none if there is no such baseline."""
    body = tx.connection.execute(select(baselines.c.profiles).where(baselines.c.name == name)).scalar()
    return [] if body is None else unpack_profiles(body)


def listing(
    tx: Transaction, where: Mapping[str, str] | None = None, *, retired: bool = True, limit: int | None = None
) -> list[Header]:
    """Baselines, newest first; ``where`` compares columns."""
    query = select(*_HEADER).where(*(baselines.c[name] == value for name, value in (where or {}).items()))
    if not retired:
        query = query.where(baselines.c.retired_at.is_(None))
    query = query.order_by(baselines.c.captured_at.desc(), baselines.c.until_at.desc(), baselines.c.name).limit(limit)
    return [_header(row) for row in tx.connection.execute(query).mappings()]


def retire(tx: Transaction, name: str, *, actor: str, reason: str, now: datetime) -> bool:
    """From now on ``latest`` skips it; rules that name it go on with it. False if it was retired before.

    Raises:
        ConfigError: there is none of that name, or actor or reason is missing.
    """
    where = f"baseline {name!r}"
    actor, reason = check_who(where, actor, reason, needs_reason=True)
    if tx.connection.scalar(select(baselines.c.name).where(baselines.c.name == name)) is None:
        raise missing(tx, name)
    one = update(baselines).where(baselines.c.name == name, baselines.c.retired_at.is_(None))
    done = tx.connection.execute(one.values(retired_at=now, retired_by=actor, retired_reason=reason))
    return done.rowcount == 1


def missing(tx: Transaction, name: str) -> ConfigError:
    """That there is no baseline of this name, and which there are."""
    return ConfigError(f"there is no baseline {name!r}; {_there(tx)}")


def forget(tx: Transaction, record_ids: Sequence[str]) -> None:
    """Remove the profiles of erased records: nothing of what a user said remains, not even in a baseline."""
    gone = set(record_ids)
    names = select(baselines.c.name).where(baselines.c.n_profiles > 0).order_by(baselines.c.name)
    for name in tx.connection.scalars(names).all() if gone else ():
        one = baselines.c.name == name
        # Locked, one by one: what two erasures at once leave has neither user, and no more than one is in memory.
        body = tx.connection.execute(select(baselines.c.profiles).where(one).with_for_update()).scalar_one()
        left = [row for row in body["profiles"] if row["record_id"] not in gone]
        if len(left) < len(body["profiles"]):
            values = {"profiles": {**body, "profiles": left}, "n_profiles": len(left)}
            tx.connection.execute(update(baselines).where(one).values(**values))


_HEADER: Final = tuple(baselines.c[f.name] for f in fields(Header))


def _header(row: Any) -> Header:
    return Header(**{f.name: row[f.name] for f in fields(Header)})


def _profiles(tx: Transaction, of: Header) -> Profiles:
    place = Place(of.service, of.environment, of.variant, release_id=of.release_id)
    return hold(tx, profiles_between(tx, place, of.since_at, of.until_at, MOST_PROFILES))


def _who(wanted: Wanted) -> str:
    where = f"baseline {wanted.name!r}"
    if wanted.actor == EVALPIPE and wanted.name.startswith(AUTO):
        return EVALPIPE
    return check_who(where, wanted.actor, wanted.reason, needs_reason=False)[0]


def _check(tx: Transaction, wanted: Wanted, now: datetime) -> None:
    name = wanted.name
    if name == LATEST or not _NAME.fullmatch(name) or (name.startswith(AUTO) and wanted.actor != EVALPIPE):
        raise ConfigError(
            f"{name!r} cannot be the name of a baseline: write up to 100 letters, digits, '.', '_' and '-'; {LATEST!r} "
            f"means the newest, and names with {AUTO!r} are evalpipe's own"
        )
    if wanted.since_at >= min(wanted.until_at, now):
        raise ConfigError(
            f"baseline {name!r}: it would begin at {wanted.since_at.isoformat()} and end at "
            f"{min(wanted.until_at, now).isoformat()}; since must be before until, and in the past"
        )
    if tx.connection.scalar(select(baselines.c.name).where(baselines.c.name == name)) is not None:
        raise _taken(tx, wanted)


def _taken(tx: Transaction, wanted: Wanted) -> ConfigError:
    return ConfigError(
        f"there is a baseline {wanted.name!r}, and baselines are never changed: give the new one another name, and "
        f"retire the old one if it is no longer normal; {_there(tx, {'service': wanted.service})}"
    )


def _there(tx: Transaction, where: Mapping[str, str] | None = None) -> str:
    names = [header.name for header in listing(tx, where, limit=10)]
    return f"there are: {', '.join(names)}" if names else "there are none ('evalpipe baseline capture' makes one)"


def _enough(wanted: Wanted, epochs: Mapping[str, Mapping[str, int]], n_calls: int, n_profiles: int) -> None:
    """One criterion with enough scores, or, where nothing scores, enough calls or records."""
    found = {f"{name} (epoch {epoch[:6]})": n for name, of in epochs.items() for epoch, n in of.items() if n}
    if max(found.values(), default=max(n_calls, n_profiles)) >= LEAST:
        return
    span = wanted.until_at - wanted.since_at
    there = ", ".join(f"{n:,} of {name}" for name, n in sorted(found.items())) or f"no scores and {n_calls:,} calls"
    release = f" release {wanted.release_id}" if wanted.release_id else ""
    raise ConfigError(
        f"baseline {wanted.name!r}: {wanted.service} {wanted.environment} {wanted.variant}{release} has {there} in "
        f"{_span(span)}; at least {LEAST:,} scores of one criterion are needed and {WANTED:,} are good: take a longer "
        "time (--since), sample more, or wait"
    )


def _span(span: timedelta) -> str:
    hours = span.total_seconds() / 3600.0
    return f"{hours / 24.0:.1f} days" if hours >= 48.0 else f"{hours:.1f} hours"
