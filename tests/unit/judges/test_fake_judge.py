"""The judge without a model does as it is told."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

from evalpipe.errors import JudgeUnavailable
from evalpipe.judges.base import Prompt
from evalpipe.judges.config import parse_judge
from evalpipe.judges.fake import FakeJudge

SCHEMA = {"properties": {"grade": {"type": "string", "enum": ["1", "2", "3", "cannot_tell"]}}}


def grades(judge: FakeJudge, *users: str) -> list[str]:
    """The grades of prompts with these user texts."""

    async def go() -> list[str]:
        answers = [await judge.ask(Prompt("rubric", user, SCHEMA)) for user in users]
        return [json.loads(answer.text)["grade"] for answer in answers]

    return asyncio.run(go())


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
