"""What a detector can see: the series of one place, as far as they are known, and what is normal there.

A ``Feed`` is where series come from: the database in production, hand-written series in ``evalpipe alerts test``, a
simulation in the benches. The same detectors and the same alerts run over each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple, Protocol

from evalpipe.detectors.calls import CALL_SKETCHES, CALL_SUMS, VALUES, Calls
from evalpipe.profile import Profiles
from evalpipe.rollup import Rollup

__all__ = (
    "CALL_SKETCHES", "CALL_SUMS", "VALUES", "Calls", "Coverage", "Dimension", "Feed", "Normal", "NormalSpec", "Place",
    "PrintRun", "Scope", "Spender", "Stretch", "View", "numbers_of",
)  # fmt: skip

Dimension = Literal["feature", "release"]
_HOUR, _WEEK = timedelta(hours=1), timedelta(weeks=1)


class Place(NamedTuple):
    """Where an alert is: what its series are about. "" stands for all that the rule's scope has."""

    service: str = ""
    environment: str = ""
    variant: str = ""
    feature: str = ""
    release_id: str = ""


@dataclass(frozen=True, slots=True)
class NormalSpec:
    """What a rule compares with.

    Attributes:
        kind: ``baseline`` (a captured snapshot), ``previous`` (the stretch before the window), ``seasonal`` (the same
            hour of the week, in the weeks before), or ``none``.
        name: of a baseline; ``latest`` is the newest that fits the place.
        span: of ``previous``: how long the stretch before the window is; of ``seasonal``: how far back weeks are read.
    """

    kind: Literal["baseline", "previous", "seasonal", "none"] = "none"
    name: str = "latest"
    span: timedelta = timedelta(0)

    def windows(self, since: datetime, until: datetime) -> tuple[tuple[datetime, datetime], ...]:
        """The stretches that a window is compared with, the newest first; those of weeks are whole hours."""
        if self.kind == "previous":
            return ((since - self.span, since),)
        first = since.replace(minute=0, second=0, microsecond=0)
        hours = max(1, -((first - until) // _HOUR))
        weeks = range(1, self.span // _WEEK + 1)
        return tuple((first - week * _WEEK, first - week * _WEEK + hours * _HOUR) for week in weeks)


@dataclass(frozen=True, slots=True)
class Scope:
    """Which series a rule is about.

    Attributes:
        scorecard: whose scores; "" for none.
        inputs: what the detector reads; see ``Detector.inputs``.
        criteria: that it reads; empty where it reads no scores.
        fits: whether a place (with service, environment, variant and feature) belongs to the rule.
        by: the dimensions that tell its alerts apart, beside service, environment and variant.
        normal: what it compares with.
        across_epochs: compare though a scorecard, a judge or the sampling changed in between.
    """

    scorecard: str
    inputs: frozenset[str]
    criteria: tuple[str, ...]
    fits: Callable[[Place], bool]
    by: tuple[Dimension, ...] = ()
    normal: NormalSpec = field(default_factory=NormalSpec)
    across_epochs: bool = False


@dataclass(frozen=True, slots=True)
class Stretch:
    """Scores of one criterion at one place, of one epoch.

    Attributes:
        criterion: that was scored.
        epoch: of all of them.
        rollup: counts, moments and the histogram of the values.
        since, until: from when to when they were captured, as far as that is known; aware UTC.
        design_effect: how many scores carry as much as one of independent ones, 1 or more: the scores of one
            conversation resemble each other.
    """

    criterion: str
    epoch: str
    rollup: Rollup
    since: datetime | None = None
    until: datetime | None = None
    design_effect: float = 1.0


class Spender(NamedTuple):
    """What one user did in a window, by the meter of the heaviest users; ``user`` is the application's pseudonym."""

    user: str
    calls: float
    tokens: float
    cost_usd: float


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of the traffic is really evaluated: the ledger's own health over a window.

    Attributes:
        observed, sampled: calls that the hooks counted, and those of them that were to be captured.
        shed: sampled and dropped, by the hooks or for want of money.
        in_flight: sampled and not yet through.
        oldest_s: age in seconds of the oldest record that waits for its scores; 0 if none waits.
        graded, judge_errors: judge calls that ended, and those of them that ended without a grade.
        scored: scores written in the window.
        heard_at: when a hook of the place was last heard of; None if never.
    """

    observed: int = 0
    sampled: int = 0
    shed: int = 0
    in_flight: int = 0
    oldest_s: float = 0.0
    graded: int = 0
    judge_errors: int = 0
    scored: int = 0
    heard_at: datetime | None = None

    def plus(self, other: Coverage) -> Coverage:
        """That of both."""
        heard = [at for at in (self.heard_at, other.heard_at) if at is not None]
        return Coverage(
            observed=self.observed + other.observed,
            sampled=self.sampled + other.sampled,
            shed=self.shed + other.shed,
            in_flight=self.in_flight + other.in_flight,
            oldest_s=max(self.oldest_s, other.oldest_s),
            graded=self.graded + other.graded,
            judge_errors=self.judge_errors + other.judge_errors,
            scored=self.scored + other.scored,
            heard_at=max(heard, default=None),
        )


@dataclass(frozen=True, slots=True)
class PrintRun:
    """One answer to one prompt of a fixed set: see ``evalpipe.detectors.fingerprint``.

    Attributes:
        prompt: its name in the set.
        at: when it was asked.
        traits: numbers and words that characterise the answer, by name (length, refusal, format, logprob ...).
        model, fingerprint: as the provider returned them; "" where it returns none.
        embedding: of the answer; empty if none was made.
    """

    prompt: str
    at: datetime
    traits: Mapping[str, float | str]
    model: str = ""
    fingerprint: str = ""
    embedding: tuple[float, ...] = ()


class Normal(Protocol):
    """What is normal at a place; each part is None where it is not known."""

    @property
    def words(self) -> str:
        """What it is, with its size and dates, for people."""
        ...

    def scores(self, criterion: str, /) -> Stretch | None:
        """The scores of a criterion."""
        ...

    def calls(self) -> Calls | None:
        """What the meter counted."""
        ...

    def profiles(self) -> Profiles | None:
        """What inputs and outputs looked like."""
        ...


class View(Protocol):
    """One place at one time; everything is read lazily, so a detector pays for what it looks at."""

    @property
    def at(self) -> datetime:
        """Now, aware UTC."""
        ...

    @property
    def place(self) -> Place:
        """Where."""
        ...

    def growth(self, criterion: str) -> Stretch | None:
        """The scores that arrived since this alert was last evaluated, of the newest epoch; each is given once."""
        ...

    def scores(self, criterion: str, since: datetime, until: datetime) -> Stretch | None:
        """The scores captured in a window, of the newest epoch in it."""
        ...

    def calls(self, since: datetime, until: datetime) -> Calls:
        """All calls of a window: to 5 s for the last two hours, to the minute for two days, to the hour before.

        A window of more than six hours is to the hour. Sketches are to the minute at the best, and read when asked for.
        """
        ...

    def users(self, since: datetime, until: datetime) -> Sequence[Spender]:
        """The heaviest users of a window, the heaviest first."""
        ...

    def profiles(self, since: datetime, until: datetime, limit: int) -> Profiles:
        """What inputs and outputs of a window looked like; of more than ``limit`` records an even choice."""
        ...

    def prints(self, name: str, since: datetime) -> Sequence[PrintRun]:
        """The runs of the fingerprint of that name, oldest first."""
        ...

    def coverage(self, since: datetime, until: datetime) -> Coverage:
        """The ledger's health."""
        ...

    def normal(self, since: datetime, until: datetime) -> Normal | None:
        """What to compare the window with, by the rule's own choice; None where there is none."""
        ...


class Feed(Protocol):
    """Where series come from."""

    def places(self, scope: Scope) -> Iterable[Place]:
        """Every place that the rule has anything to look at, now."""
        ...

    def view(self, scope: Scope, place: Place, alert_id: str) -> View:
        """One of them."""
        ...


def numbers_of(rollup: Rollup) -> dict[str, Any]:
    """The sums of a rollup in short, JSON-safe: for an alert's evidence."""
    return {
        "n": rollup.n_scored,
        "mean": rollup.mean,
        "n_skipped": rollup.n_skipped,
        "n_abstained": rollup.n_abstained,
        "n_error": rollup.n_error,
    }
