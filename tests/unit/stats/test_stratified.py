"""The permutation test over strata."""

from __future__ import annotations

import numpy as np
import pytest

from evalpipe.stats.stratified import Stratum, beyond_noise, least_p, p_value


def strata(rng: np.random.Generator, shift: float, *, n: int = 15, current: int = 3) -> list[Stratum]:
    """Twelve strata of lognormal numbers, each with a centre of its own; ``shift`` in log units."""
    found = []
    for centre in rng.uniform(1, 6, 12):
        rows = np.exp(centre + 0.3 * rng.standard_normal(n))
        rows[n - current :] *= np.exp(shift)
        found.append(Stratum(rows[: n - current], rows[n - current :]))
    return found


def test_equal_stretches_are_told_apart_as_rarely_as_the_level_says() -> None:
    """A test at 10 % on 300 pairs without a difference rejects about 30."""
    found = [p_value(strata(np.random.default_rng(seed), 0.0), level=0.1, seed=seed) <= 0.1 for seed in range(300)]
    assert 14 <= sum(found) <= 48


def test_a_shift_in_all_strata_is_found_at_a_level_of_one_in_ten_thousand() -> None:
    """Strata add up: each alone has 3 runs, which could not show it."""
    assert p_value(strata(np.random.default_rng(7), 0.5), level=1e-4, seed=1) <= 1e-4


def test_shifts_in_opposite_directions_do_not_cancel() -> None:
    """Half of the prompts are answered at greater length, half shorter."""
    up, down = (strata(np.random.default_rng(3), s) for s in (0.6, -0.6))
    assert p_value([*up[:6], *down[6:]], level=1e-3, seed=1) <= 1e-3


def test_one_loud_stratum_does_not_drown_the_others() -> None:
    """The first stratum's numbers are a million times the others', and have not moved."""
    quiet = strata(np.random.default_rng(5), 0.5)
    loud = strata(np.random.default_rng(6), 0.0)[0]
    assert p_value([Stratum(loud.reference * 1e6, loud.current * 1e6), *quiet[1:]], level=1e-3, seed=1) <= 1e-3


def test_runs_that_are_all_equal_show_nothing() -> None:
    """A model that always gives the same answer has not changed, and neither has nothing at all."""
    same = Stratum(np.ones(5), np.ones(3))
    assert p_value([same], level=0.01, seed=1) == 1.0
    assert p_value([], level=0.01, seed=1) == 1.0
    assert p_value([Stratum(np.ones(5), np.ones(0))], level=0.01, seed=1) == 1.0


def test_the_same_seed_gives_the_same_p_value() -> None:
    """An evaluation that is repeated says the same."""
    found = strata(np.random.default_rng(1), 0.1)
    assert p_value(found, level=0.01, seed=9) == p_value(found, level=0.01, seed=9)


def test_what_chance_makes_of_a_distance_is_taken_off() -> None:
    """Three runs of twenty strata that have not moved are far apart by chance, and by nothing else."""
    rng = np.random.default_rng(5)
    equal = [Stratum(rng.standard_normal(12), rng.standard_normal(3)) for _ in range(200)]
    moved = [Stratum(reference, current + 2.0) for reference, current in equal]
    assert beyond_noise(equal) < 0.2
    assert beyond_noise(moved) == pytest.approx(4.0 / (4.0 + 1 / 12 + 1 / 3), abs=0.05)
    assert beyond_noise([Stratum(np.ones(3), np.ones(3))]) == 0.0


def test_few_runs_of_few_strata_cannot_be_unlikely() -> None:
    """One of 455 ways to choose 3 of 15, and one of 455 squared in two strata."""
    assert least_p([(12, 3)]) == pytest.approx(1 / 455)
    assert least_p([(12, 3), (12, 3)]) == pytest.approx(1 / 455**2)
    assert least_p([]) == 1.0
