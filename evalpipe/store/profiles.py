"""Profiles of records: what inputs and outputs look like, for drift."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Select, bindparam, delete, or_, select, tuple_, update

from evalpipe.detectors.view import Place
from evalpipe.profile import Profile, Profiles, packed, unpacked
from evalpipe.record import Record
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import profile_places, profiles, records

NOTED_EVERY = timedelta(minutes=10)
"""How seldom a place that goes on is written down: not with each batch."""
_HELD = 500
_PLACE = ("service", "environment", "variant", "feature", "release_id")
_DOCUMENTS = ("words", "sizes", "input_key", "weight", "unit", "embedder")


class Unembedded(NamedTuple):
    """A record whose embeddings are to be made; no payload where it was erased meanwhile."""

    record_id: str
    payload: bytes | None


def add(tx: Transaction, found: Sequence[tuple[Record, Profile]]) -> None:
    """Store profiles; one that is there is left as it is."""
    rows = [_row(record, profile) for record, profile in found]
    tx.insert_new(profiles, rows)
    last: dict[Place, datetime] = {}
    for row in rows:
        place = Place(*(row[name] for name in _PLACE))
        last[place] = max(last.get(place, row["captured_at"]), row["captured_at"])
    _note_places(tx, last)


def profiles_between(
    tx: Transaction,
    place: Place,
    since: datetime,
    until: datetime,
    limit: int,
    fits: Callable[[Place], bool] | None = None,
) -> Profiles:
    """The profiles of a place from ``since`` to before ``until``, oldest first.

    Of more than ``limit`` an even choice, by a hash of their ids: the same one whoever asks.

    Args:
        tx: the transaction.
        place: "" stands for all.
        since: of the earliest capture; aware UTC.
        until: after the latest one.
        limit: at most so many.
        fits: chooses among the places of the finest grain; None for all.
    """
    chosen = select(*(profiles.c[name] for name in (*_FIELDS, *_PLACE))).order_by(profiles.c.pick).limit(limit)
    chosen = _at(chosen, place, since, until)
    if fits is not None:
        distinct_places = _at(select(*(profiles.c[name] for name in _PLACE)).distinct(), place, since, until)
        found = [Place(*row) for row in tx.connection.execute(distinct_places)]
        kept = [p for p in found if fits(p)]
        if not kept:
            return []
        if len(kept) < len(found):
            chosen = chosen.where(_one_of(kept))
    rows = tx.connection.execute(chosen).mappings().all()
    return sorted(map(_profile, rows), key=lambda p: (p.captured_at, p.record_id))


def hold(tx: Transaction, found: Profiles) -> Profiles:
    """Those of these profiles that are still there, and stay until the transaction ends.

    Who erases a user waits for it, and finds what it made of them.
    """
    there: set[str] = set()
    for start in range(0, len(found), _HELD):
        ids = [profile.record_id for profile in found[start : start + _HELD]]
        query = select(profiles.c.record_id).where(profiles.c.record_id.in_(ids)).order_by(profiles.c.record_id)
        there.update(tx.connection.scalars(query.with_for_update(read=True)))
    return [profile for profile in found if profile.record_id in there]


def places_since(tx: Transaction, since: datetime) -> list[Place]:
    """The places of the finest grain of which records were captured since then, or up to ten minutes before."""
    query = select(*(profile_places.c[name] for name in _PLACE)).where(profile_places.c.last_at >= since - NOTED_EVERY)
    return sorted(Place(*row) for row in tx.connection.execute(query))


def unembedded(tx: Transaction, limit: int) -> list[Unembedded]:
    """Records whose embeddings wait to be made, the newest first: where not all can be had, now matters most."""
    query = (
        select(profiles.c.record_id, records.c.payload)
        .join(records, records.c.record_id == profiles.c.record_id, isouter=True)
        .where(profiles.c.embedder == "")
        .order_by(profiles.c.captured_at.desc())
        .limit(limit)
    )
    return [Unembedded(*row) for row in tx.connection.execute(query)]


def embed(tx: Transaction, embedder: str, found: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]) -> None:
    """Store the embeddings of input and output by record id; of profiles that are still there."""
    if not found:
        return
    statement = (
        update(profiles)
        .where(profiles.c.record_id == bindparam("of"), profiles.c.embedder == "")
        .values(embedder=embedder, input_embedding=bindparam("asked"), output_embedding=bindparam("answered"))
    )
    rows = [{"of": key, "asked": packed(a), "answered": packed(b)} for key, (a, b) in sorted(found.items())]
    tx.connection.execute(statement, rows)


def forget_places(tx: Transaction, before: datetime) -> None:
    """Delete the places that have had no profile since."""
    tx.connection.execute(delete(profile_places).where(profile_places.c.last_at < before))


def remove(tx: Transaction, record_ids: Sequence[str]) -> None:
    """Delete the profiles of these records."""
    tx.connection.execute(delete(profiles).where(profiles.c.record_id.in_(record_ids)))


_FIELDS = ("record_id", "captured_at", *_DOCUMENTS, "input_embedding", "output_embedding")


def _note_places(tx: Transaction, last: Mapping[Place, datetime]) -> None:
    """Write down new places, and those that were last seen a while ago; in order, as every transaction does."""
    if not last:
        return
    query = select(profile_places).where(profile_places.c.service.in_({place.service for place in last}))
    known = {Place(*row[:-1]): row.last_at for row in tx.connection.execute(query)}
    new = [{**place._asdict(), "last_at": at} for place, at in sorted(last.items()) if place not in known]
    tx.insert_new(profile_places, new)
    for place, at in sorted(last.items()):
        if place in known and at >= known[place] + NOTED_EVERY:
            own = (profile_places.c[name] == value for name, value in zip(_PLACE, place, strict=True))
            tx.connection.execute(update(profile_places).where(*own, profile_places.c.last_at < at).values(last_at=at))


def _at(query: Select[Any], place: Place, since: datetime, until: datetime) -> Select[Any]:
    query = query.where(profiles.c.captured_at >= since, profiles.c.captured_at < until)
    for name, value in zip(_PLACE, place, strict=True):
        if value:
            query = query.where(profiles.c[name] == value)
    return query


def _one_of(kept: Sequence[Place]) -> Any:
    return or_(*(tuple_(*(profiles.c[name] for name in _PLACE)) == tuple_(*p) for p in kept))


def _row(record: Record, profile: Profile) -> dict[str, Any]:
    release = record.release
    digest = hashlib.blake2b(profile.record_id.encode("utf-8", "replace"), digest_size=4).digest()
    return {
        "record_id": profile.record_id,
        "captured_at": profile.captured_at,
        "service": release.service,
        "environment": release.environment,
        "variant": release.variant,
        "feature": record.feature,
        "release_id": release.release_id,
        **{name: getattr(profile, name) for name in _DOCUMENTS},
        "input_embedding": packed(profile.input_embedding),
        "output_embedding": packed(profile.output_embedding),
        "pick": int.from_bytes(digest, "big") >> 1,
    }


def _profile(row: Mapping[Any, Any]) -> Profile:
    return Profile(
        record_id=row["record_id"],
        captured_at=row["captured_at"],
        input_embedding=unpacked(row["input_embedding"]),
        output_embedding=unpacked(row["output_embedding"]),
        **{name: row[name] for name in _DOCUMENTS},
    )
