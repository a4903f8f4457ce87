"""The engine of the decisions by itself: what a score costs, what a control variate gains, and its false alarms.

python -m bench.engine
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import accumulate
from math import exp
from statistics import median
from typing import Any

import numpy as np

from evalpipe.rollout.gates.comparison import ControlledComparison
from evalpipe.rollout.gates.mean import MeanGate
from evalpipe.rollout.inputs import Evidence
from evalpipe.rollout.plan import Gate, RolloutPlan
from evalpipe.stats.control_variate import Labelled
from evalpipe.stats.matching import Arm
from evalpipe.stats.moments import Calibration

AT = datetime(2026, 11, 22, tzinfo=UTC)
RUBRIC = (0.0, 0.25, 0.5, 0.75, 1.0)
BASE = tuple(accumulate((0.0202, 0.0398, 0.0887, 0.2224, 0.6289)))
KNOWN = Calibration(0.85, 0.056, 300)


def microseconds_a_score(every: int, n: int = 20_000, repeats: int = 5) -> float:
    """What a gate of kind ``quality`` takes for one score, one of ``every`` a canary's: the best of some runs."""
    values = random.Random(1).choices(RUBRIC, cum_weights=BASE, k=n)
    evidence = [
        Evidence(i, AT, "canary" if i % every == every - 1 else "baseline", f"user-{i}", "quality", value)
        for i, value in enumerate(values)
    ]
    gate = Gate("quality", "quality")
    plan = RolloutPlan("bench", "service", "v1", "v2", (gate,))
    best = float("inf")
    for _ in range(repeats):
        take, started = MeanGate(gate, plan).take, time.process_time()
        for one in evidence:
            take(one)
        best = min(best, time.process_time() - started)
    return best / n * 1e6


def tilted(mean: float) -> list[float]:
    """The law on the rubric with this mean that is hardest to tell from ``BASE`` (exponential tilt), cumulated."""
    low, high = -30.0, 30.0
    law = [after - before for before, after in zip((0.0, *BASE), BASE, strict=False)]
    for _ in range(80):
        middle = (low + high) / 2
        weights = [p * exp(middle * x) for p, x in zip(law, RUBRIC, strict=True)]
        if sum(w * x for w, x in zip(weights, RUBRIC, strict=True)) / sum(weights) < mean:
            low = middle
        else:
            high = middle
    return list(accumulate(weights))


def labelled(seed: int, rho: float, pairs: int, unscored: int, drop: float) -> Iterator[tuple[Labelled, Labelled]]:
    """Pairs of scores (baseline, canary), each with its own signal and the mean of ``unscored`` other signals.

    A signal is the score of its record with probability ``rho``, else one of the baseline's law: so ``rho`` is their
    correlation in either arm, and a drop of the score shows in the signal too.
    """
    rng, base, points = np.random.default_rng(seed), law_of(list(BASE)), np.array(RUBRIC)
    arms = []
    names: tuple[Arm, Arm] = ("baseline", "canary")
    laws = (base, law_of(tilted(0.85 * (1.0 - drop))) if drop else base)
    for arm, law in zip(names, laws, strict=True):
        y = rng.choice(points, size=pairs, p=law)
        f = np.where(rng.random(pairs) < rho, y, rng.choice(points, size=pairs, p=base))
        g = rng.multinomial(unscored, rho * law + (1.0 - rho) * base, size=pairs) @ points / unscored
        arms.append([Labelled(arm, *one, unscored) for one in zip(y.tolist(), f.tolist(), g.tolist(), strict=True)])
    return zip(*arms, strict=True)


def law_of(cumulated: list[float]) -> Any:
    """Probabilities that sum to 1."""
    law = np.diff(np.array([0.0, *cumulated]))
    return law / law.sum()


def judged_until_harm(
    rho: float,
    *,
    control: bool,
    runs: int,
    drop: float = 0.05,
    unscored: int = 49,
    horizon: int = 5_000,
    first: int = 0,
) -> list[int | None]:
    """Judged scores at 1:1 until harm is proven at alpha 1 %, run by run; None where it is not within ``horizon``.

    Args:
        rho: correlation of score and signal.
        control: whether the signal is used.
        runs: how many, with seeds from ``first``.
        drop: of the canary's mean.
        unscored: records with a signal for each judged one: 49 where 2 % are judged.
        horizon: pairs.
        first: seed of the first run.
    """
    gate = Gate("quality", "quality", alpha=0.01, calibration=KNOWN)
    found: list[int | None] = []
    for seed in range(first, first + runs):
        state = ControlledComparison(gate)
        pairs = labelled(seed, rho, horizon, unscored, drop)
        if not control:
            pairs = ((baseline._replace(f=None), canary._replace(f=None)) for baseline, canary in pairs)
        found.append(None)
        for n, (baseline, canary) in enumerate(pairs, 1):
            state.compare([baseline], [canary])
            if state.harm.fired(gate.alpha):
                found[-1] = 2 * n
                break
    return found


def control_gain(rho: float, runs: int = 400, unscored: int = 49) -> dict[str, float]:
    """Median judged scores without and with the control, how many times fewer, and the share of false alarms."""
    plain, controlled = (
        median(n or 1 << 30 for n in judged_until_harm(rho, control=used, runs=runs, unscored=unscored))
        for used in (False, True)
    )
    nulls = judged_until_harm(rho, control=True, runs=2_000, drop=0.0, unscored=unscored, horizon=1_000, first=1 << 20)
    false = sum(n is not None for n in nulls) / len(nulls)
    return {"plain": plain, "controlled": controlled, "gain": plain / controlled, "false": false}


def main() -> None:
    """Print the table."""
    for every, ratio in ((2, "1:1"), (10, "9:1")):
        print(f"one score, {ratio}: {microseconds_a_score(every):.2f} us")
    for rho in (0.5, 0.7, 0.9):
        found = control_gain(rho)
        print(f"control, rho {rho}: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()))


if __name__ == "__main__":
    main()
