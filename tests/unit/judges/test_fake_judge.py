"""The judge without a model does as it is told."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from typing import Any

import pytest

from evalpipe.errors import JudgeUnavailable
from evalpipe.judges.base import Answer, Prompt
from evalpipe.judges.config import parse_judge
from evalpipe.judges.fake import FakeJudge
from evalpipe.judges.fence import fenced


def schema(*grades: str) -> dict[str, Any]:
    """The form of an answer with one of these grades."""
    return {"properties": {"grade": {"type": "string", "enum": [*grades, "cannot_tell"]}}}


SCALE = schema("1", "2", "3")
BOOLEAN = schema("pass", "fail")
PAIR = schema("first", "second", "tie")


def answers(judge: FakeJudge, *users: str, form: Any = SCALE, logprobs: bool = False) -> list[Answer]:
    """The answers to prompts with these user texts, one after the other."""

    async def go() -> list[Answer]:
        return [await judge.ask(Prompt("rubric", user, form, logprobs=logprobs)) for user in users]

    return asyncio.run(go())


def grades(judge: FakeJudge, *users: str, form: Any = SCALE) -> list[str]:
    """Their grades."""
    return [json.loads(answer.text)["grade"] for answer in answers(judge, *users, form=form)]


def test_the_same_prompt_gets_the_same_grade_in_every_process() -> None:
    """By default the grade is the prompt's hash, over all grades but abstaining."""
    users = [f"record {n}" for n in range(300)]
    first = grades(FakeJudge(parse_judge("fake:a")), *users)
    assert first == grades(FakeJudge(parse_judge("fake:b")), *users)
    assert first[:6] == ["1", "2", "3", "3", "1", "1"]
    counts = Counter(first)
    assert set(counts) == {"1", "2", "3"}
    assert min(counts.values()) > 60


def test_a_rule_finds_its_text_and_the_rest_gets_the_acts() -> None:
    """Rules come first; acts follow one another and the last one stays."""
    judge = FakeJudge(parse_judge('fake:a?rules={"refund": "1"}&acts=3,2'))
    assert grades(judge, "a refund", "x", "y") == ["1", "2", "2"]
    assert judge.calls == 3


def test_a_share_of_calls_fails_and_retries_may_work() -> None:
    """With half of the calls failing and one attempt, about half of the prompts fail, always the same ones."""

    def failures() -> list[int]:
        judge = FakeJudge(parse_judge("fake:a?fail_rate=0.5", attempts=1))
        failed = []
        for n in range(200):
            try:
                grades(judge, str(n))
            except JudgeUnavailable:
                failed.append(n)
        return failed

    assert failures() == failures()
    assert 70 < len(failures()) < 130


def test_log_probabilities_are_most_for_the_grade_that_is_said() -> None:
    """They add up to one, get less with the distance, and are only given when they are asked for."""
    judge = FakeJudge(parse_judge("fake:a?acts=2&sure=0.8"))
    [answer] = answers(judge, "x", form=schema("1", "2", "3", "4"), logprobs=True)
    likely = {grade: math.exp(p) for grade, p in answer.tokens[1].alternatives.items()}
    assert "".join(token.text for token in answer.tokens) == answer.text
    assert (answer.tokens[1].text, likely["2"], sum(likely.values())) == ("2", pytest.approx(0.8), pytest.approx(1.0))
    assert likely["1"] == pytest.approx(likely["3"]) == pytest.approx(2 * likely["4"])
    assert answers(judge, "x")[0].tokens == ()
    assert answers(FakeJudge(parse_judge("fake:a?logprobs=false")), "x", logprobs=True)[0].tokens == ()


def test_without_a_word_on_it_some_grades_are_less_sure_than_others() -> None:
    """A cascade has something to escalate: the probability is from a half to one, by hash."""
    found = answers(FakeJudge(parse_judge("fake:a")), *map(str, range(100)), logprobs=True)
    likely = [math.exp(answer.tokens[1].alternatives[answer.tokens[1].text]) for answer in found]
    assert min(likely) < 0.6
    assert max(likely) > 0.9


