"""Where grades could go wrong unseen: shared calls that end badly, ladders that meet cascades, tokens that mislead."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
from typing import Any

import pytest
from grading import OTHER, RECORD, Bench, reply, spec

from evalpipe.errors import JudgeRejected, JudgeUnavailable
from evalpipe.judges.base import Answer, Grade, Prompt, Token
from evalpipe.score import Status
from evalpipe.scorecard.model import JudgeSpec, Scorecard
from evalpipe.scorers.calls import Outcome, Plan
from evalpipe.scorers.grader import Grader
from evalpipe.scorers.judged import Question, build_prompt
from evalpipe.scorers.reading import parse, parse_all

SCALE = {"kind": "scale", "rubric": "How clear?", "anchors": {1: "not", 10: "very"}, "logprobs": True}


def cut(grade: str, *parts: str, **likely: float) -> Answer:
    """An answer whose grade comes in these tokens, with the alternatives of the first of them."""
    said = reply(grade)
    place = said.rindex(f'"{grade}"') + 1
    logs = {word.removeprefix("g"): math.log(p) for word, p in likely.items()}
    first, *others = parts or (grade,)
    rest = said[place + len("".join((first, *others))) :]
    whole = [
        Token(said[:place], {"x": 0.0}),
        Token(first, logs),
        *(Token(part, {"y": 0.0}) for part in (*others, rest)),
    ]
    return Answer(said, "m", tokens=whole)


def plans(bench: Bench, of: JudgeSpec, n: int) -> list[Plan]:
    """The same question for so many works."""
    question = Question({"c": of})
    return [bench.grader.plan(question, RECORD, f"w{number}") for number in range(n)]


def test_reading_by_probabilities_is_another_question() -> None:
    """A grade that was read as a word must not stand in for one that is to be weighted, nor the other way round."""
    plain, weighted = spec(model="fake:a"), spec(model="fake:a", logprobs=True)
    assert Question(plain).version != Question(weighted).version


def test_who_waits_for_anothers_call_can_be_cancelled_alone() -> None:
    """The call goes on, and who else waits for it has its grade."""
    bench = Bench(a="fail")

    async def at_once() -> list[Any]:
        runs = [asyncio.create_task(bench.grader.run(plan)) for plan in plans(bench, spec(model="fake:a"), 3)]
        await asyncio.sleep(0)
        runs[1].cancel()
        return await asyncio.gather(*runs, return_exceptions=True)

    first, cancelled, third = asyncio.run(at_once())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert [first.graded["c"].grade.label, third.graded["c"].grade.label] == ["fail", "fail"]
    assert bench.calls("a") == 1


def test_who_waits_for_a_call_that_is_cancelled_asks_itself() -> None:
    """It neither hangs nor ends with it."""
    bench = Bench(a="fail")

    async def at_once() -> list[Any]:
        runs = [asyncio.create_task(bench.grader.run(plan)) for plan in plans(bench, spec(model="fake:a"), 2)]
        await asyncio.sleep(0)
        runs[0].cancel()
        return await asyncio.wait_for(asyncio.gather(*runs, return_exceptions=True), 60)

    cancelled, second = asyncio.run(at_once())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert second.graded["c"].grade.label == "fail"


def test_an_error_that_nobody_thought_of_ends_no_other_vote() -> None:
    """What the other judges said was paid for: it is kept, and counted."""

    def broken(_: Prompt) -> Any:
        raise KeyError("choices")

    bench = Bench(a=broken, b="pass")
    outcome = bench.run(spec(panel=["fake:a", "fake:b"]))
    assert isinstance(outcome.error, KeyError)
    assert [vote.grade.label for vote in outcome.votes] == ["pass"]


@pytest.mark.parametrize("judges", [["a", "b"], ["b", "a"]])
def test_an_attempt_that_took_a_call_counts_whatever_else_failed(judges: list[str]) -> None:
    """Else a judge that times out beside one that is not asked would be called without end."""
    bench = Bench(
        a=lambda _: JudgeUnavailable("slow", cause="timeout"), b=lambda _: JudgeUnavailable("wait", cause="paused")
    )
    error = bench.run(spec(panel=[f"fake:{name}" for name in judges])).error
    assert isinstance(error, JudgeUnavailable)
    assert error.cause == "timeout"
    bench = Bench(a=lambda _: JudgeUnavailable("slow", cause="timeout"), b=lambda _: JudgeRejected("no", cause="key"))
    assert isinstance(bench.run(spec(panel=[f"fake:{name}" for name in judges])).error, JudgeUnavailable)


def test_a_judge_that_was_turned_to_does_not_confirm_itself() -> None:
    """The ladder leads to the strong judge: it is asked once, and there is no second one."""
    bench = Bench(cheap="cannot_tell", strong="cannot_tell")
    of = spec(model="fake:cheap", escalate={"to": "fake:strong"}, fallback=["fake:strong"])
    outcome = bench.run(of, step=1)
    assert bench.calls("strong") == 1
    graded = outcome.graded["c0"]
    assert (graded.escalated, graded.version.partition("/")[0]) == (False, "fake:strong")


def test_two_words_for_one_judge_cast_two_votes() -> None:
    """Each is asked, and each vote has a number of its own: it is a row of its own in the store."""
    bench = Bench(a=["pass", "fail", "fail"])
    bench.judges["fake:alias"] = bench.judges["fake:a"]
    outcome = bench.run(spec(panel=["fake:a", "fake:alias"]))
    assert sorted((vote.call.version.partition("/")[0], vote.call.vote) for vote in outcome.votes) == [
        ("fake:a", 0),
        ("fake:a", 1),
    ]
    assert bench.calls("a") == 2


def test_a_repaired_answer_that_is_no_grade_either_is_counted_as_such() -> None:
    """Both calls of the judge were malformed."""
    bench = Bench(a=["my word", "my other word"])
    bench.run(spec(model="fake:a"), attempts_left=2)
    assert [call.outcome for call in bench.desk.take_calls()] == ["malformed", "malformed"]


def test_a_pass_with_some_doubt_is_no_failure() -> None:
    """With log-probabilities no value is quite 1: the word tells whether it is the best grade."""
    likely = lambda _: cut("pass", gpass=0.99, gfail=0.01)  # noqa: E731
    bench = Bench(cheap=likely, other=likely, strong="fail")
    when = {"to": "fake:strong", "when": ["fail"]}
    graded = bench.run(spec(model="fake:cheap", logprobs=True, escalate=when)).graded["c0"]
    assert (graded.escalated, graded.grade.reading) == (False, "expected")
    best = {"good": {"value": 0.9}, "bad": {"value": 0.0}}
    bench = Bench(cheap="good", strong="bad")
    of = spec(kind="category", categories=best, model="fake:cheap", escalate=when)
    assert not bench.run(of).graded["c0"].escalated


def test_votes_of_one_word_do_not_differ() -> None:
    """However far their probabilities are apart, and only where each is sure."""
    bench = Bench(
        a=lambda _: cut("pass", gpass=0.99, gfail=0.01),
        b=lambda _: cut("pass", gpass=0.97, gfail=0.03),
        strong="fail",
    )
    outcome = bench.run(spec(panel=["fake:a", "fake:b"], logprobs=True, escalate={"to": "fake:strong"}))
    assert not outcome.graded["c0"].escalated
    assert outcome.graded["c0"].disagreement == pytest.approx(0.02)


def test_a_number_whose_digits_are_tokens_is_not_taken_for_its_first_digit() -> None:
    """10 begins with the token 1: where no token is a whole 10, the probabilities do not tell the two apart."""
    of = spec(**SCALE)
    split = parse(of, cut("10", "1", "0", g1=0.95, g9=0.05), "")
    assert (split.value, split.reading) == (1.0, "word")
    whole = parse(of, cut("10", g10=0.9, g9=0.05, g1=0.05), "")
    assert (whole.value, whole.reading) == (pytest.approx(0.9 + 0.05 * 8 / 9), "expected")


def test_a_label_that_another_begins_with_is_not_taken_for_it() -> None:
    """``partly_right`` and ``partly_wrong`` share their first token; ``ok_but`` begins with the whole of ``ok``."""
    of = spec(
        kind="category",
        logprobs=True,
        categories={name: {"value": v} for name, v in {"ok": 1.0, "ok_but": 0.4, "bad": 0.0}.items()},
    )
    grade = parse(of, cut("ok_but", "ok", "_but", gok=0.9, gbad=0.1), "")
    assert (grade.value, grade.reading) == (0.4, "word")
    of = spec(
        kind="category",
        logprobs=True,
        categories={name: {"value": v} for name, v in {"partly_a": 0.6, "partly_b": 0.4, "bad": 0.0}.items()},
    )
    grade = parse(of, cut("partly_a", "partly", "_a", gpartly=0.45, gbad=0.55), "")
    assert (grade.value, grade.reading) == (0.6, "word")


def test_what_could_not_be_told_counts_against_the_confidence() -> None:
    """Nearly half of the probability was on abstaining: that is no sure grade."""
    grade = parse(spec(logprobs=True), cut("pass", gpass=0.55, gcannot=0.45), "")
    assert (grade.value, grade.confidence) == (pytest.approx(1.0), pytest.approx(0.55))


@pytest.mark.parametrize("explanation", ["c1", '"c1": {"grade": "pass"}', '{"grade":"pass"}'])
def test_the_token_of_a_grade_is_found_by_its_place_in_the_object(explanation: str) -> None:
    """Not by what an explanation says, which may quote the record."""
    said = {
        "c0": {"explanation": explanation, "quotation": "", "grade": "pass"},
        "c1": {"grade": "fail", "explanation": explanation, "quotation": ""},
    }
    text = json.dumps(said)
    place = text.rindex('"fail"') + 1
    tokens = [
        Token(text[:place], {"x": 0.0}),
        Token("fail", {"fail": math.log(0.7), "pass": math.log(0.3)}),
        Token(text[place + 4 :], {"y": 0.0}),
    ]
    of = {name: spec(logprobs=True, together="x", rubric=name) for name in ("c0", "c1")}
    grades = parse_all(of, Answer(text, "m", tokens=tokens), "")
    assert grades["c1"].value == pytest.approx(0.3)
    assert grades["c0"].reading == "word"


def test_no_text_can_pass_for_another_record() -> None:
    """The key of a record's content tells where each part ends, whatever stands in the parts."""
    question = Question(spec())

    def key(asked: str, output: str) -> str:
        record = dataclasses.replace(RECORD, messages=[{"role": "user", "content": asked}], output=output)
        return build_prompt(question, record, "w").key

    assert key("a", "good\x1fOUTPUT\x1fbad") != key("a\x1fOUTPUT\x1fgood", "bad")


