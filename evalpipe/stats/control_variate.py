"""A cheap signal on all records that makes a dear score on a part of them tell more: a control variate.

A score y of a record whose cheap signal is f becomes y - b (f - g), where g is the mean of the same signal over n
records of the same arm that nobody scored, shortly before, each used once. Both f and g have the arm's own mean,
whatever it is, so y keeps its mean exactly, also while traffic ramps and quality drifts, and whatever the release
does to the cheap signal; and its variance falls to 1 - rho^2 n / (n + 1) of what it was. (Control variates: Lavenberg
and Welch 1981; for experiments: Deng, Xu, Kohavi and Walker 2013. A mean over all past records in place of g would be
off by its own error, which does not average out, and by any drift: then alpha would not hold.)

In a block the two parts are bet on one by one, because each is bounded and their sum is less so: with p the arm's mean
signal as known before the block, z = y - b (f - p) has the bets of ``evalpipe.stats.betting`` with wider bounds, and
e = b (g - p) its own factor, 1 + d lam e for the canaries and 1 - d (t lam / kb) e_j for each baseline. E of the whole
is at most 1 under the null: a product of non-negative independent factors 1 + u_i has at most the expectation
exp(sum of E[u_i]), and the sum is d lam (mean(y) + a - t mean(x)) <= 0, whatever p and the centres are.

b is learnt from blocks that are over, is in [0, 1], and 0 until ``LEAST`` scores are known.

Order: a score waits until the cheap signals have come to its ``seq`` (each of the two is in order, but they are not in
step), so what comes out depends on the two orders alone and not on how they interleave. Beyond ``MAX_WAITING`` scores
the oldest is used as it is, and beyond ``MAX_SIGNALS`` of an arm the oldest signal is dropped: both cost power only.
"""

from __future__ import annotations

from collections import deque
from math import sqrt
from typing import Any, Final, NamedTuple

from evalpipe.stats.betting import Residuals
from evalpipe.stats.matching import Arm, Block
from evalpipe.stats.seen import SeenUnits

LEAST: Final = 40
"""Scores with a signal before it is used."""
SPREAD: Final = 4
"""A score takes the oldest of this part of the signals at hand: so all get about the same number."""
MAX_WAITING: Final = 256
MAX_SIGNALS: Final = 2048
_GAIN: Final = 0.002
_RATIO_GAIN: Final = 0.02
_FLOOR: Final = 0.05
"""Of the variance: no more than this is said to be left."""


class Labelled(NamedTuple):
    """A score with what is known of the cheap signal.

    Attributes:
        y: the score.
        f: the record's own signal; None if there is none, and then the score stays as it is.
        g: mean signal of ``n`` records that nobody scored.
    """

    arm: Arm
    y: float
    f: float | None = None
    g: float = 0.0
    n: int = 0


class Adjusted(NamedTuple):
    """A block as the bets take it.

    Attributes:
        block: its scores, moved.
        residuals: the rest of the move.
        plain: its scores with all of the move, for the estimate.
        variance_ratio: of a moved score to a plain one.
    """

    block: Block
    residuals: Residuals
    plain: Block
    variance_ratio: float


