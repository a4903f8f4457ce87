"""Whether a judge still grades its anchors as it did at first: an e-process, valid whenever one looks and stops.

The same anchors are graded again and again, so the runs are no fresh sample of records: what is random is the judge's
own noise. Each anchor keeps its first grade as reference. A later run of n anchors is counted by three distances to the
reference, each in [0, 1] for one anchor and summed over the run: ``moved`` |y - x| (1 where one of the two abstained),
``up`` max(0, y - x) and ``down`` max(0, x - y).

Null: the judge has not moved. Then, given the references, the grades of an anchor are independent draws from one law,
run after run. Let q be the mean distance over the anchors: unknown, whatever the anchors' own noise. A sum D of n
independent distances (also of n anchors drawn at random) has, for every r in (0, 1) (Hoeffding 1963, by convexity),

    E[ (r/q)^D ((1-r)/(1-q))^(n-D) ] <= 1

So with any mixture over (r before a change, change at run c, r after it) above, and the largest value that any q
reaches below, what follows is at most a supermartingale that starts at 1 ("universal inference", arXiv 1912.11436):

    E_t = [ sum_c w_c  B(S_<c, F_<c)  sum_g g^S_>=c (1-g)^F_>=c / G  +  w_>t B(S, F) ] / [ q^S (1-q)^F at q = S/(S+F) ]

S and F are the sums of D and n - D; B is the mean of r^S (1-r)^F under a Beta(.1, 1) law, which trusts in few flips;
the w_c = 1/sqrt(i) - 1/sqrt(i+1) of the i-th run after the reference (i = 1, 2 ...) sum to 1. The three counts share
alpha as 1/2, 1/4, 1/4 (a mean of e-values is one). P(E ever reaches 1/alpha) <= alpha, over any number of runs, with no
correction.

Two keys, as everywhere: E >= 1/alpha, and a movement that matters and lasts: the mean distance of the latest three runs
exceeds the one before them by ``MARGIN``. An anchor that flips for good in fifty is noted, and stops no rollout.

What is assumed: a judge's calls on different anchors are independent, and calls fail whatever the anchor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

ALPHA: Final = 0.01
"""Chance of ever suspecting a judge that has not moved, for each judge and criterion."""
MARGIN: Final = 0.05
"""Mean movement on the anchors below which a judge is not suspect, however sure the movement is."""
RECENT: Final = 3
"""Runs over which the present movement is averaged."""
REFERENCE_RUNS: Final = 4
"""Runs made at once at the start: the first gives each anchor its reference, the others show the judge's own noise.

With two, a deterministic judge that moves on 5 of 50 anchors right after them is never proven to have moved: 0 of 50
flips, then 5 of 50, is no proof at 1 %. With four it takes three runs.
"""

_SETTLED: Final = REFERENCE_RUNS - 1
"""Comparisons among the runs that were made at once, between which no judge moves."""
_GRID: Final = np.array([0.03, 0.06, 0.1, 0.15, 0.22, 0.32, 0.5, 0.8])
_SHARES: Final = np.array([0.5, 0.25, 0.25])
_A, _B = 0.1, 1.0

Array = NDArray[np.float64]
Value = float | None
"""What a judge said of an anchor: in [0, 1], or None where it abstained. A call that failed is left out."""
Direction = Literal["", "stricter", "more lenient", "noisier"]


class Counts:
    """The e-processes of counted distances, one for each entry of arrays of equal shape.

    Attributes:
        runs: comparisons so far.
        moved, stayed: S and F of each.
        after: for each, log of sum_c w_c B(S_<c, F_<c) g^S_>=c (1-g)^F_>=c by g.
    """

    __slots__ = ("after", "moved", "runs", "stayed")

    def __init__(self, shape: tuple[int, ...] = (3,)) -> None:
        self.runs = 0
        self.moved: Array = np.zeros(shape)
        self.stayed: Array = np.zeros(shape)
        self.after: Array = np.full((*shape, len(_GRID)), -np.inf)

    def update(self, distance: Array, n: Array | float) -> None:
        """Count one run.

        Args:
            distance: sums over the run's anchors, each in [0, n].
            n: anchors compared.
        """
        self.runs += 1
        rest = n - distance
        since = self.runs - _SETTLED
        if since > 0:
            starts = math.log(since**-0.5 - (since + 1) ** -0.5) + _log_before(self.moved, self.stayed)
            self.after = np.logaddexp(self.after, starts[..., None])
            self.after = self.after + distance[..., None] * np.log(_GRID) + rest[..., None] * np.log1p(-_GRID)
        self.moved = self.moved + distance
        self.stayed = self.stayed + rest

    def log_e_values(self) -> Array:
        """The natural logarithms of the e-values."""
        if not self.runs:
            return np.zeros_like(self.moved)
        later = -0.5 * math.log(1 + max(0, self.runs - _SETTLED))
        stays = later + _log_before(self.moved, self.stayed)
        top = self.after.max(axis=-1)
        shift = np.where(np.isfinite(top), top, 0.0)
        with np.errstate(divide="ignore"):
            changed = shift + np.log(np.exp(self.after - shift[..., None]).mean(axis=-1))
        found: Array = np.logaddexp(changed, stays) - _log_best(self.moved, self.stayed)
        return found


@dataclass(frozen=True, slots=True)
class Run:
    """One run in sums over its anchors.

    Attributes:
        n: anchors compared with their reference.
        moved, up, down: the distances.
        agreed: sum over the anchors of 1 - |grade - label|; an abstention agrees with nobody.
        differing: anchors whose grade is another than their reference.
    """

    n: int
    moved: float
    up: float
    down: float
    agreed: float
    differing: int = 0


@dataclass(frozen=True, slots=True)
class Drift:
    """Of ``n`` grades of the latest ``runs`` the ``share`` that is not the reference's, and their mean change."""

    runs: int
    n: int
    share: float
    shift: float


