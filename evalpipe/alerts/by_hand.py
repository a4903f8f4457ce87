"""Series written by hand, as they come: what a test of alert rules feeds them with."""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from math import exp, floor
from statistics import NormalDist
from typing import Any, Final

import numpy as np

from evalpipe.alerts.memory_feed import MemoryFeed
from evalpipe.alerts.played import Fixed
from evalpipe.detectors.view import CALL_SKETCHES, CALL_SUMS, Calls, Coverage, Place, PrintRun, Spender, Stretch
from evalpipe.profile import DIMENSIONS, Profile
from evalpipe.rollup import Rollup
from evalpipe.score import Score, Status, scored
from evalpipe.scorecard.alert_test import COVERED, AlertTest, Given, Looks, Printed, Usual, Where
from evalpipe.scorecard.notation import Cell, Some
from evalpipe.sketch import Sketch

Event = tuple[datetime, int, Callable[[MemoryFeed], None]]
"""When, the place among those of the same moment, and what to add."""
SLOT: Final = timedelta(seconds=5)
SHORT: Final = timedelta(minutes=10)
"""Calls of a longer interval are spread over tenths of it, those of others over slots of five seconds."""
MINUTE: Final = timedelta(minutes=1)
SPREAD: Final = 0.5
"""Standard deviation of the logarithm of latencies and lengths."""
NOISE: Final = 0.09
"""Of each number of an embedding, beside what its topic has."""
VARIED: Final = 2.0
"""Mean square of what a call costs over the square of its mean: as of an exponential distribution."""
_POINTS: Final = 400
_P99: Final = NormalDist().inv_cdf(0.99)
_SHAPE: Final = [exp(SPREAD * (NormalDist().inv_cdf((i + 0.5) / _POINTS) - _P99)) for i in range(_POINTS)]
"""Latencies over their p99, at even quantiles."""
_STATUSES: Final = {"e": Status.ERROR, "a": Status.ABSTAINED, "s": Status.SKIPPED}


def place_of(base: Place, more: Where) -> Place:
    """The place, but for what is said otherwise."""
    return base._replace(**more.model_dump(exclude_none=True))


class Evenly:
    """Whole numbers that add up to what they stand for, as nearly as whole numbers can."""

    def __init__(self) -> None:
        self._left = 0.0

    def take(self, amount: float) -> int:
        """The next one."""
        self._left += amount
        whole = floor(self._left + 1e-9)
        self._left -= whole
        return whole


class Scores:
    """Scores of cells, one after the other."""

    def __init__(self, seed: Sequence[int]) -> None:
        self._random = np.random.default_rng(list(seed))
        self._ones = Evenly()

    def rollup(self, parts: Sequence[tuple[Some, int]]) -> Rollup:
        """So many of each."""
        found = Rollup()
        for some, n in parts:
            for value, count in self._values(some, n):
                one = Rollup()
                one.add(value)
                _times(one, count)
                found.merge(one)
        return found

    def _values(self, some: Some, n: int) -> Iterator[tuple[Score, int]]:
        if some.how in _STATUSES:
            yield Score(_STATUSES[some.how], None), n
        elif some.how == "*":
            yield scored(some.value), n
        else:
            drawn = some.how == "~"
            ones = int(self._random.binomial(n, some.value)) if drawn else min(n, self._ones.take(n * some.value))
            yield scored(1.0), ones
            yield scored(0.0), n - ones


def _times(rollup: Rollup, n: int) -> None:
    """So many of one score, at once."""
    for name in ("n_scored", "n_skipped", "n_abstained", "n_error", "sum_w", "sum_w2", "sum_wx", "sum_wx2", "sum_w2x",
                 "sum_w2x2"):  # fmt: skip
        setattr(rollup, name, getattr(rollup, name) * n)
    rollup.bins = {index: count * n for index, count in rollup.bins.items() if n}


def latencies(p99: float, n: int, seen: int = 0) -> dict[float, int]:
    """``n`` values in ms with this p99, log-normal and evenly spread; ``seen`` came before them."""
    found = {}
    for place, shape in enumerate(_SHAPE):
        offset = place * 0.618034 % 1.0
        count = floor((seen + n) / _POINTS + offset) - floor(seen / _POINTS + offset)
        if count:
            found[p99 * shape] = count
    return found