def test_several_criteria_get_a_grade_each() -> None:
    """A rule's grade is for the criteria that have it; the others are graded by hash, each by itself."""
    forms = {"polite": BOOLEAN, "kind": BOOLEAN, "warm": SCALE}
    several = {"properties": {name: {"type": "object", **form} for name, form in forms.items()}}
    judge = FakeJudge(parse_judge('fake:a?rules={"REFUND": "fail"}'))
    found = [json.loads(answer.text) for answer in answers(judge, *map(str, range(20)), form=several)]
    assert {tuple(said) for said in found} == {tuple(forms)}
    assert {(said["polite"]["grade"], said["kind"]["grade"]) for said in found} == {
        (one, other) for one in ("pass", "fail") for other in ("pass", "fail")
    }
    [answer] = answers(judge, "REFUND", form=several, logprobs=True)
    said = json.loads(answer.text)
    assert (said["polite"]["grade"], said["kind"]["grade"]) == ("fail", "fail")
    assert said["warm"]["grade"] in {"1", "2", "3"}
    assert "".join(token.text for token in answer.tokens) == answer.text
    [wrong] = answers(FakeJudge(parse_judge("fake:a?acts=perhaps")), "x", form=several)
    assert {said["grade"] for said in json.loads(wrong.text).values()} == {"perhaps"}


def pair(first: str, second: str) -> str:
    """Two answers as a judge is shown them."""
    return fenced([("INPUT", "a REFUND?"), ("FIRST", first), ("SECOND", second)], work_id="w") + "Compare."


def test_of_two_answers_the_one_that_a_rule_fails_is_worse() -> None:
    """Whichever comes first; alike, they are a tie."""
    judge = FakeJudge(parse_judge('fake:a?rules={"REFUND": "fail"}'))
    good, bad = "Certainly.", "A REFUND for you!"
    shown = [pair(good, bad), pair(bad, good), pair(good, good), pair(bad, bad)]
    assert grades(judge, *shown, form=PAIR) == ["first", "second", "tie", "tie"]
    liked = FakeJudge(parse_judge('fake:a?rules={"Certainly": "pass"}'))
    assert grades(liked, *shown, form=PAIR) == ["first", "second", "tie", "tie"]


def test_by_hash_a_pair_comes_out_alike_in_both_orders_unless_it_prefers_the_first() -> None:
    """With ``first`` a share of pairs goes to the first answer in either order."""
    pairs = [(f"a{n}", f"b{n}") for n in range(200)]

    def agreed(judge: FakeJudge) -> int:
        there = grades(judge, *(pair(a, b) for a, b in pairs), form=PAIR)
        back = grades(judge, *(pair(b, a) for a, b in pairs), form=PAIR)
        return sum({one, other} == {"first", "second"} for one, other in zip(there, back, strict=True))

    assert agreed(FakeJudge(parse_judge("fake:a"))) == 200
    assert agreed(FakeJudge(parse_judge("fake:a?first=1"))) == 0
    assert 80 < agreed(FakeJudge(parse_judge("fake:a?first=0.3"))) < 195


def test_noise_turns_a_share_of_votes_each_by_itself() -> None:
    """Votes on one prompt differ, and another judge of the same name casts the same ones."""
    votes = grades(FakeJudge(parse_judge("fake:a?acts=pass&noise=0.3")), *["x"] * 400, form=BOOLEAN)
    assert votes == grades(FakeJudge(parse_judge("fake:a?acts=pass&noise=0.3")), *["x"] * 400, form=BOOLEAN)
    assert 90 < Counter(votes)["fail"] < 150


def test_a_judge_that_moved_keeps_its_version() -> None:
    """A share of passes becomes fails, and numbers become one less; below 0 the other way."""
    stable = FakeJudge(parse_judge("fake:a?acts=pass"))
    moved = FakeJudge(parse_judge("fake:a?acts=pass&moved=0.2"))
    assert moved.version == stable.version
    users = [str(n) for n in range(500)]
    assert 70 < Counter(grades(moved, *users, form=BOOLEAN))["fail"] < 130
    lenient = FakeJudge(parse_judge("fake:a?acts=fail&moved=-0.2"))
    assert 70 < Counter(grades(lenient, *users, form=BOOLEAN))["pass"] < 130
    assert set(grades(FakeJudge(parse_judge("fake:a?acts=3&moved=1")), "x", "y")) == {"2"}
    assert set(grades(FakeJudge(parse_judge("fake:a?acts=1&moved=1")), "x", "y")) == {"1"}
