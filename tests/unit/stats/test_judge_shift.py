"""The test that tells whether a judge moved: valid for a year of hourly runs, and quick where it matters."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.stats.attribution import Standing, attribute
from evalpipe.stats.judge_shift import _SHARES, ALPHA, REFERENCE_RUNS, Counts, Direction, JudgeShift

YEAR = 8760
N = 50
AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


def passes(flips: float, *, borderline: bool = False) -> np.ndarray:
    """Chances of a pass of 50 anchors, 20 of them bad, where two runs differ on a share ``flips`` of the anchors.

    Every anchor is a little noisy, or a few are a coin's toss.
    """
    sure = np.where(np.arange(N) < 20, 0.0, 1.0)
    if borderline:
        return np.where(np.arange(N) >= N - round(2 * flips * N), 0.5, sure)
    noise = (1 - math.sqrt(1 - 2 * flips)) / 2
    found: np.ndarray = np.abs(sure - noise)
    return found


def alarms(laws: np.ndarray, *, runs: int, judges: int, seed: int) -> np.ndarray:
    """How many of so many judges of each law, that do not move, are ever suspected by the first key alone."""
    rng, shape = np.random.default_rng(seed), (len(laws), judges, N)
    first = rng.random(shape) < laws[:, None]
    counts, fired = Counts((len(laws), judges, 3)), np.zeros((len(laws), judges), bool)
    for _ in range(runs):
        now = rng.random(shape, dtype=np.float32) < laws[:, None]
        up, down = (now & ~first).sum(-1), (~now & first).sum(-1)
        counts.update(np.stack([up + down, up, down], -1).astype(float), float(N))
        fired |= np.exp(counts.log_e_values()) @ _SHARES >= 1 / ALPHA
    found: np.ndarray = fired.sum(axis=1)
    return found


def found_after(chances: np.ndarray, moved: np.ndarray, *, clean: int, seed: int, most: int = 60) -> int:
    """Runs until a judge that moves after so many clean runs is suspect; ``most`` if it is not until then."""
    rng = np.random.default_rng(seed)
    names, labels = [f"a{i}" for i in range(N)], {f"a{i}": float(i >= 20) for i in range(N)}
    test = JudgeShift()
    for run in range(REFERENCE_RUNS + clean + most):
        law = chances if run < REFERENCE_RUNS + clean else moved
        test.update(dict(zip(names, (rng.random(N) < law).astype(float).tolist(), strict=True)), labels)
        if test.suspect:
            return run + 1 - REFERENCE_RUNS - clean
    return most


def moved_by(chances: np.ndarray, anchors: int) -> np.ndarray:
    """The same judge, but for so many anchors that it passed and now fails."""
    law = chances.copy()
    law[20 : 20 + anchors] = 1 - law[20 : 20 + anchors]
    return law


def test_a_year_of_hourly_runs_suspects_no_more_judges_than_promised() -> None:
    """At most 1 % of the judges that do not move, although the same anchors are graded 8,760 times."""
    laws = np.stack([passes(0), passes(0.02), passes(0.1), passes(0.1, borderline=True)])
    assert alarms(laws, runs=YEAR, judges=50, seed=4).max() <= 1


@pytest.mark.parametrize("clean", [0, 1, 6, 24, 500])
def test_a_judge_without_noise_that_moves_on_a_tenth_of_the_anchors_is_found_in_three_runs(clean: int) -> None:
    """Whether it moves right after the reference or much later."""
    assert found_after(passes(0), moved_by(passes(0), 5), clean=clean, seed=1) <= 3


@pytest.mark.parametrize(("flips", "most"), [(0.02, 8), (0.1, 20)])
def test_a_noisy_judge_is_found_within_runs(flips: float, most: int) -> None:
    """After a day of hourly runs, in the median; its noise hides a part of the movement."""
    law = passes(flips)
    runs = [found_after(law, moved_by(law, 5), clean=24, seed=seed) for seed in range(15)]
    assert np.median(runs) <= most


def test_an_anchor_that_flips_for_good_makes_no_judge_suspect() -> None:
    """It is proven, and too small to hold rollouts."""
    assert found_after(passes(0), moved_by(passes(0), 1), clean=24, seed=1) == 60


@given(
    chances=st.lists(st.floats(0, 1), min_size=1, max_size=30),
    bet=st.floats(0.001, 0.999),
)
def test_no_bet_wins_on_a_judge_that_has_not_moved(chances: list[float], bet: float) -> None:
    """The factor of one run has a mean of at most 1, whatever the noise of each anchor."""
    q = sum(chances) / len(chances)
    if 0 < q < 1:
        factors = [p * bet / q + (1 - p) * (1 - bet) / (1 - q) for p in chances]
        assert math.prod(factors) <= 1 + 1e-9


@given(st.lists(st.integers(0, 10), min_size=1, max_size=8))
def test_the_e_value_is_the_mixture_that_it_says_it_is(distances: list[int]) -> None:
    """Against the sums written out."""
    counts = Counts((1,))
    for distance in distances:
        counts.update(np.array([float(distance)]), 10.0)
    total, grid = sum(distances), (0.03, 0.06, 0.1, 0.15, 0.22, 0.32, 0.5, 0.8)

    def before(s: float, f: float) -> float:
        def beta(a: float, b: float) -> float:
            return math.gamma(a) * math.gamma(b) / math.gamma(a + b)

        return beta(0.1 + s, 1 + f) / beta(0.1, 1)

    n, start = 10 * len(distances), REFERENCE_RUNS - 1
    weights = [1 / math.sqrt(i) for i in range(1, max(0, len(distances) - start) + 2)]
    value = weights[-1] * before(total, n - total)
    for index, (high, low) in enumerate(pairwise(weights)):
        s, cut = sum(distances[: start + index]), 10 * (start + index)
        after = sum(g ** (total - s) * (1 - g) ** (n - cut - total + s) for g in grid) / len(grid)
        value += (high - low) * before(s, cut - s) * after
    best = (total / n) ** total * (1 - total / n) ** (n - total)
    assert counts.log_e_values()[0] == pytest.approx(math.log(value / best), abs=1e-6)


@given(st.lists(st.dictionaries(st.sampled_from("abcde"), st.none() | st.floats(0, 1)), max_size=12))
def test_a_test_goes_on_after_a_restart_as_if_nothing_happened(runs: list[dict[str, float | None]]) -> None:
    """Its state passes through JSON at every run."""
    labels = dict.fromkeys("abcde", 1.0)
    whole, restarted = JudgeShift(), JudgeShift()
    for run in runs:
        whole.update(run, labels)
        restarted = JudgeShift.from_state(json.loads(json.dumps(restarted.to_state(), allow_nan=False)))
        restarted.update(run, labels)
    assert restarted.to_state() == whole.to_state()


def judged(after: list[float | None], first: list[float | None], runs: int = 30) -> JudgeShift:
    """A test of a judge that said ``first`` for a while, and then ``after``."""
    test, labels = JudgeShift(), {str(i): 1.0 for i in range(len(first))}
    for said in [first] * runs + [after] * 5:
        test.update({str(i): value for i, value in enumerate(said)}, labels)
    return test


@pytest.mark.parametrize(
    ("first", "after", "direction", "shift"),
    [
        ([1.0] * 40, [0.0] * 10 + [1.0] * 30, "stricter", -0.25),
        ([0.0] * 20 + [1.0] * 20, [0.5] * 20 + [1.0] * 20, "more lenient", 0.25),
        ([0.0] * 20 + [1.0] * 20, [1.0] * 5 + [0.0] * 15 + [0.0] * 5 + [1.0] * 15, "noisier", 0.0),
        ([1.0] * 40, [None] * 10 + [1.0] * 30, "noisier", 0.0),
    ],
)
def test_the_direction_of_a_movement_is_told(
    first: list[float | None], after: list[float | None], direction: Direction, shift: float
) -> None:
    """Stricter, more lenient, or neither: grades that swap, and a judge that begins to abstain."""
    test = judged(after, first)
    assert test.suspect
    assert test.movement.direction == direction
    assert test.movement.shift == pytest.approx(shift, abs=0.01)


def test_the_drift_is_told_as_grades_that_differ_and_a_change_of_the_mean() -> None:
    """Of the grades that were given, against the reference; it outlives a restart."""
    test = JudgeShift()
    test.update(dict.fromkeys("abcd", 1.0), dict.fromkeys("abcd", 1.0))
    test.update({"a": 0.0, "b": 0.5, "c": None, "d": 1.0}, dict.fromkeys("abcd", 1.0))
    test.update({"a": 1.0, "b": 1.0}, dict.fromkeys("abcd", 1.0))
    for found in (test, JudgeShift.from_state(json.loads(json.dumps(test.to_state())))):
        assert (found.drift.runs, found.drift.n) == (2, 6)
        assert found.drift.share == pytest.approx(3 / 6)
        assert found.drift.shift == pytest.approx(-1.5 / 6)


def test_a_failed_call_is_no_evidence() -> None:
    """Anchors without a grade count for nothing, and an anchor's first grade is its reference."""
    test = JudgeShift()
    for run in [{"a": 1.0}, {}, {"b": 0.0}, {"a": 1.0}, {}, {"a": 1.0, "b": 0.0}]:
        test.update(run, {"a": 1.0, "b": 1.0})
    assert test.reference == {"a": 1.0, "b": 0.0}
    assert [run.n for run in test.runs] == [1, 2]
    assert not test.suspect
    assert test.agreement == 1.0


