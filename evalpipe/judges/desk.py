"""The desk: where every call of a judge goes through, so that what must hold for all of them has one place."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from evalpipe.errors import ConfigError, EvalpipeError, JudgeUnavailable
from evalpipe.judges.base import Answer, Judge, Prompt
from evalpipe.judges.config import Options
from evalpipe.judges.limits import Slots
from evalpipe.judges.rates import Fleet, Rates

REASON_CHARS = 500
PATIENCE_S = 2.0
"""A call waits so long here for a pause to end; with a longer one its work goes back to the store, uncalled."""
REJECTIONS: Final = frozenset({"key", "credit", "gone"})
"""Outcomes that say that no call will be answered."""
REJECTED_PAUSE_S = 5.0
"""After such an outcome no call begins for so long: the breaker's state is on its way to the store, where all processes
see it."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call that was made, answered or not.

    Attributes:
        at: when it ended, aware UTC.
        judge: the judge's version.
        account: the scorecard that pays; "" for none.
        outcome: ``answered``, ``truncated``, ``refused`` or ``malformed`` where an answer came; else the cause of the
            failure: ``timeout``, ``throttled``, ``server``, ``unreachable``, ``key``, ``credit``, ``gone``,
            ``forbidden``, ``request``.
        answer: what it took; None if there was none.
        latency_ms: wall time, without the wait for its turn.
        reason: of a failure, in the provider's words.
    """

    at: datetime
    judge: str
    account: str
    outcome: str
    answer: Answer | None
    latency_ms: float
    reason: str = ""


@dataclass(slots=True)
class _Line:
    """What a scorecard's word for a model leads to, and until when (monotonic) and why it is left alone if rejected."""

    judge: Judge
    slots: Slots
    rates: Rates | None
    rejected_until_s: float = 0.0
    rejected: str = ""


