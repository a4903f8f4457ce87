"""Plans, and what becomes of them: votes, panels, cascades, pairs, several criteria in one call."""

from __future__ import annotations

import asyncio
import json
import math

import pytest
from grading import OTHER, RECORD, Bench, reply, spec

from evalpipe.errors import JudgeUnavailable, PermanentError
from evalpipe.judges.base import Answer, Token
from evalpipe.score import Status
from evalpipe.scorers.calls import Outcome
from evalpipe.scorers.judged import Question


def test_votes_of_one_judge_are_cast_and_kept_each() -> None:
    """Three calls, three votes, one grade, and how far they are apart."""
    bench = Bench(a=["pass", "fail", "pass"])
    outcome = bench.run(spec(model="fake:a", votes=3))
    graded = outcome.graded["c0"]
    assert (graded.grade.value, graded.grade.label, graded.disagreement) == (1.0, "pass", pytest.approx(2 / 3))
    assert [vote.call.vote for vote in outcome.votes] == [0, 1, 2]
    assert len({vote.call.key for vote in outcome.votes}) == 3
    assert graded.version.startswith("fake:a*3/")


def test_a_panel_of_different_models_decides_by_majority_or_mean() -> None:
    """Each judge is asked once; the scorer names them all."""
    bench = Bench(a="pass", b="fail", c="pass")
    panel = ["fake:a", "fake:b", "fake:c"]
    by_majority = bench.run(spec(panel=panel)).graded["c0"]
    by_mean = bench.run(spec(panel=panel, combine="mean")).graded["c0"]
    assert (by_majority.grade.value, by_mean.grade.value) == (1.0, pytest.approx(2 / 3))
    assert by_majority.version.startswith("fake:a+fake:b+fake:c/")


@pytest.mark.parametrize(
    ("first", "when", "asked"),
    [("pass", ["unsure"], 0), ("fail", ["unsure"], 0), ("cannot_tell", ["unsure"], 1), ("fail", ["fail"], 1),
     ("pass", ["unsure", "fail"], 0), ("this is no grade", ["unsure"], 1)],
)  # fmt: skip
def test_a_cascade_asks_the_stronger_judge_only_where_it_is_told_to(first: str, when: list[str], asked: int) -> None:
    """And then its grade counts."""
    bench = Bench(cheap=first, strong="pass")
    outcome = bench.run(spec(model="fake:cheap", escalate={"to": "fake:strong", "when": when}))
    graded = outcome.graded["c0"]
    assert bench.calls("strong") == asked
    assert graded.escalated is bool(asked)
    assert graded.version.startswith("fake:cheap>fake:strong/")  # one scorer, whoever had the last word
    if asked:
        assert graded.grade.label == "pass"
        assert [vote.call.role for vote in outcome.votes] == ["first", "escalated"]


def test_votes_that_differ_are_unsure() -> None:
    """So a cascade follows up on a split."""
    bench = Bench(cheap=["pass", "fail"], strong="fail")
    outcome = bench.run(spec(model="fake:cheap", votes=2, escalate={"to": "fake:strong"}))
    assert outcome.graded["c0"].grade.label == "fail"
    assert outcome.graded["c0"].disagreement == 1.0


def test_a_pair_is_asked_in_both_orders_and_a_judge_in_love_with_the_first_place_finds_a_tie() -> None:
    """The value is the record's: 1 where its answer is better than the served one's."""
    bench = Bench(first="first", mine=lambda p: "first" if p.user.find("FIRST]\nthe words") > 0 else "second")
    pairwise = {"kind": "pairwise", "rubric": "More helpful."}
    assert bench.run(spec(model="fake:first", **pairwise), partner=OTHER).graded["c0"].grade.value == 0.5
    graded = bench.run(spec(model="fake:mine", **pairwise), partner=OTHER).graded["c0"]
    assert (graded.grade.value, graded.grade.label, graded.disagreement) == (1.0, "better", 0.0)
    with pytest.raises(PermanentError, match="no second answer"):
        bench.run(spec(model="fake:mine", **pairwise))


def test_several_criteria_in_one_call_share_its_cost_and_are_graded_each() -> None:
    """One call; the shares add up to what it took."""
    both = {"c0": json.loads(reply("pass")), "c1": json.loads(reply("fail", "the words"))}
    bench = Bench(a=json.dumps(both))
    one, two = spec(model="fake:a", together="x"), spec(model="fake:a", together="x", rubric="It is short.")
    outcome = bench.run(one, two)
    assert bench.calls("a") == 1
    grades = [outcome.graded[name].grade for name in ("c0", "c1")]
    assert [(grade.value, grade.quotation) for grade in grades] == [(1.0, ""), (0.0, "the words")]
    answers = [grade.answer for grade in grades if grade.answer]
    assert sum(answer.input_tokens for answer in answers) == 101
    assert sum(answer.cost_usd or 0 for answer in answers) == pytest.approx(0.02)


def test_an_answer_that_is_no_grade_is_asked_for_once_more_if_an_attempt_is_left() -> None:
    """Both calls were paid for, and both are counted; after that it is an error with the raw text."""
    bench = Bench(a=["my word", "pass"], b=["my word", "my other word"], c=["my word"])
    mended = bench.run(spec(model="fake:a"), attempts_left=2).graded["c0"].grade
    assert mended.answer is not None
    assert (mended.value, mended.answer.attempts, mended.answer.cost_usd) == (1.0, 2, pytest.approx(0.04))
    assert "not a grade" in bench.judges["fake:a"].asked[1].user
    broken = bench.run(spec(model="fake:b"), attempts_left=2).graded["c0"].grade
    assert (broken.status, broken.cause, broken.raw) == (Status.ERROR, "malformed", "my other word")
    assert bench.run(spec(model="fake:c"), attempts_left=1).graded["c0"].grade.raw == "my word"