class ControlVariate:
    """The table of signals, the scores that wait for theirs, and what was learnt about the two."""

    __slots__ = ("_done", "_epochs", "_labels", "_moments", "_ratio", "_seen", "_signals", "_sums", "_unscored",
                 "_waiting", "_watermark", "unadjusted")  # fmt: skip

    def __init__(self) -> None:
        self._signals: dict[str, deque[tuple[int, float, bool]]] = {"baseline": deque(), "canary": deque()}
        self._unscored: dict[str, deque[float]] = {arm: deque(maxlen=MAX_SIGNALS) for arm in self._signals}
        self._epochs = {"baseline": "", "canary": ""}
        self._waiting: deque[tuple[int, Arm, float]] = deque()
        self._watermark = -1
        self._done = {
            "baseline": -1,
            "canary": -1,
        }  # a signal that comes later than the score it belongs to is too late
        self._seen = SeenUnits()
        self._labels = 0
        self._moments = {"baseline": (0, 0.0, 0.0), "canary": (0, 0.0, 0.0)}  # count, mean score, mean signal
        self._sums = (0.0, 0.0, 0.0)  # variance of the score, of the signal, covariance
        self._ratio = 1.0
        self.unadjusted = 0

    def signal(self, seq: int, arm: Arm, unit: str, value: float | None, epoch: str) -> None:
        """Take the cheap signal of a record; None if it has none."""
        self._watermark = max(self._watermark, seq)
        signals = self._signals[arm]
        if epoch != self._epochs[arm]:
            self._epochs[arm] = epoch
            signals.clear()  # of another version: not to be compared
            self._unscored[arm].clear()
        if value is None or seq <= self._done[arm]:
            return
        signals.append((seq, min(max(value, 0.0), 1.0), self._seen.add(unit)))
        if len(signals) > MAX_SIGNALS:
            signals.popleft()

    def score(self, seq: int, arm: Arm, value: float) -> None:
        """Take a score; it comes out of ``ready``."""
        self._waiting.append((seq, arm, value))

    def ready(self) -> list[Labelled]:
        """Scores that wait no longer, in order."""
        found, waiting = [], self._waiting
        while waiting and (waiting[0][0] <= self._watermark or len(waiting) > MAX_WAITING):
            seq, arm, value = waiting.popleft()
            self._done[arm] = seq
            signals, unscored, own = self._signals[arm], self._unscored[arm], None
            while signals and signals[0][0] <= seq:
                at, f, fresh = signals.popleft()
                if at == seq:
                    own = f
                elif fresh:
                    unscored.append(f)
            n = -(-len(unscored) // SPREAD)
            g = sum(unscored.popleft() for _ in range(n)) / n if n else 0.0
            found.append(Labelled(arm, value, own, g, n))
        return found

    def clear(self) -> None:
        """Forget the scores that wait: they cannot be compared with what comes next."""
        self._waiting.clear()

    @property
    def b(self) -> float:
        """Share of the signal's move that is taken off the score."""
        _, variance, covariance = self._sums
        return min(max(covariance / variance, 0.0), 1.0) if self._labels >= LEAST and variance > 0.0 else 0.0

    def adjust(self, baselines: list[Labelled], canaries: list[Labelled]) -> Adjusted:
        """A block's scores, moved by what was learnt before it."""
        b, p_x, p_y = self.b, self._moments["baseline"][2], self._moments["canary"][2]
        xs, x_rests = zip(*(_moved(item, b, p_x) for item in baselines), strict=True)
        ys, y_rests = zip(*(_moved(item, b, p_y) for item in canaries), strict=True)
        k = len(canaries)
        y, rest = sum(ys) / k, sum(y_rests) / k
        slack = (b * p_y, b * (1.0 - p_y), b * p_x, b * (1.0 - p_x))
        left_x = sum(self._left(item, b) for item in baselines) / len(baselines)
        left_y = sum(self._left(item, b) for item in canaries) / k
        plain = Block([x + e for x, e in zip(xs, x_rests, strict=True)], y + rest, k)
        return Adjusted(Block(list(xs), y, k), Residuals(rest, list(x_rests), slack), plain, (left_x + left_y) / 2.0)

    def _left(self, item: Labelled, b: float) -> float:
        """Share of a score's variance that is left after the move."""
        variance_y, variance_f, covariance = self._sums
        if item.f is None or not item.n or not b or not variance_y > 0.0:
            return 1.0
        share = b * item.n / (item.n + 1)
        taken = share * share * variance_f * (item.n + 1) / item.n - 2.0 * share * covariance
        return max(1.0 + taken / variance_y, _FLOOR)

    def learn(self, items: list[Labelled], variance_ratio: float) -> None:
        """Learn from the scores of a block that is over."""
        for item in items:
            if item.f is None:
                self.unadjusted += 1
                continue
            count, mean_y, mean_f = self._moments[item.arm]
            gain = max(1.0 / (count + 1), _GAIN)
            y, f = item.y - mean_y, item.f - mean_f
            self._moments[item.arm] = (count + 1, mean_y + gain * y, mean_f + gain * f)
            self._labels += 1
            if count:  # the first of an arm tells nothing about its spread
                gain, (a, b, c) = max(1.0 / self._labels, _GAIN), self._sums
                self._sums = (a + gain * (y * y - a), b + gain * (f * f - b), c + gain * (y * f - c))
        if self.b:
            self._ratio += _RATIO_GAIN * (variance_ratio - self._ratio) if self._ratio < 1.0 else variance_ratio - 1.0

    def numbers(self) -> dict[str, Any]:
        """What it gains: ``gain`` times fewer scores are needed than without it."""
        variance_y, variance_f, covariance = self._sums
        spread = sqrt(variance_y * variance_f)
        return {
            "b": self.b,
            "correlation": covariance / spread if spread > 0.0 else None,
            "gain": 1.0 / self._ratio,
            "n": self._labels,
            "unadjusted": self.unadjusted,
            "waiting": len(self._waiting),
        }

    def to_state(self) -> dict[str, Any]:
        """All of it as JSON-safe values."""
        return {
            "signals": {arm: [list(signal) for signal in signals] for arm, signals in self._signals.items()},
            "unscored": {arm: list(unscored) for arm, unscored in self._unscored.items()},
            "epochs": dict(self._epochs),
            "waiting": [list(entry) for entry in self._waiting],
            "watermark": self._watermark,
            "done": dict(self._done),
            "seen": self._seen.to_state(),
            "labels": self._labels,
            "moments": {arm: list(moments) for arm, moments in self._moments.items()},
            "sums": list(self._sums),
            "ratio": self._ratio,
            "unadjusted": self.unadjusted,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> ControlVariate:
        """The inverse of ``to_state``, bit by bit."""
        new = cls()
        for arm, signals in state["signals"].items():
            new._signals[arm].extend((seq, f, fresh) for seq, f, fresh in signals)
        for arm, unscored in state["unscored"].items():
            new._unscored[arm].extend(unscored)
        new._epochs = dict(state["epochs"])
        new._waiting.extend((seq, arm, value) for seq, arm, value in state["waiting"])
        new._done = dict(state["done"])
        new._watermark, new._seen = state["watermark"], SeenUnits.from_state(state["seen"])
        new._labels, new._ratio, new.unadjusted = state["labels"], state["ratio"], state["unadjusted"]
        new._moments = {arm: (moments[0], moments[1], moments[2]) for arm, moments in state["moments"].items()}
        new._sums = (state["sums"][0], state["sums"][1], state["sums"][2])
        return new


def _moved(item: Labelled, b: float, mean: float) -> tuple[float, float]:
    """A score moved by its own signal, and the rest of the move."""
    if item.f is None or not item.n:
        return item.y, 0.0
    share = b * item.n / (item.n + 1)
    return item.y - share * (item.f - mean), share * (item.g - mean)
