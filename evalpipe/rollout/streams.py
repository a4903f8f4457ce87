"""Streams of scores as a policy's tests describe them: random numbers with a seed, or rows one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np
from numpy.typing import NDArray

from evalpipe.rollout.inputs import Evidence
from evalpipe.score import Status
from evalpipe.scorecard.policy_test import Distribution, PolicyTest, Row, Stream
from evalpipe.scorecard.rollout import MEASURED
from evalpipe.stats.matching import Arm

START: Final = datetime(2024, 1, 1, tzinfo=UTC)
"""When every test begins."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Streamed:
    """The evidence of one run.

    Attributes:
        evidence: in its order; ``seq`` is the place of the unit, or of the row.
        canary: by ``seq``, how many values of the canary there were by then, of the criterion that has most.
        criteria: of which there is evidence.
        pairs: whether there are inputs that both arms answered.
    """

    evidence: Iterator[Evidence]
    canary: NDArray[np.int64]
    criteria: frozenset[str]
    pairs: bool


def streamed(test: PolicyTest, run: int) -> Streamed:
    """The evidence of run ``run`` of a test: the same numbers each time, and others in each run.

    As far as it can be decided in time: what comes after ``expect.within`` is left out.
    """
    return _from_rows(test.rows) if test.rows else _from_streams(test, np.random.default_rng([test.seed, run]))


def _from_streams(test: PolicyTest, rng: np.random.Generator) -> Streamed:
    canary = rng.random(test.units) < test.canary_share
    seconds = np.cumsum(rng.exponential(60.0 / test.per_minute, test.units))
    n = _in_time(test, canary, seconds)
    canary, seconds = canary[:n], seconds[:n]
    columns = [(stream.criterion, *_drawn(stream, canary, rng)) for stream in test.streams]
    return Streamed(
        evidence=_units(canary, seconds, columns),
        canary=np.cumsum(canary),
        criteria=frozenset(stream.criterion for stream in test.streams),
        pairs=False,
    )


def _in_time(test: PolicyTest, canary: NDArray[np.bool_], seconds: Floats) -> int:
    """How many units come by the time at which the decision must have been made."""
    within = test.expect.within
    if within is None:
        return len(canary)
    if isinstance(within, timedelta):
        return int(np.searchsorted(seconds, within.total_seconds(), side="right"))
    return int(np.searchsorted(np.cumsum(canary), within + 1, side="left"))


def _drawn(stream: Stream, canary: NDArray[np.bool_], rng: np.random.Generator) -> tuple[Floats, NDArray[np.bool_]]:
    """A value for each unit, and whose score ended as an error."""
    n, measured = len(canary), stream.criterion in MEASURED
    factor = 1.0 - (stream.drop or 0.0) + (stream.rise or 0.0)
    values = drawn(stream.baseline, n, rng, measured=measured)
    theirs = drawn(stream.canary or stream.baseline, n, rng, factor=factor, measured=measured)
    return np.where(canary, theirs, values), canary & (rng.random(n) < stream.missing)


def drawn(of: Distribution, n: int, rng: np.random.Generator, *, factor: float = 1.0, measured: bool = False) -> Floats:
    """``n`` values of a distribution whose mean is multiplied by ``factor``.

    A rubric is tilted exponentially, the change of its shape that is hardest to see; a beta keeps its precision, and a
    log-normal its shape.
    """
    if of.rate is not None:
        return (rng.random(n) < min(1.0, of.rate * factor)).astype(np.float64)
    if of.scores:
        scores, shares = np.array(of.scores, dtype=np.float64), np.array(of.shares, dtype=np.float64)
        return rng.choice(scores, n, p=tilted(scores, shares / shares.sum(), factor))
    assert of.mean is not None
    assert of.sd is not None
    if measured:
        sigma2 = np.log1p((of.sd / of.mean) ** 2)
        return rng.lognormal(np.log(of.mean * factor) - sigma2 / 2.0, np.sqrt(sigma2), n)
    precision = of.mean * (1.0 - of.mean) / of.sd**2 - 1.0
    mean = min(of.mean * factor, 1.0 - 1e-9)
    return rng.beta(mean * precision, (1.0 - mean) * precision, n)


def tilted(scores: Floats, shares: Floats, factor: float) -> Floats:
    """Shares times exp(theta x score): of all shares with ``factor`` times the mean the nearest (Kullback-Leibler)."""
    wanted = float(min((scores * shares).sum() * factor, scores.max()))
    low, high = -200.0, 200.0
    for _ in range(60):
        theta = (low + high) / 2.0
        weights = shares * np.exp(theta * (scores - scores.max() if theta > 0 else scores - scores.min()))
        weights /= weights.sum()
        low, high = (theta, high) if (scores * weights).sum() < wanted else (low, theta)
    return np.asarray(weights, dtype=np.float64)


def _units(
    canary: NDArray[np.bool_], seconds: Floats, columns: list[tuple[str, Floats, NDArray[np.bool_]]]
) -> Iterator[Evidence]:
    begun = START.timestamp()
    for seq, (of_canary, second) in enumerate(zip(canary.tolist(), seconds.tolist(), strict=True)):
        at, arm = datetime.fromtimestamp(begun + second, UTC), _arm(of_canary)
        for criterion, values, missing in columns:
            if missing[seq]:
                yield Evidence(seq, at, arm, f"unit {seq}", criterion, None, status=Status.ERROR)
            else:
                yield Evidence(seq, at, arm, f"unit {seq}", criterion, float(values[seq]))


def _arm(canary: bool) -> Arm:
    return "canary" if canary else "baseline"


def _from_rows(rows: list[Row]) -> Streamed:
    counts: dict[str, int] = {}
    canary, evidence, at = [], [], START
    for seq, row in enumerate(rows):
        at = START + row.after if row.after is not None else at + timedelta(seconds=1)
        status = Status.ERROR if row.value is None and row.status == "scored" else Status(row.status)
        evidence.append(
            Evidence(seq, at, row.arm, row.unit or f"row {seq}", row.criterion, row.value, row.weight, status,
                     row.epoch, row.pair, row.segment)
        )  # fmt: skip
        if row.arm == "canary":
            counts[row.criterion] = counts.get(row.criterion, 0) + 1
        canary.append(max(counts.values(), default=0))
    return Streamed(
        evidence=iter(evidence),
        canary=np.array(canary, dtype=np.int64),
        criteria=frozenset(row.criterion for row in rows),
        pairs=any(row.pair for row in rows),
    )