def test_equal_answers_in_both_orders_are_two_questions() -> None:
    """The second order's grade is turned round, so it must not be known under the first one's key."""
    bench = Bench(a="first")
    question = Question({"c": spec(kind="pairwise", rubric="Better?", model="fake:a")})
    same = dataclasses.replace(OTHER, output=RECORD.output)
    once = bench.grader.plan(question, RECORD, "w", partner=same)
    twice = bench.grader.plan(
        Question({"c": spec(kind="pairwise", rubric="Better?", model="fake:a", votes=2)}), RECORD, "w", partner=same
    )
    swapped = {call.key for call in once.calls if call.role == "swapped"}
    assert swapped.isdisjoint(call.key for call in twice.calls if call.role == "first")


def test_of_criteria_that_share_a_call_only_what_is_known_is_needed() -> None:
    """A record owes one of two: what is known of that one is enough, and the other has no grade."""
    bench = Bench(a="never asked")
    question = Question({name: spec(model="fake:a", together="x", rubric=name) for name in ("c0", "c1")})
    plan = bench.grader.plan(question, RECORD, "w")
    known = {plan.calls[0].key: {"c0": Grade(Status.SCORED, 1.0, "pass")}}
    outcome: Outcome = asyncio.run(Grader(bench.desk).run(plan, known))
    assert outcome.error is None
    assert {name: graded.grade.label for name, graded in outcome.graded.items()} == {"c0": "pass"}
    assert bench.calls("a") == 0


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"panel": ["fake:a", "fake:b", "fake:a"]}, r"panel\[2\]: 'fake:a' is in the panel already"),
        ({"kind": "pairwise", "escalate": {"to": "fake:b"}}, "escalate: does not go with kind 'pairwise'"),
    ],
)
def test_judges_that_cannot_work_together_are_refused(fields: dict[str, Any], told: str) -> None:
    """The same judge twice is no panel; and a second judge of a pair would see it in one order only."""
    judge = {"kind": "boolean", "rubric": "It is right.", **fields}
    with pytest.raises(ValueError, match=told):
        Scorecard.model_validate({"name": "s", "criteria": [{"name": "c", "judge": judge}]})