class Desk:
    """Opens judges and asks them, no more at once than they bear, and no more a minute than the fleet may.

    It belongs to one event loop. What is learned of a provider's capacity is learned for each model at each endpoint,
    whatever the other options of the judges are: they share its limits.

    Args:
        open_model: the judge that a scorecard's word for a model means; None where none is configured.
        clock: aware UTC.
        concurrency: calls in flight of each model at the most.
        redis_url: where the fleet's limits are kept; "" for none.
        options_of: the options of such a word, for ``rpm`` and ``tpm``; None where there are none.
    """

    def __init__(
        self,
        open_model: Callable[[str], Judge | None],
        *,
        clock: Callable[[], datetime],
        concurrency: int = 32,
        redis_url: str = "",
        options_of: Callable[[str], Options] | None = None,
    ) -> None:
        self._open_model = open_model
        self._clock = clock
        self._concurrency = concurrency
        self._fleet = Fleet(redis_url) if redis_url else None
        self._options_of = options_of
        self._lines: dict[str, _Line] = {}
        self._slots: dict[str, Slots] = {}
        self._calls: list[Call] = []
        self._lock = threading.Lock()

    def judge(self, model: str) -> Judge:
        """The judge that ``model`` means; opened once.

        Raises:
            ConfigError: none is configured, or it cannot be opened.
        """
        return self._line(model).judge

    async def ask(self, model: str, prompt: Prompt) -> Answer:
        """The answer of the judge that ``model`` means; waits for its turn.

        Raises:
            ConfigError: as ``judge``.
            JudgeUnavailable: with the cause ``paused``: nothing was asked.
            EvalpipeError: as ``Judge.ask``.
        """
        line = self._line(model)
        slots = line.slots
        if not slots.enter_now():
            await slots.enter()
        try:
            held = line.rates or slots.paused_until_s or line.rejected
            thought = await _cleared(line, prompt) if held else 0.0
            return await self._call(line, prompt, thought)
        finally:
            slots.leave()

    def unread(self, answer: Answer) -> None:
        """Say of an answer of this desk that there is no grade in it: its call counts as ``malformed``.

        Where the call has been taken already, it stays as it was.
        """
        with self._lock:
            for index in range(len(self._calls) - 1, -1, -1):
                call = self._calls[index]
                if call.answer is answer:
                    self._calls[index] = replace(call, outcome="malformed")
                    return

    def take_calls(self) -> list[Call]:
        """The calls that ended since this was last asked; may be asked by another thread than the loop's."""
        with self._lock:
            calls, self._calls = self._calls, []
        return calls

    def put_back(self, calls: Sequence[Call]) -> None:
        """Keep calls that were taken and could not be counted for whoever takes next."""
        with self._lock:
            self._calls[:0] = calls

    async def aclose(self) -> None:
        """Close all connections, on the loop that they were used on."""
        for judge in {id(line.judge): line.judge for line in self._lines.values()}.values():
            await judge.aclose()
        self._lines.clear()
        if self._fleet is not None:
            await self._fleet.aclose()

    def _line(self, model: str) -> _Line:
        found = self._lines.get(model)
        if found is None:
            judge = self._open_model(model)
            if judge is None:
                raise ConfigError(f"no judge is configured for model {model!r}: set EVALPIPE_JUDGE")
            endpoint = judge.version.partition("?")[0]
            slots = self._slots.setdefault(endpoint, Slots(self._concurrency))
            found = self._lines[model] = _Line(judge, slots, self._rates_of(model, endpoint))
        return found

    def _rates_of(self, model: str, endpoint: str) -> Rates | None:
        if self._fleet is None or self._options_of is None:
            return None
        options = self._options_of(model)
        if options.rpm is None and options.tpm is None:
            return None
        return Rates(self._fleet, endpoint, rpm=options.rpm, tpm=options.tpm)

    async def _call(self, line: _Line, prompt: Prompt, thought: float) -> Answer:
        started_s = time.monotonic()
        try:
            answer = await line.judge.ask(prompt)
        except EvalpipeError as error:
            now_s = time.monotonic()
            outcome, reason = str(getattr(error, "cause", "request")), str(error)[:REASON_CHARS]
            if outcome in REJECTIONS:
                line.rejected_until_s, line.rejected = now_s + REJECTED_PAUSE_S, reason
            if isinstance(error, JudgeUnavailable):
                if outcome == "throttled":
                    line.slots.throttled(started_s, now_s)
                if error.retry_after_s and outcome in {"throttled", "server"}:
                    line.slots.pause(error.retry_after_s, now_s)
            self._note(line, prompt, outcome, None, now_s - started_s, reason)
            raise
        line.slots.answered()
        if line.rates is not None:
            line.rates.took(thought, answer.input_tokens + answer.output_tokens, answer.output_tokens)
        outcome = "answered" if answer.finish == "complete" else answer.finish
        self._note(line, prompt, outcome, answer, time.monotonic() - started_s)
        return answer

    def _note(
        self, line: _Line, prompt: Prompt, outcome: str, answer: Answer | None, seconds: float, reason: str = ""
    ) -> None:
        call = Call(self._clock(), line.judge.version, prompt.account, outcome, answer, seconds * 1000.0, reason)
        with self._lock:
            self._calls.append(call)


async def _cleared(line: _Line, prompt: Prompt) -> float:
    """Wait for the fleet's limits and for the pause that the provider asked for; the tokens that were taken."""
    if (left_s := line.rejected_until_s - time.monotonic()) > 0.0:
        raise JudgeUnavailable(line.rejected, retry_after_s=left_s, cause="paused")
    tokens = 0.0
    if line.rates is not None:
        tokens = line.rates.tokens_of(_bytes(prompt.system) + _bytes(prompt.user))
        if not line.rates.take_now(tokens):
            await line.rates.take(tokens)
    while (wait_s := line.slots.paused_until_s - time.monotonic()) > 0.0:
        if wait_s > PATIENCE_S:
            message = f"judge {line.judge.version} asked not to be called for another {wait_s:.0f} s"
            raise JudgeUnavailable(message, retry_after_s=wait_s, cause="paused")
        # Not all in the same moment.
        await asyncio.sleep(wait_s * random.uniform(1.0, 1.1))  # noqa: S311 - spreads load, guards nothing
    return tokens


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
