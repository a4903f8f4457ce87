"""Are estimates from sampled calls right? Real decisions on synthetic traffic whose true mean quality is known.

    python bench/sampling.py [--json] [--quick] [--replications 4000]

Each replication is a window of one process's traffic: four segments of very different size, sessions of several calls
whose quality goes together, and calls that fail, cost a lot or are flagged, which are the bad ones. The hook's sampler
decides call by call, the kept ones go into a rollup as scores do, and the product's interval is asked whether the true
mean is inside; where sessions are sampled, over sessions. Target: the weighted mean is unbiased (within three standard
errors of the simulation, or a twentieth of the interval's half width), and the 95 % interval covers 93-97 %.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from evalpipe.hook.sampling import Keep, Rate, Sampler, Sampling
from evalpipe.record import Release
from evalpipe.rollup import Rollup
from evalpipe.score import scored
from evalpipe.stats.mean_interval import MeanInterval, Squares, mean_interval

VALUES = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
WINDOW_S = 600.0
ENOUGH = 1_000
"""Replications below which a coverage says nothing: its standard error is 0.7 points here."""
VERDICTS = {True: "met", False: "MISSED", None: "(too few)"}
RELEASES = (Release("desk", variant="baseline"), Release("desk", variant="canary"))


class Segment(NamedTuple):
    """A class of traffic.

    Attributes:
        share: of sessions.
        size: mean number of calls in a session (geometric).
        failing, costly, flagged: shares of calls.
        good, poor: how often each rubric value is given in good and in poor sessions, to calls that are none of these.
    """

    name: str
    share: float
    size: float
    failing: float
    costly: float
    flagged: float
    good: tuple[float, ...]
    poor: tuple[float, ...]


SEGMENTS = (
    Segment("free", 0.84, 3.0, 0.03, 0.02, 0.01, (0.02, 0.03, 0.1, 0.25, 0.6), (0.1, 0.15, 0.25, 0.3, 0.2)),
    Segment("pro", 0.13, 5.0, 0.02, 0.05, 0.01, (0.01, 0.03, 0.06, 0.2, 0.7), (0.05, 0.1, 0.25, 0.3, 0.3)),
    Segment("enterprise", 0.025, 8.0, 0.05, 0.08, 0.02, (0.05, 0.1, 0.25, 0.3, 0.3), (0.2, 0.2, 0.3, 0.2, 0.1)),
    Segment("internal", 0.005, 4.0, 0.15, 0.1, 0.05, (0.2, 0.2, 0.2, 0.2, 0.2), (0.4, 0.3, 0.2, 0.1, 0.0)),
)
POOR = 0.25
"""Share of sessions that go badly, all along."""
BAD = {
    "failing": (0.85, 0.1, 0.05, 0.0, 0.0),
    "costly": (0.3, 0.3, 0.2, 0.1, 0.1),
    "flagged": (0.6, 0.2, 0.1, 0.1, 0.0),
}
KINDS = ("plain", *BAD)


class Scenario(NamedTuple):
    """A way to sample.

    Attributes:
        calls: in a window.
        clustered: the interval is taken over units (sessions), not over records.
        canary: share of sessions that the canary serves.
    """

    name: str
    sampling: Sampling
    calls: int
    clustered: bool = False
    canary: float = 0.0


SCENARIOS = (
    Scenario("2 % of traces", Sampling(0.02), 5_000),
    Scenario("strata with floors", Sampling(0.02, floor_per_minute=5), 5_000),
    Scenario("errors always", Sampling(0.02, keep=Keep(errors=True)), 5_000),
    Scenario(
        "errors, cost, flags always",
        Sampling(0.02, keep=Keep(errors=True, cost_above_usd=0.5)),
        5_000,
    ),
    Scenario(
        "rate per arm and feature",
        Sampling(0.02, rates=[Rate(1.0, variant="canary"), Rate(0.1, feature="agent")]),
        5_000,
        canary=0.02,
    ),
    Scenario("5 % of sessions", Sampling(0.05, by="session"), 5_000, clustered=True),
    Scenario(
        "all of it, by session",
        Sampling(
            0.02,
            rates=[Rate(0.3, variant="canary"), Rate(0.1, feature="agent")],
            by="session",
            floor_per_minute=5,
            keep=Keep(errors=True, cost_above_usd=0.5),
        ),
        5_000,
        clustered=True,
        canary=0.05,
    ),
)


class Call:
    """What the sampler reads of a call, and writes to it."""

    __slots__ = (
        "capturing",
        "feature",
        "finish_reason",
        "flags",
        "probability",
        "rate_probability",
        "reason",
        "release",
        "sampled",
        "segment",
        "session_id",
        "stratum",
        "trace_id",
    )


def table() -> tuple[np.ndarray, np.ndarray]:
    """For each segment and kind of session: shares of the kinds of call, and of values for each of these."""
    kinds = np.zeros((len(SEGMENTS), 4))
    values = np.zeros((len(SEGMENTS), 2, 4, 5))
    for i, s in enumerate(SEGMENTS):
        kinds[i] = 1 - s.failing - s.costly - s.flagged, s.failing, s.costly, s.flagged
        for poor, usual in enumerate((s.good, s.poor)):
            values[i, poor] = usual, *BAD.values()
    return kinds, values


KIND_SHARES, VALUE_SHARES = table()


def truth() -> float:
    """Mean quality of a call."""
    calls = np.array([s.share * s.size for s in SEGMENTS])
    mean = VALUE_SHARES @ VALUES
    by_session = (KIND_SHARES[:, None, :] * mean).sum(axis=2) @ np.array([1 - POOR, POOR])
    return float(calls @ by_session / calls.sum())


def traffic(calls: int, canary: float, draw: np.random.Generator) -> Iterator[tuple[int, int, int, float, bool, bool]]:
    """Calls in the order in which they begin: session, segment, kind, value, by the canary, of the feature 'agent'."""
    sessions = round(calls / sum(s.share * s.size for s in SEGMENTS))
    segment = draw.choice(len(SEGMENTS), sessions, p=[s.share for s in SEGMENTS])
    size = draw.geometric(1.0 / np.array([s.size for s in SEGMENTS])[segment])
    poor = (draw.random(sessions) < POOR).astype(int)
    arm, agent = draw.random(sessions) < canary, draw.random(sessions) < 0.2
    of = draw.permutation(np.repeat(np.arange(sessions), size))
    kind = (draw.random((len(of), 1)) > np.cumsum(KIND_SHARES, axis=1)[segment[of]]).sum(axis=1).clip(max=3)
    shares = np.cumsum(VALUE_SHARES, axis=3)[segment[of], poor[of], kind]
    value = VALUES[(draw.random((len(of), 1)) > shares).sum(axis=1).clip(max=4)]
    columns = (of, segment[of], kind, value, arm[of], agent[of])
    return zip(*(c.tolist() for c in columns), strict=True)  # type: ignore[arg-type]


def replicate(scenario: Scenario, draw: np.random.Generator, ids: random.Random) -> list[tuple[str, float, float]]:
    """One window: session, weight and score of the records that are kept of it."""
    sampler = Sampler(scenario.sampling)
    kept = []
    call, salt = Call(), ids.getrandbits(64)
    nothing: frozenset[str] = frozenset()
    flags = frozenset({"thumbs-down"})
    every = max(1, round(scenario.calls * 5.0 / WINDOW_S))
    call.finish_reason = ""
    tail = sampler.tail
    for i, (session, segment, kind, value, arm, agent) in enumerate(traffic(scenario.calls, scenario.canary, draw)):
        if i % every == 0 and i:
            sampler.adapt(5.0)
        call.release = RELEASES[arm]
        call.feature = "agent" if agent else "answers"
        call.segment = SEGMENTS[segment].name
        call.trace_id = f"{salt:016x}{ids.getrandbits(64):016x}"
        call.session_id = f"s-{salt:016x}-{session}"
        call.sampled = call.capturing = False
        sampler.decide(call)
        if tail:
            call.flags = flags if kind == 3 else nothing
            sampler.keep(call, kind == 1, 0.9 if kind == 2 else 0.01)
        if call.sampled:
            kept.append((call.session_id, 1.0 / call.probability, value))
    return kept


def estimates(kept: list[tuple[str, float, float]]) -> tuple[MeanInterval, MeanInterval, MeanInterval]:
    """As the product has it by record and by unit, and without weights."""
    weighted, unweighted = Rollup(), Rollup()
    units: dict[str, tuple[float, float]] = {}
    for session, weight, value in kept:
        weighted.add(scored(value), weight)
        unweighted.add(scored(value))
        w, x = units.get(session, (0.0, 0.0))
        units[session] = w + weight, x + weight * value
    return (
        interval(weighted, Squares.of((w, w * x) for _, w, x in kept)),
        interval(weighted, Squares.of(units.values())),
        interval(unweighted, None),
    )


def interval(r: Rollup, squares: Squares | None) -> MeanInterval:
    found = mean_interval(r.n_scored, r.sum_w, r.sum_wx, r.sum_wx2, r.sum_w2, squares)
    return found or MeanInterval(0.0, 0.0, 1.0, 0.0, 0.95)


def run(scenario: Scenario, replications: int, seed: int) -> dict[str, Any]:
    """The scenario's line of the table."""
    draw, ids, mean = np.random.default_rng(seed), random.Random(seed), truth()
    found = []
    for _ in range(replications):
        kept = replicate(scenario, draw, ids)
        each = estimates(kept)
        by_record, by_unit, unweighted = each
        found.append(
            (
                len(kept),
                by_record.mean,
                unweighted.mean,
                *(e.low <= mean <= e.high for e in each),
                (by_unit.high - by_unit.low) / 2 if scenario.clustered else (by_record.high - by_record.low) / 2,
            )
        )
    columns = np.array(found, dtype=float)
    records, estimate, plain, by_record, by_unit, unweighted, half = columns.mean(axis=0).tolist()
    line = {
        "scenario": scenario.name,
        "replications": replications,
        "records": records,
        "truth": mean,
        "bias": estimate - mean,
        "bias_se": float(columns[:, 1].std(ddof=1)) / math.sqrt(replications),
        "half_width": half,
        "covered": by_unit if scenario.clustered else by_record,
        "covered_by_record": by_record,
        "unweighted_bias": plain - mean,
        "unweighted_covered": unweighted,
    }
    biased = abs(line["bias"]) > max(3.0 * line["bias_se"], half / 20.0)
    met = not biased and 0.93 <= line["covered"] <= 0.97
    return {**line, "met": met if replications >= ENOUGH else None}


