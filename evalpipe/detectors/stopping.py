"""Which kill switch an alert throws, where its rule says so."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from evalpipe.detectors.base import Finding
from evalpipe.detectors.view import Place

_MOST: Final = 64
_OTHER: Final = re.compile(r"[^A-Za-z0-9._-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Stop:
    """A kill switch to be engaged.

    Attributes:
        service: whose calls.
        name: of the switch: the same for each firing of the alert.
        given: its fields, as ``controls.Switch`` has them.
        reason: for whoever meets it.
    """

    service: str
    name: str
    given: dict[str, Any]
    reason: str


def stop_of(rule: str, place: Place, finding: Finding, incident: str = "") -> Stop:
    """What stops the calls that a finding is about: those of its place, no more.

    A switch stops features, variants, environments and services; where one user is found, the feature is stopped and
    the reason names the user, so that a person can block that one and release the rest. A place without a feature
    stops the whole service in that environment.

    Args:
        rule: the alert rule's name.
        place: where.
        finding: that fires.
        incident: a link that refused calls carry.
    """
    given: dict[str, Any] = {"engaged": True, "environment": place.environment, "incident": incident}
    if place.feature:
        given["feature"] = place.feature
    if place.variant:
        given["variant"] = place.variant
    words = [rule, place.feature, place.variant]
    name = _OTHER.sub("-", "-".join(word for word in words if word)).strip("-.")
    if len(name) > _MOST or name != "-".join(word for word in words if word):
        # Two features must not share a switch because their names look alike.
        name = f"{name[: _MOST - 9]}-{sha256(chr(0).join(words).encode()).hexdigest()[:8]}"
    return Stop(place.service, name, given, f"alert {rule!r} fires: {finding.reason}"[:900])
