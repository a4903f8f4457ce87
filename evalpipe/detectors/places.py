"""From the finest places that the store knows to the places that a rule's alerts are about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from evalpipe.detectors.view import Calls, Coverage, Dimension, Place, Spender


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
    found: Mapping[Place, Iterable[Spender]], fits: Callable[[Place], bool], by: Iterable[Dimension], most: int = 32
) -> dict[Place, list[Spender]]:
    """The users of the places that fit, added up as far as ``by`` does not tell places apart; who pays most first."""
    sums: dict[Place, dict[str, Spender]] = {}
    for place, spenders in found.items():
        if fits(place):
            mine = sums.setdefault(part_of(place, by), {})
            for new in spenders:
                old = mine.get(new.user, Spender(new.user, 0.0, 0.0, 0.0))
                mine[new.user] = Spender(
                    new.user, old.calls + new.calls, old.tokens + new.tokens, old.cost_usd + new.cost_usd
                )
    order = {
        place: sorted(mine.values(), key=lambda s: (-s.cost_usd, -s.tokens, s.user)) for place, mine in sums.items()
    }
    return {place: spenders[:most] for place, spenders in order.items()}


def covered(
    found: Mapping[Place, Coverage], fits: Callable[[Place], bool], by: Iterable[Dimension]
) -> dict[Place, Coverage]:
    """The coverage of the places that fit, added up as far as ``by`` does not tell them apart."""
    merged: dict[Place, Coverage] = {}
    for place, new in found.items():
        if fits(place):
            merged[part_of(place, by)] = merged.get(part_of(place, by), Coverage()).plus(new)
    return merged
