"""Sampling: by trace id, uniform, nested, the same everywhere."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.errors import ConfigError
from evalpipe.hook.sampling import DEFAULT_RATE, SPAN, Sampler, position

IDS = {
    "counted up in decimal": [str(n) for n in range(40_000)],
    "counted up in hex": [f"{n:032x}" for n in range(40_000)],
    "with a prefix and a count": [f"req-2026-01-01-{n:06d}" for n in range(40_000)],
    "every 64th": [f"{n * 64:016x}" for n in range(40_000)],
    "of the hook itself": [f"6f1d2a3b4c5d6e7f{n:016x}" for n in range(40_000)],
}


@pytest.mark.parametrize("name", IDS)
def test_positions_are_uniform_for_ids_as_applications_make_them(name):
    """Chi-square over 64 bins, and the share below 1 %, 2 % and 5 %, as a fair draw would give."""
    positions = [position(trace_id) for trace_id in IDS[name]]
    bins = [0] * 64
    for value in positions:
        bins[value * 64 // SPAN] += 1
    expected = len(positions) / 64
    assert sum((count - expected) ** 2 / expected for count in bins) < 125  # 99.999 % of chi-square with 63 degrees
    for rate in (0.01, 0.02, 0.05):
        share = sum(value < rate * SPAN for value in positions) / len(positions)
        assert abs(share - rate) < 5 * (rate * (1 - rate) / len(positions)) ** 0.5


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_smaller_sample_lies_inside_a_larger_one(trace_id, one, other):
    """A trace kept at 1 % is kept at 5 %, and the probability that is recorded is the rate."""
    low, high = sorted((one, other))
    kept_low, probability = Sampler(low).decide("baseline", trace_id)
    kept_high, _ = Sampler(high).decide("baseline", trace_id)
    assert kept_high or not kept_low
    assert probability == pytest.approx(low, abs=1e-9)


@given(st.text(min_size=1))
def test_rates_zero_and_one_keep_nothing_and_everything(trace_id):
    """The ends of the scale are exact."""
    assert Sampler(1.0).decide("canary", trace_id) == (True, 1.0)
    assert Sampler(0.0).decide("canary", trace_id) == (False, 0.0)


def test_the_decision_is_the_same_in_another_process():
    """No process-wide random seed takes part."""
    code = "from evalpipe.hook.sampling import position; print([position(f'trace-{n}') for n in range(50)])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == str([position(f"trace-{n}") for n in range(50)])


def test_positions_are_what_other_languages_must_compute():
    """Fixed values, so that a change of the hash is seen: it would break a rollout in progress."""
    assert position("4bf92f3577b34da6a3ce929d0e0e4736") == 2_214_643_956
    assert position("Größe") == 3_440_282_501
    assert position("") == 0


def test_a_variant_can_have_its_own_rate():
    """The canary is captured fully beside a sampled baseline; others get the default."""
    sampler = Sampler({"canary": 1.0, "baseline": 0.02})
    assert sampler.decide("canary", "any")[1] == 1.0
    assert sampler.decide("baseline", "any")[1] == pytest.approx(0.02)
    assert sampler.decide("shadow", "any")[1] == pytest.approx(DEFAULT_RATE)


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan"), "0.5", True, None, {"canary": 2}])
def test_a_rate_that_is_none_is_refused_at_start_up(rate):
    """The message names the value."""
    with pytest.raises(ConfigError, match="sample rate"):
        Sampler(rate)
