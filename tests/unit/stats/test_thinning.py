"""Thinning: a day's money lasts the day, whatever the traffic, and estimates stay unbiased."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.stats.thinning import AHEAD, BURST_S, LEAST, LESS_URGENT_SHARE, MOST_FALL, decide, keep_probability
from evalpipe.store.spend import Row

DAY = 86_400.0
usd = st.floats(0, 1e4)
rates = st.floats(0, 10)


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_what_is_kept_at_a_smaller_share_is_kept_at_a_larger_one(unit: str, a: float, b: float) -> None:
    """So a share that moves does not choose anew."""
    assert decide(unit, max(a, b)) or not decide(unit, min(a, b))
    assert decide(unit, 1.0)
    assert not decide(unit, 0.0)


@pytest.mark.parametrize("p", [0.01, 0.2, 0.7])
def test_the_share_that_is_kept_is_the_share_that_was_asked_for(p: float) -> None:
    """Over ids as works have them."""
    n = 40_000
    kept = sum(decide(hashlib.sha256(str(i).encode()).hexdigest()[:32], p) for i in range(n))
    assert abs(kept / n - p) < 4 * math.sqrt(p * (1 - p) / n)


@given(usd, usd, usd, st.floats(0, DAY), rates, rates, st.floats(LEAST, 1))
def test_a_share_is_one_and_falls_smoothly(
    cap: float, spent: float, reserved: float, left_s: float, need: float, urgent_need: float, before: float
) -> None:
    """From 0.01 to 1, and it never falls by more than a factor of 2 at a time."""
    p = keep_probability(
        cap=cap, spent=spent, reserved=reserved, left_s=left_s, need=need, urgent_need=urgent_need, before=before
    )
    assert LEAST <= p <= 1.0
    assert p >= before / MOST_FALL * (1 - 1e-12)


@given(st.floats(1, 1e4), st.floats(0, 1), st.floats(60, DAY), st.floats(0, 5), st.floats(0, 1))
def test_what_is_kept_costs_no_more_than_what_is_left(
    cap: float, share: float, left_s: float, overload: float, urgent: float
) -> None:
    """At this need until the end of the day, but for what is there for bursts; and all is kept where all fits."""
    left = LESS_URGENT_SHARE * cap * (1 - share)
    need = overload * left / left_s
    urgent_need = urgent * left / left_s
    p = keep_probability(cap=cap, spent=LESS_URGENT_SHARE * cap * share, reserved=0, left_s=left_s, need=need,
                         urgent_need=urgent_need, before=0.5)  # fmt: skip
    for_bursts = max(0.0, left - (LESS_URGENT_SHARE - AHEAD) * cap * left_s / DAY)
    if LEAST < p < 1.0 and p > 0.25:  # else it is held back by how far a share may fall at a time
        assert p * need + urgent_need <= left / left_s * (1 + 1e-9) + for_bursts / BURST_S
    if need + urgent_need <= left / left_s * (1 - 1e-9):
        assert p == 1.0


def test_a_cap_that_was_raised_ends_the_thinning_at_once() -> None:
    """From 2 to 500 US dollars, with records thinned to a quarter."""
    usual = {"spent": 1.5, "reserved": 0.0, "left_s": DAY / 3, "need": 1e-4, "urgent_need": 0.0, "before": 0.25}
    assert keep_probability(cap=2.0, **usual) < 0.25
    assert keep_probability(cap=500.0, **usual) == 1.0


class Day:
    """One simulated day: what is asked for, what is judged, what is paid.

    Args:
        rng: seeds it.
        overload: traffic over what 80 % of the cap pays for.
        n: works that the day brings.
        every_s: pause between updates of the share.
        burst: traffic of one hour is so many times as much.
    """

    def __init__(
        self, rng: np.random.Generator, *, overload: float, n: int, every_s: float = 60.0, burst: float = 1.0
    ) -> None:
        minutes = np.arange(1440)
        shape = 1 + 0.8 * np.sin(2 * np.pi * (minutes - 480) / 1440)
        shape[840:900] *= burst
        steps = int(DAY / every_s)
        at = np.sort(rng.choice(1440, size=n, p=shape / shape.sum()) + rng.random(n)) * 60
        costs = rng.lognormal(0, 0.6, n)
        self.cap = costs.sum() / overload / LESS_URGENT_SHARE
        # Quality drifts over the day: whoever judged only the morning would get another mean.
        self.scores = np.clip(rng.normal(0.6 + 0.3 * np.sin(2 * np.pi * at / DAY), 0.1), 0, 1)
        hashes = rng.random(n)
        self.weights = np.zeros(n)
        self.shares: list[float] = []
        self.spent, self.last_s = 0.0, 0.0
        edges = np.searchsorted(at, np.arange(steps + 1) * every_s)
        row = Row(0.0, 0.0, 1.0, 0.0, 0.0, 0.0, {"at": 0.0})
        for step in range(steps):
            a, b = int(edges[step]), int(edges[step + 1])
            chosen = np.flatnonzero(hashes[a:b] < row.keep) + a
            paid = np.cumsum(costs[chosen]) + self.spent
            fits = chosen[paid <= LESS_URGENT_SHARE * self.cap]
            if len(fits):
                self.spent, self.last_s = float(paid[len(fits) - 1]), float(at[fits[-1]])
            self.weights[fits] = 1.0 / row.keep
            row.wanted += float(costs[a:b].sum())
            row.spent = row.granted = self.spent
            row.measure((step + 1) * every_s)
            row.keep = keep_probability(cap=self.cap, spent=self.spent, reserved=0.0, left_s=DAY - (step + 1) * every_s,
                                        need=row.asked("wanted"), urgent_need=0.0, before=row.keep)  # fmt: skip
            self.shares.append(row.keep)

    @property
    def covered(self) -> bool:
        """Whether the 95 % interval around the weighted mean has the mean of all works in it."""
        judged = self.weights > 0
        w, x = self.weights[judged], self.scores[judged]
        mean = float(np.average(x, weights=w))
        # The works of the day are all there are: only chance in the choice is between the two means.
        error = math.sqrt(float(np.sum(w * (w - 1) * (x - mean) ** 2))) / float(w.sum())
        return abs(mean - float(self.scores.mean())) <= 1.96 * error


@pytest.mark.parametrize("overload", [1.5, 5.0, 30.0])
@pytest.mark.parametrize("burst", [1.0, 20.0])
def test_the_money_lasts_the_day(overload: float, burst: float) -> None:
    """Too much traffic by day and night, also with an hour of twenty times as much."""
    for seed in range(3):
        day = Day(np.random.default_rng(seed), overload=overload, n=60_000, burst=burst)
        assert day.spent <= LESS_URGENT_SHARE * day.cap
        assert day.last_s >= 0.95 * DAY
        if burst == 1.0:  # else most of the day's work comes in that hour, and some money is kept for the rest
            assert day.spent >= 0.9 * LESS_URGENT_SHARE * day.cap


@pytest.mark.parametrize("hour", [0.0, 9.0, 23.5])
@pytest.mark.parametrize(("of_cap", "lasts_s"), [(0.01, 45.0), (0.05, 600.0)])
def test_a_burst_in_an_empty_day_is_not_thinned(hour: float, of_cap: float, lasts_s: float) -> None:
    """A hundredth of the cap in one go, or a twentieth within minutes: an even day would pay for more."""
    row, at = Row(0.0, 0.0, 1.0, 0.0, 0.0, 0.0, {}), hour * 3600
    shares = []
    for step in range(40):
        asked = of_cap / (lasts_s / 45) if step * 45 < lasts_s else 0.0
        row.wanted += 6 * asked  # worst cases
        row.granted += 6 * asked
        row.spent += asked
        row.measure(at := at + 45)
        need = row.asked("wanted") * (row.real or 0.0)
        row.keep = keep_probability(cap=1.0, spent=row.spent, reserved=0.0, left_s=DAY - at, need=need, urgent_need=0.0,
                                    before=row.keep)  # fmt: skip
        shares.append(row.keep)
    assert set(shares) == {1.0}


def test_thinning_ends_soon_after_an_hour_of_thirty_times_too_much() -> None:
    """All is judged again within the hour, with traffic that a whole day's money would pay for twice over."""
    even = LESS_URGENT_SHARE / DAY
    row, minutes, shares = Row(0.0, 0.0, 1.0, 0.0, 0.0, 0.0, {}), 0, []
    for minutes in range(1, 600):
        asked = 60 * even * (30.0 if 240 <= minutes < 300 else 0.5)
        row.wanted += asked
        row.spent += asked * row.keep
        row.granted = row.spent
        row.measure(minutes * 60.0)
        row.keep = keep_probability(cap=1.0, spent=row.spent, reserved=0.0, left_s=DAY - minutes * 60,
                                    need=row.asked("wanted"), urgent_need=0.0, before=row.keep)  # fmt: skip
        shares.append(row.keep)
    assert set(shares[:239]) == {1.0}
    assert min(shares) < 0.2
    assert set(shares[360:]) == {1.0}


def test_the_share_does_not_flap() -> None:
    """On a steady day it moves by a few per cent a minute, but for the first minutes and the last hour."""
    day = Day(np.random.default_rng(1), overload=5.0, n=60_000)
    moves = np.abs(np.diff(np.log(day.shares[15:1380])))
    assert float(np.quantile(moves, 0.99)) < 0.15


def test_weighted_means_are_unbiased() -> None:
    """Five times what the cap pays for: the 95 % interval has the truth in it on 93 to 97 % of the days."""
    days = [Day(np.random.default_rng(seed), overload=5.0, n=4_000, every_s=300.0) for seed in range(600)]
    assert 0.93 <= np.mean([day.covered for day in days]) <= 0.97
    # Without weights the busy hours, of which less was kept, would count too little.
    plain = np.mean([day.scores[day.weights > 0].mean() - day.scores.mean() for day in days])
    weighted = np.mean([np.average(day.scores, weights=day.weights) - day.scores.mean() for day in days])
    assert abs(weighted) < 0.002 < abs(plain)
