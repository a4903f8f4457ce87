"""All calls by five seconds, for two hours: money that runs away is seen at once. And the calls of any window."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from sqlalchemy import Table, delete, func, select

from evalpipe.detectors.calls import CALL_SKETCHES, CALL_SUMS, Calls, Sketches
from evalpipe.detectors.view import Place
from evalpipe.sketch import Sketch
from evalpipe.store import meter_minutes
from evalpipe.store.meter_minutes import MINUTE, Grown, floor, spread
from evalpipe.store.sql import Transaction
from evalpipe.store.tables import meter_hours, meter_slots, releases
from evalpipe.store.tables import meter_minutes as minutes

SLOT: Final = timedelta(seconds=5)
KEPT: Final = timedelta(hours=2)
HOUR: Final = timedelta(hours=1)
MOST_MINUTES: Final = timedelta(hours=6)
"""Of a longer window each minute would be read for what the hours have."""
SETTLED: Final = timedelta(minutes=2)
"""An hour is made so long after its end; what is told later of it, after an outage, makes it anew."""
_KEYS: Final = ("slot_at", "release_id", "feature")
_Key = tuple[str, str]


def add(tx: Transaction, grown: Sequence[Grown], now: datetime) -> None:
    """Add what a meter message told, in the five seconds in which it happened."""
    sums: dict[tuple[datetime, str, str], dict[str, Any]] = {}
    for row, growth, start, end in ((g.row, g.growth, g.start, g.end) for g in grown):
        for slot_at, part in spread(growth, start, end, SLOT):
            if slot_at >= now - KEPT:
                found = sums.setdefault((slot_at, row.release_id, row.feature), dict.fromkeys(CALL_SUMS, 0))
                for name in CALL_SUMS:
                    found[name] += part[name]
    if over := _hours_over(grown, now):
        tx.connection.execute(delete(meter_hours).where(meter_hours.c.hour_at.in_(over)))
    tx.add_up(meter_slots, [{**dict(zip(_KEYS, key, strict=True)), **found} for key, found in sums.items()], CALL_SUMS)


def calls_between(tx: Transaction, since: datetime, until: datetime, now: datetime) -> dict[Place, Calls]:
    """The calls of a window by service, environment, variant, feature and release.

    Sums are to five seconds where the window begins in the last two hours, to the minute in the last two days, and to
    the hour before and where it is longer than six hours; sketches to the minute at the best, and they are read when
    one is asked for: while the transaction lasts. Windows that meet have no call in common, nor leave one out.
    A window is as long as the service was heard of in it: one that is new has no past of nothing.

    Args:
        tx: a transaction.
        since: aware UTC.
        until: aware UTC; what was told of times after now belongs to windows that end now.
        now: aware UTC.
    """
    if since >= now - KEPT:
        found = _sums(tx, meter_slots, "slot_at", *_ends(since, until, now, SLOT))
    elif since >= now - meter_minutes.KEPT and until - since <= MOST_MINUTES:
        found = _sums(tx, minutes, "minute_at", *_ends(since, until, now, MINUTE))
    else:
        return _by_the_hour(tx, *_ends(since, until, now, HOUR))
    return _sketched(found, _Window(tx, minutes, "minute_at", *_ends(since, until, now, MINUTE)))


def roll(tx: Transaction, now: datetime) -> None:
    """Make the hours that are over and not made yet, of their minutes: as often as one likes."""
    hour_at, last = floor(now - meter_minutes.KEPT, HOUR) + HOUR, floor(now - SETTLED, HOUR)
    made = set(tx.connection.scalars(select(meter_hours.c.hour_at).where(meter_hours.c.hour_at >= hour_at).distinct()))
    while hour_at < last:
        if hour_at not in made:
            tx.insert_new(meter_hours, _hour(tx, hour_at))
        hour_at += HOUR


def _hour(tx: Transaction, hour_at: datetime) -> list[dict[str, Any]]:
    found: dict[_Key, tuple[Counter[str], dict[str, Sketch]]] = {}
    at = minutes.c.minute_at
    for row in tx.connection.execute(select(minutes).where(at >= hour_at, at < hour_at + HOUR)):
        empty: tuple[Counter[str], dict[str, Sketch]] = Counter(), {name: Sketch() for name in CALL_SKETCHES}
        sums, sketches = found.setdefault((row.release_id, row.feature), empty)
        sums.update({name: getattr(row, name) for name in CALL_SUMS})
        add_sketches(sketches, row)
    return [
        {"hour_at": hour_at, "release_id": release_id, "feature": feature, **{name: sums[name] for name in CALL_SUMS},
         **{name: sketch.to_wire() for name, sketch in sketches.items()}}
        for (release_id, feature), (sums, sketches) in sorted(found.items(), key=lambda item: item[0])
    ]  # fmt: skip


def remove(tx: Transaction, now: datetime) -> None:
    """Delete the slots that no rule looks at any more."""
    tx.connection.execute(delete(meter_slots).where(meter_slots.c.slot_at < now - KEPT))


def remove_hours(tx: Transaction, before: datetime) -> None:
    """Delete hours that are past their retention."""
    tx.connection.execute(delete(meter_hours).where(meter_hours.c.hour_at < before))


def _hours_over(grown: Sequence[Grown], now: datetime) -> set[datetime]:
    """The hours that are over and that a message tells more of."""
    found = set()
    for g in grown:
        hour_at = floor(g.start, HOUR)
        while hour_at <= g.end and hour_at < floor(now, HOUR):
            found.add(hour_at)
            hour_at += HOUR
    return found


def _ends(since: datetime, until: datetime, now: datetime, step: timedelta) -> tuple[datetime, datetime, bool]:
    """Where a window begins and ends in steps, and whether its last step is not over."""
    return floor(since, step), until if until >= now else floor(until, step), until >= now


def _sums(
    tx: Transaction, table: Table, at: str, since: datetime, until: datetime, is_open: bool
) -> dict[Place, Calls]:
    place = releases.c.service, releases.c.environment, releases.c.variant, table.c.feature, table.c.release_id
    query = (
        select(*place, func.min(table.c[at]), *(func.sum(table.c[name]) for name in CALL_SUMS))
        .join(releases, releases.c.release_id == table.c.release_id)
        .where(table.c[at] >= since)
        .group_by(*place)
    )
    if not is_open:
        query = query.where(table.c[at] < until)
    found: dict[Place, Calls] = {}
    first: dict[str, datetime] = {}
    for row in tx.connection.execute(query):
        where, began, sums = Place(*row[:5]), row[5], row[6:]
        found[where] = Calls(sums={name: float(n or 0) for name, n in zip(CALL_SUMS, sums, strict=True)})
        first[where.service] = min(began, first.get(where.service, began))
    for where, calls in found.items():
        calls.seconds = max(0.0, (until - max(since, first[where.service])).total_seconds())
    return found


class _Window:
    """The sketches of a window, by release and feature; all are read with the first."""

    def __init__(self, tx: Transaction, table: Table, at: str, since: datetime, until: datetime, is_open: bool) -> None:
        columns = table.c.release_id, table.c.feature, *(table.c[name] for name in CALL_SKETCHES)
        query = select(*columns).where(table.c[at] >= since)
        self._tx = tx
        self._query = query if is_open else query.where(table.c[at] < until)
        self._found: dict[_Key, dict[str, Sketch]] | None = None

    def of(self, key: _Key) -> Mapping[str, Sketch]:
        """Those of a release and feature; nothing where there were no calls."""
        if self._found is None:
            self._found = {}
            for row in self._tx.connection.execute(self._query):
                empty = {name: Sketch() for name in CALL_SKETCHES}
                add_sketches(self._found.setdefault((row.release_id, row.feature), empty), row)
        return self._found.get(key, {})


def _sketched(found: dict[Place, Calls], *windows: _Window) -> dict[Place, Calls]:
    for place, calls in found.items():
        key = place.release_id, place.feature
        calls.sketches = Sketches(*(partial(window.of, key) for window in windows))
    return found


def add_sketches(sketches: Mapping[str, Sketch], row: Any) -> None:
    """Merge those of a row into them."""
    for name in CALL_SKETCHES:
        if wire := getattr(row, name):
            sketches[name].merge(Sketch.from_wire(wire))


def _by_the_hour(tx: Transaction, since: datetime, until: datetime, is_open: bool) -> dict[Place, Calls]:
    """Whole hours, and the minutes of those that are not made yet."""
    rolled = max(_hours(tx, since, until), default=since - HOUR) + HOUR
    ends = since, min(rolled, until)
    found = _sums(tx, meter_hours, "hour_at", *ends, is_open=False)
    windows = [_Window(tx, meter_hours, "hour_at", *ends, is_open=False)]
    if rolled < until or is_open:
        rest = _sums(tx, minutes, "minute_at", rolled, until, is_open)
        windows.append(_Window(tx, minutes, "minute_at", rolled, until, is_open))
        more = max(0.0, (until - rolled).total_seconds())
        length = {place.service: calls.seconds for place, calls in rest.items()}
        length |= {place.service: calls.seconds + more for place, calls in found.items()}
        for place, calls in rest.items():
            found.setdefault(place, Calls()).merge(calls)
        for place, calls in found.items():
            calls.seconds = length[place.service]
    return _sketched(found, *windows)


def _hours(tx: Transaction, since: datetime, until: datetime) -> Iterable[datetime]:
    hour = meter_hours.c.hour_at
    return tx.connection.scalars(select(func.max(hour)).where(hour >= since, hour < until).having(func.count() > 0))
