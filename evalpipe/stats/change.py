"""Has the mean of a stream of scores changed? A Shiryaev-Roberts sum of bets (an e-detector), one of each effect.

A bet with stake l against the centre c is F(x) = 1 + l (x - c), for scores x in [0, 1]: l < 0 gains where the mean is
below c, l > 0 where it is above. The centres are the mean that is normal -/+ what is tolerated; l_i is the effect in
question over the variance, capped so that no factor falls below .05. For a batch of k scores, whose number does not
depend on their values:

    M_i <- (M_i + w_i k) * prod_j F_i(x_j)^(1/d),   M = sum_i M_i,   alarm where M >= A

Guarantee: while each score's mean given the past is within the tolerated, E[F_i] <= 1, so that M_t - t (in scores) is a
supermartingale and false alarms are at least A scores apart on the average (Shin, Ramdas and Rinaldo, arXiv 2203.03532;
optional stopping). It holds for every law in [0, 1], for any batches, and while the centres and stakes are exchanged by
ones that were known before the batch. The overshoot at the alarm makes the average run about a third longer than A.

Scores of one conversation resemble each other. Factors are taken to the power 1/d: with clusters of at most d scores
E[prod F^(1/d)] <= prod E[F]^(1/d) <= 1 (Hoelder) whatever the dependence inside them. It costs d times the delay.
Kish's design effect is less than the largest cluster; with it the rate holds to second order, as the bench shows.

After the alarm M is cut to A, in proportion, so that the bet which explains the change best keeps the lead. Latencies,
of which there are many, are as usual again when M falls below a part of A (``settle``). Of scores a chance pause would
look like that, and bets on small changes would never fall: there a change is over when a CUSUM of the likelihood ratio
of the normal mean to the changed one says so (``back``), and that of graded scores also when M has faded. Then M starts
anew from 0, which leaves the guarantee as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import exp, log, log1p, sqrt
from typing import Final, Literal, NamedTuple

Direction = Literal["down", "up", "both"]
Stake = tuple[float, float]
"""How much is staked, and the bet's weight."""

EFFECTS: Final = (0.05, 0.07, 0.172)
"""Relative changes of a mean that the bets are on."""
WEIGHTS: Final = (0.29, 0.10, 0.61)
"""Of those bets. The one on large changes has the most: they are found in few scores, so that each one counts."""
CLOSE: Final = 1 / 3
"""Of c (1 - c), the variance of passes and fails with a mean of c: scores whose variance is less than this part of it
lie close together. A stake made for them is lost where most scores stay and a few break."""
BROKEN_WEIGHT: Final = 0.4
"""Of the bets, for scores that lie close together, on a few of them breaking."""
RARE_EFFECTS: Final = (0.6, 1.5, 4.0, 12.0)
"""The same for a share, as multiples of the rarer outcome's."""
RARE_WEIGHTS: Final = (0.25, 0.35, 0.25, 0.15)
OVER: Final = 1e-3
"""Part of the threshold below which a change is over."""
RECOVERED: Final = log(1e5)
"""Evidence that a change is over: one that lasts is taken for over once in 100,000 scores at the most."""
TRUST: Final = 1.645
"""Standard errors by which the mean of a measured baseline may be off: one-sided 95 %."""
_CAP: Final = 0.95
_RARE_FLOOR: Final = 0.002
_LEAST_VARIANCE: Final = 1e-4


class Bet(NamedTuple):
    """One of the bets: ``stake`` below 0 gains where scores are below ``centre``; ``weight`` is its share of all."""

    stake: float
    centre: float
    weight: float


class Limits(NamedTuple):
    """Means that are normal."""

    low: float
    high: float


def limits(mean: float, variance: float, n: int | None, tolerance: float) -> Limits:
    """The means that count as no change: the baseline's -/+ ``tolerance`` times it.

    Args:
        mean: of the baseline.
        variance: of its scores.
        n: its scores, independent ones (divide by the design effect); None where the mean is known exactly. With few
            scores their own standard error is the wider margin: then nothing else is a change.
        tolerance: relative.
    """
    margin = max(tolerance * mean, 0.0 if n is None else TRUST * sqrt(variance / max(n, 1)))
    return Limits(max(mean - margin, 0.0), min(mean + margin, 1.0))


def share_limits(share: float, n: int | None, tolerance: float) -> Limits:
    """The same for a share of n, where Wilson's interval tells how well it is known: 0 of n is no promise of 0."""
    low = high = share
    if n is not None:
        z2 = TRUST * TRUST / max(n, 1)
        middle = (share + z2 / 2.0) / (1.0 + z2)
        half = sqrt(z2 * share * (1.0 - share) + z2 * z2 / 4.0) / (1.0 + z2)
        low, high = middle - half, middle + half
    return Limits(max(min(low, share * (1.0 - tolerance)), 0.0), min(max(high, share * (1.0 + tolerance)), 1.0 - 1e-9))


def mean_bets(mean: float, variance: float, normal: Limits, direction: Direction) -> tuple[Bet, ...]:
    """The bets for a mean: on changes by ``EFFECTS`` of it, of which the part beyond what is tolerated is staked on."""
    down = _mean_stakes(mean, variance, mean - normal.low, normal.low)
    up = _mean_stakes(mean, variance, normal.high - mean, normal.high)
    return _bets(down, up, normal, direction)


