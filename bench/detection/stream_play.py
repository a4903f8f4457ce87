"""Streams and the tests on them, many at once: what bench/detection/streams.py prints.

Run lengths are the total length of drift-free streams over their alarms, each alarm a new beginning. Delays are from a
change after 1,000 drift-free scores; alarms among these begin anew.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np

from evalpipe.stats.change import limits, mean_bets, share_bets, share_limits

RUBRIC = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
BASE = np.array([0.0202, 0.0398, 0.0887, 0.2224, 0.6289])
WARM = 1_000
"""Drift-free scores before the change."""


@dataclass(frozen=True)
class Scenario:
    """See streams.yaml."""

    name: str
    seed: int
    law: object
    change: float
    detector: str = "quality"
    direction: str = "down"
    arl: float = 100_000.0
    baseline: int | None = None
    tolerance: float = 0.0
    batch: int = 1
    clusters: int = 1
    effect: float = 1.0
    icc: float = 1.0
    at_most: dict = field(default_factory=dict)

    @property
    def values(self):
        """That scores can have."""
        return RUBRIC if isinstance(self.law, str) else np.array([0.0, 1.0])

    @property
    def usual(self):
        """Their probabilities while nothing has changed."""
        if isinstance(self.law, str):
            return BASE / BASE.sum()
        share = self.law["share"]
        return np.array([1.0 - share, share])

    @property
    def changed(self):
        """After the change."""
        mean = float(self.usual @ self.values)
        if self.law == "broken":
            return self.usual * (1.0 + self.change) - np.eye(len(self.usual))[0] * self.change
        return tilted(self.usual[None], self.values, np.array([mean * (1.0 + self.change)]))[0]

    def null(self, edge):
        """The law that still counts as usual and is nearest to the change: ``edge`` is the sign of the change."""
        mean = float(self.usual @ self.values)
        moved = np.array([mean * (1.0 + edge * self.tolerance)])
        return tilted(self.usual[None], self.values, moved)[0] if self.tolerance else self.usual


def tilted(laws, values, means):
    """The laws with these means that are hardest to tell from ``laws`` (exponential tilts), row by row."""
    low, high = np.full(len(means), -80.0), np.full(len(means), 80.0)
    for _ in range(70):
        middle = (low + high) / 2
        weights = laws * np.exp(middle[:, None] * (values - values[(middle > 0).astype(int) * -1][:, None]))
        weights /= weights.sum(axis=1, keepdims=True)
        less = weights @ values < means
        low, high = np.where(less, middle, low), np.where(less, high, middle)
    return weights


class Sums:
    """The detector over many streams; ``logs`` has ln F of each bet at each value, in one table or one a stream."""

    def __init__(self, logs, weights, threshold):
        self.logs, self.weights, self.threshold = logs, weights, threshold
        self.factors = np.exp(logs)

    def start(self, runs):
        """Nothing yet, for each stream."""
        return np.zeros((runs, len(self.weights)))

    def step(self, state, symbols, k, rows):
        """After a batch of ``k`` scores for each stream (symbols: k x runs); which streams raise an alarm."""
        each = self.logs if k > 1 else self.factors
        each = each[symbols] if each.ndim == 2 else each[rows, symbols]
        state = (state + k * self.weights) * (np.exp(each.sum(axis=0)) if k > 1 else each[0])
        return state, state.sum(axis=1) >= self.threshold


class Cusum:
    """Log-likelihood ratios, one table or one a stream."""

    def __init__(self, ratios, threshold):
        self.ratios, self.threshold = ratios, threshold

    def start(self, runs):
        """Nothing yet, for each stream."""
        return np.zeros((runs, 1))

    def step(self, state, symbols, k, rows):
        """The same, score by score; an alarm is seen at the end of a batch."""
        del k
        for row in symbols:
            ratio = self.ratios[row] if self.ratios.ndim == 1 else self.ratios[rows, row]
            state = np.maximum(state + ratio[:, None], 0.0)
        return state, state[:, 0] >= self.threshold


def draws(rng, law, n, runs, clusters, icc=1.0):
    """Symbols, n x runs; each score of a cluster is the cluster's own draw, or an independent one."""
    edges = np.cumsum(law)
    edges[-1] = 1.0
    found = np.searchsorted(edges, rng.random((-(-n // clusters), runs))).astype(np.int8)
    if clusters == 1:
        return found
    alone = np.searchsorted(edges, rng.random((n, runs))).astype(np.int8)
    return np.where(rng.random((n, runs)) < np.sqrt(icc), np.repeat(found, clusters, axis=0)[:n], alone)


def run_length(test, law, scenario, seed, total, runs=4_000):
    """Total length over alarms, and the number of alarms."""
    rng, state, alarms, done = np.random.default_rng(seed), test.start(runs), 0, 0
    rows, k = np.arange(runs), scenario.batch
    block = 200 * k
    while done * runs < total:
        symbols = draws(rng, law, block, runs, scenario.clusters, scenario.icc)
        for i in range(0, block, k):
            state, fired = test.step(state, symbols[i : i + k], k, rows)
            if fired.any():
                alarms += int(fired.sum())
                state[fired] = 0.0
        done += block
    return done * runs / max(alarms, 1), alarms


@functools.cache
def measured(law, detector, direction, arl, baseline, tolerance, batch, clusters, effect, icc, *, edge, total):
    """Run length and alarms of a detector, the same for all changes; at the edge of what is tolerated if ``edge``."""
    law = law if isinstance(law, str) else {"share": law}
    scenario = Scenario("", 600, law, 0.0, detector, direction, arl, baseline, tolerance, batch, clusters, effect, icc)
    if baseline:
        return run_length(estimated(scenario, 0.0, 4_000)[0], scenario.usual, scenario, 601, total)
    return run_length(Sums(*made(scenario, scenario.usual, None), arl), scenario.null(edge), scenario, 602, total)


def delays(test, scenario, seed, runs):
    """Scores from the change to the alarm, for each stream."""
    rng, state, k = np.random.default_rng(seed), test.start(runs), scenario.batch
    rows = np.arange(runs)
    warm = draws(rng, scenario.usual, WARM, runs, scenario.clusters, scenario.icc)
    for i in range(0, WARM - k + 1, k):
        state, fired = test.step(state, warm[i : i + k], k, rows)
        state[fired] = 0.0
    found, waiting, n = np.zeros(runs), rows, 0
    while len(waiting) and n < 200_000:
        symbols = draws(rng, scenario.changed, 50 * k, len(waiting), scenario.clusters, scenario.icc)
        keep = np.ones(len(waiting), bool)
        for i in range(0, 50 * k, k):
            state, fired = test.step(state, symbols[i : i + k], k, waiting)
            n += k
            fresh = fired & keep
            found[waiting[fresh]] = n
            keep &= ~fresh
        waiting, state = waiting[keep], state[keep]
    return found


def made(scenario, law, n):
    """Logarithms of the factors (values x bets) and the weights; n is None where the normal law is known exactly."""
    values = scenario.values
    mean = float(law @ values)
    variance = float(law @ (values - mean) ** 2)
    if scenario.detector == "rate":
        bets = share_bets(share_limits(mean, n, scenario.tolerance), scenario.direction)
    else:
        bets = mean_bets(mean, variance, limits(mean, variance, n, scenario.tolerance), scenario.direction)
    logs = np.array([[np.log1p(bet.stake * (x - bet.centre)) for bet in bets] for x in values]) / scenario.effect
    return logs, np.array([bet.weight for bet in bets])


def calibrated(ratios, law, scenario, target, total):
    """The threshold at which the CUSUM's run length is ``target``: it grows like e to the threshold."""
    threshold = max(2.0, np.log(target) - 3.5)
    for part in (0.1, 0.4, 1.0, 1.0):
        length, _ = run_length(Cusum(ratios, threshold), law, scenario, scenario.seed + 1000, total * part)
        if part == 1.0 and abs(length / target - 1.0) < 0.03:
            break
        threshold += np.log(target / length)
    return threshold, length


def played(scenario, quick):
    """One line of the table."""
    total, runs = (1e7, 2_000) if quick else (1e8, 30_000)
    changed, edge = scenario.changed, 1 if scenario.change > 0 else -1
    law = scenario.law if isinstance(scenario.law, str) else scenario.law["share"]
    same = (scenario.batch, scenario.clusters, scenario.effect, scenario.icc)
    key = (law, scenario.detector, scenario.direction, scenario.arl)
    length, alarms = measured(*key, None, scenario.tolerance, *same, edge=edge, total=2 * total)
    drift_free = length
    if scenario.tolerance or scenario.baseline:
        drift_free, alarms = measured(*key, scenario.baseline, scenario.tolerance, *same, edge=0, total=total)
    null = scenario.null(edge)
    alone = Scenario(scenario.name, scenario.seed, scenario.law, scenario.change)
    threshold, tuned_length = calibrated(np.log(np.maximum(changed, 1e-12) / null), null, alone, length, total)
    if scenario.baseline:
        sums, cusum = estimated(scenario, threshold, runs)
    else:
        sums = Sums(*made(scenario, scenario.usual, None), scenario.arl)
        cusum = Cusum(np.log(np.maximum(changed, 1e-12) / null), threshold)
    found = delays(sums, scenario, scenario.seed + 2, runs)
    tuned = delays(cusum, alone, scenario.seed + 2, runs)
    kl = float(changed @ np.log(np.maximum(changed, 1e-12) / scenario.usual))
    bound = np.log(scenario.arl) / kl
    return {
        "detector": scenario.detector,
        "scenario": scenario.name,
        "run_length_at_the_limit": length,
        "run_length_drift_free": drift_free,
        "alarms": alarms,
        "delay": float(found.mean()),
        "error": float(found.std() / np.sqrt(runs)),
        "p90": float(np.quantile(found, 0.9)),
        "tuned": float(tuned.mean()),
        "tuned_run_length": tuned_length,
        "ratio": float(found.mean() / tuned.mean()),
        "of_bound": float(found.mean() / bound),
        "at_most": scenario.at_most,
        "arl": scenario.arl,
    }


def estimated(scenario, threshold, runs):
    """Both tests, each stream with the baseline that it drew."""
    rng, n, values = np.random.default_rng(scenario.seed + 3), scenario.baseline, scenario.values
    laws = rng.multinomial(n, scenario.usual, runs) / n
    tests = [made(scenario, law, n) for law in laws]
    sums = Sums(np.array([logs for logs, _ in tests]), tests[0][1], scenario.arl)
    means = laws @ values
    smooth = (laws * n + 0.5) / (n + 0.5 * len(values))
    sign = 1 if scenario.change > 0 else -1
    null = tilted(smooth, values, means * (1.0 + sign * scenario.tolerance))
    other = tilted(smooth, values, means * (1.0 + scenario.change))
    return sums, Cusum(np.log(other / null), threshold)
