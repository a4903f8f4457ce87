"""What opens an epoch, and what does not."""

from __future__ import annotations

from typing import Any

from evalpipe.scorecard.diff import compare
from evalpipe.scorecard.model import Scorecard
from evalpipe.scorers.plan import epoch_of


def card(**fields: Any) -> Scorecard:
    """With a heuristic and a judged criterion."""
    criteria = [
        {"name": "length", "heuristic": "length", "params": {"max": 200}},
        {"name": "grounded", "judge": {"kind": "boolean", "rubric": "Is it grounded?"}},
    ]
    return Scorecard.model_validate({"name": "support", "criteria": criteria, **fields})


def epochs(of: Scorecard, scorer: str = "s@1") -> list[str]:
    """Of its criteria."""
    return [epoch_of(of, criterion, scorer) for criterion in of.criteria]


def test_the_share_that_is_judged_opens_an_epoch_of_what_is_judged() -> None:
    """Heuristics score every record in any case; and the share that it was before gives the epoch of before."""
    whole, tenth = card(), card(sampling={"judge": 0.1})
    assert epochs(whole)[0] == epochs(tenth)[0]
    assert epochs(whole)[1] != epochs(tenth)[1]
    assert epochs(tenth) == epochs(card(sampling={"judge": "10%"}))
    assert epochs(whole) == epochs(card(sampling={"judge": 1.0}))
    assert compare(whole, tenth).new_epochs == ["grounded"]


def test_a_scorer_opens_an_epoch_and_what_people_read_does_not() -> None:
    """Nor do budgets, matches and the rates of hooks: the first two are in the weights, a match is in the key."""
    assert epochs(card())[1] != epochs(card(), "s@2")[1]
    assert epochs(card()) == epochs(card(description="new", match={"service": "desk"}, judging={"usd_per_day": 5.0}))