def events_of(test: AlertTest, base: Place, start: datetime) -> Iterator[Event]:
    """Everything that happens, in order of time."""
    streams: list[Iterator[Event]] = []
    for number, given in enumerate(test.series):
        place = place_of(base, given.place)
        cells = _Cells(start, test.interval, [test.seed, number])
        streams += [cells.scores(place, given.epoch, name, values) for name, values in given.scores.items()]
        if given.calls:
            streams.append(cells.calls(place, given.calls))
        streams += [cells.user(place, name, sums) for name, sums in given.users.items()]
        if given.coverage:
            streams.append(cells.coverage(place, given.coverage))
        streams += [cells.profiles(place, looks, i) for i, looks in enumerate(given.profiles)]
        streams += _prints(cells, place, given)
    return heapq.merge(*streams, key=lambda event: event[:2])


def _prints(cells: _Cells, place: Place, given: Given) -> Iterator[Iterator[Event]]:
    for name, rounds in given.fingerprints.items():
        for number, printed in enumerate(rounds):
            yield cells.prints(place, name, printed, number)


def length_of(test: AlertTest) -> int:
    """Intervals of the longest series."""
    found = [0]
    for given in test.series:
        found += [len(cells) for cells in (*given.scores.values(), *given.calls.values(), *given.coverage.values())]
        found += [len(cells) for sums in given.users.values() for cells in sums.values()]
        found += [len(looks.n) for looks in given.profiles]
        found += [len(printed.rounds) for rounds in given.fingerprints.values() for printed in rounds]
    return max(found)


class _Cells:
    """Cells of series as events: what lasts longer than its finest grain is spread evenly."""

    def __init__(self, start: datetime, interval: timedelta, seed: Sequence[int]) -> None:
        self._start, self._interval, self._seed = start, interval, list(seed)

    def _steps(self, length: int, grain: timedelta) -> Iterator[tuple[datetime, int, float]]:
        """Moment, cell, and the share of the cell that comes then."""
        steps = max(1, self._interval // grain)
        for cell in range(length):
            for step in range(steps):
                yield self._start + cell * self._interval + step * (self._interval / steps), cell, 1.0 / steps

    def _random(self, *more: str | int) -> np.random.Generator:
        numbers = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in more]
        return np.random.default_rng([*self._seed, *numbers])

    def scores(self, place: Place, epoch: str, criterion: str, cells: Sequence[Cell]) -> Iterator[Event]:
        made, rests = Scores([*self._seed, zlib.crc32(criterion.encode())]), dict[tuple[int, int], Evenly]()
        for at, cell, share in self._steps(len(cells), MINUTE):
            parts = [
                (some, rests.setdefault((cell, i), Evenly()).take(some.n * share)) for i, some in enumerate(cells[cell])
            ]
            rollup = made.rollup([part for part in parts if part[1]])
            if parts:
                yield at, 0, _adds("add_rollup", criterion, place, at, rollup, epoch=epoch)

    def calls(self, place: Place, given: Mapping[str, Sequence[float | None]]) -> Iterator[Event]:
        sums = {name: cells for name, cells in given.items() if name in CALL_SUMS}
        rests = {name: Evenly() for name in sums}
        seen = 0
        grain = SLOT if self._interval <= SHORT else self._interval / 10
        for at, cell, share in self._steps(max(map(len, given.values())), grain):
            now = {name: (_cell(cells, cell) or 0.0) * share for name, cells in sums.items()}
            added = {name: v if name == "cost_usd" else rests[name].take(v) for name, v in now.items()}
            if added.get("calls") and added.get("cost_usd"):
                added["cost_squares"] = VARIED * added["cost_usd"] ** 2 / added["calls"]
            n = int(added.get("calls", 0))
            slow = {
                name: latencies(p99, n, seen)
                for name, cells in given.items()
                if name in CALL_SKETCHES and (p99 := _cell(cells, cell)) and n
            }
            seen += n
            if any(added.values()):
                yield at, 1, _adds("add_calls", place, at, added, slow)

    def user(self, place: Place, user: str, given: Mapping[str, Sequence[float | None]]) -> Iterator[Event]:
        for at, cell, share in self._steps(max(map(len, given.values()), default=0), MINUTE):
            now = {name: (_cell(cells, cell) or 0.0) * share for name, cells in given.items()}
            if any(now.values()):
                spent = Spender(user, *(now.get(name, 0.0) for name in ("calls", "tokens", "cost_usd")))
                yield at, 2, _adds("add_spender", place, at, spent)

    def coverage(self, place: Place, given: Mapping[str, Sequence[float | None]]) -> Iterator[Event]:
        rests = {name: Evenly() for name in COVERED}
        for at, cell, share in self._steps(max(map(len, given.values())), MINUTE):
            now = {name: value for name, cells in given.items() if (value := _cell(cells, cell)) is not None}
            if now:
                counts: dict[str, Any] = {
                    name: value if name == "oldest_s" else int(value) if name == "in_flight"
                    else rests[name].take(value * share) for name, value in now.items()
                }  # fmt: skip
                yield at, 3, _adds("add_coverage", place, at, Coverage(**counts, heard_at=at))

    def profiles(self, place: Place, looks: Looks, number: int) -> Iterator[Event]:
        random, made = self._random("profiles", number), 0
        for cell, wanted in enumerate(looks.n):
            n = int(wanted or 0)
            for i in range(n):
                at = self._start + (cell + i / n) * self._interval
                profile = _profile(f"r-{self._seed[-1]}-{number}-{made}", at, looks, place.feature, random)
                made += 1
                yield at, 4, _adds("add_profile", place, profile)

    def prints(self, place: Place, name: str, printed: Printed, number: int) -> Iterator[Event]:
        random = self._random(name, number)
        for cell, wanted in enumerate(printed.rounds):
            at = self._start + cell * self._interval
            for prompt in range(printed.prompts if wanted else 0):
                own = 0.6 + 0.8 * prompt / printed.prompts
                usual = {of: mean * own for of, mean in printed.traits.items()}
                traits = {of: max(0.0, random.normal(mean, mean * 0.2)) for of, mean in usual.items()}
                run = PrintRun(f"prompt-{prompt}", at, traits, printed.model)
                yield at, 5, _adds("add_print", place, name, run)


