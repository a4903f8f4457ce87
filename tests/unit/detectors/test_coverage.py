"""Silence is the worst failure: each way of not evaluating is named."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from metered_world import START, WindowView

from evalpipe.detectors.coverage import Coverage, CoverageParams
from evalpipe.detectors.view import Coverage as Seen


def look(params: dict[str, Any] | None = None, **seen: Any) -> Any:
    """One look at these counts."""
    return looks(params, seen)[0]


def looks(params: dict[str, Any] | None, *seen: dict[str, Any]) -> list[Any]:
    """Some looks, one after the other."""
    detector, state, found = Coverage(CoverageParams(**(params or {}))), {}, []
    for counts in seen:
        told = {"observed": 10_000, "sampled": 500, "graded": 500, "scored": 500, "heard_at": START, **counts}
        state, finding = detector.look(WindowView(covered=Seen(**told)), state)
        found.append(finding)
    return found


def test_where_all_is_well_there_is_no_alarm():
    """And where nothing ever was there is nothing to say."""
    assert look().violated is False
    nothing = {"observed": 0, "sampled": 0, "graded": 0, "scored": 0, "heard_at": None}
    assert look(**nothing).violated is None


def test_each_condition_is_named_with_its_numbers():
    """The one that is furthest beyond its limit gives the value."""
    found = look(in_flight=40, oldest_s=3600.0)
    assert (found.violated, found.reason) == (
        True, "40 sampled records wait for their scores, the oldest for 1h (limit 15m)")  # fmt: skip
    assert "100 of 500 sampled records were shed" in look(shed=100).reason
    assert "200 of 500 judge calls ended without a grade" in look(judge_errors=200).reason
    assert "hooks have been silent for 10m" in look(heard_at=START - timedelta(minutes=10)).reason
    both = look(shed=100, oldest_s=3600.0, in_flight=1)
    assert both.numbers["problems"] == ["oldest", "shed"]
    assert both.ratio == 10.0


def test_what_is_sampled_is_held_to_what_was_to_be():
    """Too much costs money, too little hides what happens."""
    wanted = {"sampled": 0.05}
    assert look(wanted).violated is False
    assert "100 of 10000 calls were sampled, and 0.05 of them were to be" in look(wanted, sampled=100).reason
    assert look(wanted, sampled=2_000).violated is True
    assert look(wanted, observed=40, sampled=0).violated is False


def test_a_few_records_are_no_proof():
    """One of three that failed may be chance; a service that was switched off is not silent."""
    assert look(graded=3, judge_errors=1).violated is False
    assert look(sampled=5, shed=1).violated is False
    assert look(graded=20, judge_errors=20).violated is True
    assert look(heard_at=START - timedelta(days=3)).violated is False


def test_what_is_wrong_is_so_until_it_may_be_chance_after_all():
    """The same share in a quieter hour is no end of it, though it would not have been a beginning."""
    fewer = {"sampled": 250, "shed": 17}
    first, second, third = looks(None, {"shed": 50}, fewer, {"sampled": 250, "shed": 7})
    assert [first.violated, second.violated, third.violated] == [True, True, False]
    assert look(**fewer).violated is False
