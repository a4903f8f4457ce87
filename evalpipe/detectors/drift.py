"""What input drift and output drift share: two samples of profiles, one test for each dimension, one finding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import numpy as np
from pydantic import Field

from evalpipe.detectors.base import Finding, RatedParams
from evalpipe.detectors.view import View
from evalpipe.detectors.windows import level_of
from evalpipe.profile import DIMENSIONS, Profile, Profiles
from evalpipe.scorecard.values import Period
from evalpipe.stats.shift import Array, Shift, contrast, holm, ranks
from evalpipe.stats.word_shift import word_shift

EXAMPLES: Final = 10
Embedded = Literal["input", "output"]


class DriftParams(RatedParams):
    """Parameters of both."""

    window: Period = Field(
        default=timedelta(hours=1),
        description="How long a window is; each is looked at once, soon after its end (the places one after the other, "
        "within a sixth of it). Windows lie end to end: `1h`.",
    )
    min_sample: int = Field(
        default=100,
        ge=20,
        description="With fewer records in the window, or in what it is compared with, nothing is said.",
    )
    max_sample: int = Field(
        default=2_000,
        ge=100,
        le=20_000,
        description="Of more records in a window an even choice of so many is looked at.",
    )
    mix_floor: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="Of words (language, format, feature ...): the share of the records that must have changed theirs; "
        "what is less is no drift, however sure it is.",
    )
    size_floor: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="Of lengths: how much likelier one of now is longer than one of before than it is shorter, or the "
        "reverse: 0 is no difference, 1 is all of them.",
    )
    embedding_floor: float = Field(
        default=0.3,
        gt=0,
        description="Of embeddings: how far the means must be apart in standard deviations, along the direction that "
        "separates best. At 0.3 one of now is known among one of each in 58 of 100 pairs, at 1 in 76.",
    )


@dataclass(frozen=True, slots=True)
class Moved:
    """What one dimension did.

    Attributes:
        p: of its test.
        effect: in its own unit; compared with the floor.
        floor: below which it is no drift.
        words: for people: what moved, from where to where.
        examples: ids of the records of now that show it best.
    """

    p: float
    effect: float
    floor: float
    words: str
    examples: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Pair:
    """The profiles of now and of before.

    Attributes:
        before, now: as they are.
        left_out: dimensions that could not be compared, with the reason.
    """

    before: Profiles
    now: Profiles
    left_out: dict[str, str] = field(default_factory=dict)

    def those(self, kept: Callable[[Profile], bool]) -> Pair:
        """The pair without the profiles that have nothing to say in a dimension."""
        return Pair([p for p in self.before if kept(p)], [p for p in self.now if kept(p)], self.left_out)

    @property
    def all(self) -> Profiles:
        """Both, those of before first."""
        return self.before + self.now

    def contrast(self, held: Array | None = None) -> Any:
        """For the tests."""
        return contrast(len(self.before), len(self.now), [p.weight for p in self.all], [p.unit for p in self.all], held)


Test = Callable[[Pair, DriftParams], Moved | None]
"""One dimension; None where there are too few to compare."""


def find(
    view: View, params: DriftParams, tests: Mapping[Any, Test], since: datetime, until: datetime
) -> tuple[Finding, Pair]:
    """Compare a window with what is normal, by each of the tests."""
    now = view.profiles(since, until, params.max_sample)
    if len(now) < params.min_sample:
        reason = (
            f"{len(now)} records from {_clock(since)} to {_clock(until)}: fewer than min_sample {params.min_sample}"
        )
        return Finding(None, n=len(now), reason=reason), Pair([], now)
    normal = view.normal(since, until)
    before = (normal.profiles() if normal is not None else None) or []
    if normal is None or len(before) < params.min_sample:
        known = f"{normal.words} has {len(before)} profiles" if normal is not None else "nothing is normal yet"
        return Finding(None, n=len(now), reason=f"{known}: at least {params.min_sample} are needed"), Pair([], now)
    pair = Pair(_even(before, 2 * params.max_sample), now)
    found = {name: moved for name, test in tests.items() if (moved := test(pair, params)) is not None}
    return finding_of(found, pair, level_of(params.window, params.false_alarm_every), normal.words), pair


def finding_of(found: Mapping[str, Moved], pair: Pair, level: float, normal: str) -> Finding:
    """One finding of all dimensions: those drift whose p stands at the level among all, and whose effect is enough."""
    if not found:
        reason = "; ".join(pair.left_out.values()) or "no dimension has enough records to compare"
        return Finding(None, n=len(pair.now), reason=reason)
    adjusted = holm({name: moved.p for name, moved in found.items()})
    by_ratio = sorted(found, key=lambda name: -found[name].effect / found[name].floor)
    drifting = [name for name in by_ratio if adjusted[name] <= level and found[name].effect >= found[name].floor]
    numbers = {
        name: {"effect": round(moved.effect, 4), "floor": moved.floor, "p": float(f"{adjusted[name]:.2g}")}
        for name, moved in found.items()
    }
    leading = drifting[0] if drifting else by_ratio[0]
    said = "; ".join(f"{name}: {found[name].words}" for name in drifting)
    reason = f"{said} (p {adjusted[leading]:.1g}, n {len(pair.now)}, compared with {normal})" if drifting else ""
    return Finding(
        violated=bool(drifting),
        value=found[leading].effect,
        n=len(pair.now),
        reason=reason or f"no drift in {', '.join(found)} (n {len(pair.now)}, compared with {normal})",
        threshold=found[leading].floor,
        numbers={"level": float(f"{level:.3g}"), "drifting": drifting, "n_before": len(pair.before), **numbers}
        | ({"left_out": pair.left_out} if pair.left_out else {}),
        examples=_first([found[name].examples for name in drifting]),
    )


def by_word(name: str, *, without: Sequence[str] = ("",)) -> Test:
    """The test of a word of the profile."""

    def test(pair: Pair, params: DriftParams) -> Moved | None:
        some = pair.those(lambda p: p.words.get(name, "") not in without)
        if not enough(some, params):
            return None
        shift = word_shift(some.contrast(), [p.words[name] for p in some.all])
        grown = shift.grown
        shown = [w for w in (grown[:2] + grown[-1:]) if abs(shift.now.get(w, 0) - shift.before.get(w, 0)) >= 0.005]
        words = ", ".join(
            f"{w or 'none'} {100 * shift.before.get(w, 0):.0f} % -> {100 * shift.now.get(w, 0):.0f} %"
            for w in dict.fromkeys(shown)
        )
        top = {grown[0]} | (shift.rare if grown[0] == "(other)" else set())
        examples = [p.record_id for p in some.now if p.words[name] in top]
        return Moved(shift.p, shift.variation, params.mix_floor, words or "unchanged", examples[:EXAMPLES])

    return test


def by_size(name: str, unit: str) -> Test:
    """The test of a size of the profile."""

    def test(pair: Pair, params: DriftParams) -> Moved | None:
        some = pair.those(lambda p: name in p.sizes)
        if not enough(some, params):
            return None
        values = [p.sizes[name] for p in some.all]
        scaled = ranks(values)
        shift = some.contrast().shift(scaled)
        if shift.difference is None:
            return Moved(1.0, 0.0, params.size_floor, "unchanged")
        middle, spread = (float(x) for x in shift.difference)
        before, now = np.array(values[: len(some.before)]), np.array(values[len(some.before) :])
        words = f"median {np.median(before):.0f} -> {np.median(now):.0f} {unit}"
        if abs(spread) > abs(middle):
            words += ", more of the very long and short" if spread > 0 else ", fewer of the very long and short"
        far = np.argsort(-(scaled[len(some.before) :] @ shift.direction), kind="stable")
        examples = [some.now[i].record_id for i in far[:EXAMPLES]]
        return Moved(shift.p, max(abs(middle), abs(spread)), params.size_floor, words, examples)

    return test


def by_embedding(which: Embedded) -> Test:
    """The test of embeddings; those of two embedders are never compared."""

    def test(pair: Pair, params: DriftParams) -> Moved | None:
        some = embedded(pair, which)
        if not enough(some, params):
            return None
        rows = matrix(some.all, which)
        shift = some.contrast().shift(rows)
        return embedding_moved(shift, some, rows, params.embedding_floor)

    return test


def embedding_moved(shift: Shift, pair: Pair, rows: Array, floor: float) -> Moved:
    """A shift of embeddings in words, with the records that reach farthest along it."""
    words = f"now and before can be told apart in {100 * shift.told_apart:.0f} of 100 pairs"
    if shift.direction is None:
        return Moved(1.0, 0.0, floor, words)
    far = np.argsort(-(rows[len(pair.before) :] @ shift.direction), kind="stable")
    return Moved(shift.p, shift.separation, floor, words, [pair.now[i].record_id for i in far[:EXAMPLES]])


def embedded(pair: Pair, which: Embedded) -> Pair:
    """The profiles that have an embedding, of the embedder that made most of those of now."""
    now = [p.embedder for p in pair.now if vector(p, which)]
    embedder = max(set(now), key=lambda e: (now.count(e), e), default="")
    kept = pair.those(lambda p: bool(vector(p, which)) and p.embedder == embedder)
    others = {p.embedder for p in pair.before if vector(p, which)} - {embedder}
    if others and not kept.before:
        pair.left_out[f"{which} embedding"] = (
            f"{which} embeddings are of {embedder} now and of {min(others)} before: they do not compare"
        )
    return kept


def vector(profile: Profile, which: Embedded) -> tuple[float, ...]:
    """The embedding of the input or of the output."""
    return profile.input_embedding if which == "input" else profile.output_embedding


def matrix(profiles: Profiles, which: Embedded) -> Array:
    """A row for each."""
    width = len(vector(profiles[0], which)) if profiles else 0
    return np.array([vector(p, which) for p in profiles], dtype=np.float64).reshape(len(profiles), width)


def enough(pair: Pair, params: DriftParams) -> bool:
    """Whether both samples are large enough."""
    return min(len(pair.before), len(pair.now)) >= params.min_sample


def _even(profiles: Profiles, most: int) -> Profiles:
    """An even choice of at most so many."""
    if len(profiles) <= most:
        return profiles
    return [profiles[i] for i in np.linspace(0, len(profiles) - 1, most).astype(int)]


def _first(lists: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """In turn the first of each list, the second of each ..., at most ``EXAMPLES``."""
    turns = [ids[i] for i in range(EXAMPLES) for ids in lists if i < len(ids)]
    return tuple(dict.fromkeys(turns))[:EXAMPLES]


def _clock(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M}"


__all__ = ("DIMENSIONS", "DriftParams", "Moved", "Pair", "Test", "by_embedding", "by_size", "by_word", "find")