def show(lines: list[dict[str, Any]]) -> None:
    first = lines[0]
    print(f"true mean {first['truth']:.4f}; {first['replications']:,} windows each; intervals of 95 %\n")
    print(f"{'':<36}{'weighted, as the product does':^36}{'not weighted':^18}")
    names = ("records", "bias", "+-", "half width", "covers")
    print(f"{'sampling':<27}" + "".join(f"{n:>9}" for n in names[:3]) + f"{names[3]:>11}{names[4]:>8}", end="")
    print(f"{'bias':>9}{'covers':>9}")
    for r in lines:
        bias = f"{r['bias']:>+9.4f}{r['bias_se']:>9.4f}{r['half_width']:>11.4f}"
        print(f"{r['scenario']:<27}{r['records']:>9.0f}{bias}{r['covered']:>8.1%}", end="")
        print(f"{r['unweighted_bias']:>+9.4f}{r['unweighted_covered']:>9.1%}  {VERDICTS[r['met']]}")
    for r in lines:
        if r["covered"] != r["covered_by_record"]:
            print(f"  {r['scenario']}: the interval over records, as if they were independent, covers "
                  f"{r['covered_by_record']:.1%}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.add_argument("--quick", action="store_true", help="few replications, to see that it works")
    parser.add_argument("--replications", type=int, default=0, help="windows for each scenario (4,000)")
    options = parser.parse_args()
    replications = options.replications or (50 if options.quick else 4_000)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        lines = list(pool.map(run, SCENARIOS, [replications] * len(SCENARIOS), range(len(SCENARIOS))))
    if options.json:
        print(json.dumps({"machine": {"cores": os.cpu_count()}, "figures": lines}, indent=2))
    else:
        show(lines)


if __name__ == "__main__":
    main()