def test_what_one_judge_said_is_kept_where_another_gave_no_answer() -> None:
    """No grade is made of a part of the panel, but its vote need not be paid for again."""
    bench = Bench(a="pass", b=lambda _: JudgeUnavailable("down"))
    outcome = bench.run(spec(panel=["fake:a", "fake:b"]))
    assert isinstance(outcome.error, JudgeUnavailable)
    assert outcome.graded == {}
    assert [vote.grade.label for vote in outcome.votes] == ["pass"]


def test_what_is_known_is_not_asked_again() -> None:
    """Neither from the store, nor where the same is just being asked."""
    bench = Bench(a="fail")
    question = Question({"c": spec(model="fake:a")})
    plans = [bench.grader.plan(question, RECORD, f"w{n}") for n in range(3)]
    assert len({plan.calls[0].key for plan in plans}) == 1
    assert len({plan.calls[0].prompt.user for plan in plans}) == 3  # each in a fence of its own

    async def at_once() -> list[Outcome]:
        return list(await asyncio.gather(*(bench.grader.run(plan) for plan in plans)))

    outcomes = asyncio.run(at_once())
    assert bench.calls("a") == 1
    assert [outcome.graded["c"].grade.value for outcome in outcomes] == [0.0] * 3
    assert [outcome.votes[0].reused for outcome in outcomes] == [False, True, True]
    known = {plans[0].calls[0].key: {"named otherwise": outcomes[0].graded["c"].grade}}
    again = asyncio.run(bench.grader.run(plans[0], known))
    assert (bench.calls("a"), again.votes[0].reused, again.votes[0].grade.answer) == (1, True, None)


def test_a_failed_call_is_not_shared() -> None:
    """Who waited for it asks for himself."""
    bench = Bench(a=[JudgeUnavailable("down"), "pass"])
    question = Question({"c": spec(model="fake:a")})
    plans = [bench.grader.plan(question, RECORD, f"w{n}") for n in range(2)]

    async def at_once() -> list[Outcome]:
        return list(await asyncio.gather(*(bench.grader.run(plan) for plan in plans)))

    outcomes = asyncio.run(at_once())
    assert isinstance(outcomes[0].error, JudgeUnavailable)
    assert outcomes[1].graded["c"].grade.value == 1.0


def test_the_ladder_is_climbed_by_steps_and_each_is_another_scorer() -> None:
    """So a fallback opens an epoch of its own."""
    bench = Bench(a="pass", b="pass")
    of = spec(model="fake:a", fallback=["fake:b"])
    graded = [bench.run(of, step=step).graded["c0"] for step in (0, 1)]
    assert [g.step for g in graded] == [0, 1]
    assert [g.version.partition("/")[0] for g in graded] == ["fake:a", "fake:b"]


SCALE = {"kind": "scale", "rubric": "How clear?", "anchors": {1: "not", 5: "very"}, "logprobs": True}


def tokens(grade: str, **likely: float) -> Answer:
    """An answer with log-probabilities at its grade."""
    said = reply(grade)
    head, tail = said[: said.rindex(grade)], said[said.rindex(grade) + len(grade) :]
    alternatives = {word.removeprefix("g"): math.log(p) for word, p in likely.items()}
    whole = [Token(head, {head: 0.0}), Token(grade, alternatives), Token(tail, {tail: 0.0})]
    return Answer(said, "m", tokens=whole)


def test_a_scale_is_weighted_by_the_probabilities_of_its_grades() -> None:
    """The mean of 4 with 0.6 and 5 with 0.4 on a scale from 1 to 5, and what is likeliest is the confidence."""
    bench = Bench(a=lambda _: tokens("4", g4=0.6, g5=0.4), plain="4")
    grade = bench.run(spec(model="fake:a", **SCALE)).graded["c0"].grade
    assert (grade.value, grade.label, grade.reading) == (pytest.approx(0.6 * 0.75 + 0.4), "4", "expected")
    assert grade.confidence == pytest.approx(0.6)
    plain = bench.run(spec(model="fake:plain", **SCALE)).graded["c0"].grade
    assert (plain.value, plain.reading, plain.confidence) == (0.75, "word", None)


def test_probabilities_that_say_little_of_the_grades_are_not_used() -> None:
    """Where most of the mass is on something else, the word counts."""
    bench = Bench(a=lambda _: tokens("4", g4=0.2, g5=0.1, other=0.7))
    grade = bench.run(spec(model="fake:a", **SCALE)).graded["c0"].grade
    assert (grade.value, grade.reading) == (0.75, "word")


def test_a_grade_without_conviction_is_unsure() -> None:
    """So a cascade with log-probabilities follows up on it."""
    bench = Bench(a=lambda _: tokens("4", g4=0.6, g5=0.4), strong="5")
    outcome = bench.run(spec(model="fake:a", escalate={"to": "fake:strong"}, **SCALE))
    assert outcome.graded["c0"].escalated
    assert outcome.graded["c0"].grade.value == 1.0
