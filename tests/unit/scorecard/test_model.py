"""What a scorecard knows: which records it takes, which of them a judge grades, and its version."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evalpipe.record import Record, Release
from evalpipe.scorecard.model import AlertRule, Match, Sampling, Scorecard

CARD = {
    "name": "desk",
    "match": {"service": ["support-*", "returns"]},
    "criteria": [
        {"name": "short", "heuristic": "length", "params": {"max": 50}},
        {"name": "tone", "judge": {"kind": "scale", "rubric": "How kind?", "anchors": {1: "rude", 5: "kind"}}},
    ],
    "alerts": [{"name": "rude", "criterion": "tone", "mean": {"below": 0.5}, "window": "1h30m", "for": "5m"}],
    "rollout": {"gates": [{"criterion": "tone", "margin": "5%"}]},
    "tests": [{"name": "t", "record": {"output": "hello"}, "expect": {"short": {"value": 1}}}],
}


def card(**changes):
    """The scorecard with some fields changed."""
    return Scorecard.model_validate({**CARD, **changes})


def record(service="support-desk", feature="", variant="baseline", environment="production"):
    """A record of a release."""
    release = Release(service=service, variant=variant, environment=environment)
    return Record("r", "t", datetime(2024, 1, 1, tzinfo=UTC), release, feature=feature)


def test_a_scorecard_takes_the_records_that_fit_every_field():
    """Globs are alternatives within a field, and fields are conditions together."""
    match = Match.model_validate({"service": ["support-*", "returns"], "feature": "refund-*", "variant": "canary"})
    assert match.fits(record("support-desk", "refund-answers", "canary"))
    assert match.fits(record("returns", "refund-", "canary"))
    assert not match.fits(record("billing", "refund-answers", "canary"))
    assert not match.fits(record("support-desk", "", "canary"))
    assert not match.fits(record("support-desk", "refund-answers"))
    assert not match.fits(record("Support-desk", "refund-answers", "canary"))


def test_without_match_every_record_is_taken():
    """The default leaves nothing out, also where a field is unknown."""
    assert Match().fits(record(service="", environment=""))


def test_the_judge_takes_its_share_of_traces_and_always_the_same():
    """The choice is a function of the trace id, near the share, and all at 100 %."""
    traces = [f"trace-{n}" for n in range(20_000)]
    kept = {trace for trace in traces if Sampling(judge=0.2).keeps(trace)}
    assert kept == {trace for trace in traces if Sampling(judge=0.2).keeps(trace)}
    assert 0.19 < len(kept) / len(traces) < 0.21
    assert kept < {trace for trace in traces if Sampling(judge=0.4).keeps(trace)}
    assert all(Sampling().keeps(trace) for trace in traces)


def test_the_version_is_about_content_and_not_about_how_it_is_written():
    """The order of keys, defaults that are written out, and tests do not matter; everything else does."""
    version = card().version
    assert len(version) == 12
    assert Scorecard.model_validate(dict(reversed(CARD.items()))).version == version
    assert card(sampling={"judge": "100%"}, owner="").version == version
    assert card(tests=[]).version == version
    assert card(match={"service": ["returns", "support-*"]}).version != version
    assert card(description="For the desk").version != version
    assert card(sampling={"judge": "50%"}).version != version


def test_a_definition_is_what_makes_the_score():
    """Rubric, anchors and parameters open a new epoch; words for people, weight and priority do not."""

    def definition(**changes):
        judge = {"kind": "scale", "rubric": "How kind?", "anchors": {1: "rude", 5: "kind"}, **changes.pop("judge", {})}
        return card(criteria=[{"name": "tone", "judge": judge, **changes}], tests=[]).criteria[0].definition_hash

    before = definition()
    assert definition(description="Kindness", weight=3) == before
    assert definition(judge={"priority": 0}) == before
    assert definition(judge={"rubric": "How polite?"}) != before
    assert definition(judge={"anchors": {1: "rude", 5: "very kind"}}) != before
    assert definition(judge={"model": "openai:m"}) != before
    assert (
        card().criteria[0].definition_hash
        != card(criteria=[{"name": "short", "heuristic": "length", "params": {"max": 51}}, CARD["criteria"][1]])
        .criteria[0]
        .definition_hash
    )


def test_a_scorecard_survives_a_trip_through_the_database():
    """The body that is kept beside the scores gives the same scorecard, tests aside."""
    before = card()
    after = Scorecard.from_body(json.loads(json.dumps(before.body())))
    assert after.version == before.version
    assert after.criteria == before.criteria
    assert [c.definition_hash for c in after.criteria] == [c.definition_hash for c in before.criteria]
    assert after.alerts == before.alerts
    assert after.rollout == before.rollout


def test_durations_and_shares_arrive_as_numbers():
    """What the pipeline reads is parsed."""
    rule, gate = card().alerts[0], card().rollout.gates[0]
    assert (rule.window, rule.for_, rule.keep_firing_for) == (timedelta(minutes=90), timedelta(minutes=5), timedelta(0))
    assert (gate.tolerance, gate.alpha, gate.advance_alpha) == ((0.05, True), None, None)


def test_a_threshold_is_crossed_strictly_beyond_the_line():
    """Exactly on the line is not crossed."""
    rule = AlertRule.model_validate({"name": "a", "criterion": "c", "mean": {"below": 0.5}})
    assert rule.mean.crossed(0.49)
    assert not rule.mean.crossed(0.5)


def test_a_scorecard_made_in_code_is_checked_as_one_from_a_file():
    """What must agree between fields is checked without a file too."""
    with pytest.raises(ValidationError, match="no criterion named 'tune'; did you mean 'tone'"):
        card(alerts=[{"name": "a", "criterion": "tune", "mean": {"below": 0.5}}])


def test_criteria_are_found_by_name():
    """A judged criterion knows that it is one."""
    assert card().criterion("tone").is_judged
    assert not card().criterion("short").is_judged
    with pytest.raises(KeyError):
        card().criterion("tune")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


def shuffled(value, random):
    """The same value with the keys of its mappings in another order."""
    if isinstance(value, dict):
        items = [(key, shuffled(inner, random)) for key, inner in value.items()]
        random.shuffle(items)
        return dict(items)
    return [shuffled(inner, random) for inner in value] if isinstance(value, list) else value


@given(params=st.dictionaries(st.text(max_size=5), JSON, max_size=5), random=st.randoms(use_true_random=False))
def test_hashes_do_not_depend_on_the_order_of_keys(params, random):
    """However deep the parameters go."""
    body = {**CARD, "criteria": [{"name": "tone", "heuristic": "x", "params": params}]}
    body["tests"] = []
    one, other = Scorecard.model_validate(body), Scorecard.model_validate(shuffled(body, random))
    assert one.version == other.version
    assert one.criteria[0].definition_hash == other.criteria[0].definition_hash