def standing(state: str = "healthy", n: int = 50, shift: float = 0.0) -> Standing:
    """A judge that was tested at noon."""
    return Standing("openai:m/abc", state, n, AT, AT + timedelta(hours=2), shift, "stricter" if shift < 0 else "")


@pytest.mark.parametrize(
    ("judge", "gap", "minutes", "origin", "words"),
    [
        (
            standing(),
            -0.1,
            12,
            "product",
            "the judge's anchors have not moved (50 graded 12 min ago): the product moved",
        ),
        (standing("suspect", shift=-0.2), -0.1, 1, "judge", "explains it: the judge moved"),
        (standing("suspect", shift=-0.05), -0.4, 1, "both", "the judge and the product moved"),
        (standing("suspect", shift=-0.1), -0.15, 1, "judge", "whether the product moved too is unknown"),
        (standing(shift=-0.08), -0.1, 1, "unknown", "moved by -0.08, which is not proven yet"),
        (standing(shift=-0.03), -0.1, 1, "product", "the product moved"),
        (standing("suspect", shift=0.2), -0.1, 1, "both", "the judge and the product moved"),
        (standing("suspect", shift=0.2), 0.1, 1, "judge", "explains it: the judge moved"),
        (standing(n=7), -0.1, 1, "unknown", "7 anchors of at least 20"),
        (standing(), -0.1, 121, "unknown", "its anchors were graded 2 h ago"),
        (standing("unknown"), -0.1, 1, "unknown", "no reference yet"),
        (None, -0.1, 1, "unknown", "it has no graded anchors"),
    ],
)
def test_a_movement_is_laid_at_the_door_of_judge_or_product(
    judge: Standing | None, gap: float, minutes: int, origin: str, words: str
) -> None:
    """And at nobody's where too little is known."""
    found = attribute(judge, gap, AT + timedelta(minutes=minutes))
    assert found.origin == origin
    assert words in found.words


@pytest.mark.parametrize(("since", "origin"), [(-1, "product"), (0, "product"), (1, "unknown")])
def test_anchors_graded_before_the_scores_say_nothing_of_them(since: int, origin: str) -> None:
    """A judge that moved after its last run made the series fall: "the product moved" would be wrong."""
    found = attribute(standing(), -0.1, AT + timedelta(minutes=12), AT + timedelta(minutes=since))
    assert found.origin == origin
    assert ("were graded 12 min ago, before most of these scores" in found.words) == (origin == "unknown")
