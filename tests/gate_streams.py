"""Streams of evidence for one gate, and what comes of them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from statistics import NormalDist
from typing import Any

import numpy as np

from evalpipe.rollout.gates.base import GateState, kinds
from evalpipe.rollout.inputs import Evidence
from evalpipe.rollout.plan import Gate, RolloutPlan
from evalpipe.score import Status
from evalpipe.sketch import bins_of_ratio

START = datetime(2026, 11, 22, 2, 0, tzinfo=UTC)
P99_SCORE = NormalDist().inv_cdf(0.99)


def evidence(seq: int, value: float | None, criterion: str, **changes: Any) -> Evidence:
    """One a second, arms in turn (odd numbers are the canary's), each of its own user."""
    given = {"arm": "canary" if seq % 2 else "baseline", "unit": f"u{seq}", "at": START + timedelta(seconds=seq)}
    status = Status.ERROR if value is None else Status.SCORED
    return Evidence(seq=seq, criterion=criterion, value=value, **{"status": status, **given, **changes})


def begin(gate: Gate, kind: str = "", **plan: Any) -> GateState:
    """A state of the gate's kind (or another), with no evidence."""
    return kinds.get(kind or gate.kind)(gate, RolloutPlan("r", "bot", "v1", "v2", (gate,), **plan))


def feed(state: GateState, stream: Iterable[Evidence]) -> int | None:
    """Seq of the evidence that proved harm; None if it never was. Standing is asked for only when ``take`` says so."""
    for piece in stream:
        if state.take(piece) and state.standing().harmed:
            return piece.seq
    return None


def saved(state: GateState, gate: Gate, **plan: Any) -> GateState:
    """The state after a trip through JSON, strict."""
    text = json.dumps(state.to_state(), allow_nan=False)
    return type(state).from_state(gate, RolloutPlan("r", "bot", "v1", "v2", (gate,), **plan), json.loads(text))


def same_after_a_trip(gate: Gate, stream: list[Evidence], kind: str = "", every: int = 97) -> bool:
    """Whether a state that is saved and loaded again and again ends as one that never was."""
    kept, travelled = begin(gate, kind), begin(gate, kind)
    for i, piece in enumerate(stream):
        if kept.take(piece) is not travelled.take(piece):
            return False
        if i % every == 0:
            travelled = saved(travelled, gate)
    return json.dumps(kept.to_state()) == json.dumps(travelled.to_state()) and kept.numbers() == travelled.numbers()


def calls(seed: int, n: int, every: int = 2, rise: float = 1.0, sigma: float = 0.8) -> list[tuple[str, float]]:
    """Log-normal durations, one of the canary in ``every``, the canary's longer by a factor."""
    rng = random.Random(seed)
    return [
        ("canary", rise * rng.lognormvariate(6.0, sigma))
        if i % every == every - 1
        else ("baseline", rng.lognormvariate(6.0, sigma))
        for i in range(n)
    ]


def readings(
    seed: int, n: int, every: int = 2, rise: float = 1.0, sigma: float = 0.8, size: int = 100
) -> Iterable[tuple[str, dict[int, int]]]:
    """The same by bin, in readings of about ``size`` calls in both arms together."""
    rng = np.random.default_rng(seed)
    n_canary = max(1, size // every)
    for _ in range(0, n, size):
        for arm, count, factor in (("baseline", size - n_canary, 1.0), ("canary", n_canary, rise)):
            bins = np.ceil(bins_of_ratio(math.e) * np.log(factor * rng.lognormal(6.0, sigma, count)))
            keys, counts = np.unique(bins.astype(int), return_counts=True)
            yield arm, dict(zip(keys.tolist(), counts.tolist(), strict=True))


def exceedance_bound(rise: float, share: float, alpha: float, sigma: float = 0.8) -> float:
    """Calls in both arms that any valid test of exceedances needs on average to see a p99 that rose by this factor."""
    p = 1.0 - NormalDist().cdf(P99_SCORE - math.log(rise) / sigma)
    return rate_bound(0.01, p, share, alpha)


def rate_bound(p_b: float, p_c: float, share: float, alpha: float) -> float:
    """Records in both arms that any valid test needs on average to tell rate ``p_c`` from ``p_b``."""
    null = share * p_c + (1 - share) * p_b
    information = share * _kl(p_c, null) + (1 - share) * _kl(p_b, null)
    return math.log(1 / alpha) / information


def _kl(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def flagged_records(
    seed: int, n: int, false_flags: float, false_confirms: float, violations: float = 0.0, delay: int = 3
) -> Iterable[Evidence]:
    """Records in turn, and the second judge's answer to each flag ``delay`` records later; the canary violates."""
    rng = random.Random(seed)
    answers: list[tuple[int, Evidence]] = []
    for i in range(n):
        bad = i % 2 == 1 and rng.random() < violations
        flagged = bad or rng.random() < false_flags
        yield evidence(i, 0.0 if flagged else 1.0, "safe")
        if flagged:
            confirmed = bad or rng.random() < false_confirms
            answers.append((i + delay, evidence(i, 0.0 if confirmed else 1.0, "safe_confirmed")))
        while answers and answers[0][0] <= i:
            yield answers.pop(0)[1]
