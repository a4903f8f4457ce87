"""Two windows burn too fast, and it is not chance."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from metered_world import PLACE, START

from evalpipe.detectors.burn_rate import BurnRate, BurnRateParams, Pair, log_tail
from evalpipe.detectors.view import Stretch
from evalpipe.errors import ConfigError
from evalpipe.rollup import Rollup

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


@dataclass
class Scored:
    """So many scores in windows up to a length, and how many of them failed."""

    windows: dict[timedelta, tuple[int, int]]
    at: datetime = START
    place: Any = PLACE

    def scores(self, criterion: str, since: datetime, until: datetime) -> Stretch | None:
        """Of the longest window that fits."""
        n, failed = max((v for k, v in self.windows.items() if k <= until - since), default=(0, 0))
        rollup = Rollup(n_scored=n, bins={0: failed, 51: n - failed})
        return Stretch(criterion, "e", rollup) if n else None


def look(scored: dict[timedelta, tuple[int, int]], **params: Any) -> Any:
    """One look."""
    return BurnRate(BurnRateParams(criterion="grounded", **params)).look(Scored(scored), {})[1]


def test_it_fires_where_both_windows_burn_too_fast():
    """And ends when the short one no longer does."""
    finding = look({5 * MINUTE: (100, 60), HOUR: (1000, 600)})
    assert (finding.violated, finding.value, finding.n) == (True, 0.4, 1000)
    assert finding.ratio == pytest.approx(6.0)
    assert "grounded: 600 of 1000 failed in 1h, 60 of 100 in 5m" in finding.reason
    assert look({5 * MINUTE: (100, 2), HOUR: (1000, 600), 6 * HOUR: (6000, 700)}).violated is False


def test_a_burn_rate_that_cannot_be_is_refused_with_the_greatest_that_can():
    """Of an objective of 90 % the budget burns ten times too fast if all fail."""
    windows = [{"short": "5m", "long": "1h", "burn": 14.4}]
    with pytest.raises(ConfigError, match=r"14\.4 cannot be with an objective of 0\.9: if all fail, it is 10"):
        BurnRate(BurnRateParams.model_validate({"criterion": "c", "objective": "90%", "windows": windows}))
    BurnRate(BurnRateParams.model_validate({"criterion": "c", "objective": "99%", "windows": windows}))
    BurnRate(BurnRateParams(criterion="c", objective=0.5))
    with pytest.raises(ConfigError, match="100% has no budget"):
        BurnRate(BurnRateParams(criterion="c", objective=1.0))
    with pytest.raises(ConfigError, match="must be at least 1m and less than long"):
        BurnRate(BurnRateParams.model_validate(
            {"criterion": "c", "windows": [{"short": "1h", "long": "5m", "burn": 2.0}]}))  # fmt: skip


def test_little_traffic_neither_hides_nor_makes_an_alarm():
    """Too few scores are no rate; a short window without enough of them is as long as it takes."""
    assert look({HOUR: (10, 10)}).violated is None
    assert look({HOUR: (0, 0)}).violated is None
    found = look({5 * MINUTE: (1, 0), 20 * MINUTE: (40, 40), HOUR: (60, 59)})
    assert (found.violated, found.numbers["short_s"]) == (True, 1200.0)
    chance = look({5 * MINUTE: (30, 5), HOUR: (30, 5)}, windows=(Pair(short=5 * MINUTE, long=HOUR, burn=1.5),))
    assert (chance.violated, chance.ratio) == (False, pytest.approx(5 / 3))


def test_the_bound_holds_and_is_close():
    """Chernoff's, against sums of a binomial's terms."""
    assert log_tail(100, 10, 0.1) == log_tail(0, 0, 0.1) == 0.0
    assert log_tail(10, 10, 0.5) == pytest.approx(-6.93, abs=0.01)
    assert -20.0 < log_tail(100, 30, 0.1) < -14.0


ONE = [{"short": "10m", "long": "1h", "burn": 1.0}]


def test_what_began_lasts_until_it_may_be_chance_after_all():
    """A window that slides over the bound and back is one alarm, not one for each look."""
    detector = BurnRate(BurnRateParams.model_validate({"criterion": "grounded", "windows": ONE}))
    surely, nearly = {10 * MINUTE: (170, 30), HOUR: (1000, 145)}, {10 * MINUTE: (170, 30), HOUR: (1000, 140)}
    assert detector.look(Scored(nearly), {})[1].violated is False
    state, finding = detector.look(Scored(surely), {})
    assert finding.violated is True
    state, finding = detector.look(Scored(nearly), state)
    assert finding.violated is True
    state, finding = detector.look(Scored({10 * MINUTE: (170, 30), HOUR: (1000, 110)}), state)
    assert finding.violated is False
    assert detector.look(Scored(nearly), state)[1].violated is False


def test_a_short_window_that_may_be_chance_begins_nothing():
    """A burn rate of 1 is what an objective that is just kept has, half of the time."""
    detector = BurnRate(BurnRateParams.model_validate({"criterion": "grounded", "windows": ONE}))
    assert detector.look(Scored({10 * MINUTE: (170, 20), HOUR: (1000, 145)}), {})[1].violated is False
