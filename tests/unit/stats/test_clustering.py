"""How much scores of one conversation resemble each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.stats.clustering import design_effect


def test_independent_scores_have_no_design_effect():
    """Neither where each is alone, nor in conversations that they do not follow."""
    rng = np.random.default_rng(1)
    values = rng.random(4000).tolist()
    assert design_effect(values, range(4000)) == 1.0
    assert design_effect(values, [i // 4 for i in range(4000)]) == pytest.approx(1.0, abs=0.1)


def test_scores_that_are_all_alike_in_a_conversation_count_as_one():
    """The effect is the size of the conversation that the average score is in."""
    rng = np.random.default_rng(2)
    alike = [value for value in rng.random(1000) for _ in range(4)]
    assert design_effect(alike, [i // 4 for i in range(4000)]) == pytest.approx(4.0)


@pytest.mark.parametrize("icc", [0.1, 0.5])
def test_the_effect_is_the_variance_of_the_mean_that_clusters_cost(icc: float):
    """Against the real variance of means over many samples, with conversations of 1 to 9 scores."""
    rng = np.random.default_rng(3)
    sizes = rng.integers(1, 10, size=300)
    units = np.repeat(np.arange(300), sizes)

    def sample() -> np.ndarray:
        return np.sqrt(icc) * rng.normal(size=300)[units] + np.sqrt(1 - icc) * rng.normal(size=len(units))

    means = [sample().mean() for _ in range(4000)]
    measured = np.mean([design_effect(sample().tolist(), units.tolist()) for _ in range(40)])
    assert measured == pytest.approx(np.var(means) * len(units), rel=0.1)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 5)), max_size=40))
def test_it_is_never_below_one(found: list[tuple[float, int]]):
    """Whatever the scores: also none, and one conversation alone."""
    assert 1.0 <= design_effect([x for x, _ in found], [unit for _, unit in found]) <= max(1, len(found))
