"""The bounded memory of units."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from evalpipe.stats.seen import SeenUnits


@given(st.lists(st.text(max_size=6), max_size=200))
def test_a_known_unit_is_never_new(units):
    """Also after going through JSON between any two."""
    seen, known = SeenUnits(), set()
    for unit in units:
        if unit in known:
            assert not seen.add(unit)
        known.add(unit)
        seen.add(unit)
        seen = SeenUnits.from_state(json.loads(json.dumps(seen.to_state())))


def test_few_new_units_are_taken_for_known():
    """Below one in a hundred of 20,000, and the memory is bounded for any number."""
    seen = SeenUnits()
    new = sum(seen.add(f"user-{i}") for i in range(20_000))
    assert new >= 19_800
    late = sum(seen.add(f"late-{i}") for i in range(60_000))
    assert late >= 57_600
    assert len(json.dumps(seen.to_state())) < 100_000
    assert not seen.add("late-59999")
    assert not seen.add("late-30000")
