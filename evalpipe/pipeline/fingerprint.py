"""Fixed prompts → the application's model → store: one round of each set that is due.

The calls are made through the application's own model settings, and by nobody's order but the schedule's: so a change
behind the model's name is seen with no traffic at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import isfinite
from typing import Any, Final

from evalpipe.errors import EvalpipeError
from evalpipe.hook.call import suppressed
from evalpipe.judges.plain import PlainAnswer, PlainModel
from evalpipe.profile import packed
from evalpipe.profiling.embedders.base import Embedder, Embedding
from evalpipe.profiling.shape import format_of
from evalpipe.refusal import is_refusal
from evalpipe.scorecard.fingerprint import FingerprintSet
from evalpipe.store import prints
from evalpipe.store.sql import Store, storable, storable_json

LEASE: Final = timedelta(minutes=45)
"""For so long a round is ours: a worker that died keeps the others away no longer."""
LONGEST_S: Final = 2_400.0
"""Of a round; it ends before its lease does, or another worker would ask all of it again, and neither would keep it."""
PAUSE: Final = timedelta(minutes=5)
"""After a round that does not count, at the least; the more of it was answered, the longer."""
LEAST: Final = 0.8
"""Share of a round's prompts that must be answered: what fails may have to do with the prompt."""
CONCURRENCY: Final = 4
MAX_OUTPUT: Final = 4_000
"""Characters of an answer that are kept to be read."""

log = logging.getLogger("evalpipe")


@dataclass(frozen=True, slots=True)
class Round:
    """One round of a set.

    Attributes:
        name: of the set.
        at: when it was asked.
        answered, asked: calls.
        model: that answered; several are joined by commas.
        error: why some gave no answer; "" if all did.
        kept: it counts; else it is tried again soon.
    """

    name: str
    at: datetime
    answered: int
    asked: int
    model: str
    error: str
    kept: bool


class FingerprintStage:
    """The stage, with what it needs.

    Args:
        store: where.
        sets: that are declared.
        clock: aware UTC.
        embedder: of the answers.
    """

    def __init__(
        self,
        store: Store,
        sets: Sequence[FingerprintSet],
        *,
        clock: Callable[[], datetime],
        embedder: Embedder,
    ) -> None:
        self._store = store
        self._sets = sets
        self._clock = clock
        self._embedder = embedder

    async def __call__(self, name: str = "", *, force: bool = False) -> list[Round]:
        """Ask every set that is due.

        Args:
            name: only this one.
            force: do not wait for the clock.
        """
        done = []
        for one in self._sets:
            if name not in {"", one.name}:
                continue
            at = await asyncio.to_thread(self._claim, one, force)
            if at is not None:
                done.append(await self._round(one, at))
        return done

    def _claim(self, one: FingerprintSet, force: bool) -> datetime | None:
        now = self._clock()
        return self._store.patiently(lambda tx: prints.claim(tx, one, now, lease=LEASE, force=force))

    async def _round(self, one: FingerprintSet, at: datetime) -> Round:
        found, errors = await _ask(one)
        asked = len(one.prompts) * one.repeats
        kept = len(found) >= LEAST * asked
        rows = await asyncio.to_thread(self._rows, one, at, found) if kept else []
        error = storable(errors[0])[:500] if errors else ""
        if errors:
            log.warning("fingerprint %s: %d of %d prompts without answer: %s", one.name, len(errors), asked, error)
        # A round that does not count is tried again soon, not at once; the sooner, the less of it was paid for: so
        # prompts that never get an answer do not make the others cost more than a round does each time.
        pause = max(PAUSE, one.every * (len(found) / asked))
        round_at = at if kept else at - one.every + pause
        values = {"round_at": round_at, "error": error}
        await asyncio.to_thread(self._store.patiently, lambda tx: prints.settle(tx, one.name, at + LEASE, values, rows))
        models = ", ".join(sorted({answer.model for _, _, answer in found} - {""}))
        return Round(one.name, at, len(found), asked, models, error, kept)

    def _rows(
        self, one: FingerprintSet, at: datetime, found: Sequence[tuple[str, int, PlainAnswer]]
    ) -> list[dict[str, Any]]:
        vectors, embedder = self._embedded([answer.text for _, _, answer in found])
        return [
            {
                "name": one.name,
                "round_at": at,
                "prompt": prompt,
                "repeat": repeat,
                "definition": one.definition,
                "output": storable(answer.text[:MAX_OUTPUT]),
                "traits": storable_json(_traits(answer)),
                "model": storable(answer.model),
                "fingerprint": storable(answer.fingerprint),
                "embedding": packed(vector),
                "embedder": embedder,
                "latency_ms": answer.latency_ms,
            }
            for (prompt, repeat, answer), vector in zip(found, vectors, strict=True)
        ]

    def _embedded(self, texts: Sequence[str]) -> tuple[list[Embedding], str]:
        """Embeddings and whose they are; an embedder that fails costs those, and no answers that were paid for."""
        try:
            return self._embedder.embed(texts), self._embedder.version
        except Exception as error:  # noqa: BLE001 - whatever a library raises; what it says may have a key in it
            told = str(error) if isinstance(error, EvalpipeError) else type(error).__name__
            log.warning("answers to fingerprints go without embeddings: %s", told)
            return [() for _ in texts], ""


def _traits(answer: PlainAnswer) -> dict[str, float | str]:
    traits: dict[str, float | str] = {
        "chars": float(len(answer.text)),
        "words": float(len(answer.text.split())),
        "refusal": "yes" if is_refusal(answer.text, answer.finish) else "no",
        "format": format_of(answer.text),
        "finish": answer.finish[:40],
    }
    if answer.output_tokens is not None:
        traits["output_tokens"] = float(answer.output_tokens)
    if answer.logprob is not None and isfinite(answer.logprob):
        traits["logprob"] = answer.logprob
    return traits


async def _ask(one: FingerprintSet) -> tuple[list[tuple[str, int, PlainAnswer]], list[str]]:
    """The answers with prompt and number, and why others are missing."""
    settings = one.model
    model = PlainModel(settings.protocol, settings.name, settings.base_url, settings.api_key)
    slots = asyncio.Semaphore(CONCURRENCY)
    errors: list[str] = []
    until_s = asyncio.get_running_loop().time() + LONGEST_S

    async def ask(name: str, text: str, repeat: int) -> tuple[str, int, PlainAnswer] | None:
        async with slots:
            try:
                # A tap on the worker's own process must not take these for traffic.
                async with asyncio.timeout_at(until_s):
                    with suppressed():
                        answer = await model.ask(
                            text, system=settings.system, settings=settings.settings, logprobs=settings.logprobs
                        )
            except TimeoutError:
                errors.append(f"no time left: a round may take {LONGEST_S / 60:.0f} minutes; declare fewer prompts")
                return None
            except EvalpipeError as error:
                errors.append(str(error))
                return None
            return name, repeat, answer

    try:
        calls = [ask(prompt.name, prompt.text, n) for prompt in one.prompts for n in range(one.repeats)]
        given = await asyncio.gather(*calls)
    finally:
        await model.aclose()
    return [found for found in given if found is not None], errors
