"""From the finest places that the store knows to the places that a rule's alerts are about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from evalpipe.detectors.view import Calls, Coverage, Dimension, Place, Spender

MOST_USERS: Final = 32


def part_of(place: Place, by: Iterable[Dimension]) -> Place:
    """The place whose alert a finer place belongs to, by the dimensions that tell alerts apart."""
    feature = place.feature if "feature" in by else ""
    release_id = place.release_id if "release" in by else ""
    return Place(place.service, place.environment, place.variant, feature, release_id)


def grouped(found: Mapping[Place, Calls], fits: Callable[[Place], bool], by: Iterable[Dimension]) -> dict[Place, Calls]:
    """The calls of the places that fit, merged as far as ``by`` does not tell them apart."""
    merged: dict[Place, Calls] = {}
    for place, calls in found.items():
        if fits(place):
            merged.setdefault(part_of(place, by), Calls()).merge(calls)
    return merged


def heaviest(
    found: Mapping[Place, Iterable[Spender]], fits: Callable[[Place], bool], by: Iterable[Dimension]
) -> dict[Place, list[Spender]]:
    """The users of the places that fit, added up as far as ``by`` does not tell places apart; who pays most first."""
    merged: dict[Place, list[Spender]] = {}
    for place, spenders in found.items():
        if fits(place):
            merged.setdefault(part_of(place, by), []).extend(spenders)
    return {place: added_up(spenders) for place, spenders in merged.items()}


def added_up(spenders: Iterable[Spender]) -> list[Spender]:
    """Each user once; who pays most first, and no more than ``MOST_USERS``."""
    sums: dict[str, Spender] = {}
    for new in spenders:
        old = sums.get(new.user, Spender(new.user, 0.0, 0.0, 0.0))
        sums[new.user] = Spender(new.user, old.calls + new.calls, old.tokens + new.tokens, old.cost_usd + new.cost_usd)
    return sorted(sums.values(), key=lambda s: (-s.cost_usd, -s.tokens, s.user))[:MOST_USERS]


def covered(
    found: Mapping[Place, Coverage], fits: Callable[[Place], bool], by: Iterable[Dimension]
) -> dict[Place, Coverage]:
    """The coverage of the places that fit, added up as far as ``by`` does not tell them apart."""
    merged: dict[Place, Coverage] = {}
    for place, new in found.items():
        if fits(place):
            merged[part_of(place, by)] = merged.get(part_of(place, by), Coverage()).plus(new)
    return merged
