"""Batches: many prompts handed to a provider at once, answered within a day, at half the price."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, ClassVar, Final, Literal, Protocol

from evalpipe.errors import EvalpipeError
from evalpipe.judges.base import Answer, Judge, Prompt
from evalpipe.judges.prices import BATCH_FACTOR
from evalpipe.judges.sdk import SdkJudge
from evalpipe.registry import Registry

CALL_S: Final = 60.0
"""How long one call about a batch may take."""
TRANSFER_S: Final = 300.0
"""The same for sending one, and for reading its answers."""
CLOCKS_S: Final = 120.0
"""How far a provider's clock may be from ours, where batches are looked for by the time at which they were made."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a batch is.

    Attributes:
        state: ``running``; ``ended``: there are answers, perhaps not to all; or ``failed``: there is none.
        reason: of a failure, or why answers may be missing.
        passing: it failed for what passes by itself, such as a full queue at the provider.
    """

    state: Literal["running", "ended", "failed"]
    reason: str = ""
    passing: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one prompt of a batch: an answer, at the batch's price, or the reason why there is none."""

    custom_id: str
    answer: Answer | None = None
    reason: str = ""


class Batcher(Protocol):
    """Hands batches to a provider for one judge, and picks them up. One instance belongs to one event loop.

    All calls raise ``JudgeUnavailable``, ``JudgeRejected`` (with the cause ``gone`` where the endpoint has no batches,
    or not this one) and ``PermanentError`` as ``Judge.ask`` does. None is tried again here.
    """

    most_requests: ClassVar[int]
    """Prompts that one batch may have."""
    most_bytes: ClassVar[int]
    """Bytes that its lines may have."""
    asks_first: ClassVar[bool]
    """Judges of this provider learn from refusals which parameters a model takes; a batch cannot teach them."""

    def __init__(self, judge: Judge) -> None:
        """Open nothing yet."""

    def line(self, custom_id: str, prompt: Prompt) -> bytes:
        """One request as it is sent, in one line.

        Args:
            custom_id: up to 64 letters, digits, ``-`` and ``_``; begins with the batch's own id.
            prompt: what is asked.
        """
        ...

    async def submit(self, batch_id: str, lines: Sequence[bytes]) -> str:
        """Hand a batch in; the provider's name for it. After an error it may have been made all the same."""
        ...

    async def find(self, batch_id: str, n: int, since: datetime, known: Collection[str]) -> str:
        """The provider's name for a batch that may have been handed in; "" if it never was.

        Args:
            batch_id: our own id.
            n: requests in it.
            since: it was not made before, aware UTC.
            known: the provider's names for others.

        Raises:
            JudgeUnavailable: also where that cannot be told yet.
        """
        ...

    async def look(self, provider_id: str) -> Progress:
        """How far it is."""
        ...

    async def results(self, provider_id: str) -> list[Result]:
        """What came of the prompts of a batch that has ended, in any order."""
        ...

    async def cancel(self, provider_id: str) -> None:
        """Have no more of it answered."""
        ...


batchers: Registry[type[Batcher]] = Registry("batch API", "evalpipe.judges")
"""All providers that have one, by the name of the judge."""


def batcher_of(judge: Judge) -> Batcher | None:
    """What hands in batches for ``judge``; None where its provider has no batch API."""
    provider = judge.version.partition(":")[0]
    return batchers.get(provider)(judge) if provider in batchers else None


def halved(answer: Answer) -> Answer:
    """The answer at the price of a batch."""
    return replace(answer, cost_usd=None if answer.cost_usd is None else answer.cost_usd * BATCH_FACTOR)


def read_result(judge: SdkJudge, custom_id: str, body: Mapping[str, Any], request_id: str = "") -> Result:
    """What the judge reads in the body of one response."""
    try:
        answer = halved(judge.read(body))
    except EvalpipeError as error:
        return Result(custom_id, reason=str(error))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        return Result(custom_id, reason=f"judge {judge.version} sent a body that is no answer: {error!r}"[:300])
    return Result(custom_id, replace(answer, request_id=request_id) if request_id else answer)
