"""Points of charts are what their scores add up to, and bulk sums are those of one score after the other."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from evalpipe.rollup import SUMS, Rollup
from evalpipe.score import Score, Status
from evalpipe.store import levels, series, tallies
from evalpipe.store.points import points
from evalpipe.store.series import Entry, Series
from evalpipe.store.sql import Store
from evalpipe.store.tallies import Tally

NOW = datetime(2026, 3, 4, 12, 30, 20, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
OF = Series("desk", "chat", "production", "baseline", "rel", "support", "c1", "e1")
STATUSES = (Status.SCORED, Status.SKIPPED, Status.ABSTAINED, Status.ERROR)


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    """A store on a migrated database."""
    opened = Store(migrated_url)
    yield opened
    opened.close()


def entries(n: int) -> list[Entry]:
    """Of several lines and series, over three days; one minute has more of a value than a byte counts."""
    dice = random.Random(7)
    found = []
    for i in range(n):
        feature, arm = dice.choice(["chat", "mail"]), dice.choice(["served", "served", "shadow"])
        of = replace(OF, feature=feature, arm=arm, epoch=dice.choice(["e1", "e2"]), criterion="c1" if i % 3 else "c2")
        score = Score(Status.SCORED, dice.choice([0.0, 1.0, dice.random()]))
        at = NOW - timedelta(minutes=70 if i % 2 else dice.uniform(0, 4_320))
        found.append(Entry(f"r-{i}", "v1", of, at, score, dice.uniform(1, 50) / 3, "s"))
    return found


@pytest.mark.parametrize("width", [timedelta(minutes=m) for m in (1, 7, 15, 60, 180, 1_440, 10_080)])
def test_points_are_what_their_scores_add_up_to(store: Store, width: timedelta) -> None:
    """At whatever levels they are read, to the last bit, by line and in order of time; shadows are no part of them."""
    batch = entries(2_500)
    since, until = NOW - timedelta(hours=50), NOW - timedelta(minutes=9)
    expected: dict[tuple[str, str], dict[datetime, Rollup]] = {}
    for e in batch:
        minute = e.captured_at.replace(second=0, microsecond=0)
        if e.series.criterion == "c1" and e.series.arm == "served" and since <= minute < until:
            line = expected.setdefault((e.series.criterion, e.series.epoch), {})
            line.setdefault(EPOCH + (minute - EPOCH) // width * width, Rollup()).add(e.score, e.weight)
    with store.begin() as tx:
        series.add_scores(tx, batch, NOW)
    with store.read() as tx:
        found = points(tx, since, until, width, ("criterion", "epoch"), criterion="c1")
        assert points(tx, NOW, None, width, ("epoch",), criterion="nothing") == []
    assert {line.key for line in found} == expected.keys()
    for line in found:
        wanted = expected[line.key]
        assert line.starts == sorted(wanted)
        assert line.rollups() == [replace(wanted[at], bins={}) for at in line.starts]
        for q in (0.0, 0.5, 0.99, 1.0):
            assert line.quantile(q) == [wanted[at].quantile(q) for at in line.starts]


def test_sums_in_bulk_are_those_of_one_score_after_the_other() -> None:
    """Weights of nothing, costs, every status, and counts that need more than a byte."""
    rng = np.random.default_rng(3)
    n = 6_000
    cell, status = rng.integers(0, 5, n), rng.choice(4, n, p=[0.85, 0.05, 0.05, 0.05])
    value = np.where(status == 0, rng.choice([0.0, 1.0, 0.5, 0.02, 0.9999], n), np.nan)
    weight, cost = rng.choice([0.0, 1.0, 50 / 3, 0.1], n), rng.choice([0.0, 1e-4 / 3], n)
    expected = [Rollup() for _ in range(5)]
    for c, s, v, w, usd in zip(*(a.tolist() for a in (cell, status, value, weight, cost)), strict=True):
        expected[c].add(Score(STATUSES[s], None if s else v), w, usd)
    parts = [Tally.of(*(a[i::3] for a in (cell, status, value, weight, cost))) for i in range(3)]
    whole = Tally.merged(parts)
    keys = [(NOW, str(c)) for c in whole.cells.tolist()]
    names = ("bucket_at", "series_id", *SUMS, "bins")
    assert [dict(zip(names, row, strict=True)) for row in whole.rows(keys).values()] == [
        levels.row_of(key, rollup) for key, rollup in zip(keys, expected, strict=True)
    ]
    assert whole.n == n
    assert Tally.merged([whole], 5).rows([keys[0]])[keys[0]][2] == sum(r.n_scored for r in expected)


def test_histograms_in_bulk_have_the_same_bytes() -> None:
    """At both sides of each width's end."""
    most = [0, 1, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**40]
    bins = np.zeros((len(most), levels.CELLS), np.int64)
    bins[:, 7], bins[1:, 9] = most, 1
    packed = tallies.written(bins)
    assert packed == [levels.write_bins({i: c for i, c in enumerate(row) if c}) for row in bins.tolist()]
    assert (tallies.read(packed) == bins).all()
