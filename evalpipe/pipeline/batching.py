"""Which works go into which batch, and which go another way."""

from __future__ import annotations

import logging
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from evalpipe.judges.base import Judge
from evalpipe.judges.batches import Batcher, batcher_of
from evalpipe.judges.desk import Desk
from evalpipe.judges.prices import BATCH_FACTOR
from evalpipe.pipeline.budget import Budget
from evalpipe.pipeline.judging import Again, Ended, Task, Tasks
from evalpipe.scorers.calls import Outcome, Planned
from evalpipe.store import judge_batches, works
from evalpipe.store.judge_batches import Batch
from evalpipe.store.sql import Transaction
from evalpipe.store.works import Work

log = logging.getLogger("evalpipe")

LEAST: Final = 50
"""So many make a batch at once; fewer wait for ``GATHER``. A provider's limits on batches are in batches, too."""
GATHER: Final = timedelta(minutes=5)
"""How long works wait for company at the most: little beside the hours that a batch may take."""
CLAIM: Final = 1_000
"""Works claimed at once, and so requests in a batch: their records are in memory, and SQLite has one writer."""
HANDS: Final = timedelta(minutes=15)
"""How long who claimed works, or looks after a batch, has them: three times the longest transfer."""
SAME: Final = timedelta(hours=1)
"""How long a question waits that has just been sent for another record: most batches are back by then."""
ID_CHARS: Final = 16
KEY_CHARS: Final = 8


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A batch that is to be handed in: it is in the store already."""

    batch: Batch
    judge: Judge
    batcher: Batcher
    lines: Sequence[bytes]


@dataclass(slots=True)
class Sorted:
    """What becomes of claimed works.

    Attributes:
        ended: ended without a batch: they cannot be asked, or not now, or not in a batch.
        known: need no call.
        first: are asked at once and alone, for a judge that has to learn what its model takes.
        outgoing: batches.
    """

    ended: list[Ended] = field(default_factory=list)
    known: list[Task] = field(default_factory=list)
    first: list[Task] = field(default_factory=list)
    outgoing: list[Outgoing] = field(default_factory=list)


class Batching:
    """Claims works of the lane ``batch`` and sorts them; one per worker process.

    Args:
        desk: has the judges.
        tasks: makes tasks of works.
        budget: the caps that hold.

    Attributes:
        asked: versions of judges that this process has asked something outside a batch.
        without: why there are no batches, by the version of the judge.
    """

    def __init__(self, desk: Desk, tasks: Tasks, budget: Budget) -> None:
        self._desk = desk
        self._tasks = tasks
        self._budget = budget
        self._batchers: dict[str, Batcher | None] = {}
        self.asked: set[str] = set()
        self.without: dict[str, str] = {}

    def batcher(self, judge: Judge) -> Batcher | None:
        """What hands in batches for ``judge``; None where nobody does."""
        if judge.version not in self._batchers:
            self._batchers[judge.version] = batcher_of(judge)
            if self._batchers[judge.version] is None:
                self.has_none(judge, "its provider has no batch API")
        return self._batchers[judge.version] if judge.version not in self.without else None

    def has_none(self, judge: Judge, reason: str) -> None:
        """From now on the works of this judge go the other way, and the log says so."""
        self.without[judge.version] = reason
        log.warning("judge %s: work of lane 'batch' is judged now, at full price: %s", judge.version, reason)

    def claim(self, tx: Transaction, now: datetime) -> Sorted | None:
        """Claim what is due and sort it; None where nothing is, or it may wait for company."""
        n, since = works.gathered(tx, now, LEAST)
        if since is None or (n < LEAST and since > now - GATHER):
            return None
        claimed = works.claim(tx, CLAIM, now, HANDS, lane="batch")
        claimed += self._tasks.siblings(tx, claimed, now, HANDS)
        found = Sorted()
        asking = self._sift(self._tasks.make(tx, claimed, now, Counter()), found, now)
        alone = {id(call) for task in asking if task.share == 1.0 and (call := _call(task))}
        by_model: dict[str, list[Task]] = defaultdict(list)
        for task in self._budget.admit(tx, asking, now):
            call = _call(task)
            if call is None:
                found.ended.append(Ended(task, Outcome(error=task.error)))
            elif id(call) in alone:
                found.first.append(task)
            else:
                by_model[call.model].append(task)
        for model, tasks in by_model.items():
            found.outgoing += self._batches(tx, model, tasks, now)
        return found

    def _sift(self, tasks: Sequence[Task], found: Sorted, now: datetime) -> list[Task]:
        """The tasks that are to be asked and paid for; the others are in ``found``."""
        asking: list[Task] = []
        keys: set[str] = set()
        first: set[str] = set()
        for task in tasks:
            call = _call(task)
            if call is None or task.plan is None:
                found.ended.append(Ended(task, Outcome(error=task.error)))
                continue
            judge = self._desk.judge(call.model)
            batcher = self.batcher(judge)
            if call.key in task.known:
                found.known.append(task)
            elif len(task.plan.all_calls) > 1:
                found.ended.append(_elsewhere(task, "a batch asks one judge once", now))
            elif batcher is None:
                found.ended.append(_elsewhere(task, f"no batch: {self.without[judge.version]}", now))
            elif call.key in keys:
                why = "the same question has just been sent for another record"
                found.ended.append(Ended(task, Outcome(), Again(now + SAME, why, refund=True)))
            elif not batcher.asks_first or judge.version in self.asked:
                keys.add(call.key)
                asking.append(replace(task, share=BATCH_FACTOR))
            elif judge.version in first:  # back as overdue as it may have been: what comes next is the batch
                found.ended.append(Ended(task, Outcome(), Again(now - GATHER, "", refund=True)))
            else:
                first.add(judge.version)
                asking.append(task)
        return asking

    def _batches(self, tx: Transaction, model: str, tasks: Sequence[Task], now: datetime) -> Iterator[Outgoing]:
        """Write batches to the store, before the provider is asked, and have the works wait for them."""
        judge = self._desk.judge(model)
        batcher = self.batcher(judge)
        assert batcher is not None
        left = list(tasks)
        while left:
            batch_id = uuid.uuid4().hex[:ID_CHARS]
            lines: list[bytes] = []
            sent: list[Work] = []
            size = 0
            while left and len(lines) < batcher.most_requests:
                line = _line(batcher, batch_id, left[0])
                size += len(line) + 1
                if lines and size > batcher.most_bytes:
                    break
                lines.append(line)
                sent += left.pop(0).works
            batch = Batch(batch_id, judge.version, model, len(lines), now, now + HANDS)
            judge_batches.add(tx, batch)
            works.send(tx, sent, batch_id)
            yield Outgoing(batch, judge, batcher, lines)


def _line(batcher: Batcher, batch_id: str, task: Task) -> bytes:
    call = _call(task)
    assert call is not None
    return batcher.line(f"{batch_id}-{task.works[0].work_id}-{call.key[:KEY_CHARS]}", call.prompt)


def work_of(custom_id: str) -> str:
    """The id of the work that a request was sent for; "" if it is none of ours."""
    parts = custom_id.split("-")
    return parts[1] if len(parts) == 3 else ""


def is_same_question(custom_id: str, task: Task) -> bool:
    """Whether the question that was sent is the one that this code would send now."""
    call = _call(task)
    return call is not None and custom_id.rpartition("-")[2] == call.key[:KEY_CHARS]


def _call(task: Task) -> Planned | None:
    return task.plan.calls[0] if task.plan is not None else None


def _elsewhere(task: Task, reason: str, now: datetime) -> Ended:
    return Ended(task, Outcome(), Again(now, reason, refund=True, lane="now"))
