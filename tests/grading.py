"""Judges that say what a test wants, and a grader that asks them."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from evalpipe.judges.base import Answer, Prompt
from evalpipe.judges.desk import Desk
from evalpipe.record import Record, Release
from evalpipe.scorecard.model import JudgeSpec
from evalpipe.scorers.calls import Outcome
from evalpipe.scorers.grader import Grader
from evalpipe.scorers.judged import Question

RECORD = Record("r1", "t1", datetime(2026, 1, 1, tzinfo=UTC), Release("shop"), output="the words of the answer")
OTHER = dataclasses.replace(RECORD, record_id="r0", output="another answer")


class Judge:
    """Says what the test wants."""

    gives_logprobs = True

    def __init__(self, name: str, says: Callable[[Prompt], Any]) -> None:
        self.version = name
        self.says = says
        self.asked: list[Prompt] = []

    async def ask(self, prompt: Prompt) -> Answer:
        """The test's answer; an exception is raised, a word is wrapped into a grade."""
        self.asked.append(prompt)
        await asyncio.sleep(0)
        said = self.says(prompt)
        if isinstance(said, Exception):
            raise said
        if isinstance(said, Answer):
            return said
        text = said if said.startswith("{") or " " in said else reply(said)
        return Answer(text, "m", input_tokens=101, output_tokens=11, cost_usd=0.02)

    async def aclose(self) -> None:
        """Nothing is open."""


def reply(grade: str, quotation: str = "") -> str:
    """A grade in the form that is asked for."""
    return json.dumps({"explanation": f"it is {grade}", "quotation": quotation, "grade": grade})


def spec(**fields: Any) -> JudgeSpec:
    """A criterion that is graded pass or fail."""
    return JudgeSpec(**{"kind": "boolean", "rubric": "It is right.", **fields})


class Bench:
    """Judges by name, and a grader that asks them."""

    def __init__(self, **says: Callable[[Prompt], Any] | str | Sequence[str]) -> None:
        self.judges: dict[str, Judge] = {}
        for name, said in says.items():
            self.judges[f"fake:{name}"] = Judge(f"fake:{name}", self._reader(said))
        self.desk = Desk(self.judges.get, clock=lambda: datetime.now(UTC))
        self.grader = Grader(self.desk)

    @staticmethod
    def _reader(said: Any) -> Callable[[Prompt], Any]:
        if isinstance(said, list):
            left = iter(said)
            return lambda _: next(left)
        return said if callable(said) else lambda _: said

    def run(self, *specs: JudgeSpec, attempts_left: int = 1, partner: Record | None = None, **options: Any) -> Outcome:
        """One plan, run."""
        question = Question({f"c{n}": spec for n, spec in enumerate(specs)})
        plan = self.grader.plan(question, RECORD, "w1", partner=partner, **options)
        return asyncio.run(self.grader.run(plan, attempts_left=attempts_left))

    def calls(self, name: str) -> int:
        """Made to one judge."""
        return len(self.judges[f"fake:{name}"].asked)
