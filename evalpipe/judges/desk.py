"""The desk: where every call of a judge goes through, so that what must hold for all of them has one place."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from evalpipe.errors import ConfigError, EvalpipeError
from evalpipe.judges.base import Answer, Judge, Prompt


@dataclass(frozen=True, slots=True)
class Call:
    """One call that was made, answered or not.

    Attributes:
        at: when it ended, aware UTC.
        judge: the judge's version.
        account: the scorecard that pays; "" for none.
        outcome: ``answered``, or the cause of the failure.
        answer: what it took; None if there was none.
        latency_ms: wall time.
    """

    at: datetime
    judge: str
    account: str
    outcome: str
    answer: Answer | None
    latency_ms: float


class Desk:
    """Opens judges and asks them.

    Args:
        open_model: the judge that a scorecard's word for a model means; None where none is configured.
        clock: aware UTC.
    """

    def __init__(self, open_model: Callable[[str], Judge | None], *, clock: Callable[[], datetime]) -> None:
        self._open_model = open_model
        self._clock = clock
        self._judges: dict[str, Judge] = {}
        self._calls: list[Call] = []

    def judge(self, model: str) -> Judge:
        """The judge that ``model`` means; opened once.

        Raises:
            ConfigError: none is configured, or it cannot be opened.
        """
        if model not in self._judges:
            judge = self._open_model(model)
            if judge is None:
                raise ConfigError(f"no judge is configured for model {model!r}: set EVALPIPE_JUDGE")
            self._judges[model] = judge
        return self._judges[model]

    async def ask(self, model: str, prompt: Prompt) -> Answer:
        """The answer of the judge that ``model`` means; waits for its turn.

        Raises:
            ConfigError: as ``judge``.
            EvalpipeError: as ``Judge.ask``.
        """
        judge = self.judge(model)
        started = time.perf_counter()
        try:
            answer = await judge.ask(prompt)
        except EvalpipeError as error:
            self._note(judge, prompt, str(getattr(error, "cause", "request")), None, started)
            raise
        self._note(judge, prompt, "answered", answer, started)
        return answer

    def take_calls(self) -> list[Call]:
        """The calls that ended since this was last asked."""
        calls, self._calls = self._calls, []
        return calls

    async def aclose(self) -> None:
        """Close the judges' connections, on the loop that they were used on."""
        for judge in self._judges.values():
            await judge.aclose()
        self._judges.clear()

    def _note(self, judge: Judge, prompt: Prompt, outcome: str, answer: Answer | None, started: float) -> None:
        latency_ms = (time.perf_counter() - started) * 1000.0
        self._calls.append(Call(self._clock(), judge.version, prompt.account, outcome, answer, latency_ms))
