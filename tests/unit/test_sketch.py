"""The quantile sketch: what it promises, on distributions as latencies have them."""

from __future__ import annotations

import json
import math
import random
from bisect import bisect_left, bisect_right

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.errors import RecordError
from evalpipe.sketch import ACCURACY, LARGEST, Sketch

RANDOM = random.Random(20260101)
VALUES = {
    "lognormal": lambda: RANDOM.lognormvariate(6.5, 0.6),
    "exponential": lambda: RANDOM.expovariate(1 / 800),
    "uniform": lambda: RANDOM.uniform(100, 2000),
    "bimodal": lambda: RANDOM.gauss(300, 20) if RANDOM.random() < 0.7 else RANDOM.gauss(4000, 300),
    "pareto": lambda: 50 * RANDOM.paretovariate(1.2),
    "narrow": lambda: RANDOM.gauss(1000, 40),
}


def sketch_of(values):
    """A sketch that holds ``values``."""
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    return sketch


@pytest.mark.parametrize("name", VALUES)
def test_the_p99_has_a_rank_error_of_at_most_one_percent(name):
    """The reported p99 lies between the true p98 and the true maximum, as do p50 and p90 to one percent."""
    values = sorted(VALUES[name]() for _ in range(20_000))
    sketch = sketch_of(values)
    for q in (0.5, 0.9, 0.99):
        got = sketch.quantile(q)
        low, high = bisect_left(values, got) / len(values), bisect_right(values, got) / len(values)
        assert low - 0.01 <= q <= high + 0.01


@given(st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=200), st.floats(0, 1))
def test_every_quantile_is_within_half_a_percent_of_a_value_that_was_added(values, q):
    """Whatever the distribution, a reported value is a true one to the sketch's accuracy."""
    got = sketch_of(values).quantile(q)
    assert min(abs(got - value) / value for value in values) <= 2 * ACCURACY + 1e-9


@given(st.lists(st.floats(0, 1e6), max_size=60), st.lists(st.floats(0, 1e6), max_size=60))
def test_merging_two_sketches_is_the_same_as_adding_all_values_to_one(left, right):
    """Processes can be merged in any order."""
    merged = sketch_of(left)
    merged.merge(sketch_of(right))
    whole = sketch_of([*left, *right])
    assert merged.count == whole.count
    assert merged.total == pytest.approx(whole.total)
    assert [merged.quantile(q) for q in (0.0, 0.5, 0.99, 1.0)] == [whole.quantile(q) for q in (0.0, 0.5, 0.99, 1.0)]


@given(st.lists(st.floats(0, 1e12), max_size=80))
def test_the_wire_form_survives_json(values):
    """What is read back reports the same."""
    sketch = sketch_of(values)
    again = Sketch.from_wire(json.loads(json.dumps(sketch.to_wire())))
    assert again.to_wire() == sketch.to_wire()
    assert again.count == len(values)
    assert again.quantile(0.99) == sketch.quantile(0.99)


def test_an_empty_sketch_knows_no_quantile_and_no_mean():
    """Unknown is not zero."""
    assert Sketch().quantile(0.5) is None
    assert Sketch().mean is None


def test_odd_values_are_counted_or_left_out_as_documented():
    """Zero and less count as zero, too large ones as the largest, NaN not at all."""
    sketch = sketch_of([0.0, -5.0, math.inf, math.nan])
    assert sketch.count == 3
    assert (sketch.low, sketch.high) == (0.0, LARGEST)
    assert sketch.quantile(0.5) == 0.0


def test_the_sketch_stays_small_over_any_range_of_values():
    """Values over sixteen orders of magnitude take a bounded number of bins."""
    sketch = sketch_of(10 ** RANDOM.uniform(-6, 10) for _ in range(50_000))
    assert len(sketch.to_wire()["keys"]) < 4000


@pytest.mark.parametrize("wire", [None, {}, {"accuracy": 0.01}, {"accuracy": ACCURACY, "keys": [1], "counts": []}])
def test_a_damaged_sketch_is_a_record_error(wire):
    """Workers keep it as a dead letter instead of failing."""
    with pytest.raises(RecordError):
        Sketch.from_wire(wire)
