"""What changes between two scorecards, in plain words."""

from __future__ import annotations

import copy

from evalpipe.scorecard.diff import compare
from evalpipe.scorecard.model import Scorecard

BODY = {
    "name": "desk",
    "criteria": [
        {"name": "short", "heuristic": "length", "params": {"max": 50}},
        {"name": "kind", "judge": {"kind": "boolean", "rubric": f"{'Words. ' * 30}Is it kind?"}},
    ],
    "alerts": [{"name": "rude", "criterion": "kind", "mean": {"below": 0.5}, "window": "10m"}],
    "rollout": {"gates": [{"criterion": "kind"}]},
    "tests": [{"name": "t", "record": {"output": "x"}, "expect": {"short": {"value": 1}}}],
}


def changes(change):
    """The difference after ``change`` was made to a copy."""
    body = copy.deepcopy(BODY)
    change(body)
    return compare(Scorecard.model_validate(BODY), Scorecard.model_validate(body))


def test_nothing_changes_between_equals():
    """Not even the order of keys counts."""
    found = changes(lambda body: body.update(rollout=body.pop("rollout")))
    assert (found.changes, found.new_epochs, found.before) == ([], [], found.after)


def test_an_alert_can_be_edited_without_a_new_epoch():
    """The version moves, the series goes on."""
    found = changes(lambda body: body["alerts"][0].update(window="1h", mean={"above": 0.9}))
    assert found.changes == [
        "alert rule 'rude': mean.below is no longer given; it was 0.5",
        "alert rule 'rude': mean.above is now given: 0.9",
        "alert rule 'rude': window changes from 10m to 1h",
    ]
    assert found.new_epochs == []
    assert found.before != found.after


def test_a_changed_definition_opens_a_new_epoch():
    """Parameters and rubric; a long text is shown from shortly before its difference."""

    def change(body):
        body["criteria"][0]["params"] = {"max": 60, "min": 2}
        body["criteria"][1]["judge"]["rubric"] = f"{'Words. ' * 30}Is it polite?"

    found = changes(change)
    assert found.changes == [
        "criterion 'short': params.max changes from 50 to 60",
        "criterion 'short': params.min is now given: 2",
        "criterion 'kind': judge.rubric changes from ...Words. Words. Is it kind? to ...Words. Words. Is it polite?",
    ]
    assert found.new_epochs == ["short", "kind"]


def test_another_question_in_the_same_call_opens_a_new_epoch():
    """A judge that reads both rubrics is asked something else when either changes, comes or goes."""
    one, two = ({"name": n, "judge": {"kind": "boolean", "rubric": f"Is it {n}?", "together": "t"}} for n in ("a", "b"))
    old = {**BODY, "criteria": [*BODY["criteria"], one, two]}
    new = copy.deepcopy(old)
    new["criteria"][3]["judge"]["rubric"] = "Is it really b?"
    assert compare(Scorecard.model_validate(old), Scorecard.model_validate(new)).new_epochs == ["a", "b"]
    del new["criteria"][3]
    assert compare(Scorecard.model_validate(old), Scorecard.model_validate(new)).new_epochs == ["a"]


def test_criteria_come_and_go_without_opening_an_epoch_of_others():
    """A new criterion starts its own series; an epoch is a break in one that was there."""

    def change(body):
        body["criteria"][0] = {"name": "brief", "heuristic": "length", "params": {"max": 50}}
        body["tests"] = []

    found = changes(change)
    assert found.changes == ["criterion 'short' is removed", "criterion 'brief' is added", "test 't' is removed"]
    assert found.new_epochs == []


def test_tests_do_not_change_the_version():
    """They are told all the same."""
    found = changes(lambda body: body["tests"][0]["expect"]["short"].update(value=0.5))
    assert found.changes == ["test 't': expect.short.value changes from 1.0 to 0.5"]
    assert found.before == found.after


def test_rollouts_are_compared_gate_by_gate():
    """And as a whole where there is none on one side."""
    found = changes(lambda body: body["rollout"].update(canary="blue", gates=[{"criterion": "kind", "margin": "2%"}]))
    assert found.changes == [
        "rollout: canary changes from canary to blue",
        "gate on 'kind': margin changes from 0.05 to 0.02",
    ]
    assert changes(lambda body: body.pop("rollout")).changes == ["the rollout is removed"]


def test_a_new_order_is_told():
    """It changes the version, since the order is content."""
    assert changes(lambda body: body["criteria"].reverse()).changes == [
        "the order of each criterion is now kind, short"
    ]
