"""Durations and shares as people write them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.scorecard.values import format_duration, parse_duration, parse_share


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("1h30m", 5400), ("7d", 604_800), ("1d2h3m4s", 93_784), ("0s", 0)],
)
def test_a_duration_is_read_as_it_is_written(text, seconds):
    """Units add up, the largest first."""
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("value", ["", "10", 10, "1 hour", "m", "5m1h", "-5m", "1.5h", "10m\n", None, True, "٣m"])
def test_what_is_not_a_duration_is_refused_with_examples(value):
    """The message shows how to write one."""
    with pytest.raises(ValueError, match="write 90s, 10m, 1h30m or 7d"):
        parse_duration(value)


@given(st.integers(0, 10_000_000))
def test_a_duration_survives_being_written_and_read(seconds):
    """What ``format_duration`` writes, ``parse_duration`` reads."""
    duration = timedelta(seconds=seconds)
    assert parse_duration(format_duration(duration)) == duration


@pytest.mark.parametrize(("value", "share"), [("5%", 0.05), ("5 %", 0.05), ("0.25%", 0.0025), (0.05, 0.05), (1, 1.0)])
def test_a_share_is_a_percentage_or_a_fraction(value, share):
    """Both ways of writing give exactly the same number, and so the same version."""
    assert parse_share(value) == share


@pytest.mark.parametrize("value", [0, -0.1, 1.01, "0%", "101%", float("nan"), "a%", True, None, [5], 10**400])
def test_a_share_outside_its_range_is_refused(value):
    """A share is more than nothing and at most all."""
    with pytest.raises(ValueError, match=r"share|at most 1"):
        parse_share(value)


def test_a_percentage_without_its_sign_is_recognised():
    """Five is not a share, but the person meant one."""
    with pytest.raises(ValueError, match="did you mean 5%"):
        parse_share(5)