def _mean_stakes(mean: float, variance: float, margin: float, centre: float) -> list[Stake]:
    gains = [max(effect * mean - margin, effect * mean / 2.0) for effect in EFFECTS]
    spread, most = max(variance, _LEAST_VARIANCE), max(centre * (1.0 - centre), _LEAST_VARIANCE)
    if spread >= CLOSE * most:
        return [(gain / spread, weight) for gain, weight in zip(gains, WEIGHTS, strict=True)]
    breaking = [(gain / most, BROKEN_WEIGHT / 2.0) for gain in (gains[0], gains[-1])]
    moving = [(gain / spread, (1.0 - BROKEN_WEIGHT) * weight) for gain, weight in zip(gains, WEIGHTS, strict=True)]
    return breaking + moving


def share_bets(normal: Limits, direction: Direction) -> tuple[Bet, ...]:
    """The bets for a share: for 0/1 scores each is the likelihood ratio of its effect, which no bet beats."""
    down, up = (
        [
            (effect * max(min(centre, 1.0 - centre), _RARE_FLOOR) / max(centre * (1.0 - centre), _LEAST_VARIANCE), w)
            for effect, w in zip(RARE_EFFECTS, RARE_WEIGHTS, strict=True)
        ]
        for centre in normal
    )
    return _bets(down, up, normal, direction)


def _bets(down: Sequence[Stake], up: Sequence[Stake], normal: Limits, direction: Direction) -> tuple[Bet, ...]:
    share = 0.5 if direction == "both" else 1.0
    bets: list[Bet] = []
    if direction != "up":
        room = _CAP / max(1.0 - normal.low, _CAP / 1e3)
        bets += [Bet(-min(s, room), normal.low, share * w) for s, w in down]
    if direction != "down":
        room = _CAP / max(normal.high, _CAP / 1e3)
        bets += [Bet(min(s, room), normal.high, share * w) for s, w in up]
    return tuple(bets)


def fold(
    sums: Sequence[float],
    bets: Sequence[Bet],
    counts: Iterable[tuple[float, float]],
    design_effect: float = 1.0,
    weight: float = 1.0,
) -> list[float]:
    """The M_i after a batch.

    Args:
        sums: the M_i before; empty for the beginning.
        bets: one for each of them.
        counts: values in [0, 1], and how many scores have each.
        design_effect: see the module.
        weight: of this series among several that are added up (an average of such sums is one, too).
    """
    batch = [(value, count) for value, count in counts if count]
    k = weight * sum(count for _, count in batch)
    after = []
    for old, (stake, centre, share) in zip(sums or [0.0] * len(bets), bets, strict=True):
        grown = sum(count * log1p(stake * (value - centre)) for value, count in batch)
        after.append((old + share * k) * exp(min(grown / design_effect, 600.0)))
    return after


def settle(sums: Sequence[float], threshold: float, changed: bool) -> tuple[list[float], bool]:
    """Whether the stream is changed now, by the sums after a batch; and the sums to go on with.

    Args:
        sums: of all bets, of all series that are added up.
        threshold: the average run length that is wanted, in scores.
        changed: as it was before.
    """
    total = sum(sums)
    if total >= threshold:
        return [threshold * each / total for each in sums], True
    if changed and total < OVER * threshold:
        return [0.0] * len(sums), False
    return list(sums), changed


def back(
    evidence: float,
    mean: float,
    usual: float,
    variance: float,
    counts: Iterable[tuple[float, float]],
    effect: float = 1.0,
) -> float:
    """The evidence that a change is over, after a batch: a logarithm, never below 0; ``RECOVERED`` is enough.

    Args:
        evidence: before the batch.
        mean: of the scores while they were changed, inside of (0, 1).
        usual: the mean that is normal.
        variance: of the scores; with that of 0/1 scores, mean x (1 - mean), this is the likelihood ratio.
        counts: the batch.
        effect: the design effect.
    """
    stake = (usual - mean) / max(variance, _LEAST_VARIANCE)
    stake = min(stake, _CAP / mean) if stake > 0.0 else max(stake, -_CAP / (1.0 - mean))
    return max(0.0, evidence + sum(n * log1p(stake * (value - mean)) for value, n in counts) / effect)


class Run(NamedTuple):
    """The scores since the likely time of a change: where the evidence of one bet began to grow (CUSUM).

    Attributes:
        evidence: logarithm of that bet's wealth since then; never below 0.
        n: scores since then.
        total: their sum.
    """

    evidence: float = 0.0
    n: float = 0.0
    total: float = 0.0

    def after(self, bet: Bet, counts: Iterable[tuple[float, float]], design_effect: float = 1.0) -> Run:
        """With a batch; a batch that speaks against a change ends the run."""
        evidence, n, total = self
        for value, count in counts:
            evidence += count * log1p(bet.stake * (value - bet.centre)) / design_effect
            n += count
            total += count * value
        return Run(evidence, n, total) if evidence > 0.0 else Run()

    @property
    def mean(self) -> float | None:
        """Of the scores since then; None where nothing speaks for a change."""
        return self.total / self.n if self.n else None
