"""What a model answered to fixed sets of prompts, and from when on the answers are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import delete, func, select, update

from evalpipe.detectors.view import Place, PrintRun
from evalpipe.errors import ConfigError
from evalpipe.profile import unpacked
from evalpipe.scorecard.fingerprint import FingerprintSet
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import print_sets, prints

NEWEST: Final = 48
"""Of the newest rounds a rule looks at fewer, whatever its parameters."""
REFERENCE: Final = 100
"""Rounds of a reference at the most; those are kept as long as it is in use."""


SETTLING: Final = timedelta(minutes=5)
"""A set that is defined anew is asked so long after its last round at the soonest."""


def claim(
    tx: Transaction, one: FingerprintSet, now: datetime, *, lease: timedelta, force: bool = False
) -> datetime | None:
    """The time of the round that the caller now owes; None if none is due, or somebody else is at it.

    A set that is defined anew begins a new reference.
    """
    place = {"service": one.service, "environment": one.environment, "variant": one.variant}
    fresh = {"definition": one.definition, "reference_at": now, "actor": "", "reason": "", "error": ""}
    mine = print_sets.c.name == one.name
    tx.insert_new(print_sets, [{"name": one.name, **place, **fresh, "round_at": None, "lease_until": None}])
    row = tx.connection.execute(select(print_sets).where(mine).with_for_update(skip_locked=True)).first()
    if row is None or (row.lease_until is not None and row.lease_until > now):
        return None
    values: dict[str, Any] = dict(place)
    if row.definition != one.definition:
        # Two workers with different files, as while a new one is rolled out, must not ask in turns without a pause.
        if row.round_at is not None and now - row.round_at < min(SETTLING, one.every) and not force:
            return None
        values |= {**fresh, "round_at": None}
    elif row.round_at is not None and now - row.round_at < one.every and not force:
        return None
    tx.connection.execute(update(print_sets).where(mine).values(**values, lease_until=now + lease))
    return now


def settle(tx: Transaction, name: str, lease_until: datetime, values: Mapping[str, Any], rows: Sequence[Any]) -> bool:
    """Keep a round, if it is still the caller's; False if it is not."""
    mine = print_sets.c.name == name, print_sets.c.lease_until == lease_until
    if not tx.connection.execute(update(print_sets).where(*mine).values(lease_until=None, **values)).rowcount:
        return False
    tx.insert_new(prints, list(rows))
    return True


def accept(tx: Transaction, name: str, now: datetime, *, actor: str, reason: str) -> None:
    """From now on the behaviour of now is the reference.

    Raises:
        ConfigError: there is no such fingerprint.
    """
    values = {"reference_at": now, "actor": actor, "reason": reason}
    if not tx.connection.execute(update(print_sets).where(print_sets.c.name == name).values(values)).rowcount:
        known = ", ".join(tx.connection.scalars(select(print_sets.c.name).order_by(print_sets.c.name))) or "none"
        raise ConfigError(f"no fingerprint {name!r} has ever run; those that have: {known}")


def prints_since(tx: Transaction, name: str, since: datetime, *, whole: bool = True) -> list[PrintRun]:
    """The runs of a set, oldest first: of its definition of now, and since its behaviour was accepted.

    Args:
        tx: the transaction.
        name: of the set.
        since: of the earliest round; aware UTC.
        whole: all of them; else those that a rule may look at, which are the first and the newest rounds.
    """
    mine = (
        prints.c.name == name,
        prints.c.definition == print_sets.c.definition,
        prints.c.round_at >= print_sets.c.reference_at,
        prints.c.round_at >= since,
    )
    joined = prints.join(print_sets, print_sets.c.name == prints.c.name)
    query = select(prints).select_from(joined).where(*mine)
    if not whole:
        times = select(prints.c.round_at).distinct().select_from(joined).where(*mine)
        first = tx.connection.scalars(times.order_by(prints.c.round_at).limit(REFERENCE))
        newest = tx.connection.scalars(times.order_by(prints.c.round_at.desc()).limit(NEWEST))
        query = query.where(prints.c.round_at.in_({*first, *newest}))
    rows = list(tx.connection.execute(query.order_by(prints.c.round_at, prints.c.prompt, prints.c.repeat)))
    # Where an embedder failed, its round has none.
    embedder = next((row.embedder for row in reversed(rows) if row.embedder), "")
    return [
        PrintRun(
            prompt=row.prompt,
            at=row.round_at,
            traits=row.traits,
            model=row.model,
            fingerprint=row.fingerprint,
            embedding=unpacked(row.embedding) if row.embedder == embedder else (),
        )
        for row in rows
    ]


def stamp(tx: Transaction, name: str) -> tuple[Any, ...]:
    """What changes when there is another round, definition or reference; empty if the set never ran."""
    c = print_sets.c
    row = tx.connection.execute(select(c.definition, c.reference_at, c.round_at).where(c.name == name)).first()
    return tuple(row) if row is not None else ()


def place_of(tx: Transaction, name: str) -> Place | None:
    """Where a set belongs; None if it never ran."""
    c = print_sets.c
    row = tx.connection.execute(select(c.service, c.environment, c.variant).where(c.name == name)).first()
    return Place(*row) if row is not None else None


def places(tx: Transaction) -> list[Place]:
    """Where there are fingerprints."""
    c = print_sets.c
    return [Place(*row) for row in tx.connection.execute(select(c.service, c.environment, c.variant).distinct())]


def listing(tx: Transaction) -> list[dict[str, Any]]:
    """Every set that ever ran, with the number of its rounds since the reference began."""
    return [row._asdict() for row in sets(tx)]


def sets(tx: Transaction) -> Sequence[Any]:
    """The same, as the database gives them."""
    mine = (
        prints.c.name == print_sets.c.name,
        prints.c.definition == print_sets.c.definition,
        prints.c.round_at >= print_sets.c.reference_at,
    )
    rounds = select(func.count(prints.c.round_at.distinct())).where(*mine).scalar_subquery()
    return tx.connection.execute(select(print_sets, rounds.label("rounds")).order_by(print_sets.c.name)).all()


def answers(tx: Transaction, name: str, limit: int = 1000) -> list[dict[str, Any]]:
    """What was answered, newest round first."""
    query = select(prints).where(prints.c.name == name).order_by(prints.c.round_at.desc(), prints.c.prompt).limit(limit)
    return [dict(row) for row in tx.connection.execute(query).mappings()]


def remove_old(tx: Transaction, before: datetime) -> int:
    """Delete rounds that are older, but for those of a reference that is in use."""
    removed = 0
    for row in tx.connection.execute(select(print_sets)).all():
        mine = prints.c.name == row.name, prints.c.round_at >= row.reference_at
        reference = select(prints.c.round_at).where(*mine).distinct().order_by(prints.c.round_at).limit(REFERENCE)
        kept = list(tx.connection.scalars(reference))
        old = prints.c.name == row.name, prints.c.round_at < before, prints.c.round_at.not_in(kept)
        removed += tx.connection.execute(delete(prints).where(*old)).rowcount
    return removed
