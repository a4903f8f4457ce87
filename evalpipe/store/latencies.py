"""Quantile sketches of all calls of the last minutes, by place. What is past is read once by each process."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import or_, select

from evalpipe.detectors.calls import CALL_SKETCHES
from evalpipe.sketch import Sketch
from evalpipe.store.meter_minutes import MINUTE, floor
from evalpipe.store.meter_slots import add_sketches
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import meter_minutes, releases

PLACE: Final = ("service", "environment", "variant")
SETTLED: Final = timedelta(minutes=2)
"""To a minute that is over for so long, hardly anything is added: hooks book latencies when they tell them."""

Sketches = Mapping[str, Sketch]
"""``CALL_SKETCHES`` by name, in ms."""


class Latencies:
    """The last minutes, of which only the newest are read again each time. Not thread-safe.

    Args:
        window: how much of the past counts; whole minutes.
    """

    def __init__(self, window: timedelta) -> None:
        self._window = window
        self._kept: dict[datetime, dict[tuple[str, ...], Sketches]] = {}

    def read(self, tx: Transaction, now: datetime) -> dict[tuple[str, ...], Sketches]:
        """Those of the window before ``now``, by service, environment and variant."""
        first = floor(now - self._window, MINUTE)
        settled = floor(now - SETTLED, MINUTE)
        self._kept = {minute: found for minute, found in self._kept.items() if first <= minute < settled}
        for minute, found in _read(tx, [m for m in _minutes(first, settled) if m not in self._kept], settled).items():
            self._kept[minute] = found
        merged: dict[tuple[str, ...], dict[str, Sketch]] = {}
        for found in self._kept.values():
            for place, sketches in found.items():
                mine = merged.setdefault(place, {name: Sketch() for name in CALL_SKETCHES})
                for name, sketch in sketches.items():
                    mine[name].merge(sketch)
        return dict(merged)


def _minutes(first: datetime, last: datetime) -> list[datetime]:
    return [first + i * MINUTE for i in range(max(0, int((last - first) / MINUTE)))]


def _read(
    tx: Transaction, minutes: list[datetime], settled: datetime
) -> dict[datetime, dict[tuple[str, ...], Sketches]]:
    """These minutes, with or without calls, and all from ``settled`` on."""
    at = meter_minutes.c.minute_at
    names = [*(releases.c[name] for name in PLACE), at, *(meter_minutes.c[name] for name in CALL_SKETCHES)]
    query = (
        select(*names)
        .join(releases, releases.c.release_id == meter_minutes.c.release_id)
        .where(or_(at.in_(minutes), at >= settled))
    )
    found: dict[datetime, dict[tuple[str, ...], dict[str, Sketch]]] = {minute: {} for minute in minutes}
    for row in tx.connection.execute(query):
        place = tuple(row[: len(PLACE)])
        empty = {name: Sketch() for name in CALL_SKETCHES}
        add_sketches(found.setdefault(row.minute_at, {}).setdefault(place, empty), row)
    return {minute: dict(places) for minute, places in found.items()}
