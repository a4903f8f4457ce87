"""Is the traffic really evaluated? Records that wait, that were shed, judges that fail, hooks that fell silent."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import timedelta
from math import log
from typing import Any, ClassVar, Final, NamedTuple

from pydantic import Field

from evalpipe.detectors.base import DetectorParams, Finding, Input, Kind, RatedParams, State, detectors
from evalpipe.detectors.burn_rate import STILL, log_tail
from evalpipe.detectors.view import Coverage as Seen
from evalpipe.detectors.view import View
from evalpipe.scorecard.values import Duration, Share, format_duration

GONE: Final = timedelta(days=1)
"""A service that was silent for so long was switched off."""
TESTS: Final = 4
"""Shares that are tested in each window."""


class CoverageParams(RatedParams):
    """What a rule's author writes."""

    window: Duration = Field(default=timedelta(hours=1), description="Shares are taken over this long.")
    oldest: Duration = Field(
        default=timedelta(minutes=15), description="A record that waits longer than this for its scores is late."
    )
    shed: Share = Field(default=0.02, description="The share of sampled records that may be shed.")
    judge_errors: Share = Field(default=0.05, description="The share of judge calls that may end without a grade.")
    silent: Duration = Field(
        default=timedelta(minutes=5), description="Hooks tell every few seconds; silence for so long is news."
    )
    sampled: Share | None = Field(
        default=None, description="The share of calls that is to be sampled; it may be off by `sampled_off`."
    )
    sampled_off: Share = Field(default=0.5, description="Relative difference of the sampled share that is allowed.")


class _Problem(NamedTuple):
    """One condition that holds: value over limit says how bad it is."""

    name: str
    value: float
    limit: float
    words: str


@detectors.register("coverage")
class Coverage:
    """Each condition is named; shares are wrong only where they cannot be chance (Chernoff's bound of a binomial)."""

    Params: ClassVar[type[DetectorParams]] = CoverageParams
    version: ClassVar[str] = "1"
    kind: ClassVar[Kind] = "coverage"
    inputs: ClassVar[frozenset[Input]] = frozenset({"coverage"})

    def __init__(self, params: CoverageParams) -> None:
        self._params = params
        self._allowed = -log(max(20.0, TESTS * params.false_alarm_every / params.window))

    @property
    def criteria(self) -> tuple[str, ...]:
        """None: it reads the ledger."""
        return ()

    def look(self, view: View, state: State) -> tuple[State, Finding]:
        """Look at the window that ends now."""
        seen = view.coverage(view.at - self._params.window, view.at)
        if seen.heard_at is None and not seen.observed and not seen.in_flight and not seen.graded:
            return state, Finding(None, reason="nothing was ever heard of hooks here")
        held = frozenset(state.get("problems", ()))
        problems = [*self._late(seen), *self._shares(seen, held), *self._silent(view, seen)]
        state = {"problems": [p.name for p in problems]}
        numbers: dict[str, Any] = {"observed": seen.observed, "sampled": seen.sampled, "shed": seen.shed,
                                   "in_flight": seen.in_flight, "oldest_s": seen.oldest_s, "graded": seen.graded,
                                   "judge_errors": seen.judge_errors, "scored": seen.scored,
                                   **state}  # fmt: skip
        if not problems:
            return state, Finding(False, 0.0, seen.sampled, "all that is sampled is scored in time", numbers=numbers)
        worst = max(problems, key=lambda p: p.value / p.limit)
        reason = "; ".join(p.words for p in problems)
        return state, Finding(True, worst.value, seen.sampled, reason, threshold=worst.limit,
                              ratio=worst.value / worst.limit, numbers=numbers)  # fmt: skip

    def _late(self, seen: Seen) -> Iterator[_Problem]:
        limit = self._params.oldest.total_seconds()
        if seen.oldest_s > limit:
            words = (f"{seen.in_flight} sampled records wait for their scores, the oldest for {_words(seen.oldest_s)} "
                     f"(limit {_words(limit)})")  # fmt: skip
            yield _Problem("oldest", seen.oldest_s, limit, words)

    def _shares(self, seen: Seen, held: Collection[str]) -> Iterator[_Problem]:
        for name, part, whole, limit, words in (
            ("shed", seen.shed, seen.sampled, self._params.shed, "sampled records were shed"),
            ("judge_errors", seen.judge_errors, seen.graded, self._params.judge_errors,
             "judge calls ended without a grade"),
        ):  # fmt: skip
            if whole and log_tail(whole, min(part, whole), limit) <= self._chance(name, held):
                yield _Problem(name, part / whole, limit, f"{part} of {whole} {words} (limit {limit:.3g})")
        wanted = self._params.sampled
        if wanted is not None and seen.observed:
            share = seen.sampled / seen.observed
            low, high = wanted * (1.0 - self._params.sampled_off), min(1.0, wanted * (1.0 + self._params.sampled_off))
            chance = self._chance("sampled", held)
            few = log_tail(seen.observed, seen.observed - seen.sampled, 1.0 - low) <= chance
            many = high < 1.0 and log_tail(seen.observed, seen.sampled, high) <= chance
            if few or many:
                words = f"{seen.sampled} of {seen.observed} calls were sampled, and {wanted:.3g} of them were to be"
                value = max(share / wanted, wanted / max(share, 1e-6))
                yield _Problem("sampled", value, 1.0 + self._params.sampled_off, words)

    def _chance(self, name: str, held: Collection[str]) -> float:
        return STILL if name in held else self._allowed

    def _silent(self, view: View, seen: Seen) -> Iterator[_Problem]:
        if seen.heard_at is None:
            return
        quiet = view.at - seen.heard_at
        if self._params.silent < quiet < GONE:
            words = f"hooks have been silent for {_words(quiet.total_seconds())}, and said no goodbye"
            yield _Problem("silent", quiet.total_seconds(), self._params.silent.total_seconds(), words)


def _words(seconds: float) -> str:
    return format_duration(timedelta(seconds=round(seconds)))
