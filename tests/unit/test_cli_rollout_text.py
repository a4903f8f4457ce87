"""A rollout in the terminal: bars of evidence and intervals, by characters."""

from __future__ import annotations

from typing import Any

import pytest

from evalpipe.cli.rollout_plot import progress
from evalpipe.cli.rollout_text import GAUGE, bar, change, place_in_ramp, span, standing


def gate(estimate: float | None, low: float | None, high: float | None, margin: float = -0.05) -> dict[str, Any]:
    """The numbers of a gate that an interval is drawn of."""
    return {"estimate": estimate, "interval": {"low": low, "high": high}, "margin": margin, "relative": True}


@pytest.mark.parametrize(
    ("value", "full"), [(None, 0), (0.0, 0), (0.01, 0), (1.0, 0), (20.0, 5), (399.0, 9), (400.0, 10), (1e9, 10)]
)
def test_a_bar_grows_with_the_logarithm_and_is_full_where_harm_is_proven(value: float | None, full: int):
    """Evidence below 1 is none; half of the way is the square root of what is needed."""
    assert bar(value, 400.0) == "█" * full + "·" * (10 - full)
    assert progress(value, 400.0) == pytest.approx(full / 10, abs=0.11)
    assert bar(value, None) == "·" * 10


def test_an_interval_shows_the_estimate_the_margin_and_no_change():
    """The margin is at three fifths; what is farther out than the scale stands at its end."""
    assert span(gate(0.0, -0.05, 0.05)) == "    ┃─────●──────    "
    assert span(gate(-0.05, -0.07, -0.03)) == "  ──●──   │          "
    assert span(gate(0.9, 0.5, None, margin=0.2)) == "          │     ┃   ●".replace("┃   ●", "┃   ●")
    assert span(gate(None, None, None)) == "    ┃     │          "
    assert {len(span(gate(x, x, None))) for x in (-9.0, -0.01, 0.0, 9.0)} == {GAUGE}


def test_changes_have_a_sign_and_their_unit():
    """A share of the baseline, or points; unknown is a question mark."""
    assert change(-0.0123, {"relative": True}) == "-1.2%"
    assert change(0.0123, {"relative": False}) == "+0.0123"
    assert change(None, {"relative": True}) == "?"


def test_where_a_rollout_is_is_told_in_words():
    """Step of how many, share of the traffic, and what became of a rollback."""
    row = {"plan": {"steps": [1, 2, 3]}, "step": 1, "phase": "rolled_back", "percent": 0.0, "verified": "ineffective"}
    assert place_in_ramp(row) == "2/3"
    assert place_in_ramp({**row, "plan": {"steps": []}}) == ""
    assert standing(row) == "rolled back, 0 % of the traffic, the meters still count its calls"
    assert standing({**row, "phase": "running", "percent": None, "verified": ""}) == "running"