@dataclass(frozen=True, slots=True)
class Movement:
    """How far the latest runs lie from the ones before.

    Attributes:
        size: mean distance to the references, above the judge's own noise.
        shift: mean change of the value; below 0 is stricter.
        direction: in a word; "" before there is anything to compare.
    """

    size: float = 0.0
    shift: float = 0.0
    direction: Direction = ""


class JudgeShift:
    """The test of one judge version on one criterion's anchors.

    Attributes:
        reference: the first grade of each anchor.
        max_e_value: the largest so far.
        suspect: whether both keys ever turned in the same run: latched.
        movement: since the likeliest change among the latest runs.
        noise: mean distances (moved, up, down) before it; as they were when the judge became suspect, from then on.
        runs: the latest comparisons, the newest last.
        agreement: mean agreement of the reference with people's labels; None before it.
    """

    __slots__ = ("_counts", "agreement", "max_e_value", "movement", "noise", "reference", "runs", "suspect")

    def __init__(self) -> None:
        self._counts = Counts()
        self.reference: dict[str, Value] = {}
        self.max_e_value = 1.0
        self.suspect = False
        self.movement = Movement()
        self.noise = [0.0, 0.0, 0.0]
        self.runs: list[Run] = []
        self.agreement: float | None = None

    @property
    def comparisons(self) -> int:
        """Runs that were compared with the reference."""
        return self._counts.runs

    @property
    def e_value(self) -> float:
        """The evidence against "the judge has not moved" as it stands."""
        return float(np.exp(np.minimum(self._counts.log_e_values(), 690.0)) @ _SHARES)

    @property
    def drift(self) -> Drift:
        """Of the latest runs; of a suspect judge since the likeliest change."""
        distance, n = _sums(self.runs)
        share = sum(run.differing for run in self.runs) / max(n, 1)
        return Drift(len(self.runs), n, share, float(distance[1] - distance[2]) / max(n, 1))

    def update(self, grades: Mapping[str, Value], labels: Mapping[str, float], *, alpha: float = ALPHA) -> None:
        """Take in one run.

        Args:
            grades: by anchor; anchors whose call failed are absent. An anchor's first grade becomes its reference.
            labels: people's value for each anchor.
            alpha: see ``ALPHA``.
        """
        if not grades:
            return
        run = self._compare(grades, labels)
        if self.agreement is None:
            self.agreement = _agreed(grades, labels) / len(grades)
        for anchor, value in grades.items():
            self.reference.setdefault(anchor, value)
        if not run.n:
            return
        self._counts.update(np.array([run.moved, run.up, run.down]), float(run.n))
        self.runs = [*self.runs, run][-RECENT:]
        e_value = self.e_value
        self.max_e_value = max(self.max_e_value, e_value)
        if not self.suspect:
            since = self._split()
            self.noise = self._before(since)
            if e_value * alpha >= 1.0 and self._lasting() >= MARGIN:
                self.suspect, self.runs = True, self.runs[-since:]
            self.movement = _movement(self.runs[-since:], self.noise)
        else:
            self.movement = _movement(self.runs, self.noise)

    def to_state(self) -> dict[str, Any]:
        """All of it as JSON-safe values."""
        counts = self._counts
        return {
            "reference": dict(self.reference),
            "comparisons": counts.runs,
            "moved": counts.moved.tolist(),
            "stayed": counts.stayed.tolist(),
            # JSON has no infinity: None stands for a change that cannot have happened yet.
            "after": [[x if math.isfinite(x) else None for x in row] for row in counts.after.tolist()],
            "max_e_value": self.max_e_value,
            "suspect": self.suspect,
            "movement": [self.movement.size, self.movement.shift, self.movement.direction],
            "runs": [[run.n, run.moved, run.up, run.down, run.agreed, run.differing] for run in self.runs],
            "noise": list(self.noise),
            "agreement": self.agreement,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> JudgeShift:
        """The inverse of ``to_state``; of an empty mapping the test before its first run."""
        test = cls()
        if not state:
            return test
        counts = test._counts
        counts.runs = state["comparisons"]
        counts.moved, counts.stayed = np.array(state["moved"], float), np.array(state["stayed"], float)
        counts.after = np.array([[-np.inf if x is None else x for x in row] for row in state["after"]], float)
        test.reference = dict(state["reference"])
        test.max_e_value, test.suspect = state["max_e_value"], state["suspect"]
        test.movement = Movement(*state["movement"])
        test.runs = [Run(*run) for run in state["runs"]]
        test.noise, test.agreement = list(state["noise"]), state["agreement"]
        return test

    def _compare(self, grades: Mapping[str, Value], labels: Mapping[str, float]) -> Run:
        known = {anchor: value for anchor, value in grades.items() if anchor in self.reference}
        moved = up = down = 0.0
        for anchor, value in known.items():
            before = self.reference[anchor]
            if value is None or before is None:
                moved += float((value is None) != (before is None))
            else:
                moved += abs(value - before)
                up += max(0.0, value - before)
                down += max(0.0, before - value)
        others = sum(value != self.reference[anchor] for anchor, value in known.items())
        return Run(len(known), moved, up, down, _agreed(known, labels), others)

    def _split(self) -> int:
        """How many of the latest runs are unlike the ones before: the likeliest change among them."""

        def likelihood(since: int) -> float:
            distance, n = _sums(self.runs[-since:])
            after = _log_best(distance, n - distance)
            before = _log_best(self._counts.moved - distance, self._counts.stayed - n + distance)
            return float((after + before)[0])

        # The first of equals: without a change the average over all of them is the steadiest.
        return max(range(len(self.runs), 0, -1), key=likelihood)

    def _before(self, since: int) -> list[float]:
        """Mean distances before the latest runs."""
        distance, n = _sums(self.runs[-since:])
        n_before = float((self._counts.moved + self._counts.stayed)[0]) - n
        if n_before < 1.0:
            return [0.0, 0.0, 0.0]
        found: list[float] = np.maximum((self._counts.moved - distance) / n_before, 0.0).tolist()
        return found

    def _lasting(self) -> float:
        """How far all of the latest runs together lie from the ones before."""
        distance, n = _sums(self.runs)
        return float(distance[0]) / n - self._before(len(self.runs))[0]


def _sums(runs: Sequence[Run]) -> tuple[Array, int]:
    distance = np.array([sum(r.moved for r in runs), sum(r.up for r in runs), sum(r.down for r in runs)])
    return distance, sum(run.n for run in runs)


def _movement(runs: Sequence[Run], noise: Sequence[float]) -> Movement:
    distance, n = _sums(runs)
    size, up, down = (distance / n - np.array(noise)).tolist()
    shift = up - down
    direction: Direction = "noisier"
    if abs(shift) >= size / 2:
        direction = "more lenient" if shift > 0 else "stricter"
    return Movement(size, shift, direction if size > 0 else "")


def _agreed(grades: Mapping[str, Value], labels: Mapping[str, float]) -> float:
    return sum(1.0 - abs(value - labels[anchor]) for anchor, value in grades.items() if value is not None)


def _log_before(moved: Array, stayed: Array) -> Array:
    """Logarithm of the mean of r^S (1-r)^F under Beta(A, B)."""
    gammas = _log_gamma(np.stack([_A + moved, _B + stayed, _A + _B + moved + stayed]))
    constant = math.lgamma(_A + _B) - math.lgamma(_A) - math.lgamma(_B)
    found: Array = gammas[0] + gammas[1] - gammas[2] + constant
    return found


def _log_best(moved: Array, stayed: Array) -> Array:
    """Logarithm of q^S (1-q)^F at the q that makes it largest."""
    total = moved + stayed
    found: Array = _x_log_x(moved) + _x_log_x(stayed) - _x_log_x(total)
    return found


def _x_log_x(x: Array) -> Array:
    found: Array = x * np.log(np.where(x > 0, x, 1.0))
    return found


def _log_gamma(x: Array) -> Array:
    """Logarithm of the gamma function of positive numbers: Stirling's series at x + 7 (error below 1e-10), and back."""
    back = np.log(x * (x + 1) * (x + 2) * (x + 3)) + np.log((x + 4) * (x + 5) * (x + 6))
    z = x + 7.0
    series = 1 / (12 * z) - 1 / (360 * z**3) + 1 / (1260 * z**5)
    found: Array = (z - 0.5) * np.log(z) - z + 0.5 * math.log(2 * math.pi) + series - back
    return found