def _adds(method: str, *args: Any, **more: Any) -> Callable[[MemoryFeed], None]:
    def add(feed: MemoryFeed) -> None:
        getattr(feed, method)(*args, **more)

    return add


def _cell(cells: Sequence[float | None], place: int) -> float | None:
    return cells[place] if place < len(cells) else None


def _profile(record_id: str, at: datetime, looks: Looks, feature: str, random: np.random.Generator) -> Profile:
    words = {name: word for name, shares in looks.words.items() if (word := _drawn(shares, random))}
    sizes = {name: median * exp(SPREAD * random.normal()) for name, median in looks.sizes.items()}
    asked, answered = (_embedding(_drawn(of, random), random) for of in (looks.topics, looks.answers))
    return Profile(
        record_id,
        at,
        {"feature": feature, **words},
        sizes,
        asked,
        answered,
        unit=record_id,
        embedder="by hand" if asked or answered else "",
    )


def _drawn(shares: Mapping[str, float], random: np.random.Generator) -> str:
    total = sum(shares.values())
    if not total:
        return ""
    return str(random.choice(list(shares), p=[share / total for share in shares.values()]))


def _embedding(topic: str, random: np.random.Generator) -> tuple[float, ...]:
    if not topic:
        return ()
    middle = np.random.default_rng(zlib.crc32(topic.encode())).normal(size=DIMENSIONS)
    vector = middle / np.linalg.norm(middle) + NOISE * random.normal(size=DIMENSIONS)
    return tuple(float(x) for x in vector / np.linalg.norm(vector))


def normal_of(usual: Usual, base: Place, seed: int, start: datetime) -> Fixed:
    """What rules with a baseline compare with; its records are of the feature of ``base``."""
    stretches = {}
    for number, (name, cells) in enumerate(usual.scores.items()):
        made = Scores([seed, 7, number])
        total = made.rollup([(some, some.n) for cell in cells for some in cell])
        stretches[name] = Stretch(name, "1", total, start - usual.lasts, start)
    return Fixed(
        words="the baseline of the test",
        by_criterion=stretches,
        metered=_metered(usual) if usual.calls else None,
        looks=_looks(usual, base.feature, seed, start) or None,
    )


def _metered(usual: Usual) -> Calls:
    minutes = usual.lasts / MINUTE
    sums = dict.fromkeys(CALL_SUMS, 0.0)
    sums |= {name: value * minutes for name, value in usual.calls.items() if name in CALL_SUMS}
    if sums["calls"]:
        sums["cost_squares"] = VARIED * sums["cost_usd"] ** 2 / sums["calls"]
    sketches = {name: Sketch() for name in CALL_SKETCHES}
    for name, sketch in sketches.items():
        if p99 := usual.calls.get(name):
            for value, count in latencies(p99, int(sums["calls"])).items():
                sketch.add(value, count)
    return Calls(usual.lasts.total_seconds(), sums, sketches)


def _looks(usual: Usual, feature: str, seed: int, start: datetime) -> list[Profile]:
    random, found = np.random.default_rng([seed, 11]), list[Profile]()
    for looks in usual.profiles:
        n = int(sum(wanted or 0 for wanted in looks.n))
        found += [
            _profile(f"n-{len(found)}-{i}", start - usual.lasts * (1 - i / n), looks, feature, random) for i in range(n)
        ]
    return sorted(found, key=lambda profile: profile.captured_at)
